//! What survives: daemons killed at random while work goes on, and counted afterwards.
//!
//! `PODMESH_KILLS` sets how many kills the counts take: 1,000 unless it is given; a fifth of them for exit
//! codes, a tenth for lines.

mod containers;
mod kills;
mod partition;
mod silence;
mod subscribers;

use crate::table::Table;

const KILLS_DEFAULT: u32 = 1_000;

pub(crate) fn measure(table: &mut Table) {
    let kills = std::env::var("PODMESH_KILLS").ok();
    let kills = kills.map_or(KILLS_DEFAULT, |text| text.parse().unwrap());
    kills::measure(table, kills);
    containers::measure(table, kills);
    silence::measure(table);
    partition::measure(table);
    subscribers::measure(table);
}
