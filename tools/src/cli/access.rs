//! The arguments of the verbs about who may come in.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use podmesh_protocol::access::{JoinToken, Role, TokenId};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::TOKEN_USES_MAX;

use crate::values::Span;

/// `token`.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// Make a join token and print it, alone: it is shown once
    Create(TokenCreateArgs),
    /// List the join tokens, without their secrets
    List,
    /// Let a join token be of no more use; who has joined with it stays
    Revoke {
        /// Its number, as `token list` shows it
        #[arg(value_name = "NUMBER", value_parser = token_id)]
        id: TokenId,
    },
}

/// `token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenCreateArgs {
    /// What whoever joins with it may do: agent, viewer (read), operator (and submit, cancel), admin
    #[arg(long, default_value = "agent")]
    pub(crate) role: Role,
    /// For how long it can be used
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) ttl: Span,
    /// How many machines or users it lets in
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_MAX)))]
    pub(crate) uses: u32,
}

/// `key`.
#[derive(Subcommand, Debug)]
pub(crate) enum KeyVerb {
    /// Give this user, or with --agent the agent of this machine, a new key in place of its own
    Renew {
        /// The agent's key instead of the user's
        #[arg(long)]
        agent: bool,
    },
    /// Give the manager its next key, which all who joined know already. Whoever does not connect
    /// between two rotations has to join again
    Rotate,
}

/// `nodes`.
#[derive(Args, Debug)]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<NodesVerb>,
}

/// `nodes …`.
#[derive(Subcommand, Debug)]
pub(crate) enum NodesVerb {
    /// Cut off nodes, and let their keys count no more
    Revoke {
        /// Their names
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
    },
}

/// `users`.
#[derive(Args, Debug)]
pub(crate) struct UsersArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<UsersVerb>,
}

/// `users …`.
#[derive(Subcommand, Debug)]
pub(crate) enum UsersVerb {
    /// Cut off users, and let their keys count no more
    Revoke {
        /// Their names
        #[arg(required = true, value_name = "USER")]
        names: Vec<Name>,
    },
}

/// `login`.
#[derive(Args, Debug)]
pub(crate) struct LoginArgs {
    /// What `podmesh token create --role …` printed; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    pub(crate) token: String,
    /// What to be called [default: the login name and the host's]
    #[arg(long)]
    pub(crate) name: Option<Name>,
}

/// `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Look as the agent of this machine instead of as its user
    #[arg(long)]
    pub(crate) agent: bool,
    /// Where the output of tasks lies, if not in the data folder
    #[arg(long, value_name = "FOLDER", env = "PODMESH_LOGS_DIR", hide_env_values = true)]
    pub(crate) logs_dir: Option<PathBuf>,
}

fn token_id(text: &str) -> Result<TokenId, std::num::ParseIntError> {
    text.parse().map(TokenId)
}

/// Reads a token as [`LoginArgs::token`] says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_token(text: &str) -> Result<JoinToken, crate::error::CliError> {
    text.parse().map_err(|why| {
        crate::error::CliError::usage("this token cannot be used")
            .because(why)
            .hint("get one on the manager's machine: podmesh token create --role operator")
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::Parser;
    use podmesh_protocol::limits::TOKEN_TTL_MS_DEFAULT;

    use super::*;
    use crate::cli::{Cli, Verb};

    #[test]
    fn a_token_is_for_one_agent_and_one_hour_unless_asked_otherwise() {
        let cli = Cli::try_parse_from(["podmesh", "token", "create"]).unwrap();
        let Verb::Token(TokenVerb::Create(args)) = cli.verb else {
            unreachable!("token create is something else")
        };
        assert_eq!((args.role, args.uses), (Role::Agent, 1));
        assert_eq!(args.ttl.ms(), TOKEN_TTL_MS_DEFAULT);
    }
}
