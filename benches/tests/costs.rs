//! Commands cost no more allocations than `costs.txt` says.

use allocation_counter::measure;
use paxos_benches::costs;

const BASELINE: &str = include_str!("../costs.txt");
/// Runs before the count: what grows has grown then.
const WARM_UP: u64 = 300;
const RUNS: u64 = 300;
/// Buffers that grow now and then cost a little.
const TOLERANCE: f64 = 0.05;

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
    for mut work in costs::all() {
        let (count, bytes) = allocated(&mut work);
        println!("{count:.2}\t{bytes:.0}\t{}", work.name);
        let row = BASELINE.lines().find(|row| row.ends_with(work.name));
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
        "dearer than before; if that is worth it, run .ci/costs --update:\n{}",
        worse.join("\n")
    );
}
