//! The codec: encoded messages can be decoded, and no input does harm.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::client::{LogSlice, Reply, ReplyBody, Request, RequestBody};
use podmesh_protocol::codec::{DecodeError, EncodeError, decode, encode};
use podmesh_protocol::event::{EventChunk, EventFact, Published};
use podmesh_protocol::ids::{AttemptId, Epoch, InstanceId, JobId, Name, Revision};
use podmesh_protocol::limits::FRAME_BYTES_MAX;
use podmesh_protocol::node::{DrainSpec, Scheduling};
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::report::{Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::service::*;
use podmesh_protocol::session::{Hello, StopReason, ToManager, ToPeer};
use podmesh_protocol::spec::{DockerSpec, Resources, RunSpec, RuntimeKind, RuntimeSpec};
use proptest::prelude::*;
use uuid::Uuid;

fn attempts() -> impl Strategy<Value = AttemptId> {
    (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(j, i, n)| AttemptId::new(JobId(j), i, n))
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let kinds = prop::sample::select(vec![
        OutcomeKind::Succeeded,
        OutcomeKind::Failed,
        OutcomeKind::Cancelled,
        OutcomeKind::TimedOut,
        OutcomeKind::Lost,
    ]);
    let message = prop::option::of(".{0,40}");
    (kinds, any::<Option<i32>>(), any::<Option<i32>>(), any::<bool>(), message, any::<u64>())
        .prop_map(|(kind, exit_code, signal, oom_killed, message, ran_ms)| Outcome {
            kind,
            exit_code,
            signal,
            oom_killed,
            message,
            ran_ms,
        })
}

fn facts() -> impl Strategy<Value = ReportFact> {
    prop_oneof![
        ".{0,40}".prop_map(ReportFact::Preparing),
        Just(ReportFact::Started),
        outcomes().prop_map(ReportFact::Ended),
        ".{0,40}".prop_map(ReportFact::LogGap),
        prop::collection::vec(any::<u16>(), 0..4).prop_map(ReportFact::Listening),
        (healths(), ".{0,40}").prop_map(|(health, text)| ReportFact::Health(health, text)),
    ]
}

fn healths() -> impl Strategy<Value = Health> {
    prop::sample::select(vec![Health::Starting, Health::Healthy, Health::Unhealthy])
}

fn names() -> impl Strategy<Value = Name> {
    "[a-z][a-z0-9.-]{0,20}".prop_map(|name| name.parse().unwrap())
}

fn ports() -> impl Strategy<Value = BTreeMap<Name, PortSpec>> {
    let port = (any::<Option<u16>>(), any::<Option<u16>>(), any::<bool>()).prop_map(
        |(container, publish, proxy_protocol)| PortSpec { container, publish, proxy_protocol },
    );
    prop::collection::btree_map(names(), port, 0..3)
}

fn checks() -> impl Strategy<Value = HealthSpec> {
    let headers = prop::collection::btree_map(".{0,9}", ".{0,9}", 0..3);
    let check = prop_oneof![
        names().prop_map(|port| HealthCheck::Tcp { port }),
        (names(), ".{0,20}", any::<Option<u16>>(), headers).prop_map(
            |(port, path, status, headers)| HealthCheck::Http { port, path, status, headers }
        ),
        prop::collection::vec(".{0,20}", 0..3).prop_map(HealthCheck::Command),
        Just(HealthCheck::None),
    ];
    (check, any::<[u64; 3]>(), any::<u32>()).prop_map(|(check, ms, failures)| {
        let [interval_ms, timeout_ms, start_period_ms] = ms;
        HealthSpec { check, interval_ms, timeout_ms, start_period_ms, failures }
    })
}

fn projects() -> impl Strategy<Value = Option<Project>> {
    let project = (names(), names(), any::<bool>()).prop_map(|(name, member, together)| Project {
        name,
        member,
        together,
    });
    prop::option::of(project)
}

fn dependencies() -> impl Strategy<Value = BTreeMap<Name, DependsOn>> {
    let needs =
        prop::sample::select(vec![DependsOn::Started, DependsOn::Healthy, DependsOn::Completed]);
    prop::collection::btree_map(names(), needs, 0..3)
}

fn service_specs() -> impl Strategy<Value = ServiceSpec> {
    let when =
        prop::sample::select(vec![RestartWhen::Always, RestartWhen::OnFailure, RestartWhen::Never]);
    let restart = (when, any::<[u64; 2]>()).prop_map(|(when, [backoff_ms, backoff_ms_max])| {
        RestartPolicy { when, backoff_ms, backoff_ms_max }
    });
    let update = (any::<u32>(), any::<Option<u32>>(), any::<u64>(), any::<bool>()).prop_map(
        |(max_surge, min_healthy, healthy_within_ms, rollback)| UpdatePolicy {
            max_surge,
            min_healthy,
            healthy_within_ms,
            rollback,
        },
    );
    let spread = || prop::option::of(names());
    let replica = (names(), any::<[u32; 2]>(), spread(), ports(), prop::option::of(checks()))
        .prop_map(|(service, [revision, number], spread, ports, health)| {
            Box::new(ReplicaSpec {
                service,
                revision,
                number,
                spread,
                ports: ports.into(),
                health: health.map(Arc::new),
            })
        });
    let run = (".{0,20}", any::<bool>(), prop::option::of(replica)).prop_map(
        |(image, container, replica)| RunSpec {
            runtime: match container {
                true => RuntimeSpec::from(DockerSpec { image, ..DockerSpec::default() }),
                false => RuntimeSpec::Process,
            },
            command: vec!["x".into()],
            env: [].into(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 10_000,
            replica,
            files: [].into(),
        },
    );
    let head = (names(), any::<u32>(), (spread(), projects(), dependencies()), any::<u64>());
    let labels = prop::collection::btree_map(names(), ".{0,9}", 0..3);
    (head, labels, ports(), prop::option::of(checks()), restart, update, run).prop_map(
        |((name, replicas, place, drain_ms), require, ports, health, restart, update, run)| {
            let (spread, project, depends_on) = place;
            let resources = Resources::default();
            ServiceSpec {
                name,
                replicas,
                place: PlaceRules {
                    exclusive: replicas % 2 == 0,
                    prefer: require.clone(),
                    ..PlaceRules::default()
                }
                .into(),
                require,
                spread,
                project,
                depends_on,
                resources,
                ports: ports.into(),
                health: health.map(Arc::new),
                restart,
                update,
                drain_ms,
                run,
            }
        },
    )
}

fn service_requests() -> impl Strategy<Value = RequestBody> {
    use ServiceRequest::*;

    let spec = || service_specs().prop_map(Box::new);
    let request = prop_oneof![
        spec().prop_map(|spec| Apply { spec }),
        spec().prop_map(|spec| Plan { spec }),
        (names(), any::<u32>()).prop_map(|(service, replicas)| Scale { service, replicas }),
        (names(), any::<Option<u32>>()).prop_map(|(service, to)| Rollback { service, to }),
        names().prop_flat_map(|service| {
            prop::sample::select(vec![
                Restart { service: service.clone() },
                Stop { service: service.clone() },
                Start { service: service.clone() },
                Remove { service: service.clone() },
                History { service },
            ])
        }),
        (prop::option::of(names()), any::<u32>()).prop_map(|(after, limit)| List { after, limit }),
        (names(), any::<Option<u64>>(), any::<u32>()).prop_map(|(service, since, wait_ms)| {
            Show { service, since: since.map(Revision), wait_ms }
        }),
    ];
    let scheduling =
        prop::sample::select(vec![Scheduling::Open, Scheduling::Cordoned, Scheduling::Draining]);
    prop_oneof![
        8 => request.prop_map(RequestBody::Service),
        1 => (names(), scheduling)
            .prop_map(|(node, scheduling)| RequestBody::NodeScheduling { node, scheduling, drain: DrainSpec::default() }),
        1 => (prop::option::of(names()), any::<Option<u32>>()).prop_map(|(service, replica)| {
            RequestBody::Jobs { before: None, active: true, by: None, service, replica, limit: 1 }
        }),
    ]
}

fn service_views() -> impl Strategy<Value = ServiceView> {
    use ServiceState::*;

    let state =
        prop::sample::select(vec![Healthy, Degraded, Updating, RollingBack, Stopped, Removing]);
    let published = prop::collection::btree_map(names(), any::<u16>(), 0..3);
    (names(), state, any::<[u32; 4]>(), ".{0,20}", published, projects()).prop_map(
        |(service, state, numbers, runs, published, project)| {
            let [revision, replicas, healthy, existing] = numbers;
            ServiceView {
                service,
                state: state.into(),
                revision,
                replicas,
                healthy,
                existing,
                runs,
                published,
                project,
            }
        },
    )
}

fn replica_views() -> impl Strategy<Value = ReplicaView> {
    use ReplicaState::*;

    let state = prop::sample::select(vec![
        Queued,
        Preparing,
        Starting,
        Healthy,
        Unhealthy,
        Unreachable,
        Draining,
        Stopping,
        Restarting,
        Ended,
        Waiting,
    ]);
    let place = (prop::option::of(attempts()), prop::option::of(names()));
    let endpoints = prop::collection::btree_map(names(), ".{0,20}", 0..3);
    let message = prop::option::of(".{0,40}");
    (state, any::<[u32; 3]>(), place, endpoints, message, any::<Option<u64>>()).prop_map(
        |(state, [number, revision, failures], (attempt, node), endpoints, message, ms)| {
            let restarts_in_ms = ms;
            ReplicaView {
                number,
                revision,
                state: state.into(),
                attempt,
                node,
                endpoints,
                message,
                failures,
                restarts_in_ms,
            }
        },
    )
}

fn service_replies() -> impl Strategy<Value = ReplyBody> {
    let texts = || prop::collection::vec(".{0,40}", 0..3);
    let changed =
        (names(), any::<u32>(), any::<bool>()).prop_map(|(service, revision, changed)| {
            ServiceReply::Changed { service, revision, changed }
        });
    let before = prop::option::of(service_specs().prop_map(Box::new));
    let placements = prop::collection::btree_map(names(), any::<u32>(), 0..3);
    let plan = (before, any::<bool>(), placements, any::<u32>(), texts()).prop_map(
        |(before, replaces, placements, waiting, waits_for)| {
            ServiceReply::Plan(ServicePlan { before, replaces, placements, waiting, waits_for })
        },
    );
    let list = prop::collection::vec(service_views(), 0..3).prop_map(ServiceReply::List);
    let replicas = prop::collection::vec(replica_views(), 0..3);
    let failed = prop::option::of(".{0,40}");
    let texts = (texts(), failed, texts());
    let detail = (service_views(), service_specs(), any::<u64>(), replicas, texts).prop_map(
        |(view, spec, changed, replicas, (waits_for, failed_update, closed_ports))| {
            let changed = Revision(changed);
            ServiceReply::Service(Box::new(ServiceDetail {
                view,
                spec,
                changed,
                replicas,
                waits_for,
                failed_update,
                closed_ports,
            }))
        },
    );
    let state = prop::sample::select(vec![
        RevisionState::Begun,
        RevisionState::Reached,
        RevisionState::Failed,
    ]);
    let row = (service_specs(), names(), any::<(u32, u64)>(), state, prop::option::of(".{0,40}"))
        .prop_map(|(spec, by, (revision, applied_wall_ms), state, message)| ServiceRevision {
            revision,
            spec,
            by,
            applied_wall_ms,
            state: state.into(),
            message,
        });
    let history = prop::collection::vec(row, 0..2).prop_map(ServiceReply::History);
    prop_oneof![changed, plan, list, detail, history].prop_map(ReplyBody::Service)
}

fn endpoints() -> impl Strategy<Value = ToPeer> {
    let ready = prop::collection::vec((attempts(), ".{0,20}"), 0..3);
    let port = (names(), any::<u16>(), any::<bool>(), ready).prop_map(
        |(port, publish, proxy_protocol, endpoints)| PortEndpoints {
            port,
            publish,
            proxy_protocol,
            endpoints,
        },
    );
    let service = (names(), prop::collection::vec(port, 0..3))
        .prop_map(|(service, ports)| ServiceEndpoints { service, ports });
    (any::<[u64; 2]>(), any::<bool>(), prop::collection::vec(service, 0..3)).prop_map(
        |([epoch, update], all, services)| ToPeer::Endpoints {
            epoch: Epoch(epoch),
            update,
            all,
            services,
        },
    )
}

fn to_peer() -> impl Strategy<Value = ToPeer> {
    let reply = |(id, body)| ToPeer::Reply(Reply { id, result: Ok(body) });
    prop_oneof![(any::<u64>(), service_replies()).prop_map(reply), endpoints()]
}

fn to_manager() -> impl Strategy<Value = ToManager> {
    let report = (any::<u64>(), attempts(), facts()).prop_map(|(n, a, f)| Report(n, a, f));
    let hello = ("[a-z][a-z0-9.-]{0,20}", prop::collection::vec(attempts(), 0..5)).prop_map(
        |(node, attempts)| {
            ToManager::Hello(Hello {
                version: 1,
                version_oldest: Some(1),
                node: node.parse().unwrap(),
                boot_id: "b".into(),
                agent_instance: InstanceId(Uuid::nil()),
                agent_id: None,
                cluster: None,
                program_version: "0".into(),
                capacity: Resources::default(),
                labels: BTreeMap::from([("gpu".parse().unwrap(), "a100".into())]),
                runtimes: vec![RuntimeKind::Process.into(), RuntimeKind::Docker.into()],
                withdrawn: [].into(),
                unenforced: [].into(),
                low_disks: [].into(),
                address: Some("10.0.0.1".into()),
                resources: Default::default(),
                attempts,
            })
        },
    );
    let applied = any::<[u64; 3]>().prop_map(|[epoch, applied, drained]| {
        ToManager::EndpointsApplied { epoch: Epoch(epoch), applied, drained }
    });
    let closed = (any::<u64>(), prop::collection::btree_map(any::<u16>(), ".{0,40}", 0..3));
    let closed =
        closed.prop_map(|(epoch, closed)| ToManager::PortsClosed { epoch: Epoch(epoch), closed });
    let request = (any::<u64>(), service_requests())
        .prop_map(|(id, body)| ToManager::Request(Request { version: 1, id, body }));
    prop_oneof![
        hello,
        applied,
        closed,
        request,
        (any::<u64>(), prop::collection::vec(report, 0..20))
            .prop_map(|(epoch, reports)| ToManager::Reports(Epoch(epoch), reports)),
        any::<u64>().prop_map(|epoch| ToManager::Goodbye(Epoch(epoch))),
    ]
}

proptest! {
    #[test]
    fn an_encoded_message_can_be_decoded(message in to_manager()) {
        prop_assert_eq!(decode::<ToManager>(&encode(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn what_the_manager_sends_about_services_can_be_decoded(message in to_peer()) {
        prop_assert_eq!(decode::<ToPeer>(&encode(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn a_truncated_or_changed_message_is_an_error_or_another_message(
        message in to_manager(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode(&message).unwrap();
        let at = at.index(bytes.len());
        prop_assert!(decode::<ToManager>(&bytes[..at]).is_err());
        bytes[at] = byte;
        _ = decode::<ToManager>(&bytes);
        _ = decode::<ToPeer>(&bytes);
    }

    #[test]
    fn decoding_any_bytes_is_safe(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        _ = decode::<ToManager>(&bytes);
        _ = decode::<ToPeer>(&bytes);
        _ = decode::<Published>(&bytes);
    }

    #[test]
    fn chunks_keep_their_revisions(first in 1..u64::MAX / 2, n in 1..50u32) {
        let facts: Vec<_> = (1..=n)
            .map(|i| EventFact::AttemptStarted { attempt: AttemptId::new(JobId(1), i, 1) })
            .collect();
        let chunk = EventChunk { first: Revision(first), wall_ms: 7, facts };
        prop_assert_eq!(chunk.last(), Revision(first + u64::from(n) - 1));
        prop_assert_eq!(chunk.iter().last().unwrap().0, chunk.last());
        prop_assert_eq!(decode::<EventChunk>(&encode(&chunk).unwrap()).unwrap(), chunk);
    }
}

#[test]
fn rows_of_batches_are_compact_arrays() {
    let starts = ToPeer::Starts(Epoch(1), vec![AttemptId::new(JobId(2), 3, 4)]);
    // {"starts": [1, [[2, 3, 4]]]}
    assert_eq!(encode(&starts).unwrap(), b"\x81\xa6starts\x92\x01\x91\x93\x02\x03\x04");
    let stops = ToPeer::Stops(Epoch(1), vec![(AttemptId::new(JobId(2), 3, 4), StopReason::Fenced)]);
    assert_eq!(encode(&stops).unwrap(), b"\x81\xa5stops\x92\x01\x91\x92\x93\x02\x03\x04\xa6fenced");
}

#[test]
fn a_spec_of_a_service_needs_only_a_name_and_what_to_run() {
    // {"name": "web", "run": {"runtime": "process", "command": ["x"]}}
    let bytes = b"\x82\xa4name\xa3web\xa3run\x82\xa7runtime\xa7process\xa7command\x91\xa1x";
    let spec: ServiceSpec = rmp_serde::from_slice(bytes).unwrap();
    assert_eq!((spec.replicas, spec.drain_ms, spec.health.is_none()), (1, 10_000, true));
    assert_eq!(spec.restart, RestartPolicy::default());
    assert_eq!(spec.update, UpdatePolicy::default());
    assert_eq!(spec.validate(), Ok(()));
}

#[test]
fn unknown_keys_are_ignored() {
    // {"reply": {"id": 7, "later": [1, {"a": nil}], "result": {"Ok": {"cancelled": {"state": "queued", "x": 1}}}}}
    let bytes = b"\x81\xa5reply\x83\xa2id\x07\xa5later\x92\x01\x81\xa1a\xc0\xa6result\x81\xa2Ok\x81\xa9cancelled\x82\xa5state\xa6queued\xa1x\x01";
    let message: ToPeer = decode(bytes).unwrap();
    assert!(matches!(
        message,
        ToPeer::Reply(Reply { id: 7, result: Ok(ReplyBody::Cancelled { .. }) })
    ));
}

#[test]
fn limits_apply_in_both_directions() {
    let slice = LogSlice { offset: 0, bytes: vec![0; FRAME_BYTES_MAX], end: false, removed: false };
    let message = ToManager::LogSlice(1, Ok(slice));
    assert!(matches!(encode(&message), Err(EncodeError::TooLarge { .. })));
    let bytes = vec![0; FRAME_BYTES_MAX + 1];
    assert!(matches!(decode::<ToPeer>(&bytes), Err(DecodeError::TooLarge { .. })));
    let mut two = encode(&ToManager::Goodbye(Epoch(1))).unwrap();
    two.push(0);
    assert!(matches!(decode::<ToManager>(&two), Err(DecodeError::Trailing { bytes: 1 })));
}

#[test]
fn deep_nesting_and_huge_lengths_are_harmless() {
    // Arrays in arrays, a thousand deep; then an array and a map that claim 2^32 - 1 entries.
    assert!(decode::<ToManager>(&[0x91; 1000]).is_err());
    for head in [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"] {
        assert!(decode::<ToManager>(head).is_err());
        let mut reports = b"\x81\xa7reports\x92\x01".to_vec();
        reports.extend(head);
        assert!(decode::<ToManager>(&reports).is_err());
    }
    // An unknown key with a deep value is ignored or rejected; it never overflows the stack.
    let mut unknown = b"\x81\xa5hello\x81\xa1x".to_vec();
    unknown.extend([0x91; 100_000]);
    assert!(decode::<ToManager>(&unknown).is_err());
}
