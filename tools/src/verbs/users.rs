//! `podmesh users`, and the code it shares with `podmesh nodes`

use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::Name;

use crate::cli::access::{UsersArgs, UsersVerb};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::access::UsersOutput;
use crate::output::{screen, table};
use crate::verbs::several::Several;

/// Lists or revokes users.
pub(crate) async fn users(context: &Context, args: UsersArgs) -> CliResult {
    match args.verb {
        Some(UsersVerb::Revoke { names }) => revoke(context, PrincipalKind::User, names).await,
        None => {
            let users = context.connection(PATIENCE_ASK)?.users().await?;
            if context.json() {
                screen::json(&UsersOutput::new(&users))?;
            } else {
                screen::print(&table::users(context.screen, &users))?;
            }
            Ok(0)
        }
    }
}

/// Revokes keys. If one key cannot be revoked, the others still are.
pub(crate) async fn revoke(context: &Context, kind: PrincipalKind, names: Vec<Name>) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut several = Several::default();
    for name in names {
        several.note(connection.revoke(kind, name).await)?;
    }
    Ok(several.code())
}
