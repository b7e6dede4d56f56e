use podmesh_protocol::ids::Epoch;

use crate::input::HeartbeatChange::{self, Begun, Closed, Late, LeaseExpired, Resumed};
use crate::lease::LeaseTable;

const A: Epoch = Epoch(1);
const B: Epoch = Epoch(2);

fn table() -> LeaseTable {
    LeaseTable::new(1_000, 15_000)
}

fn tick(table: &mut LeaseTable, now_ms: u64) -> Vec<(Epoch, HeartbeatChange)> {
    let mut out = Vec::new();
    table.tick(now_ms, &mut out);
    out
}

/// Ticks whenever the table asks for it, until `end_ms`; what it said, and when.
fn run(table: &mut LeaseTable, end_ms: u64) -> Vec<(u64, Epoch, HeartbeatChange)> {
    let mut said = Vec::new();
    while let Some(at) = table.next_wakeup().filter(|at| *at <= end_ms) {
        said.extend(tick(table, at).into_iter().map(|(epoch, change)| (at, epoch, change)));
    }
    said
}

#[test]
fn silence_is_late_after_three_intervals_and_expired_after_the_lease() {
    let mut table = table();
    table.open(10_000, A);
    assert_eq!(run(&mut table, 60_000), [(13_000, A, Late), (25_000, A, LeaseExpired)]);
    assert_eq!(table.next_wakeup(), None);
    assert_eq!(table.on_beat(60_000, A), None, "an expired session does not come back");
    assert!(!table.watches(A), "and is not to be answered");
}

#[test]
fn beats_keep_a_session_alive_and_say_nothing() {
    let mut table = table();
    table.open(0, A);
    table.open(0, B);
    assert_eq!(table.on_beat(500, A), Some(Begun), "the first one says so");
    for beat_ms in (1_000..40_000).step_by(1_000) {
        assert_eq!(table.on_beat(beat_ms, A), None);
        let said = run(&mut table, beat_ms);
        assert!(said.iter().all(|(_, epoch, _)| *epoch == B), "{said:?}");
    }
}

#[test]
fn a_late_one_resumes_once_and_can_be_late_again() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(table.on_beat(0, A), Some(Begun));
    assert_eq!(run(&mut table, 4_000), [(3_000, A, Late)]);
    assert_eq!(table.on_beat(4_500, A), Some(Resumed));
    assert_eq!(table.on_beat(4_600, A), None);
    assert_eq!(run(&mut table, 10_000), [(7_600, A, Late)]);
}

#[test]
fn a_closed_stream_is_told_once_and_the_lease_goes_on() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(table.on_stream_closed(A), Some(Closed));
    assert_eq!(table.on_stream_closed(A), None);
    assert_eq!(run(&mut table, 20_000), [(15_000, A, LeaseExpired)], "and not late before");
    table.open(20_000, B);
    assert_eq!(table.on_beat(20_100, B), Some(Begun));
    assert_eq!(table.on_stream_closed(B), Some(Closed));
    assert_eq!(table.on_beat(20_500, B), Some(Resumed));
    assert_eq!(table.on_stream_closed(B), Some(Closed));
    table.close(B);
    assert_eq!((table.on_stream_closed(B), table.next_wakeup()), (None, None));
}

#[test]
fn a_thread_that_was_stalled_itself_forgives() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(tick(&mut table, 1_000), []);
    // Asked for 2,000; asleep until 62,000: all deadlines move by a minute.
    assert_eq!(table.next_wakeup(), Some(2_000));
    assert_eq!(tick(&mut table, 62_000), []);
    assert_eq!(run(&mut table, 90_000), [(63_000, A, Late), (75_000, A, LeaseExpired)]);
}

#[test]
fn whoever_was_silent_before_a_stall_has_half_a_lease_to_come_back() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(run(&mut table, 14_000), [(3_000, A, Late)]);
    assert_eq!(tick(&mut table, 60_000), []);
    assert_eq!(run(&mut table, 70_000), [(67_500, A, LeaseExpired)]);
}

#[test]
fn a_wakeup_that_is_a_little_late_forgives_nothing() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(tick(&mut table, 2_000), [], "one interval too late");
    assert_eq!(tick(&mut table, 3_000), [(A, Late)]);
}

#[test]
fn a_beat_read_after_a_stall_is_not_dated_into_the_future() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(table.on_beat(60_000, A), Some(Begun));
    assert_eq!(tick(&mut table, 60_000), []);
    assert_eq!(run(&mut table, 70_000), [(63_000, A, Late)]);
}
