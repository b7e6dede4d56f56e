//! The arguments of `compose`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::service::WaitArgs;
use crate::compose::Options;
use crate::values::Span;

pub(crate) const AFTER_HELP: &str = "\
Example: in a folder with a compose.yaml

  podmesh compose up --dry-run      what would change, and what of the file has no effect here
  podmesh compose up --wait         start the project, or change it to what the file says
  podmesh compose ps
  podmesh compose logs -f web db
  podmesh compose down --volumes    remove its services and its volumes

podmesh services shows the services of all projects: the service db of the project shop is shop-db.
What podmesh supports of compose files is in tools/COMPOSE.md.";

/// `compose`.
#[derive(Args, Debug)]
pub(crate) struct ComposeArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    #[command(subcommand)]
    pub(crate) verb: ComposeVerb,
}

/// `-f`.
#[derive(Args, Clone, Debug)]
pub(crate) struct FileArgs {
    /// A compose file; `-` reads it from standard input. Several are merged: the later ones override
    /// the earlier ones [default: compose.yaml or docker-compose.yml, with its override file, here or
    /// in a folder above]
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The options that decide about the project, but for the files.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProjectArgs {
    /// The name of the project [default: COMPOSE_PROJECT_NAME, `name` in the file, or the name of the
    /// folder]
    #[arg(short, long = "project-name", value_name = "NAME")]
    project: Option<String>,
    /// Also start the services with this profile; `*` means all profiles
    #[arg(long = "profile", value_name = "PROFILE")]
    profiles: Vec<String>,
    /// A file with variables for the compose file, instead of .env
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
}

/// `compose …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ComposeVerb {
    /// Create the services of a project, or change them to what the file says
    ///
    /// It first asks the manager about all services, and changes nothing if one is refused. Services
    /// start in the order of their `depends_on`.
    Up(UpArgs),
    /// Stop and remove the services of a project, and wait until they are gone
    Down(DownArgs),
    /// List the services of a project with their replicas
    Ps {
        #[command(flatten)]
        files: FileArgs,
        #[command(flatten)]
        project: ProjectArgs,
    },
    /// Print the output of the services of a project, each line after the name of its replica
    Logs(LogsArgs),
    /// Check the file, and print it with its variables replaced and its parts merged
    Config {
        #[command(flatten)]
        files: FileArgs,
        #[command(flatten)]
        project: ProjectArgs,
    },
}

/// `compose up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// Change nothing; print what would change, and which nodes would get the replicas
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Remove the services of the project that are no longer in the file
    #[arg(long)]
    pub(crate) remove_orphans: bool,
    /// For those who know it from Docker: services always run in the background
    #[arg(short, long = "detach")]
    _detach: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `compose down`.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// Also remove the project's volumes with all their data, but not external ones
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Wait no longer than this, such as 1min; then exit with 124
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
}

/// `compose logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The services [default: all of the project]
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    /// Follow the output until the services are removed, or until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only the last lines of each stream
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// A compose file; `-f` stands before `logs`: podmesh compose -f FILE logs
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    project: ProjectArgs,
}

impl ComposeArgs {
    /// Returns what decides about the project: the options of the verb, and those before it.
    pub(crate) fn options(&self) -> Options {
        let (files, project) = match &self.verb {
            ComposeVerb::Up(args) => (&args.files.files, &args.project),
            ComposeVerb::Down(args) => (&args.files.files, &args.project),
            ComposeVerb::Ps { files, project } | ComposeVerb::Config { files, project } => {
                (&files.files, project)
            }
            ComposeVerb::Logs(args) => (&args.files, &args.project),
        };
        let both = |before: &[PathBuf], after: &[PathBuf]| [before, after].concat();
        Options {
            files: both(&self.files.files, files),
            project: project.project.clone().or_else(|| self.project.project.clone()),
            env_files: both(&self.project.env_files, &project.env_files),
            profiles: [self.project.profiles.as_slice(), &project.profiles].concat(),
        }
    }

    /// Returns the verb's name if it does not support `--output json`.
    pub(crate) fn without_json(&self) -> Option<&'static str> {
        match &self.verb {
            ComposeVerb::Up(_) => Some("compose up"),
            ComposeVerb::Down(_) => Some("compose down"),
            ComposeVerb::Logs(_) => Some("compose logs"),
            ComposeVerb::Ps { .. } | ComposeVerb::Config { .. } => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parsed(words: &[&str]) -> ComposeArgs {
        let words = ["podmesh", "compose"].iter().chain(words);
        let Verb::Compose(args) = Cli::try_parse_from(words).unwrap().verb else {
            unreachable!("`compose` is something else")
        };
        args
    }

    #[test]
    fn options_of_the_project_stand_before_or_after_the_verb() {
        let args = parsed(&["-f", "a", "-p", "x", "up", "-f", "b", "-d", "--profile", "dev"]);
        let options = args.options();
        assert_eq!(options.files, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(options.project.as_deref(), Some("x"));
        assert_eq!(options.profiles, ["dev"]);
    }

    #[test]
    fn f_of_logs_means_follow() {
        let args = parsed(&["-f", "a", "logs", "-f", "web", "-p", "x"]);
        assert_eq!(args.options().files, [PathBuf::from("a")]);
        let ComposeVerb::Logs(logs) = args.verb else { unreachable!("not logs") };
        assert!(logs.follow && logs.services == ["web"]);
    }
}
