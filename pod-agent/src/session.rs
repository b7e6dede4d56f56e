//! Sessions with the manager, one after another.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{Published, TOPIC_MANAGER};
use podmesh_protocol::ids::Epoch;
use podmesh_protocol::session::{Hello, ToManager, ToPeer, Welcome};
use podmesh_protocol::time::Millis;
use podmesh_wire::WireError;
use podmesh_wire::backoff::reconnect_delays;
use podmesh_wire::control::{PeerReceiver, PeerSender, PeerSocket};
use podmesh_wire::enrolment::EnrolmentError;
use podmesh_wire::locate::Locator;
use podmesh_wire::publish::Subscriber;
use podmesh_wire::route::Route;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::error::AgentError;

/// How long the manager may take to answer a hello. It writes to its disk first.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);
/// How long a session must have lasted for the next attempt to follow without a delay.
const LIVED: Duration = Duration::from_secs(1);
/// Interval between warnings about a manager that cannot be reached.
const REMIND_EVERY: Duration = Duration::from_secs(600);
/// How long to wait before subscribing to the manager's publications again.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);
/// How long a socket stays open after the last message was queued.
const LINGER: Duration = Duration::from_millis(300);
/// Maximum number of log slices that wait to be sent. Further reads wait for them.
const SLICES_MAX: usize = 4;

/// An event of a session, for the rest of the agent.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// The session needs a hello with what the agent holds now.
    HelloAsked {
        /// Takes the hello.
        answer: oneshot::Sender<Hello>,
        /// This machine's address of the connection; `None` if the manager is on this machine.
        local_address: Option<IpAddr>,
    },
    /// The manager opened the session.
    Opened(Opened),
    /// The manager sent a message in the session.
    Received(ToPeer),
    /// The session has ended.
    Closed,
    /// No session is possible.
    Failed(AgentError),
}

/// An open session.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its number in this life of the agent: 1, 2, 3 …
    pub(crate) number: u64,
    /// The way to the manager.
    pub(crate) route: Route,
    /// The manager's welcome.
    pub(crate) welcome: Box<Welcome>,
    /// When the hello was sent.
    pub(crate) hello_sent_mono_ms: Millis,
    /// Sends messages. The core limits how many are in flight. Dropping it ends the session.
    pub(crate) messages: mpsc::UnboundedSender<ToManager>,
    /// Sends slices of logs.
    pub(crate) slices: mpsc::Sender<ToManager>,
}

/// Opens sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) locator: Locator,
    pub(crate) clock: Clock,
    pub(crate) data_dir: Arc<DataDir>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    /// The number of the last session that is to be dropped; 0 for none. Not its epoch: those of a
    /// manager that was restored from a backup may be lower than those of before.
    pub(crate) dropped: watch::Receiver<u64>,
}

/// How a session ended.
enum End {
    /// It was dropped for this reason; a new session follows.
    Dropped(String),
    /// The agent is ending.
    Left,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum NoSession {
    #[error(transparent)]
    Fatal(#[from] AgentError),
    #[error(transparent)]
    Locate(#[from] EnrolmentError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the manager at {manager} did not answer the hello within {} s", WELCOME_LIMIT.as_secs())]
    NoWelcome { manager: Route },
    #[error("the manager at {0} refused the session: {1}")]
    Refused(Route, ErrorReply),
    #[error("the manager at {0} answered the hello with an unexpected message")]
    NotAWelcome(Route),
    #[error("the agent is ending")]
    AgentEnds,
}

impl Sessions {
    /// Opens one session after another, until the agent ends or no session is possible.
    pub(crate) async fn run(mut self) {
        let mut delays = reconnect_delays();
        let mut outage = Outage::default();
        for number in 1.. {
            let began = Instant::now();
            match self.session(number, &mut outage).await {
                Ok(End::Left) | Err(NoSession::AgentEnds) => return,
                Ok(End::Dropped(why)) => {
                    tracing::warn!("the session has ended: {why}");
                    if self.events.send(SessionEvent::Closed).await.is_err() {
                        return;
                    }
                    if began.elapsed() >= LIVED {
                        delays = reconnect_delays();
                        continue;
                    }
                }
                Err(NoSession::Fatal(error)) => {
                    // If there is no receiver, the agent is ending anyway.
                    _ = self.events.send(SessionEvent::Failed(error)).await;
                    return;
                }
                Err(error) => outage.say(&error),
            }
            let Some(delay) = delays.next() else { return };
            tokio::select! {
                () = sleep(delay) => {}
                () = self.events.closed() => return,
            }
        }
    }

    async fn session(&mut self, number: u64, outage: &mut Outage) -> Result<End, NoSession> {
        let route = self.locator.find()?;
        let socket = PeerSocket::connect(&route).await?;
        let (answer, hello) = oneshot::channel();
        let local_address = socket.local_address();
        self.tell(SessionEvent::HelloAsked { answer, local_address }).await?;
        let hello = hello.await.map_err(|_| NoSession::AgentEnds)?;
        let (mut receiver, mut sender) = socket.split();
        let (welcome, hello_sent_mono_ms) =
            self.introduce(&route, hello, &mut receiver, &mut sender).await?;
        self.check_cluster(&route, &welcome)?;
        let epoch = welcome.epoch;
        outage.over();
        tracing::info!(manager = %route, session = %epoch, "connected");

        let (messages, messages_receiver) = mpsc::unbounded_channel();
        let (slices, slices_receiver) = mpsc::channel(SLICES_MAX);
        let welcome = Box::new(welcome);
        let opened =
            Opened { number, route: route.clone(), welcome, hello_sent_mono_ms, messages, slices };
        self.tell(SessionEvent::Opened(opened)).await?;

        let mut receiving = std::pin::pin!(receive(&self.events, &mut receiver, epoch));
        let end = tokio::select! {
            end = &mut receiving => end,
            end = send(&mut sender, messages_receiver, slices_receiver) => end,
            end = watch_manager(&route) => end,
            end = wait_until_dropped(&mut self.dropped, number) => end,
        };
        if matches!(end, End::Left) {
            // Queued messages may be unsent, and nothing tells when they are sent.
            _ = timeout(LINGER, receiving).await;
        }
        Ok(end)
    }

    async fn tell(&self, event: SessionEvent) -> Result<(), NoSession> {
        self.events.send(event).await.map_err(|_| NoSession::AgentEnds)
    }

    async fn introduce(
        &self,
        route: &Route,
        hello: Hello,
        receiver: &mut PeerReceiver,
        sender: &mut PeerSender,
    ) -> Result<(Welcome, Millis), NoSession> {
        let versions = hello.versions();
        let sent_mono_ms = self.clock.mono_ms();
        sender.send(&ToManager::Hello(hello)).await?;
        let Ok(answer) = timeout(WELCOME_LIMIT, receiver.recv()).await else {
            return Err(NoSession::NoWelcome { manager: route.clone() });
        };
        let refusal = match answer? {
            ToPeer::Welcome(welcome) if versions.contains(welcome.version) => {
                return Ok((welcome, sent_mono_ms));
            }
            ToPeer::Welcome(Welcome { version, .. }) => {
                let manager = route.to_string();
                let message = format!(
                    "it opened a session with version {version} of the protocol, but this agent speaks {versions}: upgrade podmesh on both machines"
                );
                return Err(AgentError::UnsupportedVersion { manager, message }.into());
            }
            ToPeer::Refused(error) | ToPeer::Error(error) => error,
            _ => return Err(NoSession::NotAWelcome(route.clone())),
        };
        Err(match refusal.code {
            ErrorCode::UnsupportedVersion => {
                let manager = route.to_string();
                AgentError::UnsupportedVersion { manager, message: refusal.message }.into()
            }
            ErrorCode::WrongCluster => self.wrong_cluster(route, None).into(),
            _ => NoSession::Refused(route.clone(), refusal),
        })
    }

    /// Checks that the manager belongs to the agent's cluster. The first manager sets the cluster.
    fn check_cluster(&self, route: &Route, welcome: &Welcome) -> Result<(), AgentError> {
        match self.data_dir.cluster()? {
            Some(ours) if ours == welcome.cluster => Ok(()),
            Some(_) => Err(self.wrong_cluster(route, Some(welcome.cluster))),
            None => self.data_dir.set_cluster(welcome.cluster),
        }
    }

    fn wrong_cluster(
        &self,
        route: &Route,
        theirs: Option<podmesh_protocol::ids::ClusterId>,
    ) -> AgentError {
        let (manager, path) = (route.to_string(), self.data_dir.cluster_path());
        AgentError::WrongCluster { manager, theirs, path }
    }
}

async fn receive(
    events: &mpsc::Sender<SessionEvent>,
    receiver: &mut PeerReceiver,
    epoch: Epoch,
) -> End {
    loop {
        let message = match receiver.recv().await {
            Ok(message) => message,
            Err(error) => return End::Dropped(error.to_string()),
        };
        match message {
            ToPeer::HelloAgain(of) if of == epoch => {
                return End::Dropped("the manager asked for a new one".into());
            }
            ToPeer::HelloAgain(_) => {}
            ToPeer::Error(error) => {
                tracing::error!("the manager rejected a message: {error}");
            }
            message => {
                // If there is no receiver, the agent is ending, and `send` ends when all has been
                // passed on.
                _ = events.send(SessionEvent::Received(message)).await;
            }
        }
    }
}

async fn send(
    sender: &mut PeerSender,
    mut messages: mpsc::UnboundedReceiver<ToManager>,
    mut slices: mpsc::Receiver<ToManager>,
) -> End {
    loop {
        let message = tokio::select! {
            biased;
            message = messages.recv() => match message {
                Some(message) => message,
                None => return End::Left,
            },
            Some(slice) = slices.recv() => slice,
        };
        if let Err(error) = sender.send(&message).await {
            return End::Dropped(error.to_string());
        }
    }
}

/// Watches for the manager's end or restart.
async fn watch_manager(route: &Route) -> End {
    let mut known = None;
    loop {
        match Subscriber::connect(route, &[TOPIC_MANAGER]).await {
            Ok(mut subscriber) => loop {
                match subscriber.recv().await {
                    Ok(Published::Manager { stopping: true, .. }) => {
                        return End::Dropped("the manager is stopping".into());
                    }
                    Ok(Published::Manager { instance, .. }) => {
                        if *known.get_or_insert(instance) != instance {
                            return End::Dropped("the manager was restarted".into());
                        }
                    }
                    Ok(Published::Events { .. }) => {}
                    Err(error) => {
                        tracing::debug!("the subscription failed: {error}");
                        break;
                    }
                }
            },
            Err(error) => tracing::debug!("cannot subscribe: {error}"),
        }
        sleep(SUBSCRIBE_PAUSE).await;
    }
}

async fn wait_until_dropped(dropped: &mut watch::Receiver<u64>, number: u64) -> End {
    match dropped.wait_for(|dropped| *dropped >= number).await {
        Ok(_) => End::Dropped("the agent asks for a new one".into()),
        Err(_) => End::Left,
    }
}

/// Logs an unreachable manager once, and then rarely.
#[derive(Debug, Default)]
struct Outage {
    began: Option<Instant>,
    said: Option<Instant>,
}

impl Outage {
    fn say(&mut self, error: &NoSession) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        if self.said.is_none() {
            match error {
                // This needs somebody's action.
                NoSession::Refused(..) | NoSession::Wire(WireError::Refused { .. }) => {
                    tracing::error!("{error}; retrying");
                }
                _ => tracing::warn!("no session with a manager: {error}; retrying"),
            }
        } else if self.said.is_some_and(|said| now - said >= REMIND_EVERY) {
            let minutes = (now - began).as_secs() / 60;
            tracing::warn!("no session with a manager for {minutes} minutes: {error}; retrying");
        } else {
            tracing::debug!("no session with a manager: {error}");
            return;
        }
        self.said = Some(now);
    }

    fn over(&mut self) {
        *self = Self::default();
    }
}
