//! The runtimes of the node, and which of them has which attempt.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::step::{Command, JobContext};
use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
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
        let (docker, owners) = (None, HashMap::new());
        Self { node, policy, switches, folders, process, docker, facts, owners }
    }

    /// Docker has come.
    pub(crate) fn set_docker(&mut self, docker: DockerRuntime) {
        self.docker = Some(docker);
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
            .filter(|kind| self.has(*kind))
            .collect()
    }

    fn has(&self, kind: RuntimeKind) -> bool {
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
        if !self.has(kind) {
            let text = format!("this node has no runtime `{kind}` now");
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(125, text)));
        }
        if kind == RuntimeKind::Process
            && let Err(why) = self.policy.check_resources(&self.node, &context.resources)
        {
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(125, why)));
        }
        // What runs already has the room that is kept; what does not start can be tried elsewhere.
        if kind != RuntimeKind::Noop
            && let Some(why) = self.folders.iter().find_map(|folder| no_room(folder))
        {
            let text = format!("node {}: {why}", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(125, text)));
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
