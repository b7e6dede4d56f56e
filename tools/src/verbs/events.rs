//! `podmesh events`

use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{Name, Revision};
use podmesh_protocol::limits::EVENTS_KEPT;
use podmesh_views::filter::EventFilter;

use crate::cli::query::EventsArgs;
use crate::connect::{Connection, PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::CliResult;
use crate::hints::Hints;
use crate::output::events::{EventOutput, line};
use crate::output::screen;
use crate::output::time::local_clock;

/// How many revisions to skip when searching for the oldest event that is kept.
const SKIP: u64 = EVENTS_KEPT / 100;

/// Lists events. Each event is printed once and in order, across restarts of the manager: only the
/// revision of the last printed event counts, and a published message is only a hint that there are
/// new events.
pub(crate) async fn events(context: &Context, args: EventsArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let info = connection.info().await?;
    let since = match (args.since, args.follow) {
        (Some(since), _) => Revision(since),
        (None, true) => info.revision,
        (None, false) => Revision(info.revision.0.saturating_sub(EVENTS_KEPT)),
    };
    let text = |name: Option<Name>| name.map(|name| name.to_string());
    let filter = EventFilter {
        kind: args.kind,
        job: args.job.map(|job| job.0),
        node: text(args.node),
        service: text(args.service),
        user: text(args.user),
    };
    let mut printer = Printer {
        json: context.json(),
        filter,
        last: since,
        from_the_oldest: args.since.is_none() && !args.follow,
    };
    if !args.follow {
        catch_up(&connection, &mut printer, Some(info.revision)).await?;
        return Ok(0);
    }
    connection.follow();
    let mut hints = Hints::default();
    loop {
        match hints.next(&connection, printer.last).await {
            Some(chunk) => printer.print(&chunk)?,
            None => catch_up(&connection, &mut printer, None).await?,
        }
    }
}

/// Prints committed events, at least up to `until`.
async fn catch_up(
    connection: &Connection,
    printer: &mut Printer,
    until: Option<Revision>,
) -> CliResult<()> {
    loop {
        let (chunks, last) = match connection.events(printer.last).await {
            Err(RequestError::Refused(reply))
                if reply.code == ErrorCode::Compacted && printer.from_the_oldest =>
            {
                // The user did not ask for these events; the oldest kept ones are a little later.
                printer.last.0 += SKIP;
                continue;
            }
            other => other?,
        };
        for chunk in &chunks {
            printer.print(chunk)?;
        }
        let enough = until.map_or(last, |until| until.min(last));
        if chunks.is_empty() || printer.last >= enough {
            return Ok(());
        }
    }
}

/// Prints events once and in order.
struct Printer {
    json: bool,
    filter: EventFilter,
    /// The revision of the last event that was printed, or skipped because it is not wanted.
    last: Revision,
    /// Whether to begin with the oldest kept events, and none has arrived yet.
    from_the_oldest: bool,
}

impl Printer {
    /// Prints the new events of a chunk. The chunk must not begin later than right after the last
    /// event.
    fn print(&mut self, chunk: &EventChunk) -> CliResult<()> {
        self.from_the_oldest = false;
        let mut text = String::new();
        let clock = local_clock(chunk.wall_ms);
        for (revision, fact) in chunk.iter() {
            if revision <= self.last {
                continue;
            }
            let view = EventOutput::new(revision, chunk.wall_ms, fact);
            if !self.filter.takes(&view) {
                continue;
            }
            if self.json {
                text += &screen::json_text(&view)?;
            } else {
                text += &line(revision, &clock, fact);
            }
            text.push('\n');
        }
        screen::print(&text)?;
        self.last = self.last.max(chunk.last());
        Ok(())
    }
}
