//! From a job's spec to a command of the operating system.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::Name;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::RunSpec;

use super::mark::{AGENT_VARIABLE, Mark};
use crate::task_env::task_env;

/// What tasks inherit of the agent's own environment.
const INHERITED: [&str; 4] = ["PATH", "HOME", "USER", "LANG"];
/// Where programs are searched when neither the job nor the agent has a `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment that the agent was started with, as far as tasks inherit it.
#[derive(Clone, Debug)]
pub(crate) struct BaseEnv(pub(crate) Vec<(String, OsString)>);

impl BaseEnv {
    /// Reads it.
    pub(crate) fn of_this_process() -> Self {
        let inherited = INHERITED.iter().map(|name| {
            let default = || (*name == "PATH").then(|| PATH_DEFAULT.into());
            Some(((*name).to_owned(), std::env::var_os(name).or_else(default)?))
        });
        Self(inherited.flatten().collect())
    }

    fn path(&self) -> OsString {
        let path = self.0.iter().find(|(name, _)| name == "PATH");
        path.map_or_else(|| PATH_DEFAULT.into(), |(_, value)| value.clone())
    }
}

/// Makes the command of an attempt.
///
/// # Errors
/// The outcome of an attempt that cannot be started.
pub(super) fn command(
    base: &BaseEnv,
    context: &JobContext,
    mark: Mark,
    node: &Name,
    work_folder: &Path,
) -> Result<Command, Outcome> {
    let run = &context.run;
    let folder = run.workdir.as_ref().map_or(work_folder, Path::new);
    if run.workdir.is_some() && !folder.is_dir() {
        let message = format!(
            "the working folder {} is not a folder of this node; make it, or give another workdir",
            folder.display()
        );
        return Err(Outcome::start_failed(125, message));
    }
    let name = run.command.first().map_or("", String::as_str);
    let program = find_program(name, &search_path(base, run), folder)?;
    // An absolute program and a command without hooks before its exec: only so the standard
    // library starts it the fast way.
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(run.command.iter().skip(1))
        .current_dir(folder)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .envs(base.0.iter().map(|(name, value)| (name, value)))
        .envs(&run.env)
        .envs(task_env(mark.attempt, &context.name, node))
        .env(AGENT_VARIABLE, mark.agent.to_string());
    Ok(command)
}

fn search_path(base: &BaseEnv, run: &RunSpec) -> OsString {
    run.env.get("PATH").map_or_else(|| base.path(), OsString::from)
}

/// Finds the file of a program as a shell would.
fn find_program(name: &str, path: &OsString, folder: &Path) -> Result<PathBuf, Outcome> {
    if name.contains('/') {
        let file = folder.join(name);
        return match check(&file) {
            Ok(()) => Ok(file),
            Err(error) => Err(cannot_run(name, error)),
        };
    }
    let mut found = Errno::ENOENT;
    for dir in std::env::split_paths(path) {
        // An empty part of PATH is the working folder.
        let file = folder.join(dir).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(error @ (Errno::EACCES | Errno::EISDIR)) => found = error,
            Err(_) => {}
        }
    }
    if found == Errno::ENOENT {
        let message = format!("command not found: `{name}` is in no folder of PATH on this node");
        return Err(Outcome::start_failed(127, message));
    }
    Err(cannot_run(name, found))
}

fn check(file: &Path) -> Result<(), Errno> {
    access(file, AccessFlags::X_OK)?;
    if file.is_dir() { Err(Errno::EISDIR) } else { Ok(()) }
}

fn cannot_run(name: &str, error: Errno) -> Outcome {
    let (code, why) = match error {
        Errno::ENOENT | Errno::ENOTDIR => (127, "there is no such file on this node"),
        Errno::EACCES => (126, "it is not executable for the user that the agent runs as"),
        Errno::EISDIR => (126, "it is a folder"),
        other => (126, other.desc()),
    };
    Outcome::start_failed(code, format!("cannot run `{name}`: {why}"))
}

/// The outcome of a command that the operating system refused to start.
pub(super) fn refused(name: &str, error: &io::Error) -> Outcome {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let (code, why) = match errno {
        Some(Errno::ENOEXEC) => (
            126,
            "it is neither a program for this machine nor a script that begins with `#!`"
                .to_owned(),
        ),
        Some(Errno::ENOENT) => {
            (126, "the interpreter or loader that it asks for is not on this node".to_owned())
        }
        Some(Errno::EACCES | Errno::EPERM) => {
            (126, format!("{error}; see who may execute it, and whether its disk is noexec"))
        }
        Some(Errno::E2BIG) => {
            (126, "its arguments and environment are larger than this node allows".to_owned())
        }
        Some(Errno::EMFILE | Errno::ENFILE) => (
            125,
            format!("{error}; raise the agent's limit of open files (ulimit -n, LimitNOFILE=)"),
        ),
        Some(Errno::EAGAIN) => (
            125,
            format!("{error}; the node's limit of processes is reached (ulimit -u, TasksMax=)"),
        ),
        _ => (125, error.to_string()),
    };
    Outcome::start_failed(code, format!("cannot start `{name}`: {why}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn find(name: &str, path: &str, folder: &Path) -> Result<PathBuf, (Option<i32>, String)> {
        find_program(name, &path.into(), folder)
            .map_err(|outcome| (outcome.exit_code, outcome.message.unwrap()))
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let run = file("run", 0o755);
        file("data", 0o644);
        fs::create_dir(dir.path().join("folder")).unwrap();
        let path = format!("/nonexistent:{}", dir.path().display());

        assert_eq!(find("run", &path, Path::new("/")), Ok(run.clone()));
        assert_eq!(find("./run", "", dir.path()), Ok(dir.path().join("./run")));
        assert_eq!(find("run", ":/nonexistent", dir.path()), Ok(run.clone()));
        assert_eq!(find(run.to_str().unwrap(), "", Path::new("/")), Ok(run));

        for (name, code, says) in [
            ("missing", 127, "command not found: `missing`"),
            ("/missing/x", 127, "no such file"),
            ("data", 126, "not executable"),
            ("folder", 126, "a folder"),
            (dir.path().to_str().unwrap(), 126, "a folder"),
        ] {
            let (found, message) = find(name, &path, Path::new("/")).unwrap_err();
            assert_eq!(found, Some(code), "{name}");
            assert!(message.contains(says), "{message}");
        }
    }
}
