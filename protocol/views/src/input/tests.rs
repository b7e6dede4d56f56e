use std::sync::Arc;

use podmesh_protocol::service::{self, ServiceSpec};

use super::*;
use crate::json::SpecOutput;
use crate::service_spec::ServiceSpecOutput;

/// A container with all its options.
fn docker() -> DockerSpec {
    let docker = serde_json::json!({
        "image": "a", "entrypoint": ["b"], "user": "c",
        "mounts": [{"source": "/a", "target": "/b", "read_only": true}],
        "volumes": [{"volume": "v", "target": "/c", "read_only": false}],
        "tmpfs": {"/t": "size=1m"}, "read_only": true, "network": "host", "hostname": "h",
        "extra_hosts": ["a:1.2.3.4"], "pull": "never", "cap_add": ["CHOWN"],
        "cap_drop": ["ALL"], "security_opt": ["x"], "devices": ["/dev/x"], "pids": 5,
        "ulimits": {"nofile": {"soft": 1, "hard": 2}}, "shm_size": 9, "init": true,
        "tty": true, "stop_signal": "SIGINT", "labels": {"a": "b"}, "platform": "linux/arm64"
    });
    serde_json::from_value(docker).unwrap()
}

/// A run spec in which every option has another value than by default.
fn run_spec(runtime: RuntimeSpec, timeout_ms: Option<u64>) -> RunSpec {
    RunSpec {
        runtime,
        command: vec!["echo".into()],
        env: [("A".into(), "b".into())].into(),
        workdir: Some("/w".into()),
        files: [("/f".into(), "text".into())].into(),
        timeout_ms,
        stop_grace_ms: 7,
        replica: None,
    }
}

#[test]
fn a_job_that_a_reply_shows_can_be_sent_back() {
    for runtime in [RuntimeSpec::from(docker()), RuntimeSpec::Process, RuntimeSpec::Noop] {
        let spec = JobSpec {
            name: "a".parse().unwrap(),
            array: ArrayRange { first: 3, last: 9 },
            priority: 5,
            require: [("gpu".parse().unwrap(), "x".into())].into(),
            resources: Resources { cpu_millis: 5, memory_bytes: 6 },
            retry: RetryPolicy {
                retries: 1,
                backoff_ms: 2,
                backoff_ms_max: 3,
                on: None,
                not_on: None,
            },
            on_lost: WireOnLost::Requeue,
            rules: Default::default(),
            place: PlaceRules {
                resources: [("gpu".parse().unwrap(), 500)].into(),
                prefer: [("disk".parse().unwrap(), "fast".into())].into(),
                spread: Some("zone".parse().unwrap()),
                exclusive: true,
            }
            .into(),
            not_before_ms: Some(1_700_000_000_123),
            after: vec![Dependency { job: JobId(4), when: WireCondition::Each }],
            scheduled: None,
            dead_letter: None,
            workflow: None,
            run: run_spec(runtime, Some(8)),
        };
        let shown = serde_json::to_value(SpecOutput::from(&spec)).unwrap();
        let sent = serde_json::json!({ "name": "a", "priority": 5, "spec": shown });
        let input: JobInput = serde_json::from_value(sent).unwrap();
        assert_eq!(JobSpec::try_from(input), Ok(spec));
    }
}

#[test]
fn a_service_that_a_reply_shows_can_be_sent_back() {
    let port: Name = "http".parse().unwrap();
    for check in [
        service::HealthCheck::Tcp { port: port.clone() },
        service::HealthCheck::Http {
            port: port.clone(),
            path: "/x".into(),
            status: Some(204),
            headers: [("A".into(), "b".into())].into(),
        },
        service::HealthCheck::Command(vec!["true".into()]),
        service::HealthCheck::None,
    ] {
        let spec = ServiceSpec {
            name: "web".parse().unwrap(),
            replicas: 3,
            require: [("gpu".parse().unwrap(), "x".into())].into(),
            spread: Some("zone".parse().unwrap()),
            place: PlaceRules {
                resources: [("gpu".parse().unwrap(), 500)].into(),
                prefer: [("disk".parse().unwrap(), "fast".into())].into(),
                spread: None,
                exclusive: true,
            }
            .into(),
            project: Some(service::Project {
                name: "shop".parse().unwrap(),
                member: "web".parse().unwrap(),
                together: true,
            }),
            depends_on: [("db".parse().unwrap(), service::DependsOn::Healthy)].into(),
            resources: Resources { cpu_millis: 5, memory_bytes: 6 },
            ports: Arc::new(
                [(
                    port.clone(),
                    service::PortSpec {
                        container: Some(80),
                        publish: Some(81),
                        proxy_protocol: true,
                    },
                )]
                .into(),
            ),
            health: Some(
                service::HealthSpec {
                    check,
                    interval_ms: 1,
                    timeout_ms: 2,
                    start_period_ms: 3,
                    failures: 4,
                }
                .into(),
            ),
            restart: service::RestartPolicy {
                when: service::RestartWhen::OnFailure,
                backoff_ms: 1,
                backoff_ms_max: 2,
            },
            update: service::UpdatePolicy {
                max_surge: 2,
                min_healthy: Some(1),
                healthy_within_ms: 3,
                rollback: false,
            },
            drain_ms: 9,
            run: run_spec(RuntimeSpec::from(docker()), None),
        };
        let shown = serde_json::to_value(ServiceSpecOutput::from(&spec)).unwrap();
        let input: ServiceSpecInput = serde_json::from_value(shown).unwrap();
        assert_eq!(input.into_spec(spec.name.clone()), Ok(spec));
    }
}

#[test]
fn a_schedule_needs_one_rule() {
    let input = r#"{"every_ms": 5000, "overlap": "queue", "spec": {"command": ["true"]}}"#;
    let input: ScheduleInput = serde_json::from_str(input).unwrap();
    let spec = input.into_spec("a".parse().unwrap()).unwrap();
    assert_eq!((spec.catch_up_ms, spec.job.name.as_str()), (60_000, "a"));
    for wrong in [
        r#"{"spec": {}}"#,
        r#"{"every_ms": 1000, "cron": "* * * * *", "spec": {"command": ["true"]}}"#,
        r#"{"every_ms": 1000, "zone": "UTC", "spec": {"command": ["true"]}}"#,
    ] {
        let input: ScheduleInput = serde_json::from_str(wrong).unwrap();
        assert_eq!(input.into_spec("a".parse().unwrap()), Err(InputError::When), "{wrong}");
    }
}

#[test]
fn little_is_enough() {
    let job: JobInput =
        serde_json::from_str(r#"{"name": "a", "spec": {"command": ["true"]}}"#).unwrap();
    let wire = r#"{"name": "a", "run": {"runtime": "process", "command": ["true"]}}"#;
    assert_eq!(JobSpec::try_from(job), Ok(serde_json::from_str::<JobSpec>(wire).unwrap()));
    let service: ServiceSpecInput = serde_json::from_str(r#"{"command": ["true"]}"#).unwrap();
    assert_eq!(
        service.into_spec("a".parse().unwrap()),
        Ok(serde_json::from_str::<ServiceSpec>(wire).unwrap())
    );
    let wrong = r#"{"name": "a", "spec": {"runtime": "docker"}}"#;
    let job: JobInput = serde_json::from_str(wrong).unwrap();
    assert_eq!(JobSpec::try_from(job), Err(InputError::NoContainer));
}
