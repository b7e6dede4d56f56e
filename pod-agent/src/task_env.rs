//! The environment variables that podmesh sets for every task, in any runtime. They override the
//! job's own.

use podmesh_protocol::ids::{AttemptId, Name};

/// Returns the `PODMESH_…` variables of an attempt.
pub(crate) fn task_env(
    attempt: AttemptId,
    job_name: &Name,
    node: &Name,
) -> [(&'static str, String); 6] {
    [
        ("PODMESH_JOB", attempt.task.job.to_string()),
        ("PODMESH_JOB_NAME", job_name.to_string()),
        ("PODMESH_TASK", attempt.task.to_string()),
        ("PODMESH_TASK_INDEX", attempt.task.index.to_string()),
        ("PODMESH_ATTEMPT", attempt.number.to_string()),
        ("PODMESH_NODE", node.to_string()),
    ]
}
