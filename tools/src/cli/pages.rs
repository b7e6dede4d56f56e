//! What pages for users say is understood by the command line.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use clap::Parser;

use super::{Cli, Verb};
use crate::job;

/// Returns the commands of podmesh in the tables of a page.
fn commands(page: &str) -> Vec<&str> {
    let cells = page.lines().filter(|line| line.starts_with("| "));
    let code = cells.flat_map(|line| line.split('`').skip(1).step_by(2));
    code.filter(|code| code.starts_with("podmesh ")).collect()
}

#[test]
fn every_command_for_those_who_come_from_other_programs_is_understood() {
    let commands = commands(include_str!("../../COMING_FROM.md"));
    assert!(commands.len() > 70, "{}", commands.len());
    for command in commands {
        let words = shlex::split(command).unwrap();
        let cli = Cli::try_parse_from(&words).unwrap_or_else(|why| panic!("{command}: {why}"));
        let built = match cli.verb {
            // Its files are the user's.
            Verb::Submit(args) if args.options.file.is_some() => continue,
            Verb::Submit(args) => {
                job::build(args.options, args.command.command, args.upstream, &|_| None)
            }
            Verb::Run(args) => {
                job::build(args.options, args.command.command, Default::default(), &|_| None)
            }
            _ => continue,
        };
        assert!(built.is_ok(), "{command}: {:?}", built.err());
    }
}
