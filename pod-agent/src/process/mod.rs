//! Runs commands as processes of the node, each in its own process group and work folder.
//!
//! - A small pool of threads starts processes, because a start can hang: see `starts.rs`.
//! - A task copies the output. The thread of `children.rs` reaps the process and kills what is left
//!   of its process group, and descendants that left the group. When all of them are gone, the
//!   output is complete and the end is reported.
//! - One thread records ends, and another one removes what attempts leave: see `work.rs`. Ends
//!   never wait for starts or for the removal of files.
//!
//! All this happens in the supervisor (`supervisor/`), not in the agent.

mod cgroup;
mod checks;
mod children;
mod clone;
mod command;
mod files;
mod mark;
mod records;
mod spawn;
mod starts;
mod survivors;
mod threads;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::OnLost;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

pub(crate) use self::cgroup::remove_left as remove_cgroups;
use self::cgroup::{CPU_LIMIT_AFTER, Cgroup, Cgroups};
use self::checks::CheckBase;
use self::children::{Children, Exit, Process, children};
pub(crate) use self::command::BaseEnv;
use self::command::{launch, refused};
use self::files::write_files;
pub(crate) use self::mark::age_ms;
use self::mark::{Mark, now_ticks};
use self::records::StartedProcess;
use self::starts::{Starts, ThreadNumber};
pub(crate) use self::survivors::kill_survivors;
use self::threads::spawn_thread;
use self::work::WorkDir;
pub(crate) use self::work::has_records;
use crate::capture::{DRAIN_LIMIT, Life, Sink, capture_pipe};
use crate::log_notify::LogNotify;
use crate::paths::attempt_log_dir;
use crate::user::ProcessUser;

/// Maximum number of threads that start processes, not counting those that hang.
const THREADS_MAX: usize = 4;
/// Interval between checks of the starts in progress.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long closing the runtime waits for its threads. A thread that hangs is left behind.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Settings of the runtime.
#[derive(Clone, Debug)]
pub(crate) struct ProcessSettings {
    /// The id of the agent's data directory.
    pub(crate) agent_id: Uuid,
    /// An absolute path. Work folders are created there.
    pub(crate) data_dir: PathBuf,
    /// Wakes those who wait for output.
    pub(crate) log_notify: LogNotify,
}

/// Returns which limits of a job (`memory`, `cpus`) an agent started by this user would not enforce
/// for commands, with the reason. Blocks for a moment.
pub fn unenforced_limits() -> BTreeMap<String, String> {
    // There is no data directory, because nothing is left that a later supervisor must find.
    let cgroups = Cgroups::open(None, Uuid::new_v4());
    cgroups.remove();
    cgroups.unenforced().clone()
}

/// Settings for the attempts that one run of the agent starts.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The node's name.
    pub(crate) node: Name,
    /// An absolute path. Output is written there.
    pub(crate) logs_dir: PathBuf,
    /// How much output is kept.
    pub(crate) rotation: RotationPolicy,
    /// The environment that programs inherit.
    pub(crate) base_env: BaseEnv,
    /// The user that programs run as; `None` if it is the agent's own.
    pub(crate) user: Option<ProcessUser>,
}

/// The message for an attempt whose end is unknown.
const SUPERVISOR_DIED: &str = "the supervisor of the node's processes died (it was killed, or the machine was \
     restarted), and this process with it";

/// An attempt that an earlier supervisor left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AbandonedAttempt {
    /// The attempt.
    pub(crate) attempt: AttemptId,
    /// What to do at the end of the lease.
    pub(crate) on_lost: OnLost,
    /// How it ended.
    pub(crate) ended: Outcome,
}

/// Starts and stops processes. Kills running processes when dropped.
#[derive(Debug)]
pub(crate) struct ProcessRuntime {
    shared: Arc<Shared>,
    /// `None` once the runtime is closing.
    queues: Option<Queues>,
    /// The task that checks the starts in progress.
    watching: AbortHandle,
    /// Closed when all threads have ended.
    threads: mpsc::Receiver<Infallible>,
}

/// The work queues of the threads. The threads end when it is dropped.
#[derive(Debug)]
struct Queues {
    starts: Sender<Start>,
    ends: UnboundedSender<EndRecord>,
    removals: UnboundedSender<AttemptId>,
}

struct Shared {
    settings: ProcessSettings,
    children: &'static Children,
    cgroups: Cgroups,
    work_dir: WorkDir,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    runtime: Handle,
    states: Mutex<HashMap<AttemptId, State>>,
    queue: Receiver<Start>,
    starts: Starts,
    /// Notified when a start is requested.
    asked: Notify,
    trouble: watch::Sender<Option<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The state of an attempt, with the grace in milliseconds if it must stop.
#[derive(Clone, Debug)]
struct State {
    terms: Arc<Terms>,
    is_started: bool,
    stop: Option<u64>,
    life: watch::Sender<Life>,
    cgroup: Option<Arc<Cgroup>>,
    /// How to run its health checks, if they are commands.
    checks: Option<Arc<CheckBase>>,
}

/// A start that waits for a thread.
#[derive(Debug)]
struct Start {
    attempt: AttemptId,
    context: Arc<JobContext>,
    terms: Arc<Terms>,
    replica: Option<Arc<Replica>>,
}

/// An end to record, and what to do afterwards.
struct EndRecord {
    attempt: AttemptId,
    outcome: Outcome,
    then: Box<dyn FnOnce() + Send>,
}

impl ProcessRuntime {
    /// Creates a runtime that sends its facts to `facts`. Call it in a tokio runtime.
    ///
    /// # Errors
    /// If its folder or its threads cannot be created.
    pub(crate) fn new(
        settings: ProcessSettings,
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> io::Result<Self> {
        let children = children()?;
        children.agent_lives_here(settings.agent_id);
        let size = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        // Unbounded, but there are at most as many starts as attempts, which are limited.
        let (starts, queue) = crossbeam_channel::unbounded();
        let (ends, ended) = unbounded_channel();
        let (removals, removed) = unbounded_channel();
        let shared = Arc::new(Shared {
            cgroups: Cgroups::open(Some(&settings.data_dir), settings.agent_id),
            work_dir: WorkDir::open(&settings.data_dir, settings.agent_id)?,
            runtime: Handle::current(),
            states: Mutex::default(),
            children,
            settings,
            facts,
            queue,
            starts: Starts::new(size),
            asked: Notify::new(),
            trouble: watch::Sender::default(),
        });
        let (lives, threads) = mpsc::channel(1);
        shared.start_threads(&lives)?;
        let this = Arc::clone(&shared);
        spawn_thread("podmesh-ends", &lives, move || this.write_ends(ended))?;
        let this = Arc::clone(&shared);
        spawn_thread("podmesh-removals", &lives, move || this.remove_all(removed))?;
        let watching = tokio::spawn(Arc::clone(&shared).watch_starts(lives.downgrade()));
        let queues = Some(Queues { starts, ends, removals });
        Ok(Self { shared, queues, watching: watching.abort_handle(), threads })
    }

    /// Kills what an earlier supervisor left running, and returns how its attempts ended. Call it
    /// before the first start. Blocks until the killed processes are gone.
    pub(crate) fn abandoned(&self) -> Vec<AbandonedAttempt> {
        let records = self.shared.work_dir.records();
        kill_survivors(self.shared.settings.agent_id, &records);
        let died = || Outcome::new(OutcomeKind::Lost).with_message(SUPERVISOR_DIED);
        let abandoned = records.into_iter().map(|record| AbandonedAttempt {
            attempt: record.attempt,
            on_lost: record.on_lost,
            ended: record.ended.unwrap_or_else(died),
        });
        abandoned.collect()
    }

    /// Returns a channel with the reason why nothing can be started now; `None` if it can.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    /// Returns how many starts wait for a thread.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue.len()
    }

    /// Returns which limits are not enforced for processes, with the reason.
    pub(crate) fn unenforced(&self) -> &BTreeMap<String, String> {
        self.shared.cgroups.unenforced()
    }

    /// Starts an attempt, with its ports if it is a replica. Its end is always reported, even if the
    /// start fails.
    pub(crate) fn start(
        &self,
        attempt: AttemptId,
        context: Arc<JobContext>,
        terms: Arc<Terms>,
        replica: Option<Arc<Replica>>,
    ) {
        if let Some(why) = &*self.shared.trouble.borrow() {
            return self.shared.tell(attempt, RuntimeFact::Ended(not_started(&terms, why)));
        }
        self.shared.states.lock().insert(
            attempt,
            State {
                terms: Arc::clone(&terms),
                is_started: false,
                stop: None,
                life: watch::Sender::default(),
                cgroup: None,
                checks: None,
            },
        );
        self.put(|queues| queues.starts.send(Start { attempt, context, terms, replica }).is_ok());
        self.shared.asked.notify_one();
    }

    /// Stops an attempt: sends SIGTERM to its process group, and SIGKILL after the grace. With a
    /// grace of 0 it sends SIGKILL at once.
    pub(crate) fn stop(&self, attempt: AttemptId, grace_ms: u64) {
        let mut states = self.shared.states.lock();
        let Some(state) = states.get_mut(&attempt) else { return };
        state.stop = Some(grace_ms);
        state.life.send_modify(|life| life.stopped = true);
        if state.is_started {
            self.shared.signal_stop(attempt, grace_ms);
        }
    }

    /// Records how an attempt ended, for a later run of the supervisor, and then calls `then`.
    pub(crate) fn keep_end(
        &self,
        attempt: AttemptId,
        outcome: Outcome,
        then: impl FnOnce() + Send + 'static,
    ) {
        let end = EndRecord { attempt, outcome, then: Box::new(then) };
        self.put(|queues| queues.ends.send(end).is_ok());
    }

    /// Removes the work folder and the record of an attempt that has ended.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.put(|queues| queues.removals.send(attempt).is_ok());
    }

    fn put(&self, send: impl FnOnce(&Queues) -> bool) {
        // The threads receive as long as the queues are open.
        _ = self.queues.as_ref().is_some_and(send);
    }

    /// Kills running processes, and returns when all earlier requests are done.
    pub(crate) async fn close(mut self) {
        self.stop_all();
        self.watching.abort();
        // The threads finish the queued work and end.
        self.queues = None;
        if timeout(CLOSE_LIMIT, self.threads.recv()).await.is_err() {
            tracing::error!(
                "a thread that starts processes or removes files hangs; closing without it"
            );
        }
        if let Err(error) = self.shared.work_dir.close() {
            tracing::warn!("cannot clean up the work folder: {error}");
        }
    }

    fn stop_all(&self) {
        let running: Vec<_> = self.shared.states.lock().keys().copied().collect();
        for attempt in running {
            self.stop(attempt, 0);
        }
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        self.watching.abort();
        self.stop_all();
        self.shared.cgroups.remove();
    }
}

impl Shared {
    fn mark(&self, attempt: AttemptId) -> Mark {
        Mark { agent: self.settings.agent_id, attempt }
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // If there is no receiver, the agent has ended.
        _ = self.facts.send((attempt, fact));
    }

    /// Starts an attempt, or returns its outcome if it cannot be started.
    fn start(self: &Arc<Self>, thread: ThreadNumber, start: Start) -> Result<(), Outcome> {
        let Start { attempt, context, terms, replica } = start;
        if self.states.lock().get(&attempt).is_none_or(|state| state.stop.is_some()) {
            return Err(Outcome::new(OutcomeKind::Failed).with_message("stopped before its start"));
        }
        let touch = |path: &Path| {
            self.starts.touch(thread, path).map_err(|hang| not_started(&terms, &hang))
        };
        touch(&self.settings.data_dir)?;
        let user = terms.user.as_ref();
        let folder = self.work_dir.take_up(attempt, context.on_lost, user).map_err(|error| {
            not_started(
                &terms,
                &format!("cannot write in {}: {error}", self.settings.data_dir.display()),
            )
        })?;
        let owner = user.map(|user| (user.uid, folder.group.unwrap_or(user.gid)));
        write_files(&folder.path, &context.run.files, owner).map_err(|(path, error)| {
            let text = format!("cannot write the file {path} in the work folder: {error}");
            Outcome::start_failed(125, text)
        })?;
        let mark = self.mark(attempt);
        let mut launch = launch(&terms, &context, mark, replica.as_deref(), &folder, &touch)?;
        let cgroup = self.cgroups.take(&context.resources).map_err(|error| {
            not_started(&terms, &format!("cannot make a cgroup for the process: {error}"))
        })?;
        let cgroup = cgroup.map(|(cgroup, joins)| {
            launch.cgroups = joins;
            Arc::new(cgroup)
        });
        if let Some(state) = self.states.lock().get_mut(&attempt) {
            state.cgroup.clone_from(&cgroup);
            state.checks = CheckBase::of(&context, &launch);
        }
        if !self.starts.may_spawn(thread) {
            return Err(given_up());
        }
        let (since, first_ticks) = (Instant::now(), now_ticks());
        let started = self.children.start(&launch, mark, cgroup);
        if !self.starts.spawned(thread) {
            // It was killed before it executed the program, so nobody needs its end.
            return Err(given_up());
        }
        let process =
            started.map_err(|error| refused(&terms, &context, &launch, &folder.path, error))?;
        let known =
            StartedProcess { pid: process.pid.as_raw(), start_ticks: (first_ticks, now_ticks()) };
        if let Err(error) = self.work_dir.started(attempt, known) {
            // The marks in its environment still show which attempt it belongs to.
            tracing::warn!(%attempt, "cannot record the start of its process: {error}");
        }
        self.runtime.spawn(Arc::clone(self).attend(attempt, terms, since, process));
        // A stop may have been requested in the meantime.
        let mut states = self.states.lock();
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
            sleep(Duration::from_millis(grace_ms)).await;
            // This does nothing if the attempt has ended.
            children.signal(mark, Signal::SIGKILL);
        });
    }

    /// Copies the output of a process, and waits until it and all its descendants have ended.
    async fn attend(
        self: Arc<Self>,
        attempt: AttemptId,
        terms: Arc<Terms>,
        since: Instant,
        process: Process,
    ) {
        self.tell(attempt, RuntimeFact::Started);
        let Process { stdout, stderr, mut exit, .. } = process;
        // The entry exists until the end of the attempt, which is reported below.
        let life = self.states.lock().get(&attempt).map(|state| state.life.clone());
        let life = life.unwrap_or_default();
        let output = |fd: OwnedFd, stream| {
            let sink = Sink {
                attempt,
                stream,
                log_dir: attempt_log_dir(&terms.logs_dir, attempt),
                rotation: terms.rotation.clone(),
                notify: self.settings.log_notify.clone(),
                facts: self.facts.clone(),
                life: life.subscribe(),
            };
            capture_pipe(fd, sink)
        };
        let stdout = output(stdout, LogStream::Stdout);
        let stderr = output(stderr, LogStream::Stderr);
        let mut outputs = std::pin::pin!(async { tokio::join!(stdout, stderr) });
        let mut is_complete = false;
        let mut short = std::pin::pin!(sleep(CPU_LIMIT_AFTER));
        let mut is_limited = false;
        let exit = loop {
            tokio::select! {
                biased;
                _ = &mut outputs, if !is_complete => is_complete = true,
                exit = &mut exit => break exit,
                () = &mut short, if !is_limited => {
                    is_limited = true;
                    self.limit_cpu(attempt);
                }
            }
        };
        let (status, at, leftovers) = match exit {
            Ok(Exit { status, at, leftovers }) => (status, at, leftovers),
            Err(_) => {
                (Err(io::Error::other("nobody waits for this process")), Instant::now(), None)
            }
        };
        let end = async {
            if let Some(gone) = leftovers
                && timeout(DRAIN_LIMIT, gone).await.is_err()
            {
                tracing::warn!(%attempt, "cannot kill a process that it started");
            }
            life.send_modify(|life| life.ended = true);
        };
        if is_complete {
            end.await;
        } else {
            tokio::join!(end, outputs);
        }
        let ran = at.saturating_duration_since(since).as_millis();
        // 0 means that it never ran.
        let ran_ms = u64::try_from(ran).unwrap_or(u64::MAX).max(1);
        self.finish(attempt, Outcome { ran_ms, ..outcome(status) });
    }

    /// Limits the CPU time of an attempt that runs for longer than a moment.
    fn limit_cpu(&self, attempt: AttemptId) {
        let cgroup = self.states.lock().get(&attempt).and_then(|state| state.cgroup.clone());
        if let Some(Err(error)) = cgroup.map(|cgroup| cgroup.limit_cpu()) {
            tracing::warn!(%attempt, "cannot limit its CPU time: {error}");
        }
    }

    /// Reports how an attempt ended.
    fn finish(&self, attempt: AttemptId, mut outcome: Outcome) {
        let cgroup = self.states.lock().remove(&attempt).and_then(|state| state.cgroup);
        // If this is the last reference, no process of the attempt is left.
        if let Some(cgroup) = cgroup.and_then(Arc::into_inner) {
            if cgroup.was_out_of_memory() {
                outcome = outcome.out_of_memory();
            }
            self.cgroups.give_back(cgroup);
        }
        self.tell(attempt, RuntimeFact::Ended(outcome));
    }
}

fn outcome(status: io::Result<ExitStatus>) -> Outcome {
    match status {
        Ok(status) => match status.code() {
            Some(code) => Outcome::exited(code),
            None => Outcome { signal: status.signal(), ..Outcome::new(OutcomeKind::Failed) },
        },
        Err(error) => Outcome::new(OutcomeKind::Lost)
            .with_message(format!("cannot find out how it ended: {error}")),
    }
}

/// Returns the outcome of an attempt that this node cannot start.
fn not_started(terms: &Terms, why: &impl std::fmt::Display) -> Outcome {
    Outcome::not_started(format!("node {}: {why}", terms.node))
}

/// Returns a placeholder for a start that was given up. Its outcome was already reported.
fn given_up() -> Outcome {
    Outcome::new(OutcomeKind::NotStarted)
}

#[cfg(test)]
mod tests;
