//! Schedules, as tables and lines for people.

use std::fmt::Write as _;

use comfy_table::Cell;
use podmesh_calendar::Zone;
use podmesh_protocol::schedule::{ScheduleDetail, ScheduleRunView, ScheduleView};
use podmesh_protocol::spec::{JobSpec, RuntimeSpec};

use super::json::Word;
use super::schedule::{Overlap, RunResult};
use super::screen::Screen;
use super::table::render;
use super::text::{clip, escape};
use super::time::{coarse, local};

/// The most characters of a command.
const COMMAND_SHOWN: usize = 60;

/// `podmesh schedule list`.
pub(crate) fn schedules(screen: Screen, schedules: &[ScheduleView]) -> String {
    let row = |view: &ScheduleView| {
        let next = match view.next_wall_ms {
            _ if view.paused => "paused".into(),
            Some(ms) => local(ms),
            None => "never".into(),
        };
        let last = view.last_wall_ms.map(local).unwrap_or_default();
        let job = view.last_job.map(|job| job.to_string()).unwrap_or_default();
        vec![
            Cell::new(&view.schedule),
            Cell::new(when(view)),
            Cell::new(next),
            Cell::new(last),
            Cell::new(job),
            Cell::new(view.ran),
            Cell::new(view.skipped),
            Cell::new(view.missed),
        ]
    };
    let header = ["SCHEDULE", "WHEN", "NEXT", "LAST", "JOB", "RAN", "SKIPPED", "MISSED"];
    render(screen, &header, schedules.iter().map(row).collect())
}

/// Returns the rule of a schedule: `0 3 * * * Europe/Berlin`, `every 15min`.
pub(crate) fn when(view: &ScheduleView) -> String {
    match (&view.cron, &view.zone, view.every_ms) {
        (Some(cron), zone, _) => {
            format!("{} {}", escape(cron), escape(zone.as_deref().unwrap_or("UTC")))
        }
        (None, _, Some(ms)) => {
            format!("every {}", humantime::format_duration(std::time::Duration::from_millis(ms)))
        }
        (None, _, None) => "?".into(),
    }
}

/// `podmesh schedule show`.
pub(crate) fn schedule(detail: &ScheduleDetail) -> String {
    let view = &detail.view;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "{name:<9} {value}");
    line("schedule", view.schedule.as_str());
    line("when", &when(view));
    line("overlap", &Overlap::from(&detail.overlap).word());
    line("catch-up", &coarse(detail.catch_up_ms));
    line("runs", &runs(&detail.job));
    line("by", view.by.as_str());
    let counts = format!("{} ran, {} skipped, {} missed", view.ran, view.skipped, view.missed);
    line("so far", &counts);
    if let (Some(ms), Some(job)) = (view.last_wall_ms, view.last_job) {
        line("last", &format!("{}, job {job}", local(ms)));
    }
    if view.waiting {
        line("waits", "a run starts when the last one has ended");
    }
    if view.paused {
        line("next", "paused");
    }
    let zone = view.zone.as_deref().and_then(|zone| Zone::new(zone).ok());
    for ms in &detail.next_ms {
        match &zone {
            Some(zone) => line("next", &zone.format(*ms)),
            None => line("next", &local(*ms)),
        }
    }
    text
}

/// Returns what a job runs, in one line.
pub(crate) fn runs(job: &JobSpec) -> String {
    let run = &job.run;
    let image = match &run.runtime {
        RuntimeSpec::Docker(docker) => Some(docker.image.as_str()),
        RuntimeSpec::Process | RuntimeSpec::Noop => None,
    };
    let words = image.into_iter().chain(run.command.iter().map(String::as_str));
    let words: Vec<String> = words.map(escape).collect();
    clip(&words.join(" "), COMMAND_SHOWN)
}

/// `podmesh schedule history`.
pub(crate) fn history(screen: Screen, rows: &[ScheduleRunView]) -> String {
    let row = |row: &ScheduleRunView| {
        let result = RunResult::from(&row.result).word();
        let times =
            if row.count > 1 { format!("{result} ({})", row.count) } else { result.into_owned() };
        vec![
            Cell::new(local(row.instant_ms)),
            Cell::new(times),
            Cell::new(row.job.map(|job| job.to_string()).unwrap_or_default()),
            Cell::new(row.message.as_deref().map(escape).unwrap_or_default()),
        ]
    };
    render(screen, &["FOR", "RESULT", "JOB", "WHY"], rows.iter().map(row).collect())
}
