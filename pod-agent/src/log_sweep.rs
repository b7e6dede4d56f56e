//! Removal of logs that are too old, and of the oldest logs if all together are too large.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use podmesh_logrotate::{PruneLimits, PruneReport, prune};
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_wire::machine::disk_bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::age_clock::AgeClock;
use crate::paths::attempt_log_dir;

/// Maximum interval between two sweeps of the whole tree.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Maximum share of the time that earlier sweeps take (a fiftieth).
const SWEEP_SHARE: u32 = 50;
/// The default size limit of all logs, as a share of their disk (a tenth).
const DISK_SHARE: u64 = 10;
/// The file in the agent's data directory with the highest job whose output was removed.
const REMOVED_FILE: &str = "logs-removed";

/// How much output is kept on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLimits {
    pub(crate) age_max: Duration,
    /// Maximum bytes for all output; `None` for a tenth of the disk.
    pub(crate) bytes_max: Option<u64>,
}

/// The highest job whose output was removed on this node, by this or an earlier run of the agent.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RemovedLogs {
    path: Arc<Path>,
    job_max: Arc<AtomicU64>,
}

impl RemovedLogs {
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join(REMOVED_FILE);
        let job_max = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        Self { path: path.into(), job_max: Arc::new(AtomicU64::new(job_max.unwrap_or(0))) }
    }

    /// Returns whether output of a job may have been removed. Only meaningful for attempts that have
    /// no output here.
    pub(crate) fn may_hold(&self, job: JobId) -> bool {
        job.0 <= self.job_max.load(Ordering::Relaxed)
    }

    fn add(&self, job: u64) -> io::Result<()> {
        if self.job_max.fetch_max(job, Ordering::Relaxed) >= job {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        fs::write(&new, job.to_string())?;
        fs::rename(&new, &self.path)
    }
}

/// Sweeps the logs in the background, one sweep at a time.
pub(crate) struct LogSweep {
    logs_dir: PathBuf,
    kept: LogLimits,
    clock: AgeClock,
    removed: RemovedLogs,
    running: Option<JoinHandle<SweepResult>>,
    last: Option<SweepResult>,
    /// The number of attempts that had ended before the last sweep.
    ended: u64,
    /// The folders of the attempts that were running at the last sweep.
    live: HashSet<PathBuf>,
}

/// The result of the last sweep.
#[derive(Clone, Copy, Debug)]
struct SweepResult {
    at: Instant,
    took: Duration,
    /// Whether the remaining logs exceed the size limit: attempts still run or have just ended.
    is_over: bool,
    /// Bytes of the remaining logs.
    bytes: u64,
}

impl SweepResult {
    /// Returns whether the next sweep is due, `since` this time. `more_ended`: whether attempts have
    /// ended meanwhile, so that there is more output that may be removed.
    fn is_due(&self, since: Duration, more_ended: bool) -> bool {
        let early = (more_ended || self.is_over) && since >= self.took * SWEEP_SHARE;
        early || since >= SWEEP_EVERY
    }
}

impl LogSweep {
    pub(crate) fn new(
        logs_dir: PathBuf,
        kept: LogLimits,
        clock: AgeClock,
        removed: RemovedLogs,
    ) -> Self {
        let live = HashSet::new();
        Self { logs_dir, kept, clock, removed, running: None, last: None, ended: 0, live }
    }

    /// Returns the bytes of all logs at the last sweep.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.last.map(|last| last.bytes)
    }

    /// Starts a sweep in the background if one is due. `ended`: the number of attempts that have
    /// ended so far. `held`: the attempts that may still write.
    pub(crate) async fn look(&mut self, ended: u64, held: impl FnOnce() -> Vec<AttemptId>) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        if let Some(running) = self.running.take() {
            // A sweep that panicked has no result.
            self.last = running.await.ok().or(self.last);
        }
        if self.last.is_some_and(|last| !last.is_due(last.at.elapsed(), ended != self.ended)) {
            return;
        }
        self.ended = ended;
        let folder = |attempt| attempt_log_dir(&self.logs_dir, attempt);
        let live: HashSet<_> = held().into_iter().map(folder).collect();
        let no_longer_live = self.live.difference(&live).cloned().collect();
        self.live.clone_from(&live);
        let (logs_dir, kept) = (self.logs_dir.clone(), self.kept);
        let (clock, removed) = (self.clock.clone(), self.removed.clone());
        let was_over = self.last.is_some_and(|last| last.is_over);
        let sweep =
            move || sweep(&logs_dir, kept, &clock, &removed, &live, no_longer_live, was_over);
        self.running = Some(spawn_blocking(sweep));
    }
}

fn sweep(
    logs_dir: &Path,
    kept: LogLimits,
    clock: &AgeClock,
    removed: &RemovedLogs,
    live: &HashSet<PathBuf>,
    ended: Vec<PathBuf>,
    was_over: bool,
) -> SweepResult {
    let began = Instant::now();
    // Attempts are removed in the order of their ends. An attempt may end long after its last byte,
    // so the folder's time shows the end.
    for dir in ended {
        // An attempt without output has no folder.
        if let Ok(dir) = File::open(dir) {
            _ = dir.set_modified(SystemTime::now());
        }
    }
    let bytes_max = kept.bytes_max.or_else(|| Some(disk_bytes(logs_dir).ok()? / DISK_SHARE));
    let bytes_max = bytes_max.unwrap_or(u64::MAX);
    let limits = PruneLimits { age_max: kept.age_max, bytes_max };
    let report = prune(logs_dir, limits, clock.now(), |dir| live.contains(dir));
    if let Err(error) = clock.save() {
        tracing::warn!("cannot save the age of logs: {error}");
    }
    if let Some(job) = report.job_removed_max
        && let Err(error) = removed.add(job)
    {
        tracing::warn!("cannot save which logs were removed: {error}");
    }
    tell(&report, bytes_max, was_over);
    let is_over = report.bytes_kept > bytes_max;
    let bytes = report.bytes_kept;
    SweepResult { at: Instant::now(), took: began.elapsed(), is_over, bytes }
}

fn tell(report: &PruneReport, bytes_max: u64, was_over: bool) {
    for error in &report.errors {
        tracing::warn!("cannot remove old logs: {error}");
    }
    if report.files_removed > 0 {
        let (files, bytes) = (report.files_removed, report.bytes_removed);
        tracing::info!(files, bytes, "removed old logs");
    }
    if report.attempts_removed_for_size > 0 {
        let (attempts, kept) = (report.attempts_removed_for_size, report.bytes_kept);
        tracing::warn!(
            attempts,
            kept,
            bytes_max,
            "all logs took more than `log_node_size`, so those of the attempts that ended first were removed"
        );
    }
    if report.bytes_kept > bytes_max && !was_over {
        tracing::warn!(
            kept = report.bytes_kept,
            bytes_max,
            "the logs of running attempts take more than `log_node_size`, and are not removed"
        );
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_logrotate::{LogWriter, RotationPolicy};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sweep_is_early_if_attempts_have_ended() {
        let secs = Duration::from_secs;
        let last = SweepResult { at: Instant::now(), took: secs(2), is_over: false, bytes: 0 };
        assert!(!last.is_due(secs(599), false), "nothing has ended");
        assert!(last.is_due(secs(600), false), "the interval is over");
        assert!(last.is_due(secs(100), true));
        assert!(SweepResult { is_over: true, ..last }.is_due(secs(100), false));
        assert!(!last.is_due(secs(99), true), "at most a fiftieth of the time");
        assert!(SweepResult { took: secs(60), ..last }.is_due(secs(600), true));
    }

    #[tokio::test]
    async fn the_oldest_output_is_removed_and_the_removal_is_remembered() {
        let (data, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let logs_dir = logs.path().to_owned();
        let attempt = |job| AttemptId::new(JobId(job), 1, 1);
        for job in 1..=4u64 {
            let dir = attempt_log_dir(&logs_dir, attempt(job));
            let mut writer = LogWriter::open(&dir, "stdout", RotationPolicy::default()).unwrap();
            writer.append(&[b'x'; 300_000]).unwrap();
            let hours = SystemTime::now() - Duration::from_secs(3600 * (10 - job));
            for path in [dir.join("stdout.log"), dir] {
                File::open(path).unwrap().set_modified(hours).unwrap();
            }
        }
        let removed = RemovedLogs::open(data.path());
        assert!(!removed.may_hold(JobId(1)));
        let kept = LogLimits { age_max: Duration::MAX, bytes_max: Some(MIB) };
        let clock = AgeClock::open(data.path());
        let mut sweep = LogSweep::new(logs_dir.clone(), kept, clock, removed.clone());
        // The first is running, the second has just ended, and the third ended longest ago.
        sweep.live = [1, 2].map(|job| attempt_log_dir(&logs_dir, attempt(job))).into();
        sweep.look(1, || vec![attempt(1)]).await;
        let last = sweep.running.take().unwrap().await.unwrap();
        let left: Vec<_> =
            (1..=4).map(|job| attempt_log_dir(&logs_dir, attempt(job)).exists()).collect();
        assert_eq!(left, [true, true, false, true]);
        assert!(!last.is_over);
        for removed in [removed, RemovedLogs::open(data.path())] {
            assert!(removed.may_hold(JobId(3)) && !removed.may_hold(JobId(4)));
        }
    }
}
