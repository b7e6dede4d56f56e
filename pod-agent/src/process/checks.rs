//! Runs the health checks of processes that are commands: beside the process, as the same user, in
//! its folder and cgroup, with its environment.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::service::HealthCheck;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::children::{Children, Process};
use super::command::{existing_files, not_executed, strings};
use super::mark::Mark;
use super::spawn::{CgroupJoin, Credentials, Launch, SpawnError, SpawnStep};
use super::{ProcessRuntime, Shared};
use crate::capture::Life;
use crate::health::{LastLine, Said};

/// Bytes read at once.
const BLOCK: usize = 8 << 10;
/// How long the rest of the output is read when the command has exited. A process that it has
/// started may keep its output open.
const REST_LIMIT: Duration = Duration::from_millis(100);

/// What the checks of an attempt have in common with its process.
#[derive(Debug)]
pub(super) struct CheckBase {
    environment: Vec<CString>,
    folder: CString,
    user: Option<Credentials>,
    /// One check at a time.
    turn: Arc<Semaphore>,
}

impl CheckBase {
    /// Returns it for an attempt whose health checks are commands.
    pub(super) fn of(context: &JobContext, launch: &Launch) -> Option<Arc<Self>> {
        let health = context.run.replica.as_ref()?.health.as_ref()?;
        matches!(health.check, HealthCheck::Command(_)).then(|| {
            Arc::new(Self {
                environment: launch.environment.clone(),
                folder: launch.folder.clone(),
                user: launch.user.clone(),
                turn: Arc::new(Semaphore::new(1)),
            })
        })
    }

    /// Returns how to start a command. Can block.
    fn launch(&self, command: &[String]) -> Result<Launch, Outcome> {
        let path = self.environment.iter().find_map(|one| one.to_bytes().strip_prefix(b"PATH="));
        let path = OsStr::from_bytes(path.unwrap_or_default());
        let folder = Path::new(OsStr::from_bytes(self.folder.to_bytes()));
        let name = command.first().map_or("", String::as_str);
        let files = existing_files(name, path, folder, &|_| Ok(()))?;
        Ok(Launch {
            files: strings(files.into_iter().map(PathBuf::into_os_string))?,
            arguments: strings(command.iter().map(Into::into))?,
            environment: self.environment.clone(),
            folder: self.folder.clone(),
            user: self.user.clone(),
            cgroups: Vec::new(),
        })
    }
}

/// The process of a check. Killed with its process group when dropped.
struct Checking {
    process: Process,
    mark: Mark,
    children: &'static Children,
    /// The next check waits for the end of this one.
    _turn: OwnedSemaphorePermit,
}

impl Drop for Checking {
    fn drop(&mut self) {
        // This does nothing if it has ended.
        self.children.signal(self.mark, Signal::SIGKILL);
    }
}

impl ProcessRuntime {
    /// Runs a command beside the process of an attempt, for at most this long, and returns what it
    /// said last.
    pub(crate) fn check(
        &self,
        attempt: AttemptId,
        command: Vec<String>,
        limit: Duration,
    ) -> impl Future<Output = Said> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let check = shared.check(attempt, command);
            match timeout(limit, check).await {
                Ok(said) => said,
                Err(_) => Err(format!("the command did not end within {limit:?}")),
            }
        }
    }
}

impl Shared {
    async fn check(self: Arc<Self>, attempt: AttemptId, command: Vec<String>) -> Said {
        let ended = || "the replica has ended".to_owned();
        let (base, mut life, joins) = {
            let states = self.states.lock();
            let state = states.get(&attempt).filter(|state| state.is_started).ok_or_else(ended)?;
            let base = state.checks.clone().ok_or("it has no health check that is a command")?;
            // A reference to the cgroup itself would keep it when the attempt ends.
            let joins = state.cgroup.as_ref().map_or(Ok(Vec::new()), |cgroup| cgroup.joins());
            (base, state.life.subscribe(), joins.map_err(|error| error.to_string())?)
        };
        let turn = Arc::clone(&base.turn).try_acquire_owned();
        let turn = turn.map_err(|_| "the command of an earlier check has not ended")?;
        let (started, starting) = oneshot::channel();
        let shared = Arc::clone(&self);
        // A file system that does not answer can block this. Nobody waits for it then.
        tokio::task::spawn_blocking(move || {
            let result = shared.start_check(attempt, &base, &command, joins, turn);
            // If nobody waits, the process is killed.
            _ = started.send(result);
        });
        let mut checking =
            starting.await.map_err(|_| "the command was not started".to_owned())??;
        let said = checking.said();
        tokio::select! {
            said = said => said,
            () = until_end(&mut life) => Err(ended()),
        }
    }

    fn start_check(
        &self,
        attempt: AttemptId,
        base: &CheckBase,
        command: &[String],
        joins: Vec<CgroupJoin>,
        turn: OwnedSemaphorePermit,
    ) -> Result<Checking, String> {
        let message = |outcome: Outcome| outcome.message.unwrap_or_default();
        let mut launch = base.launch(command).map_err(message)?;
        launch.cgroups = joins;
        // Its own mark, because its end must not be taken for that of the attempt. The variables
        // mark what it starts as processes of the attempt.
        let mark = Mark { agent: Uuid::new_v4(), attempt };
        let process = self.children.start(&launch, mark, None);
        let process = process.map_err(|error| refused(&launch, command, error))?;
        let checking = Checking { process, mark, children: self.children, _turn: turn };
        // The attempt may have ended before the process joined its cgroup, which another attempt
        // may use now.
        if !self.states.lock().contains_key(&attempt) {
            return Err("the replica has ended".into());
        }
        Ok(checking)
    }
}

/// Waits until an attempt ends or is told to stop.
async fn until_end(life: &mut watch::Receiver<Life>) {
    // If there is no sender, it has ended.
    _ = life.wait_for(|life| life.stopped || life.ended).await;
}

fn refused(launch: &Launch, command: &[String], error: SpawnError) -> String {
    let SpawnError { step, errno } = error;
    let name = command.first().map_or("", String::as_str);
    match step {
        SpawnStep::Exec => {
            let file = launch.files.first().map(|file| OsStr::from_bytes(file.to_bytes()));
            let file = file.map(Path::new).filter(|file| file.exists());
            let (_, why) = not_executed(name, errno, file, "the replica's user");
            format!("cannot run `{name}`: {why}")
        }
        SpawnStep::Fork | SpawnStep::Cgroup | SpawnStep::User | SpawnStep::Folder => {
            format!("cannot run `{name}`: {}", errno.desc())
        }
    }
}

impl Checking {
    /// Waits for the end of the command, and returns what it said last.
    async fn said(&mut self) -> Said {
        let said = Mutex::new(LastLine::default());
        let Process { stdout, stderr, exit, .. } = &mut self.process;
        let copies = async { tokio::join!(copy(stdout, &said), copy(stderr, &said)) };
        let mut copies = std::pin::pin!(copies);
        let mut is_complete = false;
        let exit = loop {
            tokio::select! {
                _ = &mut copies, if !is_complete => is_complete = true,
                exit = &mut *exit => break exit,
            }
        };
        if !is_complete {
            _ = timeout(REST_LIMIT, copies).await;
        }
        let status = exit.map_err(|_| "nobody waits for its process")?.status;
        let status = status.map_err(|error| error.to_string())?;
        match status.code() {
            Some(code) => said.lock().result(code.into()),
            None => Err(format!("the command was ended by {status}")),
        }
    }
}

/// Reads a pipe to its end. An error ends it, too.
async fn copy(pipe: &OwnedFd, said: &Mutex<LastLine>) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut pipe = pipe::Receiver::from_owned_fd_unchecked(pipe.try_clone()?)?;
    let mut block = vec![0; BLOCK];
    loop {
        match pipe.read(&mut block).await? {
            0 => return Ok(()),
            bytes => said.lock().push(&block[..bytes]),
        }
    }
}
