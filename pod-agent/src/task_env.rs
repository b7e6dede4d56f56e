//! The environment that podmesh gives every task, whatever its runtime. It wins over the job's own.

use podmesh_protocol::ids::{AttemptId, Name};

/// The variables of an attempt: what `PODMESH_…` a task sees, in any runtime.
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
