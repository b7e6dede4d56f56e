//! Draws questions and the list of keys, above the page.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::Theme;
use crate::top::action::Action;
use crate::top::keys::HELP;
use crate::top::model::{Model, Prompt};

/// Columns of a dialog at the most.
const WIDTH: u16 = 76;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let (title, lines) = match &model.prompt {
        None | Some(Prompt::Filter { .. }) => return,
        Some(Prompt::Confirm(action)) => (" Sure? ", question(action, theme)),
        Some(Prompt::Scale { service, digits }) => {
            let action = Action::Scale(service.clone(), digits.parse().unwrap_or(0));
            let lines = vec![
                Line::raw(format!("How many replicas of {service}? {digits}_")),
                Line::raw(""),
                Line::raw(format!("The same as: {}", action.command())),
                Line::raw(""),
                Line::from(vec![
                    Span::styled("Enter", theme.key()),
                    Span::raw(" set  "),
                    Span::styled("Esc", theme.key()),
                    Span::raw(" do not"),
                ]),
            ];
            (" Scale ", lines)
        }
        Some(Prompt::Help) => {
            let line = |(key, what): &(&'static str, &'static str)| {
                Line::from(vec![Span::styled(format!("{key:<11} "), theme.key()), Span::raw(*what)])
            };
            (" Keys ", HELP.iter().map(line).collect())
        }
    };
    let width = area.width.min(WIDTH);
    let inside = usize::from(width.saturating_sub(2).max(1));
    let height: usize = lines.iter().map(|line| height(line, inside)).sum();
    let height = u16::try_from(height).unwrap_or(u16::MAX).saturating_add(2);
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    frame.render_widget(Clear, place);
    frame.render_widget(text.block(Block::bordered().title(title)), place);
}

fn question(action: &Action, theme: Theme) -> Vec<Line<'static>> {
    vec![
        Line::raw(action.question()),
        Line::raw(""),
        Line::raw(format!("The same as: {}", action.command())),
        Line::raw(""),
        Line::from(vec![
            Span::styled("y", theme.key()),
            Span::raw(" yes  "),
            Span::styled("n", theme.key()),
            Span::raw(" no"),
        ]),
    ]
}

/// Returns how many lines a line needs at the most when it is wrapped between words.
fn height(line: &Line<'_>, width: usize) -> usize {
    match line.width() {
        fits if fits <= width => 1,
        long => long.div_ceil(width) + 1,
    }
}
