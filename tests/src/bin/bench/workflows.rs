//! Jobs that wait for other jobs: a chain, and a fan.

use std::time::Instant;

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_protocol::workflow::{
    Condition, Dependency, PackedWorkflow, WorkflowJob, WorkflowReply, WorkflowRequest,
    WorkflowSpec,
};

use crate::rig::{Rig, job};
use crate::table::Table;

/// Jobs of the chain.
const CHAIN: usize = 10_000;
/// Jobs between the first and the last one of the fan.
const FAN: usize = 1_000;
const FLAGS: [&str; 5] = ["--enable-noop", "--cpus", "1000", "--docker", "off"];

pub(crate) fn measure(table: &mut Table) {
    let rig = Rig::new(&["a", "b"], &FLAGS);
    let (accepted, took) = run(&rig, chain());
    table.figure(
        "workflow of 10,000 jobs: to its number, in seconds",
        format!("{accepted:.2} s"),
        "",
    );
    #[expect(clippy::cast_precision_loss, reason = "jobs are fewer than 2^52")]
    let rate = CHAIN as f64 / took;
    table.figure("jobs/s, chain of 10,000 no-op jobs", format!("{rate:.0}/s"), "1,000/s");
    let (_, took) = run(&rig, fan());
    table.figure("1,000 jobs after one, and one after them", format!("{took:.2} s"), "1 s");
}

fn name(at: usize) -> Name {
    format!("j{at}").parse().unwrap()
}

fn workflow(jobs: usize, after: impl Fn(usize) -> Vec<usize>) -> WorkflowSpec {
    let jobs = (0..jobs).map(|at| {
        let mut spec = job(RuntimeSpec::Noop, &[], 1);
        spec.name = name(at);
        let after = after(at).into_iter();
        let after = after.map(|job| Dependency { job: name(job), when: Condition::Succeeded });
        WorkflowJob { spec, after: after.collect() }
    });
    WorkflowSpec { name: "bench".parse().unwrap(), jobs: jobs.collect() }
}

fn chain() -> WorkflowSpec {
    workflow(CHAIN, |at| at.checked_sub(1).into_iter().collect())
}

fn fan() -> WorkflowSpec {
    let last = FAN + 1;
    workflow(last + 1, |at| match at {
        0 => Vec::new(),
        at if at == last => (1..last).collect(),
        _ => vec![0],
    })
}

/// Runs a workflow. Returns the seconds until it was accepted, and until its last job has ended.
fn run(rig: &Rig, spec: WorkflowSpec) -> (f64, f64) {
    let jobs = spec.jobs.len() as u64;
    // The last one in the order of numbers is the last one to end.
    let workflow = PackedWorkflow::pack(&spec).unwrap();
    let submission = SubmissionId(uuid::Uuid::now_v7());
    let start = Instant::now();
    let request = WorkflowRequest::Submit { submission, workflow };
    let ReplyBody::Workflow(WorkflowReply::Submitted { workflow, .. }) =
        rig.ask(RequestBody::Workflow(request))
    else {
        panic!("no workflow")
    };
    let accepted = start.elapsed().as_secs_f64();
    rig.wait(JobId(workflow.0 + jobs - 1));
    (accepted, start.elapsed().as_secs_f64())
}
