//! The heartbeats of the sessions: late, resumed, expired. Pure; the manager's heartbeat thread
//! feeds it, and hands what it says to the core.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Epoch;
use podmesh_protocol::time::Millis;

use crate::faults::planted;
use crate::input::HeartbeatChange;

/// Milliseconds of silence after which a heartbeat is late: three intervals.
pub(crate) fn late_after_ms(heartbeat_ms: u64) -> Millis {
    heartbeat_ms.saturating_mul(3)
}

/// The sessions whose heartbeats are watched.
///
/// A heartbeat is late after three intervals without one, and its lease has expired after
/// `lease_ms`; where that is shorter, it is never late. The thread calls
/// [`tick`](LeaseTable::tick) whenever [`next_wakeup`](LeaseTable::next_wakeup) has come, which is
/// at least once an interval while there are sessions. One that comes more than an interval too
/// late was stalled itself and could not hear: all deadlines then move by the time it was late.
#[derive(Debug)]
pub struct LeaseTable {
    heartbeat_ms: u64,
    lease_ms: u64,
    sessions: BTreeMap<Epoch, Beats>,
    /// When the next tick is due, while there are sessions.
    wakeup_ms: Millis,
    #[cfg(feature = "planted-faults")]
    fault: Option<crate::faults::Fault>,
}

#[derive(Debug)]
struct Beats {
    last_ms: Millis,
    /// Whether one has come.
    begun: bool,
    /// Whether the core was told that it is late or closed.
    suspect: bool,
}

impl LeaseTable {
    /// No sessions yet. Both figures are those of the `Welcome`.
    pub fn new(heartbeat_ms: u64, lease_ms: u64) -> Self {
        Self {
            heartbeat_ms,
            lease_ms,
            sessions: BTreeMap::new(),
            wakeup_ms: 0,
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// Makes a mistake from now on, for the simulator to find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: crate::faults::Fault) {
        self.fault = Some(fault);
    }

    /// Whether the session is watched: not closed, and its lease has not expired. A heartbeat of
    /// any other must not be answered, since the agent would take the answer for a new lease.
    pub fn watches(&self, epoch: Epoch) -> bool {
        self.sessions.contains_key(&epoch)
    }

    /// Watches a session; its lease runs from now on.
    pub fn open(&mut self, now_ms: Millis, epoch: Epoch) {
        if self.sessions.is_empty() {
            self.wakeup_ms = now_ms.saturating_add(self.heartbeat_ms);
        }
        self.sessions.insert(epoch, Beats { last_ms: now_ms, begun: false, suspect: false });
    }

    /// Watches it no more.
    pub fn close(&mut self, epoch: Epoch) {
        self.sessions.remove(&epoch);
    }

    /// A heartbeat came. [`HeartbeatChange::Begun`] for the first one, otherwise
    /// [`HeartbeatChange::Resumed`] where it was late or closed.
    pub fn on_beat(&mut self, now_ms: Millis, epoch: Epoch) -> Option<HeartbeatChange> {
        let beats = self.sessions.get_mut(&epoch)?;
        beats.last_ms = now_ms;
        let resumed = std::mem::take(&mut beats.suspect).then_some(HeartbeatChange::Resumed);
        let begun = std::mem::replace(&mut beats.begun, true);
        if begun { resumed } else { Some(HeartbeatChange::Begun) }
    }

    /// The session's stream was closed, and no other one has taken its place.
    /// [`HeartbeatChange::Closed`], where it was neither late nor closed already. The lease goes on.
    pub fn on_stream_closed(&mut self, epoch: Epoch) -> Option<HeartbeatChange> {
        let beats = self.sessions.get_mut(&epoch)?;
        (!std::mem::replace(&mut beats.suspect, true)).then_some(HeartbeatChange::Closed)
    }

    /// Time passed: appends what became of whom. A session whose lease has expired is watched no
    /// more.
    pub fn tick(&mut self, now_ms: Millis, out: &mut Vec<(Epoch, HeartbeatChange)>) {
        let stalled_ms = now_ms.saturating_sub(self.wakeup_ms);
        if stalled_ms > self.heartbeat_ms && !planted!(self, StallNotForgiven) {
            // Agents that gave up on this manager meanwhile have the time to come back.
            let at_least_ms = now_ms.saturating_sub(self.lease_ms / 2);
            for beats in self.sessions.values_mut() {
                let moved_ms = beats.last_ms.saturating_add(stalled_ms).min(now_ms);
                beats.last_ms = moved_ms.max(at_least_ms);
            }
        }
        let (late_ms, lease_ms) = (late_after_ms(self.heartbeat_ms), self.lease_ms);
        let mut wakeup_ms = now_ms.saturating_add(self.heartbeat_ms);
        self.sessions.retain(|epoch, beats| {
            let silent_ms = now_ms.saturating_sub(beats.last_ms);
            if silent_ms >= lease_ms {
                out.push((*epoch, HeartbeatChange::LeaseExpired));
                return false;
            }
            if silent_ms >= late_ms && !beats.suspect {
                beats.suspect = true;
                out.push((*epoch, HeartbeatChange::Late));
            }
            let deadline_ms = if beats.suspect { lease_ms } else { late_ms.min(lease_ms) };
            wakeup_ms = wakeup_ms.min(beats.last_ms.saturating_add(deadline_ms));
            true
        });
        self.wakeup_ms = wakeup_ms;
    }

    /// When [`tick`](LeaseTable::tick) is to be called next; none while no session is open.
    pub fn next_wakeup(&self) -> Option<Millis> {
        (!self.sessions.is_empty()).then_some(self.wakeup_ms)
    }
}
