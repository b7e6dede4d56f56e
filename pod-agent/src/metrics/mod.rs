//! What the agent counts for Prometheus, since its start, and the page with it.

mod server;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_metrics::{Histogram, OUTCOMES, Page, Sample, add_process, bounded};
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::service::Health;
use podmesh_protocol::spec::RuntimeKind;
use podmesh_wire::machine::{disk_bytes, free_bytes};

pub(crate) use self::server::{MetricsServer, Scrape};
use crate::proxy::Counters;

/// The upper ends of the intervals of round trips, in seconds.
const ROUND_TRIP_BOUNDS: &[f64] =
    &[0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// The runtimes with their words.
const RUNTIMES: [(RuntimeKind, &str); 3] = [
    (RuntimeKind::Process, "process"),
    (RuntimeKind::Docker, "docker"),
    (RuntimeKind::Noop, "noop"),
];
/// The states of health with their words.
const HEALTHS: [(Health, &str); 3] = [
    (Health::Starting, "starting"),
    (Health::Healthy, "healthy"),
    (Health::Unhealthy, "unhealthy"),
];

/// What the agent counts.
#[derive(Debug)]
pub(crate) struct Counts {
    /// In the order of [`RUNTIMES`].
    started: [u64; RUNTIMES.len()],
    /// In the order of [`OUTCOMES`].
    ended: [u64; OUTCOMES.len()],
    log_gaps: u64,
    sessions: u64,
    round_trips: Histogram,
    /// The health of the running replicas, with their services.
    healths: HashMap<AttemptId, (Name, Health)>,
}

/// What a page shows besides the [`Counts`].
pub(crate) struct Shown<'a> {
    /// Whether a session is open.
    pub(crate) has_session: bool,
    /// The runtimes of the attempts that go on.
    pub(crate) attempts: &'a [RuntimeKind],
    pub(crate) proxy: Counters,
    /// Bytes of all output at the last sweep, if there was one.
    pub(crate) log_bytes: Option<u64>,
    /// Bytes of output that were written.
    pub(crate) log_written: u64,
    pub(crate) logs_dir: &'a Path,
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            started: Default::default(),
            ended: Default::default(),
            log_gaps: 0,
            sessions: 0,
            round_trips: Histogram::new(ROUND_TRIP_BOUNDS),
            healths: HashMap::new(),
        }
    }

    /// Counts a fact of a runtime. `service`: that of a replica.
    pub(crate) fn fact(
        &mut self,
        attempt: AttemptId,
        fact: &RuntimeFact,
        kind: Option<RuntimeKind>,
        service: impl FnOnce() -> Option<Name>,
    ) {
        match fact {
            RuntimeFact::Started => {
                // Only attempts of the benchmark have no entry.
                let kind = kind.unwrap_or(RuntimeKind::Noop);
                count_at(&mut self.started, RUNTIMES.iter().position(|(other, _)| *other == kind));
                if let Some(service) = service() {
                    self.healths.entry(attempt).or_insert((service, Health::Starting));
                }
            }
            RuntimeFact::Ended(outcome) => {
                let position = OUTCOMES.iter().position(|(kind, _)| *kind == outcome.kind);
                count_at(&mut self.ended, position);
                self.healths.remove(&attempt);
            }
            RuntimeFact::LogGap(_) => self.log_gaps += 1,
            RuntimeFact::Health(health, _) => {
                if let Some(service) = service() {
                    self.healths.insert(attempt, (service, *health));
                }
            }
            RuntimeFact::Preparing(_) | RuntimeFact::Listening(_) => {}
        }
    }

    /// Counts a session that was opened.
    pub(crate) fn session_opened(&mut self) {
        self.sessions += 1;
    }

    /// Counts a heartbeat that was answered after this time.
    pub(crate) fn heartbeat(&self, round_trip: Duration) {
        self.round_trips.add(round_trip);
    }

    /// Returns the page.
    pub(crate) fn page(&self, shown: &Shown<'_>) -> Page {
        let mut page = Page::default();
        let version = env!("CARGO_PKG_VERSION");
        let help = "Always 1, with the version of the agent.";
        page.gauges("podmesh_agent_info", help, vec![Sample::of("version", version, 1_u64)]);
        page.gauge(
            "podmesh_agent_session",
            "1 while the agent has a session with the manager, else 0.",
            shown.has_session,
        );
        page.counter("podmesh_agent_sessions", "Sessions that were opened.", self.sessions);
        page.times(
            "podmesh_agent_heartbeat_round_trip_seconds",
            "How long it took until the manager answered a heartbeat.",
            self.round_trips.buckets(),
        );
        self.add_attempts(&mut page, shown);
        self.add_health(&mut page);
        add_proxy(&mut page, &shown.proxy);
        page.counter(
            "podmesh_agent_log_written_bytes",
            "Bytes of output that were written to files, since the supervisor started.",
            shown.log_written,
        );
        if let Some(bytes) = shown.log_bytes {
            let help = "Bytes of all output on this node, at the last sweep.";
            page.gauge("podmesh_agent_log_bytes", help, bytes);
        }
        if let (Ok(free), Ok(all)) = (free_bytes(shown.logs_dir), disk_bytes(shown.logs_dir)) {
            let help = "Bytes that are free on the disk of the output.";
            page.gauge("podmesh_agent_disk_free_bytes", help, free);
            page.gauge("podmesh_agent_disk_size_bytes", "Bytes of the disk of the output.", all);
        }
        add_process(&mut page);
        page
    }

    fn add_attempts(&self, page: &mut Page, shown: &Shown<'_>) {
        let running = RUNTIMES.iter().map(|(kind, word)| {
            let count = shown.attempts.iter().filter(|other| *other == kind).count() as u64;
            Sample::of("runtime", *word, count)
        });
        page.gauges("podmesh_agent_attempts", "Attempts that go on.", running.collect());
        let started = RUNTIMES.iter().zip(&self.started);
        let started = started.map(|((_, word), count)| Sample::of("runtime", *word, *count));
        let help = "Attempts that have started.";
        page.counters("podmesh_agent_attempts_started", help, started.collect());
        let ended = OUTCOMES.iter().zip(&self.ended);
        let ended = ended.map(|((_, word), count)| Sample::of("outcome", *word, *count));
        page.counters(
            "podmesh_agent_attempts_ended",
            "Attempts that have ended, as their runtime saw it: those that were stopped count as failed.",
            ended.collect(),
        );
        let help = "How often output of an attempt was lost.";
        page.counter("podmesh_agent_log_gaps", help, self.log_gaps);
    }

    fn add_health(&self, page: &mut Page) {
        let mut services: BTreeMap<&str, [u64; HEALTHS.len()]> = BTreeMap::new();
        for (service, health) in self.healths.values() {
            let position = HEALTHS.iter().position(|(other, _)| other == health);
            if let Some(position) = position {
                services.entry(service.as_str()).or_default()[position] += 1;
            }
        }
        let samples = HEALTHS.iter().enumerate().flat_map(|(at, (_, word))| {
            let rows = services.iter().map(|(service, counts)| (*service, counts[at].into()));
            let with_health = |sample: Sample| sample.and("health", *word);
            bounded("service", rows).into_iter().map(with_health).collect::<Vec<_>>()
        });
        let help = "Replicas that run here, by service and health.";
        page.gauges("podmesh_agent_replicas", help, samples.collect());
    }
}

fn add_proxy(page: &mut Page, counters: &Counters) {
    let Counters { open, accepted, refused, failed, bytes } = *counters;
    let help = "Connections of clients that the node's proxy has now.";
    page.gauge("podmesh_proxy_open_connections", help, open);
    let help = "Connections of clients that the proxy accepted, refused ones included.";
    page.counter("podmesh_proxy_connections", help, accepted);
    let help = "Connections that were closed at once because too many were open.";
    page.counter("podmesh_proxy_refused", help, refused);
    let help = "Connections that were closed because no replica could be reached.";
    page.counter("podmesh_proxy_failed", help, failed);
    page.counter("podmesh_proxy_bytes", "Bytes that were passed on, in both directions.", bytes);
}

fn count_at(counters: &mut [u64], position: Option<usize>) {
    if let Some(counter) = position.and_then(|position| counters.get_mut(position)) {
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::ids::JobId;
    use podmesh_protocol::report::Outcome;

    use super::*;

    #[test]
    fn health_is_that_of_the_replicas_that_run() {
        let mut counts = Counts::new();
        let attempt = |job| AttemptId::new(JobId(job), 1, 1);
        let mut tell = |job, fact: RuntimeFact| {
            let web = || "web".parse().ok();
            counts.fact(attempt(job), &fact, Some(RuntimeKind::Process), web);
        };
        for job in 1..=3 {
            tell(job, RuntimeFact::Started);
        }
        tell(1, RuntimeFact::Health(Health::Healthy, String::new()));
        tell(2, RuntimeFact::Health(Health::Unhealthy, String::new()));
        tell(2, RuntimeFact::Ended(Outcome::exited(1)));
        let shown = Shown {
            has_session: true,
            attempts: &[RuntimeKind::Process; 2],
            proxy: Counters::default(),
            log_bytes: None,
            log_written: 12,
            logs_dir: Path::new("/nonexistent"),
        };
        let text = counts.page(&shown).text();
        for line in [
            r#"podmesh_agent_replicas{service="web",health="healthy"} 1"#,
            r#"podmesh_agent_replicas{service="web",health="starting"} 1"#,
            r#"podmesh_agent_replicas{service="web",health="unhealthy"} 0"#,
            r#"podmesh_agent_attempts{runtime="process"} 2"#,
            r#"podmesh_agent_attempts_started_total{runtime="process"} 3"#,
            r#"podmesh_agent_attempts_ended_total{outcome="failed"} 1"#,
            "podmesh_agent_session 1",
            "podmesh_agent_log_written_bytes_total 12",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
