//! Heartbeats. They have their own stream and thread, so that nothing else that the agent does can
//! delay them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use podmesh_protocol::ids::Epoch;
use podmesh_protocol::time::Millis;
use podmesh_wire::WireError;
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use podmesh_wire::route::Route;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::clock::Clock;
use crate::error::AgentError;

/// How long to wait before a failed stream is opened again, while the session lasts.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Minimum interval between beats, whatever the manager requests.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The session to send heartbeats for, and their timing.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The way to the manager.
    pub(crate) route: Route,
    /// The session.
    pub(crate) epoch: Epoch,
    /// The interval between beats.
    pub(crate) interval: Duration,
    /// How long the node counts as alive without a beat.
    pub(crate) lease: Duration,
}

/// An event of a session's heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeartbeatEvent {
    /// The manager answered a beat.
    Answered {
        /// The session.
        epoch: Epoch,
        /// When that beat was sent.
        sent_mono_ms: Millis,
        /// How long the answer took.
        round_trip: Duration,
    },
    /// No answer came for half a lease. The agent must open a new session.
    Silent(Epoch),
}

/// The heartbeat thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    target: watch::Sender<Option<Target>>,
}

impl Heartbeat {
    /// Starts the thread. There is at most one event for each beat sent, so a peer cannot flood the
    /// channel.
    pub(crate) fn start(
        clock: Clock,
        events: mpsc::UnboundedSender<HeartbeatEvent>,
    ) -> Result<Self, AgentError> {
        let cannot = |source| AgentError::System { doing: "start the heartbeat thread", source };
        let (target, targets) = watch::channel(None);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        std::thread::Builder::new()
            .name("podmesh-beat".into())
            .spawn(move || runtime.block_on(run(clock, targets, events)))
            .map_err(cannot)?;
        Ok(Self { target })
    }

    /// Sets the session to send heartbeats for; `None` stops them.
    pub(crate) fn set(&self, target: Option<Target>) {
        self.target.send_replace(target);
    }
}

async fn run(
    clock: Clock,
    mut targets: watch::Receiver<Option<Target>>,
    events: mpsc::UnboundedSender<HeartbeatEvent>,
) {
    loop {
        let target = targets.borrow_and_update().clone();
        let changed = match target {
            None => targets.changed().await,
            Some(target) => tokio::select! {
                changed = targets.changed() => changed,
                () = beat(clock, &target, &events) => targets.changed().await,
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Sends beats until no answer came for half a lease.
async fn beat(clock: Clock, target: &Target, events: &mpsc::UnboundedSender<HeartbeatEvent>) {
    let patience = target.lease / 2;
    let answered = Cell::new(Instant::now());
    let silence = async {
        loop {
            let until = answered.get() + patience;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    };
    let streams = async {
        loop {
            let error = match stream(clock, target, &answered, events).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            tracing::debug!(epoch = %target.epoch, "the heartbeat stream failed: {error}");
            sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        () = silence => {
            // If there is no receiver, the agent has ended.
            _ = events.send(HeartbeatEvent::Silent(target.epoch));
        }
        () = streams => {}
    }
}

/// No value: a stream ends only with an error.
enum Never {}

async fn stream(
    clock: Clock,
    target: &Target,
    answered: &Cell<Instant>,
    events: &mpsc::UnboundedSender<HeartbeatEvent>,
) -> Result<Never, WireError> {
    let stream = timeout(target.lease / 2, target.route.heartbeats());
    let (mut reader, mut writer) = tokio::io::split(stream.await.map_err(io::Error::from)??);
    // The unanswered beats, oldest first.
    let sent = RefCell::new(VecDeque::new());
    tokio::select! {
        end = send_beats(clock, target, &mut writer, &sent) => end,
        end = read_answers(target.epoch, &mut reader, &sent, answered, events) => end,
    }
}

async fn send_beats(
    clock: Clock,
    target: &Target,
    writer: &mut (impl AsyncWrite + Unpin),
    sent: &RefCell<VecDeque<(u64, Millis, Instant)>>,
) -> Result<Never, WireError> {
    let mut ticks = interval(target.interval.max(INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Beats older than a lease need not be remembered.
    let remembered_max = 1 + (target.lease.as_millis() / ticks.period().as_millis()) as usize;
    for sequence in 1.. {
        ticks.tick().await;
        {
            let mut sent = sent.borrow_mut();
            sent.push_back((sequence, clock.mono_ms(), Instant::now()));
            if sent.len() > remembered_max.min(1024) {
                sent.pop_front();
            }
        }
        write_beat(writer, &Beat { epoch: target.epoch, sequence }).await?;
    }
    Err(WireError::Disconnected)
}

async fn read_answers(
    epoch: Epoch,
    reader: &mut (impl AsyncRead + Unpin),
    sent: &RefCell<VecDeque<(u64, Millis, Instant)>>,
    answered: &Cell<Instant>,
    events: &mpsc::UnboundedSender<HeartbeatEvent>,
) -> Result<Never, WireError> {
    loop {
        let beat = read_beat(reader).await?;
        if beat.epoch != epoch {
            continue;
        }
        let found = {
            let mut sent = sent.borrow_mut();
            let at = sent.iter().position(|(sequence, ..)| *sequence == beat.sequence);
            at.and_then(|at| sent.drain(..=at).next_back())
        };
        if let Some((_, sent_mono_ms, sent_at)) = found {
            answered.set(Instant::now());
            let round_trip = sent_at.elapsed();
            _ = events.send(HeartbeatEvent::Answered { epoch, sent_mono_ms, round_trip });
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_wire::route::HEARTBEATS_SOCKET;
    use tempfile::TempDir;
    use tokio::net::UnixListener;

    use super::*;

    async fn beating(
        lease: Duration,
    ) -> (Heartbeat, mpsc::UnboundedReceiver<HeartbeatEvent>, UnixListener, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(HEARTBEATS_SOCKET)).unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let heartbeat = Heartbeat::start(Clock::start(), sender).unwrap();
        heartbeat.set(Some(Target {
            route: Route::Local(dir.path().into()),
            epoch: Epoch(7),
            interval: Duration::from_millis(10),
            lease,
        }));
        (heartbeat, events, listener, dir)
    }

    #[tokio::test]
    async fn beats_continue_on_a_new_stream_when_one_fails() {
        let (_heartbeat, mut events, listener, _dir) = beating(Duration::from_secs(3600)).await;
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            for sequence in 1..=3 {
                let beat = read_beat(&mut stream).await.unwrap();
                assert_eq!(beat, Beat { epoch: Epoch(7), sequence });
                // Answers for another session, for a beat that was never sent, and the right one.
                write_beat(&mut stream, &Beat { epoch: Epoch(6), sequence }).await.unwrap();
                write_beat(&mut stream, &Beat { sequence: 99, ..beat }).await.unwrap();
                write_beat(&mut stream, &beat).await.unwrap();
                let event = events.recv().await.unwrap();
                assert!(matches!(event, HeartbeatEvent::Answered { epoch: Epoch(7), .. }));
            }
            assert!(events.try_recv().is_err());
        }
    }

    #[tokio::test]
    async fn silence_is_reported_once() {
        let (heartbeat, mut events, listener, _dir) = beating(Duration::from_millis(60)).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        read_beat(&mut stream).await.unwrap();
        assert_eq!(events.recv().await.unwrap(), HeartbeatEvent::Silent(Epoch(7)));
        drop(heartbeat);
        // The thread ends, and with it its sender.
        assert_eq!(events.recv().await, None);
    }
}
