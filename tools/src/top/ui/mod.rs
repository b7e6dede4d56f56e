//! Draws the model.

mod dialog;
mod pager;
mod table;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::model::page::Body;
use super::model::{Model, Prompt, TABS};
use super::subject::{About, Subject};
use crate::output::table::Mood;
use crate::output::text::escape;

/// The least columns on which the name of the program stands before the tabs.
const WIDE: u16 = 100;

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// Without colour, things differ by bold and reversed text only.
    pub(super) color: bool,
}

impl Theme {
    fn mood(self, mood: Mood) -> Style {
        match (self.color, mood) {
            (true, Mood::Good) => Style::new().fg(Color::Green),
            (true, Mood::Bad) => Style::new().fg(Color::Red),
            (true, Mood::Busy) => Style::new().fg(Color::Yellow),
            (false, Mood::Bad) => Style::new().add_modifier(Modifier::BOLD),
            (_, _) => Style::new(),
        }
    }

    fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn key(self) -> Style {
        if self.color { Style::new().fg(Color::Cyan) } else { self.bold() }
    }
}

/// Draws the whole screen. `now`: milliseconds since 1970.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme, now: u64) {
    let lines = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [header, title, body, status] = lines.areas(frame.area());
    draw_header(frame, header, model, theme);
    frame.render_widget(title_line(model, theme), title);
    match &model.page().body {
        Body::Table(table) => table::draw(frame, body, model, table, theme, now),
        Body::Pager(pager) => pager::draw(frame, body, pager, theme),
    }
    status_line(frame, status, model, theme);
    dialog::draw(frame, body, model, theme);
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    // Over the last tabs, if the terminal is narrow; the status line says more.
    let away = if model.gone { "  manager away" } else { "" };
    let [tabs, notice] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(away.len() as u16)])
            .areas(area);
    let mut spans = Vec::new();
    if area.width >= WIDE {
        spans.push(Span::styled("podmesh  ", theme.bold()));
    }
    for (number, name) in TABS.iter().enumerate() {
        let style = if number == model.tab { theme.chosen() } else { Style::new() };
        spans.push(Span::styled(format!("{} {name}", number + 1), style));
        spans.push(Span::raw(" "));
    }
    frame.render_widget(Line::from(spans), tabs);
    let bad = theme.mood(Mood::Bad).add_modifier(Modifier::BOLD);
    frame.render_widget(Line::styled(away, bad), notice);
}

fn title_line(model: &Model, theme: Theme) -> Line<'static> {
    let path = model.path().join(" > ");
    let mut spans = vec![Span::styled(path, theme.bold())];
    let note = model.page().note();
    if !note.is_empty() {
        spans.push(Span::raw(format!("  {note}")));
    }
    Line::from(spans)
}

fn status_line(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let bad = theme.mood(Mood::Bad).add_modifier(Modifier::BOLD);
    let line = match (&model.prompt, &model.status, &model.page().error) {
        (Some(Prompt::Filter { text, .. }), _, _) => {
            let what = match model.page().body {
                Body::Table(_) => "filter",
                Body::Pager(_) => "search",
            };
            Line::from(format!("{what}: {}_", escape(text)))
        }
        (_, Some(status), _) => {
            Line::styled(status.text.clone(), if status.bad { bad } else { theme.bold() })
        }
        (_, None, Some(error)) => Line::styled(error.clone(), bad),
        (_, None, None) => keys_line(model, theme),
    };
    frame.render_widget(line, area);
}

/// Returns the keys that matter on the page, the most useful first: a narrow terminal cuts the
/// rest.
fn keys_line(model: &Model, theme: Theme) -> Line<'static> {
    let keys: &[(&str, &str)] = match &model.page().subject {
        Subject::Nodes => {
            &[("Enter", "details"), ("c", "cordon"), ("u", "uncordon"), ("D", "drain")]
        }
        Subject::Jobs => &[
            ("Enter", "tasks"),
            ("l", "logs"),
            ("d", "describe"),
            ("x", "cancel"),
            ("a", "active"),
        ],
        Subject::Services => &[
            ("Enter", "replicas"),
            ("l", "logs"),
            ("d", "describe"),
            ("s", "scale"),
            ("r", "restart"),
            ("R", "rollback"),
        ],
        Subject::Events => &[("Enter", "job"), ("d", "describe"), ("G", "newest")],
        Subject::Volumes => &[("Enter", "details")],
        Subject::Tasks(_) => &[
            ("Enter", "attempts"),
            ("l", "logs"),
            ("o", "by state"),
            ("x", "cancel job"),
            ("Esc", "back"),
        ],
        Subject::Attempts(_) => {
            &[("l", "logs"), ("d", "describe"), ("x", "cancel job"), ("Esc", "back")]
        }
        Subject::Replicas(_) => &[
            ("l", "logs"),
            ("d", "describe"),
            ("s", "scale"),
            ("r", "restart"),
            ("R", "rollback"),
            ("Esc", "back"),
        ],
        Subject::Schedules => &[("Enter", "runs"), ("d", "describe"), ("p", "pause, resume")],
        Subject::Workflows => &[("Enter", "jobs"), ("d", "describe"), ("x", "cancel")],
        Subject::Queues => &[("Enter", "details"), ("p", "pause, resume")],
        Subject::Runs(_) => {
            &[("Enter", "job"), ("l", "logs"), ("p", "pause, resume"), ("Esc", "back")]
        }
        Subject::WorkflowJobs(_) => &[
            ("Enter", "tasks"),
            ("l", "logs"),
            ("d", "describe"),
            ("x", "cancel job"),
            ("Esc", "back"),
        ],
        Subject::About(About::Job(_) | About::Task(_) | About::Service(_)) => {
            &[("l", "logs"), ("Esc", "back")]
        }
        Subject::About(_) => &[("Esc", "back")],
        Subject::Log(_) => &[("G", "follow"), ("n N", "next, previous"), ("Esc", "back")],
    };
    let search = match model.page().body {
        Body::Table(_) => "filter",
        Body::Pager(_) => "search",
    };
    let mut spans = Vec::new();
    let always = [("/", search), ("?", "help"), ("q", "quit")];
    for (key, what) in keys.iter().chain(&always) {
        spans.push(Span::styled((*key).to_owned(), theme.key()));
        spans.push(Span::raw(format!(" {what}  ")));
    }
    Line::from(spans)
}
