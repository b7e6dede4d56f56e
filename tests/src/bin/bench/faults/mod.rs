//! Faults: daemons killed at random during work, cut links, and managers that are away or
//! suspended.
//!
//! `PODMESH_KILLS` sets the number of kills (default: 1,000). `edges` uses a quarter of that,
//! `adoption` a fifth for exit codes and a tenth for lines.

pub(crate) mod containers;
pub(crate) mod kills;
pub(crate) mod partition;
pub(crate) mod silence;
pub(crate) mod subscribers;

const KILLS_DEFAULT: u32 = 1_000;

fn kills() -> u32 {
    let asked = std::env::var("PODMESH_KILLS").ok();
    asked.map_or(KILLS_DEFAULT, |text| text.parse().unwrap())
}
