//! The arguments of `service`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use podmesh_protocol::ids::Name;

use crate::service::values::Replicas;
use crate::values::Span;

pub(crate) const AFTER_HELP: &str = "\
Example: a file web.toml with these lines:

  name = \"web\"
  image = \"nginx:1.27\"
  replicas = 3
  ports.http = { container = 80, publish = 8080 }

  podmesh service apply -f web.toml --wait   start it, or change it to what the file says
  podmesh service web                        show it
  podmesh logs -f web                        follow the output of its replicas";

const APPLY_HELP: &str = "\
Examples: podmesh service apply -f web.toml --dry-run
          podmesh service apply -f web.toml --wait --timeout 10min

Exit codes with --wait: 0: all replicas are healthy; 1: the change failed, or was rolled back;
                        124: the --timeout is over";

/// `service`.
#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<ServiceVerb>,
    #[command(flatten)]
    pub(crate) show: Option<ShowArgs>,
}

/// `service …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ServiceVerb {
    /// Show a service; the same as `podmesh service NAME`
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Create a service, or change it to what a file says
    ///
    /// It first says what it will change. The same file again changes nothing. If the replicas
    /// change, they are replaced step by step; if the new ones do not become healthy, the service
    /// goes back to what it was.
    #[command(after_help = APPLY_HELP)]
    Apply(ApplyArgs),
    /// Set the number of replicas
    #[command(after_help = "Example: podmesh service scale web 5 --wait")]
    Scale {
        #[command(flatten)]
        service: ServiceName,
        /// The number of replicas
        #[arg(value_name = "NUMBER", allow_negative_numbers = true)]
        replicas: Replicas,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Replace all replicas by new ones, step by step as an update does
    #[command(after_help = "Example: podmesh service restart web --wait")]
    Restart {
        #[command(flatten)]
        service: ServiceName,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Go back to an earlier revision
    #[command(
        after_help = "Example: podmesh service history web; podmesh service rollback web --to 3"
    )]
    Rollback {
        #[command(flatten)]
        service: ServiceName,
        /// The revision, as `podmesh service history` shows it [default: the one before this one]
        #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u32).range(1..))]
        to: Option<u32>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stop all replicas, and keep the service
    #[command(after_help = "Example: podmesh service stop web --wait")]
    Stop {
        #[command(flatten)]
        service: ServiceName,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Start the replicas of a stopped service
    #[command(after_help = "Example: podmesh service start web --wait")]
    Start {
        #[command(flatten)]
        service: ServiceName,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stop all replicas, and remove services
    #[command(after_help = "Example: podmesh service remove web api --wait")]
    Remove {
        /// Names of the services
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List the revisions of a service, newest first
    #[command(after_help = "Example: podmesh service history web")]
    History {
        #[command(flatten)]
        service: ServiceName,
    },
}

/// A service.
#[derive(Args, Debug)]
pub(crate) struct ServiceName {
    /// Name of the service
    #[arg(value_name = "NAME")]
    pub(crate) name: Name,
}

const SHOW_HELP: &str = "\
Examples: podmesh service web --endpoints
          podmesh service web --format prometheus-sd >/etc/prometheus/podmesh/web.json
          podmesh service web --format haproxy --port http";

/// `service NAME`.
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// Name of the service
    #[arg(value_name = "NAME")]
    pub(crate) name: Name,
    /// Print only where healthy replicas listen: one ADDRESS:PORT a line
    #[arg(long)]
    pub(crate) endpoints: bool,
    /// Only this port of the service; needed if it has more than one
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<Name>,
    /// Print the endpoints in this format
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<EndpointFormat>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointFormat {
    /// A file for the `file_sd_configs` of Prometheus, with the labels service, replica, node, port
    PrometheusSd,
    /// `server` lines for a backend of HAProxy
    Haproxy,
}

/// `service apply`.
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// The service file (TOML); `-` reads it from standard input
    #[arg(short, long, value_name = "SERVICE.toml")]
    pub(crate) file: PathBuf,
    /// Change nothing; print what would change, and which nodes would get the replicas
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `--wait`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct WaitArgs {
    /// Show the progress, and wait until it is done: exit with 0, or 1 if it failed
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait no longer than this, such as 10min; then exit with 124
    #[arg(long, value_name = "TIME", requires = "wait")]
    pub(crate) timeout: Option<Span>,
}

impl ServiceArgs {
    /// Returns the verb's name if it does not support `--output json`.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match (&self.verb, &self.show) {
            (Some(ServiceVerb::Show(args)), _) | (None, Some(args)) => {
                (args.format == Some(EndpointFormat::Haproxy)).then_some("service --format haproxy")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parsed(words: &[&str]) -> ServiceArgs {
        let words = ["podmesh", "service"].iter().chain(words);
        let Verb::Service(args) = Cli::try_parse_from(words).unwrap().verb else {
            unreachable!("`service` is something else")
        };
        args
    }

    #[test]
    fn a_name_alone_shows_the_service() {
        let args = parsed(&["web", "--endpoints", "--port", "http"]);
        let show = args.show.unwrap();
        assert!(args.verb.is_none() && show.endpoints);
        assert_eq!((show.name.as_str(), show.port.unwrap().as_str()), ("web", "http"));
    }

    #[test]
    fn a_service_with_the_name_of_a_verb_can_be_shown() {
        for name in ["apply", "show", "remove", "help"] {
            let Some(ServiceVerb::Show(show)) = parsed(&["show", name]).verb else {
                unreachable!("`show` is something else")
            };
            assert_eq!(show.name.as_str(), name);
        }
    }

    #[test]
    fn a_number_of_replicas_is_in_its_range() {
        let refused = |number| {
            Cli::try_parse_from(["podmesh", "service", "scale", "web", number])
                .unwrap_err()
                .to_string()
        };
        for number in ["-1", "1001", "x", "1.5"] {
            assert!(refused(number).contains("REPLICAS_MAX"), "{number}: {}", refused(number));
        }
    }
}
