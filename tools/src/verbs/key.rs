//! `podmesh key`

use podmesh_wire::enrolment::{Enrolment, EnrolmentError};

use crate::cli::access::KeyVerb;
use crate::connect::{Connection, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;

/// Replaces the user's or agent's own key, or the manager's.
pub(crate) async fn key(context: &Context, verb: KeyVerb) -> CliResult {
    match verb {
        KeyVerb::Renew { agent } => renew(context, agent).await,
        KeyVerb::Rotate => {
            let connection = context.connection(PATIENCE_ASK)?;
            let before = connection.info().await?.key;
            let (key, _next) = connection.key_rotate(before).await?;
            screen::say(format!(
                "the manager's key now has the digest {key}; older join tokens can no longer be used"
            ));
            Ok(0)
        }
    }
}

/// Renews a key in steps that survive a kill in between: the new key is saved beside the old one;
/// the manager accepts both; the new key replaces the old one on disk; its first use revokes the
/// old one.
async fn renew(context: &Context, agent: bool) -> CliResult {
    let data_dir = context.data_dir()?;
    let place = context.global.manager.clone();
    let locator = if agent { data_dir.agent_locator(place) } else { data_dir.user_locator(place) };
    let dir = locator.enrolment_dir.clone();
    let failed = |why: EnrolmentError| CliError::failure("the key cannot be renewed").because(why);
    let enrolment = Enrolment::load(&dir).map_err(failed)?;
    let new = Enrolment::next_key(&dir).map_err(failed)?;
    Connection::new(locator.clone(), PATIENCE_ASK).key_renew(new).await?;
    Enrolment::put_next_key(&dir).map_err(failed)?;
    Connection::new(locator, PATIENCE_ASK).who_am_i().await?;
    screen::say(format!("{} has a new key, in {}", enrolment.name, dir.display()));
    Ok(0)
}
