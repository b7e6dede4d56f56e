//! `podmesh completions`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CliResult;
use crate::output::screen;

/// Prints the completion script for a shell.
pub(crate) fn completions(shell: Shell) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podmesh", &mut script);
    screen::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
