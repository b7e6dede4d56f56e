//! What must hold after every step.

use std::collections::BTreeSet;

use crate::attempts::Phase;
use crate::core::Core;

impl Core {
    /// Whether every report is acknowledged; for tests.
    pub fn outbox_is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Checks what must hold after every step; for tests.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_invariants(&self) {
        self.outbox.check();
        let (unsent_ends, unacked_ends) = self.outbox.ends();
        let unsent: BTreeSet<_> = unsent_ends.iter().copied().collect();
        assert_eq!(unsent.len(), unsent_ends.len(), "an end is reported once");
        let unacked: BTreeSet<_> = unacked_ends.iter().copied().collect();

        let mut timeouts = BTreeSet::new();
        let mut counting = BTreeSet::new();
        for (attempt, held) in &self.attempts {
            let is_reported = unsent.contains(attempt) || unacked.contains(attempt);
            match &held.phase {
                Phase::Live(live) => {
                    assert!(!unsent.contains(attempt), "{attempt} runs, and its end is told");
                    timeouts.extend(live.timeout_at.map(|at| (at, *attempt)));
                    if !live.is_fenced() {
                        assert!(counting.insert(attempt.task), "two live ones of {}", attempt.task);
                    }
                }
                Phase::Waiting(_) => {
                    assert!(counting.insert(attempt.task), "two live ones of {}", attempt.task);
                    let waits_for = self.attempts.range(..attempt).next_back();
                    assert!(
                        waits_for.is_some_and(|(older, held)| older.task == attempt.task
                            && matches!(&held.phase, Phase::Live(live) if live.is_fenced())),
                        "{attempt} waits for nothing"
                    );
                }
                Phase::Ended { .. } => assert!(is_reported, "the end of {attempt} is not told"),
            }
        }
        for attempt in &unsent {
            let is_ended = matches!(
                self.attempts.get(attempt).map(|held| &held.phase),
                Some(Phase::Ended { .. })
            );
            assert!(is_ended, "{attempt} is not over, and its end is told");
        }
        assert_eq!(timeouts, self.timeouts, "timers are those of the attempts");
    }
}
