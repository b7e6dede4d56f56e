//! The terminal: taken over while the view runs, and always given back.

use std::io::{self, IsTerminal};

use ratatui::DefaultTerminal;

use crate::error::{CliError, CliResult};

/// The terminal while the view has it. When dropped, and on a panic, it is as it was before.
pub(super) struct Taken {
    pub(super) terminal: DefaultTerminal,
}

impl Taken {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// If standard input or output is not a terminal, or the terminal refuses.
    pub(super) fn new() -> CliResult<Self> {
        // The theme decides about colour, by `--color` and NO_COLOR.
        crossterm::style::force_color_output(true);
        let terminal = ratatui::try_init().map_err(|why| {
            // It may have been taken over in part.
            _ = ratatui::try_restore();
            CliError::failure("the terminal cannot be used").because(why)
        })?;
        Ok(Self { terminal })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // If the terminal is gone, nobody sees it.
        _ = self.terminal.show_cursor();
        // On a panic, that was done before the message was printed. A second time would move the
        // cursor onto the message.
        if !std::thread::panicking() {
            _ = ratatui::try_restore();
        }
    }
}

/// Checks that there is a terminal that can show the view.
///
/// # Errors
/// If there is none.
pub(crate) fn check() -> CliResult<()> {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let why = if !io::stdin().is_terminal() {
        "standard input is not a terminal"
    } else if !io::stdout().is_terminal() {
        "standard output is not a terminal"
    } else if dumb {
        "the terminal has the type `dumb`"
    } else {
        return Ok(());
    };
    Err(CliError::failure("`podmesh top` needs a terminal").because(why).hint(
        "without one, use `podmesh nodes`, `podmesh jobs` or `podmesh services`; over ssh, use `ssh -t`",
    ))
}
