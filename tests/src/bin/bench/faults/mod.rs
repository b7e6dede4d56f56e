//! What survives: daemons killed at random while work goes on, and counted afterwards; links that are
//! cut; managers that are away or stand still.
//!
//! `PODMESH_KILLS` sets how many kills the counts take: 1,000 unless it is given; a quarter of them at
//! the edges of commits, a fifth for exit codes, a tenth for lines.

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
