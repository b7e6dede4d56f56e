//! Removes jobs that have been kept long enough, those that ended first before others, in small
//! steps so that other work is not delayed. Also saves the age clock, and has the core remove nodes
//! and keys.

use std::time::Duration;

use podmesh_manager_core::input::Input;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::ids::Name;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::api::Api;
use crate::clock::{Clock, millis};
use crate::config::Retention;
use crate::core::CoreHandle;
use crate::threads::Reads;

/// Interval between checks for overdue jobs.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Maximum interval between two times that the age clock is saved.
const SAVE_EVERY_MAX: Duration = Duration::from_secs(3600);
/// Maximum number of jobs that are removed in one step.
const JOBS_PER_STEP: u32 = 256;
/// Pause between two steps.
const PAUSE: Duration = Duration::from_millis(5);

/// What removes jobs, nodes and keys.
pub(crate) struct Sweeper {
    pub(crate) api: Api,
    pub(crate) core: CoreHandle,
    pub(crate) reads: Reads,
    pub(crate) clock: Clock,
    pub(crate) kept: Retention,
    /// The name that events give for this.
    pub(crate) by: Name,
}

impl Sweeper {
    /// Removes what is overdue until it is dropped.
    pub(crate) async fn run(self) {
        // Nodes and keys are kept for up to a fifth longer than `nodes_age_max`.
        let save_every = (self.kept.nodes_age_max / 10).clamp(LOOK_EVERY, SAVE_EVERY_MAX);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved: Option<Instant> = None;
        loop {
            looks.tick().await;
            if saved.is_none_or(|saved| saved.elapsed() >= save_every) {
                saved = Some(Instant::now());
                self.core.tell(Input::RetentionDue {
                    age_ms: self.clock.age_ms(),
                    keep_ms: millis(self.kept.nodes_age_max),
                    by: self.by.clone(),
                });
            }
            match self.sweep().await {
                Ok(0) => {}
                Ok(jobs) => tracing::info!(jobs, "removed jobs that have been kept long enough"),
                // A database that cannot be written stops the manager elsewhere. While the manager
                // stops, this does not matter.
                Err(error) => tracing::debug!(%error, "cannot remove jobs"),
            }
        }
    }

    /// Removes all jobs that are overdue now. Returns how many.
    async fn sweep(&self) -> Result<u64, ErrorReply> {
        let mut removed = 0;
        loop {
            let ended_before = self.clock.age_ms().saturating_sub(millis(self.kept.age_max));
            let attempts_max = self.kept.attempts_max;
            let overdue = self
                .reads
                .run(move |history| history.overdue(ended_before, attempts_max, JOBS_PER_STEP))
                .await?;
            if overdue.is_empty() {
                return Ok(removed);
            }
            removed += u64::from(self.api.remove_jobs(overdue, None).await?);
            sleep(PAUSE).await;
        }
    }
}
