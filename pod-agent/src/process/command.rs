//! Converts a job's spec to a program to execute.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::RunSpec;

use super::mark::{AGENT_VARIABLE, Mark};
use super::spawn::{Credentials, Launch, SpawnError, SpawnStep};
use super::work::WorkFolder;
use super::{Terms, not_started};
use crate::ports::port_variables;
use crate::task_env::task_env;

/// The variables of the agent's own environment that tasks inherit.
const INHERITED: [&str; 4] = ["PATH", "HOME", "USER", "LANG"];
/// Where programs are searched if neither the job nor the agent has a `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The part of the agent's own environment that tasks inherit.
#[derive(Clone, Debug)]
pub(crate) struct BaseEnv(pub(crate) Vec<(String, OsString)>);

impl BaseEnv {
    /// Reads it from this process.
    pub(crate) fn of_this_process() -> Self {
        let inherited = INHERITED.iter().map(|name| {
            let default = || (*name == "PATH").then(|| PATH_DEFAULT.into());
            Some(((*name).to_owned(), std::env::var_os(name).or_else(default)?))
        });
        Self(inherited.flatten().collect())
    }
}

/// Returns how to start an attempt. `work_folder` is the attempt's own folder. Calls `touch` with
/// each path before accessing that path.
///
/// # Errors
/// The outcome of an attempt that cannot be started, or the error of `touch`.
pub(super) fn launch(
    terms: &Terms,
    context: &JobContext,
    mark: Mark,
    replica: Option<&Replica>,
    work_folder: &WorkFolder,
    touch: &dyn Fn(&Path) -> Result<(), Outcome>,
) -> Result<Launch, Outcome> {
    let run = &context.run;
    let user = terms.user.as_ref();
    let mut variables: BTreeMap<OsString, OsString> =
        terms.base_env.0.iter().map(|(name, value)| (name.into(), value.clone())).collect();
    if let Some(user) = user {
        let home = user.home.as_deref().unwrap_or(&work_folder.path);
        variables.insert("HOME".into(), home.into());
        variables.insert("USER".into(), user.name.clone().into());
    }
    variables.extend(run.env.iter().map(|(name, value)| (name.into(), value.into())));
    let ours = task_env(mark.attempt, context, &terms.node);
    variables.extend(ours.map(|(name, value)| (name.into(), value.into())));
    let ports = replica.into_iter().flat_map(port_variables);
    variables.extend(ports.map(|(name, value)| (name.into(), value.into())));
    variables.insert(AGENT_VARIABLE.into(), mark.agent.to_string().into());

    let folder = folder(run, &work_folder.path);
    touch(folder)?;
    if run.workdir.is_some() {
        // If the folder does not answer, this call hangs, and the touched path is known. If the
        // folder does not exist, the child finds out.
        _ = std::fs::metadata(folder);
    }
    let path = variables.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| PATH_DEFAULT.into());
    let files = existing_files(program(run), &path, folder, touch)?;
    let environment = variables.into_iter().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        variable
    });
    Ok(Launch {
        files: strings(files.into_iter().map(PathBuf::into_os_string))?,
        arguments: strings(run.command.iter().map(OsString::from))?,
        environment: strings(environment)?,
        folder: string(folder.into())?,
        user: user.map(|user| {
            Credentials::new(user.uid, work_folder.group.unwrap_or(user.gid), &user.groups)
        }),
        cgroups: Vec::new(),
    })
}

fn program(run: &RunSpec) -> &str {
    run.command.first().map_or("", String::as_str)
}

fn folder<'a>(run: &'a RunSpec, work_folder: &'a Path) -> &'a Path {
    run.workdir.as_ref().map_or(work_folder, Path::new)
}

pub(super) fn strings(all: impl Iterator<Item = OsString>) -> Result<Vec<CString>, Outcome> {
    all.map(string).collect()
}

fn string(text: OsString) -> Result<CString, Outcome> {
    CString::new(text.into_vec()).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0");
        Outcome::start_failed(
            125,
            format!("arguments and variables cannot contain NUL bytes: {text}"),
        )
    })
}

/// Returns the files that a shell would try, in the same order. Relative paths start at the working
/// folder.
fn files(name: &str, path: &OsStr) -> impl Iterator<Item = PathBuf> {
    let dirs = if name.contains('/') { OsStr::new("") } else { path };
    // An empty part of PATH means the working folder.
    std::env::split_paths(dirs).filter(|_| !name.is_empty()).map(move |dir| {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { &dir };
        if name.starts_with('/') { name.into() } else { dir.join(name) }
    })
}

/// Returns the files to try, beginning with the first one that exists.
pub(super) fn existing_files(
    name: &str,
    path: &OsStr,
    folder: &Path,
    touch: &dyn Fn(&Path) -> Result<(), Outcome>,
) -> Result<Vec<PathBuf>, Outcome> {
    let mut existing = Vec::new();
    for file in files(name, path) {
        if existing.is_empty() {
            let file = folder.join(&file);
            // When PATH is searched, the folder is what may not answer.
            touch(file.parent().filter(|_| !name.contains('/')).unwrap_or(&file))?;
            if let Err(Errno::ENOENT | Errno::ENOTDIR) = access(&file, AccessFlags::F_OK) {
                continue;
            }
            touch(&file)?;
        }
        existing.push(file);
    }
    Ok(existing)
}

/// Returns the outcome of an attempt that was not started. `work_folder` is the attempt's own.
pub(super) fn refused(
    terms: &Terms,
    context: &JobContext,
    launch: &Launch,
    work_folder: &Path,
    error: SpawnError,
) -> Outcome {
    let SpawnError { step, errno } = error;
    let run = &context.run;
    let user = terms.user.as_ref();
    let user = user.map_or_else(|| "the agent's user".to_owned(), |user| user.name.clone());
    let why = errno.desc();
    match step {
        SpawnStep::Fork => {
            let advice = match errno {
                Errno::EMFILE | Errno::ENFILE => {
                    "; raise the agent's limit of open files (ulimit -n, LimitNOFILE=)"
                }
                Errno::EAGAIN => {
                    "; the node's limit of processes is reached (ulimit -u, TasksMax=)"
                }
                _ => "",
            };
            Outcome::start_failed(125, format!("cannot start a process: {why}{advice}"))
        }
        SpawnStep::Cgroup => {
            not_started(terms, &format!("cannot put a process in its cgroup: {why}"))
        }
        SpawnStep::User => not_started(terms, &format!("cannot start a process as {user}: {why}")),
        SpawnStep::Folder => {
            let folder = folder(run, work_folder).display();
            if run.workdir.is_none() {
                return not_started(terms, &format!("{user} cannot enter {folder}: {why}"));
            }
            let message = format!(
                "{user} cannot enter the working folder {folder} on this node: {why}; create it, or choose another workdir"
            );
            Outcome::start_failed(125, message)
        }
        SpawnStep::Exec => {
            let existing = existing_file(launch, folder(run, work_folder));
            let (code, why) = not_executed(program(run), errno, existing.as_deref(), &user);
            Outcome::start_failed(code, format!("cannot run `{}`: {why}", program(run)))
        }
    }
}

/// Returns the first file that was tried, if it exists.
fn existing_file(launch: &Launch, folder: &Path) -> Option<PathBuf> {
    let file = folder.join(OsStr::from_bytes(launch.files.first()?.to_bytes()));
    file.exists().then_some(file)
}

/// Returns the exit code and the reason for a program that was not executed. `file` is its file, if
/// that exists.
pub(super) fn not_executed(
    name: &str,
    errno: Errno,
    file: Option<&Path>,
    user: &str,
) -> (i32, String) {
    let why = match (errno, file) {
        (Errno::ENOENT, None) if name.contains('/') => {
            return (127, "this file does not exist on this node".to_owned());
        }
        (Errno::ENOENT, None) => {
            return (127, "command not found: it is in no folder of PATH on this node".to_owned());
        }
        (Errno::ENOENT, Some(_)) => "its interpreter or loader is not on this node",
        (Errno::EACCES | Errno::EPERM, Some(file)) if file.is_dir() => "it is a folder",
        (Errno::EACCES | Errno::EPERM, _) => {
            let why = format!("it is not executable for {user}, or its disk is mounted noexec");
            return (126, why);
        }
        (Errno::ENOEXEC, _) => {
            "it is neither a program for this machine nor a script that begins with `#!`"
        }
        (Errno::E2BIG, _) => "its arguments and environment are larger than this node allows",
        (Errno::EAGAIN, _) => {
            "its user has as many processes as this node allows (ulimit -u, LimitNPROC=)"
        }
        (other, _) => other.desc(),
    };
    (126, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(name: &str, path: &str) -> Vec<PathBuf> {
        files(name, OsStr::new(path)).collect()
    }

    #[test]
    fn files_are_tried_as_a_shell_tries_them() {
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(tried("run", "/a:/b/c"), paths(&["/a/run", "/b/c/run"]));
        assert_eq!(tried("run", ":/b:d"), paths(&["./run", "/b/run", "d/run"]));
        assert_eq!(tried("./run", "/a"), paths(&["././run"]));
        assert_eq!(tried("sub/run", "/a:/b"), paths(&["./sub/run"]));
        assert_eq!(tried("/x/run", "/a:/b"), paths(&["/x/run"]));
        assert_eq!(tried("", "/a"), paths(&[]));
    }
}
