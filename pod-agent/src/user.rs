//! The user that commands run as: an agent that runs as root does not run commands as root.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Uid, User, getgrouplist};
use podmesh_wire::enrolment;
use podmesh_wire::manager_keys;
use serde::{Deserialize, Serialize};

/// The user that an agent running as root creates for commands, unless its owner names another one.
pub const PROCESS_USER: &str = "podmesh-task";

/// Maximum number of tries to create the user, because another program may hold the lock of the
/// user database.
const TRIES: u32 = 50;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// A user that commands run as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessUser {
    /// Its name.
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its supplementary groups, from the group database. They do not include the agent's groups.
    pub(crate) groups: Vec<u32>,
    /// Its home folder, if that exists.
    pub(crate) home: Option<PathBuf>,
}

/// Why commands cannot run as a user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessUserError {
    /// There is no such user.
    #[error(
        "process_user: this machine has no user `{name}`; create it, for example with \
         `useradd --system {name}`, or name another user in agent.toml"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// The user is root under another name.
    #[error(
        "process_user: `{name}` has the user id 0, so it is root; name another user in agent.toml, \
         or write process_user = \"root\" if every user of the cluster may be root on this machine"
    )]
    IsRoot {
        /// The name.
        name: String,
    },
    /// The agent cannot change users.
    #[error(
        "process_user: this agent runs as {own}, and only root can start commands as another user; \
         remove process_user from agent.toml, or run the agent as root"
    )]
    AgentIsNotRoot {
        /// The agent's user.
        own: String,
    },
    /// Commands could read a key, because the user owns it.
    #[error(
        "process_user: {name} owns {}, so commands could act as the manager or the agent; name \
         another user in agent.toml", path.display()
    )]
    OwnsKey {
        /// The name.
        name: String,
        /// The key.
        path: PathBuf,
    },
    /// The default user could not be created.
    #[error(
        "cannot create the user {PROCESS_USER}, which runs the commands of tasks: {why}; create it \
         (`useradd --system {PROCESS_USER}`), or name another user with process_user in agent.toml, \
         and restart the agent"
    )]
    NotMade {
        /// The message of the system.
        why: String,
    },
    /// The user cannot be looked up.
    #[error("cannot look up the user `{name}`: {source}")]
    LookUp {
        /// The name.
        name: String,
        /// The reason.
        source: Errno,
    },
}

/// Returns the user that commands run as, or `None` if they run as the agent's user. `asked` is the
/// user that the node's owner configured, if any. `folders` may contain keys. Creates the default
/// user if it is missing. Blocks.
///
/// # Errors
/// If there is no such user, or commands that run as it could read a key.
pub(crate) fn process_user(
    asked: Option<&str>,
    folders: &[&Path],
) -> Result<Option<ProcessUser>, ProcessUserError> {
    let own = Uid::effective();
    if !own.is_root() {
        let name = User::from_uid(own).ok().flatten().map(|user| user.name);
        return match asked {
            Some(asked) if name.as_deref() != Some(asked) => {
                let own = name.unwrap_or_else(|| format!("user {own}"));
                Err(ProcessUserError::AgentIsNotRoot { own })
            }
            _ => Ok(None),
        };
    }
    let user = match asked {
        Some("root") => return Ok(None),
        Some(name) => {
            look_up(name)?.ok_or_else(|| ProcessUserError::Unknown { name: name.to_owned() })?
        }
        None => default_user()?,
    };
    if user.uid.is_root() {
        return Err(ProcessUserError::IsRoot { name: user.name });
    }
    // A key that other users can read is never used, see `KeyPair::load`, so only the owner
    // matters.
    let key = keys(folders).find(|key| {
        std::fs::metadata(key).is_ok_and(|metadata| metadata.uid() == user.uid.as_raw())
    });
    if let Some(path) = key {
        return Err(ProcessUserError::OwnsKey { name: user.name, path });
    }
    let failed = |source| ProcessUserError::LookUp { name: user.name.clone(), source };
    let name = CString::new(user.name.as_str()).map_err(|_| failed(Errno::EINVAL))?;
    let groups = getgrouplist(&name, user.gid).map_err(failed)?;
    Ok(Some(ProcessUser {
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: Some(user.dir).filter(|dir| dir.is_dir()),
        name: user.name,
    }))
}

fn keys(folders: &[&Path]) -> impl Iterator<Item = PathBuf> {
    let names = [enrolment::KEY_FILE, manager_keys::KEY_FILE];
    folders.iter().flat_map(move |folder| names.map(|name| folder.join(name)))
}

fn look_up(name: &str) -> Result<Option<User>, ProcessUserError> {
    let failed = |source| ProcessUserError::LookUp { name: name.to_owned(), source };
    User::from_name(name).map_err(failed)
}

fn default_user() -> Result<User, ProcessUserError> {
    let mut why = String::new();
    for _ in 0..TRIES {
        if let Some(user) = look_up(PROCESS_USER)? {
            return Ok(user);
        }
        match make_user() {
            Ok(()) => tracing::info!("created the user {PROCESS_USER}, which runs commands"),
            // Another agent may be creating it at the same time.
            Err(error) => {
                why = error;
                sleep(PAUSE);
            }
        }
    }
    Err(ProcessUserError::NotMade { why })
}

fn make_user() -> Result<(), String> {
    let output = Command::new("useradd")
        .args(["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"])
        .args(["--shell", "/usr/sbin/nologin", "--comment", "commands of podmesh", PROCESS_USER])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| format!("useradd: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn is_root() -> bool {
        Uid::effective().is_root()
    }

    fn refused(asked: &str, folders: &[&Path]) -> String {
        process_user(Some(asked), folders).unwrap_err().to_string()
    }

    #[test]
    fn root_is_not_the_default_user() {
        match process_user(None, &[]).unwrap() {
            None => assert!(!is_root()),
            Some(user) => {
                assert!(is_root() && user.uid != 0 && user.gid != 0);
                assert_eq!((user.name.as_str(), &user.home), (PROCESS_USER, &None));
                assert_eq!(user.groups, [user.gid]);
            }
        }
    }

    #[test]
    fn the_configured_user_is_checked() {
        if !is_root() {
            assert!(refused("root", &[]).contains("only root"));
            return;
        }
        assert_eq!(process_user(Some("root"), &[]).unwrap(), None);
        assert!(refused("no-such-user", &[]).contains("useradd --system no-such-user"));
        let nobody = process_user(Some("nobody"), &[]).unwrap().unwrap();
        assert_eq!(nobody.uid, User::from_name("nobody").unwrap().unwrap().uid.as_raw());
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "").unwrap();
        assert!(process_user(Some("nobody"), &[folder.path()]).is_ok());
        std::os::unix::fs::chown(&key, Some(nobody.uid), None).unwrap();
        assert!(refused("nobody", &[folder.path()]).contains(key.to_str().unwrap()));
    }
}
