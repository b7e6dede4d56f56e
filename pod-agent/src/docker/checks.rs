//! What the health checks of replicas need from their containers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, HealthStatusEnum as Status};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use podmesh_protocol::service::Health;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep_until, timeout};

use super::engine::Engine;
use crate::health::{LastLine, Said};

/// How long to wait for the rest of the output of a command that has ended.
const REST_MAX: Duration = Duration::from_millis(500);
/// The first and the longest pause between looks at a command whose output goes on.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Access to the container of a replica.
#[derive(Debug)]
pub(crate) struct ContainerChecks {
    engine: Arc<Engine>,
    container: String,
    /// The command that was last started and has not been seen to end.
    unfinished: Mutex<Option<String>>,
}

/// What is known about a container when its checks begin.
#[derive(Debug)]
pub(crate) struct Looked {
    /// Its own address, if this machine reaches it there.
    pub(crate) address: Option<IpAddr>,
    /// Whether it is in the node's own network.
    pub(crate) is_on_host: bool,
    /// Whether its image has a health check, which the engine makes.
    pub(crate) has_healthcheck: bool,
}

impl ContainerChecks {
    pub(super) fn new(engine: Arc<Engine>, container: String) -> Self {
        Self { engine, container, unfinished: Mutex::default() }
    }

    /// Looks at the container, retrying until the engine answers. Returns `None` if it no longer
    /// exists.
    pub(crate) async fn look(&self) -> Option<Looked> {
        // It is never closed.
        let place = self.engine.looks.acquire().await;
        let found = self.engine.inspect_patiently(&self.container).await.ok()?;
        drop(place);
        let ContainerInspectResponse { host_config, network_settings, state, .. } = found;
        let mode = host_config.and_then(|host| host.network_mode).unwrap_or_default();
        let networks = network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let own = networks.into_values().find_map(|network| network.ip_address?.parse().ok());
        let health = state.and_then(|state| state.health).and_then(|health| health.status);
        Some(Looked {
            address: own.filter(|_| self.engine.facts.reaches_containers),
            is_on_host: mode == "host",
            has_healthcheck: health.is_some_and(|it| !matches!(it, Status::EMPTY | Status::NONE)),
        })
    }

    /// Returns the health as the engine sees it, with what its last check said. `Err`: the engine
    /// does not answer, or the container no longer exists.
    pub(crate) async fn engine_health(&self) -> Result<(Health, String), String> {
        let place = self.engine.looks.acquire().await;
        let found =
            self.engine.inspect(&self.container).await.map_err(|error| error.to_string())?;
        drop(place);
        let health = found.state.and_then(|state| state.health).unwrap_or_default();
        let status = match health.status {
            Some(Status::HEALTHY) => Health::Healthy,
            Some(Status::UNHEALTHY) => Health::Unhealthy,
            _ => Health::Starting,
        };
        let mut said = LastLine::default();
        if let Some(output) = health.log.and_then(|mut log| log.pop()?.output) {
            said.push(output.as_bytes());
        }
        Ok((status, said.text().unwrap_or_else(|| "the image's health check".into())))
    }

    /// Runs a command in the container, and returns what it said last.
    pub(crate) async fn run(&self, command: &[String], limit: Duration) -> Said {
        if let Some(before) = self.unfinished() {
            let ended = timeout(limit, self.engine.exec_state(&before)).await;
            if !ended.is_ok_and(|state| state.is_ok_and(|state| state.running != Some(true))) {
                return Err("the command of an earlier check still runs".into());
            }
            self.set_unfinished(None);
        }
        let done = timeout(limit, self.run_to_end(command)).await;
        if let Ok(said) = done {
            return said;
        }
        if let Some(exec) = self.unfinished() {
            _ = timeout(limit, self.kill(&exec)).await;
        }
        Err(format!("the command did not end within {limit:?}"))
    }

    async fn run_to_end(&self, command: &[String]) -> Said {
        let engine = &self.engine;
        let exec =
            engine.exec(&self.container, command).await.map_err(|error| error.to_string())?;
        self.set_unfinished(Some(exec.clone()));
        let mut output = match engine.exec_output(&exec).await {
            Ok(output) => output,
            Err(error) => {
                // It was not started.
                self.set_unfinished(None);
                return Err(error.to_string());
            }
        };
        let mut said = LastLine::default();
        let mut pause = LOOK_FIRST;
        let mut look_at = Instant::now() + pause;
        let state = loop {
            tokio::select! {
                piece = output.next() => match piece {
                    Some(Ok(piece)) => said.push(&piece),
                    Some(Err(_)) | None => {
                        break engine.exec_state(&exec).await;
                    }
                },
                // A process that it has started may keep the output open.
                () = sleep_until(look_at) => {
                    let state = engine.exec_state(&exec).await;
                    if !state.as_ref().is_ok_and(|state| state.running == Some(true)) {
                        // What it has printed may still be on the way.
                        _ = timeout(REST_MAX, async {
                            while let Some(Ok(piece)) = output.next().await {
                                said.push(&piece);
                            }
                        })
                        .await;
                        break state;
                    }
                    pause = (pause * 2).min(LOOK_MAX);
                    look_at = Instant::now() + pause;
                }
            }
        };
        let state = state.map_err(|error| error.to_string())?;
        if state.running == Some(true) {
            // It has closed its output, and goes on. The limit ends the wait.
            return std::future::pending().await;
        }
        self.set_unfinished(None);
        match (state.exit_code.unwrap_or(-1), said.text()) {
            // The engine's message does not always arrive.
            (code @ (126 | 127), None) => {
                let name = command.first().map_or("", String::as_str);
                Err(format!("cannot run `{name}` in the container (exit code {code})"))
            }
            (code, _) => said.result(code),
        }
    }

    /// Kills a command with its process group, if its process can be seen from here. The engine has
    /// no call for that.
    async fn kill(&self, exec: &str) {
        let Ok(state) = self.engine.exec_state(exec).await else { return };
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| state.running == Some(true)) else { return };
        // While this is open, the process is the one that is looked at.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
        if cgroups.is_ok_and(|cgroups| cgroups.contains(&self.container)) {
            // The engine starts each command as the leader of a group.
            _ = kill_process_group(pid, Signal::KILL);
            _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }

    fn unfinished(&self) -> Option<String> {
        // No code that can panic runs while the lock is held.
        self.unfinished.lock().clone()
    }

    fn set_unfinished(&self, exec: Option<String>) {
        *self.unfinished.lock() = exec;
    }
}
