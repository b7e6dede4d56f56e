//! `podmesh users`

use podmesh_protocol::client::PrincipalKind;

use crate::cli::access::{UsersArgs, UsersVerb};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::access::UsersOutput;
use crate::output::{screen, table};

/// Lists the users that have joined, or shuts one out.
pub(crate) async fn users(context: &Context, args: UsersArgs) -> Outcome {
    let connection = context.connection(PATIENCE_ASK)?;
    if let Some(UsersVerb::Revoke { name }) = args.what {
        connection.revoke(PrincipalKind::User, name.clone()).await?;
        screen::say(format!("user {name} is shut out"));
        return Ok(0);
    }
    let users = connection.users().await?;
    if context.json() {
        screen::json(&UsersOutput { users: users.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::users(context.screen, &users))?;
        if users.is_empty() {
            screen::say("no user has joined; let one in with `podmesh token create --role viewer`");
        }
    }
    Ok(0)
}
