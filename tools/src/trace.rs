//! The trace that a job belongs to.

use std::ffi::OsString;

use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::trace::{TRACEPARENT, TraceParent};

use crate::output::screen::say;

/// Makes a job a part of a trace: the one of `given`, else the one that the job's own environment
/// has, else `inherited`, which is the variable of this process.
pub(crate) fn join(spec: &mut JobSpec, given: Option<TraceParent>, inherited: Option<OsString>) {
    let env = &mut spec.run.env;
    let inherited = inherited.filter(|_| given.is_none() && !env.contains_key(TRACEPARENT));
    let parent = match inherited.map(|text| text.to_string_lossy().parse::<TraceParent>()) {
        None => given,
        Some(Ok(parent)) => Some(parent),
        Some(Err(why)) => {
            say(format!("the variable {TRACEPARENT} is ignored: {why}"));
            None
        }
    };
    if let Some(parent) = parent {
        env.insert(TRACEPARENT.into(), parent.to_string());
    }
}
