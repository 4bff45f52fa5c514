//! A picture of latency over throughput.

use std::fmt::Write as _;

use super::Summary;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// A percentile of a run's latency, in microseconds.
type Percentile = fn(&Summary) -> u64;

const CURVES: [(&str, &str, Percentile); 3] = [
    ("p50", "#2a7f62", |run| run.latency_us.p50),
    ("p99", "#c9711a", |run| run.latency_us.p99),
    ("p999", "#9b2226", |run| run.latency_us.p999),
];

/// Draws the runs of a sweep as an SVG: throughput to the right, latency upwards on a logarithmic scale.
pub fn svg(title: &str, runs: &[Summary]) -> String {
    let runs: Vec<_> = runs.iter().filter(|run| run.commands > 0).collect();
    let fastest = runs.iter().map(|run| run.per_second()).fold(1.0, f64::max);
    let step = round_step(fastest / 5.0);
    let max_x = (fastest / step).ceil() * step;
    let latencies = || {
        let of = |run: &&Summary| CURVES.map(|(_, _, percentile)| percentile(run).max(1) as f64);
        runs.iter().flat_map(of)
    };
    let low = latencies()
        .fold(f64::MAX, f64::min)
        .clamp(1.0, 1e9)
        .log10()
        .floor() as i32;
    let high = latencies().fold(1.0, f64::max).log10().ceil() as i32;
    let high = high.max(low + 1);
    let x = |per_second: f64| LEFT + per_second / max_x * (WIDTH - LEFT - RIGHT);
    let y = |micros: f64| {
        let part = (micros.log10() - f64::from(low)) / f64::from(high - low);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    // Writing to a string cannot fail.
    for decade in low..=high {
        let at = y(10_f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            time(decade)
        );
    }
    for tick in 0..=(max_x / step).round() as u32 {
        let value = f64::from(tick) * step;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(value),
            HEIGHT - BOTTOM + 18.0,
            number(value)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">commands answered well, per second</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 12.0
    );
    for (index, (name, colour, percentile)) in CURVES.iter().enumerate() {
        let mut points = String::new();
        let mut marks = String::new();
        for run in &runs {
            let (at_x, at_y) = (x(run.per_second()), y(percentile(run).max(1) as f64));
            let _ = write!(points, "{at_x:.1},{at_y:.1} ");
            let _ = write!(
                marks,
                "<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>",
                escape(&run.to_string())
            );
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>{marks}\
             <text x=\"{:.1}\" y=\"22\" fill=\"{colour}\">{name}</text>",
            points.trim_end(),
            WIDTH - RIGHT - 150.0 + 50.0 * index as f64
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// 1, 2 or 5 times a power of ten, not less than `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|times| times * power >= least);
    times.unwrap_or(10.0) * power
}

/// A power of ten of microseconds.
fn time(decade: i32) -> String {
    match decade {
        ..3 => format!("{} us", 10_i64.pow(decade.max(0) as u32)),
        3..6 => format!("{} ms", 10_i64.pow(decade as u32 - 3)),
        _ => format!("{} s", 10_i64.pow(decade as u32 - 6)),
    }
}

fn number(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::summary;

    #[test]
    fn a_plot_has_a_point_for_each_run_and_percentile_within_the_picture() {
        let mut silent = summary(0.0, 0);
        silent.commands = 0;
        let picture = svg(
            "SET & <GET>",
            &[summary(1_000.0, 300), summary(47_000.0, 90_000), silent],
        );
        assert_eq!(picture.matches("<circle").count(), 2 * CURVES.len());
        assert!(picture.contains("SET &amp; &lt;GET&gt;"));
        assert!(
            picture.contains(">50 k<") && picture.contains(">100 ms<"),
            "{picture}"
        );
        let places = picture
            .split("cx=\"")
            .skip(1)
            .map(|at| at.split('"').next().unwrap());
        for x in places.map(|x| x.parse::<f64>().unwrap()) {
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
        }
    }

    #[test]
    fn a_plot_of_nothing_is_a_picture_too() {
        assert!(svg("nothing", &[]).ends_with("</svg>\n"));
    }
}
