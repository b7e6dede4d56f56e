//! Watches the heartbeats of the sessions: late, resumed, expired. It has no side effects; the
//! manager's heartbeat thread calls it, and passes the results to the core.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use podmesh_protocol::ids::Epoch;
use podmesh_protocol::time::Millis;

use crate::faults::planted;
use crate::input::HeartbeatChange;

/// Returns the milliseconds of silence after which a heartbeat is late: three intervals.
pub(crate) fn late_after_ms(heartbeat_ms: u64) -> Millis {
    heartbeat_ms.saturating_mul(3)
}

/// The sessions whose heartbeats are watched.
///
/// A heartbeat is late after three intervals without a beat, and its lease expires after
/// `lease_ms`. If the lease is shorter than three intervals, the heartbeat is never late. The
/// thread calls [`tick`](LeaseTable::tick) at the time that
/// [`next_wakeup`](LeaseTable::next_wakeup) returns, at least once an interval while there are
/// sessions. A call that is more than one interval too late means that the thread was stalled and
/// could not receive beats. All deadlines then move by the time that the call was late.
#[derive(Debug)]
pub struct LeaseTable {
    heartbeat_ms: u64,
    lease_ms: u64,
    sessions: BTreeMap<Epoch, Heartbeat>,
    /// When the next tick is due. Valid only while there are sessions.
    wakeup_ms: Millis,
    #[cfg(feature = "planted-faults")]
    fault: Option<crate::faults::Fault>,
}

#[derive(Debug)]
struct Heartbeat {
    last_ms: Millis,
    /// Whether a beat has come.
    begun: bool,
    /// Whether the core knows that the heartbeat is late or closed.
    suspect: bool,
}

impl LeaseTable {
    /// Creates a table without sessions. Both durations are those of the `Welcome`.
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

    /// Activates a deliberate fault, which the simulator must find.
    #[cfg(feature = "planted-faults")]
    pub fn plant_fault(&mut self, fault: crate::faults::Fault) {
        self.fault = Some(fault);
    }

    /// Returns whether a session is watched: it is not closed and its lease has not expired. Beats
    /// of other sessions must not be answered: the agent would take the answer for a new lease.
    pub fn watches(&self, epoch: Epoch) -> bool {
        self.sessions.contains_key(&epoch)
    }

    /// Returns how many milliseconds later than expected a beat comes that is here now: after the
    /// interval since the last one, or since the session was opened. `None` if the session is not
    /// watched.
    pub fn delay_ms(&self, now_ms: Millis, epoch: Epoch) -> Option<u64> {
        let heartbeat = self.sessions.get(&epoch)?;
        Some(now_ms.saturating_sub(heartbeat.last_ms).saturating_sub(self.heartbeat_ms))
    }

    /// Starts to watch a session. Its lease runs from now on.
    pub fn open(&mut self, now_ms: Millis, epoch: Epoch) {
        if self.sessions.is_empty() {
            self.wakeup_ms = now_ms.saturating_add(self.heartbeat_ms);
        }
        self.sessions.insert(epoch, Heartbeat { last_ms: now_ms, begun: false, suspect: false });
    }

    /// Stops watching a session.
    pub fn close(&mut self, epoch: Epoch) {
        self.sessions.remove(&epoch);
    }

    /// Handles a beat. Returns [`HeartbeatChange::Begun`] for the first one, and
    /// [`HeartbeatChange::Resumed`] for a later one if the heartbeat was late or closed.
    pub fn on_beat(&mut self, now_ms: Millis, epoch: Epoch) -> Option<HeartbeatChange> {
        let heartbeat = self.sessions.get_mut(&epoch)?;
        heartbeat.last_ms = now_ms;
        let resumed = core::mem::take(&mut heartbeat.suspect).then_some(HeartbeatChange::Resumed);
        let begun = core::mem::replace(&mut heartbeat.begun, true);
        if begun { resumed } else { Some(HeartbeatChange::Begun) }
    }

    /// Handles the end of a session's stream that no other stream has replaced. Returns
    /// [`HeartbeatChange::Closed`] unless the heartbeat was already late or closed. The lease
    /// continues.
    pub fn on_stream_closed(&mut self, epoch: Epoch) -> Option<HeartbeatChange> {
        let heartbeat = self.sessions.get_mut(&epoch)?;
        (!core::mem::replace(&mut heartbeat.suspect, true)).then_some(HeartbeatChange::Closed)
    }

    /// Appends the changes that the passing of time has caused to `out`. A session whose lease has
    /// expired is no longer watched.
    pub fn tick(&mut self, now_ms: Millis, out: &mut Vec<(Epoch, HeartbeatChange)>) {
        let stalled_ms = now_ms.saturating_sub(self.wakeup_ms);
        if stalled_ms > self.heartbeat_ms && !planted!(self, StallNotForgiven) {
            // Agents that disconnected during the stall get time to come back.
            let at_least_ms = now_ms.saturating_sub(self.lease_ms / 2);
            for heartbeat in self.sessions.values_mut() {
                let moved_ms = heartbeat.last_ms.saturating_add(stalled_ms).min(now_ms);
                heartbeat.last_ms = moved_ms.max(at_least_ms);
            }
        }
        let (late_ms, lease_ms) = (late_after_ms(self.heartbeat_ms), self.lease_ms);
        let mut wakeup_ms = now_ms.saturating_add(self.heartbeat_ms);
        self.sessions.retain(|epoch, heartbeat| {
            let silent_ms = now_ms.saturating_sub(heartbeat.last_ms);
            if silent_ms >= lease_ms {
                out.push((*epoch, HeartbeatChange::LeaseExpired));
                return false;
            }
            if silent_ms >= late_ms && !heartbeat.suspect {
                heartbeat.suspect = true;
                out.push((*epoch, HeartbeatChange::Late));
            }
            let deadline_ms = if heartbeat.suspect { lease_ms } else { late_ms.min(lease_ms) };
            wakeup_ms = wakeup_ms.min(heartbeat.last_ms.saturating_add(deadline_ms));
            true
        });
        self.wakeup_ms = wakeup_ms;
    }

    /// Returns when [`tick`](LeaseTable::tick) must be called next; `None` if no session is open.
    pub fn next_wakeup(&self) -> Option<Millis> {
        (!self.sessions.is_empty()).then_some(self.wakeup_ms)
    }
}
