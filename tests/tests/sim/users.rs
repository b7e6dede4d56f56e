//! Users: they submit until they have an answer, and change their minds.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_manager_core::input::{Input, Peer};
use podmesh_protocol::client::{Reply, ReplyBody};
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeSpec,
};
use uuid::Uuid;

use crate::world::{Event, World, note};

pub(crate) struct User {
    pub(crate) submission: SubmissionId,
    spec: Arc<JobSpec>,
    /// The job's number, as the manager acknowledged it.
    pub(crate) acked: Option<JobId>,
    gave_up: bool,
}

impl User {
    pub(crate) fn wants_an_answer(&self) -> bool {
        self.acked.is_none() && !self.gave_up
    }
}

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Submit(usize),
    Cancel(JobId),
}

/// The client behind a peer, where it is one.
pub(crate) fn asker(peer: &Peer) -> Option<Ask> {
    let [kind, number @ ..] = peer.0.as_ref() else { return None };
    let number = u64::from_be_bytes(number.try_into().ok()?);
    match kind {
        b's' => Some(Ask::Submit(number as usize)),
        b'c' => Some(Ask::Cancel(JobId(number))),
        _ => None,
    }
}

fn peer_of(ask: Ask) -> Peer {
    let (kind, number) = match ask {
        Ask::Submit(user) => (b's', user as u64),
        Ask::Cancel(job) => (b'c', job.0),
    };
    let mut bytes = vec![kind];
    bytes.extend(number.to_be_bytes());
    Peer(bytes.into())
}

impl World {
    pub(crate) fn make_users(&mut self) {
        for user in 0..self.rng.within(3, 14) {
            let submission = SubmissionId(Uuid::from_u128(0xABCD_0000 + u128::from(user)));
            let spec = Arc::new(self.make_spec());
            spec.validate().expect("a spec that the manager takes");
            self.users.push(User { submission, spec, acked: None, gave_up: false });
            let at = self.rng.within(0, 70_000);
            self.after(at, Event::UserSubmits(user as usize));
        }
    }

    fn make_spec(&mut self) -> JobSpec {
        let rng = &mut self.rng;
        let tasks = if rng.percent(50) { 1 } else { rng.within(2, 20) as u32 };
        let mut require = BTreeMap::new();
        if rng.percent(15) {
            require.insert("gpu".parse().expect("a name"), "a100".to_owned());
        }
        let runtime = if rng.percent(50) {
            RuntimeSpec::Process
        } else {
            RuntimeSpec::Docker(DockerSpec { image: "busybox".into(), ..Default::default() })
        };
        let cpu_millis = if rng.percent(3) { 64_000 } else { rng.within(1, 6) as u32 * 500 };
        JobSpec {
            name: "job".parse().expect("a name"),
            array: ArrayRange { first: 1, last: tasks },
            priority: rng.within(0, 2) as i32 - 1,
            require,
            resources: Resources { cpu_millis, memory_bytes: rng.within(0, 3) << 29 },
            retry: RetryPolicy {
                retries: rng.below(4) as u32,
                backoff_ms: rng.below(4) * 700,
                backoff_ms_max: 2_500,
            },
            on_lost: if rng.percent(50) { OnLost::Requeue } else { OnLost::Wait },
            run: RunSpec {
                runtime,
                command: vec!["true".into()],
                env: BTreeMap::new(),
                workdir: None,
                timeout_ms: rng.percent(20).then(|| rng.within(1_000, 20_000)),
                stop_grace_ms: rng.below(3_000),
            },
        }
    }

    pub(crate) fn user_submits(&mut self, user: usize) {
        if !self.users[user].wants_an_answer() {
            return;
        }
        let again = self.rng.within(500, 5_000);
        if !self.calm && self.rng.percent(3) {
            self.users[user].gave_up = true;
        } else {
            self.after(again, Event::UserSubmits(user));
        }
        self.ask(Ask::Submit(user));
    }

    pub(crate) fn user_cancels(&mut self) {
        let job = self.rng.below(self.decided.jobs.len() as u64 + 2);
        if self.rng.percent(40) {
            self.ask(Ask::Cancel(JobId(job)));
        }
    }

    /// Sends a request: it may be lost, and it may come twice.
    fn ask(&mut self, ask: Ask) {
        note!(self, "user asks: {ask:?}");
        for copy in 0..2 {
            let arrives = if copy == 0 { self.calm || self.rng.percent(90) } else { false };
            let doubled = copy == 1 && !self.calm && self.rng.percent(10);
            let late = self.rng.short(8_000);
            if arrives || doubled {
                self.after(late, Event::AskArrives(ask));
            }
        }
    }

    pub(crate) fn ask_arrives(&mut self, ask: Ask) {
        let Some(manager) = &self.manager else { return };
        if let Some(until) = manager.stalled(self.now) {
            return self.at(until, Event::AskArrives(ask));
        }
        let (peer, life) = (peer_of(ask), manager.life);
        match ask {
            Ask::Submit(user) => {
                let User { submission, spec, .. } = &self.users[user];
                let (submission, spec) = (*submission, Arc::clone(spec));
                // The reader of the database looks first.
                if let Some(job) = self.store.submissions.get(&submission).copied() {
                    let result = Ok(ReplyBody::Submitted { job, again: true });
                    return self.reply_to(ask, Reply { id: 1, result });
                }
                let input = Input::JobSubmitted { peer, request: 1, submission, spec };
                let pause = self.rng.short(20);
                self.after(pause, Event::ToCore(life, Box::new(input)));
            }
            Ask::Cancel(job) => {
                self.feed_manager(Input::CancelRequested { peer, request: 1, job });
            }
        }
    }

    pub(crate) fn reply_to(&mut self, ask: Ask, reply: Reply) {
        if self.calm || self.rng.percent(80) {
            let late = self.rng.short(3_000);
            self.after(late, Event::ReplyArrives(ask, reply));
        }
    }

    pub(crate) fn reply_arrives(&mut self, ask: Ask, reply: Reply) {
        note!(self, "user hears: {ask:?} {reply:?}");
        let (Ask::Submit(user), Ok(ReplyBody::Submitted { job, .. })) = (ask, reply.result) else {
            return;
        };
        let User { submission, acked, .. } = &mut self.users[user];
        let stored = self.store.submissions.get(submission);
        assert_eq!(stored, Some(&job), "a submission was acknowledged that is not on disk");
        let before = acked.replace(job);
        assert!(before.is_none_or(|before| before == job), "one submission, two jobs");
    }
}
