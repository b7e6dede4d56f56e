//! A manager's sockets behind a front, with a gate that the test controls.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "not every test uses everything"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podmesh_protocol::access::{Caller, JoinRequest, PublicKey, Role, TokenSecret};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::session::ToManager;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::control::{ManagerReceiver, ManagerSender, ManagerSocket};
use podmesh_wire::front::{Admission, Front, FrontConfig, Gate, Who};
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use podmesh_wire::key::{KeyPair, digest_of};
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::publish::Publisher;
use podmesh_wire::route::{Credentials, Duplex, Route};
use podmesh_wire::{Service, WireError};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

/// Far more than any of this takes: a test that hangs fails.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// The secret that allows joining.
pub const SECRET: TokenSecret = TokenSecret([7; 16]);

/// Admits those whom the test names, and every user of this machine.
pub struct TestGate {
    pub keys: Mutex<Vec<(PublicKey, Role)>>,
    pub cuts: Mutex<Vec<(Who, Service, AbortHandle)>>,
    pub refusals: watch::Sender<Vec<String>>,
    /// Who sent which heartbeat; none: that stream has ended.
    beats: mpsc::UnboundedSender<(Caller, Option<Beat>)>,
    last_identity: AtomicU64,
}

impl TestGate {
    fn new(beats: mpsc::UnboundedSender<(Caller, Option<Beat>)>) -> Self {
        Self {
            beats,
            keys: Mutex::default(),
            cuts: Mutex::default(),
            refusals: watch::Sender::new(vec![]),
            last_identity: AtomicU64::new(0),
        }
    }

    /// Waits until a connection was refused for a reason that contains this text.
    pub async fn refused_for(&self, text: &str) {
        let mut refusals = self.refusals.subscribe();
        let found = refusals.wait_for(|all| all.iter().any(|why| why.contains(text)));
        if timeout(PATIENCE, found).await.is_err() {
            panic!("no connection was refused for `{text}`, only: {:?}", self.refusals.borrow());
        }
    }
}

impl Gate for TestGate {
    fn admit(&self, who: Who, service: Service, cut: AbortHandle) -> Result<Admission, ErrorReply> {
        let role = match who {
            Who::User(_) => Some(Role::Admin),
            Who::Key(key) => {
                let keys = self.keys.lock().unwrap();
                keys.iter().find(|(known, _)| *known == key).map(|(_, role)| *role)
            }
        };
        let role = role.ok_or(ErrorReply::new(ErrorCode::NotFound, "this key is not known"))?;
        self.cuts.lock().unwrap().push((who, service, cut));
        let number = self.last_identity.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Admission {
            caller: Caller { role, name: "somebody".parse().unwrap(), key: None },
            identity: u128::from(number).to_be_bytes(),
            ended: Box::new(|_| ()),
        })
    }

    async fn join(
        &self,
        key: PublicKey,
        request: JoinRequest,
    ) -> Result<(ClusterId, Role, Name), ErrorReply> {
        if request.secret != SECRET {
            return Err(ErrorReply::new(ErrorCode::NotFound, "there is no such token"));
        }
        self.keys.lock().unwrap().push((key, Role::Agent));
        let cluster = ClusterId(uuid::Uuid::from_u128(5));
        Ok((cluster, Role::Agent, request.name))
    }

    async fn heartbeats(&self, caller: Caller, mut stream: Box<dyn Duplex>, _cut: AbortHandle) {
        while let Ok(beat) = read_beat(&mut stream).await {
            self.beats.send((caller.clone(), Some(beat))).unwrap();
            write_beat(&mut stream, &beat).await.unwrap();
        }
        self.beats.send((caller, None)).unwrap();
    }

    fn refused(&self, _from: Option<IpAddr>, why: &str) {
        self.refusals.send_modify(|all| all.push(why.to_owned()));
    }
}

pub struct Running(JoinHandle<std::io::Result<()>>, tempfile::TempDir);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub struct TestManager {
    pub receiver: ManagerReceiver,
    pub sender: ManagerSender,
    pub publisher: Publisher,
    pub heartbeats: mpsc::UnboundedReceiver<(Caller, Option<Beat>)>,
    pub gate: Arc<TestGate>,
    pub address: SocketAddr,
    pub key: PublicKey,
    pub keys: ManagerKeys,
    pub shown: ShownKeys,
    /// The route of an operator over the network.
    pub remote: Route,
    pub local: tempfile::TempDir,
    pub _running: Running,
}

impl TestManager {
    pub async fn start() -> Self {
        let local = tempfile::tempdir().unwrap();
        let private = tempfile::tempdir().unwrap();
        let keys = test_keys();
        let key = keys.current.public();
        let shown = ShownKeys::new(&keys).unwrap();
        let (heartbeats_sender, heartbeats) = mpsc::unbounded_channel();
        let (front, inner) = Front::bind(FrontConfig {
            listen: ANY_PORT,
            keys: shown.clone(),
            local_dir: local.path().into(),
            group: None,
            private_dir: private.path().into(),
        })
        .unwrap();
        let address = front.address();
        let (receiver, sender) = ManagerSocket::bind(inner.control).await.unwrap().split();
        let publisher = Publisher::bind(inner.publications).await.unwrap();
        let gate = Arc::new(TestGate::new(heartbeats_sender));
        let running = Running(tokio::spawn(front.run(Arc::clone(&gate))), private);
        let operator = KeyPair::generate().unwrap();
        gate.keys.lock().unwrap().push((operator.public(), Role::Operator));
        let remote = route(address, operator, key);
        Self {
            receiver,
            sender,
            publisher,
            heartbeats,
            gate,
            address,
            key,
            keys,
            shown,
            remote,
            local,
            _running: running,
        }
    }

    /// Returns both routes.
    pub fn routes(&self) -> [Route; 2] {
        [self.remote.clone(), Route::Local(self.local.path().into())]
    }

    /// Returns the next message, which is a goodbye; ends of connections before it are skipped.
    pub async fn next_goodbye(&mut self) -> Arc<[u8]> {
        loop {
            let received = timeout(PATIENCE, self.receiver.recv()).await.unwrap().unwrap();
            match received.message {
                Ok(ToManager::Goodbye(_)) => return received.peer,
                Err(WireError::PeerGone) => {}
                message => panic!("{message:?}"),
            }
        }
    }

    /// Waits until the connection of a peer has ended.
    pub async fn gone(&mut self, peer: &[u8]) {
        loop {
            let received = timeout(PATIENCE, self.receiver.recv()).await.unwrap().unwrap();
            assert!(matches!(received.message, Err(WireError::PeerGone)), "{received:?}");
            if *received.peer == *peer {
                return;
            }
        }
    }

    /// Stops it; when this returns, nothing listens any longer.
    pub async fn stop(mut self) {
        self._running.0.abort();
        _ = (&mut self._running.0).await;
    }
}

/// Returns two keys of a manager that are not on disk.
pub fn test_keys() -> ManagerKeys {
    ManagerKeys { current: KeyPair::generate().unwrap(), next: KeyPair::generate().unwrap() }
}

/// Returns the route of the owner of a key to a manager with that other key.
pub fn route(address: SocketAddr, key: KeyPair, manager: PublicKey) -> Route {
    let credentials = Arc::new(Credentials::new(key, vec![digest_of(&manager)]));
    Route::Remote { addresses: vec![ManagerAddress::from(address)], credentials }
}
