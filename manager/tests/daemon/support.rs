//! A manager in this process, and simulated agents that only exchange messages.

use std::path::Path;
use std::time::Duration;

use podmesh_manager::{Endpoint, ManagerConfig, ManagerError};
use podmesh_protocol::client::{JobDetail, LogRead, ReplyBody, RequestBody};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, Epoch, InstanceId, JobId, Revision, SubmissionId};
use podmesh_protocol::limits::PROTOCOL_VERSION;
use podmesh_protocol::report::{Outcome, Report, ReportFact};
use podmesh_protocol::session::{Hello, ToManager, ToPeer, Welcome};
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::control::{PeerReceiver, PeerSender, PeerSocket};
use podmesh_wire::route::Route;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

/// Far longer than anything here takes. Only a failing test waits this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    pub(crate) endpoint: Endpoint,
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<(), ManagerError>>,
}

pub(crate) fn config(data_dir: &Path) -> ManagerConfig {
    ManagerConfig::new(data_dir, "127.0.0.1:0".parse().unwrap())
}

/// A configuration with a very long lease: only closed connections are noticed, not silence.
pub(crate) fn patient(data_dir: &Path) -> ManagerConfig {
    let heartbeat = Duration::from_secs(3600);
    ManagerConfig { lease: heartbeat * 10, heartbeat, ..config(data_dir) }
}

pub(crate) async fn start(data_dir: &Path) -> Running {
    start_with(config(data_dir)).await
}

pub(crate) async fn start_with(config: ManagerConfig) -> Running {
    let (ready, endpoint) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(podmesh_manager::run(
        config,
        move |endpoint| ready.send(endpoint).unwrap(),
        async move { _ = stopped.await },
    ));
    match endpoint.await {
        Ok(endpoint) => Running { endpoint, stop, task },
        Err(_) => panic!("no manager: {}", task.await.unwrap().unwrap_err()),
    }
}

impl Running {
    /// Returns the route of a local client, which is an admin.
    pub(crate) fn route(&self) -> Route {
        Route::Local(self.endpoint.sockets.clone())
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.route()).await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.task).await.unwrap().unwrap();
    }

    /// Ends the manager as a kill would, without a message to anyone. Returns when another manager
    /// can start.
    pub(crate) async fn cut_off(self, data_dir: &Path) {
        self.task.abort();
        _ = self.task.await;
        let lock = std::fs::File::open(data_dir.join("manager.lock")).unwrap();
        within(tokio::task::spawn_blocking(move || lock.lock())).await.unwrap().unwrap();
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap()
}

pub(crate) fn spec(tasks: u32) -> JobSpec {
    serde_json::from_str(&format!(
        r#"{{"name": "count", "array": {{"first": 1, "last": {tasks}}},
            "run": {{"runtime": "process", "command": ["true"]}}}}"#
    ))
    .unwrap()
}

pub(crate) fn submission(n: u128) -> SubmissionId {
    SubmissionId(Uuid::from_u128(n))
}

pub(crate) fn submit_body(n: u128, tasks: u32) -> RequestBody {
    RequestBody::Submit { submission: submission(n), spec: Box::new(spec(tasks)) }
}

pub(crate) async fn submit(client: &Client, n: u128, tasks: u32) -> (JobId, bool) {
    match client.request(submit_body(n, tasks)).await.unwrap() {
        ReplyBody::Submitted { job, again } => (job, again),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn refused(client: &Client, body: RequestBody) -> ErrorReply {
    match client.request(body).await {
        Err(ClientError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn job(client: &Client, job: JobId, since: Option<Revision>) -> JobDetail {
    let wait_ms = 30_000;
    match client.request(RequestBody::Job { job, since, wait_ms }).await.unwrap() {
        ReplyBody::Job(detail) => *detail,
        other => panic!("{other:?}"),
    }
}

/// Returns all events with their revisions.
pub(crate) async fn events(client: &Client) -> Vec<(u64, EventFact)> {
    let mut events = Vec::new();
    loop {
        let since = Revision(events.last().map_or(0, |(revision, _)| *revision));
        match client.request(RequestBody::Events { since }).await.unwrap() {
            ReplyBody::Events { chunks, last } => {
                for chunk in &chunks {
                    events.extend(chunk.iter().map(|(r, fact)| (r.0, fact.clone())));
                }
                if events.last().is_none_or(|(revision, _)| *revision >= last.0) {
                    return events;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Waits for an event, and returns its revision.
pub(crate) async fn event(client: &Client, wanted: impl Fn(&EventFact) -> bool) -> u64 {
    within(async {
        loop {
            if let Some((revision, _)) = events(client).await.iter().find(|(_, fact)| wanted(fact))
            {
                return *revision;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// An agent that the test controls.
pub(crate) struct Agent {
    pub(crate) receiver: PeerReceiver,
    pub(crate) sender: PeerSender,
    pub(crate) welcome: Welcome,
    reports: u64,
}

pub(crate) fn hello(node: &str, cpu_millis: u32, attempts: &[AttemptId]) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        version_oldest: None,
        node: node.parse().unwrap(),
        boot_id: "boot".into(),
        agent_instance: InstanceId(Uuid::from_u128(9)),
        agent_id: None,
        cluster: None,
        program_version: "0".into(),
        capacity: Resources { cpu_millis, memory_bytes: 1 << 30 },
        labels: [].into(),
        runtimes: vec![RuntimeKind::Process.into()],
        withdrawn: [].into(),
        unenforced: [].into(),
        low_disks: [].into(),
        address: None,
        resources: Default::default(),
        attempts: attempts.to_vec(),
    }
}

impl Agent {
    pub(crate) async fn connect(manager: &Running, hello: Hello) -> Self {
        Self::connect_by(&manager.route(), hello).await
    }

    pub(crate) async fn connect_by(route: &Route, hello: Hello) -> Self {
        let (mut receiver, mut sender) = PeerSocket::connect(route).await.unwrap().split();
        sender.send(&ToManager::Hello(hello)).await.unwrap();
        match within(receiver.recv()).await.unwrap() {
            ToPeer::Welcome(welcome) => Self { receiver, sender, welcome, reports: 0 },
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.welcome.epoch
    }

    pub(crate) async fn recv(&mut self) -> ToPeer {
        within(self.receiver.recv()).await.unwrap()
    }

    /// Returns the next starts. Skips other messages.
    pub(crate) async fn starts(&mut self) -> Vec<AttemptId> {
        loop {
            if let ToPeer::Starts(epoch, attempts) = self.recv().await {
                assert_eq!(epoch, self.epoch());
                return attempts;
            }
        }
    }

    /// Returns the next request to read a log.
    pub(crate) async fn log_question(&mut self) -> (u64, LogRead) {
        loop {
            if let ToPeer::LogRead(number, read) = self.recv().await {
                return (number, read);
            }
        }
    }

    /// Sends a report, and waits until the manager has stored it.
    pub(crate) async fn report(&mut self, attempt: AttemptId, fact: ReportFact) {
        self.reports += 1;
        let report = Report(self.reports, attempt, fact);
        self.sender.send(&ToManager::Reports(self.epoch(), vec![report])).await.unwrap();
        loop {
            if let ToPeer::Acked(_, acked) = self.recv().await
                && acked == self.reports
            {
                return;
            }
        }
    }

    pub(crate) async fn end(&mut self, attempt: AttemptId) {
        self.report(attempt, ReportFact::Started).await;
        self.report(attempt, ReportFact::Ended(Outcome::exited(0))).await;
    }
}

/// A DEALER that sends and receives bytes, after a ZMTP 3.0 handshake without security.
pub(crate) struct RawPeer(UnixStream);

impl RawPeer {
    pub(crate) async fn connect(manager: &Running) -> Self {
        let socket = manager.endpoint.sockets.join("control.sock");
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
        greeting.extend(b"NULL");
        greeting.resize(64, 0);
        stream.write_all(&greeting).await.unwrap();
        let ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
        stream.write_all(&[4, u8::try_from(ready.len()).unwrap()]).await.unwrap();
        stream.write_all(ready).await.unwrap();
        let mut theirs = [0; 64];
        within(stream.read_exact(&mut theirs)).await.unwrap();
        let mut header = [0; 2];
        within(stream.read_exact(&mut header)).await.unwrap();
        assert_eq!(header[0], 4, "a command: READY");
        let mut theirs = vec![0; header[1].into()];
        within(stream.read_exact(&mut theirs)).await.unwrap();
        Self(stream)
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        // A long frame has eight bytes of length, a short one has one.
        match u8::try_from(frame.len()) {
            Ok(length) => self.0.write_all(&[0, length]).await.unwrap(),
            Err(_) => {
                self.0.write_u8(2).await.unwrap();
                self.0.write_u64(frame.len() as u64).await.unwrap();
            }
        }
        self.0.write_all(frame).await.unwrap();
    }

    pub(crate) async fn recv(&mut self) -> Vec<u8> {
        within(async {
            let length = match self.0.read_u8().await.unwrap() {
                0 => u64::from(self.0.read_u8().await.unwrap()),
                2 => self.0.read_u64().await.unwrap(),
                other => panic!("a frame with flags {other}"),
            };
            let mut frame = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut frame).await.unwrap();
            frame
        })
        .await
    }
}
