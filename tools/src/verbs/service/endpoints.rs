//! `podmesh service NAME --endpoints`: where healthy replicas listen, for other programs.

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{ReplicaState, ReplicaView, ServiceDetail};
use serde::Serialize;

use crate::cli::service::{EndpointFormat, ShowArgs};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::output::service::{EndpointRow, EndpointsOutput};
use crate::output::text::escape;

/// Where a healthy replica listens.
#[derive(Clone, Copy, Debug)]
struct Endpoint<'a> {
    replica: &'a ReplicaView,
    port: &'a Name,
    address: &'a str,
}

/// A group of targets in a file for Prometheus.
#[derive(Debug, Serialize)]
struct PrometheusGroup {
    targets: [String; 1],
    labels: PrometheusLabels,
}

#[derive(Debug, Serialize)]
struct PrometheusLabels {
    service: String,
    replica: String,
    node: String,
    port: String,
}

/// Prints the endpoints in the chosen format.
pub(super) fn print(context: &Context, args: &ShowArgs, detail: &ServiceDetail) -> CliResult {
    if let Some(port) = &args.port
        && !detail.spec.ports.contains_key(port)
    {
        return Err(CliError::failure(format!(
            "service {} has no port `{port}`",
            detail.view.service
        ))
        .because(match detail.spec.ports.is_empty() {
            true => "it has no ports".to_owned(),
            false => format!("its ports are: {}", names(detail)),
        }));
    }
    let endpoints = of(detail, args.port.as_ref());
    match args.format {
        Some(EndpointFormat::PrometheusSd) => screen::json(&prometheus(detail, &endpoints))?,
        Some(EndpointFormat::Haproxy) => {
            one_port(detail, args)?;
            screen::print(&haproxy(detail, &endpoints))?;
        }
        None if context.json() => {
            let row = |endpoint: &Endpoint<'_>| EndpointRow {
                replica: endpoint.replica.number,
                revision: endpoint.replica.revision,
                node: endpoint.replica.node.as_ref().map(ToString::to_string),
                port: endpoint.port.to_string(),
                endpoint: endpoint.address.to_owned(),
            };
            screen::json(&EndpointsOutput {
                service: detail.view.service.to_string(),
                endpoints: endpoints.iter().map(row).collect(),
            })?;
        }
        None => {
            one_port(detail, args)?;
            let lines = endpoints.iter().map(|endpoint| escape(endpoint.address) + "\n");
            screen::print(&lines.collect::<String>())?;
        }
    }
    Ok(0)
}

/// Checks that the lines, which do not name their port, are all of one port.
fn one_port(detail: &ServiceDetail, args: &ShowArgs) -> CliResult<()> {
    if args.port.is_some() || detail.spec.ports.len() <= 1 {
        return Ok(());
    }
    let what = format!("service {} has more than one port", detail.view.service);
    Err(CliError::usage(what).hint(format!("choose one with --port: {}", names(detail))))
}

fn names(detail: &ServiceDetail) -> String {
    detail.spec.ports.keys().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns where healthy replicas listen, by number of the replica.
fn of<'a>(detail: &'a ServiceDetail, only: Option<&Name>) -> Vec<Endpoint<'a>> {
    let healthy = detail.replicas.iter().filter(|view| view.state == ReplicaState::Healthy);
    healthy
        .flat_map(|replica| {
            let listens = replica.endpoints.iter();
            listens.map(move |(port, address)| Endpoint { replica, port, address })
        })
        .filter(|endpoint| only.is_none_or(|only| endpoint.port == only))
        .collect()
}

fn prometheus(detail: &ServiceDetail, endpoints: &[Endpoint<'_>]) -> Vec<PrometheusGroup> {
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

fn haproxy(detail: &ServiceDetail, endpoints: &[Endpoint<'_>]) -> String {
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::verbs::service::example;

    fn updating() -> ServiceDetail {
        let mut detail = example::detail();
        let mut old = example::replica(1, ReplicaState::Healthy);
        (old.revision, old.endpoints) = (3, [("http".parse().unwrap(), "[::1]:1".into())].into());
        detail.replicas.push(old);
        detail
    }

    #[test]
    fn only_healthy_replicas_are_endpoints() {
        let detail = updating();
        let addresses = |port: Option<&Name>| -> Vec<&str> {
            of(&detail, port).into_iter().map(|endpoint| endpoint.address).collect()
        };
        assert_eq!(addresses(None), ["10.0.0.1:20001", "[::1]:1"]);
        assert_eq!(addresses(Some(&"http".parse().unwrap())).len(), 2);
        assert_eq!(addresses(Some(&"admin".parse().unwrap())).len(), 0);
    }

    #[test]
    fn servers_of_haproxy_have_different_names() {
        let mut detail = updating();
        let lines = haproxy(&detail, &of(&detail, None));
        assert_eq!(lines, "server web.1 10.0.0.1:20001\nserver web.1-r3 [::1]:1\n");
        for port in detail.spec.ports.values_mut() {
            port.proxy_protocol = true;
        }
        assert!(haproxy(&detail, &of(&detail, None)).contains(":20001 send-proxy-v2\n"));
    }

    #[test]
    fn prometheus_gets_one_group_for_each_replica() {
        let detail = example::detail();
        let json = serde_json::to_value(prometheus(&detail, &of(&detail, None))).unwrap();
        let expected = serde_json::json!([{
            "targets": ["10.0.0.1:20001"],
            "labels": {"service": "web", "replica": "1", "node": "node-1", "port": "http"},
        }]);
        assert_eq!(json, expected);
    }
}
