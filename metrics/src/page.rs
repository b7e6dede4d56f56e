//! The text of metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::histogram::Buckets;

/// The media type of a page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics with their values, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Page {
    metrics: Vec<Metric>,
}

/// A value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// A fraction.
    Fraction(f64),
    /// A histogram of seconds.
    Times(Buckets),
}

#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<Sample>,
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Fraction(value)
    }
}

impl Sample {
    /// Returns a value with one label.
    pub fn of(label: &'static str, of: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { labels: vec![(label, of.into())], value: value.into() }
    }

    /// Adds a label.
    #[must_use]
    pub fn and(mut self, label: &'static str, of: impl Into<String>) -> Self {
        self.labels.push((label, of.into()));
        self
    }

    /// Returns a value without labels.
    pub fn plain(value: impl Into<Value>) -> Self {
        Self { labels: vec![], value: value.into() }
    }
}

impl Page {
    /// Adds a number that goes up and down. `help` is one line.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.gauges(name, help, vec![Sample::plain(value)]);
    }

    /// Adds such numbers, each with its labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str, samples: Vec<Sample>) {
        self.metrics.push(Metric { name, help, kind: MetricType::Gauge, samples });
    }

    /// Adds a number that only grows while the process runs. Its name on the page ends in `_total`,
    /// which `name` leaves out.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.counters(name, help, vec![Sample::plain(value)]);
    }

    /// Adds such numbers, each with its labels.
    pub fn counters(&mut self, name: &'static str, help: &'static str, samples: Vec<Sample>) {
        self.metrics.push(Metric { name, help, kind: MetricType::Counter, samples });
    }

    /// Adds a histogram. Its name ends in `_seconds`.
    pub fn times(&mut self, name: &'static str, help: &'static str, buckets: Buckets) {
        let samples = vec![Sample::plain(Value::Times(buckets))];
        self.metrics.push(Metric { name, help, kind: MetricType::Histogram, samples });
    }

    /// Returns the text, of the type [`CONTENT_TYPE`].
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &registry) {
            // Writing to a string never fails.
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, kind, samples } in &self.metrics {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for Sample { labels, value } in samples {
                if labels.is_empty() {
                    put(&mut family, *kind, value)?;
                } else {
                    put(&mut family.encode_family(labels)?, *kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn put(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: &Value) -> fmt::Result {
    match (value, kind) {
        (Value::Times(Buckets { intervals, sum }), _) => {
            let count = intervals.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, intervals, None)
        }
        (Value::Whole(whole), MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, u64, f64>(whole, None)
        }
        (Value::Fraction(fraction), MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, f64, f64>(fraction, None)
        }
        (Value::Whole(whole), _) => encoder.encode_gauge(whole),
        (Value::Fraction(fraction), _) => encoder.encode_gauge(fraction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_openmetrics() {
        let mut page = Page::default();
        page.gauge("a_bytes", "The bytes.", 7_u64);
        page.counters("b", "The b.", vec![Sample::of("kind", "x\"y\\z", 1_u64)]);
        page.gauges("none", "Nothing.", vec![]);
        page.counter("c_seconds", "The c.", 0.5);
        page.times("d_seconds", "The d.", Buckets::new([0.1], [2, 1], 1.25));
        let expected = r#"# HELP a_bytes The bytes.
# TYPE a_bytes gauge
a_bytes 7
# HELP b The b.
# TYPE b counter
b_total{kind="x\"y\\z"} 1
# HELP none Nothing.
# TYPE none gauge
# HELP c_seconds The c.
# TYPE c_seconds counter
c_seconds_total 0.5
# HELP d_seconds The d.
# TYPE d_seconds histogram
d_seconds_sum 1.25
d_seconds_count 3
d_seconds_bucket{le="0.1"} 2
d_seconds_bucket{le="+Inf"} 3
# EOF
"#;
        assert_eq!(page.text(), expected);
    }
}
