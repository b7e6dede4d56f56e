//! Why a verb did not do what was asked, as the user reads it.

use std::fmt;
use std::io;

/// Exit code of a command line that cannot be understood.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code of a failure of podmesh itself, as `docker run` has it.
pub(crate) const EXIT_FAILURE: u8 = 125;
/// Exit code of a verb that the user left with Ctrl-C: 128 + SIGINT, as shells have it.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// Exit code of `run` when nobody reads its output any more: 128 + SIGPIPE, as shells have it.
pub(crate) const EXIT_PIPE: u8 = 141;

/// What a verb returns: the exit code, or why there is none.
pub(crate) type Outcome<T = u8> = Result<T, CliError>;

/// The end of a verb that did not go as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Something to tell the user.
    #[error("{0}")]
    Told(Box<Told>),
    /// Nobody reads the output any more (`| head`): end without a word.
    #[error("standard output is closed")]
    StdoutClosed,
}

/// What happened, why, and what to do next.
#[derive(Debug)]
pub(crate) struct Told {
    what: String,
    why: Option<String>,
    hint: Option<String>,
    code: u8,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl CliError {
    /// A failure of podmesh: exit code 125.
    pub(crate) fn failure(what: impl Into<String>) -> Self {
        Self::told(what, EXIT_FAILURE)
    }

    /// A command line or job file that cannot be understood: exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::told(what, EXIT_USAGE)
    }

    fn told(what: impl Into<String>, code: u8) -> Self {
        Self::Told(Box::new(Told { what: what.into(), why: None, hint: None, code }))
    }

    /// The same with the reason.
    #[must_use]
    pub(crate) fn because(mut self, why: impl fmt::Display) -> Self {
        if let Self::Told(told) = &mut self {
            told.why = Some(why.to_string());
        }
        self
    }

    /// The same with what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.hint = Some(hint.into());
        }
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub(crate) fn code(mut self, code: u8) -> Self {
        if let Self::Told(told) = &mut self {
            told.code = code;
        }
        self
    }

    /// What writing to standard output failed with.
    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::StdoutClosed
        } else {
            Self::failure("writing to standard output failed").because(error)
        }
    }

    /// What to do next, where that is known.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        match self {
            Self::Told(told) => told.hint.as_deref(),
            Self::StdoutClosed => None,
        }
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Told(told) => told.code,
            Self::StdoutClosed => 0,
        }
    }
}
