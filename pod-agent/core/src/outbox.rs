//! Reports that the manager has not acknowledged.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::ids::{AttemptId, Epoch};
use podmesh_protocol::limits::{BATCH_ROWS_MAX, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use podmesh_protocol::report::{Report, ReportFact};
use podmesh_protocol::session::ToManager;

/// How many unacknowledged messages with reports may be in flight. Further reports wait, so that
/// queues stay short and batches grow when the manager is slow: each message costs it a commit.
pub(crate) const MESSAGES_IN_FLIGHT_MAX: usize = 2;

/// Upper bound for the bytes of a row without its text: number, attempt, an outcome's named fields.
const ROW_BYTES: usize = 160;
/// Maximum bytes of the rows of one message; the rest of the frame is for the envelope.
const ROWS_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;

/// The key of a report. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReportKey(u64);

/// The queue of reports. A report gets its number when it is sent, and is kept until it is
/// acknowledged. In the next session what is not acknowledged gets new numbers. A report can be withdrawn:
/// then it is not sent, or not again.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The number of the last report that was sent; 0 if none was.
    last_number: u64,
    last_key: u64,
    unsent: BTreeMap<ReportKey, (AttemptId, ReportFact)>,
    /// Sent in the last session, in order of their keys, and numbered without gaps, up to `last_number`.
    unacked: VecDeque<Sent>,
    /// The last number in each unacknowledged message of that session.
    in_flight: VecDeque<u64>,
}

#[derive(Debug)]
struct Sent {
    key: ReportKey,
    report: Report,
    withdrawn: bool,
}

impl Outbox {
    /// Adds a report.
    pub(crate) fn push(&mut self, attempt: AttemptId, mut fact: ReportFact) -> ReportKey {
        match &mut fact {
            ReportFact::Preparing(text)
            | ReportFact::LogGap(text)
            | ReportFact::Health(_, text) => cut(text),
            ReportFact::Ended(outcome) => outcome.message.iter_mut().for_each(cut),
            ReportFact::Started | ReportFact::Listening(_) => {}
        }
        self.last_key += 1;
        let key = ReportKey(self.last_key);
        self.unsent.insert(key, (attempt, fact));
        key
    }

    /// Withdraws a report. If it was sent, it is not sent again.
    pub(crate) fn take_back(&mut self, key: ReportKey) {
        if self.unsent.remove(&key).is_none()
            && let Ok(at) = self.unacked.binary_search_by_key(&key, |sent| sent.key)
        {
            self.unacked[at].withdrawn = true;
        }
    }

    /// Returns whether everything is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.unacked.is_empty()
    }

    /// Begins a session with a manager that has processed the reports up to and including this number:
    /// the others are to be sent again. Returns the attempts whose end is now acknowledged.
    pub(crate) fn session_opened(&mut self, acked: u64) -> Vec<AttemptId> {
        let ended = self.acked(acked);
        for Sent { key, report: Report(_, attempt, fact), withdrawn } in self.unacked.drain(..) {
            if !withdrawn {
                self.unsent.insert(key, (attempt, fact));
            }
        }
        self.in_flight.clear();
        self.last_number = acked;
        ended
    }

    /// Forgets the reports up to and including this number, and returns the attempts whose end is
    /// now acknowledged.
    pub(crate) fn acked(&mut self, number: u64) -> Vec<AttemptId> {
        let mut ended = Vec::new();
        let known = self.unacked.partition_point(|sent| sent.report.0 <= number);
        for Sent { report: Report(_, attempt, fact), .. } in self.unacked.drain(..known) {
            if matches!(fact, ReportFact::Ended(_)) {
                ended.push(attempt);
            }
        }
        let arrived = self.in_flight.partition_point(|last| *last <= number);
        self.in_flight.drain(..arrived);
        ended
    }

    /// Adds messages until the maximum is in flight or everything is sent.
    pub(crate) fn fill(&mut self, epoch: Epoch, messages: &mut Vec<ToManager>) {
        while self.in_flight.len() < MESSAGES_IN_FLIGHT_MAX {
            let rows = self.next_rows();
            let Some(Report(last, ..)) = rows.last() else { break };
            self.in_flight.push_back(*last);
            messages.push(ToManager::Reports(epoch, rows));
        }
    }

    fn next_rows(&mut self) -> Vec<Report> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < BATCH_ROWS_MAX
            && let Some(next) = self.unsent.first_entry()
        {
            bytes += row_bytes(&next.get().1);
            if bytes > ROWS_BYTES_MAX {
                break;
            }
            let (key, (attempt, fact)) = next.remove_entry();
            self.last_number = self.last_number.saturating_add(1);
            let report = Report(self.last_number, attempt, fact);
            rows.push(report.clone());
            self.unacked.push_back(Sent { key, report, withdrawn: false });
        }
        rows
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check(&self) {
        assert!(self.in_flight.len() <= MESSAGES_IN_FLIGHT_MAX);
        // A manager that counts to the end of the numbers gets the last one again and again.
        if self.last_number < u64::MAX {
            let numbers = (0..=self.last_number).rev();
            for (number, sent) in numbers.zip(self.unacked.iter().rev()) {
                assert_eq!(sent.report.0, number, "gap in the numbers");
            }
        }
        assert!(self.unacked.iter().is_sorted_by_key(|sent| sent.key));
        assert!(self.in_flight.iter().is_sorted());
    }

    /// Returns the attempts whose end is unacknowledged: those whose report is to be sent, and those
    /// whose report was sent.
    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn ends(&self) -> (Vec<AttemptId>, Vec<AttemptId>) {
        let is_end = |fact: &ReportFact| matches!(fact, ReportFact::Ended(_));
        let unsent = self.unsent.values().filter(|(_, fact)| is_end(fact));
        let unacked = self.unacked.iter().filter(|sent| is_end(&sent.report.2));
        (unsent.map(|(attempt, _)| *attempt).collect(), unacked.map(|sent| sent.report.1).collect())
    }
}

fn cut(text: &mut String) {
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
}

fn row_bytes(fact: &ReportFact) -> usize {
    let text = match fact {
        ReportFact::Preparing(text) | ReportFact::LogGap(text) | ReportFact::Health(_, text) => {
            text.len()
        }
        // At most three bytes each.
        ReportFact::Listening(ports) => 3 * ports.len(),
        ReportFact::Ended(outcome) => outcome.message.as_ref().map_or(0, String::len),
        ReportFact::Started => 0,
    };
    ROW_BYTES + text
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::codec::encode;
    use podmesh_protocol::ids::JobId;
    use podmesh_protocol::report::Outcome;

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId::new(JobId(u64::MAX), index, u32::MAX)
    }

    fn numbers(messages: &[ToManager]) -> Vec<Vec<u64>> {
        let numbers = |message: &ToManager| match message {
            ToManager::Reports(_, rows) => rows.iter().map(|r| r.0).collect(),
            _ => Vec::new(),
        };
        messages.iter().map(numbers).collect()
    }

    #[test]
    fn the_largest_rows_fit_their_frames() {
        let mut outbox = Outbox::default();
        let mut outcome = Outcome::start_failed(i32::MIN, "x".repeat(1 << 20));
        outcome.signal = Some(i32::MIN);
        outcome.oom_killed = true;
        outcome.ran_ms = u64::MAX;
        for index in 0..4096 {
            outbox.push(attempt(u32::MAX - index), ReportFact::Ended(outcome.clone()));
        }
        let mut messages = Vec::new();
        while !outbox.is_empty() {
            messages.clear();
            outbox.fill(Epoch(u64::MAX), &mut messages);
            for message in &messages {
                assert!(encode(message).is_ok_and(|bytes| bytes.len() > FRAME_BYTES_MAX / 4));
            }
            outbox.acked(u64::MAX);
        }
    }

    #[test]
    fn small_rows_fit_their_frames_and_rows_are_bounded() {
        let mut outbox = Outbox::default();
        let mut outcome = Outcome::exited(i32::MIN);
        outcome.signal = Some(i32::MIN);
        outcome.oom_killed = true;
        outcome.ran_ms = u64::MAX;
        for index in 0..8_000 {
            outbox.push(attempt(u32::MAX - index), ReportFact::Ended(outcome.clone()));
        }
        let mut messages = Vec::new();
        outbox.fill(Epoch(u64::MAX), &mut messages);
        assert_eq!(numbers(&messages).iter().map(Vec::len).sum::<usize>(), 8_000);
        for message in &messages {
            assert!(encode(message).is_ok());
        }
    }

    #[test]
    fn reports_beyond_the_window_wait_and_a_new_session_sends_again() {
        let mut outbox = Outbox::default();
        let mut messages = Vec::new();
        for index in 0..20 {
            outbox.push(attempt(index), ReportFact::Started);
            outbox.fill(Epoch(1), &mut messages);
        }
        let window: Vec<_> = (1..=2).map(|n| vec![n]).collect();
        assert_eq!(numbers(&messages), window);

        messages.clear();
        outbox.acked(1);
        outbox.fill(Epoch(1), &mut messages);
        let rest: Vec<u64> = (3..=20).collect();
        assert_eq!(numbers(&messages), [rest]);

        messages.clear();
        outbox.session_opened(10);
        outbox.fill(Epoch(2), &mut messages);
        let again: Vec<u64> = (11..=20).collect();
        assert_eq!(numbers(&messages), [again]);
        outbox.check();

        // Another manager has seen none of them.
        messages.clear();
        outbox.session_opened(0);
        outbox.push(attempt(20), ReportFact::Started);
        outbox.fill(Epoch(3), &mut messages);
        let anew: Vec<u64> = (1..=11).collect();
        assert_eq!(numbers(&messages), [anew]);
        outbox.check();
    }
}
