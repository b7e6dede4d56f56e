//! The share of the readers. The first [`FREE_READS`] of a connection go at once: more than a command
//! needs. Beside work, further reads go one at a time, callers take turns, and together they are
//! limited to [`READS_PER_SECOND_MAX`], so that clients that ask all the time leave room for the work
//! and for each other. Without work nothing is limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use podmesh_protocol::limits::READS_PER_SECOND_MAX;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Reads of a connection that do not take turns.
const FREE_READS: u32 = 32;
/// Work goes on for this long after each commit.
const WORK: Duration = Duration::from_millis(100);
/// After this long without reads, as many as would have fitted into it go at once.
const BURST: Duration = Duration::from_secs(1);
/// Reads above the limit go together, after this time: the manager and the agents then wake up once
/// for all of them.
const GATHER: Duration = Duration::from_millis(20);

/// The line of all reads.
pub(crate) struct Turns {
    /// The time from one read to the next while they keep coming.
    interval: Duration,
    /// When the next read may go. The lock is the line: tokio grants it in order of arrival, and a
    /// dropped future leaves it.
    next: Mutex<Instant>,
    began: Instant,
    /// Milliseconds from `began` until which work goes on.
    works_until: AtomicU64,
}

/// The line of one caller, of which one read at a time is in the common line.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallerLine(Arc<Mutex<()>>);

/// The reads of one connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionReads {
    line: CallerLine,
    free: Arc<AtomicU32>,
}

impl CallerLine {
    /// Returns the reads of a new connection of this caller.
    pub(crate) fn connection(&self) -> ConnectionReads {
        ConnectionReads { line: self.clone(), free: Arc::new(AtomicU32::new(FREE_READS)) }
    }
}

impl Turns {
    /// Returns the line of a manager on this machine.
    pub(crate) fn new() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::with_cores(u32::try_from(cores).unwrap_or(u32::MAX))
    }

    fn with_cores(cores: u32) -> Self {
        let interval = Duration::from_secs(1) / READS_PER_SECOND_MAX.saturating_mul(cores);
        let began = Instant::now();
        Self { interval, next: Mutex::new(began), began, works_until: AtomicU64::new(0) }
    }

    fn millis(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Must be called after each commit that changed a job.
    pub(crate) fn worked(&self) {
        self.works_until.store(self.millis() + WORK.as_millis() as u64, Ordering::Relaxed);
    }

    fn works(&self) -> bool {
        self.millis() < self.works_until.load(Ordering::Relaxed)
    }

    /// Waits for the turn of a connection's next read. Cancel-safe.
    pub(crate) async fn take(&self, reads: &ConnectionReads) {
        let one_less = |free: u32| free.checked_sub(1);
        if reads.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return;
        }
        let _own = reads.line.0.lock().await;
        let mut next = self.next.lock().await;
        if !self.works() {
            return;
        }
        if let Some(turn) = turn(*next, Instant::now()) {
            sleep_until(turn).await;
        }
        *next = after(*next, Instant::now(), self.interval);
    }
}

/// Returns until when a read waits that may go at `next`; `None` if it goes now.
fn turn(next: Instant, now: Instant) -> Option<Instant> {
    (next > now).then(|| next + GATHER)
}

/// Returns when the next read may go, after one that might have gone at `next` and goes now.
fn after(next: Instant, now: Instant, interval: Duration) -> Instant {
    next.max(now.checked_sub(BURST).unwrap_or(next)) + interval
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_more_reads_go_at_the_rate_of_the_cores() {
        for cores in [1, 4] {
            let turns = Turns::with_cores(cores);
            let rate = READS_PER_SECOND_MAX * cores;
            let mut next = Instant::now();
            let began = next + 2 * BURST;
            let mut now = began;
            let mut read = || {
                now = turn(next, now).unwrap_or(now);
                next = after(next, now, turns.interval);
                now - began
            };
            for _ in 0..rate {
                assert_eq!(read(), Duration::ZERO);
            }
            let last = (0..2 * rate).map(|_| read()).last().unwrap();
            let off = last.abs_diff(Duration::from_secs(2));
            assert!(off <= 2 * GATHER, "{last:?} with {cores} cores");
        }
    }

    /// A connection that has used its free reads.
    fn busy_connection() -> ConnectionReads {
        ConnectionReads { line: CallerLine::default(), free: Arc::default() }
    }

    #[tokio::test]
    async fn nothing_waits_while_there_is_no_work() {
        let turns = Turns::with_cores(1);
        let connection = busy_connection();
        *turns.next.lock().await = Instant::now() + Duration::from_secs(3600);
        for _ in 0..3 {
            tokio::select! {
                biased;
                () = turns.take(&connection) => {}
                () = std::future::ready(()) => unreachable!("it waited"),
            }
        }
        turns.worked();
        tokio::select! {
            biased;
            () = turns.take(&connection) => unreachable!("it did not wait for its turn"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn the_first_reads_of_a_connection_do_not_wait() {
        let turns = Turns::new();
        let line = turns.next.lock().await;
        let reads = CallerLine::default().connection();
        for _ in 0..FREE_READS {
            turns.take(&reads).await;
        }
        tokio::select! {
            biased;
            () = turns.take(&reads) => unreachable!("it did not wait for its turn"),
            () = std::future::ready(()) => {}
        }
        drop(line);
        turns.take(&reads).await;
    }

    #[tokio::test]
    async fn callers_take_turns_and_a_dropped_read_takes_none() {
        let turns = Arc::new(Turns::new());
        let (many, few) = (busy_connection(), busy_connection());
        let (sender, order) = std::sync::mpsc::channel();
        let stand = |own: &ConnectionReads, who: &'static str| {
            let (turns, own, sender) = (Arc::clone(&turns), own.clone(), sender.clone());
            tokio::spawn(async move {
                turns.take(&own).await;
                _ = sender.send(who);
            })
        };
        let line = turns.next.lock().await;
        let mut reads: Vec<_> = (0..10).map(|_| stand(&many, "many")).collect();
        tokio::task::yield_now().await;
        reads.push(stand(&few, "few"));
        let gone = stand(&busy_connection(), "gone");
        tokio::task::yield_now().await;
        gone.abort();
        drop(line);
        for read in reads {
            read.await.unwrap();
        }
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order[..3], ["many", "few", "many"]);
        assert_eq!(order.len(), 11);
    }
}
