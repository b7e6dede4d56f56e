//! `podmesh token`

use podmesh_protocol::access::{Role, TokenId};

use crate::cli::access::{TokenArgs, TokenCreateArgs, TokenVerb};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::access::{TokenCreateOutput, TokenListOutput};
use crate::output::text::count;
use crate::output::time::{coarse, rfc3339};
use crate::output::{screen, table};

/// Makes, lists and revokes join tokens.
pub(crate) async fn token(context: &Context, args: TokenArgs) -> Outcome {
    match args.what {
        TokenVerb::Create(args) => create(context, args).await,
        TokenVerb::List => list(context).await,
        TokenVerb::Revoke { id } => {
            context.connection(PATIENCE_ASK)?.token_revoke(TokenId(id)).await?;
            screen::say(format!("nobody else can join with token {id}; who has, stays"));
            Ok(0)
        }
    }
}

/// The token alone on standard output, for `$(…)`; what to do with it on standard error.
async fn create(context: &Context, args: TokenCreateArgs) -> Outcome {
    let TokenCreateArgs { role, ttl, uses } = args;
    let role = Role::from(role);
    let new = context.connection(PATIENCE_ASK)?.token_create(role, ttl.ms(), uses).await?;
    if context.json() {
        screen::json(&TokenCreateOutput {
            id: new.id.0,
            token: new.token,
            role: role.into(),
            uses,
            expires_at: rfc3339(new.expires_wall_ms),
        })?;
        return Ok(0);
    }
    screen::line(&new.token)?;
    let (who, command) = match role {
        Role::Agent => ("machine", "podmesh agent --join TOKEN"),
        Role::Viewer | Role::Operator | Role::Admin => ("user", "podmesh login TOKEN"),
    };
    screen::say(format!(
        "token {} lets {} in as {role}, within {}; keep it secret. To join: {command}",
        new.id,
        count(u64::from(uses), who),
        coarse(ttl.ms()),
    ));
    Ok(0)
}

async fn list(context: &Context) -> Outcome {
    let tokens = context.connection(PATIENCE_ASK)?.tokens().await?;
    if context.json() {
        screen::json(&TokenListOutput { tokens: tokens.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&table::tokens(context.screen, &tokens))?;
        if tokens.is_empty() {
            screen::say("there is no join token; make one with `podmesh token create`");
        }
    }
    Ok(0)
}
