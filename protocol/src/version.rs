//! Which version of the protocol two peers speak: the highest that is in the ranges of both.
//!
//! `PROTOCOL.md` has the rules ("Versions").

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, ErrorReply};
use crate::limits::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};

/// The versions of the protocol that a peer speaks: all from `oldest` to `newest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest of them.
    pub oldest: u16,
    /// The newest of them.
    pub newest: u16,
}

impl VersionRange {
    /// The versions that this build speaks.
    pub const SPOKEN: Self = Self { oldest: PROTOCOL_VERSION_OLDEST, newest: PROTOCOL_VERSION };

    /// Returns the range of a peer from what it sends: its newest version, and its oldest one. A
    /// peer that does not send the oldest one speaks only the newest.
    pub fn sent(version: u16, version_oldest: Option<u16>) -> Self {
        Self { oldest: version_oldest.unwrap_or(version), newest: version }
    }

    /// Returns whether a version is in the range.
    pub fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Returns the highest version that is in both ranges.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// A peer and a manager that have no version of the protocol in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{peer} speaks {theirs} of the protocol, and the manager speaks {manager}: upgrade podmesh on the machine of {}",
    if theirs.newest < manager.newest { peer } else { "the manager" }
)]
pub struct NoCommonVersion {
    /// What the peer is, for people: `the agent`, `this client` …
    pub peer: &'static str,
    /// The versions that the peer speaks.
    pub theirs: VersionRange,
    /// The versions that the manager speaks.
    pub manager: VersionRange,
}

impl From<NoCommonVersion> for ErrorReply {
    fn from(error: NoCommonVersion) -> Self {
        let reply = Self::new(ErrorCode::UnsupportedVersion, error.to_string());
        Self { versions: Some(error.manager), ..reply }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(oldest: u16, newest: u16) -> VersionRange {
        VersionRange { oldest, newest }
    }

    #[test]
    fn the_highest_common_version_is_used() {
        for (a, b, common) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 2), range(1, 1), Some(1)),
            (range(1, 4), range(2, 3), Some(3)),
            (range(1, 3), range(2, 4), Some(3)),
            (range(1, 1), range(2, 3), None),
            // A range that is upside down has no version.
            (range(1, 9), range(5, 3), None),
        ] {
            assert_eq!((a.common(b), b.common(a)), (common, common), "{a} and {b}");
        }
        assert_eq!(VersionRange::sent(3, Some(2)), range(2, 3));
        assert_eq!(VersionRange::sent(3, None), range(3, 3));
        assert!(range(2, 3).contains(2) && range(2, 3).contains(3));
        assert!(!range(2, 3).contains(1) && !range(2, 3).contains(4));
    }

    #[test]
    fn an_error_names_both_ranges_and_the_side_to_upgrade() {
        let error = |theirs, manager| NoCommonVersion { peer: "the agent", theirs, manager };
        assert_eq!(
            error(range(1, 1), range(2, 3)).to_string(),
            "the agent speaks version 1 of the protocol, and the manager speaks versions 2 to 3: upgrade podmesh on the machine of the agent"
        );
        let reply = ErrorReply::from(error(range(4, 5), range(2, 3)));
        assert!(reply.message.ends_with("machine of the manager"), "{reply}");
        assert_eq!(
            (reply.code, reply.versions),
            (ErrorCode::UnsupportedVersion, Some(range(2, 3)))
        );
    }
}
