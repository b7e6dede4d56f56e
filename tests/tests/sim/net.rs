//! The network between the hosts and the manager.
//!
//! Within a connection, messages arrive in order and once, or the connection ends. What is queued
//! in a connection that ends may be lost, or may arrive later than messages of a newer connection.

use std::collections::VecDeque;

use podmesh_protocol::ids::Epoch;
use podmesh_protocol::session::{ToManager, ToPeer};

use crate::world::{Event, Life, World, note};

/// How long a broken connection may go unnoticed.
const TROUBLE_MS: u64 = 10_000;

pub(crate) type ConnId = u64;
pub(crate) type StreamId = u64;

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// One connection of an agent to the manager's ROUTER.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) node: usize,
    pub(crate) agent: Life,
    pub(crate) manager: Life,
    up: VecDeque<ToManager>,
    down: VecDeque<ToPeer>,
    pub(crate) agent_open: bool,
    pub(crate) manager_open: bool,
    up_pumped: bool,
    down_pumped: bool,
    /// Until when messages that the agent sent before it closed its end are delayed.
    held_until: u64,
    /// Whether nothing passes any more, even if nobody has noticed.
    broken: bool,
}

/// One stream of heartbeats.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) node: usize,
    pub(crate) agent: Life,
    pub(crate) manager: Life,
    pub(crate) epoch: Epoch,
    /// Whether the agent's end is open.
    pub(crate) agent_open: bool,
    /// Whether the manager's end is open.
    pub(crate) manager_open: bool,
    /// Whether the first beat has arrived.
    pub(crate) adopted: bool,
    last_up: u64,
    last_down: u64,
}

impl World {
    fn latency(&mut self) -> u64 {
        let usual = self.plan.latency_ms;
        if !self.calm && self.rng.percent(2) {
            return self.rng.within(0, 1_500);
        }
        self.rng.short(usual)
    }

    /// Returns when a message that is sent now arrives.
    fn arrival(&mut self, node: usize, direction: Direction) -> u64 {
        let at = self.now + self.latency();
        let cut_until = self.nodes[node].cut_until(direction);
        if at < cut_until { cut_until + self.rng.short(200) } else { at }
    }

    pub(crate) fn open_conn(&mut self, node: usize, agent: Life, manager: Life) -> ConnId {
        let id = self.number();
        let conn = Conn {
            node,
            agent,
            manager,
            up: VecDeque::new(),
            down: VecDeque::new(),
            agent_open: true,
            manager_open: true,
            up_pumped: false,
            down_pumped: false,
            held_until: 0,
            broken: false,
        };
        self.conns.insert(id, conn);
        id
    }

    pub(crate) fn send_up(&mut self, id: ConnId, message: ToManager) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.manager_open) else { return };
        if conn.broken {
            return;
        }
        let node = conn.node;
        conn.up.push_back(message);
        if !std::mem::replace(&mut conn.up_pumped, true) {
            let at = self.arrival(node, Direction::Up);
            self.at(at, Event::Pump(id, Direction::Up));
        }
    }

    /// Sends a message to an agent. Returns false if the manager knows that the connection has
    /// ended.
    pub(crate) fn send_down(&mut self, id: ConnId, message: ToPeer) -> bool {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.manager_open) else {
            return false;
        };
        if conn.broken {
            return true;
        }
        let node = conn.node;
        conn.down.push_back(message);
        if !std::mem::replace(&mut conn.down_pumped, true) {
            let at = self.arrival(node, Direction::Down);
            self.at(at, Event::Pump(id, Direction::Down));
        }
        true
    }

    /// Delivers the next message that has arrived, in order and no faster than the link allows.
    pub(crate) fn pump(&mut self, id: ConnId, direction: Direction) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (node, manager_open, agent_open) = (conn.node, conn.manager_open, conn.agent_open);
        let mut held_until = self.nodes[node].cut_until(direction);
        if direction == Direction::Up {
            held_until = held_until.max(conn.held_until);
        }
        if self.now < held_until {
            let at = held_until + self.rng.short(200);
            return self.at(at, Event::Pump(id, direction));
        }
        if direction == Direction::Up
            && let Some(until) = self.manager.as_ref().and_then(|manager| manager.stalled(self.now))
        {
            return self.at(until, Event::Pump(id, direction));
        }
        let conn = self.conns.get_mut(&id).expect("it was there");
        let (up, down) = match direction {
            Direction::Up if !manager_open => (None, None),
            Direction::Up => (conn.up.pop_front(), None),
            Direction::Down if !agent_open => (None, None),
            Direction::Down => (None, conn.down.pop_front()),
        };
        let more = match direction {
            Direction::Up => manager_open && !conn.up.is_empty(),
            Direction::Down => agent_open && !conn.down.is_empty(),
        };
        match direction {
            Direction::Up => conn.up_pumped = more,
            Direction::Down => conn.down_pumped = more,
        }
        if more {
            let at = self.arrival(node, direction);
            self.at(at, Event::Pump(id, direction));
        } else if direction == Direction::Up && manager_open && !agent_open {
            self.after(1, Event::ManagerHears(id));
        }
        if let Some(message) = up {
            self.manager_receives(id, message);
        }
        if let Some(message) = down {
            self.agent_receives(id, message);
        }
    }

    /// Closes the agent's end, on its own or because its process ended.
    pub(crate) fn agent_closes(&mut self, id: ConnId) {
        let lost = self.rng.percent(50);
        let late = if !self.calm && self.rng.percent(20) { self.rng.short(60_000) } else { 0 };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !std::mem::replace(&mut conn.agent_open, false) {
            return;
        }
        conn.down.clear();
        if lost {
            conn.up.clear();
        }
        // Messages in flight may need retransmissions before they arrive.
        conn.held_until = self.now + late;
        if !conn.up_pumped {
            let node = conn.node;
            let at = self.arrival(node, Direction::Up);
            self.at(at + late, Event::ManagerHears(id));
        }
    }

    /// Closes the manager's ends of all connections, because its process ended.
    pub(crate) fn manager_closes_all(&mut self) {
        let open: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| conn.manager_open).map(|(id, _)| *id).collect();
        for id in open {
            let lost = self.rng.percent(50);
            let conn = self.conns.get_mut(&id).expect("it was there");
            conn.manager_open = false;
            conn.up.clear();
            if lost {
                conn.down.clear();
            }
            let node = conn.node;
            let at = self.arrival(node, Direction::Down);
            self.at(at, Event::AgentHears(id));
        }
        for stream in self.streams.values_mut() {
            stream.manager_open = false;
        }
    }

    /// Breaks the connection of a node's agent.
    pub(crate) fn break_conn(&mut self, node: usize) {
        let Some(id) = self.nodes[node].conn() else { return };
        note!(self, "node {node}: connection {id} breaks");
        let conn = self.conns.get_mut(&id).expect("an agent's connection exists");
        conn.up.clear();
        conn.down.clear();
        conn.broken = true;
        self.nodes[node].trouble(self.now + TROUBLE_MS);
        let (up, down) = (self.rng.short(10_000), self.rng.short(10_000));
        self.after(up, Event::ManagerHears(id));
        self.after(down, Event::AgentHears(id));
    }

    pub(crate) fn cut(&mut self, node: usize, ms: u64, way: u64) {
        note!(self, "node {node}: cut for {ms} ms, way {way}");
        let until = self.now + ms;
        self.nodes[node].cut(until, way);
    }

    pub(crate) fn open_stream(&mut self, node: usize, agent: Life, epoch: Epoch) -> StreamId {
        let id = self.number();
        let manager = self.manager.as_ref().map_or(0, |manager| manager.life);
        let stream = Stream {
            node,
            agent,
            manager,
            epoch,
            agent_open: true,
            manager_open: manager != 0,
            adopted: false,
            last_up: 0,
            last_down: 0,
        };
        self.streams.insert(id, stream);
        self.after(0, Event::Beat(id));
        id
    }

    pub(crate) fn send_beat(&mut self, id: StreamId, event: Event, direction: Direction) {
        let node = self.streams[&id].node;
        let at = self.arrival(node, direction);
        let stream = self.streams.get_mut(&id).expect("it was there");
        let last = match direction {
            Direction::Up => &mut stream.last_up,
            Direction::Down => &mut stream.last_down,
        };
        *last = at.max(*last);
        let at = *last;
        self.at(at, event);
    }

    /// Closes the agent's end of a stream, which the manager will notice.
    pub(crate) fn agent_closes_stream(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && std::mem::replace(&mut stream.agent_open, false)
        {
            self.send_beat(id, Event::StreamEnds(id), Direction::Up);
        }
    }

    pub(crate) fn break_stream(&mut self, node: usize) {
        let Some(id) = self.nodes[node].stream() else { return };
        note!(self, "node {node}: heartbeat stream {id} breaks");
        self.nodes[node].trouble(self.now + TROUBLE_MS);
        let (up, down) = (self.rng.short(10_000), self.rng.short(10_000));
        self.after(up, Event::StreamEnds(id));
        self.after(down, Event::StreamFails(id));
    }
}
