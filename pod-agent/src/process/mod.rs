//! Commands as processes of the node: each in a process group and a work folder of its own.
//!
//! A start goes through one of a few threads (starting a process blocks), then a task copies the
//! output and waits for the end, and a thread writes the end down and tells it. When the process
//! of an attempt ends, whatever is left of its group, and of descendants that left the group, is
//! killed: only then its output is complete, and its end is told. See `children.rs`.
//!
//! All this happens in the supervisor, see `supervisor/`, and not in the agent.

mod children;
mod command;
mod mark;
mod survivors;
mod work;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::Signal;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::OnLost;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use self::children::{Children, Exit, Started, children};
pub(crate) use self::command::BaseEnv;
use self::command::{command, refused};
use self::mark::{Mark, Stat};
pub(crate) use self::survivors::kill_survivors;
use self::work::WorkDir;
pub(crate) use self::work::has_records;
use crate::capture::{DRAIN_LIMIT, Life, Sink, capture_pipe};
use crate::log_notify::LogNotify;
use crate::paths::attempt_log_dir;

/// Threads that start processes, at the most.
const THREADS_MAX: usize = 4;

/// What the runtime needs to know.
#[derive(Clone, Debug)]
pub(crate) struct ProcessSettings {
    /// The id of the agent's data directory.
    pub(crate) agent_id: Uuid,
    /// Absolute; work folders are made there.
    pub(crate) data_dir: PathBuf,
    /// Who waits for output.
    pub(crate) log_notify: LogNotify,
}

/// What holds for the attempts that one life of the agent starts.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The node's name.
    pub(crate) node: Name,
    /// Absolute; output is written there.
    pub(crate) logs_dir: PathBuf,
    /// How much output is kept.
    pub(crate) rotation: RotationPolicy,
    /// What programs inherit.
    pub(crate) base_env: BaseEnv,
}

/// An attempt of which nobody knows how it ended.
const SUPERVISOR_DIED: &str = "the supervisor of the node's processes died (it was killed, or the machine was \
     restarted), and this process with it";

/// An attempt that an earlier supervisor left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Which.
    pub(crate) attempt: AttemptId,
    /// What was to be done at the end of the lease.
    pub(crate) on_lost: OnLost,
    /// How it ended.
    pub(crate) ended: Outcome,
}

/// Starts and stops processes. Dropped, it kills what runs.
#[derive(Debug)]
pub(crate) struct ProcessRuntime {
    shared: Arc<Shared>,
    starts: Sender<Start>,
    work: Sender<Work>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    settings: ProcessSettings,
    children: &'static Children,
    work_dir: WorkDir,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    runtime: Handle,
    states: Mutex<HashMap<AttemptId, State>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Where an attempt stands, and with what grace it is to be stopped, where it is.
#[derive(Clone, Debug)]
struct State {
    is_started: bool,
    stop: Option<u64>,
    life: watch::Sender<Life>,
}

/// What the threads do when there is no [`Work`].
enum Start {
    Attempt(AttemptId, Arc<JobContext>, Arc<Terms>),
    /// The runtime closes.
    Quit,
}

/// What the threads do first: what is over makes room.
enum Work {
    Finish(AttemptId, Outcome),
    Remove(AttemptId),
}

impl ProcessRuntime {
    /// A runtime that tells its facts to `facts`. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When its folder or its threads cannot be made.
    pub(crate) fn new(
        settings: ProcessSettings,
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> io::Result<Self> {
        let children = children()?;
        children.agent_lives_here(settings.agent_id);
        let shared = Arc::new(Shared {
            work_dir: WorkDir::create(&settings.data_dir)?,
            runtime: Handle::current(),
            states: Mutex::default(),
            children,
            settings,
            facts,
        });
        // As many as there are attempts, which are bounded.
        let (starts, starts_receiver) = crossbeam_channel::unbounded();
        let (work, work_receiver) = crossbeam_channel::unbounded();
        let mut this = Self { shared, starts, work, threads: Vec::new() };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads.min(THREADS_MAX) {
            let (shared, work) = (Arc::clone(&this.shared), this.work.clone());
            let receivers = (work_receiver.clone(), starts_receiver.clone());
            let thread = std::thread::Builder::new()
                .name("podmesh-spawn".into())
                .spawn(move || shared.do_work(&work, &receivers.0, &receivers.1))?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Kills what an earlier supervisor left running, and tells how the attempts that it held
    /// ended. Blocks until the killed are gone.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn left(&self) -> io::Result<Vec<Left>> {
        let found = self.shared.work_dir.found()?;
        kill_survivors(self.shared.settings.agent_id, &found);
        let died = || Outcome::new(OutcomeKind::Lost).with_message(SUPERVISOR_DIED);
        let left = found.into_iter().map(|found| Left {
            attempt: found.attempt,
            on_lost: found.on_lost,
            ended: found.ended.unwrap_or_else(died),
        });
        Ok(left.collect())
    }

    /// Writes down the end of an attempt that was stopped, for another life of the supervisor.
    pub(crate) fn write_end(&self, attempt: AttemptId, outcome: &Outcome) {
        self.shared.write_end(attempt, outcome);
    }

    /// Starts an attempt. Its end is told in any case.
    pub(crate) fn start(&self, attempt: AttemptId, context: Arc<JobContext>, terms: Arc<Terms>) {
        self.shared.states().insert(
            attempt,
            State { is_started: false, stop: None, life: watch::Sender::default() },
        );
        // The threads have a receiver for as long as this lives.
        _ = self.starts.send(Start::Attempt(attempt, context, terms));
    }

    /// Stops an attempt: TERM to its process group, and after the grace KILL. With a grace of 0
    /// KILL at once.
    pub(crate) fn stop(&self, attempt: AttemptId, grace_ms: u64) {
        let mut states = self.shared.states();
        let Some(state) = states.get_mut(&attempt) else { return };
        state.stop = Some(grace_ms);
        state.life.send_modify(|life| life.stopped = true);
        if state.is_started {
            self.shared.signal_stop(attempt, grace_ms);
        }
    }

    /// Removes the work folder of an attempt that is over.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        _ = self.work.send(Work::Remove(attempt));
    }

    /// Kills what runs, and returns when everything that was asked for before is done.
    pub(crate) async fn close(mut self) {
        let threads = std::mem::take(&mut self.threads);
        self.quit(threads.len());
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("a thread that starts processes has panicked");
        }
        if let Err(error) = self.shared.work_dir.remove_spares() {
            tracing::warn!("cannot tidy up the work folder: {error}");
        }
    }

    fn quit(&self, threads: usize) {
        let running: Vec<_> = self.shared.states().keys().copied().collect();
        for attempt in running {
            self.stop(attempt, 0);
        }
        for _ in 0..threads {
            _ = self.starts.send(Start::Quit);
        }
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        self.quit(self.threads.len());
    }
}

impl Shared {
    fn states(&self) -> MutexGuard<'_, HashMap<AttemptId, State>> {
        // No code that can panic runs under the lock.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, attempt: AttemptId) -> Mark {
        Mark { agent: self.settings.agent_id, attempt }
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // Without a receiver the agent has ended.
        _ = self.facts.send((attempt, fact));
    }

    fn do_work(
        self: &Arc<Self>,
        sender: &Sender<Work>,
        work: &Receiver<Work>,
        starts: &Receiver<Start>,
    ) {
        loop {
            crossbeam_channel::select_biased! {
                recv(work) -> next => match next {
                    Ok(Work::Finish(attempt, outcome)) => self.finish(attempt, outcome),
                    Ok(Work::Remove(attempt)) => self.remove(attempt),
                    Err(_) => return,
                },
                recv(starts) -> next => match next {
                    Ok(Start::Attempt(attempt, context, terms)) => {
                        if let Err(outcome) = self.start(attempt, &context, terms, sender) {
                            self.finish(attempt, outcome);
                        }
                    }
                    Ok(Start::Quit) | Err(_) => return,
                },
            }
        }
    }

    fn remove(&self, attempt: AttemptId) {
        if let Err(error) = self.work_dir.remove(attempt) {
            let folder = self.work_dir.folder(attempt);
            tracing::warn!(%attempt, "cannot remove {}: {error}", folder.display());
        }
    }

    /// Starts an attempt, or says how it ended instead.
    fn start(
        self: &Arc<Self>,
        attempt: AttemptId,
        context: &JobContext,
        terms: Arc<Terms>,
        work: &Sender<Work>,
    ) -> Result<(), Outcome> {
        if self.states().get(&attempt).is_none_or(|state| state.stop.is_some()) {
            return Err(Outcome::new(OutcomeKind::Failed).with_message("stopped before its start"));
        }
        let folder = self.work_dir.folder(attempt);
        let mut record = self.work_dir.take_up(attempt, context.on_lost).map_err(|error| {
            let folder = folder.display();
            Outcome::start_failed(125, format!("cannot make the work folder {folder}: {error}"))
        })?;
        let mark = self.mark(attempt);
        let mut command = command(&terms.base_env, context, mark, &terms.node, &folder)?;
        let since = Instant::now();
        let started = self.children.start(&mut command, mark).map_err(|error| {
            refused(context.run.command.first().map_or("", String::as_str), &error)
        })?;
        let written = match Stat::of(started.pid) {
            Some(stat) => record.started(started.pid, stat.start_ticks),
            None => Ok(()),
        };
        if let Err(error) = written {
            // Its environment tells whose it is all the same.
            tracing::warn!(%attempt, "cannot write down that it was started: {error}");
        }
        self.tell(attempt, RuntimeFact::Started);
        self.runtime.spawn(Arc::clone(self).attend(attempt, terms, since, started, work.clone()));
        // It may have been asked to stop meanwhile.
        let mut states = self.states();
        if let Some(state) = states.get_mut(&attempt) {
            state.is_started = true;
            if let Some(grace_ms) = state.stop {
                self.signal_stop(attempt, grace_ms);
            }
        }
        Ok(())
    }

    fn signal_stop(&self, attempt: AttemptId, grace_ms: u64) {
        let (children, mark) = (self.children, self.mark(attempt));
        if grace_ms == 0 {
            return children.signal(mark, Signal::SIGKILL);
        }
        children.signal(mark, Signal::SIGTERM);
        self.runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(grace_ms)).await;
            // Does nothing when the attempt is over.
            children.signal(mark, Signal::SIGKILL);
        });
    }

    /// Copies the output of a process, and waits for its end and that of all it started.
    async fn attend(
        self: Arc<Self>,
        attempt: AttemptId,
        terms: Arc<Terms>,
        since: Instant,
        started: Started,
        work: Sender<Work>,
    ) {
        let Started { stdout, stderr, mut exit, .. } = started;
        // It is there until the end of the attempt, which is told below.
        let life = self.states().get(&attempt).map(|state| state.life.clone()).unwrap_or_default();
        let output = |fd: Option<OwnedFd>, stream| {
            let sink = Sink {
                attempt,
                stream,
                log_dir: attempt_log_dir(&terms.logs_dir, attempt),
                rotation: terms.rotation.clone(),
                notify: self.settings.log_notify.clone(),
                facts: self.facts.clone(),
                life: life.subscribe(),
            };
            async move {
                if let Some(fd) = fd {
                    capture_pipe(fd, sink).await;
                }
            }
        };
        let stdout = output(stdout.map(OwnedFd::from), LogStream::Stdout);
        let stderr = output(stderr.map(OwnedFd::from), LogStream::Stderr);
        let mut outputs = std::pin::pin!(async { tokio::join!(stdout, stderr) });
        let mut is_complete = false;
        let exit = loop {
            tokio::select! {
                biased;
                _ = &mut outputs, if !is_complete => is_complete = true,
                exit = &mut exit => break exit,
            }
        };
        let (status, at, leftovers) = match exit {
            Ok(Exit { status, at, leftovers }) => (status, at, leftovers),
            Err(_) => (Err(io::Error::other("nobody waits for it")), Instant::now(), None),
        };
        let end = async {
            if let Some(gone) = leftovers
                && timeout(DRAIN_LIMIT, gone).await.is_err()
            {
                tracing::warn!(%attempt, "a process that it started cannot be killed");
            }
            life.send_modify(|life| life.ended = true);
        };
        if is_complete {
            end.await;
        } else {
            tokio::join!(end, outputs);
        }
        let ran = at.saturating_duration_since(since).as_millis();
        // 0 would say that it never ran.
        let ran_ms = u64::try_from(ran).unwrap_or(u64::MAX).max(1);
        let outcome = Outcome { ran_ms, ..outcome(status) };
        _ = work.send(Work::Finish(attempt, outcome));
    }

    /// Writes down how an attempt ended, and tells it.
    fn finish(&self, attempt: AttemptId, outcome: Outcome) {
        let state = self.states().remove(&attempt);
        // Of one that was stopped others know why, and what that means.
        if state.is_none_or(|state| state.stop.is_none()) {
            self.write_end(attempt, &outcome);
        }
        self.tell(attempt, RuntimeFact::Ended(outcome));
    }

    fn write_end(&self, attempt: AttemptId, outcome: &Outcome) {
        if let Err(error) = self.work_dir.ended(attempt, outcome)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%attempt, "cannot write down how it ended: {error}");
        }
    }
}

fn outcome(status: io::Result<ExitStatus>) -> Outcome {
    match status {
        Ok(status) => match status.code() {
            Some(code) => Outcome::exited(code),
            None => Outcome { signal: status.signal(), ..Outcome::new(OutcomeKind::Failed) },
        },
        Err(error) => Outcome::new(OutcomeKind::Lost)
            .with_message(format!("how it ended cannot be learned: {error}")),
    }
}

#[cfg(test)]
mod tests;
