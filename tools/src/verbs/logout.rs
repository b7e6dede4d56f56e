//! `podmesh logout`

use podmesh_wire::enrolment::Enrolment;

use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;

/// Removes this user's key. From then on the verbs use the manager of this machine again.
pub(crate) fn logout(context: &Context) -> CliResult {
    let dir = context.data_dir()?.user();
    let failed = |why| CliError::failure("cannot log out").because(why);
    let joined = Enrolment::load(&dir).map_err(failed)?;
    Enrolment::remove(&dir).map_err(failed)?;
    screen::say(format!(
        "removed the key of {name} from this machine; the manager still knows it, and an admin can revoke it: podmesh users revoke {name}",
        name = joined.name
    ));
    Ok(0)
}
