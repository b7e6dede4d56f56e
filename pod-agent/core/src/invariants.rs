//! Invariants that hold after every step.

use alloc::collections::BTreeSet;

use crate::attempts::Phase;
use crate::core::Core;

impl Core {
    /// Returns whether every report is acknowledged. For tests.
    pub fn outbox_is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Checks the invariants. For tests.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_invariants(&self) {
        self.outbox.check();
        let (unsent_ends, unacked_ends) = self.outbox.ends();
        let unsent: BTreeSet<_> = unsent_ends.iter().copied().collect();
        assert_eq!(unsent.len(), unsent_ends.len(), "an end is reported twice");
        let unacked: BTreeSet<_> = unacked_ends.iter().copied().collect();

        let mut timeouts = BTreeSet::new();
        let mut counting = BTreeSet::new();
        for (attempt, entry) in &self.attempts {
            let is_reported = unsent.contains(attempt) || unacked.contains(attempt);
            match &entry.phase {
                Phase::Active(active) => {
                    assert!(!unsent.contains(attempt), "{attempt} runs, but its end is reported");
                    timeouts.extend(active.timeout_at.map(|at| (at, *attempt)));
                    if !active.is_fenced() {
                        assert!(
                            counting.insert(attempt.task),
                            "two active attempts of {}",
                            attempt.task
                        );
                    }
                }
                Phase::Waiting(_) => {
                    assert!(
                        counting.insert(attempt.task),
                        "two active attempts of {}",
                        attempt.task
                    );
                    let waits_for = self.attempts.range(..attempt).next_back();
                    assert!(
                        waits_for.is_some_and(|(older, entry)| older.task == attempt.task
                            && matches!(&entry.phase, Phase::Active(active) if active.is_fenced())),
                        "{attempt} waits for nothing"
                    );
                }
                Phase::Ended { .. } => assert!(is_reported, "the end of {attempt} is not reported"),
            }
        }
        for attempt in &unsent {
            let is_ended = matches!(
                self.attempts.get(attempt).map(|entry| &entry.phase),
                Some(Phase::Ended { .. })
            );
            assert!(is_ended, "{attempt} has not ended, but its end is reported");
        }
        assert_eq!(timeouts, self.timeouts, "timers differ from the attempts' timeouts");
    }
}
