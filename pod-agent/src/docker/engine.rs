//! Calls to the engine, each with a deadline.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::exec::StartExecResults;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, CreateImageInfo, ExecConfig,
    ExecInspectResponse, NetworkConnectRequest, NetworkCreateRequest,
};
use bollard::query_parameters as query;
use bollard::{ClientVersion, Docker};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use podmesh_wire::chain;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::{CallError, DockerError};

/// Deadline for the first answer of an engine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for calls that the engine answers from memory: inspect, list, kill.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline for calls that use the disk, which can be slow: create, start, remove.
const WORK_DEADLINE: Duration = Duration::from_secs(120);
/// Interval between pings of the engine.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of containers whose health is looked at together.
const LOOKS_MAX: usize = 16;
/// Time allowed for a stop, in addition to the grace.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// The first and the longest pause before a call is retried.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The oldest supported version.
const VERSION_MIN: [u32; 3] = [20, 10, 0];
/// The first API version in which a read-only mount also covers everything mounted below it.
const API_RECURSIVE_READ_ONLY: (usize, usize) = (1, 44);

/// Pauses between retries. Each is twice as long as the previous one, up to a limit.
pub(super) struct Pause(Duration);

impl Pause {
    pub(super) fn new() -> Self {
        Self(PAUSE_FIRST)
    }

    pub(super) async fn wait(&mut self) {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }
}

/// An engine that has answered at least once.
#[derive(Debug)]
pub(super) struct Engine {
    docker: Docker,
    trouble: Mutex<Option<String>>,
    /// A place for each look of a health check: there may be thousands of them at once.
    pub(super) looks: Semaphore,
    /// Its address, as in `DOCKER_HOST`.
    pub(super) address: String,
    pub(super) facts: EngineFacts,
    /// Its version, for display.
    pub(super) version: String,
}

/// The properties of an engine that a container's configuration depends on.
#[derive(Clone, Debug, Default)]
pub(super) struct EngineFacts {
    /// Cores of the engine, in thousandths.
    pub(super) cpu_millis: u64,
    /// Its socket, if it is a file. No container may see it.
    pub(super) socket: Option<PathBuf>,
    /// Whether containers keep running when the engine stops.
    pub(super) live_restore: bool,
    /// Whether a read-only mount also covers everything mounted below it.
    pub(super) read_only_is_recursive: bool,
    /// Whether this machine reaches containers by their own addresses.
    pub(super) reaches_containers: bool,
}

impl Engine {
    /// Connects to the engine in `DOCKER_HOST`, or to this machine's engine if that is not set.
    pub(super) async fn connect() -> Result<Self, DockerError> {
        let address = std::env::var("DOCKER_HOST")
            .ok()
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let failed = |why: String| DockerError::NoEngine {
            advice: advice(&why),
            address: address.clone(),
            why,
        };
        let connect = async {
            let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
            let info = docker.info().await?;
            Ok::<_, bollard::errors::Error>((docker, info))
        };
        let (docker, info) = timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| failed(CallError::late(CONNECT_DEADLINE).to_string()))?
            .map_err(|error| failed(chain(&error)))?;
        let version = info.server_version.unwrap_or_default();
        if number(&version).is_some_and(|number| number < VERSION_MIN) {
            return Err(DockerError::TooOld { version });
        }
        let ClientVersion { major_version, minor_version } = docker.client_version();
        let api = (major_version, minor_version);
        let socket = address.strip_prefix("unix://").map(PathBuf::from);
        // These have a network of their own.
        let is_rootless =
            info.security_options.iter().flatten().any(|option| option.contains("rootless"));
        let is_desktop = info.operating_system.is_some_and(|name| name.contains("Docker Desktop"));
        Ok(Self {
            version,
            address,
            docker: docker.with_timeout(WORK_DEADLINE),
            trouble: Mutex::default(),
            looks: Semaphore::new(LOOKS_MAX),
            facts: EngineFacts {
                cpu_millis: info.ncpu.and_then(|cpus| u64::try_from(cpus).ok()).unwrap_or(0) * 1000,
                reaches_containers: socket.is_some() && !is_rootless && !is_desktop,
                socket,
                live_restore: info.live_restore_enabled == Some(true),
                read_only_is_recursive: api >= API_RECURSIVE_READ_ONLY,
            },
        })
    }

    /// Pings the engine regularly.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            let answered = call(CONNECT_DEADLINE, self.docker.ping()).await;
            let trouble =
                answered.err().map(|error| format!("the Docker engine does not answer: {error}"));
            *self.trouble.lock() = trouble;
        }
    }

    /// Returns why the last ping failed; `None` if it succeeded.
    pub(super) fn trouble(&self) -> Option<String> {
        // No code that can panic runs while the lock is held.
        self.trouble.lock().clone()
    }

    pub(super) async fn create(
        &self,
        name: &str,
        platform: Option<&str>,
        body: ContainerCreateBody,
    ) -> Result<String, CallError> {
        let options = query::CreateContainerOptionsBuilder::default()
            .name(name)
            .platform(platform.unwrap_or_default())
            .build();
        let create = self.docker.create_container(Some(options), body);
        Ok(call(WORK_DEADLINE, create).await?.id)
    }

    /// Starts a container. Succeeds if it is already running.
    pub(super) async fn start(&self, container: &str) -> Result<(), CallError> {
        let start = self.docker.start_container(container, None::<query::StartContainerOptions>);
        call(WORK_DEADLINE, start).await
    }

    pub(super) async fn inspect(
        &self,
        container: &str,
    ) -> Result<ContainerInspectResponse, CallError> {
        let options = None::<query::InspectContainerOptions>;
        call(ANSWER_DEADLINE, self.docker.inspect_container(container, options)).await
    }

    /// Inspects a container, retrying until the engine answers.
    pub(super) async fn inspect_patiently(
        &self,
        container: &str,
    ) -> Result<ContainerInspectResponse, CallError> {
        let mut pause = Pause::new();
        loop {
            match self.inspect(container).await {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(container, %error, "inspecting the container failed; retrying");
                    pause.wait().await;
                }
                known => return known,
            }
        }
    }

    /// Returns when the container is not running. It must have been started, because this returns
    /// at once for a container that never was. The alternative is to wait for `next-exit` before
    /// the start, but the client does not tell when the engine begins to wait, so an exit before
    /// that would be missed.
    pub(super) async fn wait(&self, container: &str) -> Result<(), CallError> {
        let options =
            query::WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut answers = std::pin::pin!(self.docker.wait_container(container, Some(options)));
        match answers.next().await {
            // The client reports an exit code other than 0 as an error.
            Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(CallError::NoAnswer("the connection ended".into())),
        }
    }

    /// Sends SIGTERM (or the image's stop signal), and SIGKILL after `grace_s` seconds. Returns
    /// when the container has ended. The engine continues the stop if this future is dropped.
    pub(super) async fn stop(&self, container: &str, grace_s: u64) -> Result<(), CallError> {
        if grace_s == 0 {
            let options = query::KillContainerOptionsBuilder::default().signal("KILL").build();
            return call(ANSWER_DEADLINE, self.docker.kill_container(container, Some(options)))
                .await;
        }
        let deadline = Duration::from_secs(grace_s) + STOP_MARGIN;
        let seconds = i32::try_from(grace_s).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::default().t(seconds).build();
        let docker = self.docker.clone().with_timeout(deadline);
        call(deadline, docker.stop_container(container, Some(options))).await
    }

    /// Removes a container with its anonymous volumes, killing it first if it runs.
    pub(super) async fn remove(&self, container: &str) -> Result<(), CallError> {
        let options = query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match call(WORK_DEADLINE, self.docker.remove_container(container, Some(options))).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Removes a container, retrying until it is gone.
    pub(super) async fn remove_patiently(&self, container: &str) {
        let mut pause = Pause::new();
        while let Err(error) = self.remove(container).await {
            // A conflict means that a removal is under way.
            if !error.is_conflict() {
                tracing::warn!(container, %error, "removing the container failed; retrying");
            }
            pause.wait().await;
        }
    }

    /// Prepares a command in a running container, and returns its id.
    pub(super) async fn exec(
        &self,
        container: &str,
        command: &[String],
    ) -> Result<String, CallError> {
        let config = ExecConfig {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        Ok(call(ANSWER_DEADLINE, self.docker.create_exec(container, config)).await?.id)
    }

    /// Starts a prepared command, and returns its output in pieces.
    pub(super) async fn exec_output(
        &self,
        exec: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Unpin + Send + use<>, CallError>
    {
        match call(WORK_DEADLINE, self.docker.start_exec(exec, None)).await? {
            StartExecResults::Attached { output, .. } => {
                Ok(output.map(|piece| Ok(piece?.into_bytes())))
            }
            StartExecResults::Detached => Err(CallError::NoAnswer("it is not attached".into())),
        }
    }

    /// Returns the state of a command that was started.
    pub(super) async fn exec_state(&self, exec: &str) -> Result<ExecInspectResponse, CallError> {
        call(ANSWER_DEADLINE, self.docker.inspect_exec(exec)).await
    }

    /// Lists all containers with this label, running or not.
    pub(super) async fn list(&self, label: String) -> Result<Vec<ContainerSummary>, CallError> {
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options =
            query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        call(ANSWER_DEADLINE, self.docker.list_containers(Some(options))).await
    }

    /// Fails with "not found" if there is no such network.
    pub(super) async fn network(&self, name: &str) -> Result<(), CallError> {
        let options = None::<query::InspectNetworkOptions>;
        call(ANSWER_DEADLINE, self.docker.inspect_network(name, options)).await.map(drop)
    }

    pub(super) async fn create_network(
        &self,
        request: NetworkCreateRequest,
    ) -> Result<(), CallError> {
        call(WORK_DEADLINE, self.docker.create_network(request)).await.map(drop)
    }

    pub(super) async fn connect_network(
        &self,
        name: &str,
        request: NetworkConnectRequest,
    ) -> Result<(), CallError> {
        call(WORK_DEADLINE, self.docker.connect_network(name, request)).await
    }

    pub(super) async fn remove_network(&self, name: &str) -> Result<(), CallError> {
        call(WORK_DEADLINE, self.docker.remove_network(name)).await
    }

    /// Lists the networks with this label: their names and labels.
    pub(super) async fn networks(
        &self,
        label: String,
    ) -> Result<Vec<(String, HashMap<String, String>)>, CallError> {
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = query::ListNetworksOptionsBuilder::default().filters(&filters).build();
        let found = call(ANSWER_DEADLINE, self.docker.list_networks(Some(options))).await?;
        let named = found
            .into_iter()
            .map(|network| (network.name.unwrap_or_default(), network.labels.unwrap_or_default()));
        Ok(named.collect())
    }

    /// Returns the labels of a volume.
    pub(super) async fn volume_labels(
        &self,
        name: &str,
    ) -> Result<HashMap<String, String>, CallError> {
        Ok(call(ANSWER_DEADLINE, self.docker.inspect_volume(name)).await?.labels)
    }

    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), CallError> {
        let options = None::<query::RemoveVolumeOptions>;
        call(WORK_DEADLINE, self.docker.remove_volume(name, options)).await
    }

    /// Pulls one image. `reference` must have a tag or digest, or the engine pulls all tags.
    pub(super) fn pull(
        &self,
        reference: &str,
        platform: Option<&str>,
        credentials: Option<DockerCredentials>,
    ) -> impl Stream<Item = Result<CreateImageInfo, CallError>> + Unpin + Send + use<> {
        let options = query::CreateImageOptionsBuilder::default()
            .from_image(reference)
            .platform(platform.unwrap_or_default())
            .build();
        Box::pin(
            self.docker
                .create_image(Some(options), None, credentials)
                .map(|item| item.map_err(CallError::from)),
        )
    }
}

async fn call<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, CallError> {
    match timeout(deadline, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::late(deadline)),
    }
}

/// Parses the number of a version such as `20.10.24+dfsg1`.
fn number(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

fn advice(why: &str) -> &'static str {
    if why.to_ascii_lowercase().contains("permission denied") {
        "add the agent's user to the group `docker`, or remove `docker` from the runtimes in agent.toml"
    } else {
        "start it (`systemctl start docker`), set DOCKER_HOST if it listens elsewhere, or remove \
         `docker` from the runtimes in agent.toml"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(number("20.10.24+dfsg1"), Some([20, 10, 24]));
        assert_eq!(number("28.0.0-rc.1"), Some([28, 0, 0]));
        assert_eq!(number("dev"), None);
        assert!(number("19.3.9").unwrap_or_default() < VERSION_MIN);
        assert!(number("20.10.13").unwrap_or_default() >= VERSION_MIN);
    }
}
