//! Standard output and standard error: their properties, and writing to them without panics.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;

use crate::cli::Color;
use crate::error::{CliError, CliResult};

/// The properties of standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// The columns of the terminal. `None` if it is not a terminal: then nothing is cut.
    pub(crate) width: Option<u16>,
    /// Whether to use colour.
    pub(crate) color: bool,
}

impl Screen {
    /// Examines standard output, and applies `--color` to everything that prints.
    pub(crate) fn detect(color: Color) -> Self {
        match color {
            // anstream decides by the stream, NO_COLOR, CLICOLOR and TERM.
            Color::Auto => {}
            Color::Always => anstream::ColorChoice::Always.write_global(),
            Color::Never => anstream::ColorChoice::Never.write_global(),
        }
        let stdout = io::stdout();
        let choice = anstream::AutoStream::choice(&stdout);
        let width = stdout.is_terminal().then(|| comfy_table::Table::new().width()).flatten();
        Self { width, color: choice != anstream::ColorChoice::Never }
    }
}

/// Prints a text that contains its own line breaks.
///
/// # Errors
/// If standard output is closed, or the disk is full.
pub(crate) fn print(text: &str) -> CliResult<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::stdout)
}

/// Prints one line.
///
/// # Errors
/// See [`print`].
pub(crate) fn line(text: impl Display) -> CliResult<()> {
    print(&format!("{text}\n"))
}

/// Prints a value as JSON over several lines.
///
/// # Errors
/// See [`print`].
pub(crate) fn json(value: &impl Serialize) -> CliResult<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|why| CliError::failure("the output cannot be written as JSON").because(why))?;
    line(text)
}

/// Returns a value as one line of JSON, without a line break.
///
/// # Errors
/// If the value has no JSON form.
pub(crate) fn json_text(value: &impl Serialize) -> CliResult<String> {
    serde_json::to_string(value)
        .map_err(|why| CliError::failure("the output cannot be written as JSON").because(why))
}

/// Who gets messages instead of standard error.
static READER: Mutex<Option<UnboundedSender<String>>> = Mutex::new(None);

/// From now on, messages go to `reader` instead of standard error, because a view uses the whole
/// terminal; with `None` to standard error again.
pub(crate) fn divert(reader: Option<UnboundedSender<String>>) {
    // Nothing panics while the lock is held.
    *READER.lock() = reader;
}

/// Prints a message to standard error, ignoring failures.
pub(crate) fn say(text: impl Display) {
    if let Some(reader) = &*READER.lock() {
        // Without a reader, nobody watches any more.
        _ = reader.send(text.to_string());
        return;
    }
    _ = writeln!(anstream::stderr(), "podmesh: {text}");
}

/// Prints a message for a user who watches: only if standard error is a terminal.
pub(crate) fn say_to_watcher(text: impl Display) {
    if io::stderr().is_terminal() {
        say(text);
    }
}

/// Prints an error, as every verb does at its end.
pub(crate) fn say_error(error: &CliError) {
    let bold = anstyle::Style::new().bold();
    let red = anstyle::AnsiColor::Red.on_default().bold();
    if READER.lock().is_some() {
        return say(error);
    }
    let mut stderr = anstream::stderr();
    _ = writeln!(stderr, "{red}podmesh:{red:#} {error}");
    if let Some(hint) = error.hint_text() {
        _ = writeln!(stderr, "{bold}hint:{bold:#} {hint}");
    }
}
