//! Choosing and draining.

use std::time::Instant;

use super::super::table::{EndpointId, Refusal, Table};
use super::*;

const PORT: u16 = 80;

fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], number))
}

fn web(number: u64, endpoints: &[u16]) -> Update {
    let endpoints: Vec<_> = endpoints.iter().copied().map(address).collect();
    update(number, vec![service("web", PORT, &endpoints)])
}

fn table(endpoints: &[u16]) -> Table {
    let mut table = Table::new(LIMITS);
    table.apply(web(1, endpoints));
    table
}

/// Chooses, and returns the endpoint and its port.
fn choose(table: &mut Table, now: Instant) -> (EndpointId, u16) {
    let chosen = table.choose(PORT, &[], now).unwrap();
    (chosen.id, chosen.address.port())
}

#[test]
fn the_endpoint_with_the_fewest_connections_is_chosen_and_equals_take_turns() {
    let (mut table, now) = (table(&[1, 2, 3]), Instant::now());
    let chosen: Vec<_> = (0..6).map(|_| choose(&mut table, now)).collect();
    assert_eq!(chosen.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [1, 2, 3, 1, 2, 3]);
    assert!(!table.release(chosen[1].0));
    assert_eq!(choose(&mut table, now).1, 2);
    // All have two again. The one that was chosen longest ago is next.
    assert_eq!(choose(&mut table, now).1, 1);
    // An endpoint that has just come has the fewest.
    table.apply(web(2, &[1, 2, 3, 4]));
    assert_eq!([(); 3].map(|()| choose(&mut table, now).1), [4, 4, 3]);
}

#[test]
fn every_endpoint_is_tried_once() {
    let (mut table, now) = (table(&[1, 2]), Instant::now());
    let first = table.choose(PORT, &[], now).unwrap();
    let second = table.choose(PORT, &[first.id], now).unwrap();
    assert_ne!(first.address, second.address);
    assert_eq!(table.choose(PORT, &[first.id, second.id], now), None);
    assert_eq!(table.choose(81, &[], now), None);
}

#[test]
fn an_endpoint_that_cannot_be_reached_comes_last_and_one_connection_tries_it_again() {
    let (mut table, now) = (table(&[1, 2]), Instant::now());
    let (id, port) = choose(&mut table, now);
    assert_eq!(port, 1);
    table.reached(id, false, now);
    table.release(id);
    assert_eq!([(); 3].map(|()| choose(&mut table, now).1), [2, 2, 2]);
    let (other, _) = choose(&mut table, now);
    // Last is not never.
    assert_eq!(table.choose(PORT, &[other], now).unwrap().id, id);
    table.release(id);
    let later = now + Duration::from_secs(3);
    assert_eq!([(); 3].map(|()| choose(&mut table, later).1), [1, 2, 2]);
    table.reached(id, true, later);
    assert_eq!(choose(&mut table, later).1, 1);
}

#[test]
fn clients_are_counted_and_bounded_in_all_and_for_each_service() {
    let mut table = Table::new(Limits { total: 3, service: 2 });
    let services = vec![service("a", 1, &[]), service("b", 2, &[])];
    table.apply(update(1, services));
    let a = table.enter(1).unwrap();
    table.enter(1).unwrap();
    assert_eq!(table.enter(1), Err(Refusal::ServiceFull(2)));
    table.enter(2).unwrap();
    assert_eq!((table.enter(2), table.open()), (Err(Refusal::Full(3)), 3));
    table.left(&a);
    table.enter(1).unwrap();
    assert_eq!(table.enter(3), Err(Refusal::NoService));
}

#[test]
fn an_update_is_drained_when_all_earlier_removed_endpoints_have_no_connection() {
    let (mut table, now) = (table(&[1, 2, 3]), Instant::now());
    let [one, two, three] = [(); 3].map(|()| choose(&mut table, now));
    assert_eq!((one.1, two.1, three.1, table.drained()), (1, 2, 3, 1));
    table.apply(web(2, &[2, 3]));
    assert_eq!(table.drained(), 1);
    table.apply(web(3, &[3]));
    table.apply(web(4, &[3]));
    assert_eq!((table.applied(), table.drained()), (Some((GENERATION, 4)), 1));
    // No new connections.
    assert_eq!([(); 3].map(|()| choose(&mut table, now).1), [3, 3, 3]);
    assert!(table.is_removed(two.0) && !table.is_removed(three.0));
    assert!(table.release(two.0));
    assert_eq!(table.drained(), 1, "the first one still has a connection");
    assert!(table.release(one.0));
    assert_eq!(table.drained(), 4);
    assert!(!table.release(three.0), "it is present");
}

#[test]
fn an_endpoint_that_comes_back_counts_as_present() {
    let (mut table, now) = (table(&[1]), Instant::now());
    let (id, _) = choose(&mut table, now);
    table.apply(web(2, &[]));
    assert_eq!((table.drained(), table.choose(PORT, &[], now)), (1, None));
    table.apply(web(3, &[1]));
    assert_eq!((table.drained(), choose(&mut table, now).0), (3, id), "its connections count on");
    table.apply(web(4, &[]));
    assert!(!table.release(id), "one is left");
    assert_eq!(table.drained(), 3);
    assert!(table.release(id));
    assert_eq!(table.drained(), 4);
}

#[test]
fn another_generation_starts_over_and_what_is_not_in_it_drains() {
    let (mut table, now) = (table(&[1, 2, 3]), Instant::now());
    let [one, two, _] = [(); 3].map(|()| choose(&mut table, now));
    table.apply(web(70, &[2, 3]));
    let generation = Generation { session: 2, ..GENERATION };
    let next = Update { generation, all: true, ..web(5, &[3]) };
    table.apply(next);
    assert_eq!((table.applied(), table.drained()), (Some((generation, 5)), 4));
    table.release(two.0);
    assert_eq!(table.drained(), 4, "the update 70 of before means nothing any more");
    table.release(one.0);
    assert_eq!(table.drained(), 5);
}

#[test]
fn services_are_forgotten_when_they_are_gone_or_not_in_a_full_update() {
    let mut table = Table::new(LIMITS);
    let of = |table: &Table| table.ports().collect::<Vec<_>>();
    table.apply(update(1, vec![service("a", 1, &[]), service("b", 2, &[]), service("c", 3, &[])]));
    let gone = ServiceEndpoints { service: "a".parse().unwrap(), ports: Vec::new() };
    table.apply(update(2, vec![gone]));
    assert_eq!(of(&table), [2, 3]);
    table.apply(Update { all: true, ..update(3, vec![service("c", 4, &[])]) });
    assert_eq!(of(&table), [4]);
}

#[test]
fn a_port_that_moves_keeps_the_connections_of_its_service() {
    let (mut table, now) = (table(&[1]), Instant::now());
    choose(&mut table, now);
    table.apply(update(2, vec![service("web", 81, &[address(1)])]));
    assert_eq!((table.drained(), table.choose(PORT, &[], now)), (2, None));
    assert_eq!(table.choose(81, &[], now).unwrap().address, address(1));
}

#[test]
fn troubles_of_endpoints_are_told() {
    let mut table = Table::new(LIMITS);
    let mut odd = service("odd", 81, &[address(1)]);
    odd.ports[0].endpoints.push((attempt(9), "nowhere".into()));
    table.apply(update(1, vec![service("b", 80, &[]), service("a", 80, &[]), odd]));
    let troubles: Vec<_> = table.troubles().collect();
    assert_eq!(troubles.len(), 2);
    assert!(troubles[0].0 == 80 && troubles[0].1.contains("service a has it"), "{troubles:?}");
    assert!(troubles[1].0 == 81 && troubles[1].1.contains("nowhere"), "{troubles:?}");
    // The valid endpoint is used.
    assert_eq!(table.choose(81, &[], Instant::now()).unwrap().address, address(1));
}
