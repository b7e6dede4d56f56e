//! Where the files of an attempt lie.

use std::path::{Path, PathBuf};

use podmesh_protocol::ids::AttemptId;

/// The folder with the output of an attempt: `<logs>/<job>/<task>/<attempt>`. Made by the first
/// byte that the attempt prints.
pub(crate) fn attempt_log_dir(logs_dir: &Path, attempt: AttemptId) -> PathBuf {
    logs_dir
        .join(attempt.task.job.to_string())
        .join(attempt.task.index.to_string())
        .join(attempt.number.to_string())
}
