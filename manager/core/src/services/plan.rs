//! What to do next for one service: a pure function from what is wanted and what exists.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use podmesh_protocol::ids::JobId;
use podmesh_protocol::service::Health;

/// What is wanted, and what exists.
#[derive(Debug)]
pub(crate) struct Situation<'a> {
    /// How many replicas should run.
    pub(crate) wanted: u32,
    /// The revision that they should have.
    pub(crate) revision: u32,
    /// How many replicas more than wanted may exist.
    pub(crate) max_surge: u32,
    /// How many replicas must stay healthy while others are replaced.
    pub(crate) min_healthy: u32,
    /// The replicas whose jobs have not ended.
    pub(crate) replicas: &'a [Replica],
    /// The numbers of which no replica may start now.
    pub(crate) paused: &'a BTreeSet<u32>,
}

/// A replica whose job has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replica {
    pub(crate) job: JobId,
    pub(crate) number: u32,
    pub(crate) revision: u32,
    pub(crate) health: Health,
    /// Whether its node answers.
    pub(crate) reachable: bool,
    /// Whether it is already being drained or stopped.
    pub(crate) leaves: bool,
    /// Whether its node is being drained, or the service must run on another one.
    pub(crate) unwanted_node: bool,
    /// How many replicas of the service are on its node.
    pub(crate) peers: u32,
}

impl Replica {
    pub(crate) fn is_serving(&self) -> bool {
        !self.leaves && self.health == Health::Healthy && self.reachable
    }
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The numbers of the replicas to start.
    pub(crate) start: Vec<u32>,
    /// The replicas to take out of the proxies and stop.
    pub(crate) retire: Vec<JobId>,
    /// Whether every wanted number has a replica of the revision that serves, or is paused for ever,
    /// and there is no other replica.
    pub(crate) is_reached: bool,
    /// How many replicas of the revision serve.
    pub(crate) healthy: u32,
}

/// Decides what to do.
///
/// - A wanted number without a replica of the right revision gets one, as long as at most
///   `max_surge` replicas more than wanted exist, those that are being stopped included.
/// - A replica that is in excess or must be replaced leaves at once if it does not serve, and
///   otherwise only if `min_healthy` others still serve.
pub(crate) fn plan(now: &Situation<'_>) -> Plan {
    let stays = |replica: &Replica| {
        !replica.leaves
            && replica.revision == now.revision
            && replica.health != Health::Unhealthy
            && replica.number <= now.wanted
    };
    // Of two replicas with the same number, the one that serves stays, then the older one.
    let mut covers: BTreeMap<u32, &Replica> = BTreeMap::new();
    for replica in now.replicas.iter().filter(|replica| stays(replica) && !replica.unwanted_node) {
        let better = |other: &&Replica| other.is_serving() || !replica.is_serving();
        if !covers.get(&replica.number).is_some_and(better) {
            covers.insert(replica.number, replica);
        }
    }
    let covered: BTreeSet<JobId> = covers.values().map(|replica| replica.job).collect();
    let mut plan = Plan::default();
    let mut serving = 0;
    let mut replaceable = Vec::new();
    for replica in now.replicas.iter().filter(|replica| !replica.leaves) {
        serving += u32::from(replica.is_serving());
        if !covered.contains(&replica.job) {
            replaceable.push(replica);
        }
    }
    replaceable.sort_by_key(|replica| {
        let is_excess = replica.number > now.wanted;
        (replica.is_serving(), !is_excess, Reverse(replica.peers), Reverse(replica.number))
    });
    for replica in replaceable {
        if replica.is_serving() {
            if serving <= now.min_healthy {
                break;
            }
            serving -= 1;
        } else if stays(replica) && !covers.contains_key(&replica.number) {
            // Only its node is unwanted. It may still become healthy, and has no successor yet.
            continue;
        }
        plan.retire.push(replica.job);
    }
    let mut exist = u32::try_from(now.replicas.len()).unwrap_or(u32::MAX);
    for number in (1..=now.wanted).filter(|number| !covers.contains_key(number)) {
        if now.paused.contains(&number) {
            continue;
        }
        if exist >= now.wanted.saturating_add(now.max_surge) {
            break;
        }
        exist += 1;
        plan.start.push(number);
    }
    plan.healthy = covers.values().filter(|replica| replica.is_serving()).count() as u32;
    plan.is_reached = plan.healthy == now.wanted && now.replicas.len() == covers.len();
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replica(job: u64, number: u32, revision: u32, health: Health) -> Replica {
        Replica {
            job: JobId(job),
            number,
            revision,
            health,
            reachable: true,
            leaves: false,
            unwanted_node: false,
            peers: 1,
        }
    }

    fn situation<'a>(
        replicas: &'a [Replica],
        paused: &'a BTreeSet<u32>,
        wanted: u32,
    ) -> Situation<'a> {
        Situation { wanted, revision: 2, max_surge: 1, min_healthy: wanted, replicas, paused }
    }

    #[test]
    fn an_update_starts_one_and_then_stops_one() {
        use Health::{Healthy, Starting};
        let none = BTreeSet::new();
        let old = [replica(1, 1, 1, Healthy), replica(2, 2, 1, Healthy)];
        let first = plan(&situation(&old, &none, 2));
        assert_eq!((first.start, first.retire), (vec![1], vec![]));

        let starting = [old[0], old[1], replica(3, 1, 2, Starting)];
        assert_eq!(plan(&situation(&starting, &none, 2)), Plan::default());

        let healthy = [old[0], old[1], replica(3, 1, 2, Healthy)];
        let second = plan(&situation(&healthy, &none, 2));
        assert_eq!((second.start, second.retire), (vec![], vec![JobId(2)]));
    }

    #[test]
    fn a_replica_of_a_drained_node_stays_until_its_successor_serves() {
        use Health::Healthy;
        let none = BTreeSet::new();
        let there = Replica { unwanted_node: true, ..replica(1, 1, 2, Healthy) };
        let first = plan(&situation(&[there], &none, 1));
        assert_eq!((first.start, first.retire), (vec![1], vec![]));
        let both = [there, replica(2, 1, 2, Healthy)];
        let second = plan(&situation(&both, &none, 1));
        assert_eq!((second.start, second.retire), (vec![], vec![JobId(1)]));
    }

    #[test]
    fn an_unhealthy_replica_is_replaced_but_not_while_its_number_is_paused() {
        let sick = [replica(1, 1, 2, Health::Unhealthy)];
        let paused = BTreeSet::from([1]);
        let found = plan(&situation(&sick, &paused, 1));
        assert_eq!((found.start, found.retire), (vec![], vec![JobId(1)]));
        let none = BTreeSet::new();
        assert_eq!(plan(&situation(&sick, &none, 1)).start, [1]);
    }

    /// Plays a service to its end: everything that starts becomes healthy, and everything that
    /// leaves ends, in a random order.
    fn play(mut replicas: Vec<Replica>, wanted: u32, surge: u32, min: u32, picks: &[usize]) {
        let none = BTreeSet::new();
        let mut next = 100;
        let serving = |replicas: &[Replica]| {
            replicas.iter().filter(|replica| replica.is_serving()).count() as u32
        };
        let mut least = serving(&replicas).min(min.min(wanted));
        for pick in picks.iter().cycle().take(2_000) {
            let found = plan(&Situation {
                wanted,
                revision: 2,
                max_surge: surge,
                min_healthy: min.min(wanted),
                replicas: &replicas,
                paused: &none,
            });
            for replica in replicas.iter_mut().filter(|replica| found.retire.contains(&replica.job))
            {
                replica.leaves = true;
            }
            let existed = replicas.len() as u32;
            for number in &found.start {
                next += 1;
                replicas.push(replica(next, *number, 2, Health::Starting));
            }
            let exist = replicas.len() as u32;
            assert!(exist <= existed.max(wanted + surge), "{exist} replicas exist");
            assert!(serving(&replicas) >= least, "{replicas:?}");
            if found.is_reached {
                return;
            }
            let busy: Vec<usize> = (0..replicas.len())
                .filter(|at| replicas[*at].leaves || replicas[*at].health == Health::Starting)
                .collect();
            assert!(!busy.is_empty(), "nothing more happens: {replicas:?}");
            let at = busy[pick % busy.len()];
            if replicas[at].leaves {
                replicas.remove(at);
            } else {
                replicas[at].health = Health::Healthy;
            }
            least = least.max(serving(&replicas).min(min.min(wanted)));
        }
        unreachable!("it does not come to an end: {replicas:?}");
    }

    proptest! {
        /// Whatever exists, the wanted replicas come to be, never too many, and what serves never
        /// falls below the minimum once it is reached.
        #[test]
        fn every_update_comes_to_its_end(
            exist in prop::collection::vec((1..6u32, 1..3u32, 0..3u8, any::<bool>(), any::<bool>()), 0..8),
            wanted in 0..6u32,
            surge in 0..3u32,
            min in 0..7u32,
            picks in prop::collection::vec(0..8usize, 1..20),
        ) {
            let min = if surge == 0 { min.min(wanted.saturating_sub(1)) } else { min };
            let replicas = (1..).zip(exist).map(|(job, (number, revision, health, leaves, unwanted))| {
                let health = [Health::Starting, Health::Healthy, Health::Unhealthy][usize::from(health)];
                Replica { leaves, unwanted_node: unwanted, ..replica(job, number, revision, health) }
            });
            play(replicas.collect(), wanted, surge, min, &picks);
        }
    }
}
