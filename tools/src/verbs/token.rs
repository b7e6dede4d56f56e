//! `podmesh token`

use podmesh_protocol::access::Role;

use crate::cli::access::TokenVerb;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::access::{TokenOutput, TokensOutput};
use crate::output::time::local;
use crate::output::{screen, table};

/// Creates, lists or revokes tokens.
pub(crate) async fn token(context: &Context, verb: Option<TokenVerb>) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    match verb.unwrap_or(TokenVerb::List) {
        TokenVerb::Create(args) => {
            let (role, ttl_ms, uses) = (args.role(), args.ttl_ms(), args.uses);
            let made = match args.api {
                true => connection.api_token_create(role, ttl_ms).await?,
                false => connection.token_create(role, ttl_ms, uses).await?,
            };
            if context.json() {
                screen::json(&TokenOutput::new(
                    made.id,
                    made.token,
                    role,
                    uses,
                    made.expires_wall_ms,
                ))?;
                return Ok(0);
            }
            screen::line(&made.token)?;
            if args.api {
                screen::say(format!(
                    "API token {} can be used until {}: send it as `Authorization: Bearer TOKEN`",
                    made.id,
                    local(made.expires_wall_ms)
                ));
                return Ok(0);
            }
            let verb = match role {
                Role::Agent => "agent --join",
                Role::Viewer | Role::Operator | Role::Admin => "login",
            };
            let times = if uses == 1 { "once".to_owned() } else { format!("{uses} times") };
            screen::say(format!(
                "token {} can be used {times}, until {}, on another machine: podmesh {verb} TOKEN",
                made.id,
                local(made.expires_wall_ms)
            ));
        }
        TokenVerb::List => {
            let tokens = connection.tokens().await?;
            if context.json() {
                screen::json(&TokensOutput::new(&tokens))?;
            } else {
                screen::print(&table::tokens(context.screen, &tokens))?;
            }
        }
        TokenVerb::Revoke { id } => connection.token_revoke(id).await?,
    }
    Ok(0)
}
