//! The known nodes and their sessions.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

use podmesh_protocol::ids::{AgentId, AttemptId, Epoch, JobId, Name, TaskId};
use podmesh_protocol::limits::{
    ATTEMPTS_PER_NODE_MAX, DRAIN_JOBS_SHOWN, END_MARGIN_MS, FRAME_BYTES_MAX, PAGE_ROWS_MAX,
};
use podmesh_protocol::node::{
    DrainView, MaintenanceView, NodeState, NodeView, ResourceView, Scheduling,
};
use podmesh_protocol::place::{Claims, PlaceRules};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::session::StopReason;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use podmesh_protocol::time::{Millis, Now};

use crate::ids::{ConnectionId, LaneId, NodeIx};
use crate::in_use::InUse;
use crate::state::{Drain, NodeRow};
use crate::timers::{Timer, Timers};

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    /// The same as in the state.
    pub(crate) row: Arc<NodeRow>,
    /// The runtimes that its agent cannot start now, with the reasons from its last hello.
    pub(crate) withdrawn: BTreeMap<RuntimeKind, String>,
    /// The limits that its agent does not enforce for commands, with the reasons from its last hello.
    pub(crate) unenforced: BTreeMap<String, String>,
    /// The disks that are nearly full, with the reasons from its agent's last hello.
    pub(crate) low_disks: BTreeMap<String, String>,
    /// Its position in the order of the names.
    pub(crate) rank: usize,
    pub(crate) state: NodeState,
    pub(crate) session: Option<Session>,
    /// The tasks whose active attempts are on this node.
    pub(crate) attempts: BTreeMap<TaskId, Delivery>,
    /// How many of these attempts are replicas of each revision of a service.
    pub(crate) replicas: BTreeMap<(Name, u32), u32>,
    /// What these attempts use, in thousandths of a core.
    pub(crate) used_cpu_millis: u64,
    /// What these attempts use, in bytes.
    pub(crate) used_memory_bytes: u64,
    /// What these attempts have of its named resources.
    pub(crate) in_use: InUse,
    /// How many of these attempts have the node for themselves.
    pub(crate) exclusive: u32,
    /// What those of these attempts use that are preemptible.
    pub(crate) preemptible: Preemptible,
    /// The number of the last report of `row.agent_instance` that was processed. `None` if the next
    /// one may have any number, as after a start of the manager.
    pub(crate) acked: Option<u64>,
    /// When it was last known to be alive, if it is not alive now.
    pub(crate) seen_ms: Option<Millis>,
    /// What happens next to a node without a session, and when. The timers hold the same.
    deadline: Option<(Millis, Timer)>,
    /// When starts are sent again. The timers hold the same time.
    pub(crate) resend_ms: Option<Millis>,
    /// When what still runs here is stopped because the node is drained. The timers hold the same
    /// time.
    pub(crate) drain_due_ms: Option<Millis>,
    /// When its planned maintenance begins or ends, by the wall clock. The windows have the same.
    pub(crate) window_ms: Option<u64>,
    /// When its planned maintenance begins, unless its drain says that tasks run again elsewhere. Tasks
    /// whose end is known must be over by then.
    pub(crate) closes_ms: Option<Millis>,
}

/// What the preemptible attempts of a node use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preemptible {
    pub(crate) attempts: u32,
    /// In thousandths of a core.
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

/// How far the start of an attempt has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// When the attempt was assigned or, once it runs, when its start was reported. After a restart
    /// of the manager: the time of the restart.
    pub(crate) since_ms: Millis,
    /// When its start was last sent; `None` if not in the current session of the node.
    pub(crate) sent_ms: Option<Millis>,
    /// Whether the node has since shown that it holds the attempt.
    pub(crate) heard: bool,
    /// The lane of its job, which counts it.
    pub(crate) lane: LaneId,
}

/// The open session of a node.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) epoch: Epoch,
    pub(crate) connection: ConnectionId,
    /// Whether its connection is gone. The node then needs a new session.
    pub(crate) connection_gone: bool,
    /// The effects of its hello, until the agent shows that it has received the welcome. A hello
    /// can be delayed, from a connection that the agent gave up long ago, and must not end
    /// attempts.
    pub(crate) pending_hello: Option<PendingHello>,
    pub(crate) outgoing: Outgoing,
    /// What the proxy of the node has said; `None` if it has none.
    pub(crate) proxy: Option<Proxy>,
}

/// The proxy of a node, as its agent describes it.
#[derive(Debug, Default)]
pub(crate) struct Proxy {
    /// Whether it has to be sent all endpoints.
    pub(crate) is_new: bool,
    /// The number of the first update of the session, which has all endpoints.
    pub(crate) first: u64,
    /// The last update that it has applied.
    pub(crate) applied: u64,
    /// The last update whose removed replicas have no connection through it.
    pub(crate) drained: u64,
    /// The published ports that are not open, and why.
    pub(crate) closed: BTreeMap<u16, String>,
}

/// The effects of a hello, which wait until it is certain that the hello is not a delayed one.
#[derive(Debug)]
pub(crate) struct PendingHello {
    /// Identifies the current boot of the machine.
    pub(crate) boot_id: String,
    /// Attempts that the node should hold but no longer does, with their outcomes.
    pub(crate) missing: VecDeque<(AttemptId, Outcome)>,
}

/// The messages of one step to an agent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) specs: Vec<JobId>,
    pub(crate) starts: Vec<AttemptId>,
    /// Those of `starts` that have named resources.
    pub(crate) claims: Vec<AttemptId>,
    pub(crate) stops: Vec<(AttemptId, StopReason)>,
    pub(crate) forget: Vec<JobId>,
    pub(crate) remove_volumes: Vec<Name>,
}

impl Node {
    /// Returns the unused resources.
    pub(crate) fn free(&self) -> Resources {
        self.unused(self.used_cpu_millis, self.used_memory_bytes)
    }

    /// Returns the resources that are unused, or would be without the preemptible attempts.
    pub(crate) fn free_without_preemptible(&self) -> Resources {
        let Preemptible { cpu_millis, memory_bytes, .. } = self.preemptible;
        self.unused(self.used_cpu_millis - cpu_millis, self.used_memory_bytes - memory_bytes)
    }

    fn unused(&self, used_cpu_millis: u64, used_memory_bytes: u64) -> Resources {
        let cpu = u64::from(self.row.capacity.cpu_millis).saturating_sub(used_cpu_millis);
        Resources {
            cpu_millis: u32::try_from(cpu).unwrap_or(u32::MAX),
            memory_bytes: self.row.capacity.memory_bytes.saturating_sub(used_memory_bytes),
        }
    }

    /// Returns the resources that one more attempt may use here now; `None` if nothing can be
    /// placed here.
    pub(crate) fn room(&self) -> Option<Resources> {
        let has_slot = self.attempts.len() < ATTEMPTS_PER_NODE_MAX && self.exclusive == 0;
        (self.is_open() && has_slot).then(|| self.free())
    }

    /// Returns whether it may get new attempts.
    pub(crate) fn is_open(&self) -> bool {
        self.state == NodeState::Alive && self.row.scheduling == Scheduling::Open
    }

    /// Returns whether a task may start here that ends after `lasts_ms` at the latest, because it would be
    /// over when the planned maintenance begins. One without a known end (`u64::MAX`) may: waiting would
    /// not help it.
    pub(crate) fn leaves_time(&self, lasts_ms: u64, now_ms: Millis) -> bool {
        let end_ms = || now_ms.saturating_add(lasts_ms).saturating_add(END_MARGIN_MS);
        self.closes_ms.is_none_or(|at| lasts_ms == u64::MAX || end_ms() <= at)
    }

    /// Returns whether the name of this node belongs to an agent other than `agent_id`.
    pub(crate) fn is_another(&self, agent_id: Option<AgentId>) -> bool {
        self.row.agent_id.is_some() && self.row.agent_id != agent_id
    }

    /// Returns whether one more attempt of this size may be placed here now.
    pub(crate) fn has_room(&self, needs: &Resources) -> bool {
        self.room().is_some_and(|room| needs.fits(&room))
    }

    /// Returns whether it has what a task needs apart from cores and memory.
    pub(crate) fn takes(&self, rules: &PlaceRules) -> bool {
        (!rules.exclusive || self.attempts.is_empty())
            && self.in_use.has_room(&self.row.resources, rules)
    }

    /// Adds an attempt of a job that takes `needs`, and what it has of the named resources.
    pub(crate) fn take(
        &mut self,
        task: TaskId,
        spec: &JobSpec,
        needs: &Resources,
        claims: Option<&Claims>,
        delivery: Delivery,
    ) {
        if let Some(claims) = claims {
            self.in_use.take(claims);
        }
        self.exclusive += u32::from(spec.place.exclusive);
        self.attempts.insert(task, delivery);
        if let Some(replica) = &spec.run.replica {
            let of = (replica.service.clone(), replica.revision);
            *self.replicas.entry(of).or_default() += 1;
        }
        self.used_cpu_millis += u64::from(needs.cpu_millis);
        self.used_memory_bytes += needs.memory_bytes;
        if spec.rules.preemptible {
            self.preemptible.attempts += 1;
            self.preemptible.cpu_millis += u64::from(needs.cpu_millis);
            self.preemptible.memory_bytes += needs.memory_bytes;
        }
    }

    /// Removes an attempt. Returns the lane that counts it.
    pub(crate) fn give_back(
        &mut self,
        task: TaskId,
        spec: &JobSpec,
        claims: Option<&Claims>,
    ) -> Option<LaneId> {
        let lane = self.attempts.remove(&task).map(|delivery| delivery.lane);
        if let Some(claims) = claims {
            self.in_use.give_back(claims);
        }
        self.exclusive -= u32::from(spec.place.exclusive);
        if let Some(replica) = &spec.run.replica {
            let of = (replica.service.clone(), replica.revision);
            if let Some(count) = self.replicas.get_mut(&of) {
                *count -= 1;
                if *count == 0 {
                    self.replicas.remove(&of);
                }
            }
        }
        self.used_cpu_millis -= u64::from(spec.resources.cpu_millis);
        self.used_memory_bytes -= spec.resources.memory_bytes;
        if spec.rules.preemptible {
            self.preemptible.attempts -= 1;
            self.preemptible.cpu_millis -= u64::from(spec.resources.cpu_millis);
            self.preemptible.memory_bytes -= spec.resources.memory_bytes;
        }
        lane
    }

    fn drain_view(&self, drain: &Drain, now: Now) -> DrainView {
        let mut jobs: Vec<JobId> = self.attempts.keys().map(|task| task.job).collect();
        jobs.dedup();
        jobs.truncate(DRAIN_JOBS_SHOWN);
        let due_ms = drain.spec.stops_after_ms().map(|_| self.drain_due_ms.unwrap_or(0));
        DrainView {
            by: drain.by.clone(),
            since_wall_ms: drain.since_wall_ms,
            spec: drain.spec.clone(),
            stops_in_ms: due_ms.map(|at| at.saturating_sub(now.mono_ms)),
            waits_for: jobs,
        }
    }

    fn view(&self, now: Now) -> NodeView {
        let row = &self.row;
        NodeView {
            node: row.node.clone(),
            state: self.state.into(),
            epoch: self.session.as_ref().map(|session| session.epoch),
            program_version: row.program_version.clone(),
            capacity: row.capacity,
            free: self.free(),
            labels: row.labels.iter().chain(&row.admin_labels).map(owned).collect(),
            admin_labels: row.admin_labels.keys().cloned().collect(),
            runtimes: row.runtimes.iter().map(|runtime| (*runtime).into()).collect(),
            withdrawn: self
                .withdrawn
                .iter()
                .map(|(runtime, why)| ((*runtime).into(), why.clone()))
                .collect(),
            unenforced: self.unenforced.clone(),
            low_disks: self.low_disks.clone(),
            enrolled: false,
            scheduling: row.scheduling.into(),
            resources: self.in_use.view(&row.resources),
            drain: row.drain.as_deref().map(|drain| self.drain_view(drain, now)),
            maintenance: row.maintenance.as_deref().map(|planned| MaintenanceView {
                by: planned.by.clone(),
                spec: planned.spec.clone(),
                active: planned.before.is_some(),
            }),
            address: row.address.clone(),
            attempts: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            seen_ms_ago: match self.state {
                NodeState::Alive => Some(0),
                NodeState::Suspect | NodeState::Lost => {
                    self.seen_ms.map(|seen| now.mono_ms.saturating_sub(seen))
                }
            },
        }
    }
}

fn owned((label, value): (&Name, &String)) -> (Name, String) {
    (label.clone(), value.clone())
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    list: Vec<Node>,
    /// The indexes in `list` of removed nodes.
    free: Vec<NodeIx>,
    by_name: BTreeMap<Name, NodeIx>,
    by_epoch: BTreeMap<Epoch, NodeIx>,
    by_connection: BTreeMap<ConnectionId, NodeIx>,
    /// The nodes whose state or session has changed since the last call of [`Nodes::pop_changed`].
    changed: BTreeSet<NodeIx>,
    /// The nodes with a new session and a proxy.
    new_proxies: BTreeSet<NodeIx>,
}

impl Nodes {
    pub(crate) fn get(&self, ix: NodeIx) -> &Node {
        &self.list[ix.0]
    }

    pub(crate) fn get_mut(&mut self, ix: NodeIx) -> &mut Node {
        &mut self.list[ix.0]
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn by_name(&self, name: &Name) -> Option<NodeIx> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn by_epoch(&self, epoch: Epoch) -> Option<NodeIx> {
        self.by_epoch.get(&epoch).copied()
    }

    pub(crate) fn by_connection(&self, connection: ConnectionId) -> Option<NodeIx> {
        self.by_connection.get(&connection).copied()
    }

    /// Returns the node whose open session has this epoch and this connection.
    pub(crate) fn by_session(&self, connection: ConnectionId, epoch: Epoch) -> Option<NodeIx> {
        let ix = self.by_epoch(epoch)?;
        self.get(ix)
            .session
            .as_ref()
            .is_some_and(|session| session.connection == connection)
            .then_some(ix)
    }

    /// Returns all nodes in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeIx, &Node)> {
        self.by_name.values().map(|ix| (*ix, self.get(*ix)))
    }

    /// Adds a node without a session. Its name must be new.
    pub(crate) fn insert(&mut self, row: Arc<NodeRow>) -> NodeIx {
        let ix = self.push(row);
        self.rank();
        ix
    }

    /// Adds nodes without sessions. Their names must be new.
    pub(crate) fn insert_all(&mut self, rows: impl Iterator<Item = Arc<NodeRow>>) {
        for row in rows {
            self.push(row);
        }
        self.rank();
    }

    fn push(&mut self, row: Arc<NodeRow>) -> NodeIx {
        let name = row.node.clone();
        let node = Node {
            row,
            withdrawn: BTreeMap::new(),
            unenforced: BTreeMap::new(),
            low_disks: BTreeMap::new(),
            rank: 0,
            state: NodeState::Suspect,
            session: None,
            attempts: BTreeMap::new(),
            replicas: BTreeMap::new(),
            used_cpu_millis: 0,
            used_memory_bytes: 0,
            in_use: InUse::default(),
            exclusive: 0,
            preemptible: Preemptible::default(),
            acked: None,
            seen_ms: None,
            deadline: None,
            resend_ms: None,
            drain_due_ms: None,
            window_ms: None,
            closes_ms: None,
        };
        let ix = self.free.pop().unwrap_or(NodeIx(self.list.len()));
        match self.list.get_mut(ix.0) {
            Some(free) => *free = node,
            None => self.list.push(node),
        }
        self.by_name.insert(name, ix);
        ix
    }

    /// Removes a node. It must have no session, attempts or timers.
    pub(crate) fn remove(&mut self, ix: NodeIx) {
        self.by_name.remove(&self.list[ix.0].row.node);
        self.free.push(ix);
        self.changed.remove(&ix);
        self.new_proxies.remove(&ix);
    }

    fn rank(&mut self) {
        for (rank, ix) in self.by_name.values().enumerate() {
            self.list[ix.0].rank = rank;
        }
    }

    /// Gives a node a new session. Its old session must be closed first.
    pub(crate) fn open_session(&mut self, ix: NodeIx, epoch: Epoch, connection: ConnectionId) {
        self.by_epoch.insert(epoch, ix);
        self.by_connection.insert(connection, ix);
        let outgoing = Outgoing::default();
        let node = self.get_mut(ix);
        let has_proxy = node.row.address.is_some();
        let proxy = has_proxy.then(|| Proxy { is_new: true, ..Proxy::default() });
        node.state = NodeState::Alive;
        node.session = Some(Session {
            epoch,
            connection,
            connection_gone: false,
            pending_hello: None,
            outgoing,
            proxy,
        });
        self.changed.insert(ix);
        if has_proxy {
            self.new_proxies.insert(ix);
        }
    }

    /// Closes the session of a node and returns it.
    pub(crate) fn close_session(&mut self, ix: NodeIx) -> Option<Session> {
        let session = self.get_mut(ix).session.take()?;
        self.changed.insert(ix);
        self.by_epoch.remove(&session.epoch);
        self.by_connection.remove(&session.connection);
        Some(session)
    }

    /// Marks a node as suspect. Returns its name if it was alive until now.
    pub(crate) fn become_suspect(&mut self, ix: NodeIx, seen_ms: Millis) -> Option<Name> {
        let node = self.get_mut(ix);
        if node.state != NodeState::Alive {
            return None;
        }
        node.state = NodeState::Suspect;
        node.seen_ms = Some(seen_ms);
        let name = node.row.node.clone();
        self.changed.insert(ix);
        Some(name)
    }

    /// Marks a node as lost, and returns its name.
    pub(crate) fn become_lost(&mut self, ix: NodeIx) -> Name {
        let node = self.get_mut(ix);
        node.state = NodeState::Lost;
        let name = node.row.node.clone();
        self.changed.insert(ix);
        name
    }

    /// Marks a suspect node as alive, and returns its name.
    pub(crate) fn become_alive(&mut self, ix: NodeIx) -> Name {
        let node = self.get_mut(ix);
        node.state = NodeState::Alive;
        let name = node.row.node.clone();
        self.changed.insert(ix);
        name
    }

    /// Notes that something else about a node has changed.
    pub(crate) fn mark_changed(&mut self, ix: NodeIx) {
        self.changed.insert(ix);
    }

    /// Takes a node that has changed.
    pub(crate) fn pop_changed(&mut self) -> Option<NodeIx> {
        self.changed.pop_first()
    }

    /// Takes a node with a new session and a proxy.
    pub(crate) fn pop_new_proxy(&mut self) -> Option<NodeIx> {
        self.new_proxies.pop_first()
    }

    pub(crate) fn set_deadline(
        &mut self,
        timers: &mut Timers,
        ix: NodeIx,
        deadline: Option<(Millis, Timer)>,
    ) {
        let node = self.get_mut(ix);
        if let Some((at, timer)) = node.deadline {
            timers.replace(Some(at), None, timer);
        }
        if let Some((at, timer)) = deadline {
            timers.replace(None, Some(at), timer);
        }
        node.deadline = deadline;
    }

    pub(crate) fn deadline(&self, ix: NodeIx) -> Option<(Millis, Timer)> {
        self.get(ix).deadline
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn sessions(&self) -> (&BTreeMap<Epoch, NodeIx>, &BTreeMap<ConnectionId, NodeIx>) {
        (&self.by_epoch, &self.by_connection)
    }

    /// Returns the nodes after a name: at most `limit`, at most [`PAGE_ROWS_MAX`], and only as many
    /// as fit into one frame, but at least one if there is one and `limit` is not 0.
    pub(crate) fn page(&self, now: Now, after: Option<&Name>, limit: u32) -> Vec<NodeView> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        self.by_name
            .range::<Name, _>((start, Bound::Unbounded))
            .map(|(_, ix)| self.get(*ix).view(now))
            .take_while(|view| {
                let first = bytes == 0;
                bytes += view_bytes(view);
                first || bytes <= FRAME_BYTES_MAX / 2
            })
            .take(limit.min(PAGE_ROWS_MAX) as usize)
            .collect()
    }
}

/// Returns the approximate size of a row on the wire, in bytes.
fn view_bytes(view: &NodeView) -> usize {
    let labels: usize =
        view.labels.iter().map(|(name, value)| name.as_str().len() + value.len() + 8).sum();
    let withdrawn: usize = view.withdrawn.values().map(|why| why.len() + 16).sum();
    let reasons = view.unenforced.iter().chain(&view.low_disks);
    let unenforced: usize = reasons.map(|(what, why)| what.len() + why.len() + 16).sum();
    let planned = view.maintenance.as_ref().map(|planned| &planned.spec.drain);
    let drains = view.drain.iter().map(|drain| &drain.spec).chain(planned);
    let drain: usize = drains.filter_map(|drain| drain.reason.as_ref()).map(String::len).sum();
    let ids = |of: &ResourceView| -> usize {
        of.offer.ids.iter().chain(&of.gone).map(|id| id.len() + 4).sum()
    };
    let resources: usize =
        view.resources.iter().map(|(name, of)| name.as_str().len() + 32 + ids(of)).sum();
    512 + view.program_version.len() + 2 * labels + withdrawn + unenforced + drain + resources
}
