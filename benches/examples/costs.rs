//! Does one piece of counted work so many times: for a profiler that counts instructions. Without arguments: lists them,
//! with the number of commands that one run counts for.
//!
//! `valgrind --tool=callgrind target/release/examples/costs "commit window 64" 1000`

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let (Some(name), Some(times)) = (arguments.next(), arguments.next()) else {
        for work in paxos_benches::costs::all() {
            println!("{}\t{}", work.per_run, work.name);
        }
        return ExitCode::SUCCESS;
    };
    let work = paxos_benches::costs::all()
        .into_iter()
        .find(|work| work.name == name);
    let (Some(mut work), Ok(times)) = (work, times.parse()) else {
        eprintln!(
            "there is no work \"{name}\", or {times} is no number; without arguments the names are listed"
        );
        return ExitCode::from(2);
    };
    work.run(times);
    ExitCode::SUCCESS
}
