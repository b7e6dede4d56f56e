//! Starts a companion.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::timeout;

use super::{CompanionCommand, READY};

/// How long a companion may take to start, because the previous one may still be ending.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Maximum bytes of the message of a companion that cannot start.
const SAID_BYTES_MAX: u64 = 4096;

/// Starts a companion, and waits until it accepts connections.
///
/// # Errors
/// The reason why it cannot be started, for people.
pub(crate) async fn start(command: &CompanionCommand) -> Result<(), String> {
    let mut companion = Command::from(command);
    companion.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut companion =
        tokio::process::Command::from(companion).spawn().map_err(|error| error.to_string())?;
    let stdout = companion.stdout.take();
    // It outlives this process, or ends earlier and is reaped.
    tokio::spawn(async move { companion.wait().await });
    let mut said = String::new();
    if let Some(stdout) = stdout {
        let mut reader = BufReader::new(stdout.take(SAID_BYTES_MAX));
        match timeout(START_LIMIT, reader.read_line(&mut said)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("it is not ready after {START_LIMIT:?}")),
        }
    }
    match said.trim() {
        READY => Ok(()),
        "" => Err("it ended without a message".to_owned()),
        said => Err(said.to_owned()),
    }
}
