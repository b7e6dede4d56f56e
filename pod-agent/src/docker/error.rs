//! Errors of the engine, and exit codes for failed starts.

use std::time::Duration;

use bollard::errors::Error as Bollard;
use podmesh_wire::chain;

/// Why the Docker runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// There is no engine, or this user may not use it.
    #[error("no Docker engine answers at {address}: {why}; {advice}")]
    NoEngine {
        /// The engine's address.
        address: String,
        /// What happened.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// The engine is too old to be used safely.
    #[error(
        "Docker {version} is too old: the minimum is 20.10.13; update it, or remove `docker` from \
         the runtimes in agent.toml"
    )]
    TooOld {
        /// Its version.
        version: String,
    },
    /// A call that the agent cannot go on without failed.
    #[error(
        "the Docker engine failed to {doing}: {why}; check its log (`journalctl -u docker`), then restart the agent"
    )]
    Call {
        /// What the call was to do, such as `list the containers`.
        doing: &'static str,
        /// What happened.
        why: String,
    },
}

/// Error of a call to the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The engine refused the call.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// No answer, or an invalid one. The result of the call is unknown.
    #[error("the Docker engine does not answer: {0}")]
    NoAnswer(String),
}

impl CallError {
    pub(super) fn late(after: Duration) -> Self {
        Self::NoAnswer(format!("no answer for {} s", after.as_secs()))
    }

    /// Returns whether the container or image does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    pub(super) fn is_no_such_image(&self) -> bool {
        matches!(self, Self::Refused { status: 404, message } if message.to_ascii_lowercase().contains("no such image"))
    }

    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    pub(super) fn is_no_answer(&self) -> bool {
        matches!(self, Self::NoAnswer(_))
    }
}

impl From<Bollard> for CallError {
    fn from(error: Bollard) -> Self {
        match error {
            Bollard::DockerResponseServerError { status_code, message } => {
                Self::Refused { status: status_code, message: message.trim().to_owned() }
            }
            Bollard::DockerStreamError { error } => {
                Self::Refused { status: 500, message: error.trim().to_owned() }
            }
            other => Self::NoAnswer(chain(&other)),
        }
    }
}

/// Returns the exit code of `docker run` for a start that the engine refused with `message`.
pub(super) fn start_error_code(message: &str) -> i32 {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&["executable file not found", "no such file or directory"]) {
        127
    } else if says(&["permission denied", "is a directory"]) {
        126
    } else {
        125
    }
}

/// Returns whether a start was refused because a port cannot be published on the node.
pub(super) fn is_about_ports(message: &str) -> bool {
    let says = [
        "port is already allocated",
        "address already in use",
        // The node has lost the address.
        "cannot assign requested address",
    ];
    says.iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_errors_have_the_codes_of_docker_run() {
        let oci = "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: ";
        for (text, code) in [
            ("\"nosuch\": executable file not found in $PATH: unknown", 127),
            ("\"/nosuch\": stat /nosuch: no such file or directory: unknown", 127),
            ("\"/etc/passwd\": permission denied: unknown", 126),
            ("\"/etc\": is a directory: unknown", 126),
            ("cannot allocate memory", 125),
        ] {
            assert_eq!(start_error_code(&format!("{oci}{text}")), code, "{text}");
        }
    }

    #[test]
    fn only_a_missing_image_is_pulled() {
        let refused =
            |status, message: &str| CallError::Refused { status, message: message.into() };
        assert!(refused(404, "No such image: busybox:latest").is_no_such_image());
        assert!(!refused(404, "network x not found").is_no_such_image());
        assert!(!refused(409, "No such image").is_no_such_image());
    }
}
