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
use crate::error::Outcome;
use crate::output::events::{EventOutput, line};
use crate::output::screen;

/// How long a hint is waited for before the manager is asked without one.
const POLL: Duration = Duration::from_secs(1);
/// How many revisions further to look for the oldest event that is kept.
const SKIP: u64 = EVENTS_KEPT / 100;

/// Lists events. Each is printed once and in order, however often the manager restarts: the
/// revision of the last one printed is all that counts, and what PUB carries is only a hint that
/// there is something to ask for.
pub(crate) async fn events(context: &Context, args: EventsArgs) -> Outcome {
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
        catch_up(&connection, &mut printer, None).await?;
        if let Some(chunk) = hints.next(&connection, printer.last).await {
            printer.print(&chunk)?;
        }
    }
}

/// Prints what is committed; at least up to `until`.
async fn catch_up(
    connection: &Connection,
    printer: &mut Printer,
    until: Option<Revision>,
) -> Outcome<()> {
    loop {
        let (chunks, last) = match connection.events(printer.last).await {
            Err(RequestError::Refused(reply))
                if reply.code == ErrorCode::Compacted && printer.from_the_oldest =>
            {
                // Nobody asked for just these; the oldest that are kept are a little later.
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
    /// The revision of the last event that was printed, or left out as another job's.
    last: Revision,
    /// Whether the oldest that are kept are wanted, whichever they are, and none has come yet.
    from_the_oldest: bool,
}

impl Printer {
    /// Prints what of a chunk is new. The chunk begins no later than behind the last one.
    fn print(&mut self, chunk: &EventChunk) -> Outcome<()> {
        self.from_the_oldest = false;
        let mut text = String::new();
        for (revision, fact) in chunk.iter() {
            if revision <= self.last || (self.job.is_some() && fact.job() != self.job) {
                continue;
            }
            if self.json {
                text += &screen::json_text(&EventOutput::new(revision, chunk.wall_ms, fact))?;
            } else {
                text += &line(revision, chunk.wall_ms, fact);
            }
            text.push('\n');
        }
        screen::print(&text)?;
        self.last = self.last.max(chunk.last());
        Ok(())
    }
}

/// What PUB says: that there are events to ask for, or small ones themselves.
#[derive(Default)]
struct Hints {
    subscriber: Option<Subscriber>,
    /// The connection after which the subscriber was made. A subscriber belongs to one life of the
    /// manager: after a restart a new one is made.
    generation: u64,
    failed: Option<Instant>,
}

impl Hints {
    /// Waits for a hint, a second at most. Returns events where they came along and follow `last`
    /// without a gap.
    async fn next(&mut self, connection: &Connection, last: Revision) -> Option<EventChunk> {
        let generation = connection.generation().await;
        if self.generation != generation {
            self.subscriber = None;
        }
        if self.subscriber.is_none() && self.failed.is_none_or(|failed| failed.elapsed() > POLL) {
            self.subscriber = subscribe(connection).await;
            self.generation = generation;
            self.failed = self.subscriber.is_none().then(Instant::now);
            // What was published before is to be asked for.
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
                        // An old one that came late.
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
