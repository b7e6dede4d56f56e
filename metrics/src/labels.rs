//! Labels with few values.

use podmesh_protocol::limits::METRIC_NAMES_MAX;
use podmesh_protocol::report::OutcomeKind;

use crate::page::{Sample, Value};

/// The outcomes of attempts, with their words.
pub const OUTCOMES: [(OutcomeKind, &str); 6] = [
    (OutcomeKind::Succeeded, "succeeded"),
    (OutcomeKind::Failed, "failed"),
    (OutcomeKind::Cancelled, "cancelled"),
    (OutcomeKind::TimedOut, "timed_out"),
    (OutcomeKind::Lost, "lost"),
    (OutcomeKind::NotStarted, "not_started"),
];
/// The label of the sum over the names above [`METRIC_NAMES_MAX`]. No name has parentheses.
const OTHERS: &str = "(others)";

/// Returns a sample for each name, and one with the sum of those above [`METRIC_NAMES_MAX`].
pub fn bounded<'a>(
    label: &'static str,
    mut rows: impl Iterator<Item = (&'a str, Value)>,
) -> Vec<Sample> {
    let mut samples: Vec<Sample> = rows
        .by_ref()
        .take(METRIC_NAMES_MAX)
        .map(|(name, value)| Sample::of(label, name, value))
        .collect();
    let sum = |sum: Option<f64>, (_, value): (&str, Value)| match value {
        Value::Whole(whole) => Some(sum.unwrap_or(0.0) + whole as f64),
        Value::Fraction(fraction) => Some(sum.unwrap_or(0.0) + fraction),
        Value::Times(_) => sum,
    };
    samples.extend(rows.fold(None, sum).map(|sum| Sample::of(label, OTHERS, sum)));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_above_the_limit_are_summed() {
        let names: Vec<String> = (0..METRIC_NAMES_MAX + 3).map(|n| format!("s{n}")).collect();
        let some = names[..2].iter().map(|name| (name.as_str(), 2_u32.into()));
        let two = [Sample::of("service", "s0", 2_u32), Sample::of("service", "s1", 2_u32)];
        assert_eq!(bounded("service", some), two);
        let all = names.iter().map(|name| (name.as_str(), 2_u32.into()));
        let all = bounded("service", all);
        assert_eq!(all.len(), METRIC_NAMES_MAX + 1);
        assert_eq!(all.last(), Some(&Sample::of("service", OTHERS, 6.0)));
    }
}
