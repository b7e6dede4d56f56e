//! Draws a text.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Text};
use ratatui::widgets::Paragraph;

use super::Theme;
use crate::output::table::Mood;
use crate::top::model::pager::Pager;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, pager: &Pager, theme: Theme) {
    let line = |line: &crate::top::model::pager::Line| {
        let text: String = line.text.chars().skip(pager.left).collect();
        let style = if line.has(&pager.search) {
            theme.chosen()
        } else if line.error {
            theme.mood(Mood::Bad)
        } else {
            Style::new()
        };
        Line::styled(text, style)
    };
    let lines: Vec<Line<'_>> = pager.visible().map(line).collect();
    if lines.is_empty() {
        let why = match &pager.ended {
            Some(_) => "there is no output",
            None if pager.follows => "waiting for output…",
            None => "loading…",
        };
        frame.render_widget(Line::raw(why), area);
        return;
    }
    frame.render_widget(Paragraph::new(Text::from(lines)), area);
}
