//! A text with more lines than the screen: logs and descriptions.

use std::collections::VecDeque;

use podmesh_protocol::client::LogStream;

use crate::output::text::escape;

/// The most lines that are kept. Older ones are removed.
pub(in crate::top) const LINES_KEPT: usize = 20_000;
/// The most characters of a line that are kept.
const LINE_CHARS_MAX: usize = 4_000;
/// How far one key moves to the side.
const SIDE: usize = 16;

/// A line, safe for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::top) struct Line {
    pub(in crate::top) text: String,
    /// Whether it is of standard error.
    pub(in crate::top) error: bool,
}

/// The lines, and which of them are on the screen.
#[derive(Debug, Default)]
pub(in crate::top) struct Pager {
    lines: VecDeque<Line>,
    top: usize,
    /// How many characters are cut off at the left.
    pub(in crate::top) left: usize,
    /// Whether to stay at the end.
    pub(in crate::top) follows: bool,
    /// Whether older lines were removed.
    pub(in crate::top) cut: bool,
    /// Why no more lines come.
    pub(in crate::top) ended: Option<String>,
    pub(in crate::top) search: String,
    height: usize,
}

impl Pager {
    /// Creates a pager that follows.
    pub(in crate::top) fn following() -> Self {
        Self { follows: true, ..Self::default() }
    }

    /// Sets the whole text; it must be safe for a terminal.
    pub(in crate::top) fn set(&mut self, text: &str) {
        let line = |text: &str| Line { text: text.to_owned(), error: false };
        self.lines = text.lines().map(line).collect();
        self.scroll(0);
    }

    /// Adds whole lines of output.
    pub(in crate::top) fn add(&mut self, stream: LogStream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let error = stream == LogStream::Stderr;
        self.lines.extend(text.lines().map(|line| Line { text: clean(line), error }));
        let over = self.lines.len().saturating_sub(LINES_KEPT);
        if over > 0 {
            self.lines.drain(..over);
            self.top = self.top.saturating_sub(over);
            self.cut = true;
        }
        self.scroll(0);
    }

    /// Sets how many lines are on the screen.
    pub(in crate::top) fn fit(&mut self, height: usize) {
        self.height = height;
        self.scroll(0);
    }

    pub(in crate::top) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Returns the lines on the screen.
    pub(in crate::top) fn visible(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().skip(self.top).take(self.height)
    }

    /// Returns the number of the last line on the screen.
    pub(in crate::top) fn bottom(&self) -> usize {
        (self.top + self.height).min(self.lines.len())
    }

    fn lowest(&self) -> usize {
        self.lines.len().saturating_sub(self.height)
    }

    /// Moves by lines. At the end it follows again, if more lines can come.
    pub(in crate::top) fn move_by(&mut self, lines: isize) {
        self.scroll(lines);
    }

    fn scroll(&mut self, lines: isize) {
        if lines != 0 {
            self.top = self.top.saturating_add_signed(lines);
            self.follows = self.top >= self.lowest() && lines > 0;
        }
        self.top = if self.follows { self.lowest() } else { self.top.min(self.lowest()) };
    }

    pub(in crate::top) fn home(&mut self) {
        (self.top, self.follows) = (0, false);
    }

    pub(in crate::top) fn end(&mut self) {
        self.follows = true;
        self.scroll(0);
    }

    /// Moves to the side.
    pub(in crate::top) fn shift(&mut self, right: bool) {
        self.left = match right {
            true => (self.left + SIDE).min(LINE_CHARS_MAX),
            false => self.left.saturating_sub(SIDE),
        };
    }

    /// Moves to the next line that contains the search, below the top one or above it. Returns
    /// whether there is one.
    pub(in crate::top) fn find(&mut self, down: bool) -> bool {
        let has = |at: &usize| self.lines[*at].has(&self.search);
        let found = if down {
            (self.top + 1..self.lines.len()).find(has)
        } else {
            (0..self.top.min(self.lines.len())).rev().find(has)
        };
        self.go_to(found)
    }

    /// Sets the search, and moves to the nearest line above the bottom that contains it, else to the
    /// next one below. Returns whether there is one.
    pub(in crate::top) fn look_for(&mut self, search: String) -> bool {
        self.search = search;
        if self.search.is_empty() {
            return true;
        }
        let has = |at: &usize| self.lines[*at].has(&self.search);
        let bottom = self.bottom();
        if (self.top..bottom).any(|at| has(&at)) {
            // It is on the screen already.
            return true;
        }
        let above = (0..self.top).rev().find(has);
        let found = above.or_else(|| (bottom..self.lines.len()).find(has));
        self.go_to(found)
    }

    fn go_to(&mut self, line: Option<usize>) -> bool {
        if let Some(line) = line {
            self.follows = false;
            self.top = line.min(self.lowest());
        }
        line.is_some()
    }
}

impl Line {
    /// Returns whether the line contains the search, in any case of letters.
    pub(in crate::top) fn has(&self, search: &str) -> bool {
        !search.is_empty() && self.text.to_lowercase().contains(&search.to_lowercase())
    }
}

/// Makes a line of output safe for a terminal. Colours are removed, everything else that a terminal
/// interprets is escaped.
fn clean(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches('\r');
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, after) = rest.split_at(at);
        plain += before;
        let body = &after[2..];
        let end = body.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'));
        match end.filter(|end| body[*end..].starts_with('m')) {
            Some(end) => rest = &body[end + 1..],
            None => {
                plain += "\u{1b}[";
                rest = body;
            }
        }
    }
    plain += rest;
    let mut clean = String::with_capacity(plain.len());
    for (at, part) in plain.split('\t').enumerate() {
        if at > 0 {
            clean += &" ".repeat(8 - clean.chars().count() % 8);
        }
        clean += &escape(part);
    }
    crate::output::text::clip(&clean, LINE_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pager(lines: usize) -> Pager {
        let mut pager = Pager::following();
        pager.fit(10);
        for n in 1..=lines {
            pager.add(LogStream::Stdout, format!("line {n}\n").as_bytes());
        }
        pager
    }

    fn first(pager: &Pager) -> String {
        pager.visible().next().map(|line| line.text.clone()).unwrap_or_default()
    }

    #[test]
    fn it_follows_until_the_user_scrolls_back_and_again_at_the_end() {
        let mut pager = pager(50);
        assert_eq!(first(&pager), "line 41");
        pager.move_by(-1);
        pager.add(LogStream::Stdout, b"line 51\n");
        assert_eq!(first(&pager), "line 40");
        pager.move_by(1);
        assert!(!pager.follows);
        pager.move_by(10);
        assert!(pager.follows);
        pager.add(LogStream::Stdout, b"line 52\n");
        assert_eq!(first(&pager), "line 43");
    }

    #[test]
    fn a_search_goes_up_from_the_end_and_n_goes_down() {
        let mut pager = pager(50);
        assert!(pager.look_for("LINE 1".into()));
        assert_eq!(first(&pager), "line 19");
        assert!(pager.find(false));
        assert_eq!(first(&pager), "line 18");
        assert!(pager.find(true));
        assert_eq!(first(&pager), "line 19");
        assert!(!pager.look_for("nothing".into()));
        assert_eq!(first(&pager), "line 19");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut pager = pager(20);
        pager.home();
        pager.move_by(5);
        pager.add(LogStream::Stderr, "x\n".repeat(LINES_KEPT - 17).as_bytes());
        assert!(pager.cut);
        assert_eq!((pager.len(), first(&pager).as_str()), (LINES_KEPT, "line 6"));
    }

    #[test]
    fn no_control_character_is_left_and_colours_are_removed() {
        assert_eq!(clean("\u{1b}[1;31mred\u{1b}[0m \u{1b}[2J\u{7}\r"), "red \\u{1b}[2J\\u{7}");
        assert_eq!(clean("a\tb\u{202e}\u{1b}["), "a       b\\u{202e}\\u{1b}[");
    }
}
