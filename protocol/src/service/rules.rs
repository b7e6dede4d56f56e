//! The rules for the spec of a service.

use std::collections::BTreeMap;

use super::{HealthCheck, HealthSpec, PortSpec, ServiceSpec, port_variable};
use crate::ids::Name;
use crate::limits::*;
use crate::spec::{RuntimeSpec, SpecError, VolumeMount, validate_label_value};

impl ServiceSpec {
    /// Checks every rule and limit.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        use crate::spec::{at_most, within};

        let text = |field, why: String| Err(SpecError::Text { field, why });
        within("replicas", self.replicas, 0..=i128::from(REPLICAS_MAX), Some("REPLICAS_MAX"))?;
        at_most("require", self.require.len(), "labels", LABELS_MAX, "LABELS_MAX")?;
        for value in self.require.values() {
            validate_label_value("require", value)?;
        }
        self.resources.validate()?;
        self.place.validate()?;
        if self.place.spread.is_some() {
            return text("place", "a service has its `spread` beside `place`, not in it".into());
        }
        let duration_max = i128::from(DURATION_MS_MAX);
        for (field, value) in [
            ("drain (ms)", self.drain_ms),
            ("restart: backoff (ms)", self.restart.backoff_ms),
            ("restart: longest backoff (ms)", self.restart.backoff_ms_max),
            ("update: healthy_within (ms)", self.update.healthy_within_ms),
        ] {
            within(field, value, 0..=duration_max, Some("DURATION_MS_MAX"))?;
        }
        within(
            "update: max_surge",
            self.update.max_surge,
            0..=i128::from(REPLICAS_MAX),
            Some("REPLICAS_MAX"),
        )?;
        if self.update.max_surge == 0
            && self.update.min_healthy.is_none_or(|least| least >= self.replicas.max(1))
        {
            let why = format!(
                "with max_surge = 0, min_healthy must be less than the number of replicas ({}): otherwise no replica could ever be replaced",
                self.replicas
            );
            return text("update", why);
        }
        let dependencies = self.depends_on.len();
        at_most("depends_on", dependencies, "services", DEPENDENCIES_MAX, "DEPENDENCIES_MAX")?;
        if self.depends_on.contains_key(&self.name) {
            return text("depends_on", "a service cannot wait for itself".into());
        }
        if self.run.replica.is_some() {
            return text("run", "contains a replica, which only the manager sets".into());
        }
        if self.run.timeout_ms.is_some() {
            return text("timeout", "a service has none: it keeps running".into());
        }
        self.run.validate()?;
        at_most("ports", self.ports.len(), "ports", PORTS_MAX, "PORTS_MAX")?;
        let is_container = matches!(self.run.runtime, RuntimeSpec::Docker(_));
        for (name, port) in self.ports.iter() {
            if port.container.is_some() != is_container {
                let why = if is_container {
                    format!("port `{name}` needs `container`: the port inside the container")
                } else {
                    format!(
                        "port `{name}` has `container`, but the service is a command: it must listen on the port in its environment variable {}",
                        port_variable(name)
                    )
                };
                return text("ports", why);
            }
            if port.container == Some(0) || port.publish == Some(0) {
                return text("ports", format!("port `{name}`: 0 is not a port"));
            }
            let variable = port_variable(name);
            let namesake = |other: &&Name| *other != name && port_variable(other) == variable;
            if let Some(other) = self.ports.keys().find(namesake) {
                let why = format!(
                    "`{name}` and `{other}` are too similar: both would be {variable} in the environment"
                );
                return text("ports", why);
            }
            let twin = self.ports.iter().find(|(other, their)| {
                *other != name && their.publish.is_some() && their.publish == port.publish
            });
            if let (Some((other, _)), Some(publish)) = (twin, port.publish) {
                return text("ports", format!("`{name}` and `{other}` both publish {publish}"));
            }
        }
        self.health.iter().try_for_each(|health| health.validate(&self.ports))
    }

    /// Returns whether replicas of this spec differ from replicas of another one, so that an update
    /// replaces them.
    pub fn replaces(&self, other: &Self) -> bool {
        let published = |spec: &Self| -> BTreeMap<Name, PortSpec> {
            let ports = spec.ports.iter();
            ports
                .map(|(name, port)| (name.clone(), PortSpec { publish: None, ..port.clone() }))
                .collect()
        };
        (&self.require, &self.spread, &self.resources, &self.health, &self.run)
            != (&other.require, &other.spread, &other.resources, &other.health, &other.run)
            || self.place != other.place
            || published(self) != published(other)
    }

    /// Returns how many replicas stay healthy during an update.
    pub fn min_healthy(&self) -> u32 {
        let most = self.replicas.saturating_sub(self.writes_volumes().into());
        self.update.min_healthy.unwrap_or(self.replicas).min(most)
    }

    /// Returns how many replicas more than wanted may exist during an update.
    pub fn max_surge(&self) -> u32 {
        if self.writes_volumes() { 0 } else { self.update.max_surge }
    }

    /// Returns the named volumes of its replicas.
    pub fn volumes(&self) -> &[VolumeMount] {
        self.run.volumes()
    }

    fn writes_volumes(&self) -> bool {
        self.volumes().iter().any(|volume| !volume.read_only)
    }
}

impl HealthSpec {
    fn validate(&self, ports: &BTreeMap<Name, PortSpec>) -> Result<(), SpecError> {
        use crate::spec::{no_nul, within};

        let text = |field, why: String| Err(SpecError::Text { field, why });
        let duration_max = i128::from(DURATION_MS_MAX);
        let limit = Some("DURATION_MS_MAX");
        within("health: interval (ms)", self.interval_ms, 1..=duration_max, limit)?;
        within("health: timeout (ms)", self.timeout_ms, 1..=duration_max, limit)?;
        within("health: start_period (ms)", self.start_period_ms, 0..=duration_max, limit)?;
        within(
            "health: failures",
            self.failures,
            1..=i128::from(RETRIES_MAX),
            Some("RETRIES_MAX"),
        )?;
        match &self.check {
            HealthCheck::Tcp { port } | HealthCheck::Http { port, .. }
                if !ports.contains_key(port) =>
            {
                return text("health", format!("there is no port `{port}`"));
            }
            HealthCheck::Http { path, status, headers, .. } => {
                let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
                if !path.starts_with('/') || !plain(path) || path.len() > PATH_BYTES_MAX {
                    let why = format!("`{}` is not a path such as /health", path.escape_debug());
                    return text("health: path", why);
                }
                if let Some(status) = status {
                    within("health: status", *status, 100..=599, None)?;
                }
                for (name, value) in headers {
                    let token =
                        |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
                    let sound = !name.is_empty()
                        && name.bytes().all(token)
                        && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
                    if !sound || name.len() + value.len() > PATH_BYTES_MAX {
                        let why = format!("`{}` is not a header", name.escape_debug());
                        return text("health: headers", why);
                    }
                }
            }
            HealthCheck::Command(command) => {
                if command.first().is_none_or(String::is_empty) {
                    return Err(SpecError::Empty { field: "health: command" });
                }
                let bytes: usize = command.iter().map(|arg| arg.len() + 1).sum();
                if bytes > PATH_BYTES_MAX {
                    let why = format!(
                        "{bytes} bytes are over the limit of {PATH_BYTES_MAX} (PATH_BYTES_MAX)"
                    );
                    return text("health: command", why);
                }
                command.iter().try_for_each(|arg| no_nul("health: command", arg))?;
            }
            HealthCheck::Tcp { .. } | HealthCheck::None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::service::service_variable;

    fn spec(json: &str) -> ServiceSpec {
        let mut value: serde_json::Value = serde_json::from_str(
            r#"{"name": "web", "replicas": 2, "run": {"runtime": "process", "command": ["x"]},
                "ports": {"http": {"publish": 80}}}"#,
        )
        .unwrap();
        let change: serde_json::Value = serde_json::from_str(json).unwrap();
        for (key, new) in change.as_object().unwrap() {
            value[key] = new.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        assert_eq!(spec("{}").validate(), Ok(()));
        for (json, said) in [
            (r#"{"replicas": 1001}"#, "REPLICAS_MAX"),
            (r#"{"ports": {"http": {"container": 80}}}"#, "PODMESH_PORT_HTTP"),
            (r#"{"ports": {"a": {"publish": 0}}}"#, "0 is not a port"),
            (r#"{"ports": {"a": {"publish": 1}, "b": {"publish": 1}}}"#, "both publish 1"),
            (r#"{"ports": {"Http": {}, "http": {}}}"#, "PODMESH_PORT_HTTP"),
            (r#"{"place": {"resources": {"gpu": 1500}}}"#, "must be a whole number"),
            (r#"{"place": {"spread": "zone"}}"#, "beside `place`"),
            (r#"{"health": {"check": {"tcp": {"port": "x"}}}}"#, "no port `x`"),
            (r#"{"health": {"check": {"http": {"port": "http", "path": "x"}}}}"#, "not a path"),
            (
                r#"{"health": {"check": {"http": {"port": "http", "path": "/",
                    "headers": {"A\r\nB": "x"}}}}}"#,
                "not a header",
            ),
            (r#"{"health": {"check": {"command": []}}}"#, "must not be empty"),
            (r#"{"health": {"check": "none", "failures": 0}}"#, "failures"),
            (
                r#"{"update": {"max_surge": 0, "min_healthy": 2, "healthy_within_ms": 1,
                    "rollback": true}}"#,
                "min_healthy must be less",
            ),
            (
                r#"{"run": {"runtime": "process", "command": ["x"], "timeout_ms": 1}}"#,
                "it keeps running",
            ),
        ] {
            let error = spec(json).validate().unwrap_err().to_string();
            assert!(error.contains(said), "{error:?} does not say {said:?}");
        }
    }

    #[test]
    fn a_change_that_a_replica_does_not_notice_replaces_none() {
        let before = spec("{}");
        for same in
            [r#"{"replicas": 5}"#, r#"{"drain_ms": 1}"#, r#"{"ports": {"http": {"publish": 81}}}"#]
        {
            assert!(!spec(same).replaces(&before), "{same}");
        }
        for other in [
            r#"{"spread": "zone"}"#,
            r#"{"ports": {}}"#,
            r#"{"resources": {"cpu_millis": 5}}"#,
            r#"{"place": {"resources": {"gpu": 500}}}"#,
        ] {
            assert!(spec(other).replaces(&before), "{other}");
        }
    }

    #[test]
    fn variables_have_names_that_shells_know() {
        assert_eq!(port_variable(&"grpc-web".parse().unwrap()), "PODMESH_PORT_GRPC_WEB");
        assert_eq!(service_variable(&"my.db".parse().unwrap()), "PODMESH_SERVICE_MY_DB");
    }
}
