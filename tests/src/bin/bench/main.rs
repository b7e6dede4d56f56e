//! The benchmarks: `cargo run --release -p podmesh-tests --bin bench`.
//!
//! Every ratio compares two figures of the same run, measured alternately. Nothing is asserted: the
//! floors are printed next to the results. Pass the names of measures to run only those.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed benchmark ends with a message")]

mod churn;
mod console;
mod containers;
mod faults;
mod history;
mod hostile;
mod http;
mod latency;
mod logs;
mod noop;
mod plan;
mod processes;
mod proxy;
mod rig;
mod security;
mod services;
mod shapes;
mod table;
mod workflows;

use std::path::Path;
use std::process::ExitCode;

/// The name of a measure and its function.
type Measure = (&'static str, fn(&mut table::Table));

const MEASURES: [Measure; 22] = [
    ("noop", noop::measure),
    ("shapes", shapes::measure),
    ("plan", plan::measure),
    ("history", history::measure),
    ("processes", processes::measure),
    ("containers", containers::measure),
    ("latency", latency::measure),
    ("security", security::measure),
    ("proxy", proxy::measure),
    ("services", services::measure),
    ("rest", services::at_rest),
    ("hostile", hostile::measure),
    ("http", http::measure),
    ("console", console::measure),
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
    // The measured daemons are this same binary under the name `podmesh`.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "podmesh") {
        return podmesh_tools::main();
    }
    if let Some(port) = std::env::var_os(services::SERVE) {
        return services::serve(&port.to_string_lossy());
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) =
        wanted.iter().find(|name| MEASURES.iter().all(|(known, _)| known != name))
    {
        let known: Vec<_> = MEASURES.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: unknown measure `{unknown}`; available: {}", known.join(", "));
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
