//! Timeouts of containers. The process that captures a container enforces its timeout, so it works
//! without an agent.
//!
//! The kernel tells how long the container's process has run. So nothing depends on a wall clock,
//! which can jump, and nothing must be stored.

use std::convert::Infallible;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerState;
use bollard::query_parameters as query;
use nix::unistd::Pid;
use podmesh_protocol::limits::DURATION_MS_MAX;
use tokio::time::{Instant, sleep};

use super::container::{Container, Pause, Standing, connect, has_run, inspect};
use crate::process::age_ms;

/// The timeout of one container.
pub(super) struct Timeout {
    container: Container,
    is_over: AtomicBool,
}

impl Timeout {
    pub(super) fn new(container: Container) -> Self {
        Self { container, is_over: AtomicBool::new(false) }
    }

    /// Returns the timeout in milliseconds if the container was stopped because of it.
    pub(super) fn was_over(&self) -> Option<u64> {
        self.container.timeout_ms.filter(|_| self.is_over.load(Ordering::Relaxed))
    }

    /// Stops the container when its timeout expires: with the container's own stop signal, and by
    /// force after its own grace. Never returns.
    pub(super) async fn keep(&self) -> Infallible {
        if let Some(timeout_ms) = self.container.timeout_ms
            && self.is_reached(Duration::from_millis(timeout_ms)).await
        {
            tracing::info!(attempt = %self.container.attempt, "stopping a container whose timeout has expired");
            self.is_over.store(true, Ordering::Relaxed);
            self.stop().await;
        }
        std::future::pending().await
    }

    /// Waits until the container has run for this long. Returns false if it ends earlier.
    async fn is_reached(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        let mut docker = None;
        let is_new = self.container.standing == Standing::New;
        // A container that is not started yet cannot reach its timeout earlier.
        let mut rest = if is_new { timeout } else { Duration::ZERO };
        loop {
            sleep(rest).await;
            let Some(state) = inspect(&mut docker, &self.container).await else { return false };
            let ran = if state.running == Some(true) {
                let ran = running_ms(&self.container.id, &state).map(Duration::from_millis);
                // It was started before its capture began, at the latest.
                ran.unwrap_or_else(|| begun.elapsed())
            } else if has_run(&state) {
                return false;
            } else {
                Duration::ZERO
            };
            rest = timeout.saturating_sub(ran);
            if rest.is_zero() {
                return true;
            }
        }
    }

    async fn stop(&self) {
        let mut docker = None;
        let mut pause = Pause::new();
        loop {
            let stopped = async {
                let docker = connect(&mut docker, &self.container.engine).await?;
                // The engine answers when the container has stopped.
                let patient = docker.clone().with_timeout(Duration::from_millis(DURATION_MS_MAX));
                patient
                    .stop_container(&self.container.id, None::<query::StopContainerOptions>)
                    .await
            };
            match stopped.await {
                Ok(()) => return,
                // It has already stopped or is gone.
                Err(Error::DockerResponseServerError { status_code: 304 | 404 | 409, .. }) => {
                    return;
                }
                Err(error) => {
                    tracing::warn!(attempt = %self.container.attempt, %error, "cannot stop a container whose timeout has expired; retrying");
                    docker = None;
                }
            }
            pause.wait().await;
        }
    }
}

/// Returns for how many milliseconds a running container has run, or `None` if this machine does
/// not know its process.
pub(crate) fn running_ms(container: &str, state: &ContainerState) -> Option<u64> {
    let pid = state.pid.filter(|pid| *pid > 0).and_then(|pid| i32::try_from(pid).ok())?;
    // The engine may be in a virtual machine. Then this process id means nothing here.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.contains(container).then(|| age_ms(Pid::from_raw(pid))).flatten()
}
