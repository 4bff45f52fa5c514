//! Commands cost no more allocations than `costs.txt` says.

use allocation_counter::measure;
use paxos_benches::costs;

const BASELINE: &str = include_str!("../costs.txt");
/// Runs before the count: what grows has grown then.
const WARM_UP: u64 = 300;
const RUNS: u64 = 300;
/// Buffers that grow now and then cost a little.
const TOLERANCE: f64 = 0.05;

/// The last of a row's columns.
fn name_of(row: &str) -> &str {
    row.split('\t').nth(3).unwrap_or(row)
}

/// Allocations, and bytes allocated, per command.
fn allocated(work: &mut costs::Work) -> (f64, f64) {
    work.run(WARM_UP);
    let counted = measure(|| work.run(RUNS));
    let commands = (RUNS * work.per_run) as f64;
    (
        counted.count_total as f64 / commands,
        counted.bytes_total as f64 / commands,
    )
}

#[test]
fn allocations_stay_within_the_baseline() {
    let mut worse = Vec::new();
    let all = costs::all();
    for name in BASELINE.lines().map(name_of) {
        if !all.iter().any(|work| work.name == name) {
            worse.push(format!(
                "{name}: costs.txt has a row for it, but nothing does it any more"
            ));
        }
    }
    for mut work in all {
        let (count, bytes) = allocated(&mut work);
        println!("{count:.2}\t{bytes:.0}\t{}", work.name);
        let row = BASELINE.lines().find(|row| name_of(row) == work.name);
        let mut before = row.into_iter().flat_map(|row| row.split('\t')).map(str::parse);
        let (Some(Ok(count_before)), Some(Ok(bytes_before))) = (before.next(), before.next()) else {
            worse.push(format!("{}: costs.txt has no row for it", work.name));
            continue;
        };
        let is_worse = |now: f64, before: f64| now > before * (1.0 + TOLERANCE) + 0.01;
        if is_worse(count, count_before) || is_worse(bytes, bytes_before) {
            worse.push(format!(
                "{}: {count:.2} allocations of {bytes:.0} bytes a command, were {count_before} of {bytes_before}",
                work.name
            ));
        }
    }
    assert!(
        worse.is_empty(),
        "dearer than before, or other work; if that is meant, run .ci/costs --update:\n{}",
        worse.join("\n")
    );
}
