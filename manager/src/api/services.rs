//! Requests about services.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podmesh_manager_core::Core;
use podmesh_manager_core::input::{Command, ServiceChange};
use podmesh_manager_core::step::Answer;
use podmesh_protocol::client::ReplyBody;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{Name, Revision};
use podmesh_protocol::limits::{REPLICAS_MAX, WAIT_MS_MAX};
use podmesh_protocol::service::{
    RevisionState, ServiceDetail, ServiceReply, ServiceRequest, ServiceRevision, ServiceSpec,
};
use podmesh_wire::machine::unwritable;
use tokio::time::{Instant, sleep_until};

use super::{Api, unexpected};
use crate::core::{Pending, Room};
use crate::turns::ConnectionReads;
use crate::waiters::Subject;

/// Returns whether a request is a command: the core decides it, in the order of arrival.
pub(super) fn is_command(request: &ServiceRequest) -> bool {
    match request {
        ServiceRequest::Apply { .. }
        | ServiceRequest::Scale { .. }
        | ServiceRequest::Restart { .. }
        | ServiceRequest::Rollback { .. }
        | ServiceRequest::Stop { .. }
        | ServiceRequest::Start { .. }
        | ServiceRequest::Remove { .. } => true,
        ServiceRequest::Plan { .. }
        | ServiceRequest::List { .. }
        | ServiceRequest::Show { .. }
        | ServiceRequest::History { .. } => false,
    }
}

impl Api {
    /// Answers a request that changes nothing.
    pub(super) async fn service(
        &self,
        request: ServiceRequest,
        reads: &ConnectionReads,
    ) -> Result<ServiceReply, ErrorReply> {
        match request {
            ServiceRequest::List { after, limit } => {
                let list = move |core: &Core, _| core.list_services(after.as_ref(), limit);
                Ok(ServiceReply::List(self.0.core.read(list).await?))
            }
            ServiceRequest::Show { service, since, wait_ms } => {
                let detail = self.show_service(service, since, wait_ms, reads).await?;
                Ok(ServiceReply::Service(Box::new(detail)))
            }
            ServiceRequest::Plan { spec } => {
                validate(&spec)?;
                let spec = Arc::from(spec);
                let plan = self.0.core.read(move |core, _| core.plan_service(&spec)).await?;
                Ok(ServiceReply::Plan(plan))
            }
            ServiceRequest::History { service } => {
                let name = service.clone();
                let history = self.0.reads.run(move |history| history.service_history(&name));
                let history = history.await?;
                if history.is_empty() {
                    return Err(no_service(&service));
                }
                Ok(ServiceReply::History(history))
            }
            _ => Err(unexpected()),
        }
    }

    /// Returns a service, once it has changed since `since` or the time is over.
    async fn show_service(
        &self,
        name: Name,
        since: Option<Revision>,
        wait_ms: u32,
        reads: &ConnectionReads,
    ) -> Result<ServiceDetail, ErrorReply> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.min(WAIT_MS_MAX).into());
        let watch = self.0.waiters.watch(Subject::Service(name.clone()));
        let mut stopping = self.0.stopping.clone();
        loop {
            let next = watch.next();
            let of = name.clone();
            let detail = self.0.core.read(move |core, now| core.show_service(now, &of)).await?;
            let Some(detail) = detail else { return Err(no_service(&name)) };
            if since.is_none_or(|since| detail.changed > since) || Instant::now() >= deadline {
                return Ok(detail);
            }
            let turn = async {
                next.await;
                self.0.turns.take(reads).await;
            };
            tokio::select! {
                () = turn => {}
                () = sleep_until(deadline) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(detail),
            }
        }
    }

    /// Passes a command about a service to the core.
    pub(super) fn begin_service(
        &self,
        by: Name,
        request: ServiceRequest,
        room: Option<Room>,
    ) -> Result<BoxFuture<'static, Result<ReplyBody, ErrorReply>>, ErrorReply> {
        let change = |service: Name, change| {
            (service.clone(), Command::ChangeService { by: by.clone(), service, change })
        };
        let (service, command) = match request {
            ServiceRequest::Apply { spec } => {
                validate(&spec)?;
                if let Some(why) = unwritable(&self.0.data_dir) {
                    return Err(ErrorReply::new(ErrorCode::Storage, why));
                }
                let service = spec.name.clone();
                let spec = Arc::from(spec);
                (service, Command::ApplyService { by, spec, back_to: None })
            }
            ServiceRequest::Scale { service, replicas } => {
                if replicas > REPLICAS_MAX {
                    let message = format!(
                        "{replicas} replicas are over the limit of {REPLICAS_MAX} (REPLICAS_MAX)"
                    );
                    return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
                }
                change(service, ServiceChange::Scale(replicas))
            }
            ServiceRequest::Restart { service } => change(service, ServiceChange::Restart),
            ServiceRequest::Stop { service } => change(service, ServiceChange::Stop),
            ServiceRequest::Start { service } => change(service, ServiceChange::Start),
            ServiceRequest::Remove { service } => change(service, ServiceChange::Remove),
            ServiceRequest::Rollback { service, to } => {
                return Ok(self.clone().rollback(by, service, to, room).boxed());
            }
            _ => return Err(unexpected()),
        };
        let pending = self.0.core.command(command, room);
        Ok(changed(service, pending).boxed())
    }

    /// Goes back to an earlier revision, whose spec only the database has.
    async fn rollback(
        self,
        by: Name,
        service: Name,
        to: Option<u32>,
        room: Option<Room>,
    ) -> Result<ReplyBody, ErrorReply> {
        let name = service.clone();
        let history = self.0.reads.run(move |history| history.service_history(&name)).await?;
        let name = service.clone();
        let now = self.0.core.read(move |core, now| core.show_service(now, &name)).await?;
        let Some(current) = now.map(|detail| detail.view.revision) else {
            return Err(no_service(&service));
        };
        let target = find_target(&history, &service, current, to)?;
        let spec = Arc::new(target.spec.clone());
        let command = Command::ApplyService { by, spec, back_to: Some(target.revision) };
        changed(service, self.0.core.command(command, room)).await
    }
}

/// Returns the revision to go back to: the given one, or the last one before the current one that
/// was reached.
fn find_target<'a>(
    history: &'a [ServiceRevision],
    service: &Name,
    current: u32,
    to: Option<u32>,
) -> Result<&'a ServiceRevision, ErrorReply> {
    let found = match to {
        Some(to) => history.iter().find(|revision| revision.revision == to),
        None => {
            let before = || history.iter().filter(|revision| revision.revision < current);
            let reached = |revision: &&ServiceRevision| revision.state == RevisionState::Reached;
            before().find(reached).or_else(|| before().next())
        }
    };
    found.ok_or_else(|| {
        let kept: Vec<String> = history.iter().map(|known| known.revision.to_string()).collect();
        let what = match to {
            Some(to) => format!("no revision {to}"),
            None => format!("no revision before {current}"),
        };
        let message = format!(
            "service `{service}` has {what}; the manager keeps these revisions: {}",
            kept.join(", ")
        );
        ErrorReply::new(ErrorCode::NotFound, message)
    })
}

async fn changed(service: Name, pending: Pending) -> Result<ReplyBody, ErrorReply> {
    match pending.answer().await? {
        Answer::ServiceChanged { revision, changed } => {
            Ok(ReplyBody::Service(ServiceReply::Changed { service, revision, changed }))
        }
        _ => Err(unexpected()),
    }
}

fn validate(spec: &ServiceSpec) -> Result<(), ErrorReply> {
    spec.validate().map_err(|error| ErrorReply::new(ErrorCode::InvalidSpec, error.to_string()))
}

fn no_service(service: &Name) -> ErrorReply {
    let message = format!("there is no service `{service}`; `podmesh services` shows all");
    ErrorReply::new(ErrorCode::NotFound, message)
}
