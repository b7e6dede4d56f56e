//! The table of a supervisor: which attempts it holds, in which state, and until when they may run.
//!
//! Times are milliseconds of the machine's monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_agent_core::replica::Replica;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{OnLost, RunSpec};
use podmesh_protocol::time::Millis;

use super::messages::HeldAttempt;

/// The message for an attempt that was killed because the lease ended.
const LEASE_ENDED: &str = "the lease ended without contact with the manager";
/// The message for an attempt that was stopped with its supervisor.
const ENDED_WITH: &str = "the supervisor of the node's processes was stopped";
/// The message for a later run of the agent, about an attempt that an earlier run was stopping.
const WAS_STOPPED: &str = "it was being stopped when the agent was restarted";

/// Why an attempt is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// The agent requested it, and knows the reason.
    Asked,
    /// An earlier run of the agent requested it.
    AskedBefore,
    /// The lease ended.
    LeaseEnded,
    /// Its timeout, in milliseconds, expired.
    TimedOut(u64),
    /// The supervisor is ending.
    Ending,
}

/// The attempts, their timeouts, and the lease.
#[derive(Debug, Default)]
pub(super) struct Table {
    attempts: BTreeMap<AttemptId, Entry>,
    live: usize,
    lease_until: Option<Millis>,
    /// When the timeouts of running attempts expire.
    timeouts: BTreeSet<(Millis, AttemptId)>,
}

#[derive(Debug)]
struct Entry {
    on_lost: OnLost,
    grace_ms: u64,
    timeout_ms: Option<u64>,
    since: Option<Millis>,
    stop: Option<StopReason>,
    ended: Option<Outcome>,
    replica: Option<Arc<Replica>>,
}

impl Entry {
    fn new(on_lost: OnLost) -> Self {
        Self {
            on_lost,
            grace_ms: 0,
            timeout_ms: None,
            since: None,
            stop: None,
            ended: None,
            replica: None,
        }
    }

    fn timeout_at(&self) -> Option<Millis> {
        Some(self.since?.saturating_add(self.timeout_ms?))
    }
}

/// The results of an attempt's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The outcome for the connected agent.
    pub(super) told: Outcome,
    /// The outcome that is recorded, and reported to later runs of the agent.
    pub(super) kept: Outcome,
}

impl Table {
    /// Adds an attempt that an earlier supervisor left.
    pub(super) fn abandoned(&mut self, attempt: AttemptId, on_lost: OnLost, ended: Outcome) {
        let entry = Entry { ended: Some(ended), ..Entry::new(on_lost) };
        self.attempts.insert(attempt, entry);
    }

    /// Adds an attempt that will be started. Returns false if it is already held.
    pub(super) fn take_up(
        &mut self,
        attempt: AttemptId,
        on_lost: OnLost,
        run: &RunSpec,
        replica: Option<Arc<Replica>>,
    ) -> bool {
        if self.attempts.contains_key(&attempt) {
            return false;
        }
        let (grace_ms, timeout_ms) = (run.stop_grace_ms, run.timeout_ms);
        let entry = Entry { grace_ms, timeout_ms, replica, ..Entry::new(on_lost) };
        self.attempts.insert(attempt, entry);
        self.live += 1;
        true
    }

    /// Notes that an attempt is running.
    pub(super) fn started(&mut self, attempt: AttemptId, now: Millis) {
        if let Some(entry) = self.attempts.get_mut(&attempt) {
            entry.since = Some(now);
            self.timeouts.extend(entry.timeout_at().map(|at| (at, attempt)));
        }
    }

    /// Notes that an attempt is being stopped. The first reason is kept.
    pub(super) fn stop(&mut self, attempt: AttemptId, why: StopReason) {
        if let Some(entry) = self.attempts.get_mut(&attempt)
            && matches!(entry.stop, None | Some(StopReason::AskedBefore))
        {
            entry.stop = Some(why);
        }
    }

    /// Notes that another run of the agent has connected.
    pub(super) fn agent_changed(&mut self) {
        for entry in
            self.attempts.values_mut().filter(|entry| entry.stop == Some(StopReason::Asked))
        {
            entry.stop = Some(StopReason::AskedBefore);
        }
    }

    /// Notes that an attempt has ended. Returns `None` if it is not held.
    pub(super) fn ended(&mut self, attempt: AttemptId, outcome: Outcome) -> Option<End> {
        let entry = self.attempts.get_mut(&attempt)?;
        if entry.ended.is_none() {
            self.live -= 1;
        }
        if let Some(at) = entry.timeout_at() {
            self.timeouts.remove(&(at, attempt));
        }
        let lost =
            |text: &str| Outcome { kind: OutcomeKind::Lost, ..outcome.clone() }.with_message(text);
        let kept = match entry.stop {
            None => outcome.clone(),
            Some(StopReason::Asked | StopReason::AskedBefore) => lost(WAS_STOPPED),
            Some(StopReason::LeaseEnded) => lost(LEASE_ENDED),
            Some(StopReason::TimedOut(timeout_ms)) => outcome.clone().timed_out(timeout_ms),
            Some(StopReason::Ending) => lost(ENDED_WITH),
        };
        entry.ended = Some(kept.clone());
        // Only the agent that requested the stop knows the reason.
        let told = if entry.stop == Some(StopReason::Asked) { outcome } else { kept.clone() };
        Some(End { told, kept })
    }

    /// Removes an attempt whose end is known. Returns false if it is active or not held.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> bool {
        let is_over = self.attempts.get(&attempt).is_some_and(|entry| entry.ended.is_some());
        if is_over {
            self.attempts.remove(&attempt);
        }
        is_over
    }

    /// Returns how many attempts are active.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Returns the active attempts and their graces.
    pub(super) fn all_live(&self) -> Vec<(AttemptId, u64)> {
        let live = self.attempts.iter().filter(|(_, entry)| entry.ended.is_none());
        live.map(|(attempt, entry)| (*attempt, entry.grace_ms)).collect()
    }

    /// Returns when the next timeout expires or the lease ends, if that matters.
    pub(super) fn wakes_at(&self) -> Option<Millis> {
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        let lease = self.lease_until.filter(|_| self.live > 0);
        [timeout, lease].into_iter().flatten().min()
    }

    /// Returns the attempts whose timeouts have expired, with their graces. They must be stopped,
    /// whether or not an agent is connected.
    pub(super) fn timed_out(&mut self, now: Millis) -> Vec<(AttemptId, u64)> {
        let mut timed_out = Vec::new();
        while let Some((at, attempt)) = self.timeouts.first().copied()
            && at <= now
        {
            self.timeouts.pop_first();
            if let Some(entry) = self.attempts.get_mut(&attempt)
                && let (Some(timeout_ms), None) = (entry.timeout_ms, entry.stop)
            {
                entry.stop = Some(StopReason::TimedOut(timeout_ms));
                timed_out.push((attempt, entry.grace_ms));
            }
        }
        timed_out
    }

    /// Sets how long the manager considers the node alive.
    pub(super) fn set_lease(&mut self, until: Millis) {
        self.lease_until = Some(until);
    }

    /// Returns the attempts to kill because the lease has ended. Ends the lease.
    pub(super) fn lease_ended(&mut self, now: Millis) -> Vec<AttemptId> {
        if self.lease_until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.lease_until = None;
        let endangered = self
            .attempts
            .iter_mut()
            .filter(|(_, entry)| entry.ended.is_none() && entry.on_lost == OnLost::Requeue);
        let endangered = endangered.map(|(attempt, entry)| {
            entry.stop.get_or_insert(StopReason::LeaseEnded);
            *attempt
        });
        endangered.collect()
    }

    /// Returns all held attempts, for a new agent.
    pub(super) fn list(&self, now: Millis) -> impl Iterator<Item = HeldAttempt> {
        self.attempts.iter().map(move |(attempt, entry)| HeldAttempt {
            attempt: *attempt,
            on_lost: entry.on_lost,
            ended: entry.ended.clone(),
            replica: entry.replica.clone().filter(|_| entry.ended.is_none()),
            started: entry.since.is_some(),
            ran_ms: match (&entry.ended, entry.since) {
                (None, Some(since)) => now.saturating_sub(since),
                _ => 0,
            },
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::JobId;
    use podmesh_protocol::spec::RuntimeSpec;

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId::new(JobId(1), index, 1)
    }

    fn run(timeout_ms: Option<u64>) -> RunSpec {
        RunSpec {
            runtime: RuntimeSpec::Process,
            command: vec!["true".into()],
            env: [].into(),
            workdir: None,
            timeout_ms,
            stop_grace_ms: 5,
            replica: None,
            files: [].into(),
        }
    }

    fn take_up(table: &mut Table, index: u32, on_lost: OnLost) -> bool {
        table.take_up(attempt(index), on_lost, &run(None), None)
    }

    fn killed() -> Outcome {
        Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) }
    }

    #[test]
    fn an_end_is_held_until_it_is_removed() {
        let mut table = Table::default();
        assert!(take_up(&mut table, 1, OnLost::Wait));
        assert!(!take_up(&mut table, 1, OnLost::Wait));
        table.started(attempt(1), 100);
        assert!(!table.remove(attempt(1)));
        let listed: Vec<_> = table.list(130).collect();
        assert_eq!((listed[0].ran_ms, &listed[0].ended), (30, &None));
        let end = table.ended(attempt(1), Outcome::exited(3)).unwrap();
        assert_eq!(end, End { told: Outcome::exited(3), kept: Outcome::exited(3) });
        assert_eq!(table.live(), 0);
        let listed: Vec<_> = table.list(200).collect();
        assert_eq!((listed[0].ran_ms, &listed[0].ended), (0, &Some(Outcome::exited(3))));
        assert!(table.remove(attempt(1)));
        assert_eq!(table.list(200).count(), 0);
        assert_eq!(table.ended(attempt(1), Outcome::exited(3)), None);
    }

    #[test]
    fn only_the_agent_that_stopped_an_attempt_knows_why() {
        let mut table = Table::default();
        take_up(&mut table, 1, OnLost::Wait);
        table.stop(attempt(1), StopReason::Asked);
        table.stop(attempt(1), StopReason::Ending);
        let end = table.ended(attempt(1), killed()).unwrap();
        assert_eq!(end.told, killed());
        let kept = end.kept;
        assert_eq!((kept.kind, kept.signal), (OutcomeKind::Lost, Some(9)));
        assert_eq!(kept.message.as_deref(), Some(WAS_STOPPED));
        assert_eq!(table.list(0).next().unwrap().ended, Some(kept.clone()));

        // The next agent is told what the list contains, unless it also requests the stop.
        for asks_again in [false, true] {
            let mut table = Table::default();
            take_up(&mut table, 1, OnLost::Wait);
            table.stop(attempt(1), StopReason::Asked);
            table.agent_changed();
            if asks_again {
                table.stop(attempt(1), StopReason::Asked);
            }
            let end = table.ended(attempt(1), killed()).unwrap();
            let told = if asks_again { killed() } else { kept.clone() };
            assert_eq!(end, End { told, kept: kept.clone() });
        }
    }

    #[test]
    fn the_end_of_the_lease_kills_requeued_attempts() {
        let mut table = Table::default();
        table.set_lease(1_000);
        assert_eq!(table.wakes_at(), None, "nothing runs");
        take_up(&mut table, 1, OnLost::Wait);
        take_up(&mut table, 2, OnLost::Requeue);
        take_up(&mut table, 3, OnLost::Requeue);
        table.ended(attempt(3), Outcome::exited(0));
        assert_eq!(table.wakes_at(), Some(1_000));
        table.set_lease(2_000);
        assert_eq!(table.lease_ended(1_999), []);
        assert_eq!(table.lease_ended(2_000), [attempt(2)]);
        assert_eq!((table.wakes_at(), table.lease_ended(9_000)), (None, vec![]));
        let end = table.ended(attempt(2), killed()).unwrap();
        assert_eq!(end.told.message.as_deref(), Some(LEASE_ENDED));
        assert_eq!((end.told.kind, &end.told), (OutcomeKind::Lost, &end.kept));
        assert_eq!(table.all_live(), [(attempt(1), 5)]);
    }

    #[test]
    fn a_timeout_counts_from_the_start_and_is_reported_to_every_agent() {
        let mut table = Table::default();
        table.take_up(attempt(1), OnLost::Wait, &run(Some(1_500)), None);
        take_up(&mut table, 2, OnLost::Wait);
        assert_eq!(table.wakes_at(), None, "nothing runs");
        table.started(attempt(1), 100);
        table.started(attempt(2), 100);
        assert_eq!((table.wakes_at(), table.timed_out(1_599)), (Some(1_600), vec![]));
        assert_eq!(table.timed_out(1_600), [(attempt(1), 5)]);
        assert_eq!((table.wakes_at(), table.timed_out(9_999)), (None, vec![]));
        // The reason stays the same, whatever happens during the grace.
        table.stop(attempt(1), StopReason::Asked);
        table.agent_changed();
        let end = table.ended(attempt(1), killed()).unwrap();
        assert_eq!((end.told.kind, end.told.signal), (OutcomeKind::TimedOut, Some(9)));
        assert!(end.told.message.as_ref().unwrap().contains("1.500 s"), "{end:?}");
        assert_eq!(end.kept, end.told);
    }

    #[test]
    fn an_attempt_that_ends_or_is_stopped_in_time_did_not_time_out() {
        let mut table = Table::default();
        for index in [1, 2] {
            table.take_up(attempt(index), OnLost::Wait, &run(Some(10)), None);
            table.started(attempt(index), 0);
        }
        table.ended(attempt(1), Outcome::exited(0));
        table.stop(attempt(2), StopReason::Asked);
        assert_eq!((table.timed_out(10), table.wakes_at()), (vec![], None));
        assert_eq!(table.ended(attempt(2), killed()).unwrap().told, killed());
    }
}
