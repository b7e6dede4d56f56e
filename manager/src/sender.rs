//! Carries out the effects of commits: sends messages in order, opens and closes sessions, passes
//! hints to PUB, and wakes waiting requests.

use std::sync::Arc;

use podmesh_manager_core::step::Effect;
use podmesh_protocol::ids::Revision;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::api_tokens::ApiTokens;
use crate::callers::Callers;
use crate::core::CoreHandle;
use crate::heartbeat::Heartbeats;
use crate::log_reads::LogReads;
use crate::messages::Messages;
use crate::metrics::EventCounts;
use crate::publisher::Hints;
use crate::store::Commit;
use crate::turns::Turns;
use crate::waiters::{Subject, Waiters};

/// The parts that learn of commits.
pub(crate) struct Sender {
    pub(crate) messages: Messages,
    pub(crate) core: CoreHandle,
    pub(crate) callers: Callers,
    pub(crate) api_tokens: ApiTokens,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) log_reads: Arc<LogReads>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) counts: Arc<EventCounts>,
    /// The last committed revision.
    pub(crate) revisions: watch::Sender<Revision>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) turns: Arc<Turns>,
}

impl Sender {
    /// Carries out the effects of each commit, until the store has ended. Returns the socket, which
    /// must stay open until the front has ended.
    pub(crate) async fn run(
        mut self,
        mut committed: mpsc::Receiver<Commit>,
        pulse: Pulse,
    ) -> Messages {
        loop {
            pulse.beat();
            let Ok(next) = timeout(BEAT_EVERY, committed.recv()).await else { continue };
            let Some(Commit { effects, chunks, touched }) = next else { return self.messages };
            if let Some(newest) = chunks.last() {
                self.revisions.send_replace(newest.chunk.last());
            }
            for fact in chunks.iter().flat_map(|committed| &committed.chunk.facts) {
                self.counts.count(fact);
            }
            self.hints.add(chunks);
            for effect in effects {
                self.carry_out(effect).await;
            }
            if !touched.is_empty() {
                self.turns.worked();
            }
            self.waiters.wake(touched.into_iter().map(Subject::Job));
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { connection, message } => {
                self.messages.send(connection, &message).await;
            }
            Effect::Answered { ticket, result } => self.core.answered(ticket, result),
            Effect::SessionOpened { epoch, node, connection } => {
                self.heartbeats.open(epoch, node.clone());
                self.log_reads.session_opened(epoch, node, connection);
            }
            Effect::SessionClosed { epoch } => {
                self.heartbeats.close(epoch);
                self.log_reads.session_closed(epoch);
            }
            Effect::KeyEnrolled { key, role, name, renews } => {
                self.callers.enrolled(key, role, name, renews);
            }
            Effect::KeyRevoked { key } => self.callers.revoked(&key),
            Effect::ApiTokenCreated { id, secret_hash, role, expires_wall_ms } => {
                self.api_tokens.created(id, secret_hash, role, expires_wall_ms);
            }
            Effect::ApiTokenRevoked(id) => self.api_tokens.revoked(id),
            Effect::ServiceTouched(service) => self.waiters.wake([Subject::Service(service)]),
        }
    }
}
