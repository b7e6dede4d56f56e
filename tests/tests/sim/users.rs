//! Users, who submit jobs until they get an answer, and cancel jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_manager_core::ids::Ticket;
use podmesh_manager_core::input::{Command, Input, QueueAction, ScheduleChange};
use podmesh_manager_core::step::Answer;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::ids::{JobId, Name, SubmissionId};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobRules, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeSpec,
};
use uuid::Uuid;

use crate::upstream::Submission;
use crate::world::{Event, World, note};

pub(crate) struct User {
    pub(crate) submission: SubmissionId,
    pub(crate) wants: Submission,
    /// Whether the job is to wait for others, which are chosen at the first try.
    waits: bool,
    /// The job's number, as the manager acknowledged it.
    pub(crate) acked: Option<JobId>,
    pub(crate) gave_up: bool,
}

impl User {
    pub(crate) fn wants_an_answer(&self) -> bool {
        self.acked.is_none() && !self.gave_up
    }
}

/// A user's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserRequest {
    Submit(usize),
    Cancel(JobId),
    /// Cancel what depends on a job.
    CancelDownstream(JobId),
    /// Run ended tasks of a job again.
    Requeue(JobId),
    /// Forget the node of a machine, maybe with what waits for it.
    Forget(usize, bool),
    /// Something about a service: its number.
    Service(usize),
    /// Set, pause or resume a queue: the number says which, and how.
    Queue(u64),
}

/// What a user is told.
pub(crate) type UserReply = Result<Answer, ErrorReply>;

/// The kind of a request is in the highest byte of its ticket.
const KIND: u32 = 56;

/// Returns the request of a ticket; `None` if it is not one of a user.
pub(crate) fn request_of(Ticket(ticket): Ticket) -> Option<UserRequest> {
    let number = ticket & ((1 << KIND) - 1);
    match ticket >> KIND {
        1 => Some(UserRequest::Submit(number as usize)),
        2 => Some(UserRequest::Cancel(JobId(number))),
        3 => Some(UserRequest::Forget(number as usize, false)),
        4 => Some(UserRequest::Forget(number as usize, true)),
        5 => Some(UserRequest::Service(number as usize)),
        6 => Some(UserRequest::Requeue(JobId(number))),
        7 => Some(UserRequest::CancelDownstream(JobId(number))),
        8 => Some(UserRequest::Queue(number)),
        _ => None,
    }
}

fn ticket_of(ask: UserRequest) -> Ticket {
    let (kind, number) = match ask {
        UserRequest::Submit(user) => (1, user as u64),
        UserRequest::Cancel(job) => (2, job.0),
        UserRequest::Forget(node, false) => (3, node as u64),
        UserRequest::Forget(node, true) => (4, node as u64),
        UserRequest::Service(number) => (5, number as u64),
        UserRequest::Requeue(job) => (6, job.0),
        UserRequest::CancelDownstream(job) => (7, job.0),
        UserRequest::Queue(number) => (8, number),
    };
    Ticket(kind << KIND | number)
}

/// The queue of some jobs. The others are in the default one.
pub(crate) fn night() -> Name {
    "night".parse().expect("a name")
}

/// The dead-letter job of a queue.
fn dead_letter() -> Box<JobSpec> {
    let run = RunSpec {
        runtime: RuntimeSpec::Process,
        command: vec!["true".into()],
        env: BTreeMap::new(),
        workdir: None,
        timeout_ms: None,
        stop_grace_ms: 0,
        replica: None,
        files: [].into(),
    };
    Box::new(JobSpec {
        name: "letter".parse().expect("a name"),
        array: ArrayRange { first: 1, last: 1 },
        priority: 0,
        require: BTreeMap::new(),
        resources: Resources { cpu_millis: 100, memory_bytes: 0 },
        retry: RetryPolicy::default(),
        on_lost: OnLost::Requeue,
        rules: JobRules { queue: Some(night()), ..JobRules::default() }.into(),
        place: PlaceRules::default().into(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run,
    })
}

/// Returns what an admin does with a queue.
fn queue_command(number: u64) -> Command {
    let by = "root".parse().expect("a name");
    let queue = if number.is_multiple_of(4) { "default".parse().expect("a name") } else { night() };
    let value = |shift: u32| ((number >> shift) % 4) as u32;
    match (number >> 2) % 4 {
        0 => Command::ChangeQueue { by, queue, action: QueueAction::Pause },
        1 => Command::ChangeQueue { by, queue, action: QueueAction::Resume },
        _ => {
            let change = QueueChange {
                weight: Some(value(4) + 1),
                max_active: Some(value(6)),
                max_active_per_caller: Some(value(8)),
                dead_letter: (value(10) == 0).then(dead_letter),
                no_dead_letter: value(10) == 1,
            };
            Command::SetQueue { by, queue, change }
        }
    }
}

impl World {
    /// After the faults, admins resume queues, and lift their limits.
    pub(crate) fn admins_open_queues(&mut self) {
        let queues = self.decided.state.queues.iter();
        let rows = queues.map(|(queue, row)| (u64::from(*queue == night()), row));
        let mut asks = Vec::new();
        for (number, row) in rows {
            if row.paused {
                asks.push(number + (1 << 2));
            }
            if row.max_active.is_some() || row.max_active_per_caller.is_some() {
                asks.push(number + (2 << 2));
            }
        }
        for number in asks {
            self.ask(UserRequest::Queue(number));
        }
    }

    pub(crate) fn make_users(&mut self) {
        for user in 0..self.rng.within(3, 14) {
            let submission = SubmissionId(Uuid::from_u128(0xABCD_0000 + u128::from(user)));
            let spec = self.make_spec();
            spec.validate().expect("a valid spec");
            let wants = match self.rng.below(100) {
                0..15 => Submission::Workflow(self.make_workflow(&spec)),
                _ => Submission::Job(Arc::new(spec)),
            };
            let waits = self.rng.percent(40);
            self.users.push(User { submission, wants, waits, acked: None, gave_up: false });
            let at = self.rng.within(0, 70_000);
            self.after(at, Event::UserSubmits(user as usize));
        }
    }

    pub(crate) fn make_spec(&mut self) -> JobSpec {
        let rng = &mut self.rng;
        let tasks = if rng.percent(50) { 1 } else { rng.within(2, 20) as u32 };
        let mut require = BTreeMap::new();
        if rng.percent(15) {
            require.insert("gpu".parse().expect("a name"), "a100".to_owned());
        }
        let runtime = if rng.percent(50) {
            RuntimeSpec::Process
        } else {
            RuntimeSpec::from(DockerSpec { image: "busybox".into(), ..Default::default() })
        };
        let rules = JobRules {
            max_failures: rng.percent(15).then(|| rng.within(1, 3) as u32),
            max_active: rng.percent(15).then(|| rng.within(1, 3) as u32),
            expires_ms: rng.percent(15).then(|| rng.within(100, 60_000)),
            queue: rng.percent(40).then(night),
            preemptible: rng.percent(25),
        };
        let mut place = PlaceRules { exclusive: rng.percent(5), ..PlaceRules::default() };
        if rng.percent(30) {
            let gpu = "gpu".parse().expect("a name");
            place.resources.insert(gpu, [300, 500, 1_000, 1_000, 2_000][rng.below(5) as usize]);
        }
        if rng.percent(10) {
            let license = "license".parse().expect("a name");
            place.resources.insert(license, rng.within(1, 3) as u32 * 1_000);
        }
        if rng.percent(20) {
            place.prefer.insert("gpu".parse().expect("a name"), "a100".to_owned());
            place.spread = Some("gpu".parse().expect("a name"));
        }
        let cpu_millis = if rng.percent(3) { 64_000 } else { rng.within(1, 6) as u32 * 500 };
        JobSpec {
            place: place.into(),
            not_before_ms: None,
            after: Vec::new(),
            scheduled: None,
            dead_letter: None,
            workflow: None,
            name: "job".parse().expect("a name"),
            array: ArrayRange { first: 1, last: tasks },
            priority: rng.within(0, 2) as i32 - 1,
            require,
            resources: Resources { cpu_millis, memory_bytes: rng.within(0, 3) << 29 },
            retry: RetryPolicy {
                retries: rng.below(4) as u32,
                backoff_ms: rng.below(4) * 700,
                backoff_ms_max: 2_500,
                ..RetryPolicy::default()
            },
            on_lost: if rng.percent(50) { OnLost::Requeue } else { OnLost::Wait },
            rules: rules.into(),
            run: RunSpec {
                runtime,
                command: vec!["true".into()],
                env: BTreeMap::new(),
                workdir: None,
                timeout_ms: rng.percent(20).then(|| rng.within(1_000, 20_000)),
                stop_grace_ms: rng.below(3_000),
                replica: None,
                files: [].into(),
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
        self.ask(UserRequest::Submit(user));
    }

    pub(crate) fn user_cancels(&mut self) {
        let job = self.rng.below(self.decided.jobs.len() as u64 + 2);
        match self.rng.below(100) {
            0..25 => self.ask(UserRequest::Cancel(JobId(job))),
            25..30 => self.ask(UserRequest::CancelDownstream(JobId(job))),
            30..60 => self.ask(UserRequest::Requeue(JobId(job))),
            60..80 => {
                let number = self.rng.below(1 << 16);
                self.ask(UserRequest::Queue(number));
            }
            _ => self.retention_due(),
        }
    }

    /// Removes jobs that have ended, and nodes that were lost for 20 s.
    fn retention_due(&mut self) {
        self.remove_jobs();
        if !self.is_manager_stalled() {
            let by = "manager".parse().expect("a name");
            self.feed_manager(Input::RetentionDue { age_ms: self.now, keep_ms: 20_000, by });
        }
    }

    fn is_manager_stalled(&self) -> bool {
        self.manager.as_ref().is_none_or(|manager| manager.stalled(self.now).is_some())
    }

    /// Removes every ended job whose submission is not under way to the manager: a submission that
    /// arrives after its job was removed makes another job.
    fn remove_jobs(&mut self) {
        let known = |(number, user): (usize, &User)| {
            let job = user.acked.filter(|job| !self.store.is_removed(*job))?;
            (!self.is_under_way(number, &user.submission)).then_some(job)
        };
        let mut jobs: Vec<JobId> = self.users.iter().enumerate().filter_map(known).collect();
        jobs.extend(self.store.ended_replicas());
        if !jobs.is_empty() && !self.is_manager_stalled() {
            self.feed_manager(Input::Command(Ticket(0), Command::RemoveJobs { jobs, by: None }));
        }
    }

    pub(crate) fn user_forgets(&mut self, node: usize) {
        let force = self.rng.percent(30);
        self.ask(UserRequest::Forget(node, force));
    }

    /// Forgets the machines that have left for good and had just been given work.
    pub(crate) fn users_forget_the_gone(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_gone && self.has_work(node) {
                self.ask(UserRequest::Forget(node, true));
            }
        }
    }

    /// Sends a request: it may be lost, and it may come twice.
    pub(crate) fn ask(&mut self, ask: UserRequest) {
        note!(self, "user asks: {ask:?}");
        for copy in 0..2 {
            let arrives = if copy == 0 { self.calm || self.rng.percent(90) } else { false };
            let doubled = copy == 1 && !self.calm && self.rng.percent(10);
            let late = self.rng.short(8_000);
            if arrives || doubled {
                self.after(late, Event::RequestArrives(ask));
            }
        }
    }

    pub(crate) fn request_arrives(&mut self, ask: UserRequest) {
        let Some(manager) = &self.manager else { return };
        if let Some(until) = manager.stalled(self.now) {
            return self.at(until, Event::RequestArrives(ask));
        }
        let ticket = ticket_of(ask);
        match ask {
            UserRequest::Submit(user) => {
                // The reader of the database checks first.
                if let Some(job) = self.store.of_submission(&self.users[user].submission) {
                    return self.reply_to(ask, Ok(Answer::Submitted { job, again: true }));
                }
                let waits = std::mem::take(&mut self.users[user].waits);
                if let (true, Submission::Job(spec)) = (waits, self.users[user].wants.clone()) {
                    let mut spec = Arc::unwrap_or_clone(spec);
                    self.choose_upstream(&mut spec);
                    self.users[user].wants = Submission::Job(Arc::new(spec));
                }
                if self.pass_on(ticket, user) {
                    let soon = self.now + 5;
                    self.at(soon, Event::RequestArrives(ask));
                }
            }
            UserRequest::CancelDownstream(job) => {
                self.feed_manager(Input::Command(
                    ticket,
                    Command::CancelDownstream { job, done: 0 },
                ));
            }
            UserRequest::Cancel(job) => {
                if self.decided.state.jobs.contains_key(&job) {
                    self.judge_cancel(job);
                }
                self.feed_manager(Input::Command(ticket, Command::Cancel { job }));
            }
            UserRequest::Requeue(job) => {
                // The shell waits for what it or another one has decided about ended jobs.
                if manager.decides_of_ended_jobs() {
                    let soon = self.now + 5;
                    return self.at(soon, Event::RequestArrives(ask));
                }
                let (all, rest) = (self.rng.percent(30), self.rng.percent(50));
                let decided = all.then_some(&self.decided.state);
                let Some((ended, tasks)) = self.store.ended_tasks(job, decided) else { return };
                let by = "user".parse().expect("a name");
                let command = Command::Requeue { by, job, ended, tasks, rest };
                self.feed_manager(Input::Command(ticket, command));
            }
            UserRequest::Forget(node, force) => {
                let (node, by) = (self.nodes[node].name.clone(), "user".parse().expect("a name"));
                let command = Command::ForgetNode { by, node, force };
                self.feed_manager(Input::Command(ticket, command));
            }
            UserRequest::Queue(number) => {
                self.feed_manager(Input::Command(ticket, queue_command(number)));
            }
            UserRequest::Service(number) => {
                let command = self.service_command(number);
                // The reader of the database checks first.
                if let Command::ChangeSchedule { change, .. } = &command
                    && let ScheduleChange::Run { submission } = change
                    && let Some(job) = self.store.of_submission(submission)
                {
                    return self.reply_to(ask, Ok(Answer::ScheduleRan { job: Some(job) }));
                }
                self.feed_manager(Input::Command(ticket, command));
            }
        }
    }

    pub(crate) fn reply_to(&mut self, ask: UserRequest, reply: UserReply) {
        if self.calm || self.rng.percent(80) {
            let late = self.rng.short(3_000);
            self.after(late, Event::ReplyArrives(ask, reply));
        }
    }

    pub(crate) fn reply_arrives(&mut self, ask: UserRequest, reply: UserReply) {
        note!(self, "user receives: {ask:?} {reply:?}");
        let (UserRequest::Submit(user), Ok(Answer::Submitted { job, .. })) = (ask, reply) else {
            return;
        };
        let User { submission, acked, .. } = &mut self.users[user];
        let stored = self.store.submissions().get(submission);
        assert_eq!(stored, Some(&job), "a submission was acknowledged but is not on disk");
        let before = acked.replace(job);
        assert!(before.is_none_or(|before| before == job), "one submission, two jobs");
    }
}
