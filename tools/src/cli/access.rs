//! The arguments of the verbs that say who may connect.

use clap::{Args, Subcommand, ValueEnum};
use podmesh_protocol::access::Role;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::TOKEN_USES_MAX;

use crate::values::Span;

/// `token`.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) what: TokenVerb,
}

/// What to do with tokens.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// Make a token, and print it: one word, told once
    Create(TokenCreateArgs),
    /// List the tokens
    List,
    /// Let nobody else join with a token; who has joined, stays
    Revoke {
        /// The token's number
        id: u64,
    },
}

/// `token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenCreateArgs {
    /// What whoever joins with it may do
    #[arg(long, default_value = "agent")]
    pub(crate) role: RoleFlag,
    /// How long it can be used, such as 10min, 1h or 7days
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) ttl: Span,
    /// How many may join with it
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_MAX)))]
    pub(crate) uses: u32,
}

/// `--role`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleFlag {
    /// Be one node, and run its tasks
    Agent,
    /// Look at everything
    Viewer,
    /// Also submit and cancel
    Operator,
    /// Also let others in, and shut them out
    Admin,
}

impl From<RoleFlag> for Role {
    fn from(flag: RoleFlag) -> Self {
        match flag {
            RoleFlag::Agent => Self::Agent,
            RoleFlag::Viewer => Self::Viewer,
            RoleFlag::Operator => Self::Operator,
            RoleFlag::Admin => Self::Admin,
        }
    }
}

/// `nodes`.
#[derive(Args, Debug)]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    pub(crate) what: Option<NodesVerb>,
}

/// What else to do with nodes.
#[derive(Subcommand, Debug)]
pub(crate) enum NodesVerb {
    /// Shut a node out: its connections are cut, and its key never counts again
    Revoke {
        /// The node's name
        name: Name,
    },
}

/// `users`.
#[derive(Args, Debug)]
pub(crate) struct UsersArgs {
    #[command(subcommand)]
    pub(crate) what: Option<UsersVerb>,
}

/// What else to do with users.
#[derive(Subcommand, Debug)]
pub(crate) enum UsersVerb {
    /// Shut a user out: their connections are cut, and their key never counts again
    Revoke {
        /// The user's name
        name: Name,
    },
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
        let Verb::Token(TokenArgs { what: TokenVerb::Create(args) }) = cli.verb else {
            unreachable!("token create is something else")
        };
        assert_eq!((Role::from(args.role), args.uses), (Role::Agent, 1));
        assert_eq!(args.ttl.ms(), TOKEN_TTL_MS_DEFAULT);
    }
}
