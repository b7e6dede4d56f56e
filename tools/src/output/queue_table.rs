//! Queues, as tables and lines for people.

use std::fmt::Write as _;

use comfy_table::Cell;
use podmesh_protocol::queue::{QueueDetail, QueueView};

use super::schedule_table::runs;
use super::screen::Screen;
use super::table::render;

/// `podmesh queue list`.
pub(crate) fn queues(screen: Screen, queues: &[QueueView]) -> String {
    let row = |view: &QueueView| {
        vec![
            Cell::new(&view.queue),
            Cell::new(view.weight),
            Cell::new(of(view.active, view.max_active)),
            Cell::new(cpus(view.active_cpu_millis)),
            Cell::new(view.queued),
            Cell::new(view.jobs),
            Cell::new(view.max_active_per_caller.map_or_else(|| "-".into(), |max| max.to_string())),
            Cell::new(if view.paused { "paused" } else { "open" }),
        ]
    };
    let header = ["QUEUE", "WEIGHT", "ACTIVE", "CPUS", "QUEUED", "JOBS", "PER CALLER", "STATE"];
    render(screen, &header, queues.iter().map(row).collect())
}

/// `podmesh queue show`.
pub(crate) fn queue(screen: Screen, detail: &QueueDetail) -> String {
    let view = &detail.view;
    let mut text = queues(screen, std::slice::from_ref(view));
    if let Some(by) = &view.by {
        _ = writeln!(text, "last changed by {by}");
    }
    if let Some(job) = &detail.dead_letter {
        _ = writeln!(text, "for each task that fails for good, job {}: {}", job.name, runs(job));
    }
    if detail.callers.is_empty() {
        return text;
    }
    let max = view.max_active_per_caller;
    let rows = detail.callers.iter().map(|row| {
        vec![
            Cell::new(row.caller.as_ref().map_or("?", |caller| caller.as_str())),
            Cell::new(of(row.active, max)),
            Cell::new(cpus(row.active_cpu_millis)),
            Cell::new(row.queued),
            Cell::new(row.jobs),
        ]
    });
    text.push('\n');
    let header = ["CALLER", "ACTIVE", "CPUS", "QUEUED", "JOBS"];
    text += &render(screen, &header, rows.collect());
    if detail.more_callers > 0 {
        _ = writeln!(text, "and {} more callers", detail.more_callers);
    }
    text
}

/// Returns `3`, or `3 of 100` with a limit.
pub(crate) fn of(active: u64, max: Option<u32>) -> String {
    max.map_or_else(|| active.to_string(), |max| format!("{active} of {max}"))
}

/// Returns cores from thousandths of cores.
pub(crate) fn cpus(millis: u64) -> String {
    format!("{}", millis as f64 / 1000.0)
}
