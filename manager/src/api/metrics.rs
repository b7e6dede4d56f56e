//! The page of metrics. It is made when somebody asks for it; until then the parts only count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use podmesh_manager_core::measures::{BOUNDS_MS, Durations, Measures, Totals};
use podmesh_metrics::{Buckets, OUTCOMES, Page, Sample, Value, add_process, bounded};
use podmesh_protocol::access::Role;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::node::{NodeState, NodeView};
use podmesh_protocol::service::{ServiceState, ServiceView};
use podmesh_protocol::spec::Resources;
use podmesh_wire::machine::{disk_bytes, free_bytes};

use super::Api;
use crate::callers::Client;
use crate::callers::forbidden;
use crate::heartbeat::Heartbeats;
use crate::metrics::{EventCounts, JOB_ENDS, RUN_RESULTS, read};
use crate::store::StoreMeasures;
use crate::traces::SpanCounts;

/// The most rows of one look at the core.
const ROWS: u32 = 256;
const _: () = assert!(ROWS <= PAGE_ROWS_MAX);

/// The parts that count.
pub(crate) struct Measured {
    pub(crate) events: Arc<EventCounts>,
    pub(crate) store: Arc<StoreMeasures>,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) spans: Arc<SpanCounts>,
}

/// What is read from the core.
struct Looks {
    measures: Measures,
    nodes: Vec<NodeView>,
    services: Vec<ServiceView>,
    /// When the oldest valid key of each role joined, in milliseconds since 1970.
    oldest_keys: BTreeMap<Role, u64>,
}

impl Api {
    /// Returns the page of metrics.
    ///
    /// # Errors
    /// If the caller may not read, or the manager is stopping.
    pub(crate) async fn metrics(&self, client: &Client) -> Result<String, ErrorReply> {
        if !client.caller.role.includes(Role::Viewer) {
            return Err(forbidden(&client.caller, Role::Viewer));
        }
        self.0.turns.take(&client.reads).await;
        let looks = self.look().await?;
        let mut page = Page::default();
        self.add_manager(&mut page);
        add_work(&mut page, &looks.measures, &self.0.measured.events);
        add_nodes(&mut page, &looks.nodes);
        add_services(&mut page, &looks.services);
        let keys = looks.oldest_keys.iter();
        let keys = keys.map(|(role, ms)| Sample::of("role", role.as_str(), *ms as f64 / 1e3));
        page.gauges(
            "podmesh_oldest_key_timestamp_seconds",
            "When the oldest valid key of each role joined.",
            keys.collect(),
        );
        add_process(&mut page);
        Ok(page.text())
    }

    /// Looks at the core some times, and never for long.
    async fn look(&self) -> Result<Looks, ErrorReply> {
        let core = &self.0.core;
        let (measures, oldest_keys) = core
            .read(|core, _| {
                let mut oldest = BTreeMap::new();
                for key in core.state().keys.values().filter(|key| !key.revoked) {
                    let first = oldest.entry(key.role).or_insert(key.enrolled_wall_ms);
                    *first = key.enrolled_wall_ms.min(*first);
                }
                (core.measures(), oldest)
            })
            .await?;
        let mut nodes: Vec<NodeView> = Vec::new();
        loop {
            let after = nodes.last().map(|view| view.node.clone());
            let list = move |core: &podmesh_manager_core::Core, now| {
                core.list_nodes(now, after.as_ref(), ROWS)
            };
            let page = core.read(list).await?;
            if page.is_empty() {
                break;
            }
            nodes.extend(page);
        }
        let mut services: Vec<ServiceView> = Vec::new();
        loop {
            let after = services.last().map(|view| view.service.clone());
            let page = core.read(move |core, _| core.list_services(after.as_ref(), ROWS)).await?;
            if page.is_empty() {
                break;
            }
            services.extend(page);
        }
        Ok(Looks { measures, nodes, services, oldest_keys })
    }

    fn add_manager(&self, page: &mut Page) {
        let (identity, measured) = (&self.0.identity, &self.0.measured);
        page.gauges(
            "podmesh_manager_info",
            "Always 1, with the version of the manager.",
            vec![Sample::of("version", &identity.program_version, 1_u64)],
        );
        let revision = identity.last_revision.load(Ordering::Acquire);
        page.gauge("podmesh_event_revision", "The revision of the last committed event.", revision);
        page.times(
            "podmesh_commit_seconds",
            "How long commits of the database took.",
            measured.store.commits.buckets(),
        );
        page.gauge(
            "podmesh_database_waits_for_room",
            "1 while the disk of the database is full and nothing can be committed, else 0.",
            measured.store.waits_for_room.load(Ordering::Relaxed),
        );
        if let (Ok(free), Ok(all)) = (free_bytes(&self.0.data_dir), disk_bytes(&self.0.data_dir)) {
            let help = "Bytes that are free on the disk of the database.";
            page.gauge("podmesh_disk_free_bytes", help, free);
            page.gauge("podmesh_disk_size_bytes", "Bytes of the disk of the database.", all);
        }
        page.times(
            "podmesh_heartbeat_delay_seconds",
            "How much later than the interval heartbeats of nodes came.",
            measured.heartbeats.delays(),
        );
        page.counters(
            "podmesh_trace_spans",
            "Spans that the collector of traces got, and spans that were dropped.",
            vec![
                Sample::of("result", "exported", read(&measured.spans.exported)),
                Sample::of("result", "dropped", read(&measured.spans.dropped)),
            ],
        );
        let counter =
            |page: &mut Page, name, help, counter| page.counter(name, help, read(counter));
        let events = &measured.events;
        counter(
            page,
            "podmesh_nodes_lost",
            "How often the lease of a node ended.",
            &events.nodes_lost,
        );
        counter(
            page,
            "podmesh_log_gaps",
            "How often output of an attempt was lost.",
            &events.log_gaps,
        );
        counter(
            page,
            "podmesh_connections_refused",
            "Connections that were refused or cut off.",
            &events.connections_refused,
        );
        counter(page, "podmesh_joins_refused", "Refused attempts to join.", &events.joins_refused);
    }
}

/// Adds jobs, tasks and attempts.
fn add_work(page: &mut Page, measures: &Measures, events: &EventCounts) {
    let Totals {
        jobs_queued,
        jobs_running,
        jobs_cancelling,
        tasks_queued,
        tasks_active,
        tasks_succeeded,
        tasks_failed,
        tasks_cancelled,
    } = measures.totals;
    let by_state = |states: &[(&str, u64)]| {
        states.iter().map(|(state, count)| Sample::of("state", *state, *count)).collect()
    };
    page.gauges(
        "podmesh_jobs",
        "Jobs that have not ended.",
        by_state(&[
            ("queued", jobs_queued),
            ("running", jobs_running),
            ("cancelling", jobs_cancelling),
        ]),
    );
    page.gauges(
        "podmesh_tasks",
        "Tasks that have not ended.",
        by_state(&[("queued", tasks_queued), ("active", tasks_active)]),
    );
    page.counters(
        "podmesh_tasks_ended",
        "Tasks that have ended.",
        by_state(&[
            ("succeeded", tasks_succeeded),
            ("failed", tasks_failed),
            ("cancelled", tasks_cancelled),
        ]),
    );
    page.counter("podmesh_jobs_submitted", "Submitted jobs.", read(&events.jobs_submitted));
    let ends = JOB_ENDS.iter().zip(&events.jobs_ended);
    page.counters(
        "podmesh_jobs_ended",
        "Jobs that have ended.",
        ends.map(|(word, count)| Sample::of("state", *word, read(count))).collect(),
    );
    let assigned = read(&events.attempts_assigned);
    page.counter("podmesh_attempts_assigned", "Attempts that nodes were given.", assigned);
    let started = read(&events.attempts_started);
    page.counter("podmesh_attempts_started", "Attempts that have started.", started);
    let ends = OUTCOMES.iter().zip(&events.attempts_ended);
    page.counters(
        "podmesh_attempts_ended",
        "Attempts that have ended.",
        ends.map(|((_, word), count)| Sample::of("outcome", *word, read(count))).collect(),
    );
    let runs = RUN_RESULTS.iter().zip(&events.schedule_runs);
    page.counters(
        "podmesh_schedule_runs",
        "Runs of schedules that have started, were skipped or were missed.",
        runs.map(|(word, count)| Sample::of("result", *word, read(count))).collect(),
    );
    page.gauge("podmesh_queue_jobs", "Jobs with tasks that wait for a node.", measures.queue_jobs);
    page.times(
        "podmesh_queue_wait_seconds",
        "How long tasks waited for a node.",
        buckets(&measures.waited),
    );
    page.times(
        "podmesh_dispatch_seconds",
        "How long it took from the assignment of an attempt to the report of its start.",
        buckets(&measures.dispatched),
    );
}

fn buckets(durations: &Durations) -> Buckets {
    let bounds = BOUNDS_MS.iter().map(|ms| *ms as f64 / 1e3);
    Buckets::new(bounds, durations.counts, durations.sum_ms as f64 / 1e3)
}

fn add_nodes(page: &mut Page, nodes: &[NodeView]) {
    let states =
        [(NodeState::Alive, "alive"), (NodeState::Suspect, "suspect"), (NodeState::Lost, "lost")];
    let count = |state| nodes.iter().filter(|node| node.state == state).count() as u64;
    let states = states.map(|(state, word)| Sample::of("state", word, count(state)));
    page.gauges("podmesh_nodes", "Nodes by state.", states.into());
    let cores = |of: &Resources| Value::Fraction(f64::from(of.cpu_millis) / 1e3);
    let bytes = |of: &Resources| Value::Whole(of.memory_bytes);
    type Look<'a> = &'a dyn Fn(&NodeView) -> Value;
    let of_nodes: [(&str, &str, Look<'_>); 6] = [
        ("podmesh_node_alive", "1 if the node is alive, 0 if it is suspect or lost.", &|node| {
            (node.state == NodeState::Alive).into()
        }),
        ("podmesh_node_attempts", "Attempts that the node has.", &|node| node.attempts.into()),
        ("podmesh_node_cpus", "Processor cores that the node offers.", &|node| {
            cores(&node.capacity)
        }),
        ("podmesh_node_free_cpus", "Processor cores that no attempt has.", &|node| {
            cores(&node.free)
        }),
        ("podmesh_node_memory_bytes", "Memory that the node offers.", &|node| {
            bytes(&node.capacity)
        }),
        ("podmesh_node_free_memory_bytes", "Memory that no attempt has.", &|node| {
            bytes(&node.free)
        }),
    ];
    for (name, help, look) in of_nodes {
        let rows = nodes.iter().map(|node| (node.node.as_str(), look(node)));
        page.gauges(name, help, bounded("node", rows));
    }
}

fn add_services(page: &mut Page, services: &[ServiceView]) {
    let states = [
        (ServiceState::Healthy, "healthy"),
        (ServiceState::Degraded, "degraded"),
        (ServiceState::Updating, "updating"),
        (ServiceState::RollingBack, "rolling_back"),
        (ServiceState::Stopped, "stopped"),
        (ServiceState::Removing, "removing"),
    ];
    let count = |state| services.iter().filter(|service| service.state == state).count() as u64;
    let states = states.map(|(state, word)| Sample::of("state", word, count(state)));
    page.gauges("podmesh_services", "Services by state.", states.into());
    let healthy = services.iter().map(|of| (of.service.as_str(), of.healthy.into()));
    page.gauges(
        "podmesh_service_replicas_healthy",
        "Replicas of the current revision that are healthy.",
        bounded("service", healthy),
    );
    let wanted = services.iter().map(|of| {
        let stops = of.state == ServiceState::Stopped || of.state == ServiceState::Removing;
        (of.service.as_str(), if stops { 0 } else { of.replicas }.into())
    });
    page.gauges(
        "podmesh_service_replicas_wanted",
        "Replicas that are wanted.",
        bounded("service", wanted),
    );
}
