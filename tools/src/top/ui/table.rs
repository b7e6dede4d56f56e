//! Draws a table.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row as Cells, Table as Widget, TableState, Wrap};

use super::Theme;
use crate::output::table::Mood;
use crate::top::model::Model;
use crate::top::model::table::Table;
use crate::top::row::{Cell, Width};
use crate::top::subject::{At, Subject};

/// Characters of a bar, without its ends.
const BAR: u64 = 5;
/// Lines for what a user may have to know about the selected row.
const REMARKS: u16 = 2;

pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    table: &Table,
    theme: Theme,
    now: u64,
) {
    let [rows, remarks] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(REMARKS)]).areas(area);
    let width = area.width;
    let columns = || {
        table.kind.columns().iter().enumerate().filter(move |(_, (_, _, least))| *least <= width)
    };
    let header = columns().map(|(_, (title, _, _))| *title);
    let widths = columns().map(|(_, (_, column, _))| match column {
        Width::Fixed(columns) => Constraint::Length(*columns),
        Width::Share(share) => Constraint::Fill(*share),
    });
    let (visible, selected) = table.visible(usize::from(rows.height.saturating_sub(1)));
    let cells = visible.map(|row| {
        let cells = row.cells(now);
        Cells::new(columns().map(|(number, _)| cell(&cells[number], theme)).collect::<Vec<_>>())
    });
    let widget = Widget::new(cells, widths)
        .header(Cells::new(header).style(theme.bold()))
        .row_highlight_style(theme.chosen());
    let mut state = TableState::new().with_selected(Some(selected));
    frame.render_stateful_widget(widget, rows, &mut state);
    if table.len() == 0
        && let Some(area) = rows.rows().nth(1)
    {
        frame.render_widget(empty(model, table), area);
    }
    let remarks_text = model.page().remarks().join("\n");
    frame.render_widget(
        Paragraph::new(remarks_text).wrap(Wrap { trim: true }).style(theme.mood(Mood::Busy)),
        remarks,
    );
}

fn cell(cell: &Cell, theme: Theme) -> Line<'static> {
    let text = Span::styled(cell.text.clone(), theme.mood(cell.mood));
    match cell.bar {
        None => Line::from(text),
        Some((part, of)) => Line::from(vec![Span::raw(bar(part, of)), text]),
    }
}

/// Returns a bar of characters that every terminal has.
fn bar(part: u64, of: u64) -> String {
    let full = match of {
        0 => 0,
        _ => u64::try_from(u128::from(part) * u128::from(BAR) / u128::from(of)).unwrap_or(BAR),
    };
    // Something is never shown as nothing.
    let full = full.clamp(u64::from(part > 0), BAR) as usize;
    format!("[{}{}] ", "|".repeat(full), " ".repeat(BAR as usize - full))
}

/// Returns why there are no rows.
fn empty(model: &Model, table: &Table) -> &'static str {
    if model.page().error.is_some() {
        ""
    } else if !table.loaded {
        "loading…"
    } else if table.next.is_some() {
        "nothing found so far; j searches further"
    } else if !table.filter.is_empty() {
        "nothing contains the filter; Esc shows all"
    } else if table.at != At::Start {
        "nothing is left here; g goes to the begin"
    } else {
        match model.page().subject {
            Subject::Nodes => "there are no nodes yet; start `podmesh agent` on a machine",
            Subject::Jobs => "there are no jobs; `podmesh submit` submits one",
            Subject::Services => "there are no services; `podmesh service apply` makes one",
            Subject::Volumes => "there are no volumes; the first task that uses one creates it",
            Subject::Schedules => "there are no schedules; `podmesh schedule add` adds one",
            Subject::Workflows => "there are no workflows; `podmesh workflow submit` submits one",
            Subject::Runs(_) => "it has not run yet",
            _ => "there are none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_shows_its_part() {
        assert_eq!((bar(0, 10), bar(1, 1000)), ("[     ] ".into(), "[|    ] ".into()));
        assert_eq!((bar(9, 10), bar(10, 10)), ("[|||| ] ".into(), "[|||||] ".into()));
        assert_eq!((bar(3, 0), bar(u64::MAX, 1)), ("[|    ] ".into(), "[|||||] ".into()));
    }
}
