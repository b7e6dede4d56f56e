//! Standard output and standard error: what they are, and writing to them without panics.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::cli::Color;
use crate::error::{CliError, Outcome};

/// What standard output is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Columns of the terminal; none where it is not one: nothing is cut then.
    pub(crate) width: Option<u16>,
    /// Whether to use colour.
    pub(crate) color: bool,
}

impl Screen {
    /// Looks at standard output, and makes `--color` known to everything that prints.
    pub(crate) fn detect(color: Color) -> Self {
        match color {
            // Unset: anstream looks at the stream, NO_COLOR, CLICOLOR and TERM.
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

/// Prints a text that ends its own lines.
///
/// # Errors
/// When nobody reads it any more, or the disk is full.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::stdout)
}

/// Prints one line.
///
/// # Errors
/// As [`print`].
pub(crate) fn line(text: impl Display) -> Outcome<()> {
    print(&format!("{text}\n"))
}

/// Prints a value as JSON over several lines.
///
/// # Errors
/// As [`print`].
pub(crate) fn json(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|why| CliError::failure("the output cannot be written as JSON").because(why))?;
    line(text)
}

/// A value as one line of JSON, without its end.
///
/// # Errors
/// When it has no JSON form.
pub(crate) fn json_text(value: &impl Serialize) -> Outcome<String> {
    serde_json::to_string(value)
        .map_err(|why| CliError::failure("the output cannot be written as JSON").because(why))
}

/// Says something on standard error. That it cannot be read is no error.
pub(crate) fn say(text: impl Display) {
    _ = writeln!(anstream::stderr(), "podmesh: {text}");
}

/// Says something for people who watch: only when standard error is a terminal.
pub(crate) fn say_to_watcher(text: impl Display) {
    if io::stderr().is_terminal() {
        say(text);
    }
}

/// Tells of an error, as every verb does at its end.
pub(crate) fn say_error(error: &CliError) {
    let bold = anstyle::Style::new().bold();
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let mut stderr = anstream::stderr();
    _ = writeln!(stderr, "{red}podmesh:{red:#} {error}");
    if let Some(hint) = error.hint_text() {
        _ = writeln!(stderr, "{bold}hint:{bold:#} {hint}");
    }
}
