//! Starts a program as another user and in cgroups, at the rate of `posix_spawn`.
//!
//! To change the user, `std::process::Command` uses `fork`, which copies the page tables of the
//! supervisor for each program and halves the rate. Here the child shares the memory of the
//! supervisor until it executes the program (`CLONE_VM | CLONE_VFORK`, like `posix_spawn`), and
//! makes the system calls itself: it joins its cgroups, gives up its privileges, and executes. This
//! and `clone.rs` are the only unsafe code in the agent.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::clone::clone_into;

/// Bytes of the child's stack until it executes the program.
const STACK_BYTES: usize = 64 << 10;
/// The exit code of a child that could not execute a program. It is never reported.
const NOT_EXECUTED: isize = 127;

/// What to execute, and as which user.
#[derive(Debug)]
pub(super) struct Launch {
    /// Files to try, in this order, as `execvp` does. Relative paths start at the working folder.
    pub(super) files: Vec<CString>,
    /// Arguments; the first one is the program's name for itself.
    pub(super) arguments: Vec<CString>,
    /// The whole environment.
    pub(super) environment: Vec<CString>,
    /// The working folder.
    pub(super) folder: CString,
    /// `None`: the program runs as the user of this process.
    pub(super) user: Option<Credentials>,
    /// How the child joins its cgroups. It can be created in only one of them.
    pub(super) cgroups: Vec<CgroupJoin>,
}

/// How a process joins a cgroup.
#[derive(Debug)]
pub(super) enum CgroupJoin {
    /// It is created in this folder, a cgroup of version 2.
    Folder(File),
    /// It writes `0` to this file.
    Write(File),
}

/// The user and the groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Credentials {
    /// Creates credentials from ids.
    pub(super) fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        let groups = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), groups }
    }
}

/// A started process, in its own process group.
#[derive(Debug)]
pub(super) struct SpawnedProcess {
    pub(super) pid: Pid,
    /// The other end of its standard output.
    pub(super) stdout: OwnedFd,
    /// The other end of its standard error.
    pub(super) stderr: OwnedFd,
}

/// Why a program was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpawnError {
    pub(super) step: SpawnStep,
    pub(super) errno: Errno,
}

/// The steps of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpawnStep {
    /// Create pipes and a process.
    Fork,
    /// Join a cgroup.
    Cgroup,
    /// Change the user.
    User,
    /// Enter the working folder.
    Folder,
    /// Execute the program.
    Exec,
}

impl SpawnError {
    fn at(step: SpawnStep) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }

    fn in_child(step: SpawnStep) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self { step, errno: Errno::from_raw(errno.raw_os_error()) }
    }
}

/// Starts a program with `null` as its standard input. Returns when the program executes.
///
/// # Errors
/// The step that failed. The child is gone then.
pub(super) fn spawn(launch: &Launch, null: &File) -> Result<SpawnedProcess, SpawnError> {
    let failed = SpawnError::at(SpawnStep::Fork);
    let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC).map_err(&failed)?;
    let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC).map_err(&failed)?;
    // Everything that the child needs is created here, because it must not allocate.
    let arguments = pointers(&launch.arguments);
    let environment = pointers(&launch.environment);
    let failure = Cell::new(None);
    let mut child = || {
        let output = [&stdout_writer, &stderr_writer];
        failure.set(Some(become_program(launch, null, output, &arguments, &environment)));
        NOT_EXECUTED
    };
    let folder = launch.cgroups.iter().find_map(|join| match join {
        CgroupJoin::Folder(folder) => Some(folder.as_fd()),
        CgroupJoin::Write(_) => None,
    });
    let pid = vfork(&mut child, folder).map_err(&failed)?;
    match failure.get() {
        None => Ok(SpawnedProcess { pid, stdout, stderr }),
        Some(error) => {
            // It has ended. The only possible error is that other code reaped it.
            _ = waitpid(pid, None);
            Err(error)
        }
    }
}

/// Converts strings to a null-terminated list for `execve`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Runs `child` in a new process that shares the memory of this one, and returns when it has
/// executed a program or ended. The process is created in `cgroup`, or else in that of this process.
#[expect(unsafe_code, reason = "no safe call starts a process that shares its memory")]
pub(super) fn vfork(
    child: &mut dyn FnMut() -> isize,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Pid, Errno> {
    thread_local! {
        static STACK: RefCell<Vec<u8>> = RefCell::new(vec![0; STACK_BYTES]);
    }
    // A signal handler of this process must not run in the child, which shares its memory. The
    // child unblocks signals after it has removed the handlers.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: this thread is suspended until the child has executed or ended (CLONE_VFORK), so the
    // stack and what `child` borrows outlive the child. `child` is always `become_program`: it
    // makes system calls, neither allocates nor unwinds, and changes only its `Cell`.
    let pid = STACK.with_borrow_mut(|stack| unsafe {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        match cgroup {
            Some(cgroup) => clone_into(child, stack, cgroup),
            None => clone(Box::new(child), stack, flags, Some(libc::SIGCHLD)),
        }
    });
    before.thread_set_mask()?;
    pid
}

/// Becomes the program. Returns only if that fails. Runs in the child, see [`vfork`].
fn become_program(
    launch: &Launch,
    null: &File,
    [stdout, stderr]: [&OwnedFd; 2],
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> SpawnError {
    match prepare(launch, null, stdout, stderr) {
        Err(error) => error,
        Ok(()) => {
            SpawnError { step: SpawnStep::Exec, errno: execute(launch, arguments, environment) }
        }
    }
}

fn prepare(
    launch: &Launch,
    null: &File,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<(), SpawnError> {
    let failed = SpawnError::in_child(SpawnStep::Fork);
    rustix::process::setpgid(None, None).map_err(&failed)?;
    rustix::stdio::dup2_stdin(null).map_err(&failed)?;
    rustix::stdio::dup2_stdout(stdout).map_err(&failed)?;
    rustix::stdio::dup2_stderr(stderr).map_err(&failed)?;
    for join in &launch.cgroups {
        if let CgroupJoin::Write(file) = join {
            rustix::io::write(file, b"0").map_err(SpawnError::in_child(SpawnStep::Cgroup))?;
        }
    }
    close_others();
    reset_signals().map_err(SpawnError::at(SpawnStep::Fork))?;
    if let Some(Credentials { uid, gid, groups }) = &launch.user {
        // These are raw system calls for the calling thread only. The functions of the C library
        // would change all threads of the process that it believes to be in.
        let failed = SpawnError::in_child(SpawnStep::User);
        set_thread_groups(groups).map_err(&failed)?;
        set_thread_res_gid(*gid, *gid, *gid).map_err(&failed)?;
        set_thread_res_uid(*uid, *uid, *uid).map_err(&failed)?;
        // Otherwise a setuid program could regain the privileges.
        set_no_new_privs(true).map_err(&failed)?;
    }
    // Enter the folder as that user, who may not have access to it.
    rustix::process::chdir(launch.folder.as_c_str())
        .map_err(SpawnError::in_child(SpawnStep::Folder))
}

/// Marks all files except the standard ones to be closed when the program is executed, because the
/// agent may have inherited some. Kernels before 5.11 do not support this.
#[expect(unsafe_code, reason = "it could close files that are in use")]
fn close_others() {
    // SAFETY: the files are closed when the program is executed, and nobody uses them after that.
    // The child has its own file table.
    unsafe {
        let (first, last) = (libc::STDERR_FILENO + 1, libc::c_uint::MAX);
        libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Resets all signals to their default actions, and then unblocks them.
#[expect(unsafe_code, reason = "an action could be an unsafe handler")]
fn reset_signals() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: the default action is not a handler.
        // This fails only for SIGKILL and SIGSTOP, which cannot be changed.
        _ = unsafe { sigaction(signal, &default) };
    }
    SigSet::empty().thread_set_mask()
}

/// Executes the first file that can be executed. Returns the reason if there is none.
#[expect(unsafe_code, reason = "no safe call executes a program without an allocation")]
fn execute(launch: &Launch, arguments: &[*const c_char], environment: &[*const c_char]) -> Errno {
    let mut found = Errno::ENOENT;
    for file in &launch.files {
        // SAFETY: the lists end with a null pointer, see `pointers`, and point to strings of
        // `launch`, which outlives the child.
        unsafe {
            libc::execve(file.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        }
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => found = Errno::EACCES,
            other => return other,
        }
    }
    found
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Read;

    use super::*;

    fn strings(all: &[&str]) -> Vec<CString> {
        all.iter().map(|text| CString::new(*text).unwrap()).collect()
    }

    fn shell(script: &str) -> Launch {
        Launch {
            files: strings(&["/nonexistent/sh", "/etc/passwd/sh", "/bin/sh"]),
            arguments: strings(&["sh", "-c", script]),
            environment: strings(&["PATH=/usr/bin:/bin", "A=1"]),
            folder: CString::new("/usr").unwrap(),
            user: None,
            cgroups: Vec::new(),
        }
    }

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    fn printed(launch: &Launch) -> String {
        let SpawnedProcess { pid, stdout, .. } = spawn(launch, &null()).unwrap();
        let mut text = String::new();
        File::from(stdout).read_to_string(&mut text).unwrap();
        waitpid(pid, None).unwrap();
        text
    }

    #[test]
    fn a_program_inherits_only_what_it_should() {
        let script = "pwd; echo $A; echo $0; ls /proc/self/fd | wc -l; cat; \
                      test $(ps -o pgid= -p $$) = $$ && echo leads";
        // `ls` itself opens one more.
        assert_eq!(printed(&shell(script)), "/usr\n1\nsh\n4\nleads\n");
    }

    #[test]
    fn signals_are_reset() {
        // The thread blocks one signal, and the process ignores another: Rust ignores SIGPIPE.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
        let text = printed(&shell("grep -E '^Sig(Blk|Ign)' /proc/self/status"));
        let now = SigSet::thread_get_mask().unwrap();
        before.thread_set_mask().unwrap();
        let mask = |line: &str| u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap();
        // Without the real-time signals, because the C library reserves some of them.
        let masks: Vec<_> = text.lines().map(|line| mask(line) & 0x7fff_ffff).collect();
        assert_eq!(masks, [0, 0], "{text}");
        assert!(now.contains(Signal::SIGUSR1) && !now.contains(Signal::SIGUSR2));
    }

    #[test]
    fn a_failed_start_names_the_step_and_leaves_no_child() {
        let nothing = || Launch { files: strings(&["/nonexistent", "/etc/passwd"]), ..shell("") };
        for (launch, step, errno) in [
            (nothing(), SpawnStep::Exec, Errno::EACCES),
            (
                Launch { files: strings(&["/nonexistent"]), ..shell("") },
                SpawnStep::Exec,
                Errno::ENOENT,
            ),
            (
                Launch { folder: CString::new("/nonexistent").unwrap(), ..shell("") },
                SpawnStep::Folder,
                Errno::ENOENT,
            ),
            (
                Launch {
                    cgroups: vec![CgroupJoin::Write(File::create("/dev/full").unwrap())],
                    ..shell("")
                },
                SpawnStep::Cgroup,
                Errno::ENOSPC,
            ),
        ] {
            assert_eq!(spawn(&launch, &null()).unwrap_err(), SpawnError { step, errno });
        }
    }

    #[test]
    fn another_user_has_its_own_groups_and_no_other_rights() {
        let user = Some(Credentials::new(64_321, 64_322, &[64_323]));
        let launch = |script: &str| Launch { user: user.clone(), ..shell(script) };
        if !nix::unistd::geteuid().is_root() {
            let error = spawn(&launch(""), &null()).unwrap_err();
            assert_eq!(error, SpawnError { step: SpawnStep::User, errno: Errno::EPERM });
            return;
        }
        let script = "grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs)' /proc/self/status";
        let expected = "Uid:\t64321\t64321\t64321\t64321\nGid:\t64322\t64322\t64322\t64322\n\
                        Groups:\t64323 \nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
        assert_eq!(printed(&launch(script)), expected);
        // This process has not changed its user.
        assert!(nix::unistd::getuid().is_root() && nix::unistd::geteuid().is_root());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let closed = tempfile::Builder::new().permissions(mode).tempdir().unwrap();
        let folder = CString::new(closed.path().to_str().unwrap()).unwrap();
        let error = spawn(&Launch { folder, ..launch("") }, &null()).unwrap_err();
        assert_eq!(error, SpawnError { step: SpawnStep::Folder, errno: Errno::EACCES });
    }
}
