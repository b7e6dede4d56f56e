//! The table of results.

use std::fmt;
use std::time::Duration;

/// A table of results.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    pub(crate) fn new() -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["measure", "podmesh", "compared with", "ratio", "floor"]);
        Self(table)
    }

    /// Adds a single figure.
    pub(crate) fn figure(&mut self, measure: &str, value: String, floor: &str) {
        eprintln!("  {measure}: {value}");
        self.0.add_row([measure, &value, "", "", floor]);
    }

    /// Adds two figures of one run and their ratio.
    pub(crate) fn ratio(&mut self, measure: &str, value: f64, other: f64, unit: &str, floor: &str) {
        eprintln!("  {measure}: {value:.0} {unit} against {other:.0}: {:.2}", value / other);
        self.0.add_row([
            measure,
            &format!("{value:.0} {unit}"),
            &format!("{other:.0} {unit}"),
            &format!("{:.2}", value / other),
            floor,
        ]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the median.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Returns the time that a given share of the times does not exceed.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list of some hundreds"
    )]
    let index = (last as f64 * share).round() as usize;
    times[index]
}

/// Formats bytes as megabytes (10^6 bytes) with one decimal.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
