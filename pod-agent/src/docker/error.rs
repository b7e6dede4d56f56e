//! What can go wrong with the engine, and what a failed start means.

use std::time::Duration;

use bollard::errors::Error as Bollard;

/// Why the Docker runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// There is no engine, or it may not be used.
    #[error("no Docker engine answers at {address}: {why}; {advice}")]
    NoEngine {
        /// Where it was looked for.
        address: String,
        /// What happened.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// The engine cannot be used safely.
    #[error(
        "Docker {version} is too old: 20.10.13 is the least; update it, or take `docker` out of \
         the runtimes in agent.toml"
    )]
    TooOld {
        /// Its version.
        version: String,
    },
    /// The engine did not do what the agent needs to go on.
    #[error(
        "the Docker engine did not {doing}: {why}; look at its log (`journalctl -u docker`), then start the agent again"
    )]
    Call {
        /// What was asked of it.
        doing: &'static str,
        /// What happened.
        why: String,
    },
}

/// How a call to the engine failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The engine said no.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// No answer, or none that makes sense: what came of the call is not known.
    #[error("the Docker engine does not answer: {0}")]
    NoAnswer(String),
}

impl CallError {
    pub(super) fn late(after: Duration) -> Self {
        Self::NoAnswer(format!("nothing for {} s", after.as_secs()))
    }

    /// What was asked about is not there.
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

/// The error with all its causes; the outermost ones alone say little ("client error").
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// The exit code that `docker run` gives for a start that the engine refused with `message`.
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
