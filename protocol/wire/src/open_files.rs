//! The limit of open files: connections and attempts take some each.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More is of no use here, and some programs close every number up to the limit.
const WANTED: u64 = 65_536;

/// Raises this process's limit as far as it may, up to 65,536; the usual one of 1024 is for
/// programs that use select(2). Where that does not go, a warning is logged.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = WANTED.min(hard);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// How many files this process may have open.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}
