//! Errors of the verbs, as the user reads them.

use std::fmt;
use std::io;

/// The exit code for an invalid command line.
pub(crate) const EXIT_USAGE: u8 = 2;
/// The exit code when what was waited for did not happen in time, as in `timeout`.
pub(crate) const EXIT_TIMED_OUT: u8 = 124;
/// The exit code for a failure of podmesh itself, as in `docker run`.
pub(crate) const EXIT_FAILURE: u8 = 125;
/// The exit code of a verb that the user stopped with Ctrl-C: 128 + SIGINT, as in shells.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// The exit code of `run` when its output is closed: 128 + SIGPIPE, as in shells.
pub(crate) const EXIT_PIPE: u8 = 141;

/// The result of a verb: its exit code, or an error.
pub(crate) type CliResult<T = u8> = Result<T, CliError>;

/// The reason why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A message for the user.
    #[error("{0}")]
    Message(Box<Message>),
    /// Standard output is closed (`| head`): exit without a message.
    #[error("standard output is closed")]
    StdoutClosed,
}

/// What happened, why, and what to do next.
#[derive(Debug)]
pub(crate) struct Message {
    what: String,
    why: Option<String>,
    hint: Option<String>,
    code: u8,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl CliError {
    /// Creates an error for a failure of podmesh itself: exit code 125.
    pub(crate) fn failure(what: impl Into<String>) -> Self {
        Self::message(what, EXIT_FAILURE)
    }

    /// Creates an error for an invalid command line or job file: exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::message(what, EXIT_USAGE)
    }

    fn message(what: impl Into<String>, code: u8) -> Self {
        Self::Message(Box::new(Message { what: what.into(), why: None, hint: None, code }))
    }

    /// Adds the reason.
    #[must_use]
    pub(crate) fn because(mut self, why: impl fmt::Display) -> Self {
        if let Self::Message(message) = &mut self {
            message.why = Some(why.to_string());
        }
        self
    }

    /// Adds a hint about what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Message(message) = &mut self {
            message.hint = Some(hint.into());
        }
        self
    }

    /// Sets another exit code.
    #[must_use]
    pub(crate) fn code(mut self, code: u8) -> Self {
        if let Self::Message(message) = &mut self {
            message.code = code;
        }
        self
    }

    /// Converts an error of writing to standard output.
    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::StdoutClosed
        } else {
            Self::failure("writing to standard output failed").because(error)
        }
    }

    /// Returns the hint, if there is one.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        match self {
            Self::Message(message) => message.hint.as_deref(),
            Self::StdoutClosed => None,
        }
    }

    /// Returns the exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Message(message) => message.code,
            Self::StdoutClosed => 0,
        }
    }
}
