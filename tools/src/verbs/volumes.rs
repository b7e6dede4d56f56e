//! `podmesh volumes` and `podmesh volume`

use std::time::Duration;

use podmesh_protocol::ids::Name;
use podmesh_protocol::volume::VolumeView;
use tokio::time::{Instant, sleep};

use crate::cli::volume::{VolumeArgs, VolumeVerb};
use crate::connect::{Connection, PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_FAILURE};
use crate::output::volume::VolumesOutput;
use crate::output::{screen, text, volume_table};

/// How long `volume remove` waits for the nodes.
const PATIENCE_REMOVED: Duration = Duration::from_secs(15);
/// The time between two looks at the volumes that are being removed.
const PAUSE: Duration = Duration::from_millis(200);

/// Lists the volumes.
pub(crate) async fn volumes(context: &Context) -> CliResult {
    let volumes = context.connection(PATIENCE_ASK)?.volumes().await?;
    if context.json() {
        screen::json(&VolumesOutput::new(&volumes))?;
    } else {
        screen::print(&volume_table::table(context.screen, &volumes))?;
        if volumes.is_empty() {
            screen::say("there are no volumes yet; the first task that uses one creates it");
        }
    }
    Ok(0)
}

/// Removes volumes.
pub(crate) async fn volume(context: &Context, args: VolumeArgs) -> CliResult {
    let VolumeVerb::Remove { names, force } = args.verb;
    remove(&context.connection(PATIENCE_ASK)?, names, force).await
}

/// Removes volumes, and waits some time until they are gone. A volume that cannot be removed does not
/// keep the others from it. Returns the exit code.
pub(crate) async fn remove(connection: &Connection, names: Vec<Name>, force: bool) -> CliResult {
    let mut code = 0;
    let mut asked = Vec::new();
    for name in names {
        match connection.remove_volume(name.clone(), force).await {
            Ok(_) => asked.push(name),
            Err(error @ RequestError::Refused(_)) => {
                screen::say_error(&error.into());
                code = EXIT_FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let deadline = Instant::now() + PATIENCE_REMOVED;
    loop {
        let mut left = connection.volumes().await?;
        left.retain(|view| view.removing && asked.contains(&view.volume));
        let is_over = Instant::now() >= deadline || left.iter().all(|view| view.failed.is_some());
        if is_over {
            left.iter().for_each(say_why);
            return Ok(if left.is_empty() { code } else { EXIT_FAILURE });
        }
        sleep(PAUSE).await;
    }
}

fn say_why(view: &VolumeView) {
    let VolumeView { volume, node, failed, .. } = view;
    let error = match failed {
        Some(why) => CliError::failure(format!("volume `{volume}` is still on node `{node}`"))
            .because(text::escape(why))
            .hint(format!("`podmesh volume remove {volume}` tries again")),
        None => CliError::failure(format!("node `{node}` has not removed volume `{volume}` yet"))
            .hint("it removes the volume when it answers again; --force forgets it at once"),
    };
    screen::say_error(&error);
}
