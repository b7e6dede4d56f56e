//! A table with a selected row. It keeps the selection on the same thing when rows come and go.

use crate::top::row::{Kind, Row};
use crate::top::subject::{At, Part};

/// The rows of a table that are there at present.
#[derive(Debug)]
pub(in crate::top) struct Table {
    pub(in crate::top) kind: Kind,
    pub(in crate::top) filter: String,
    /// Whether there was an answer.
    pub(in crate::top) loaded: bool,
    /// Which part of a long list is wanted.
    pub(in crate::top) at: At,
    /// Where a long list goes on.
    pub(in crate::top) next: Option<u64>,
    rows: Vec<Row>,
    /// The rows that match the filter.
    shown: Vec<usize>,
    selected: usize,
    offset: usize,
    /// Whether to stay at the last row.
    stick: bool,
    /// Which row is selected when another part of the list arrives.
    landing: Landing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Landing {
    Same,
    First,
    /// The one above the row with this key.
    Above(String),
    Last,
}

impl Table {
    pub(in crate::top) fn new(kind: Kind) -> Self {
        Self {
            kind,
            filter: String::new(),
            loaded: false,
            at: At::Start,
            next: None,
            rows: Vec::new(),
            shown: Vec::new(),
            selected: 0,
            offset: 0,
            stick: kind == Kind::Events,
            landing: Landing::Same,
        }
    }

    /// Returns whether the list can be long: it is asked for in parts, and filtered where it is read.
    fn is_long(&self) -> bool {
        matches!(self.kind, Kind::Jobs | Kind::Tasks | Kind::Workflows)
    }

    /// Sets all rows.
    pub(in crate::top) fn set(&mut self, rows: Vec<Row>) {
        let key = self.selected().map(Row::key);
        self.rows = rows;
        self.loaded = true;
        self.show(key);
    }

    /// Sets the rows to those of a part of the list.
    pub(in crate::top) fn set_part(&mut self, part: Part) {
        self.at = part.at;
        self.next = part.next;
        let landing = std::mem::replace(&mut self.landing, Landing::Same);
        if self.at == At::Start && landing == Landing::Same && self.selected == 0 {
            // At the top, what is new is selected.
            self.rows.clear();
            self.shown.clear();
        }
        self.set(part.rows);
        match landing {
            Landing::Same => {}
            Landing::First => self.selected = 0,
            Landing::Above(key) => {
                let row = self.shown.iter().position(|n| self.rows[*n].key() == key);
                self.selected = row.map_or(self.last(), |row| row.saturating_sub(1));
            }
            Landing::Last => self.selected = self.last(),
        }
    }

    /// Adds rows at the end, and removes the oldest ones if there are more than `most`.
    pub(in crate::top) fn add(&mut self, rows: Vec<Row>, most: usize) {
        let key = self.selected().map(Row::key);
        self.rows.extend(rows);
        let over = self.rows.len().saturating_sub(most);
        self.rows.drain(..over);
        self.loaded = true;
        self.show(key);
    }

    fn show(&mut self, key: Option<String>) {
        let matches = |row: &Row| self.is_long() || row.matches(&self.filter);
        self.shown =
            self.rows.iter().enumerate().filter(|(_, row)| matches(row)).map(|(n, _)| n).collect();
        let same = key.and_then(|key| self.shown.iter().position(|n| self.rows[*n].key() == key));
        self.selected = match same {
            _ if self.stick => self.last(),
            Some(same) => same,
            None => self.selected.min(self.last()),
        };
    }

    fn last(&self) -> usize {
        self.shown.len().saturating_sub(1)
    }

    /// Returns the number of rows that match the filter.
    pub(in crate::top) fn len(&self) -> usize {
        self.shown.len()
    }

    /// Returns all rows, also those that do not match the filter.
    pub(in crate::top) fn all(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the selected row.
    pub(in crate::top) fn selected(&self) -> Option<&Row> {
        self.shown.get(self.selected).map(|n| &self.rows[*n])
    }

    /// Returns the rows of a window of this height, and which of them is selected.
    pub(in crate::top) fn visible(&self, height: usize) -> (impl Iterator<Item = &Row>, usize) {
        let rows = self.shown.iter().skip(self.offset).take(height).map(|n| &self.rows[*n]);
        (rows, self.selected.saturating_sub(self.offset))
    }

    /// Moves the window so that it contains the selected row.
    pub(in crate::top) fn fit(&mut self, height: usize) {
        let height = height.max(1);
        self.offset = self.offset.min(self.shown.len().saturating_sub(height));
        self.offset = self.offset.clamp((self.selected + 1).saturating_sub(height), self.selected);
    }

    /// Moves the selection. Beyond the end of a part of a long list, the next part is wanted.
    pub(in crate::top) fn move_by(&mut self, rows: isize) {
        let to = self.selected.saturating_add_signed(rows);
        if to > self.last()
            && self.selected == self.last()
            && let Some(next) = self.next
        {
            self.want(At::From(next), Landing::First);
        } else if rows < 0
            && self.selected == 0
            && self.at != At::Start
            && let Some(first) = self.rows.first()
        {
            let (at, key) = (At::Before(first.position()), first.key());
            self.want(at, Landing::Above(key));
        } else {
            self.selected = to.min(self.last());
            self.stick = self.kind == Kind::Events && self.selected == self.last();
        }
    }

    /// Selects the first row of the whole list.
    pub(in crate::top) fn home(&mut self) {
        self.want(At::Start, Landing::First);
        self.selected = 0;
        self.stick = false;
    }

    /// Selects the last row of the whole list.
    pub(in crate::top) fn end(&mut self) {
        if self.is_long() && self.next.is_some() {
            self.want(At::End, Landing::Last);
        }
        self.selected = self.last();
        self.stick = self.kind == Kind::Events;
    }

    fn want(&mut self, at: At, landing: Landing) {
        if self.is_long() && self.at != at {
            self.at = at;
            self.landing = landing;
        }
    }

    /// Shows only the rows that contain the text. A long list is asked for again.
    pub(in crate::top) fn set_filter(&mut self, filter: String) {
        if self.filter == filter {
            return;
        }
        self.filter = filter;
        if self.is_long() {
            self.restart();
        }
        let key = self.selected().map(Row::key);
        self.show(key);
    }

    /// Begins with the first row of another list.
    pub(in crate::top) fn restart(&mut self) {
        self.at = At::Start;
        self.next = None;
        self.landing = Landing::First;
        self.loaded = false;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::top::example;

    fn part(jobs: impl Iterator<Item = u64>, at: At, next: Option<u64>) -> Part {
        Part { rows: jobs.map(example::job).collect(), at, next }
    }

    fn selected(table: &Table) -> String {
        table.selected().unwrap().key()
    }

    #[test]
    fn the_selection_stays_on_the_same_job_when_new_ones_come() {
        let mut table = Table::new(Kind::Jobs);
        table.set_part(part((1..=9).rev(), At::Start, None));
        table.move_by(2);
        assert_eq!(selected(&table), "7");
        table.set_part(part((1..=12).rev(), At::Start, None));
        assert_eq!(selected(&table), "7");
        table.home();
        table.set_part(part((1..=13).rev(), At::Start, None));
        assert_eq!(selected(&table), "13");
        // At the top it is the newest one that is selected.
        table.set_part(part((1..=14).rev(), At::Start, None));
        assert_eq!(selected(&table), "14");
    }

    #[test]
    fn when_the_selected_row_goes_the_next_one_is_selected_and_at_the_end_the_last_one() {
        let mut table = Table::new(Kind::Queues);
        let queues = |names: &[&str]| {
            names.iter().map(|name| Row::Queue(Box::new(example::queue(name, false)))).collect()
        };
        table.set(queues(&["a", "b", "c", "d"]));
        table.move_by(1);
        table.set(queues(&["a", "c", "d"]));
        assert_eq!(selected(&table), "c");
        table.end();
        table.set(queues(&["a", "c"]));
        assert_eq!(selected(&table), "c");
        table.set(queues(&[]));
        assert!(table.selected().is_none());
        table.set(queues(&["e", "f"]));
        assert_eq!(selected(&table), "e");
    }

    #[test]
    fn beyond_the_end_of_a_part_the_next_one_is_wanted_and_back_again() {
        let mut table = Table::new(Kind::Jobs);
        table.set_part(part((91..=100).rev(), At::Start, Some(90)));
        table.move_by(5);
        assert_eq!((table.at, selected(&table).as_str()), (At::Start, "95"));
        // A page down stops at the last row first.
        table.move_by(20);
        assert_eq!((table.at, selected(&table).as_str()), (At::Start, "91"));
        table.move_by(1);
        assert_eq!(table.at, At::From(90));
        table.set_part(part((81..=90).rev(), At::From(90), Some(80)));
        assert_eq!(selected(&table), "90");
        // The same part again moves nothing.
        table.move_by(3);
        table.set_part(part((81..=90).rev(), At::From(90), Some(80)));
        assert_eq!(selected(&table), "87");
        table.move_by(-3);
        table.move_by(-1);
        assert_eq!(table.at, At::Before(90));
        // The answer can have more rows than those before.
        table.set_part(part((86..=100).rev(), At::Start, Some(85)));
        assert_eq!(selected(&table), "91");
        table.end();
        assert_eq!(table.at, At::End);
        table.set_part(part((1..=5).rev(), At::From(5), None));
        assert_eq!(selected(&table), "1");
        table.move_by(1);
        assert_eq!((table.at, selected(&table).as_str()), (At::From(5), "1"));
    }

    #[test]
    fn the_window_contains_the_selected_row() {
        let mut table = Table::new(Kind::Jobs);
        table.set_part(part((1..=50).rev(), At::Start, None));
        let first = |table: &Table| table.visible(10).0.next().unwrap().key();
        table.move_by(9);
        table.fit(10);
        assert_eq!((first(&table).as_str(), table.visible(10).1), ("50", 9));
        table.move_by(1);
        table.fit(10);
        assert_eq!((first(&table).as_str(), table.visible(10).1), ("49", 9));
        table.move_by(-10);
        table.fit(10);
        assert_eq!((first(&table).as_str(), table.visible(10).1), ("50", 0));
        table.end();
        table.fit(0);
        assert_eq!(table.visible(1).0.count(), 1);
    }

    #[test]
    fn events_stay_at_the_end_unless_the_user_moves_up() {
        let mut table = Table::new(Kind::Events);
        table.add((1..=5).map(example::event).collect(), 100);
        assert_eq!(selected(&table), "5");
        table.add(vec![example::event(6)], 100);
        assert_eq!(selected(&table), "6");
        table.move_by(-1);
        table.add((7..=103).map(example::event).collect(), 100);
        assert_eq!((selected(&table).as_str(), table.len()), ("5", 100));
        table.end();
        table.add(vec![example::event(104)], 100);
        assert_eq!(selected(&table), "104");
    }

    #[test]
    fn a_filter_shows_the_rows_that_contain_it() {
        let mut table = Table::new(Kind::Events);
        table.add((1..=20).map(example::event).collect(), 100);
        table.set_filter("JOB 1".into());
        assert_eq!(table.len(), 11);
        table.set_filter(String::new());
        assert_eq!(table.len(), 20);
    }
}
