//! `podmesh events`

use std::time::{Duration, Instant};

use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::event::{EventChunk, Published, TOPIC_EVENTS};
use podmesh_protocol::ids::{JobId, Revision};
use podmesh_protocol::limits::EVENTS_KEPT;
use podmesh_wire::publish::Subscriber;
use tokio::time::{sleep, timeout};

use crate::cli::query::EventsArgs;
use crate::connect::{Connection, PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::CliResult;
use crate::output::events::{EventOutput, line};
use crate::output::screen;
use crate::output::time::local_clock;

/// How long to wait for a hint before asking the manager anyway.
const POLL: Duration = Duration::from_secs(1);
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
    let mut printer = Printer {
        json: context.json(),
        job: args.job,
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
    job: Option<JobId>,
    /// The revision of the last event that was printed, or skipped because it belongs to another
    /// job.
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
            if revision <= self.last || (self.job.is_some() && fact.job() != self.job) {
                continue;
            }
            if self.json {
                text += &screen::json_text(&EventOutput::new(revision, chunk.wall_ms, fact))?;
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

/// Published messages: they announce events, or contain small ones.
#[derive(Default)]
struct Hints {
    subscriber: Option<Subscriber>,
    /// The connection for which the subscriber was made. After a restart of the manager a new
    /// subscriber is made.
    generation: u64,
    failed: Option<Instant>,
}

impl Hints {
    /// Waits for a hint, at most a second. Returns events if the hint contains them and they follow
    /// `last` without a gap; otherwise `None`: then the manager must be asked.
    async fn next(&mut self, connection: &Connection, last: Revision) -> Option<EventChunk> {
        let generation = connection.generation().await;
        if self.generation != generation {
            self.subscriber = None;
        }
        if self.subscriber.is_none() && self.failed.is_none_or(|failed| failed.elapsed() > POLL) {
            self.subscriber = subscribe(connection).await;
            self.generation = generation;
            self.failed = self.subscriber.is_none().then(Instant::now);
            // Events published before must be requested.
            return None;
        }
        let Some(subscriber) = &mut self.subscriber else {
            sleep(POLL).await;
            return None;
        };
        let deadline = Instant::now() + POLL;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, subscriber.recv()).await {
                Err(_) => return None,
                Ok(Ok(Published::Events { last: published, chunk, .. })) => {
                    if published <= last {
                        // An old message that arrived late.
                        continue;
                    }
                    return chunk.filter(|chunk| chunk.first.0 <= last.0 + 1);
                }
                Ok(Ok(Published::Manager { .. })) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the subscription ended");
                    self.subscriber = None;
                    self.failed = Some(Instant::now());
                    return None;
                }
            }
        }
    }
}

async fn subscribe(connection: &Connection) -> Option<Subscriber> {
    connection.info().await.ok()?;
    Subscriber::connect(&connection.route()?, &[TOPIC_EVENTS]).await.ok()
}
