//! What a supervisor holds: which attempts, how they stand, and until when they may run.
//!
//! Times are milliseconds of the machine's monotonic clock.

use std::collections::BTreeMap;

use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::OnLost;
use podmesh_protocol::time::Millis;

use super::messages::Found;

/// What is said of an attempt that was killed because the lease ended.
const LEASE_ENDED: &str = "the lease ended without contact with the manager";
/// What is said of an attempt that was stopped with its supervisor.
const ENDED_WITH: &str = "the supervisor of the node's processes was stopped";
/// What is said to a later life of the agent of an attempt that an earlier one was stopping.
const WAS_STOPPED: &str = "it was being stopped when the agent was restarted";

/// Why an attempt is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The agent asked, and knows why.
    Asked,
    /// An earlier life of the agent asked.
    AskedBefore,
    /// The lease ended.
    LeaseEnded,
    /// The supervisor ends.
    Ending,
}

/// The attempts, and the lease.
#[derive(Debug, Default)]
pub(super) struct Table {
    attempts: BTreeMap<AttemptId, Entry>,
    live: usize,
    lease_until: Option<Millis>,
}

#[derive(Debug)]
struct Entry {
    on_lost: OnLost,
    grace_ms: u64,
    since: Option<Millis>,
    stop: Option<Why>,
    ended: Option<Outcome>,
}

/// What follows from the end of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    /// What the agent that is there is told.
    pub(super) told: Outcome,
    /// What a later life of the agent is told, where that is something else than what the runtime
    /// has written down.
    pub(super) kept: Option<Outcome>,
}

impl Table {
    /// An attempt that an earlier supervisor left.
    pub(super) fn found(&mut self, attempt: AttemptId, on_lost: OnLost, ended: Outcome) {
        let entry = Entry { on_lost, grace_ms: 0, since: None, stop: None, ended: Some(ended) };
        self.attempts.insert(attempt, entry);
    }

    /// An attempt that is to be started. False: it is held already.
    pub(super) fn take_up(&mut self, attempt: AttemptId, on_lost: OnLost, grace_ms: u64) -> bool {
        if self.attempts.contains_key(&attempt) {
            return false;
        }
        let entry = Entry { on_lost, grace_ms, since: None, stop: None, ended: None };
        self.attempts.insert(attempt, entry);
        self.live += 1;
        true
    }

    /// It runs.
    pub(super) fn started(&mut self, attempt: AttemptId, now: Millis) {
        if let Some(entry) = self.attempts.get_mut(&attempt) {
            entry.since = Some(now);
        }
    }

    /// It is being stopped. The first reason stays.
    pub(super) fn stop(&mut self, attempt: AttemptId, why: Why) {
        if let Some(entry) = self.attempts.get_mut(&attempt)
            && matches!(entry.stop, None | Some(Why::AskedBefore))
        {
            entry.stop = Some(why);
        }
    }

    /// Another life of the agent is there.
    pub(super) fn agent_changed(&mut self) {
        for entry in self.attempts.values_mut().filter(|entry| entry.stop == Some(Why::Asked)) {
            entry.stop = Some(Why::AskedBefore);
        }
    }

    /// It is over. None: it is not held.
    pub(super) fn ended(&mut self, attempt: AttemptId, outcome: Outcome) -> Option<End> {
        let entry = self.attempts.get_mut(&attempt)?;
        if entry.ended.is_none() {
            self.live -= 1;
        }
        let lost =
            |text: &str| Outcome { kind: OutcomeKind::Lost, ..outcome.clone() }.with_message(text);
        let kept = entry.stop.map(|why| match why {
            Why::Asked | Why::AskedBefore => lost(WAS_STOPPED),
            Why::LeaseEnded => lost(LEASE_ENDED),
            Why::Ending => lost(ENDED_WITH),
        });
        let told = match entry.stop {
            Some(Why::LeaseEnded | Why::Ending | Why::AskedBefore) => kept.clone(),
            Some(Why::Asked) | None => None,
        };
        entry.ended = Some(kept.clone().unwrap_or_else(|| outcome.clone()));
        Some(End { told: told.unwrap_or(outcome), kept })
    }

    /// It is known how it ended. False: it goes on, or is not held.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> bool {
        let is_over = self.attempts.get(&attempt).is_some_and(|entry| entry.ended.is_some());
        if is_over {
            self.attempts.remove(&attempt);
        }
        is_over
    }

    /// How many go on.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Those that go on, and their graces.
    pub(super) fn all_live(&self) -> Vec<(AttemptId, u64)> {
        let live = self.attempts.iter().filter(|(_, entry)| entry.ended.is_none());
        live.map(|(attempt, entry)| (*attempt, entry.grace_ms)).collect()
    }

    /// The manager was in contact with the agent: until when that counts.
    pub(super) fn set_lease(&mut self, until: Millis) {
        self.lease_until = Some(until);
    }

    /// When the lease ends, where that matters.
    pub(super) fn lease_until(&self) -> Option<Millis> {
        self.lease_until.filter(|_| self.live > 0)
    }

    /// Those that are to be killed because the lease has ended; the next lease is another one.
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
            entry.stop.get_or_insert(Why::LeaseEnded);
            *attempt
        });
        endangered.collect()
    }

    /// All that is held, for an agent that comes.
    pub(super) fn list(&self, now: Millis) -> impl Iterator<Item = Found> {
        self.attempts.iter().map(move |(attempt, entry)| Found {
            attempt: *attempt,
            on_lost: entry.on_lost,
            ended: entry.ended.clone(),
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

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId::new(JobId(1), index, 1)
    }

    fn killed() -> Outcome {
        Outcome { signal: Some(9), ..Outcome::new(OutcomeKind::Failed) }
    }

    #[test]
    fn an_end_is_held_until_it_is_removed() {
        let mut table = Table::default();
        assert!(table.take_up(attempt(1), OnLost::Wait, 5));
        assert!(!table.take_up(attempt(1), OnLost::Wait, 5));
        table.started(attempt(1), 100);
        assert!(!table.remove(attempt(1)));
        let listed: Vec<_> = table.list(130).collect();
        assert_eq!((listed[0].ran_ms, &listed[0].ended), (30, &None));
        let end = table.ended(attempt(1), Outcome::exited(3)).unwrap();
        assert_eq!(end, End { told: Outcome::exited(3), kept: None });
        assert_eq!(table.live(), 0);
        let listed: Vec<_> = table.list(200).collect();
        assert_eq!((listed[0].ran_ms, &listed[0].ended), (0, &Some(Outcome::exited(3))));
        assert!(table.remove(attempt(1)));
        assert_eq!(table.list(200).count(), 0);
        assert_eq!(table.ended(attempt(1), Outcome::exited(3)), None);
    }

    #[test]
    fn only_the_agent_that_stopped_it_knows_why() {
        let mut table = Table::default();
        table.take_up(attempt(1), OnLost::Wait, 5);
        table.stop(attempt(1), Why::Asked);
        table.stop(attempt(1), Why::Ending);
        let end = table.ended(attempt(1), killed()).unwrap();
        assert_eq!(end.told, killed());
        let kept = end.kept.unwrap();
        assert_eq!((kept.kind, kept.signal), (OutcomeKind::Lost, Some(9)));
        assert_eq!(kept.message.as_deref(), Some(WAS_STOPPED));
        assert_eq!(table.list(0).next().unwrap().ended, Some(kept.clone()));

        // The next one is told what the list says, unless it asks, too.
        for asks_again in [false, true] {
            let mut table = Table::default();
            table.take_up(attempt(1), OnLost::Wait, 5);
            table.stop(attempt(1), Why::Asked);
            table.agent_changed();
            if asks_again {
                table.stop(attempt(1), Why::Asked);
            }
            let end = table.ended(attempt(1), killed()).unwrap();
            let told = if asks_again { killed() } else { kept.clone() };
            assert_eq!(end, End { told, kept: Some(kept.clone()) });
        }
    }

    #[test]
    fn the_end_of_the_lease_takes_those_that_are_tried_elsewhere() {
        let mut table = Table::default();
        table.set_lease(1_000);
        assert_eq!(table.lease_until(), None, "nothing runs");
        table.take_up(attempt(1), OnLost::Wait, 5);
        table.take_up(attempt(2), OnLost::Requeue, 5);
        table.take_up(attempt(3), OnLost::Requeue, 5);
        table.ended(attempt(3), Outcome::exited(0));
        assert_eq!(table.lease_until(), Some(1_000));
        table.set_lease(2_000);
        assert_eq!(table.lease_ended(1_999), []);
        assert_eq!(table.lease_ended(2_000), [attempt(2)]);
        assert_eq!((table.lease_until(), table.lease_ended(9_000)), (None, vec![]));
        let end = table.ended(attempt(2), killed()).unwrap();
        assert_eq!(end.told.message.as_deref(), Some(LEASE_ENDED));
        assert_eq!((end.told.kind, Some(&end.told)), (OutcomeKind::Lost, end.kept.as_ref()));
        assert_eq!(table.all_live(), [(attempt(1), 5)]);
    }
}
