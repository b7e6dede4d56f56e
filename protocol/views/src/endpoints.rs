//! Where healthy replicas of a service listen, for other programs.

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{ReplicaState, ReplicaView, ServiceDetail};
use schemars::JsonSchema;
use serde::Serialize;

use crate::service::{EndpointRow, EndpointsOutput};
use crate::text::escape;

/// Where a healthy replica listens.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// The replica.
    pub replica: &'a ReplicaView,
    /// The port.
    pub port: &'a Name,
    /// `address:port`
    pub address: &'a str,
}

/// A group of targets in a file for Prometheus.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PrometheusGroup {
    /// `address:port`
    pub targets: [String; 1],
    /// Its labels.
    pub labels: PrometheusLabels,
}

/// The labels of a target.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PrometheusLabels {
    /// The service.
    pub service: String,
    /// The number of the replica.
    pub replica: String,
    /// Its node.
    pub node: String,
    /// The name of the port.
    pub port: String,
}

/// Returns where healthy replicas listen, by number of the replica.
pub fn of<'a>(detail: &'a ServiceDetail, only: Option<&Name>) -> Vec<Endpoint<'a>> {
    let healthy = detail.replicas.iter().filter(|view| view.state == ReplicaState::Healthy);
    healthy
        .flat_map(|replica| {
            let listens = replica.endpoints.iter();
            listens.map(move |(port, address)| Endpoint { replica, port, address })
        })
        .filter(|endpoint| only.is_none_or(|only| endpoint.port == only))
        .collect()
}

/// Returns the targets for the service discovery of Prometheus, by file or HTTP.
pub fn prometheus(detail: &ServiceDetail, endpoints: &[Endpoint<'_>]) -> Vec<PrometheusGroup> {
    let group = |endpoint: &Endpoint<'_>| PrometheusGroup {
        targets: [endpoint.address.to_owned()],
        labels: PrometheusLabels {
            service: detail.view.service.to_string(),
            replica: endpoint.replica.number.to_string(),
            node: endpoint.replica.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            port: endpoint.port.to_string(),
        },
    };
    endpoints.iter().map(group).collect()
}

/// Returns `server` lines for a backend of HAProxy.
pub fn haproxy(detail: &ServiceDetail, endpoints: &[Endpoint<'_>]) -> String {
    let line = |endpoint: &Endpoint<'_>| {
        let ReplicaView { number, revision, .. } = endpoint.replica;
        // During an update two replicas have the same number, but names in a backend are unique.
        let old = match *revision == detail.view.revision {
            true => String::new(),
            false => format!("-r{revision}"),
        };
        let header = match detail.spec.ports.get(endpoint.port) {
            Some(port) if port.proxy_protocol => " send-proxy-v2",
            _ => "",
        };
        let address = escape(endpoint.address);
        format!("server {}.{number}{old} {address}{header}\n", detail.view.service)
    };
    endpoints.iter().map(line).collect()
}

/// Returns the view of the endpoints.
pub fn rows(detail: &ServiceDetail, endpoints: &[Endpoint<'_>]) -> EndpointsOutput {
    let row = |endpoint: &Endpoint<'_>| EndpointRow {
        replica: endpoint.replica.number,
        revision: endpoint.replica.revision,
        node: endpoint.replica.node.as_ref().map(ToString::to_string),
        port: endpoint.port.to_string(),
        endpoint: endpoint.address.to_owned(),
    };
    EndpointsOutput {
        service: detail.view.service.to_string(),
        endpoints: endpoints.iter().map(row).collect(),
    }
}

/// Returns the names of a service's ports, for a message.
pub fn port_names(detail: &ServiceDetail) -> String {
    detail.spec.ports.keys().map(Name::as_str).collect::<Vec<_>>().join(", ")
}
