//! The requests about services and about what nodes may get, with the reply of the matching type.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::ids::{Name, Revision};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::service::{
    ServiceDetail, ServicePlan, ServiceReply, ServiceRequest, ServiceRevision, ServiceSpec,
    ServiceView,
};

use crate::connect::{Connection, RequestError, unexpected, wait_ms};
use crate::error::CliError;
use crate::output::node::ScheduledNode;
use crate::output::service::ServiceChangedOutput;

/// What became of a request that changes a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) service: Name,
    /// Its current revision.
    pub(crate) revision: u32,
    /// Whether the request has changed anything.
    pub(crate) changed: bool,
}

impl From<&Changed> for ServiceChangedOutput {
    fn from(changed: &Changed) -> Self {
        Self {
            service: changed.service.to_string(),
            revision: changed.revision,
            changed: changed.changed,
        }
    }
}

impl RequestError {
    /// Returns whether the manager says that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(reply) if reply.code == ErrorCode::NotFound)
    }
}

impl Connection {
    async fn service_request(&self, request: ServiceRequest) -> Result<ServiceReply, RequestError> {
        match self.request(RequestBody::Service(request)).await {
            Ok(ReplyBody::Service(reply)) => Ok(reply),
            Ok(_) => Err(unexpected()),
            // A manager without services does not know the request.
            Err(RequestError::Refused(reply)) if reply.code == ErrorCode::BadMessage => {
                let error = CliError::from(RequestError::Refused(reply));
                Err(RequestError::Failed(error.hint(
                    "if the manager runs an older version of podmesh, without services: upgrade it",
                )))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request that changes a service.
    pub(crate) async fn change_service(
        &self,
        request: ServiceRequest,
    ) -> Result<Changed, RequestError> {
        match self.service_request(request).await? {
            ServiceReply::Changed { service, revision, changed } => {
                Ok(Changed { service, revision, changed })
            }
            _ => Err(unexpected()),
        }
    }

    /// Returns what an `apply` of this spec would do.
    pub(crate) async fn service_plan(
        &self,
        spec: ServiceSpec,
    ) -> Result<ServicePlan, RequestError> {
        match self.service_request(ServiceRequest::Plan { spec: Box::new(spec) }).await? {
            ServiceReply::Plan(plan) => Ok(plan),
            _ => Err(unexpected()),
        }
    }

    /// Returns all services in order of name. Only an empty page is the last.
    pub(crate) async fn services(&self) -> Result<Vec<ServiceView>, RequestError> {
        let mut services: Vec<ServiceView> = Vec::new();
        loop {
            let after = services.last().map(|view| view.service.clone());
            match self.service_request(ServiceRequest::List { after, limit: PAGE_ROWS_MAX }).await?
            {
                ServiceReply::List(page) if page.is_empty() => return Ok(services),
                ServiceReply::List(page) => services.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Returns a service. With `since`, returns once there is a later event of it, or `wait` has
    /// passed.
    pub(crate) async fn service(
        &self,
        service: Name,
        since: Option<Revision>,
        wait: Duration,
    ) -> Result<ServiceDetail, RequestError> {
        let request = ServiceRequest::Show { service, since, wait_ms: wait_ms(wait) };
        match self.service_request(request).await? {
            ServiceReply::Service(detail) => Ok(*detail),
            _ => Err(unexpected()),
        }
    }

    /// Returns the revisions of a service, newest first.
    pub(crate) async fn service_history(
        &self,
        service: Name,
    ) -> Result<Vec<ServiceRevision>, RequestError> {
        match self.service_request(ServiceRequest::History { service }).await? {
            ServiceReply::History(revisions) => Ok(revisions),
            _ => Err(unexpected()),
        }
    }

    /// Sets what a node may get.
    pub(crate) async fn node_scheduling(
        &self,
        node: Name,
        scheduling: Scheduling,
        drain: DrainSpec,
    ) -> Result<ScheduledNode, RequestError> {
        let name = node.to_string();
        match self.request(RequestBody::NodeScheduling { node, scheduling, drain }).await? {
            ReplyBody::NodeScheduling { scheduling, attempts, notes } => {
                Ok(ScheduledNode { node: name, scheduling: scheduling.into(), attempts, notes })
            }
            _ => Err(unexpected()),
        }
    }

    /// Plans a maintenance of a node, or takes it back. Returns whether anything has changed.
    pub(crate) async fn node_maintenance(
        &self,
        node: Name,
        maintenance: Option<MaintenanceSpec>,
    ) -> Result<bool, RequestError> {
        match self.request(RequestBody::NodeMaintenance { node, maintenance }).await? {
            ReplyBody::NodeMaintenance { changed } => Ok(changed),
            _ => Err(unexpected()),
        }
    }

    /// Changes the labels that admins have given a node. Returns all its labels.
    pub(crate) async fn node_labels(
        &self,
        node: Name,
        set: BTreeMap<Name, String>,
        remove: BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, String>, RequestError> {
        match self.request(RequestBody::NodeLabels { node, set, remove }).await? {
            ReplyBody::NodeLabels { labels } => Ok(labels),
            _ => Err(unexpected()),
        }
    }
}
