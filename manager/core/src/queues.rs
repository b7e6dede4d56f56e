//! Queues: named shares of the cluster that jobs wait in. How they share it is up to
//! [`placement`](crate::placement).

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{PAGE_ROWS_MAX, QUEUE_CALLERS_SHOWN, QUEUES_MAX};
use podmesh_protocol::queue::{DEFAULT_QUEUE, QueueCaller, QueueChange, QueueDetail, QueueView};
use podmesh_protocol::spec::JobSpec;

use crate::Core;
use crate::faults::planted;
use crate::input::QueueAction;
use crate::state::{Change, Job, QueueRow};
use crate::step::{Answer, Step};

/// The most queues to name when one is unknown.
const QUEUES_NAMED: usize = 20;

/// What jobs of a queue, or those of one caller in it, have.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    jobs: u32,
    queued: u64,
    active: u64,
    active_cpu_millis: u64,
}

impl Usage {
    fn add(&mut self, job: &Job) {
        self.jobs += 1;
        self.queued += u64::from(job.counts.queued);
        self.active += u64::from(job.counts.active);
        let cpu_millis = u64::from(job.spec.resources.cpu_millis);
        self.active_cpu_millis += u64::from(job.counts.active) * cpu_millis;
    }
}

/// Returns the name of the queue of a job.
pub(crate) fn queue_of(spec: &JobSpec) -> &str {
    spec.rules.queue.as_ref().map_or(DEFAULT_QUEUE, Name::as_str)
}

impl Core {
    /// Adds a queue, or changes the settings of one.
    pub(crate) fn set_queue(
        &mut self,
        by: Name,
        queue: Name,
        change: &QueueChange,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let before = self.state.queues.get(&queue);
        let added = before.is_none() && queue.as_str() != DEFAULT_QUEUE;
        if added {
            self.may_add_queue(&queue)?;
        }
        if let Some(spec) = &change.dead_letter {
            self.may_be_dead_letter(&queue, spec)?;
        }
        let before = before.cloned().unwrap_or_default();
        let limit =
            |new: Option<u32>, old: Option<u32>| new.map_or(old, |max| (max > 0).then_some(max));
        let row = QueueRow {
            weight: change.weight.unwrap_or(before.weight),
            max_active: limit(change.max_active, before.max_active),
            max_active_per_caller: limit(
                change.max_active_per_caller,
                before.max_active_per_caller,
            ),
            dead_letter: match &change.dead_letter {
                Some(spec) => Some(Arc::new(JobSpec::clone(spec))),
                None => before.dead_letter.clone().filter(|_| !change.no_dead_letter),
            },
            ..before.clone()
        };
        if !added && row == before {
            return Ok(Answer::QueueSaved { added, changed: false });
        }
        let message = describe(&row);
        self.save_queue(queue, row, message, by, out);
        Ok(Answer::QueueSaved { added, changed: true })
    }

    fn may_add_queue(&self, queue: &Name) -> Result<(), ErrorReply> {
        if self.state.queues.len() >= QUEUES_MAX {
            let message = format!(
                "there are {QUEUES_MAX} queues, which is the limit (QUEUES_MAX): remove some (`podmesh queue remove NAME`)"
            );
            return Err(ErrorReply::new(ErrorCode::Overloaded, message));
        }
        let mut names = self.queue_names();
        if let Some(other) = names.find(|other| other.eq_ignore_ascii_case(queue.as_str())) {
            let message = format!(
                "there is a queue `{other}`, whose name differs from `{queue}` only in the case of its letters: choose another name"
            );
            return Err(ErrorReply::new(ErrorCode::Conflict, message));
        }
        Ok(())
    }

    /// Pauses, resumes or removes a queue.
    pub(crate) fn change_queue(
        &mut self,
        by: Name,
        queue: Name,
        action: QueueAction,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let saved = self.state.queues.get(&queue);
        if saved.is_none() && queue.as_str() != DEFAULT_QUEUE {
            return Err(self.no_queue(&queue));
        }
        let mut row = saved.cloned().unwrap_or_default();
        let paused = match action {
            QueueAction::Remove => {
                self.may_remove_queue(&queue)?;
                self.queue.remove_share(&queue);
                out.events.push(EventFact::QueueRemoved { queue: queue.clone(), by });
                self.state.record(out, Change::QueueRemoved(queue));
                return Ok(Answer::QueueChanged { changed: true });
            }
            QueueAction::Pause => true,
            QueueAction::Resume => false,
        };
        if row.paused == paused {
            return Ok(Answer::QueueChanged { changed: false });
        }
        row.paused = paused;
        let message = if paused { "paused" } else { "resumed" }.into();
        self.save_queue(queue, row, message, by, out);
        Ok(Answer::QueueChanged { changed: true })
    }

    fn save_queue(
        &mut self,
        queue: Name,
        mut row: QueueRow,
        message: String,
        by: Name,
        out: &mut Step,
    ) {
        row.by = Some(by.clone());
        let paused = row.paused && !planted!(self, PauseIgnored);
        self.queue.set_share(&queue, QueueRow { paused, ..row.clone() });
        out.events.push(EventFact::QueueChanged { queue: queue.clone(), message, by });
        self.state.record(out, Change::QueueSaved { queue, row });
    }

    fn may_remove_queue(&self, queue: &Name) -> Result<(), ErrorReply> {
        let refuse = |message: String| Err(ErrorReply::new(ErrorCode::Conflict, message));
        if queue.as_str() == DEFAULT_QUEUE {
            return refuse(format!(
                "the queue `{DEFAULT_QUEUE}` cannot be removed: jobs that name no queue wait in it"
            ));
        }
        let usage = self.usage_of(queue);
        if usage.jobs > 0 {
            let Usage { jobs, queued, active, .. } = usage;
            let which = match jobs {
                1 => "a job that has".to_owned(),
                _ => format!("{jobs} jobs that have"),
            };
            return refuse(format!(
                "the queue `{queue}` has {which} not ended (tasks that wait: {queued}, active ones: {active}): cancel what is left or wait for its end; `podmesh queue pause {queue}` lets no more tasks start"
            ));
        }
        let of = |spec: &JobSpec| spec.rules.queue.as_ref() == Some(queue);
        let mut schedules = self.state.schedules.iter();
        if let Some((schedule, _)) = schedules.find(|(_, saved)| of(&saved.spec.job)) {
            return refuse(format!(
                "the schedule `{schedule}` submits jobs to the queue `{queue}`: change or remove the schedule first"
            ));
        }
        let mut others = self.state.queues.iter().filter(|(other, _)| *other != queue);
        if let Some((other, _)) = others.find(|(_, row)| row.dead_letter.as_deref().is_some_and(of))
        {
            return refuse(format!(
                "the dead-letter job of the queue `{other}` waits in the queue `{queue}`: change it first (`podmesh queue set {other} --no-dead-letter`)"
            ));
        }
        Ok(())
    }

    /// Checks that the queue of a job exists.
    pub(crate) fn may_wait_in_queue(&self, spec: &JobSpec) -> Result<(), ErrorReply> {
        match &spec.rules.queue {
            Some(queue) if !self.has_queue(queue) => Err(self.no_queue(queue)),
            _ => Ok(()),
        }
    }

    fn has_queue(&self, queue: &Name) -> bool {
        queue.as_str() == DEFAULT_QUEUE || self.state.queues.contains_key(queue)
    }

    fn no_queue(&self, queue: &Name) -> ErrorReply {
        let mut names: Vec<&str> = self.queue_names().take(QUEUES_NAMED + 1).collect();
        if names.len() > QUEUES_NAMED {
            names[QUEUES_NAMED] = "…";
        }
        let message = format!(
            "there is no queue `{queue}`; the queues are: {} (an admin adds one with `podmesh queue set {queue}`)",
            names.join(", ")
        );
        ErrorReply::new(ErrorCode::NotFound, message)
    }

    /// Returns the names of all queues, in order.
    fn queue_names(&self) -> impl Iterator<Item = &str> {
        let before = |name: &&Name| name.as_str() < DEFAULT_QUEUE;
        let after = |name: &&Name| name.as_str() > DEFAULT_QUEUE;
        let all = self.state.queues.keys();
        let first = all.clone().filter(before).map(Name::as_str);
        first.chain([DEFAULT_QUEUE]).chain(all.filter(after).map(Name::as_str))
    }

    fn usage_of(&self, queue: &Name) -> Usage {
        let mut usage = Usage::default();
        let jobs = self.state.jobs.values().filter(|job| is_in(job, queue));
        jobs.for_each(|job| usage.add(job));
        usage
    }

    /// Returns the queues whose names sort after `after`, at most `limit`.
    pub fn list_queues(&self, after: Option<&Name>, limit: u32) -> Vec<QueueView> {
        let mut usage = BTreeMap::<&str, Usage>::new();
        for job in self.state.jobs.values().filter(|job| job.spec.run.replica.is_none()) {
            usage.entry(queue_of(&job.spec)).or_default().add(job);
        }
        let limit = limit.min(PAGE_ROWS_MAX) as usize;
        let after = after.map_or("", Name::as_str);
        let names = self.queue_names().filter(|name| *name > after).take(limit);
        let views = names.filter_map(|name| {
            let usage = usage.get(name).copied().unwrap_or_default();
            Some(self.view_queue(name.parse().ok()?, usage))
        });
        views.collect()
    }

    /// Returns a queue with its callers; `None` if there is none.
    pub fn show_queue(&self, queue: &Name) -> Result<QueueDetail, ErrorReply> {
        if !self.has_queue(queue) {
            return Err(self.no_queue(queue));
        }
        let (mut all, mut callers) = (Usage::default(), BTreeMap::<&Option<Name>, Usage>::new());
        for job in self.state.jobs.values().filter(|job| is_in(job, queue)) {
            all.add(job);
            callers.entry(&job.by).or_default().add(job);
        }
        let row = self.state.queues.get(queue);
        let more_callers = callers.len().saturating_sub(QUEUE_CALLERS_SHOWN);
        let shown = callers.into_iter().take(QUEUE_CALLERS_SHOWN);
        let shown = shown.map(|(caller, usage)| QueueCaller {
            caller: caller.clone(),
            jobs: usage.jobs,
            queued: usage.queued,
            active: usage.active,
            active_cpu_millis: usage.active_cpu_millis,
        });
        Ok(QueueDetail {
            view: self.view_queue(queue.clone(), all),
            dead_letter: row.and_then(|row| row.dead_letter.as_deref().cloned()).map(Box::new),
            callers: shown.collect(),
            more_callers: u32::try_from(more_callers).unwrap_or(u32::MAX),
        })
    }

    fn view_queue(&self, queue: Name, usage: Usage) -> QueueView {
        let row = self.state.queues.get(&queue).cloned().unwrap_or_default();
        QueueView {
            queue,
            weight: row.weight,
            max_active: row.max_active,
            max_active_per_caller: row.max_active_per_caller,
            paused: row.paused,
            by: row.by,
            dead_letter: row.dead_letter.map(|spec| spec.name.clone()),
            jobs: usage.jobs,
            queued: usage.queued,
            active: usage.active,
            active_cpu_millis: usage.active_cpu_millis,
        }
    }
}

/// Returns whether a job is in a queue. Replicas are in none.
fn is_in(job: &Job, queue: &Name) -> bool {
    job.spec.run.replica.is_none() && queue_of(&job.spec) == queue.as_str()
}

/// Returns the settings of a queue in words.
fn describe(row: &QueueRow) -> String {
    let mut text = format!("weight {}", row.weight);
    if let Some(max) = row.max_active {
        text += &format!(", at most {max} active");
    }
    if let Some(max) = row.max_active_per_caller {
        text += &format!(", at most {max} active of each caller");
    }
    if let Some(spec) = &row.dead_letter {
        text += &format!(", dead-letter job {}", spec.name);
    }
    text
}

#[cfg(any(test, feature = "invariants"))]
impl Core {
    pub(crate) fn check_queues(&self) {
        self.queue.check_shares(&self.state.queues);
        let mut used = BTreeMap::new();
        for (id, dispatch) in &self.dispatch {
            let job = &self.state.jobs[id];
            let cpu_millis = u64::from(job.spec.resources.cpu_millis.max(1));
            let lane: &mut (u32, u64) = used.entry(dispatch.shape.lane).or_default();
            lane.0 += job.counts.active;
            lane.1 += u64::from(job.counts.active) * cpu_millis;
        }
        assert_eq!(self.queue.usage(), used, "the attempts of each lane");
        for job in self.state.jobs.values() {
            assert!(self.may_wait_in_queue(&job.spec).is_ok(), "job {}: its queue", job.id);
        }
    }
}
