//! The simulator: both real cores in a world with many kinds of faults, generated from a seed.
//!
//! It checks the invariants after every step. In the end all faults stop, and the world must
//! converge.
//!
//! ```text
//! cargo test -p podmesh-tests --test sim                        a fixed, small number of seeds
//! SEEDS=20000 cargo test --release -p podmesh-tests --test sim  many seeds, on all cores
//! SEED=4711 cargo test -p podmesh-tests --test sim              one seed again, with its event log
//! ```
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod agent;
mod dead_letters;
mod faults;
mod host;
mod judge;
mod manager;
mod net;
mod proxy;
mod replicas;
mod rng;
mod schedules;
mod services;
mod store;
mod upstream;
mod users;
mod world;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults::{ALL, Planted, WITHIN};
use crate::world::{Stats, World};

/// Number of seeds in a plain `cargo test`.
const SEEDS_DEFAULT: u64 = 2_000;
/// Number of lines of the event log that are shown.
const LINES_SHOWN: usize = 40;

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Installs a panic hook that keeps the messages of panics in simulated worlds.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let simulated = PANIC.with_borrow_mut(|text| {
                let simulated = text == "armed";
                if simulated {
                    *text = info.to_string();
                }
                simulated
            });
            if !simulated {
                before(info);
            }
        }));
    });
}

/// The result of a seed.
struct SeedResult {
    result: Result<Stats, String>,
    log: Vec<String>,
}

fn run(seed: u64, planted: Option<Planted>, log: bool) -> SeedResult {
    keep_panics();
    let mut world = World::new(seed, planted, log);
    PANIC.with_borrow_mut(|text| *text = "armed".into());
    let result = catch_unwind(AssertUnwindSafe(|| {
        world.run();
        world.stats
    }));
    let said = PANIC.with_borrow_mut(std::mem::take);
    SeedResult { result: result.map_err(|_| said), log: world.take_log() }
}

/// Runs a seed again with an event log, writes the log, and returns a report with its path.
fn report(seed: u64, why: &str) -> String {
    let log = run(seed, None, true).log;
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sim-{seed}.log"));
    let written = std::fs::write(&path, log.join("\n"));
    let mut text = format!("seed {seed}: {why}\n");
    for line in &log[log.len().saturating_sub(LINES_SHOWN)..] {
        let shown: String = line.chars().take(600).collect();
        _ = writeln!(text, "  {shown}");
    }
    match written {
        Ok(()) => _ = writeln!(text, "the event log: {}", path.display()),
        Err(error) => _ = writeln!(text, "cannot write the event log: {error}"),
    }
    _ = writeln!(text, "to run it again: SEED={seed} cargo test -p podmesh-tests --test sim");
    text
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs seeds on all cores until one fails. Returns the lowest failed seed and its failure.
fn first_failure(
    first: u64,
    last: u64,
    planted: Option<Planted>,
) -> (Option<(u64, String)>, Stats) {
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut all = Stats::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed > last {
                            return (None, all);
                        }
                        match run(seed, planted, false).result {
                            Ok(stats) => all.add(&stats),
                            Err(why) => {
                                next.store(last + 1, Ordering::Relaxed);
                                return (Some((seed, why)), all);
                            }
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = Stats::default();
    let mut failed = None;
    for (failure, stats) in results {
        all.add(&stats);
        if let Some(failure) = failure
            && failed.as_ref().is_none_or(|(seed, _)| failure.0 < *seed)
        {
            failed = Some(failure);
        }
    }
    (failed, all)
}

#[test]
fn no_seed_breaks_an_invariant() {
    let (first, last) = match variable("SEED") {
        Some(seed) => (seed, seed),
        None => (1, variable("SEEDS").unwrap_or(SEEDS_DEFAULT)),
    };
    let (failed, stats) = first_failure(first, last, None);
    if let Some((seed, why)) = failed {
        panic!("{}", report(seed, &why));
    }
    println!("seeds {first} to {last}: {stats:?}");
}

#[test]
fn a_seed_runs_the_same_way_each_time() {
    let hash = |seed| {
        let mut hasher = DefaultHasher::new();
        let log = run(seed, None, true).log;
        assert!(!log.is_empty());
        log.hash(&mut hasher);
        hasher.finish()
    };
    for seed in 1..=5 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
    }
    assert_ne!(hash(1), hash(2));
}

#[test]
fn every_planted_fault_is_found() {
    let mut missed = Vec::new();
    for planted in ALL {
        let (found, _) = first_failure(1, WITHIN, Some(*planted));
        match found {
            Some((seed, why)) => {
                let sound = run(seed, None, false).result;
                assert!(sound.is_ok(), "seed {seed} fails also without {planted:?}: {sound:?}");
                let why = why.lines().nth(1).unwrap_or_default().to_owned();
                println!(
                    "| {planted:?} | {seed} | {} |",
                    why.chars().take(110).collect::<String>()
                );
            }
            None => missed.push(planted),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
