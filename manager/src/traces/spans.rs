//! Spans of committed events.
//!
//! A job is a span from its submission to its end. Below it, each attempt has up to three spans, one
//! after the other: `queued`, until a node gets it; `starting`, until the node reports its start;
//! `running`, until its end. The ids follow from the cluster and from what the span is about, so
//! that a manager that starts again goes on with the same spans.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use podmesh_metrics::OUTCOMES;
use podmesh_protocol::client::JobDetail;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, ClusterId, JobId, Revision, TaskId};
use podmesh_protocol::report::{JobState, OutcomeKind, ShownOutcome};
use podmesh_protocol::trace::{TRACEPARENT, TraceParent};
use podmesh_wire::key::sha256;

use crate::metrics::{JOB_ENDS, job_end};

/// Jobs and attempts that are under way at a time; there are no spans of more.
const OPEN_MAX: usize = 100_000;

/// What one event makes.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) spans: Vec<SpanData>,
    /// How many spans are not made, because too much is under way.
    pub(super) dropped: usize,
}

impl From<SpanData> for Made {
    fn from(span: SpanData) -> Self {
        Self { spans: vec![span], dropped: 0 }
    }
}

/// A job that has not ended.
struct OpenJob {
    trace: TraceId,
    span: SpanId,
    /// The span of who submitted it; not valid if there is none.
    parent: SpanId,
    sampled: bool,
    name: String,
    tasks: u64,
    start_ms: u64,
    /// When its tasks could start.
    ready_ms: u64,
    /// The same of tasks that are tried again.
    retries: HashMap<TaskId, u64>,
    attempts: HashMap<AttemptId, OpenAttempt>,
}

/// An attempt that has not ended.
struct OpenAttempt {
    node: String,
    assigned_ms: u64,
    started_ms: Option<u64>,
}

/// What is under way.
pub(super) struct Tracer {
    cluster: ClusterId,
    jobs: HashMap<JobId, OpenJob>,
    /// Jobs, attempts and retries.
    open: usize,
}

impl Tracer {
    pub(super) fn new(cluster: ClusterId) -> Self {
        Self { cluster, jobs: HashMap::new(), open: 0 }
    }

    /// Returns the job that must be opened before this event is observed.
    pub(super) fn unknown_job(&self, fact: &EventFact) -> Option<JobId> {
        match fact {
            EventFact::JobRequeued { .. }
            | EventFact::JobEnded { .. }
            | EventFact::AttemptAssigned { .. }
            | EventFact::AttemptStarted { .. }
            | EventFact::AttemptEnded { .. } => {}
            // A job that waits takes no room.
            _ => return None,
        }
        fact.job().filter(|job| !self.jobs.contains_key(job) && self.open < OPEN_MAX)
    }

    /// Opens a job.
    pub(super) fn open(&mut self, detail: &JobDetail) {
        let JobDetail { view, spec, .. } = detail;
        let parent = spec.run.env.get(TRACEPARENT);
        let parent: Option<TraceParent> = parent.and_then(|text| text.parse().ok());
        let own = format!("job {}", view.job);
        let trace = parent.map_or_else(|| self.hash(&format!("trace of {own}")), |of| of.trace);
        let open = OpenJob {
            trace: TraceId::from_bytes(trace),
            span: SpanId::from_bytes(self.hash(&own)),
            parent: parent.map_or(SpanId::INVALID, |of| SpanId::from_bytes(of.span)),
            sampled: parent.is_none_or(|of| of.sampled()),
            name: view.name.to_string(),
            tasks: spec.array.tasks(),
            start_ms: view.submitted_wall_ms,
            ready_ms: view.submitted_wall_ms.max(spec.not_before_ms.unwrap_or(0)),
            retries: HashMap::new(),
            attempts: HashMap::new(),
        };
        self.jobs.insert(view.job, open);
        self.open += 1;
    }

    /// Returns the first bytes of a hash: the ids are as good as random.
    fn hash<const N: usize>(&self, what: &str) -> [u8; N] {
        let hash = sha256(format!("podmesh {} {what}", self.cluster).as_bytes());
        let mut bytes = [0; N];
        bytes.copy_from_slice(&hash[..N]);
        bytes
    }

    /// Takes an event of a time, and returns the spans that end with it.
    pub(super) fn observe(&mut self, wall_ms: u64, revision: Revision, fact: &EventFact) -> Made {
        match fact {
            EventFact::JobRequeued { job, .. } => self.requeued(*job, wall_ms, revision),
            EventFact::AttemptAssigned { attempt, node } => {
                return self.assigned(*attempt, node.to_string(), wall_ms);
            }
            EventFact::AttemptStarted { attempt } => return self.started(*attempt, wall_ms),
            EventFact::AttemptEnded { attempt, outcome, retry_after_ms } => {
                let retry_ms = retry_after_ms.map(|after| wall_ms.saturating_add(after));
                return self.ended(*attempt, outcome, retry_ms, wall_ms);
            }
            EventFact::JobEnded { job, state } => {
                return self.job_ended(*job, state.known().copied(), wall_ms);
            }
            _ => {}
        }
        Made::default()
    }

    /// A job that had ended gets a second span; one that runs goes on.
    fn requeued(&mut self, job: JobId, wall_ms: u64, revision: Revision) {
        let span = SpanId::from_bytes(self.hash(&format!("job {job} at {}", revision.0)));
        let Some(open) = self.jobs.get_mut(&job) else { return };
        if open.attempts.is_empty() {
            open.span = span;
            open.start_ms = wall_ms;
        }
        open.ready_ms = wall_ms;
    }

    fn assigned(&mut self, attempt: AttemptId, node: String, wall_ms: u64) -> Made {
        let full = self.open >= OPEN_MAX;
        let Some(job) = self.jobs.get_mut(&attempt.task.job).filter(|_| !full) else {
            // Its other spans will be missing, too.
            return Made { dropped: 3, ..Made::default() };
        };
        let ready_ms = match job.retries.remove(&attempt.task) {
            Some(ready_ms) => {
                self.open -= 1;
                ready_ms
            }
            None => job.ready_ms,
        };
        let open = OpenAttempt { node: node.clone(), assigned_ms: wall_ms, started_ms: None };
        job.attempts.insert(attempt, open);
        self.open += 1;
        self.part("queued", attempt, node, (ready_ms, wall_ms), None)
    }

    fn started(&mut self, attempt: AttemptId, wall_ms: u64) -> Made {
        let job = self.jobs.get_mut(&attempt.task.job);
        let Some(open) = job.and_then(|job| job.attempts.get_mut(&attempt)) else {
            return Made::default();
        };
        open.started_ms = Some(wall_ms);
        let (node, assigned_ms) = (open.node.clone(), open.assigned_ms);
        self.part("starting", attempt, node, (assigned_ms, wall_ms), None)
    }

    fn ended(
        &mut self,
        attempt: AttemptId,
        outcome: &ShownOutcome,
        retry_ms: Option<u64>,
        wall_ms: u64,
    ) -> Made {
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else { return Made::default() };
        if let Some(retry_ms) = retry_ms
            && job.retries.insert(attempt.task, retry_ms).is_none()
        {
            self.open += 1;
        }
        let Some(open) = job.attempts.remove(&attempt) else { return Made::default() };
        self.open -= 1;
        let OpenAttempt { node, assigned_ms, started_ms } = open;
        if let Some(started_ms) = started_ms {
            return self.part("running", attempt, node, (started_ms, wall_ms), Some(outcome));
        }
        if outcome.exit_code.is_none() && outcome.signal.is_none() && outcome.ran_ms == 0 {
            return self.part("starting", attempt, node, (assigned_ms, wall_ms), Some(outcome));
        }
        // It was over before its node reported the start, which the node then leaves out.
        let started_ms = wall_ms.saturating_sub(outcome.ran_ms).max(assigned_ms);
        let mut made =
            self.part("starting", attempt, node.clone(), (assigned_ms, started_ms), None);
        let running = self.part("running", attempt, node, (started_ms, wall_ms), Some(outcome));
        made.spans.extend(running.spans);
        made
    }

    /// Returns a span of an attempt.
    fn part(
        &self,
        name: &'static str,
        attempt: AttemptId,
        node: String,
        (start_ms, end_ms): (u64, u64),
        outcome: Option<&ShownOutcome>,
    ) -> Made {
        let Some(job) = self.jobs.get(&attempt.task.job).filter(|job| job.sampled) else {
            return Made::default();
        };
        let mut attributes = vec![
            KeyValue::new("podmesh.job.id", whole(attempt.task.job.0)),
            KeyValue::new("podmesh.task.id", attempt.task.to_string()),
            KeyValue::new("podmesh.attempt.number", whole(attempt.number)),
            KeyValue::new("podmesh.node", node),
        ];
        let mut error = None;
        if let Some(outcome) = outcome {
            let word = OUTCOMES.iter().find(|(kind, _)| outcome.kind == *kind);
            let word = word.map_or("unknown", |(_, word)| word);
            attributes.push(KeyValue::new("podmesh.outcome", word));
            if let Some(code) = outcome.exit_code {
                attributes.push(KeyValue::new("process.exit.code", i64::from(code)));
            }
            let good = matches!(
                outcome.kind.known(),
                Some(OutcomeKind::Succeeded | OutcomeKind::Cancelled)
            );
            error = (!good).then(|| outcome.message.clone().unwrap_or_else(|| word.into()));
        }
        let id = SpanId::from_bytes(self.hash(&format!("{name} {attempt}")));
        let span = past((job.trace, id), name, (start_ms, end_ms), error);
        SpanData { parent_span_id: job.span, attributes, ..span }.into()
    }

    fn job_ended(&mut self, id: JobId, state: Option<JobState>, wall_ms: u64) -> Made {
        let Some(job) = self.jobs.remove(&id) else {
            return Made { dropped: 1, ..Made::default() };
        };
        self.open -= 1 + job.retries.len() + job.attempts.len();
        if !job.sampled {
            return Made::default();
        }
        let state = state.and_then(job_end).map_or("unknown", |at| JOB_ENDS[at]);
        let good = matches!(state, "succeeded" | "cancelled");
        let error = (!good).then(|| format!("the job has ended as {state}"));
        let name = format!("job {}", job.name);
        SpanData {
            parent_span_id: job.parent,
            parent_span_is_remote: job.parent != SpanId::INVALID,
            attributes: vec![
                KeyValue::new("podmesh.job.id", whole(id.0)),
                KeyValue::new("podmesh.job.name", job.name),
                KeyValue::new("podmesh.job.tasks", whole(job.tasks)),
                KeyValue::new("podmesh.job.state", state),
            ],
            ..past((job.trace, job.span), name, (job.start_ms, wall_ms), error)
        }
        .into()
    }
}

/// Returns a span without parent and attributes. Times are milliseconds since 1970 by the manager's
/// clock; a start after the end is moved to the end.
fn past(
    (trace, id): (TraceId, SpanId),
    name: impl Into<Cow<'static, str>>,
    (start_ms, end_ms): (u64, u64),
    error: Option<String>,
) -> SpanData {
    let time = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: time(start_ms.min(end_ms)),
        end_time: time(end_ms),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: error.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder("podmesh").build(),
    }
}

fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::client::JobView;
    use podmesh_protocol::report::Outcome;
    use serde_json::json;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    fn detail(job: u64, traceparent: Option<String>) -> JobDetail {
        let env: HashMap<_, _> = traceparent.map(|text| (TRACEPARENT, text)).into_iter().collect();
        let view: JobView = serde_json::from_value(json!({
            "job": job, "name": "etl", "state": "running", "counts": {
                "queued": 0, "active": 0, "succeeded": 0, "failed": 0, "cancelled": 0 },
            "priority": 0, "submitted_wall_ms": 1_000, "started_wall_ms": null, "ended_wall_ms": null,
        }))
        .unwrap();
        let spec = serde_json::from_value(json!({
            "name": "etl", "run": { "runtime": "process", "command": ["true"], "env": env },
        }))
        .unwrap();
        JobDetail { view, spec, revision: Revision(1), waits_for: vec![], ended_early: None }
    }

    fn tracer() -> Tracer {
        Tracer::new(serde_json::from_value(json!("5a1f2b3c-0000-4000-8000-000000000001")).unwrap())
    }

    /// Observes an event as the exporter does.
    fn see(
        tracer: &mut Tracer,
        detail: &JobDetail,
        wall_ms: u64,
        fact: &EventFact,
    ) -> Vec<SpanData> {
        if tracer.unknown_job(fact).is_some() {
            tracer.open(detail);
        }
        tracer.observe(wall_ms, Revision(wall_ms), fact).spans
    }

    fn assigned(attempt: AttemptId) -> EventFact {
        EventFact::AttemptAssigned { attempt, node: "a".parse().unwrap() }
    }

    fn ended(attempt: AttemptId, code: i32, retry_after_ms: Option<u64>) -> EventFact {
        EventFact::AttemptEnded { attempt, outcome: Outcome::exited(code).into(), retry_after_ms }
    }

    fn ms(time: SystemTime) -> u128 {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
    }

    fn failed(span: &SpanData) -> bool {
        matches!(span.status, Status::Error { .. })
    }

    #[test]
    fn a_job_with_a_retry_is_one_trace_without_gaps() {
        let (mut tracer, detail) = (tracer(), detail(7, Some(format!("{PARENT}-01"))));
        let (first, second) = (AttemptId::new(JobId(7), 1, 1), AttemptId::new(JobId(7), 1, 2));
        let facts = [
            (1_100, assigned(first)),
            (1_200, EventFact::AttemptStarted { attempt: first }),
            (1_500, ended(first, 3, Some(400))),
            (2_000, assigned(second)),
            (2_050, ended(second, 0, None)),
            (2_060, EventFact::JobEnded { job: JobId(7), state: JobState::Succeeded.into() }),
        ];
        let spans: Vec<SpanData> =
            facts.iter().flat_map(|(ms, fact)| see(&mut tracer, &detail, *ms, fact)).collect();
        let told: Vec<_> = spans
            .iter()
            .map(|span| (&*span.name, ms(span.start_time), ms(span.end_time)))
            .collect();
        assert_eq!(
            told,
            [
                ("queued", 1_000, 1_100),
                ("starting", 1_100, 1_200),
                ("running", 1_200, 1_500),
                ("queued", 1_900, 2_000),
                ("starting", 2_000, 2_050),
                ("running", 2_050, 2_050),
                ("job etl", 1_000, 2_060),
            ]
        );
        let (job, parts) = spans.split_last().unwrap();
        let parent: TraceParent = format!("{PARENT}-01").parse().unwrap();
        let of = |span: &SpanData| (span.span_context.trace_id(), span.parent_span_id);
        assert_eq!(of(job), (TraceId::from_bytes(parent.trace), SpanId::from_bytes(parent.span)));
        let below = (job.span_context.trace_id(), job.span_context.span_id());
        assert!(parts.iter().all(|span| of(span) == below && !span.parent_span_is_remote));
        assert!(job.parent_span_is_remote);
        let ids: std::collections::HashSet<_> =
            spans.iter().map(|span| span.span_context.span_id()).collect();
        assert_eq!(ids.len(), spans.len());
        let failed: Vec<_> = spans.iter().map(failed).collect();
        assert_eq!(failed, [false, false, true, false, false, false, false]);
        assert!(spans[2].attributes.contains(&KeyValue::new("process.exit.code", 3_i64)));
        assert_eq!((tracer.open, tracer.jobs.len()), (0, 0));
    }

    #[test]
    fn a_trace_that_its_caller_does_not_record_has_no_spans() {
        let (mut tracer, detail) = (tracer(), detail(7, Some(format!("{PARENT}-00"))));
        let attempt = AttemptId::new(JobId(7), 1, 1);
        let end = EventFact::JobEnded { job: JobId(7), state: JobState::Failed.into() };
        for fact in [assigned(attempt), ended(attempt, 1, None), end] {
            assert_eq!(see(&mut tracer, &detail, 2_000, &fact), []);
        }
        assert_eq!(tracer.open, 0);
    }

    #[test]
    fn a_job_that_runs_again_has_a_second_span() {
        let (mut tracer, detail) = (tracer(), detail(7, None));
        let end = EventFact::JobEnded { job: JobId(7), state: JobState::Failed.into() };
        let first = see(&mut tracer, &detail, 2_000, &end);
        let again = EventFact::JobRequeued { job: JobId(7), tasks: 1, by: "ann".parse().unwrap() };
        assert_eq!(see(&mut tracer, &detail, 3_000, &again), []);
        let queued = see(&mut tracer, &detail, 3_100, &assigned(AttemptId::new(JobId(7), 1, 2)));
        let second = see(&mut tracer, &detail, 4_000, &end);
        assert_eq!([ms(queued[0].start_time), ms(second[0].start_time)], [3_000, 3_000]);
        let [one, two] = [&first[0], &second[0]].map(|span| &span.span_context);
        assert_eq!((one.trace_id(), queued[0].parent_span_id), (two.trace_id(), two.span_id()));
        assert_ne!(one.span_id(), two.span_id());
        assert!(failed(&first[0]) && first[0].parent_span_id == SpanId::INVALID);
    }

    #[test]
    fn what_is_under_way_is_limited_and_the_rest_is_counted() {
        let mut tracer = tracer();
        tracer.open = OPEN_MAX - 2;
        let known = detail(1, None);
        let attempt = |number| AttemptId::new(JobId(1), number, 1);
        assert_eq!(see(&mut tracer, &known, 2_000, &assigned(attempt(1))).len(), 1);
        let made = tracer.observe(2_000, Revision(1), &assigned(attempt(2)));
        assert_eq!((made.spans.len(), made.dropped), (0, 3));
        let other = assigned(AttemptId::new(JobId(2), 1, 1));
        assert_eq!(tracer.unknown_job(&other), None);
        assert_eq!(see(&mut tracer, &known, 2_001, &ended(attempt(1), 0, None)).len(), 2);
        assert_eq!(tracer.unknown_job(&other), Some(JobId(2)));
    }
}
