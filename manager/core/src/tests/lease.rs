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

/// Ticks whenever a tick is due, until `end_ms`. Returns the changes and their times.
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
    assert_eq!(table.on_beat(60_000, A), None, "an expired session does not resume");
    assert!(!table.watches(A), "its beats must not be answered");
}

#[test]
fn a_beat_is_delayed_by_what_is_more_than_the_interval() {
    let mut table = table();
    assert_eq!(table.delay_ms(10_000, A), None, "nothing is known of the session");
    table.open(10_000, A);
    assert_eq!(table.delay_ms(10_300, A), Some(0));
    table.on_beat(10_300, A);
    assert_eq!(table.delay_ms(11_300, A), Some(0));
    assert_eq!(table.delay_ms(11_420, A), Some(120));
}

#[test]
fn beats_keep_a_session_alive_without_a_change() {
    let mut table = table();
    table.open(0, A);
    table.open(0, B);
    assert_eq!(table.on_beat(500, A), Some(Begun), "the first beat is reported");
    for beat_ms in (1_000..40_000).step_by(1_000) {
        assert_eq!(table.on_beat(beat_ms, A), None);
        let said = run(&mut table, beat_ms);
        assert!(said.iter().all(|(_, epoch, _)| *epoch == B), "{said:?}");
    }
}

#[test]
fn a_late_heartbeat_resumes_once_and_can_be_late_again() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(table.on_beat(0, A), Some(Begun));
    assert_eq!(run(&mut table, 4_000), [(3_000, A, Late)]);
    assert_eq!(table.on_beat(4_500, A), Some(Resumed));
    assert_eq!(table.on_beat(4_600, A), None);
    assert_eq!(run(&mut table, 10_000), [(7_600, A, Late)]);
}

#[test]
fn a_closed_stream_is_reported_once_and_the_lease_continues() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(table.on_stream_closed(A), Some(Closed));
    assert_eq!(table.on_stream_closed(A), None);
    assert_eq!(run(&mut table, 20_000), [(15_000, A, LeaseExpired)], "not late in between");
    table.open(20_000, B);
    assert_eq!(table.on_beat(20_100, B), Some(Begun));
    assert_eq!(table.on_stream_closed(B), Some(Closed));
    assert_eq!(table.on_beat(20_500, B), Some(Resumed));
    assert_eq!(table.on_stream_closed(B), Some(Closed));
    table.close(B);
    assert_eq!((table.on_stream_closed(B), table.next_wakeup()), (None, None));
}

#[test]
fn a_stall_of_the_thread_moves_all_deadlines() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(tick(&mut table, 1_000), []);
    // The tick was due at 2,000 and comes at 62,000: all deadlines move by a minute.
    assert_eq!(table.next_wakeup(), Some(2_000));
    assert_eq!(tick(&mut table, 62_000), []);
    assert_eq!(run(&mut table, 90_000), [(63_000, A, Late), (75_000, A, LeaseExpired)]);
}

#[test]
fn a_session_that_was_silent_before_a_stall_has_half_a_lease_to_resume() {
    let mut table = table();
    table.open(0, A);
    assert_eq!(run(&mut table, 14_000), [(3_000, A, Late)]);
    assert_eq!(tick(&mut table, 60_000), []);
    assert_eq!(run(&mut table, 70_000), [(67_500, A, LeaseExpired)]);
}

#[test]
fn a_tick_that_is_a_little_late_moves_no_deadline() {
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
