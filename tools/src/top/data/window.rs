//! Reads parts of long lists: at most a few pages of the manager for each.

use podmesh_protocol::client::{JobView, TaskView};
use podmesh_protocol::ids::JobId;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::report::TaskState;
use podmesh_protocol::workflow::WorkflowView;

use crate::connect::{Connection, JobsQuery, RequestError};
use crate::top::row::Row;
use crate::top::subject::{At, Part};

/// The rows of a part: more than a screen has.
const ROWS: usize = 200;
/// Pages that one query reads at most when it searches.
const PAGES_MAX: usize = 10;

/// A list whose pages the manager returns.
pub(super) trait Pages {
    /// Returns at most `limit` rows, beginning with the row at the position or the next one, and the
    /// position at which the list goes on.
    async fn read(
        &self,
        from: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<Row>, Option<u64>), RequestError>;

    /// Returns the position that is `rows` positions before this one.
    fn back(&self, from: u64, rows: u64) -> u64;

    /// Returns a position after the last row.
    async fn end(&self) -> Result<u64, RequestError>;

    /// Returns whether a position is before another one.
    fn is_before(&self, one: u64, other: u64) -> bool;
}

/// The jobs, newest first: positions go down.
pub(super) struct Jobs<'a> {
    pub(super) connection: &'a Connection,
    pub(super) active: bool,
}

impl Pages for Jobs<'_> {
    async fn read(
        &self,
        from: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<Row>, Option<u64>), RequestError> {
        let before = from.map(|from| JobId(from.saturating_add(1)));
        let query = JobsQuery { before, active: self.active, limit, ..JobsQuery::default() };
        let jobs = self.connection.jobs(query).await?;
        let full = jobs.len() >= limit as usize;
        let last = jobs.last().map_or(0, |view| view.job.0);
        let row = |view: JobView| Row::Job(Box::new(view));
        let rows = jobs.into_iter().map(row).collect();
        Ok((rows, (full && last > 1).then(|| last - 1)))
    }

    fn back(&self, from: u64, rows: u64) -> u64 {
        from.saturating_add(rows)
    }

    async fn end(&self) -> Result<u64, RequestError> {
        below_oldest(self).await
    }

    fn is_before(&self, one: u64, other: u64) -> bool {
        one > other
    }
}

/// The workflows, newest first: positions go down.
pub(super) struct Workflows<'a> {
    pub(super) connection: &'a Connection,
}

impl Pages for Workflows<'_> {
    async fn read(
        &self,
        from: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<Row>, Option<u64>), RequestError> {
        let before = from.map(|from| JobId(from.saturating_add(1)));
        let (workflows, next) = self.connection.workflows_before(before, None, limit).await?;
        let row = |view: WorkflowView| Row::Workflow(Box::new(view));
        let next = next.map(|before| before.0.saturating_sub(1));
        Ok((workflows.into_iter().map(row).collect(), next))
    }

    fn back(&self, from: u64, rows: u64) -> u64 {
        from.saturating_add(rows)
    }

    async fn end(&self) -> Result<u64, RequestError> {
        below_oldest(self).await
    }

    fn is_before(&self, one: u64, other: u64) -> bool {
        one > other
    }
}

/// Returns the position after the last row of a list, newest first. It can be asked for from the
/// newest row only, so this looks for the oldest one by halves.
async fn below_oldest(list: &impl Pages) -> Result<u64, RequestError> {
    let (newest, _) = list.read(None, 1).await?;
    let Some(mut oldest) = newest.first().map(Row::position) else { return Ok(0) };
    let mut none = 0;
    while oldest - none > 1 {
        let middle = none + (oldest - none) / 2;
        match list.read(Some(middle), 1).await?.0.first() {
            Some(row) => oldest = row.position(),
            None => none = middle,
        }
    }
    Ok(oldest.saturating_sub(1))
}

/// The tasks of a job in order of index: positions go up.
pub(super) struct Tasks<'a> {
    pub(super) connection: &'a Connection,
    pub(super) job: JobId,
    pub(super) state: Option<TaskState>,
}

impl Pages for Tasks<'_> {
    async fn read(
        &self,
        from: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<Row>, Option<u64>), RequestError> {
        let from = u32::try_from(from.unwrap_or(0)).unwrap_or(u32::MAX);
        let (tasks, next) = self.connection.tasks(self.job, from, self.state, limit).await?;
        let row = |view: TaskView| Row::Task(Box::new(view));
        Ok((tasks.into_iter().map(row).collect(), next.map(u64::from)))
    }

    fn back(&self, from: u64, rows: u64) -> u64 {
        from.saturating_sub(rows)
    }

    async fn end(&self) -> Result<u64, RequestError> {
        let detail = self.connection.job(self.job, None, std::time::Duration::ZERO).await?;
        Ok(u64::from(detail.spec.array.last) + 1)
    }

    fn is_before(&self, one: u64, other: u64) -> bool {
        one < other
    }
}

/// Reads a part of a list.
pub(super) async fn part(list: &impl Pages, at: At, filter: &str) -> Result<Part, RequestError> {
    match at {
        At::Start => forward(list, None, filter).await,
        At::From(from) => forward(list, Some(from), filter).await,
        At::Before(before) => backward(list, before, Some(before), filter).await,
        At::End => {
            let end = list.end().await?;
            backward(list, end, None, filter).await
        }
    }
}

/// Reads from a position on, until there are enough rows that match, or the search takes too long.
async fn forward(list: &impl Pages, from: Option<u64>, filter: &str) -> Result<Part, RequestError> {
    let at = from.map_or(At::Start, At::From);
    let limit = if filter.is_empty() { ROWS as u32 } else { PAGE_ROWS_MAX };
    let mut part = Part { at, ..Part::default() };
    let mut position = from;
    for _ in 0..PAGES_MAX {
        let (rows, next) = list.read(position, limit).await?;
        part.next = next;
        for row in rows {
            if part.rows.len() == ROWS {
                // The rest belongs to the next part.
                part.next = Some(row.position());
                return Ok(part);
            }
            if row.matches(filter) {
                part.rows.push(row);
            }
        }
        position = next;
        if next.is_none() || part.rows.len() == ROWS {
            break;
        }
    }
    Ok(part)
}

/// Reads the rows that match before a position. If there are few, the part begins with the list: a
/// whole screen is of more use than a few rows.
async fn backward(
    list: &impl Pages,
    before: u64,
    next: Option<u64>,
    filter: &str,
) -> Result<Part, RequestError> {
    let (first, _) = list.read(None, 1).await?;
    let Some(first) = first.first().map(Row::position) else { return Ok(Part::default()) };
    let mut found: Vec<Row> = Vec::new();
    let mut bound = before;
    for _ in 0..PAGES_MAX {
        if found.len() >= ROWS || !list.is_before(first, bound) {
            break;
        }
        let from = list.back(bound, PAGE_ROWS_MAX.into());
        let mut rows = between(list, from, bound).await?;
        rows.retain(|row| row.matches(filter));
        rows.append(&mut found);
        found = rows;
        bound = from;
    }
    if found.len() < ROWS {
        return forward(list, None, filter).await;
    }
    let rows = found.split_off(found.len() - ROWS);
    let at = rows.first().map_or(At::Start, |row| At::From(row.position()));
    Ok(Part { rows, at, next })
}

/// Reads all rows from a position on, up to another one.
async fn between(list: &impl Pages, from: u64, to: u64) -> Result<Vec<Row>, RequestError> {
    let mut all = Vec::new();
    let mut position = Some(from);
    while let Some(from) = position.filter(|from| list.is_before(*from, to)) {
        let (rows, next) = list.read(Some(from), PAGE_ROWS_MAX).await?;
        all.extend(rows.into_iter().filter(|row| list.is_before(row.position(), to)));
        position = next;
    }
    Ok(all)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::top::example;

    /// Jobs with these numbers, newest first; a page has at most 300 of them.
    struct Numbers {
        jobs: Vec<u64>,
        reads: Cell<usize>,
    }

    impl Pages for Numbers {
        async fn read(
            &self,
            from: Option<u64>,
            limit: u32,
        ) -> Result<(Vec<Row>, Option<u64>), RequestError> {
            self.reads.set(self.reads.get() + 1);
            let mut rest = self.jobs.iter().filter(|job| from.is_none_or(|from| **job <= from));
            let limit = limit.min(300) as usize;
            let rows = rest.by_ref().take(limit).map(|job| example::job(*job)).collect();
            Ok((rows, rest.next().copied()))
        }

        fn back(&self, from: u64, rows: u64) -> u64 {
            from + rows
        }

        async fn end(&self) -> Result<u64, RequestError> {
            Ok(0)
        }

        fn is_before(&self, one: u64, other: u64) -> bool {
            one > other
        }
    }

    fn list(jobs: impl DoubleEndedIterator<Item = u64>) -> Numbers {
        Numbers { jobs: jobs.rev().collect(), reads: Cell::new(0) }
    }

    async fn read(list: &Numbers, at: At, filter: &str) -> (Vec<u64>, At, Option<u64>) {
        let part = part(list, at, filter).await.unwrap();
        (part.rows.iter().map(Row::position).collect(), part.at, part.next)
    }

    #[tokio::test]
    async fn parts_follow_each_other_in_both_directions() {
        let list = list(1..=100_000);
        let (rows, at, next) = read(&list, At::Start, "").await;
        assert_eq!((rows.len(), rows[0], at, next), (200, 100_000, At::Start, Some(99_800)));
        let (rows, at, next) = read(&list, At::From(99_800), "").await;
        assert_eq!((rows[0], at, next), (99_800, At::From(99_800), Some(99_600)));
        assert_eq!(list.reads.get(), 2);
        let (rows, at, next) = read(&list, At::Before(99_600), "").await;
        assert_eq!((rows[0], rows[199], next), (99_800, 99_601, Some(99_600)));
        assert_eq!(at, At::From(99_800));
        let (rows, at, next) = read(&list, At::Before(99_900), "").await;
        assert_eq!((rows[0], at, next), (100_000, At::Start, Some(99_800)));
        let (rows, _, next) = read(&list, At::End, "").await;
        assert_eq!((rows[0], rows[199], next), (200, 1, None));
    }

    #[tokio::test]
    async fn no_row_is_left_out_where_numbers_are_missing() {
        let list = list((1..=600).chain(5_000..=5_100));
        let (rows, at, next) = read(&list, At::Before(400), "").await;
        assert_eq!((rows[0], rows[199], at, next), (600, 401, At::From(600), Some(400)));
        let (rows, at, _) = read(&list, At::Before(450), "").await;
        assert_eq!((rows[0], rows[49], rows[50], at), (5_049, 5_000, 600, At::From(5_049)));
    }

    #[tokio::test]
    async fn a_search_reads_a_bounded_number_of_pages() {
        let list = list(1..=100_000);
        let (rows, _, next) = read(&list, At::Start, "job-7").await;
        assert_eq!((rows, next), (vec![], Some(97_000)));
        assert_eq!(list.reads.get(), PAGES_MAX);
        let (rows, _, next) = read(&list, At::Start, "job-99").await;
        assert_eq!((rows.len(), rows[0], next), (200, 99_999, Some(99_799)));
    }
}
