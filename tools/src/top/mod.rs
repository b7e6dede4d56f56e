//! `podmesh top`: nodes, jobs, services and all else in the terminal.
//!
//! `model` is the state, and pure: inputs change it. `data` asks what the model wants, `live` receives
//! what comes by itself, `ui` draws the model, and `terminal` takes the terminal and gives it back.

mod action;
mod data;
#[cfg(test)]
mod example;
mod keys;
mod live;
mod model;
mod row;
mod subject;
pub(crate) mod terminal;
mod ui;

use std::sync::Arc;
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use podmesh_protocol::client::Info;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use self::action::Action;
use self::data::{Asker, act, told};
use self::keys::Key;
use self::live::{Log, News, Piece};
use self::model::{Command, Input, Model};
use self::row::Row;
use self::terminal::Taken;
use self::ui::Theme;
use crate::connect::Connection;
use crate::error::{CliError, CliResult, EXIT_INTERRUPTED};
use crate::output::screen::divert;
use crate::output::time::now_ms;
use crate::signals::Interrupts;

/// The least time between two drawings: much that happens at the same time is drawn once.
const FRAME: Duration = Duration::from_millis(30);
/// The time after which times such as `3s ago` are drawn again.
const CLOCK: Duration = Duration::from_secs(1);
/// Lists of events that wait until they are drawn.
const NEWS: usize = 4;

/// Shows the view until the user quits. Call [`terminal::check`] first.
///
/// # Errors
/// If the manager cannot be reached at first, or the terminal cannot be used.
pub(crate) async fn run(connection: Connection, color: bool) -> CliResult {
    // Without an answer at first there is nothing to show: an error is better than an empty view.
    let info = connection.info().await?;
    connection.follow();
    let mut interrupts = Interrupts::new()?;
    let mut view = View::new(Arc::new(connection), &info)?;
    tokio::select! {
        result = view.run(Theme { color }) => result,
        _ = interrupts.next() => Ok(EXIT_INTERRUPTED),
    }
}

/// Everything that the view consists of.
struct View {
    // Dropped first, so that what others print at their end is on the screen of before.
    taken: Taken,
    _diverted: Diverted,
    connection: Arc<Connection>,
    model: Model,
    asker: Asker,
    log: Option<Log>,
    /// Changes on their way.
    actions: JoinSet<Result<String, String>>,
    news: mpsc::Receiver<News>,
    notes: mpsc::UnboundedReceiver<String>,
    /// Ends with the view.
    _events: JoinSet<()>,
}

/// Messages go to the status line while this exists.
struct Diverted;

impl Drop for Diverted {
    fn drop(&mut self) {
        divert(None);
    }
}

impl View {
    fn new(connection: Arc<Connection>, info: &Info) -> CliResult<Self> {
        let taken = Taken::new()?;
        let (sender, notes) = mpsc::unbounded_channel();
        divert(Some(sender));
        let (sender, news) = mpsc::channel(NEWS);
        let mut events = JoinSet::new();
        events.spawn(live::events(Arc::clone(&connection), info.revision, sender));
        let size = taken.terminal.size().map_err(|why| cannot_draw(&why))?;
        Ok(Self {
            taken,
            _diverted: Diverted,
            asker: Asker::new(Arc::clone(&connection)),
            connection,
            model: Model::new((size.width, size.height)),
            log: None,
            actions: JoinSet::new(),
            news,
            notes,
            _events: events,
        })
    }

    async fn run(&mut self, theme: Theme) -> CliResult {
        let mut keys = EventStream::new();
        let mut clock = interval(CLOCK);
        let mut drawn = Instant::now();
        self.draw(theme)?;
        // When to draw next.
        let mut draw_at: Option<Instant> = None;
        loop {
            self.want();
            let inputs = tokio::select! {
                event = keys.next() => match event {
                    Some(Ok(event)) => of_terminal(&event).into_iter().collect(),
                    Some(Err(why)) => return Err(cannot_draw(&why)),
                    // The terminal is gone.
                    None => return Ok(0),
                },
                (query, result) = self.asker.next() => vec![Input::Answer(query, result)],
                Some(news) = self.news.recv() => self.news(news),
                piece = next_piece(&mut self.log) => match piece {
                    Piece::Output(stream, bytes) => vec![Input::Output(stream, bytes)],
                    Piece::End(why) => vec![Input::OutputEnd(why)],
                },
                Some(note) = self.notes.recv() => vec![Input::Note(note)],
                Some(done) = self.actions.join_next() => match done {
                    Ok(result) => {
                        self.asker.refresh();
                        vec![Input::Done(result)]
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                _ = clock.tick() => vec![Input::Gone(self.connection.is_gone())],
                () = at(draw_at) => {
                    drawn = Instant::now();
                    draw_at = None;
                    self.draw(theme)?;
                    continue;
                }
            };
            for input in inputs {
                match self.model.update(input) {
                    Some(Command::Quit) => return Ok(0),
                    Some(Command::Do(action)) => self.act(action),
                    None => {}
                }
            }
            draw_at.get_or_insert(drawn + FRAME);
        }
    }

    /// Lets the others know what the model wants now.
    fn want(&mut self) {
        self.asker.want(self.model.wanted());
        let source = self.model.source();
        if self.log.as_ref().map(|log| &log.source) != source {
            let connection = &self.connection;
            self.log = source.map(|source| Log::start(Arc::clone(connection), source.clone()));
        }
    }

    fn news(&mut self, news: News) -> Vec<Input> {
        let chunks = match news {
            Ok(chunks) => chunks,
            Err(why) => {
                self.asker.refresh();
                return vec![Input::Note(why)];
            }
        };
        let mut rows = Vec::new();
        for chunk in &chunks {
            for (revision, fact) in chunk.iter() {
                self.asker.event(fact);
                let fact = Box::new(fact.clone());
                rows.push(Row::Event { revision, wall_ms: chunk.wall_ms, fact });
            }
        }
        vec![Input::Events(rows)]
    }

    fn act(&mut self, action: Action) {
        let connection = Arc::clone(&self.connection);
        self.actions
            .spawn(async move { act(&connection, &action).await.map_err(|error| told(&error)) });
    }

    fn draw(&mut self, theme: Theme) -> CliResult<()> {
        let model = &self.model;
        let drawn = self.taken.terminal.draw(|frame| ui::draw(frame, model, theme, now_ms()));
        drawn.map(|_| ()).map_err(|why| cannot_draw(&why))
    }
}

fn cannot_draw(why: &std::io::Error) -> CliError {
    CliError::failure("the terminal cannot be used").because(why)
}

fn of_terminal(event: &Event) -> Option<Input> {
    match event {
        Event::Key(key) => Key::of(key).map(Input::Key),
        Event::Resize(width, height) => Some(Input::Resize(*width, *height)),
        _ => None,
    }
}

async fn next_piece(log: &mut Option<Log>) -> Piece {
    match log {
        Some(log) => log.next().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
