//! What was measured, how it is told, and how two results compare.

use std::{collections::BTreeMap, fmt};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{BenchOptions, tally::Tally};

/// The load that was put on the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Clients, each with a connection of its own.
    pub clients: u32,
    /// The length of values, in bytes.
    pub value_size: u32,
    /// The share of reads.
    pub read_ratio: f64,
    /// Commands that each client sent at once.
    pub pipeline: u32,
    /// Different keys.
    pub keys: u64,
    /// Commands per second that were to be sent; none in the closed loop.
    pub rate: Option<f64>,
    /// Seconds before it was measured.
    pub warm_up: f64,
    /// Threads that made the load.
    pub threads: u32,
    /// Whether commands went to the nodes that led their keys' hash slots.
    #[serde(default)]
    pub cluster: bool,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The shortest.
    pub min: u64,
    /// Half of all took at most this long.
    pub p50: u64,
    /// 90 % did.
    pub p90: u64,
    /// 99 % did.
    pub p99: u64,
    /// 99.9 % did.
    pub p999: u64,
    /// All did.
    pub max: u64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let quantile = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The load.
    pub load: Load,
    /// Commands answered well within the measured time.
    pub commands: u64,
    /// Commands due within the measured time that were answered with an error, or not at all.
    pub errors: u64,
    /// The same by the first word of the error; `TIMEOUT`, `DISCONNECTED` and `CONNECT` are the loader's own.
    pub errors_by_kind: BTreeMap<String, u64>,
    /// The first of those errors.
    pub first_error: Option<String>,
    /// Commands that were due within the measured time.
    pub due: u64,
    /// Those of them that could not be sent when they were due: too many others had no answer.
    pub unsent: u64,
    /// How long it was measured, in seconds.
    pub seconds: f64,
    /// Writes answered well, per second.
    pub writes_per_second: f64,
    /// Reads answered well, per second.
    pub reads_per_second: f64,
    /// From when a command was due (open loop) or sent (closed loop) to its answer, in microseconds.
    pub latency_us: Percentiles,
    /// The same of commands that ended with an error.
    pub error_latency_us: Percentiles,
    /// Commands answered well in each second.
    pub timeline: Vec<u64>,
}

impl Summary {
    pub(super) fn new(options: &BenchOptions, tally: &Tally) -> Self {
        let seconds = options.duration.as_secs_f64();
        Self {
            load: Load {
                clients: options.clients,
                value_size: options.value_size,
                read_ratio: options.read_ratio,
                pipeline: options.pipeline,
                keys: options.keys,
                rate: options.rate,
                warm_up: options.warm_up.as_secs_f64(),
                threads: options.threads,
                cluster: options.cluster,
            },
            commands: tally.writes + tally.reads,
            errors: tally.errors.values().sum(),
            errors_by_kind: tally.errors.clone(),
            first_error: tally.first_error.clone(),
            due: tally.due,
            unsent: tally.unsent,
            seconds,
            writes_per_second: tally.writes as f64 / seconds,
            reads_per_second: tally.reads as f64 / seconds,
            latency_us: Percentiles::of(&tally.latency),
            error_latency_us: Percentiles::of(&tally.error_latency),
            timeline: tally.timeline.clone(),
        }
    }

    /// Commands answered well, per second.
    pub fn per_second(&self) -> f64 {
        self.writes_per_second + self.reads_per_second
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = &self.latency_us;
        write!(
            f,
            "{:.0} writes/s, {:.0} reads/s; p50 {} us, p99 {} us, p999 {} us, max {} us; {} commands in {:.1} s, {} errors",
            self.writes_per_second,
            self.reads_per_second,
            latency.p50,
            latency.p99,
            latency.p999,
            latency.max,
            self.commands,
            self.seconds,
            self.errors
        )?;
        let kinds: Vec<_> = self
            .errors_by_kind
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        if !kinds.is_empty() {
            write!(f, " ({}; p99 {} us)", kinds.join(", "), self.error_latency_us.p99)?;
        }
        if self.unsent > 0 {
            write!(f, ", {} of {} due were not sent", self.unsent, self.due)?;
        }
        if let Some(error) = &self.first_error {
            write!(f, "; the first error: {error}")?;
        }
        Ok(())
    }
}

/// What a file of results holds: one run, or the runs of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Results {
    /// Of `kvstore bench`.
    One(Box<Summary>),
    /// Of `kvstore bench sweep`.
    Many {
        /// In the order in which they were run.
        runs: Vec<Summary>,
    },
}

impl Results {
    /// The runs.
    pub fn runs(&self) -> &[Summary] {
        match self {
            Self::One(run) => std::slice::from_ref(run),
            Self::Many { runs } => runs,
        }
    }
}

/// One figure of two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Which run of a sweep, from 1.
    pub run: usize,
    /// What was measured.
    pub measure: &'static str,
    /// The figure in the first file.
    pub before: f64,
    /// The figure in the second file.
    pub after: f64,
    /// `after` divided by `before`; none if that was 0.
    pub ratio: Option<f64>,
}

impl Comparison {
    /// Compares the runs of two files in their order.
    ///
    /// # Errors
    ///
    /// What is not alike: the number of the runs, or their load.
    pub fn of(before: &Results, after: &Results) -> Result<Vec<Self>, String> {
        let (before, after) = (before.runs(), after.runs());
        if before.len() != after.len() {
            return Err(format!(
                "the first file holds {} runs, the second {}: compare files of the same sweep",
                before.len(),
                after.len()
            ));
        }
        let mut rows = Vec::new();
        for (run, (before, after)) in (1..).zip(before.iter().zip(after)) {
            if before.load != after.load {
                return Err(format!(
                    "run {run} had another load: {:?} in the first file, {:?} in the second",
                    before.load, after.load
                ));
            }
            let measures = measures(before).into_iter().zip(measures(after));
            rows.extend(measures.map(|((measure, before), (_, after))| Self {
                run,
                measure,
                before,
                after,
                ratio: (before > 0.0).then(|| after / before),
            }));
        }
        Ok(rows)
    }
}

fn measures(run: &Summary) -> [(&'static str, f64); 8] {
    [
        ("writes/s", run.writes_per_second),
        ("reads/s", run.reads_per_second),
        ("p50 us", run.latency_us.p50 as f64),
        ("p90 us", run.latency_us.p90 as f64),
        ("p99 us", run.latency_us.p99 as f64),
        ("p999 us", run.latency_us.p999 as f64),
        ("errors", run.errors as f64),
        ("not sent", run.unsent as f64),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn summary(writes_per_second: f64, p99: u64) -> Summary {
        Summary {
            load: Load {
                clients: 64,
                value_size: 256,
                read_ratio: 0.0,
                pipeline: 1,
                keys: 100,
                rate: None,
                warm_up: 1.0,
                threads: 1,
                cluster: false,
            },
            commands: 10,
            errors: 0,
            errors_by_kind: BTreeMap::new(),
            first_error: None,
            due: 10,
            unsent: 0,
            seconds: 1.0,
            writes_per_second,
            reads_per_second: 0.0,
            latency_us: Percentiles {
                p50: p99 / 2,
                p99,
                max: p99,
                ..Percentiles::default()
            },
            error_latency_us: Percentiles::default(),
            timeline: vec![10],
        }
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        for results in [
            Results::One(Box::new(summary(1.5, 10))),
            Results::Many {
                runs: vec![summary(1.0, 10), summary(2.0, 20)],
            },
        ] {
            let text = serde_json::to_string(&results).unwrap();
            assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
        }
    }

    #[test]
    fn two_results_compare_figure_by_figure_if_the_load_was_the_same() {
        let one = |writes, p99| Results::One(Box::new(summary(writes, p99)));
        let rows = Comparison::of(&one(100.0, 500), &one(150.0, 250)).unwrap();
        let ratio = |measure| rows.iter().find(|row| row.measure == measure).unwrap().ratio;
        assert_eq!(ratio("writes/s"), Some(1.5));
        assert_eq!(ratio("p99 us"), Some(0.5));
        assert_eq!(ratio("errors"), None);

        let mut other = summary(1.0, 1);
        other.load.clients = 1;
        let error = Comparison::of(&one(1.0, 1), &Results::One(Box::new(other))).unwrap_err();
        assert!(error.contains("another load"), "{error}");
        let many = Results::Many {
            runs: vec![summary(1.0, 1); 2],
        };
        assert!(
            Comparison::of(&one(1.0, 1), &many)
                .unwrap_err()
                .contains("1 runs")
        );
    }
}
