//! What is counted and timed, in one place, and how it is written for Prometheus.
//!
//! A [`Node`](crate::Node) owns one [`NodeMetrics`] and, for each group, one [`GroupMetrics`]; all of it is plain atomics
//! that anybody may read at any time without disturbing anyone. [`Node::prometheus`](crate::Node::prometheus) writes
//! everything as text; a service adds its own metrics with the same [`Counter`], [`Gauge`], [`Histogram`] and
//! [`Exposition`].

mod counted;
mod expose;

use std::{
    fmt::{Display, Write as _},
    string::String,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
    vec::Vec,
};

pub use self::counted::{GroupMetrics, NodeMetrics, RejectedCounters};
pub(crate) use self::expose::expose;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the buckets of durations, in microseconds.
const DURATION_BOUNDS_MICROS: &[u64] = &[
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Upper bounds of the buckets of counts.
const COUNT_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// How often which sizes occurred, in fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    units_per_one: f64,
    /// One for each bound and one for everything above the last.
    buckets: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram of durations: buckets from 10 microseconds to 10 seconds, exposed in seconds.
    pub fn of_durations() -> Self {
        Self::new(DURATION_BOUNDS_MICROS, 1e6)
    }

    /// A histogram of counts: buckets from 1 to 1024.
    pub fn of_counts() -> Self {
        Self::new(COUNT_BOUNDS, 1.0)
    }

    fn new(bounds: &'static [u64], units_per_one: f64) -> Self {
        Self {
            bounds,
            units_per_one,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.record_times(duration, 1);
    }

    /// Counts a duration that was the same so many times.
    pub fn record_times(&self, duration: Duration, times: u64) {
        self.record_value_times(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), times);
    }

    /// Counts one value, in the histogram's unit (microseconds for durations).
    pub fn record_value(&self, value: u64) {
        self.record_value_times(value, 1);
    }

    fn record_value_times(&self, value: u64, times: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(times, Relaxed);
        }
        self.sum.fetch_add(value.wrapping_mul(times), Relaxed);
    }

    /// What has been counted so far. Taken while others count, it may miss the very last of them.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut count = 0;
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / self.units_per_one);
        let buckets = bounds
            .chain([f64::INFINITY])
            .zip(&self.buckets)
            .map(|(bound, bucket)| {
                count += bucket.load(Relaxed);
                (bound, count)
            })
            .collect();
        HistogramSnapshot {
            buckets,
            sum: self.sum.load(Relaxed) as f64 / self.units_per_one,
            count,
        }
    }
}

/// A histogram at one moment, in the unit in which it is exposed (seconds for durations).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bounds, ascending, the last one infinite; and how many values were not above each.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
    /// How many values there were.
    pub count: u64,
}

impl HistogramSnapshot {
    /// The value below which the share `quantile` (0 to 1) of all values lies, interpolated within its bucket; zero
    /// without any values, the last finite bound for values above it.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let wanted = quantile.clamp(0.0, 1.0) * self.count as f64;
        let (mut lower, mut below) = (0.0, 0);
        for &(upper, upto) in &self.buckets {
            if upto > 0 && upto as f64 >= wanted {
                let inside = (wanted - below as f64) / (upto - below).max(1) as f64;
                return if upper.is_finite() {
                    lower + (upper - lower) * inside
                } else {
                    lower
                };
            }
            (lower, below) = (upper, upto);
        }
        0.0
    }

    /// What was counted since `earlier`, a snapshot of the same histogram: for rates and recent quantiles.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.buckets.get(index).map_or(0, |(_, upto)| *upto);
        Self {
            buckets: self
                .buckets
                .iter()
                .enumerate()
                .map(|(index, (bound, upto))| (*bound, upto.saturating_sub(before(index))))
                .collect(),
            sum: self.sum - earlier.sum,
            count: self.count.saturating_sub(earlier.count),
        }
    }
}

/// What kind of numbers a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// Writes metrics in Prometheus' text format: for each metric [`family`](Self::family) once, then all of its values.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

impl Exposition {
    /// Begins a metric.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of the metric begun last.
    pub fn value(&mut self, labels: Labels<'_>, value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// One histogram of the metric begun last.
    pub fn histogram(&mut self, labels: Labels<'_>, histogram: &HistogramSnapshot) {
        for (bound, upto) in &histogram.buckets {
            self.sample("_bucket", labels, Some(*bound), upto);
        }
        self.sample("_sum", labels, None, histogram.sum);
        self.sample("_count", labels, None, histogram.count);
    }

    fn sample(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<f64>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let mut separator = '{';
        for (name, value) in labels {
            let value = std::format!("{value}")
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.text, "{separator}{name}=\"{value}\"");
            separator = ',';
        }
        if let Some(bound) = bound {
            let bound: &dyn Display = if bound.is_finite() { &bound } else { &"+Inf" };
            let _ = write!(self.text, "{separator}le=\"{bound}\"");
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let histogram = Histogram::of_durations();
        histogram.record(Duration::from_micros(10));
        histogram.record(Duration::from_micros(11));
        histogram.record(Duration::from_mins(1));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets[..2], [(10e-6, 1), (20e-6, 2)]);
        assert_eq!(snapshot.buckets.last(), Some(&(f64::INFINITY, 3)));
        assert_eq!(snapshot.count, 3);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_value() {
        let histogram = Histogram::of_durations();
        assert_eq!(histogram.snapshot().quantile(0.5).to_bits(), 0.0_f64.to_bits());
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        let median = histogram.snapshot().quantile(0.5);
        assert!((0.049..=0.051).contains(&median), "{median}");
        let earlier = histogram.snapshot();
        histogram.record(Duration::from_secs(1));
        let recent = histogram.snapshot().since(&earlier);
        assert_eq!(recent.count, 1);
        assert!((0.5..=1.0).contains(&recent.quantile(0.5)));
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut to = Exposition::default();
        to.family("requests_total", Kind::Counter, "Requests");
        to.value(&[], 7);
        to.value(&[("path", &"a\"b\\c\n")], 8);
        let histogram = Histogram::of_counts();
        histogram.record_value(2_000);
        to.family("size", Kind::Histogram, "Sizes");
        to.histogram(&[("group", &1)], &histogram.snapshot());
        let text = to.into_text();
        assert!(
            text.starts_with("# HELP requests_total Requests\n# TYPE requests_total counter\n"),
            "{text}"
        );
        assert!(text.contains("\nrequests_total 7\n"), "{text}");
        assert!(
            text.contains("\nrequests_total{path=\"a\\\"b\\\\c\\n\"} 8\n"),
            "{text}"
        );
        assert!(
            text.contains("\nsize_bucket{group=\"1\",le=\"1024\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("\nsize_bucket{group=\"1\",le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(
            text.ends_with("size_sum{group=\"1\"} 2000\nsize_count{group=\"1\"} 1\n"),
            "{text}"
        );
    }
}
