//! How the Docker runtime has containers captured: it asks, and who holds the captures answers.

use std::collections::HashMap;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::{mpsc, oneshot};

use super::container::{CaptureFact, Container, Holder, LogPlace, Standing};
use crate::log_notify::LogNotify;

/// Asks for captures of containers.
#[derive(Clone, Debug)]
pub struct Captures {
    requests: mpsc::UnboundedSender<CaptureRequest>,
}

/// What is asked.
#[derive(Debug)]
pub(crate) enum CaptureRequest {
    Begin(Container, Waiting),
    Stopped(AttemptId),
    Forget(AttemptId),
}

/// Who waits for news of a capture.
#[derive(Debug)]
pub(crate) struct Waiting {
    attached: Option<oneshot::Sender<Result<(), String>>>,
    complete: Option<oneshot::Sender<()>>,
}

/// A capture that was asked for.
#[derive(Debug)]
pub(crate) struct Capturing {
    /// The container can be started.
    pub(crate) attached: oneshot::Receiver<Result<(), String>>,
    /// All output is in the files.
    pub(crate) complete: oneshot::Receiver<()>,
}

impl Captures {
    /// Requests, and where they come out.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<CaptureRequest>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Self { requests }, receiver)
    }

    /// Captures that this process holds, and that end with it: on the current tokio runtime. An
    /// agent has them held by its supervisor instead.
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
        // Without a receiver the agent ends.
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

    /// The attempt was told to stop: a full disk is no longer waited for.
    pub(crate) fn stopped(&self, attempt: AttemptId) {
        self.ask(CaptureRequest::Stopped(attempt));
    }

    /// Ends a capture, and forgets it.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        self.ask(CaptureRequest::Forget(attempt));
    }
}

/// The captures that were asked for and not forgotten, with who waits for them.
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

    /// Tells who waits.
    pub(crate) fn tell(&mut self, attempt: AttemptId, fact: CaptureFact) {
        let Some((container, waiting)) = self.captures.get_mut(&attempt) else { return };
        // Who waited may have given up.
        match fact {
            CaptureFact::Attached(result) => {
                if result.is_ok() {
                    container.standing = Standing::Running;
                }
                _ = waiting.attached.take().map(|waiting| waiting.send(result));
            }
            CaptureFact::Complete => _ = waiting.complete.take().map(|waiting| waiting.send(())),
        }
    }

    /// Those that are not complete, as they stand now: for another one who is to hold them.
    pub(crate) fn incomplete(&self) -> impl Iterator<Item = &Container> {
        let waits = self.captures.values().filter(|(_, waiting)| waiting.complete.is_some());
        waits.map(|(container, _)| container)
    }
}
