//! The runtimes of the node, and which of them has which attempt.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::step::{Command, JobContext};
use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
use podmesh_protocol::limits::MESSAGE_BYTES_MAX;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::RuntimeKind;
use podmesh_protocol::time::Millis;
use podmesh_wire::machine::no_room;
use tokio::sync::mpsc::UnboundedSender;

use crate::config::RuntimeSwitches;
use crate::docker::DockerRuntime;
use crate::policy::NodePolicy;
use crate::supervisor::Processes;

/// The runtimes of the node.
pub(crate) struct Runtimes {
    node: Name,
    policy: NodePolicy,
    switches: RuntimeSwitches,
    /// What attempts write to: work folders and output.
    folders: [PathBuf; 2],
    process: Option<Processes>,
    docker: Option<DockerRuntime>,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    owners: HashMap<AttemptId, RuntimeKind>,
    /// What cannot be started now though it could be otherwise, and why.
    withdrawn: BTreeMap<RuntimeKind, String>,
}

impl Runtimes {
    /// All but Docker. Processes of an earlier life are looked after also where new ones are not
    /// allowed.
    pub(crate) fn new(
        node: Name,
        policy: NodePolicy,
        switches: RuntimeSwitches,
        folders: [PathBuf; 2],
        process: Option<Processes>,
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> Self {
        let mut this = Self {
            node,
            policy,
            switches,
            folders,
            process,
            docker: None,
            facts,
            owners: HashMap::new(),
            withdrawn: BTreeMap::new(),
        };
        this.look();
        this
    }

    /// Looks what can be started now. Whether that has changed: then a hello is to say so.
    pub(crate) fn look(&mut self) -> bool {
        let no_room = self.folders.iter().find_map(|folder| no_room(folder));
        let mut withdrawn = BTreeMap::new();
        for kind in [RuntimeKind::Process, RuntimeKind::Docker] {
            let why = no_room.clone().or_else(|| match (kind, &self.docker) {
                (RuntimeKind::Docker, Some(docker)) => docker.trouble(),
                _ => None,
            });
            if let Some(why) = why.filter(|_| self.is_set_up(kind)) {
                withdrawn.insert(kind, why);
            }
        }
        // A text with other numbers of free bytes says nothing new.
        let changed = !withdrawn.keys().eq(self.withdrawn.keys());
        if changed {
            for (kind, why) in &withdrawn {
                tracing::warn!("this node takes no work for {kind}: {why}");
            }
            for kind in self.withdrawn.keys().filter(|kind| !withdrawn.contains_key(kind)) {
                tracing::info!("this node takes work for {kind} again");
            }
            self.withdrawn = withdrawn;
        }
        changed
    }

    /// What cannot be started now, and why, for the hello.
    pub(crate) fn withdrawn(&self) -> BTreeMap<RuntimeKind, String> {
        let cut = |why: &String| why[..why.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned();
        self.withdrawn.iter().map(|(kind, why)| (*kind, cut(why))).collect()
    }

    /// Docker has come.
    pub(crate) fn set_docker(&mut self, docker: DockerRuntime) {
        self.docker = Some(docker);
        self.look();
    }

    /// To which cluster the containers belong.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        if let Some(docker) = &self.docker {
            docker.set_cluster(cluster);
        }
    }

    /// What an earlier life of the agent left with a runtime.
    pub(crate) fn found(&mut self, kind: RuntimeKind, found: &[FoundAttempt]) {
        self.owners.extend(found.iter().map(|found| (found.attempt, kind)));
    }

    /// The manager was in contact: until when that counts, by the machine's clock.
    pub(crate) fn lease(&self, until: Millis) {
        self.process.iter().for_each(|process| process.lease(until));
    }

    /// What can be started, for the hello.
    pub(crate) fn kinds(&self) -> Vec<RuntimeKind> {
        [RuntimeKind::Process, RuntimeKind::Docker, RuntimeKind::Noop]
            .into_iter()
            .filter(|kind| self.is_set_up(*kind) && !self.withdrawn.contains_key(kind))
            .collect()
    }

    fn is_set_up(&self, kind: RuntimeKind) -> bool {
        match kind {
            RuntimeKind::Process => self.switches.process && self.process.is_some(),
            RuntimeKind::Docker => self.docker.is_some(),
            RuntimeKind::Noop => self.switches.noop,
        }
    }

    /// Does what the core decided. Never waits.
    pub(crate) fn carry_out(&mut self, command: Command) {
        match command {
            Command::Start { attempt, context } => self.start(attempt, context),
            Command::Stop { attempt, grace_ms } => match self.owners.get(&attempt) {
                Some(RuntimeKind::Process) => {
                    self.process.iter().for_each(|process| process.stop(attempt, grace_ms));
                }
                Some(RuntimeKind::Docker) => {
                    self.docker.iter().for_each(|docker| docker.stop(attempt, grace_ms));
                }
                Some(RuntimeKind::Noop) | None => {}
            },
            Command::Remove { attempt } => match self.owners.remove(&attempt) {
                Some(RuntimeKind::Process) => {
                    self.process.iter().for_each(|process| process.remove(attempt));
                }
                Some(RuntimeKind::Docker) => {
                    self.docker.iter().for_each(|docker| docker.remove(attempt));
                }
                Some(RuntimeKind::Noop) | None => {}
            },
        }
    }

    fn start(&mut self, attempt: AttemptId, context: Arc<JobContext>) {
        let kind = context.run.runtime.kind();
        if !self.is_set_up(kind) {
            let text = format!("node {} has no runtime `{kind}` now", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        if kind == RuntimeKind::Process
            && let Err(why) = self.policy.check_resources(&self.node, &context.resources)
        {
            return self.tell(attempt, RuntimeFact::Ended(Outcome::start_failed(125, why)));
        }
        // What runs already has the room that is kept; what does not start is tried elsewhere.
        if kind != RuntimeKind::Noop
            && let Some(why) = self.folders.iter().find_map(|folder| no_room(folder))
        {
            let text = format!("node {}: {why}", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        match kind {
            RuntimeKind::Process => {
                self.process
                    .iter()
                    .for_each(|process| process.start(attempt, Arc::clone(&context)));
            }
            RuntimeKind::Docker => {
                self.docker.iter().for_each(|docker| docker.start(attempt, Arc::clone(&context)));
            }
            RuntimeKind::Noop => {
                self.tell(attempt, RuntimeFact::Started);
                return self.tell(attempt, RuntimeFact::Ended(Outcome::exited(0)));
            }
        }
        self.owners.insert(attempt, kind);
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // Its receiver lives as long as this.
        _ = self.facts.send((attempt, fact));
    }

    /// Lets the runtimes finish what they were asked for. Containers go on, and so do processes,
    /// unless they are to end with the agent.
    pub(crate) async fn close(self) {
        if let Some(process) = self.process {
            process.close().await;
        }
    }
}
