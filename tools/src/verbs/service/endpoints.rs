//! `podmesh service NAME --endpoints`: where healthy replicas listen, for other programs.

use podmesh_protocol::service::ServiceDetail;
use podmesh_views::endpoints::{haproxy, of, port_names, prometheus, rows};

use crate::cli::service::{EndpointFormat, ShowArgs};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::output::text::escape;

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
            false => format!("its ports are: {}", port_names(detail)),
        }));
    }
    let endpoints = of(detail, args.port.as_ref());
    match args.format {
        Some(EndpointFormat::PrometheusSd) => screen::json(&prometheus(detail, &endpoints))?,
        Some(EndpointFormat::Haproxy) => {
            one_port(detail, args)?;
            screen::print(&haproxy(detail, &endpoints))?;
        }
        None if context.json() => screen::json(&rows(detail, &endpoints))?,
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
    Err(CliError::usage(what).hint(format!("choose one with --port: {}", port_names(detail))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use podmesh_protocol::ids::Name;
    use podmesh_protocol::service::ReplicaState;

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
        for port in Arc::make_mut(&mut detail.spec.ports).values_mut() {
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
