//! The Docker runtime's side of captures: sends requests to the process that holds the captures.

use std::collections::HashMap;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::{mpsc, oneshot};

use super::container::{CaptureFact, Container, Holder, LogPlace, Standing};
use crate::log_notify::LogNotify;

/// Sends requests to capture containers.
#[derive(Clone, Debug)]
pub struct Captures {
    requests: mpsc::UnboundedSender<CaptureRequest>,
}

/// A request about a capture.
#[derive(Debug)]
pub(crate) enum CaptureRequest {
    Begin(Container, Waiting),
    Stopped(AttemptId),
    Forget(AttemptId),
}

/// The channels that wait for the results of a capture.
#[derive(Debug)]
pub(crate) struct Waiting {
    attached: Option<oneshot::Sender<Result<(), String>>>,
    complete: Option<oneshot::Sender<Option<u64>>>,
}

/// The results of a requested capture.
#[derive(Debug)]
pub(crate) struct Capturing {
    /// Completes when the container can be started, or with the reason why it cannot be attached.
    pub(crate) attached: oneshot::Receiver<Result<(), String>>,
    /// Completes when all output is in the files, with the timeout in milliseconds if the container
    /// was stopped because of that.
    pub(crate) complete: oneshot::Receiver<Option<u64>>,
}

impl Captures {
    /// Creates a sender of requests, and the receiver of the requests.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<CaptureRequest>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Self { requests }, receiver)
    }

    /// Creates a sender whose captures run in this process, on the current tokio runtime, and end
    /// with it. In an agent the supervisor holds the captures instead.
    pub fn here(
        logs_dir: std::path::PathBuf,
        rotation: RotationPolicy,
        notify: LogNotify,
        facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> Self {
        let (this, mut requests) = Self::new();
        let place = LogPlace { logs_dir, rotation };
        tokio::spawn(async move {
            let (told, mut news) = mpsc::unbounded_channel();
            let mut holder = Holder::new(notify, facts, told);
            let mut waiting = WaitingList::default();
            loop {
                tokio::select! {
                    request = requests.recv() => match request {
                        Some(CaptureRequest::Begin(container, who)) => {
                            waiting.add(container.clone(), who);
                            holder.begin(container, place.clone());
                        }
                        Some(CaptureRequest::Stopped(attempt)) => holder.stopped(attempt),
                        Some(CaptureRequest::Forget(attempt)) => {
                            waiting.forget(attempt);
                            holder.forget(attempt);
                        }
                        None => return,
                    },
                    Some((attempt, fact)) = news.recv() => {
                        holder.note(attempt, &fact);
                        waiting.tell(attempt, fact);
                    }
                }
            }
        });
        this
    }

    fn ask(&self, request: CaptureRequest) {
        // If there is no receiver, the agent is ending.
        _ = self.requests.send(request);
    }

    /// Captures a container.
    pub(crate) fn begin(&self, container: Container) -> Capturing {
        let (attached, is_attached) = oneshot::channel();
        let (complete, is_complete) = oneshot::channel();
        let waiting = Waiting { attached: Some(attached), complete: Some(complete) };
        self.ask(CaptureRequest::Begin(container, waiting));
        Capturing { attached: is_attached, complete: is_complete }
    }

    /// Notes that the attempt was told to stop, so that its output no longer waits for a full disk.
    pub(crate) fn stopped(&self, attempt: AttemptId) {
        self.ask(CaptureRequest::Stopped(attempt));
    }

    /// Ends a capture and forgets it.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        self.ask(CaptureRequest::Forget(attempt));
    }
}

/// The requested captures that are not forgotten, with the channels that wait for them.
#[derive(Debug, Default)]
pub(crate) struct WaitingList {
    captures: HashMap<AttemptId, (Container, Waiting)>,
}

impl WaitingList {
    pub(crate) fn add(&mut self, container: Container, waiting: Waiting) {
        self.captures.insert(container.attempt, (container, waiting));
    }

    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        self.captures.remove(&attempt);
    }

    /// Passes a fact to the channel that waits for it.
    pub(crate) fn tell(&mut self, attempt: AttemptId, fact: CaptureFact) {
        let Some((container, waiting)) = self.captures.get_mut(&attempt) else { return };
        // The receiver may have given up.
        match fact {
            CaptureFact::Attached(result) => {
                if result.is_ok() {
                    container.standing = Standing::Running;
                }
                _ = waiting.attached.take().map(|waiting| waiting.send(result));
            }
            CaptureFact::Complete { timed_out_ms } => {
                _ = waiting.complete.take().map(|waiting| waiting.send(timed_out_ms));
            }
        }
    }

    /// Returns the containers whose capture is not complete, in their current state, to hand them
    /// to a new holder.
    pub(crate) fn incomplete(&self) -> impl Iterator<Item = &Container> {
        let waits = self.captures.values().filter(|(_, waiting)| waiting.complete.is_some());
        waits.map(|(container, _)| container)
    }
}
