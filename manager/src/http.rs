//! The HTTP API, which asks by the same door as ROUTER.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use podmesh_http::{Asker, Config, Door, Hosts, HttpError, Peer, Server};
use podmesh_protocol::access::{Caller, TokenId};
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::Revision;
use podmesh_wire::machine::unwritable;
use podmesh_wire::route::HTTP_SOCKET;
use podmesh_wire::socket_dir::SocketDir;
use tokio::sync::watch;

use crate::api::{Api, is_command};
use crate::api_tokens::ApiTokens;
use crate::callers::{Callers, Client};
use crate::config::{HttpListen, ManagerConfig};
use crate::core::CoreHandle;
use crate::threads::{Reads, yield_to_others};
use crate::traces::Exporter;
use crate::turns::{CallerLine, ConnectionReads, Turns};

/// Listens. The sockets' folder exists already.
///
/// # Errors
/// If an address or file cannot be used.
pub(crate) fn bind(config: &ManagerConfig) -> Result<Server, HttpError> {
    let unix = SocketDir::open(&config.sockets_dir)
        .and_then(|folder| folder.bind_for(HTTP_SOCKET, config.sockets_group));
    let unix = unix.map_err(HttpError::Unix)?;
    let own = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let names = config.advertise.iter().map(|address| address.host.clone()).chain(own);
    let HttpListen { address, optional, tls } = config.http.clone();
    let with = |listen, unix| Config {
        listen,
        tls: tls.clone(),
        unix: Some(unix),
        hosts: Hosts::new(names.clone()),
    };
    let again = unix.try_clone().map_err(HttpError::Unix)?;
    match Server::bind(with(address, unix)) {
        Err(HttpError::Listen { address, source })
            if optional && source.kind() == io::ErrorKind::AddrInUse =>
        {
            tracing::warn!(
                %address,
                "another program has the address of the HTTP API, which is only at its unix socket now: choose another address with --http"
            );
            Server::bind(with(None, again))
        }
        result => result,
    }
}

/// Runs the thread of the HTTP API and of the export of traces. It has its own runtime, and leaves
/// the processors to the work.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn run(
    server: Server,
    door: ManagerDoor,
    exporter: Option<Exporter>,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    yield_to_others();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exporting = OptionFuture::from(exporter.map(|exporter| exporter.run(stopping.clone())));
    let serving = server.run(Arc::new(door), stopping);
    let (result, _) = runtime.block_on(async { tokio::join!(serving, exporting) });
    runtime.shutdown_background();
    result
}

/// The door for HTTP.
pub(crate) struct ManagerDoor {
    pub(crate) shared: Shared,
    pub(crate) callers: Callers,
    pub(crate) turns: Arc<Turns>,
    /// The reads for all streams of events.
    pub(crate) reads: Reads,
    pub(crate) feed: ConnectionReads,
    pub(crate) revisions: watch::Receiver<Revision>,
    pub(crate) data_dir: PathBuf,
}

/// What every caller needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) core: CoreHandle,
    pub(crate) tokens: ApiTokens,
}

/// A caller over HTTP.
struct HttpAsker {
    shared: Shared,
    client: Client,
    /// The token that they bear; `None` for a user of this machine.
    token: Option<TokenId>,
}

impl Door for ManagerDoor {
    fn admit(&self, peer: &Peer, token: Option<&str>) -> Result<Arc<dyn Asker>, ErrorReply> {
        let (client, token) = match (peer, token) {
            (_, Some(token)) => {
                let (id, client) = self.shared.tokens.admit(token)?;
                (client, Some(id))
            }
            (Peer::User(uid), None) => (self.callers.user(*uid)?, None),
            (Peer::Address(_), None) => {
                let message = "a request over the network needs an API token, as `Authorization: Bearer TOKEN`: create one with `podmesh token create --api --role viewer`";
                return Err(ErrorReply::new(ErrorCode::InvalidToken, message));
            }
        };
        Ok(Arc::new(HttpAsker { shared: self.shared.clone(), client, token }))
    }

    fn events(
        &self,
        since: Revision,
    ) -> BoxFuture<'static, Result<(Vec<EventChunk>, Revision), ErrorReply>> {
        let (turns, line, reads) = (Arc::clone(&self.turns), self.feed.clone(), self.reads.clone());
        async move {
            turns.take(&line).await;
            match reads.run(move |history| history.events(since)).await? {
                ReplyBody::Events { chunks, last } => Ok((chunks, last)),
                _ => Ok((vec![], since)),
            }
        }
        .boxed()
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.clone()
    }

    fn ready(&self) -> BoxFuture<'static, Result<(), ErrorReply>> {
        let (core, data_dir) = (self.shared.core.clone(), self.data_dir.clone());
        async move {
            core.read(|_, _| ()).await?;
            match unwritable(&data_dir) {
                Some(why) => Err(ErrorReply::new(ErrorCode::Storage, why)),
                None => Ok(()),
            }
        }
        .boxed()
    }
}

impl Asker for HttpAsker {
    fn caller(&self) -> &Caller {
        &self.client.caller
    }

    fn ask(&self, request: RequestBody) -> BoxFuture<'static, Result<ReplyBody, ErrorReply>> {
        let (Shared { api, core, .. }, client) = (self.shared.clone(), self.client.clone());
        if let Err(error) = self.check() {
            return std::future::ready(Err(error)).boxed();
        }
        async move {
            let room = if is_command(&request) { core.room().await } else { None };
            api.call(client, request, room).await
        }
        .boxed()
    }

    fn metrics(&self) -> BoxFuture<'static, Result<String, ErrorReply>> {
        if let Err(error) = self.check() {
            return std::future::ready(Err(error)).boxed();
        }
        let (api, client) = (self.shared.api.clone(), self.client.clone());
        async move { api.metrics(&client).await }.boxed()
    }

    fn check(&self) -> Result<(), ErrorReply> {
        self.token.map_or(Ok(()), |id| self.shared.tokens.check(id))
    }
}

/// Returns the reads of the stream of events.
pub(crate) fn feed_reads() -> ConnectionReads {
    CallerLine::default().connection()
}
