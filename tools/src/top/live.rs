//! What comes by itself: events, and the output of a task or service.

use std::pin::Pin;
use std::sync::Arc;

use podmesh_protocol::client::LogStream;
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{Revision, TaskId};
use podmesh_protocol::limits::EVENTS_PER_CHUNK_MAX;
use tokio::sync::mpsc;

use super::data::told;
use super::subject::Source;
use crate::connect::Connection;
use crate::error::{CliError, CliResult};
use crate::follow::{Follower, ShowOptions};
use crate::hints::Hints;
use crate::sink::{Out, Prefix, Sink};
use crate::verbs::logs::replicas;

/// How many events from before the start are shown.
const EVENTS_BEFORE: u64 = 200;
/// If more events than this are missing, only the last ones are asked for.
const BEHIND_MAX: u64 = EVENTS_PER_CHUNK_MAX as u64;
/// How many lines of the output from before are shown.
const LINES_BEFORE: u64 = 2_000;
/// Pieces of output that wait until they are drawn.
const PIECES: usize = 16;

/// Events that were received, or why there are none at present.
pub(super) type News = Result<Vec<EventChunk>, String>;

/// Sends events as they happen, until nobody receives them. `last` is the revision of the last one
/// at the start.
pub(super) async fn events(
    connection: Arc<Connection>,
    last: Revision,
    sender: mpsc::Sender<News>,
) {
    let mut hints = Hints::default();
    let mut from = Revision(last.0.saturating_sub(EVENTS_BEFORE));
    let mut first = true;
    loop {
        // At first, there are events from before.
        let hint = if first { None } else { hints.next(&connection, from).await };
        first = false;
        let news = match hint {
            Some(chunk) => {
                from = chunk.last();
                Ok(vec![chunk])
            }
            None => match connection.events(from).await {
                Ok((chunks, last)) if last.0.saturating_sub(from.0) > BEHIND_MAX => {
                    from = Revision(last.0 - EVENTS_BEFORE);
                    drop(chunks);
                    continue;
                }
                // The manager was set back to a copy of its database.
                Ok((_, last)) if last < from => {
                    from = last;
                    continue;
                }
                Ok((chunks, _)) if chunks.is_empty() => continue,
                Ok((chunks, _)) => {
                    from = chunks.iter().map(EventChunk::last).max().unwrap_or(from);
                    Ok(chunks)
                }
                Err(error) => {
                    let why = told(&error.into());
                    // They may have been removed by now.
                    if let Ok(info) = connection.info().await {
                        from = Revision(info.revision.0.saturating_sub(EVENTS_BEFORE).max(from.0));
                    }
                    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                    Err(why)
                }
            },
        };
        if sender.send(news).await.is_err() {
            return;
        }
    }
}

/// The output that is followed, until this is dropped.
pub(super) struct Log {
    pub(super) source: Source,
    output: mpsc::Receiver<(LogStream, Vec<u8>)>,
    /// Sends the output. It runs only while the next piece is waited for.
    following: Option<Pin<Box<dyn Future<Output = CliResult<()>>>>>,
    /// How it ended, until that is known to the view.
    end: Option<String>,
}

/// A piece of output, or how it ended.
pub(super) enum Piece {
    Output(LogStream, Vec<u8>),
    End(String),
}

impl Log {
    pub(super) fn start(connection: Arc<Connection>, source: Source) -> Self {
        let (sender, output) = mpsc::channel(PIECES);
        let from = source.clone();
        let following = Box::pin(async move { follow(&connection, from, sender).await });
        Self { source, output, following: Some(following), end: None }
    }

    /// Returns the next piece. After the end there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Piece {
        if let Some(following) = &mut self.following {
            let result = tokio::select! {
                biased;
                Some((stream, bytes)) = self.output.recv() => return Piece::Output(stream, bytes),
                result = following => result,
            };
            self.following = None;
            self.end = Some(result.map_err(|error| told(&error)).err().unwrap_or_default());
        }
        match self.output.recv().await {
            Some((stream, bytes)) => Piece::Output(stream, bytes),
            None => match self.end.take() {
                Some(why) => Piece::End(why),
                None => std::future::pending().await,
            },
        }
    }
}

async fn follow(
    connection: &Connection,
    source: Source,
    sender: mpsc::Sender<(LogStream, Vec<u8>)>,
) -> CliResult<()> {
    let show = ShowOptions { follow: true, tail: Some(LINES_BEFORE), stream: None };
    let out = Out::Channel(sender);
    let follower = |out| {
        let sink = Sink::lines(Prefix::default(), out);
        Follower::merged(connection, show, sink, Arc::default())
    };
    match source {
        Source::Job(job) => {
            let detail = connection.job(job, None, std::time::Duration::ZERO).await?;
            if detail.spec.array.tasks() != 1 {
                return Err(CliError::failure(format!("job {job} has several tasks")));
            }
            let task = TaskId { job, index: detail.spec.array.first };
            follower(out).task(task).await?;
        }
        Source::Task(task) => _ = follower(out).task(task).await?,
        Source::Attempt(attempt, node) => follower(out).attempt(attempt, &node).await?,
        Source::Service(service) => {
            replicas::follow(connection, service, None, show, out).await?;
        }
        Source::Replica(service, number) => {
            replicas::follow(connection, service, Some(number), show, out).await?;
        }
    }
    Ok(())
}
