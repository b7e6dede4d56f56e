//! The arguments of the verbs about access: tokens, keys, nodes and users.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use podmesh_protocol::access::{JoinToken, Role, TokenId};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{
    API_TOKEN_TTL_MS_DEFAULT, DURATION_MS_MAX, TOKEN_TTL_MS_DEFAULT, TOKEN_USES_MAX,
};

use crate::values::{LabelChange, Span};

/// `token`.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<TokenVerb>,
}

/// `token …`.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// Create a join token, or with --api an API token, and print it; it is shown only once
    Create(TokenCreateArgs),
    /// List tokens, without their secrets; so does `token` alone
    List,
    /// Revoke a token. Members that joined with it keep access; an API token is refused at once
    Revoke {
        /// The token's number, as `podmesh token` shows it
        #[arg(value_name = "NUMBER", value_parser = token_id)]
        id: TokenId,
    },
}

/// `token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenCreateArgs {
    /// Role of those who join with it: agent, viewer (read), operator (also submit and cancel) or
    /// admin (everything) [default: agent, or viewer with --api]
    #[arg(long)]
    pub(crate) role: Option<Role>,
    /// How long the token can be used [default: 1h, or 90d with --api]
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<Span>,
    /// Create a token for programs that use the HTTP API, instead of one to join with
    #[arg(long, conflicts_with = "uses")]
    pub(crate) api: bool,
    /// How many machines or users can join with it
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_MAX)))]
    pub(crate) uses: u32,
}

impl TokenCreateArgs {
    /// Returns the role of the token.
    pub(crate) fn role(&self) -> Role {
        self.role.unwrap_or(if self.api { Role::Viewer } else { Role::Agent })
    }

    /// Returns how long the token can be used, in milliseconds.
    pub(crate) fn ttl_ms(&self) -> u64 {
        match self.ttl {
            Some(ttl) => u64::try_from(ttl.0.as_millis()).unwrap_or(DURATION_MS_MAX),
            None if self.api => API_TOKEN_TTL_MS_DEFAULT,
            None => TOKEN_TTL_MS_DEFAULT,
        }
    }
}

/// `key`.
#[derive(Subcommand, Debug)]
pub(crate) enum KeyVerb {
    /// Replace the key of this user, or with --agent that of this machine's agent
    Renew {
        /// Replace the agent's key instead of the user's
        #[arg(long)]
        agent: bool,
    },
    /// Replace the manager's key with its next one, which all members know already. A member that
    /// does not connect between two rotations must join again
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
    /// Disconnect nodes and revoke their keys
    Revoke {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
    },
    /// Remove lost nodes from the list; to remove their keys too, revoke them
    ///
    /// A forgotten node that connects again is a new node, and must stop what it still runs.
    Forget {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
        /// Also end the attempts on the nodes, as lost. They may still be running there, even while
        /// their tasks are retried on other nodes
        #[arg(long)]
        force: bool,
    },
    /// Give nodes no new work. What they have stays
    Cordon {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
    },
    /// Give nodes new work again, after `cordon` or `drain`
    Uncordon {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
    },
    /// Set labels of a node over those of its agent, or take them back
    ///
    /// What waits is placed by the new labels at once; what runs stays where it is. The agent's own
    /// label of the same name comes back when the one set here is taken back.
    #[command(after_help = "Example: podmesh nodes label node-3 zone=b old-")]
    Label {
        /// Name of the node
        #[arg(value_name = "NODE")]
        name: Name,
        /// `LABEL=VALUE` sets a label, `LABEL-` takes it back
        #[arg(required = true, value_name = "LABEL=VALUE|LABEL-")]
        changes: Vec<LabelChange>,
    },
    /// Plan a maintenance of a node: it is drained from a time on, and uncordoned afterwards
    ///
    /// A node has one planned maintenance; another one replaces it. What you do with the node meanwhile
    /// (cordon, uncordon, drain) ends the maintenance, and stays.
    ///
    /// Before a maintenance without --requeue, the node starts tasks that have a timeout only if they
    /// are over when it begins. Tasks without a timeout, and replicas, start there as always.
    #[command(
        after_help = "Example: podmesh nodes maintenance node-3 --from 2026-12-01T22:00 --for 2h --requeue"
    )]
    Maintenance {
        /// Name of the node
        #[arg(value_name = "NODE")]
        name: Name,
        /// When it begins, such as 2026-12-01T22:00
        #[arg(long, value_name = "TIME", required_unless_present = "remove")]
        from: Option<String>,
        /// How long it takes, such as 2h
        #[arg(long = "for", value_name = "TIME", required_unless_present = "remove")]
        length: Option<Span>,
        /// Time zone of --from, such as Europe/Berlin [default: that of this machine]
        #[arg(long, value_name = "ZONE", requires = "from")]
        tz: Option<String>,
        /// Stop what still runs so long after its begin [default: wait for its end]
        #[arg(long, value_name = "TIME")]
        deadline: Option<Span>,
        /// Run stopped tasks of jobs again elsewhere, without using a retry. Without --deadline they
        /// are stopped at once
        #[arg(long)]
        requeue: bool,
        /// Why; shown in `podmesh nodes`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Take back what is planned; if it has begun, it ends
        #[arg(long, conflicts_with_all = ["from", "length", "tz", "deadline", "requeue", "reason"])]
        remove: bool,
    },
    /// Empty nodes, for maintenance: give them no new work, and move their replicas to other nodes
    ///
    /// Tasks of jobs run to their end, or until the deadline. A replica stops only when its successor
    /// is healthy, if the service's update rules say so, or at the deadline. Afterwards: podmesh nodes
    /// uncordon NODE
    #[command(after_help = "Example: podmesh nodes drain node-3 --deadline 10m --requeue --wait")]
    Drain {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        names: Vec<Name>,
        /// Stop what still runs after this time, with its grace. The attempts of jobs then have
        /// failed, and use a retry [default: wait for ever]
        #[arg(long, value_name = "TIME")]
        deadline: Option<Span>,
        /// Run stopped tasks of jobs again elsewhere, without using a retry. Without --deadline they
        /// are stopped at once
        #[arg(long)]
        requeue: bool,
        /// Why; shown in `podmesh nodes`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Wait until nothing runs on the nodes any more
        #[arg(long)]
        wait: bool,
        /// Wait no longer than this; then exit with 124
        #[arg(long, value_name = "TIME", requires = "wait")]
        timeout: Option<Span>,
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
    /// Disconnect users and revoke their keys
    Revoke {
        /// Names of the users
        #[arg(required = true, value_name = "USER")]
        names: Vec<Name>,
    },
}

/// `login`.
#[derive(Args, Debug)]
pub(crate) struct LoginArgs {
    /// The token that `podmesh token create --role …` printed; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    pub(crate) token: String,
    /// User name to join as [default: your login name and the host name]
    #[arg(long)]
    pub(crate) name: Option<Name>,
}

/// `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Check the connection of this machine's agent instead of the user's
    #[arg(long)]
    pub(crate) agent: bool,
    /// Folder with the output of tasks, if it is not in the data folder
    #[arg(long, value_name = "FOLDER", env = "PODMESH_LOGS_DIR", hide_env_values = true)]
    pub(crate) logs_dir: Option<PathBuf>,
}

fn token_id(text: &str) -> Result<TokenId, std::num::ParseIntError> {
    text.parse().map(TokenId)
}

/// Parses a token given as [`LoginArgs::token`].
///
/// # Errors
/// If the token is not valid.
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

    use super::*;
    use crate::cli::{Cli, Verb};

    #[test]
    fn a_token_is_for_one_agent_and_one_hour_by_default() {
        let cli = Cli::try_parse_from(["podmesh", "token", "create"]).unwrap();
        let Verb::Token(TokenArgs { verb: Some(TokenVerb::Create(args)) }) = cli.verb else {
            unreachable!("token create is something else")
        };
        assert_eq!((args.role(), args.uses), (Role::Agent, 1));
        assert_eq!(args.ttl_ms(), TOKEN_TTL_MS_DEFAULT);
    }
}
