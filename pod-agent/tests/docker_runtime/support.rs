//! Support for the tests of the Docker runtime: a real engine, a test image, the settings of an
//! agent, and a guard that always removes its containers.
//!
//! `PODMESH_TEST_DOCKER=off` skips these tests, and `required` makes them fail without an engine.
//! Otherwise they run if an engine answers, and print a clear message if they are skipped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters as query;
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use podmesh_agent::capture::Captures;
use podmesh_agent::docker::{DockerRuntime, DockerSettings};
use podmesh_agent::health::HealthChecks;
use podmesh_agent::log_notify::LogNotify;
use podmesh_agent::policy::NodePolicy;
use podmesh_agent::ports::ReplicaPorts;
use podmesh_agent::service_names::ServiceNames;
use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::step::JobContext;
use podmesh_logrotate::{LogReader, RotationPolicy};
use podmesh_protocol::ids::{AttemptId, ClusterId, JobId, Name};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::{DockerSpec, OnLost, Resources, RunSpec, RuntimeSpec};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Limit for every wait, far longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns a client for calls that a test makes itself.
pub(crate) fn engine() -> Docker {
    // Every supported engine has this version.
    let version = bollard::ClientVersion { major_version: 1, minor_version: 41 };
    Docker::connect_with_defaults()
        .map(|docker| docker.with_timeout(PATIENCE))
        .and_then(|docker| block_on(async move { docker.negotiate_version().await }))
        .unwrap_or_else(|error| panic!("no Docker engine (the minimum API is {version}): {error}"))
}

/// Runs a future to its end on a separate thread. Works in `Drop` and inside a runtime.
fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(work)
            })
            .join()
            .unwrap()
    })
}

/// Returns whether these tests can run. Prints why if they cannot.
///
/// # Panics
/// If they are required and cannot run.
pub(crate) fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        let setting = std::env::var("PODMESH_TEST_DOCKER").unwrap_or_default();
        let why = match setting.as_str() {
            "off" => Some("PODMESH_TEST_DOCKER=off".to_owned()),
            "" | "required" => missing(),
            other => panic!("PODMESH_TEST_DOCKER={other:?} is neither `off` nor `required`"),
        };
        let Some(why) = why else { return true };
        assert!(setting != "required", "PODMESH_TEST_DOCKER=required, but {why}");
        eprintln!("\n*** SKIPPED the tests of the Docker runtime: {why} ***\n");
        false
    })
}

fn missing() -> Option<String> {
    let ping = async {
        let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
        docker.ping().await
    };
    let answer = block_on(async { tokio::time::timeout(Duration::from_secs(10), ping).await });
    match answer {
        Err(_) => Some("the Docker engine did not answer for 10 s".into()),
        Ok(Err(error)) => Some(format!("no Docker engine answers: {error}")),
        Ok(Ok(_)) if !Path::new("/bin/busybox").exists() => {
            Some("there is no /bin/busybox for the test image (Debian: busybox-static)".into())
        }
        Ok(Ok(_)) => None,
    }
}

/// An image. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
}

impl Image {
    /// Returns an image with busybox, which all tests share.
    pub(crate) fn get() -> Arc<Self> {
        static IMAGE: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        let mut known = IMAGE.lock();
        known.upgrade().unwrap_or_else(|| {
            let image = Arc::new(Self::make());
            *known = Arc::downgrade(&image);
            image
        })
    }

    fn make() -> Self {
        let name = format!("podmesh-test-{}", Uuid::new_v4().simple());
        let tar = busybox_tar(&["--create", "--file=-"]);
        let options =
            query::CreateImageOptionsBuilder::default().from_src("-").repo(&name).tag("1").build();
        let docker = engine();
        block_on(async move {
            let body = bollard::body_full(tar.into());
            docker
                .create_image(Some(options), Some(body), None)
                .try_collect::<Vec<_>>()
                .await
                .unwrap();
        });
        Self { name: format!("{name}:1") }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let docker = engine();
        let options = query::RemoveImageOptionsBuilder::default().force(true).build();
        _ = block_on(async { docker.remove_image(&self.name, Some(options), None).await });
    }
}

/// Returns a tar archive of a root file system with busybox.
pub(crate) fn busybox_tar(tar: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in ["bin", "etc", "tmp", "in"] {
        std::fs::create_dir(root.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in
        String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nwork:x:1234:1234::/:/bin/sh\n")
        .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nwork:x:1234:\n").unwrap();
    let done =
        Command::new("tar").args(tar).arg("--directory").arg(root).arg(".").output().unwrap();
    assert!(done.status.success(), "tar: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// A node: everything of an agent that outlives its process.
pub(crate) struct TestNode {
    pub(crate) cluster: ClusterId,
    pub(crate) agent: Uuid,
    pub(crate) policy: NodePolicy,
    pub(crate) rotation: RotationPolicy,
    pub(crate) names: Arc<ServiceNames>,
    pub(crate) image: Arc<Image>,
    /// Further images. They are removed after the containers: an image in use would only lose its
    /// name.
    images: Vec<Image>,
    /// The captures. They outlive agents, as a supervisor does. Created for the first agent.
    captures: OnceLock<Captures>,
    gaps: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
    pub(crate) data_dir: tempfile::TempDir,
}

impl TestNode {
    pub(crate) fn new() -> Self {
        let large = 1 << 30;
        Self {
            cluster: ClusterId(Uuid::new_v4()),
            agent: Uuid::new_v4(),
            policy: NodePolicy::default(),
            rotation: RotationPolicy {
                file_bytes_max: large,
                total_bytes_max: 4 * large,
                ..RotationPolicy::default()
            },
            names: Arc::new(ServiceNames::new("all".parse().unwrap())),
            image: Image::get(),
            images: Vec::new(),
            captures: OnceLock::new(),
            gaps: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            data_dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.path().join("logs")
    }

    pub(crate) fn settings(&self) -> DockerSettings {
        let capture = || captures(self.logs_dir(), self.rotation.clone(), Arc::clone(&self.gaps));
        let captures = self.captures.get_or_init(capture).clone();
        let data_dir = self.data_dir.path().to_owned();
        let names = Arc::clone(&self.names);
        DockerSettings { data_dir, names, ..settings(self.agent, captures, self.policy.clone()) }
    }

    /// Removes this image with the node. Returns its name.
    pub(crate) fn owned_image(&mut self, name: String) -> String {
        self.images.push(Image { name: name.clone() });
        name
    }

    /// Drops the captures, so that the next agent gets new ones.
    pub(crate) fn lose_captures(&mut self) {
        self.captures = OnceLock::new();
    }

    /// Returns the reported gaps.
    pub(crate) fn gaps(&self) -> Vec<String> {
        self.gaps.lock().clone()
    }

    /// Starts a runtime that adopts existing containers.
    pub(crate) async fn agent(&self) -> Agent {
        let mut agent = self.blind_agent().await;
        agent.found = agent.runtime.adopt().await.unwrap();
        agent
    }

    /// Starts a runtime that does not look for existing containers.
    pub(crate) async fn blind_agent(&self) -> Agent {
        Agent::new(self.settings(), self.cluster).await
    }

    /// Returns a job that runs a shell script.
    pub(crate) fn script(&self, script: &str) -> JobContext {
        self.job(&["sh", "-c", script])
    }

    pub(crate) fn job(&self, command: &[&str]) -> JobContext {
        job(&self.image.name, command)
    }

    /// Returns all bytes of a stream, across rotations; `None` if there is no file.
    pub(crate) fn output(&self, attempt: AttemptId, stream: &str) -> Option<Vec<u8>> {
        let mut dir = self.logs_dir();
        for part in [attempt.task.job.0, attempt.task.index.into(), attempt.number.into()] {
            dir.push(part.to_string());
        }
        let mut reader = LogReader::open(&dir, stream).unwrap();
        assert_eq!(reader.start_offset().unwrap(), 0);
        let mut bytes = Vec::new();
        loop {
            let chunk = reader.read_at(bytes.len() as u64, 1 << 20).unwrap();
            assert_eq!(chunk.offset, bytes.len() as u64);
            if chunk.bytes.is_empty() {
                break;
            }
            bytes.extend(chunk.bytes);
        }
        (!bytes.is_empty() || dir.join(format!("{stream}.log")).exists()).then_some(bytes)
    }

    pub(crate) fn text(&self, attempt: AttemptId, stream: &str) -> String {
        String::from_utf8(self.output(attempt, stream).unwrap_or_default()).unwrap()
    }

    /// Waits until a stream contains `text`.
    pub(crate) async fn until_printed(&self, attempt: AttemptId, stream: &str, text: &str) {
        let seen = async {
            while !String::from_utf8_lossy(&self.output(attempt, stream).unwrap_or_default())
                .contains(text)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(seen).await;
    }

    pub(crate) fn container_name(&self, attempt: AttemptId) -> String {
        let cluster = self.cluster.to_string();
        let AttemptId { task, number } = attempt;
        format!("podmesh-{}-{}.{}.{number}", &cluster[..8], task.job, task.index)
    }

    /// Returns the containers of this agent.
    pub(crate) async fn containers(&self) -> Vec<String> {
        labelled(&engine(), self.agent).await
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let (docker, agent) = (engine(), self.agent);
        block_on(async move {
            for container in labelled(&docker, agent).await {
                remove(&docker, &container).await;
            }
            let label = format!("podmesh.agent={agent}");
            let filters = HashMap::from([("label".to_owned(), vec![label])]);
            let options = query::ListNetworksOptionsBuilder::default().filters(&filters).build();
            for network in docker.list_networks(Some(options)).await.unwrap_or_default() {
                _ = docker.remove_network(&network.id.unwrap_or_default()).await;
            }
        });
    }
}

async fn labelled(docker: &Docker, agent: Uuid) -> Vec<String> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("podmesh.agent={agent}")])]);
    let options =
        query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed = docker.list_containers(Some(options)).await.unwrap();
    listed.into_iter().filter_map(|container| container.id).collect()
}

pub(crate) async fn remove(docker: &Docker, container: &str) {
    let options = query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    _ = docker.remove_container(container, Some(options)).await;
}

/// A container that a test creates itself. Removed when dropped.
pub(crate) struct ForeignContainer(pub(crate) String);

impl Drop for ForeignContainer {
    fn drop(&mut self) {
        let docker = engine();
        block_on(async { remove(&docker, &self.0).await });
    }
}

/// A named volume with a name of its own. Removed when dropped, so drop it after its containers.
pub(crate) struct TestVolume(pub(crate) Name);

impl TestVolume {
    pub(crate) fn new() -> Self {
        Self(format!("test-{}", Uuid::new_v4().simple()).parse().unwrap())
    }

    /// Returns its name in Docker.
    pub(crate) fn docker_name(&self) -> String {
        format!("podmesh-{}", self.0)
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        let (docker, name) = (engine(), self.docker_name());
        let options = query::RemoveVolumeOptionsBuilder::default().force(true).build();
        _ = block_on(async move { docker.remove_volume(&name, Some(options)).await });
    }
}

/// Returns captures that report gaps to `gaps`.
pub(crate) fn captures(
    logs_dir: PathBuf,
    rotation: RotationPolicy,
    gaps: Arc<Mutex<Vec<String>>>,
) -> Captures {
    let (facts, mut told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((_, fact)) = told.recv().await {
            let RuntimeFact::LogGap(text) = fact else { panic!("{fact:?}") };
            gaps.lock().push(text);
        }
    });
    Captures::here(logs_dir, rotation, LogNotify::default(), facts)
}

pub(crate) fn settings(agent: Uuid, captures: Captures, policy: NodePolicy) -> DockerSettings {
    let ports = Arc::new(ReplicaPorts::new(policy.replica_ports));
    DockerSettings {
        node: "test-node".parse().unwrap(),
        agent_id: agent,
        data_dir: "/nowhere/agent".into(),
        policy,
        captures,
        ports,
        names: Arc::new(ServiceNames::new("all".parse().unwrap())),
        docker_config: None,
    }
}

pub(crate) fn job(image: &str, command: &[&str]) -> JobContext {
    JobContext {
        claims: Default::default(),
        job: JobId(1),
        name: "test-job".parse().unwrap(),
        on_lost: OnLost::Requeue,
        resources: Resources { cpu_millis: 1000, memory_bytes: 0 },
        run: RunSpec {
            runtime: RuntimeSpec::from(DockerSpec { image: image.into(), ..DockerSpec::default() }),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            env: Default::default(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 10_000,
            replica: None,
            files: [].into(),
        },
    }
}

pub(crate) fn docker_spec(job: &mut JobContext) -> &mut DockerSpec {
    match &mut job.run.runtime {
        RuntimeSpec::Docker(spec) => spec,
        _ => unreachable!("all jobs of these tests are containers"),
    }
}

/// Returns the first attempt of the task with this index.
pub(crate) fn attempt(index: u32) -> AttemptId {
    AttemptId::new(JobId(1), index, 1)
}

/// A runtime with the facts that it has reported.
pub(crate) struct Agent {
    pub(crate) runtime: DockerRuntime,
    pub(crate) ports: Arc<ReplicaPorts>,
    pub(crate) checks: HealthChecks,
    pub(crate) found: Vec<FoundAttempt>,
    facts: mpsc::UnboundedReceiver<(AttemptId, RuntimeFact)>,
    heard: HashMap<AttemptId, Vec<RuntimeFact>>,
}

impl Agent {
    pub(crate) async fn new(settings: DockerSettings, cluster: ClusterId) -> Self {
        let (tell, facts) = mpsc::unbounded_channel();
        let ports = Arc::clone(&settings.ports);
        let checks = HealthChecks::new(tell.clone());
        let runtime = DockerRuntime::connect(settings, tell).await.unwrap();
        runtime.set_cluster(cluster);
        Self { runtime, ports, checks, found: Vec::new(), facts, heard: HashMap::new() }
    }

    pub(crate) fn start(&self, id: AttemptId, job: JobContext) {
        self.runtime.start(id, Arc::new(job));
    }

    pub(crate) async fn run(&mut self, id: AttemptId, job: JobContext) -> Outcome {
        self.start(id, job);
        self.end(id).await
    }

    pub(crate) fn heard(&self, id: AttemptId) -> &[RuntimeFact] {
        self.heard.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Waits for a fact of the attempt.
    pub(crate) async fn until(
        &mut self,
        id: AttemptId,
        wanted: impl Fn(&RuntimeFact) -> bool,
    ) -> RuntimeFact {
        loop {
            if let Some(fact) = self.heard(id).iter().find(|fact| wanted(fact)) {
                return fact.clone();
            }
            let (of, fact) = within(self.facts.recv()).await.unwrap();
            self.heard.entry(of).or_default().push(fact);
        }
    }

    pub(crate) async fn started(&mut self, id: AttemptId) {
        self.until(id, |fact| matches!(fact, RuntimeFact::Started | RuntimeFact::Ended(_))).await;
    }

    pub(crate) async fn end(&mut self, id: AttemptId) -> Outcome {
        match self.until(id, |fact| matches!(fact, RuntimeFact::Ended(_))).await {
            RuntimeFact::Ended(outcome) => outcome,
            _ => unreachable!("only ends match"),
        }
    }

    /// Waits until all containers of the node are gone.
    pub(crate) async fn removed(&self, node: &TestNode) {
        within(async {
            while !node.containers().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

/// Waits until a condition is true, by polling.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Runs a shell command in a running container.
pub(crate) async fn exec(docker: &Docker, container: &str, command: &str) {
    let config = bollard::models::ExecConfig {
        cmd: Some(["sh", "-c", command].map(str::to_owned).into()),
        attach_stdout: Some(true),
        ..Default::default()
    };
    let exec = docker.create_exec(container, config).await.unwrap().id;
    match docker.start_exec(&exec, None).await.unwrap() {
        bollard::exec::StartExecResults::Attached { output, .. } => {
            output.try_collect::<Vec<_>>().await.unwrap();
        }
        bollard::exec::StartExecResults::Detached => unreachable!("not requested"),
    }
}

/// Waits until a started container has exited.
pub(crate) async fn exited(docker: &Docker, container: &str) {
    let options = query::WaitContainerOptionsBuilder::default().condition("not-running").build();
    // The client reports an exit code other than 0 as an error.
    _ = within(docker.wait_container(container, Some(options)).try_collect::<Vec<_>>()).await;
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("nothing happened for two minutes")
}
