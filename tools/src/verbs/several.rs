//! Verbs that ask for several things: one that the manager refuses does not keep the others from it.

use crate::connect::RequestError;
use crate::error::{CliError, CliResult, EXIT_FAILURE};
use crate::output::screen;

/// How several requests have gone.
#[derive(Debug, Default)]
pub(crate) struct Several {
    code: u8,
}

impl Several {
    /// Returns what a request has come to; `None` if it was refused, which is said.
    ///
    /// # Errors
    /// If the manager could not be asked: then the next request would fail too.
    pub(crate) fn note<T>(&mut self, result: Result<T, RequestError>) -> CliResult<Option<T>> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(error @ RequestError::Refused(_)) => {
                self.fail(&error.into());
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says why one of them has failed.
    pub(crate) fn fail(&mut self, error: &CliError) {
        screen::say_error(error);
        self.code = EXIT_FAILURE;
    }

    /// Returns the exit code: that of a failure if one of them has failed.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::error::{ErrorCode, ErrorReply};

    use super::*;

    #[test]
    fn a_refused_request_does_not_keep_the_others_from_being_made_and_fails_in_the_end() {
        let mut several = Several::default();
        assert_eq!(several.note(Ok(1)).unwrap(), Some(1));
        assert_eq!(several.code(), 0);
        let refused = ErrorReply::new(ErrorCode::NotFound, "there is no node `b`");
        assert_eq!(several.note::<u8>(Err(RequestError::Refused(refused))).unwrap(), None);
        assert_eq!(several.note(Ok(3)).unwrap(), Some(3));
        assert_eq!(several.code(), EXIT_FAILURE);
    }

    #[test]
    fn a_manager_that_cannot_be_asked_ends_it() {
        let failed = RequestError::Failed(CliError::failure("no answer"));
        assert!(Several::default().note::<u8>(Err(failed)).is_err());
    }
}
