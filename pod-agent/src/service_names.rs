//! The names by which the node's containers and commands reach services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{ServiceEndpoints, service_variable};
use podmesh_protocol::spec::{DockerSpec, HOST_GATEWAY, NetworkMode};

use crate::policy::IngressAddress;

/// The services that the node's proxy listens for, each with its first published port in the order of
/// the names of its ports.
pub(crate) type Services = Arc<BTreeMap<Name, u16>>;

/// The names of services, as an attempt gets them at its start. Later services are unknown to it.
#[derive(Debug)]
pub struct ServiceNames {
    /// Where the node's proxy listens.
    ingress: IngressAddress,
    services: Mutex<Services>,
}

impl ServiceNames {
    /// Creates it without services.
    pub fn new(ingress: IngressAddress) -> Self {
        Self { ingress, services: Mutex::default() }
    }

    /// Applies an update of services. With `all`, services that are not in it are forgotten. Ports
    /// that the proxy may not listen on do not count.
    pub fn apply(&self, all: bool, update: &[ServiceEndpoints], may_listen: impl Fn(u16) -> bool) {
        let mut current = self.services.lock();
        let mut services = if all { BTreeMap::new() } else { (**current).clone() };
        for ServiceEndpoints { service, ports } in update {
            let open = ports.iter().filter(|port| may_listen(port.publish));
            match open.min_by(|a, b| a.port.cmp(&b.port)) {
                Some(port) => services.insert(service.clone(), port.publish),
                None => services.remove(service),
            };
        }
        if **current != services {
            *current = Arc::new(services);
        }
    }

    /// Returns the current services. Two results are the same allocation if nothing has changed.
    pub(crate) fn services(&self) -> Services {
        Arc::clone(&self.services.lock())
    }

    /// Returns the address at which a program in the node's own network reaches the proxy.
    fn address(&self) -> IpAddr {
        match &self.ingress {
            IngressAddress::Only(addresses) => addresses.first().copied(),
            IngressAddress::All | IngressAddress::Off => None,
        }
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// Returns the address at which a container in a network of its own reaches the proxy.
    fn gateway(&self) -> String {
        let outside = match &self.ingress {
            IngressAddress::Only(addresses) => addresses.iter().find(|ip| !ip.is_loopback()),
            IngressAddress::All | IngressAddress::Off => None,
        };
        outside.map_or_else(|| HOST_GATEWAY.to_owned(), ToString::to_string)
    }

    /// Returns the variables of a command: `PODMESH_SERVICE_WEB=127.0.0.1:8080`.
    pub(crate) fn variables_of_command(
        &self,
        services: &Services,
    ) -> impl Iterator<Item = (String, String)> {
        let address = self.address();
        services.iter().map(move |(name, port)| {
            (service_variable(name), SocketAddr::new(address, *port).to_string())
        })
    }

    /// Returns the names for a container: `PODMESH_SERVICE_WEB=web:8080`, and `web:host-gateway` for
    /// its `/etc/hosts`, after the hosts of its own spec. A host of the spec with the name of a service
    /// is kept instead. In a container that joins networks, the service is `web.podmesh`: `web` may be
    /// another container there.
    pub(crate) fn of_container(&self, spec: &DockerSpec) -> ContainerNames {
        let address = match spec.network {
            NetworkMode::Bridge => self.gateway(),
            NetworkMode::Host => self.address().to_string(),
            // It reaches nothing.
            NetworkMode::None => {
                return ContainerNames { hosts: spec.extra_hosts.clone(), variables: Vec::new() };
            }
        };
        let services = self.services();
        let domain = if spec.networks.is_empty() { "" } else { ".podmesh" };
        let is_given = |name: &Name| {
            let mut given = spec.extra_hosts.iter().filter_map(|host| host.split(':').next());
            given.any(|given| given.eq_ignore_ascii_case(&format!("{name}{domain}")))
        };
        let named = services.keys().filter(|name| !is_given(name));
        let hosts = named.map(|name| format!("{name}{domain}:{address}"));
        ContainerNames {
            hosts: spec.extra_hosts.iter().cloned().chain(hosts).collect(),
            variables: services
                .iter()
                .map(|(name, port)| (service_variable(name), format!("{name}{domain}:{port}")))
                .collect(),
        }
    }
}

/// The names of services for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerNames {
    /// The further lines of its `/etc/hosts`, each `name:address`.
    pub(crate) hosts: Vec<String>,
    /// The environment variables.
    pub(crate) variables: Vec<(String, String)>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::service::PortEndpoints;

    use super::*;

    fn service(name: &str, ports: &[(&str, u16)]) -> ServiceEndpoints {
        let port = |(port, publish): &(&str, u16)| PortEndpoints {
            port: port.parse().unwrap(),
            publish: *publish,
            proxy_protocol: false,
            endpoints: Vec::new(),
        };
        ServiceEndpoints { service: name.parse().unwrap(), ports: ports.iter().map(port).collect() }
    }

    fn names(ingress: &str) -> ServiceNames {
        let names = ServiceNames::new(ingress.parse().unwrap());
        let services = [
            service("web", &[("http", 8080), ("admin", 9000), ("a", 1)]),
            service("db-1", &[("sql", 5432)]),
        ];
        names.apply(true, &services, |port| port != 1);
        names
    }

    fn of(ingress: &str, network: NetworkMode) -> (Vec<String>, Vec<String>) {
        let spec = DockerSpec {
            network,
            extra_hosts: vec!["DB-1:10.0.0.9".into()],
            ..DockerSpec::default()
        };
        let ContainerNames { hosts, variables } = names(ingress).of_container(&spec);
        (hosts, variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn a_container_reaches_services_by_their_names() {
        let variables = ["PODMESH_SERVICE_DB_1=db-1:5432", "PODMESH_SERVICE_WEB=web:9000"];
        for (ingress, network, address) in [
            ("all", NetworkMode::Bridge, "web:host-gateway"),
            ("127.0.0.1", NetworkMode::Bridge, "web:host-gateway"),
            ("10.0.0.5", NetworkMode::Bridge, "web:10.0.0.5"),
            ("127.0.0.1, 172.17.0.1", NetworkMode::Bridge, "web:172.17.0.1"),
            ("all", NetworkMode::Host, "web:127.0.0.1"),
            ("10.0.0.5", NetworkMode::Host, "web:10.0.0.5"),
        ] {
            let (hosts, all) = of(ingress, network);
            assert_eq!(hosts, ["DB-1:10.0.0.9", address], "{ingress} {network:?}");
            assert_eq!(all, variables, "{ingress} {network:?}");
        }
        let none = (vec!["DB-1:10.0.0.9".to_owned()], Vec::new());
        assert_eq!(of("all", NetworkMode::None), none);
    }

    #[test]
    fn in_a_container_with_networks_of_its_own_services_have_a_domain() {
        let networks = [("shop_default".parse().unwrap(), vec!["web".into()])].into();
        let spec = DockerSpec { networks, ..DockerSpec::default() };
        let ContainerNames { hosts, variables } = names("10.0.0.5").of_container(&spec);
        assert_eq!(hosts, ["db-1.podmesh:10.0.0.5", "web.podmesh:10.0.0.5"]);
        assert_eq!(variables[1].1, "web.podmesh:9000");
    }

    #[test]
    fn a_command_gets_the_address_of_the_proxy() {
        for (ingress, address) in [
            ("all", "127.0.0.1:9000"),
            ("127.0.0.2,172.17.0.1", "127.0.0.2:9000"),
            ("fd00::1", "[fd00::1]:9000"),
        ] {
            let names = names(ingress);
            let all: BTreeMap<_, _> = names.variables_of_command(&names.services()).collect();
            assert_eq!(all["PODMESH_SERVICE_WEB"], address);
        }
    }

    #[test]
    fn services_are_the_same_until_they_change() {
        let names = names("all");
        let before = names.services();
        names.apply(false, &[service("web", &[("admin", 9000)])], |_| true);
        assert!(Arc::ptr_eq(&before, &names.services()));
        names.apply(false, &[service("web", &[])], |_| true);
        assert_eq!(names.services().len(), 1);
        names.apply(false, &[service("web", &[("admin", 9000)])], |_| false);
        assert_eq!(names.services().len(), 1);
        names.apply(true, &[], |_| true);
        assert!(names.services().is_empty());
    }
}
