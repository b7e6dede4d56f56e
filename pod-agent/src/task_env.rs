//! The environment variables that podmesh sets for every task, in any runtime. They override the
//! job's own.

use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::{AttemptId, Name};

/// Returns the `PODMESH_…` variables of an attempt.
pub(crate) fn task_env(
    attempt: AttemptId,
    context: &JobContext,
    node: &Name,
) -> impl Iterator<Item = (&'static str, String)> {
    let replica = context.run.replica.as_deref().map(|replica| {
        [
            ("PODMESH_SERVICE", replica.service.to_string()),
            ("PODMESH_REPLICA", replica.number.to_string()),
            ("PODMESH_REVISION", replica.revision.to_string()),
        ]
    });
    [
        ("PODMESH_JOB", attempt.task.job.to_string()),
        ("PODMESH_JOB_NAME", context.name.to_string()),
        ("PODMESH_TASK", attempt.task.to_string()),
        ("PODMESH_TASK_INDEX", attempt.task.index.to_string()),
        ("PODMESH_ATTEMPT", attempt.number.to_string()),
        ("PODMESH_NODE", node.to_string()),
    ]
    .into_iter()
    .chain(replica.into_iter().flatten())
}
