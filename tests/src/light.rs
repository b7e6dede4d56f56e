//! Light agents: many agents in one process. Each speaks the protocol as a real agent does, with a
//! session, a subscription and heartbeats. It ends every attempt at once with success, except for
//! replicas of services: those are healthy at once, and run until they are stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podmesh_protocol::event::TOPIC_MANAGER;
use podmesh_protocol::ids::{AttemptId, ClusterId, Epoch, InstanceId, JobId, Name};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, PROTOCOL_VERSION};
use podmesh_protocol::report::{Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::service::Health;
use podmesh_protocol::session::{Hello, ToManager, ToPeer};
use podmesh_protocol::spec::{Resources, RuntimeKind};
use podmesh_wire::WireError;
use podmesh_wire::backoff::reconnect_delays;
use podmesh_wire::control::{PeerSender, PeerSocket};
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use podmesh_wire::publish::Subscriber;
use podmesh_wire::route::Route;
use tokio::runtime::Runtime;
use tokio::time::{interval, sleep};
use uuid::Uuid;

/// After a session of at least this length, the agent reconnects with the shortest delay again.
const LIVED: Duration = Duration::from_secs(1);

/// Agents that run until this is dropped.
#[derive(Debug)]
pub struct LightAgents {
    counts: Arc<Counts>,
    _runtime: Runtime,
}

#[derive(Debug, Default)]
struct Counts {
    connected: AtomicUsize,
    ended: AtomicU64,
}

impl LightAgents {
    /// Starts agents named `light-0`, `light-1` …, with `cores` cores each. `route` returns the
    /// route to the manager, and is called for each connection.
    pub fn start(
        agents: usize,
        cores: u32,
        route: impl Fn(usize) -> Route + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be created");
        let counts = Arc::new(Counts::default());
        let route = Arc::new(route);
        for number in 0..agents {
            let agent = Agent {
                name: format!("light-{number}").parse().expect("a name"),
                cores,
                instance: InstanceId(Uuid::new_v4()),
                cluster: None,
                unacked: VecDeque::new(),
                replicas: BTreeMap::new(),
                running: BTreeSet::new(),
                last_report: 0,
                counts: Arc::clone(&counts),
            };
            let route = Arc::clone(&route);
            runtime.spawn(agent.run(move || route(number)));
        }
        Self { counts, _runtime: runtime }
    }

    /// Returns how many agents have a session now.
    pub fn connected(&self) -> usize {
        self.counts.connected.load(Ordering::SeqCst)
    }

    /// Returns how many attempts the agents have ended.
    pub fn ended(&self) -> u64 {
        self.counts.ended.load(Ordering::SeqCst)
    }
}

struct Agent {
    name: Name,
    cores: u32,
    instance: InstanceId,
    cluster: Option<ClusterId>,
    /// Reports that the manager has not acknowledged.
    unacked: VecDeque<Report>,
    /// The jobs of this session that are replicas, with the number of their ports.
    replicas: BTreeMap<JobId, u16>,
    /// The replicas that run.
    running: BTreeSet<AttemptId>,
    last_report: u64,
    counts: Arc<Counts>,
}

/// Counts a session until dropped.
struct SessionCount<'a>(&'a Counts);

impl<'a> SessionCount<'a> {
    fn new(counts: &'a Counts) -> Self {
        counts.connected.fetch_add(1, Ordering::SeqCst);
        Self(counts)
    }
}

impl Drop for SessionCount<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Agent {
    async fn run(mut self, route: impl Fn() -> Route) {
        let mut delays = reconnect_delays();
        loop {
            let began = Instant::now();
            // Open a new session, whatever ended this one.
            _ = self.session(&route()).await;
            if began.elapsed() >= LIVED {
                delays = reconnect_delays();
            }
            sleep(delays.next().expect("the delays never end")).await;
        }
    }

    async fn session(&mut self, route: &Route) -> Result<(), WireError> {
        let (mut receiver, mut sender) = PeerSocket::connect(route).await?.split();
        sender.send(&ToManager::Hello(self.hello())).await?;
        let ToPeer::Welcome(welcome) = receiver.recv().await? else { return Ok(()) };
        let epoch = welcome.epoch;
        self.cluster = Some(welcome.cluster);
        self.acked(welcome.acked);
        self.unacked.retain(|report| !welcome.stop.contains(&report.1));
        self.running.retain(|attempt| !welcome.stop.contains(attempt));
        let unacked: Vec<_> = self.unacked.iter().cloned().collect();
        send(&mut sender, epoch, unacked).await?;

        let mut subscriber = Subscriber::connect(route, &[TOPIC_MANAGER]).await?;
        let mut stream = route.heartbeats().await?;
        let counts = Arc::clone(&self.counts);
        let _connected = SessionCount::new(&counts);
        let mut beats = interval(Duration::from_millis(welcome.heartbeat_ms));
        let mut beat = Beat { epoch, sequence: 0 };
        loop {
            tokio::select! {
                message = receiver.recv() => match message? {
                    ToPeer::JobSpec { job, run, .. } => {
                        let ports = run.replica.map(|replica| replica.ports.len() as u16);
                        self.replicas.extend(ports.map(|ports| (job, ports)));
                    }
                    ToPeer::Stops(of, stops) if of == epoch => {
                        let stopped = stops.into_iter().map(|(attempt, _)| attempt);
                        let stopped = stopped.filter(|attempt| self.running.remove(attempt));
                        let cancelled = Outcome::new(OutcomeKind::Cancelled);
                        let facts: Vec<_> = stopped
                            .map(|attempt| (attempt, ReportFact::Ended(cancelled.clone())))
                            .collect();
                        let reports = self.report(facts);
                        send(&mut sender, epoch, reports).await?;
                    }
                    ToPeer::Endpoints { epoch: of, update, .. } if of == epoch => {
                        let (applied, drained) = (update, update);
                        let acks = ToManager::EndpointsApplied { epoch, applied, drained };
                        sender.send(&acks).await?;
                    }
                    ToPeer::Starts(of, attempts) if of == epoch => {
                        let reports = self.start(attempts);
                        send(&mut sender, epoch, reports).await?;
                    }
                    ToPeer::Acked(of, number) if of == epoch => self.acked(number),
                    ToPeer::HelloAgain(_) | ToPeer::Refused(_) | ToPeer::Error(_) => return Ok(()),
                    _ => {}
                },
                publication = subscriber.recv() => { publication?; }
                _ = beats.tick() => {
                    beat.sequence += 1;
                    write_beat(&mut stream, &beat).await?;
                    read_beat(&mut stream).await?;
                }
            }
        }
    }

    fn hello(&self) -> Hello {
        let mut attempts: Vec<_> = self.unacked.iter().map(|report| report.1).collect();
        attempts.extend(&self.running);
        attempts.sort_unstable();
        attempts.dedup();
        Hello {
            version: PROTOCOL_VERSION,
            version_oldest: None,
            node: self.name.clone(),
            boot_id: "light".into(),
            agent_instance: self.instance,
            agent_id: None,
            cluster: self.cluster,
            program_version: env!("CARGO_PKG_VERSION").into(),
            capacity: Resources { cpu_millis: 1000 * self.cores, memory_bytes: 1 << 40 },
            labels: [].into(),
            runtimes: vec![RuntimeKind::Noop.into()],
            withdrawn: [].into(),
            unenforced: [].into(),
            low_disks: [].into(),
            address: Some("127.0.0.1".into()),
            resources: Default::default(),
            attempts,
        }
    }

    fn acked(&mut self, number: u64) {
        while self.unacked.front().is_some_and(|report| report.0 <= number) {
            self.unacked.pop_front();
        }
    }

    fn start(&mut self, attempts: Vec<AttemptId>) -> Vec<Report> {
        let mut facts = Vec::new();
        for attempt in attempts {
            // The manager sends a start again if the report was slow.
            let known = self.running.contains(&attempt)
                || self.unacked.iter().any(|report| report.1 == attempt);
            if known {
                continue;
            }
            facts.push((attempt, ReportFact::Started));
            if let Some(ports) = self.replicas.get(&attempt.task.job) {
                self.running.insert(attempt);
                let ports = (0..*ports).map(|port| 20_000 + port).collect();
                facts.push((attempt, ReportFact::Listening(ports)));
                facts.push((attempt, ReportFact::Health(Health::Healthy, String::new())));
            } else {
                let ended = Outcome { ran_ms: 1, ..Outcome::exited(0) };
                facts.push((attempt, ReportFact::Ended(ended)));
                self.counts.ended.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.report(facts)
    }

    fn report(&mut self, facts: Vec<(AttemptId, ReportFact)>) -> Vec<Report> {
        let mut reports = Vec::new();
        for (attempt, fact) in facts {
            self.last_report += 1;
            reports.push(Report(self.last_report, attempt, fact));
        }
        self.unacked.extend(reports.iter().cloned());
        reports
    }
}

async fn send(
    sender: &mut PeerSender,
    epoch: Epoch,
    reports: Vec<Report>,
) -> Result<(), WireError> {
    for reports in reports.chunks(BATCH_ROWS_MAX) {
        sender.send(&ToManager::Reports(epoch, reports.to_vec())).await?;
    }
    Ok(())
}
