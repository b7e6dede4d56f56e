//! What podmesh must reach, measured: `cargo run --release -p podmesh-tests --bin bench`.
//!
//! Every ratio compares two figures of this one run, taken in turn. Nothing here is asserted: the
//! floors are printed beside what was measured. Give names of measures to run only these.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark that fails ends, with a text")]

mod churn;
mod containers;
mod faults;
mod hostile;
mod latency;
mod logs;
mod noop;
mod processes;
mod rig;
mod security;
mod table;

use std::path::Path;
use std::process::ExitCode;

/// The name of a measure, and what takes it.
type Measure = (&'static str, fn(&mut table::Table));

const MEASURES: [Measure; 14] = [
    ("noop", noop::measure),
    ("processes", processes::measure),
    ("containers", containers::measure),
    ("latency", latency::measure),
    ("security", security::measure),
    ("hostile", hostile::measure),
    ("logs", logs::measure),
    ("churn", churn::measure),
    ("kills", faults::kills::measure),
    ("edges", faults::kills::edges),
    ("adoption", faults::containers::measure),
    ("outages", faults::silence::measure),
    ("partition", faults::partition::measure),
    ("subscribers", faults::subscribers::measure),
];

fn main() -> ExitCode {
    // The daemons under measure are this same file, under the name of the real one.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "podmesh") {
        return podmesh_tools::main();
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) =
        wanted.iter().find(|name| MEASURES.iter().all(|(known, _)| known != name))
    {
        let known: Vec<_> = MEASURES.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: no measure is named `{unknown}`; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    let mut table = table::Table::new();
    for (name, measure) in MEASURES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("measuring {name} …");
            measure(&mut table);
        }
    }
    println!("{table}");
    ExitCode::SUCCESS
}
