//! What the view shows: pure state. An input changes it and may ask for something to be done; it
//! never waits, draws or asks by itself.

mod open;
pub(super) mod page;
pub(super) mod pager;
pub(super) mod table;
#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;

use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::REPLICAS_MAX;

use self::page::{Body, Page};
use super::action::Action;
use super::keys::Key;
use super::row::Row;
use super::subject::{Answer, Query, Source, Subject};

/// The most events that are kept. Older ones are removed.
const EVENTS_SHOWN: usize = 5_000;
/// Lines of the screen that are not rows of a table: header, title, column titles, two remarks,
/// status.
const TABLE_FRAME: u16 = 6;
/// The same for a text: header, title, status.
const PAGER_FRAME: u16 = 3;
/// Digits of a number of replicas.
const DIGITS_MAX: usize = 4;

/// Something that happened.
#[derive(Debug)]
pub(super) enum Input {
    Key(Key),
    /// Columns and lines of the terminal.
    Resize(u16, u16),
    /// What a query brought, or why it failed.
    Answer(Query, Result<Answer, String>),
    /// New events.
    Events(Vec<Row>),
    /// Output of the source of the present log page.
    Output(LogStream, Vec<u8>),
    /// No more output comes, and why.
    OutputEnd(String),
    /// A message to the user.
    Note(String),
    /// What a change did, or why it failed.
    Done(Result<String, String>),
    /// Whether the manager is gone.
    Gone(bool),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Do(Action),
    Quit,
}

/// What the user is asked, or told, before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// The text of a filter or search, and what it was before.
    Filter {
        text: String,
        before: String,
    },
    Confirm(Action),
    /// The new number of replicas.
    Scale {
        service: Name,
        digits: String,
    },
    Help,
}

/// A message in the status line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) text: String,
    pub(super) bad: bool,
}

/// The state of the view.
#[derive(Debug)]
pub(super) struct Model {
    roots: [Page; TABS.len()],
    /// Which root is shown.
    pub(super) tab: usize,
    /// The pages that were opened from it.
    stack: Vec<Page>,
    pub(super) prompt: Option<Prompt>,
    pub(super) status: Option<Status>,
    pub(super) gone: bool,
    size: (u16, u16),
}

/// The names of the roots.
pub(super) const TABS: [&str; 8] =
    ["Nodes", "Jobs", "Services", "Events", "Volumes", "Schedules", "Workflows", "Queues"];

impl Model {
    pub(super) fn new(size: (u16, u16)) -> Self {
        use Subject::{Events, Jobs, Nodes, Queues, Schedules, Services, Volumes, Workflows};
        Self {
            roots: [Nodes, Jobs, Services, Events, Volumes, Schedules, Workflows, Queues]
                .map(Page::new),
            tab: 0,
            stack: Vec::new(),
            prompt: None,
            status: None,
            gone: false,
            size,
        }
    }

    /// Returns the page that is shown.
    pub(super) fn page(&self) -> &Page {
        self.stack.last().unwrap_or(&self.roots[self.tab])
    }

    fn page_mut(&mut self) -> &mut Page {
        self.stack.last_mut().unwrap_or(&mut self.roots[self.tab])
    }

    /// Returns the titles of the pages from the root to the one that is shown.
    pub(super) fn path(&self) -> Vec<String> {
        std::iter::once(&self.roots[self.tab]).chain(&self.stack).map(Page::title).collect()
    }

    /// Returns what to ask: for the page, and besides.
    pub(super) fn wanted(&self) -> [Option<Query>; 2] {
        [self.page().query(), self.page().aside()]
    }

    /// Returns whose output is wanted.
    pub(super) fn source(&self) -> Option<&Source> {
        match &self.page().subject {
            Subject::Log(source) => Some(source),
            _ => None,
        }
    }

    /// Takes an input. Returns what to do.
    pub(super) fn update(&mut self, input: Input) -> Option<Command> {
        let mut command = None;
        match input {
            Input::Key(key) => command = self.key(key),
            Input::Resize(width, height) => self.size = (width, height),
            Input::Answer(query, result) => self.answer(&query, result),
            Input::Events(rows) => {
                if let Body::Table(table) = &mut self.roots[3].body {
                    table.add(rows, EVENTS_SHOWN);
                }
            }
            Input::Output(stream, bytes) => {
                if let Body::Pager(pager) = &mut self.page_mut().body {
                    pager.add(stream, &bytes);
                }
            }
            Input::OutputEnd(why) => {
                if let Body::Pager(pager) = &mut self.page_mut().body {
                    pager.ended = Some(why.clone());
                }
                if !why.is_empty() {
                    self.say(why, true);
                }
            }
            Input::Note(text) => self.say(text, false),
            Input::Done(Ok(text)) => self.say(text, false),
            Input::Done(Err(text)) => self.say(text, true),
            Input::Gone(gone) => self.gone = gone,
        }
        self.fit();
        command
    }

    fn say(&mut self, text: impl Into<String>, bad: bool) {
        self.status = Some(Status { text: text.into(), bad });
    }

    /// Returns how many rows of the page are on the screen.
    pub(super) fn height(&self) -> usize {
        let frame = match self.page().body {
            Body::Table(_) => TABLE_FRAME,
            Body::Pager(_) => PAGER_FRAME,
        };
        usize::from(self.size.1.saturating_sub(frame))
    }

    fn fit(&mut self) {
        let height = self.height();
        match &mut self.page_mut().body {
            Body::Table(table) => table.fit(height),
            Body::Pager(pager) => pager.fit(height),
        }
    }

    fn answer(&mut self, query: &Query, result: Result<Answer, String>) {
        let page = self.page_mut();
        // What was asked for another page, or before the user went on, is no longer of interest.
        let of_page = page.query().as_ref() == Some(query);
        if !of_page && page.aside().as_ref() != Some(query) {
            return;
        }
        match result {
            Ok(answer) => {
                page.set(answer);
                if of_page {
                    page.error = None;
                }
            }
            Err(why) => page.error = Some(why),
        }
    }

    fn key(&mut self, key: Key) -> Option<Command> {
        if key == Key::Interrupt {
            return Some(Command::Quit);
        }
        if self.prompt.is_some() {
            return self.prompt_key(key);
        }
        self.status = None;
        match key {
            Key::Char('q') => return Some(Command::Quit),
            Key::Char('?') => self.prompt = Some(Prompt::Help),
            Key::Char(c @ '1'..='8') => self.go_to(c as usize - '1' as usize),
            Key::Tab => self.go_to((self.tab + 1) % TABS.len()),
            Key::BackTab => self.go_to((self.tab + TABS.len() - 1) % TABS.len()),
            Key::Escape => self.back(),
            Key::Enter => self.open(),
            Key::Char('l') => self.logs(),
            Key::Char('d') => self.describe(),
            Key::Char('a') => self.toggle_active(),
            Key::Char('o') => {
                if let Subject::Tasks(_) = self.page().subject {
                    self.page_mut().next_state();
                }
            }
            Key::Char('/') => {
                let before = self.filter().to_owned();
                self.prompt = Some(Prompt::Filter { text: before.clone(), before });
            }
            Key::Char(c @ ('x' | 's' | 'r' | 'R' | 'c' | 'u' | 'D' | 'p')) => self.ask(c),
            _ => self.move_key(key),
        }
        None
    }

    fn move_key(&mut self, key: Key) {
        let page = self.height().saturating_sub(1).max(1) as isize;
        let by = match key {
            Key::Up | Key::Char('k') => -1,
            Key::Down | Key::Char('j') => 1,
            Key::PageUp => -page,
            Key::PageDown | Key::Char(' ') => page,
            _ => 0,
        };
        let mut found = true;
        match &mut self.page_mut().body {
            Body::Table(table) => match key {
                Key::Home | Key::Char('g') => table.home(),
                Key::End | Key::Char('G') => table.end(),
                _ if by != 0 => table.move_by(by),
                _ => {}
            },
            Body::Pager(pager) => match key {
                Key::Home | Key::Char('g') => pager.home(),
                Key::End | Key::Char('G') => pager.end(),
                Key::Left => pager.shift(false),
                Key::Right => pager.shift(true),
                Key::Char('n') => found = pager.find(true),
                Key::Char('N') => found = pager.find(false),
                _ if by != 0 => pager.move_by(by),
                _ => {}
            },
        }
        if !found {
            self.say("no other line contains the search", false);
        }
    }

    fn prompt_key(&mut self, key: Key) -> Option<Command> {
        let prompt = self.prompt.take()?;
        match (prompt, key) {
            (Prompt::Filter { text, .. }, Key::Enter) => self.set_filter(text, true),
            (Prompt::Filter { before, .. }, Key::Escape) => self.set_filter(before, false),
            (Prompt::Filter { mut text, before }, key) => {
                edit(&mut text, key, |c| !c.is_control());
                // A table is filtered while the user types.
                if let Body::Table(_) = self.page().body {
                    self.set_filter(text.clone(), false);
                }
                self.prompt = Some(Prompt::Filter { text, before });
            }
            (Prompt::Confirm(action), Key::Char('y' | 'Y')) => return Some(Command::Do(action)),
            (Prompt::Scale { service, digits }, Key::Enter) => match digits.parse() {
                Ok(replicas) if replicas <= REPLICAS_MAX => {
                    return Some(Command::Do(Action::Scale(service, replicas)));
                }
                _ => self.say(format!("a number from 0 to {REPLICAS_MAX} is needed"), true),
            },
            (
                Prompt::Confirm(_) | Prompt::Scale { .. },
                Key::Escape | Key::Char('n' | 'N' | 'q'),
            ) => {
                self.say("nothing was changed", false);
            }
            (Prompt::Scale { service, mut digits }, key) => {
                edit(&mut digits, key, |c| c.is_ascii_digit());
                digits.truncate(DIGITS_MAX);
                self.prompt = Some(Prompt::Scale { service, digits });
            }
            // A key that is no answer does not change anything by mistake.
            (prompt @ Prompt::Confirm(_), _) => self.prompt = Some(prompt),
            (Prompt::Help, _) => {}
        }
        None
    }

    fn go_to(&mut self, tab: usize) {
        self.tab = tab;
        self.stack.clear();
    }

    /// Goes back: first the filter or search ends, then the page is left.
    fn back(&mut self) {
        if !self.filter().is_empty() {
            self.set_filter(String::new(), false);
        } else {
            self.stack.pop();
        }
    }

    fn push(&mut self, subject: Subject) {
        self.stack.push(Page::new(subject));
    }

    fn filter(&self) -> &str {
        match &self.page().body {
            Body::Table(table) => &table.filter,
            Body::Pager(pager) => &pager.search,
        }
    }

    /// `go`: whether to move to the nearest line of a text.
    fn set_filter(&mut self, text: String, go: bool) {
        let mut found = true;
        match &mut self.page_mut().body {
            Body::Table(table) => table.set_filter(text),
            Body::Pager(pager) if go => found = pager.look_for(text),
            Body::Pager(pager) => pager.search = text,
        }
        if !found {
            self.say("no line contains the search", false);
        }
    }

    fn toggle_active(&mut self) {
        let page = self.page_mut();
        if let (Subject::Jobs, Body::Table(table)) = (&page.subject, &mut page.body) {
            page.active = !page.active;
            table.restart();
        }
    }
}

fn edit(text: &mut String, key: Key, allowed: fn(char) -> bool) {
    match key {
        Key::Char(c) if allowed(c) => text.push(c),
        Key::Backspace => _ = text.pop(),
        _ => {}
    }
}
