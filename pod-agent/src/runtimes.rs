//! The runtimes of the node, and which attempt belongs to which runtime.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::step::{Command, JobContext};
use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
use podmesh_protocol::limits::MESSAGE_BYTES_MAX;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::RuntimeKind;
use podmesh_protocol::time::Millis;
use podmesh_wire::machine::unwritable;
use tokio::sync::mpsc::UnboundedSender;

use crate::config::{DockerSwitch, RuntimeSwitches};
use crate::docker::{DockerRuntime, RemovedVolumes};
use crate::health::{HealthChecks, Place, Runs};
use crate::paths::{attempt_log_dir, set_output_aside};
use crate::policy::NodePolicy;
use crate::ports::{PortSource, ReplicaPorts};
use crate::service_names::{ServiceNames, Services};
use crate::supervisor::Processes;

/// A context of commands, without and with the names of services.
struct NamedContext {
    before: Arc<JobContext>,
    services: Services,
    after: Arc<JobContext>,
}

/// The runtimes of the node.
pub(crate) struct Runtimes {
    node: Name,
    policy: NodePolicy,
    switches: RuntimeSwitches,
    /// What attempts write to: the data directory with the work folders, and the output.
    folders: [PathBuf; 2],
    process: Option<Processes>,
    /// Why commands cannot be started; `None` if they can.
    process_trouble: Option<String>,
    docker: Option<DockerRuntime>,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    owners: HashMap<AttemptId, RuntimeKind>,
    /// The replicas among the attempts, with their ports.
    ports: Arc<ReplicaPorts>,
    names: Arc<ServiceNames>,
    /// The context of the last command, before and after it got the names of services.
    named: Option<NamedContext>,
    checks: HealthChecks,
    /// The runtimes that are set up but cannot start work now, with the reason.
    withdrawn: BTreeMap<RuntimeKind, String>,
}

impl Runtimes {
    /// Creates the runtimes except Docker. Processes and containers of the agent's previous run are
    /// supervised even if new ones are not allowed. The text is why commands cannot be started.
    pub(crate) fn new(
        node: Name,
        policy: NodePolicy,
        switches: RuntimeSwitches,
        folders: [PathBuf; 2],
        (process, process_trouble): (Option<Processes>, Option<String>),
        (ports, names): (Arc<ReplicaPorts>, Arc<ServiceNames>),
        facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> Self {
        let mut this = Self {
            node,
            policy,
            switches,
            folders,
            process,
            process_trouble,
            docker: None,
            checks: HealthChecks::new(facts.clone()),
            facts,
            owners: HashMap::new(),
            ports,
            names,
            named: None,
            withdrawn: BTreeMap::new(),
        };
        this.look();
        this
    }

    /// Checks which runtimes can start work now. Returns whether that has changed, which a new
    /// hello must report.
    pub(crate) fn look(&mut self) -> bool {
        let trouble = self.folders.iter().find_map(|folder| unwritable(folder));
        let mut withdrawn = BTreeMap::new();
        for kind in [RuntimeKind::Process, RuntimeKind::Docker] {
            let why = trouble.clone().or_else(|| match kind {
                RuntimeKind::Process => {
                    self.process_trouble.clone().or_else(|| self.process.as_ref()?.trouble())
                }
                RuntimeKind::Docker => self.docker.as_ref()?.trouble(),
                RuntimeKind::Noop => None,
            });
            if let Some(why) = why.filter(|_| self.is_set_up(kind)) {
                withdrawn.insert(kind, why);
            }
        }
        // A message with another number of free bytes is not a change.
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

    /// Returns the runtimes that cannot start work now, with the reason, for the hello.
    pub(crate) fn withdrawn(&self) -> BTreeMap<RuntimeKind, String> {
        let cut = |why: &String| why[..why.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned();
        self.withdrawn.iter().map(|(kind, why)| (*kind, cut(why))).collect()
    }

    /// Returns which limits are not enforced for commands, with the reason, for the hello.
    pub(crate) fn unenforced(&self) -> BTreeMap<String, String> {
        let process = self.process.as_ref().filter(|_| self.switches.process);
        process.map(Processes::unenforced).unwrap_or_default()
    }

    /// Adds the Docker runtime.
    pub(crate) fn set_docker(&mut self, docker: DockerRuntime) {
        self.docker = Some(docker);
        self.look();
    }

    /// Sets the cluster that containers belong to.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        if let Some(docker) = &self.docker {
            docker.set_cluster(cluster);
        }
    }

    /// Registers the attempts that were found in a runtime.
    pub(crate) fn found(&mut self, kind: RuntimeKind, found: &[FoundAttempt]) {
        self.owners.extend(found.iter().map(|found| (found.attempt, kind)));
        for FoundAttempt { attempt, ended, started, ran_ms, replica, .. } in found {
            if let (None, Some(replica)) = (ended, replica) {
                self.ports.adopt(*attempt, Arc::clone(replica));
                if *started {
                    self.check(*attempt, *ran_ms);
                }
            }
        }
    }

    /// Looks at the facts of the runtimes before the core gets them: checks the health of replicas
    /// while they run.
    pub(crate) fn see(&mut self, facts: &[(AttemptId, RuntimeFact)]) {
        for (attempt, fact) in facts {
            let begins = match fact {
                // The ports are reported before the health.
                RuntimeFact::Listening(_) => true,
                RuntimeFact::Started => {
                    self.ports.get(*attempt).is_some_and(|replica| replica.ports.is_empty())
                }
                RuntimeFact::Ended(_) => {
                    self.checks.end(*attempt);
                    false
                }
                RuntimeFact::Preparing(_) | RuntimeFact::LogGap(_) | RuntimeFact::Health(..) => {
                    false
                }
            };
            if begins {
                self.check(*attempt, 0);
            }
        }
    }

    /// Begins to check the health of a replica that has run for `ran_ms` milliseconds.
    fn check(&mut self, attempt: AttemptId, ran_ms: u64) {
        let Some(replica) = self.ports.get(attempt) else { return };
        let place = match self.owners.get(&attempt) {
            Some(RuntimeKind::Process) => {
                let Some(process) = &self.process else { return };
                Place(Runs::Process(process.checks(attempt)))
            }
            Some(RuntimeKind::Docker) => {
                // Without a container it has ended.
                let place = self.docker.as_ref().and_then(|docker| docker.place(attempt));
                let Some(place) = place else { return };
                place
            }
            Some(RuntimeKind::Noop) | None => return,
        };
        self.checks.begin(attempt, replica, place, ran_ms);
    }

    /// Removes named volumes of containers.
    pub(crate) fn remove_volumes(
        &self,
        volumes: Vec<Name>,
    ) -> impl Future<Output = RemovedVolumes> + Send + use<> {
        let removal = self.docker.as_ref().map(|docker| docker.remove_volumes(volumes.clone()));
        async move {
            match removal {
                Some(removal) => removal.await,
                None => {
                    let why = "the agent has no Docker engine now";
                    let failed = volumes.into_iter().map(|volume| (volume, why.to_owned()));
                    RemovedVolumes { removed: Vec::new(), failed: failed.collect() }
                }
            }
        }
    }

    /// Tells the supervisor when the lease ends, on the machine's clock.
    pub(crate) fn lease(&self, until: Millis) {
        self.process.iter().for_each(|process| process.lease(until));
    }

    /// Returns the runtime of an attempt; `None` if none has it.
    pub(crate) fn kind_of(&self, attempt: AttemptId) -> Option<RuntimeKind> {
        self.owners.get(&attempt).copied()
    }

    /// Returns the attempts that a runtime has, with their runtimes.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = (AttemptId, RuntimeKind)> {
        self.owners.iter().map(|(attempt, kind)| (*attempt, *kind))
    }

    /// Returns the runtimes that can start work, for the hello.
    pub(crate) fn kinds(&self) -> Vec<RuntimeKind> {
        [RuntimeKind::Process, RuntimeKind::Docker, RuntimeKind::Noop]
            .into_iter()
            .filter(|kind| self.is_set_up(*kind) && !self.withdrawn.contains_key(kind))
            .collect()
    }

    fn is_set_up(&self, kind: RuntimeKind) -> bool {
        match kind {
            RuntimeKind::Process => self.switches.process && self.process.is_some(),
            RuntimeKind::Docker => {
                self.switches.docker != DockerSwitch::Off && self.docker.is_some()
            }
            RuntimeKind::Noop => self.switches.noop,
        }
    }

    /// Carries out a command of the core. Never waits.
    pub(crate) fn carry_out(&mut self, command: Command) {
        match command {
            Command::Start { attempt, context } => self.start(attempt, context),
            Command::Stop { attempt, grace_ms } => {
                self.checks.end(attempt);
                match self.owners.get(&attempt) {
                    Some(RuntimeKind::Process) => {
                        self.process.iter().for_each(|process| process.stop(attempt, grace_ms));
                    }
                    Some(RuntimeKind::Docker) => {
                        self.docker.iter().for_each(|docker| docker.stop(attempt, grace_ms));
                    }
                    Some(RuntimeKind::Noop) | None => {}
                }
            }
            Command::Remove { attempt } => {
                self.checks.end(attempt);
                self.ports.release(attempt);
                match self.owners.remove(&attempt) {
                    Some(RuntimeKind::Process) => {
                        self.process.iter().for_each(|process| process.remove(attempt));
                    }
                    Some(RuntimeKind::Docker) => {
                        self.docker.iter().for_each(|docker| docker.remove(attempt));
                    }
                    Some(RuntimeKind::Noop) | None => {}
                }
            }
            Command::SetOutputAside { attempt } => {
                if let Err(error) = self.set_output_aside(attempt) {
                    tracing::warn!(%attempt, "old output in its folder cannot be moved: {error}");
                }
            }
        }
    }

    fn set_output_aside(&self, attempt: AttemptId) -> io::Result<()> {
        let [_, logs_dir] = &self.folders;
        set_output_aside(&attempt_log_dir(logs_dir, attempt))
    }

    fn start(&mut self, attempt: AttemptId, context: Arc<JobContext>) {
        let kind = context.run.runtime.kind();
        if !self.is_set_up(kind) {
            let text = format!("node {} has no runtime `{kind}` now", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        if kind == RuntimeKind::Process
            && let Some(why) = &self.process_trouble
        {
            let text = format!("node {}: {why}", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        if kind == RuntimeKind::Process
            && let Err(why) = self.policy.check_resources(&self.node, &context.resources)
        {
            return self.tell(attempt, RuntimeFact::Ended(Outcome::start_failed(125, why)));
        }
        // The reserved space is for running attempts. An attempt that does not start here is tried
        // on another node.
        if kind != RuntimeKind::Noop
            && let Some(why) = self.folders.iter().find_map(|folder| unwritable(folder))
        {
            let text = format!("node {}: {why}", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        if kind != RuntimeKind::Noop
            && let Err(error) = self.set_output_aside(attempt)
        {
            let text =
                format!("node {}: old output in its folder cannot be moved: {error}", self.node);
            return self.tell(attempt, RuntimeFact::Ended(Outcome::not_started(text)));
        }
        match kind {
            RuntimeKind::Process => {
                let spec = context.run.replica.as_deref();
                let replica =
                    spec.map(|spec| self.ports.take(attempt, spec, PortSource::Range)).transpose();
                let replica = match replica {
                    Ok(replica) => replica,
                    Err(why) => {
                        let text = format!("node {}: {why}", self.node);
                        let outcome = Outcome::not_started(text);
                        return self.tell(attempt, RuntimeFact::Ended(outcome));
                    }
                };
                let context = self.with_names(context);
                self.process.iter().for_each(|process| {
                    process.start(attempt, Arc::clone(&context), replica.clone());
                });
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

    /// Adds the names of services to the environment of a command. The tasks of a job share the
    /// result, as long as the services stay the same.
    fn with_names(&mut self, context: Arc<JobContext>) -> Arc<JobContext> {
        let services = self.names.services();
        if services.is_empty() {
            return context;
        }
        if let Some(last) = &self.named
            && Arc::ptr_eq(&last.before, &context)
            && Arc::ptr_eq(&last.services, &services)
        {
            return Arc::clone(&last.after);
        }
        let mut named = JobContext::clone(&context);
        named.run.env.extend(self.names.variables_of_command(&services));
        let after = Arc::new(named);
        self.named = Some(NamedContext { before: context, services, after: Arc::clone(&after) });
        after
    }

    fn tell(&self, attempt: AttemptId, fact: RuntimeFact) {
        // The receiver lives as long as this.
        _ = self.facts.send((attempt, fact));
    }

    /// Lets the runtimes finish pending requests. Containers keep running, and so do processes
    /// unless they must end with the agent.
    pub(crate) async fn close(self) {
        if let Some(process) = self.process {
            process.close().await;
        }
    }
}
