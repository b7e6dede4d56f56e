//! Joining, roles and revocation, over TLS and with real tokens.

use std::path::Path;

use podmesh_protocol::access::{JoinToken, Role, TokenId};
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody};
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::report::{Outcome, Report, ReportFact};
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::word::MaybeKnown;
use podmesh_wire::WireError;
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use podmesh_wire::route::Route;

use crate::support::*;

async fn token(client: &Client, role: Role, uses: u32) -> JoinToken {
    let body = RequestBody::TokenCreate { role, ttl_ms: 60_000, uses };
    match client.request(body).await.unwrap() {
        ReplyBody::TokenCreated { token, .. } => token.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn join(client: &Client, dir: &Path, role: Role, who: &str) -> Route {
    let token = token(client, role, 1).await;
    let dir = dir.join(who);
    let enrolment = Enrolment::join(&dir, &token, &who.parse().unwrap()).await.unwrap();
    assert_eq!((enrolment.role, enrolment.name.as_str()), (role, who));
    enrolment.route(&dir, None).unwrap()
}

#[tokio::test]
async fn a_viewer_may_look_but_not_submit() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let admin = manager.client().await;
    let route = join(&admin, dir.path(), Role::Viewer, "vera").await;
    let viewer = Client::connect(&route).await.unwrap();
    viewer.request(RequestBody::Nodes { after: None, limit: 1 }).await.unwrap();
    match viewer.request(submit_body(77, 1)).await {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Forbidden),
        other => panic!("{other:?}"),
    }
    manager.stop().await;
}

#[tokio::test]
async fn only_agents_get_sessions_and_each_only_as_its_own_node() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let admin = manager.client().await;
    submit(&admin, 1, 1).await;
    let one = join(&admin, dir.path(), Role::Agent, "one").await;
    let two = join(&admin, dir.path(), Role::Agent, "two").await;
    let operator = join(&admin, dir.path(), Role::Operator, "ann").await;

    let mut agent = Agent::connect_by(&one, hello("one", 1000, &[])).await;
    let attempt = agent.starts().await[0];

    let (mut receiver, mut sender) = PeerSocket::connect(&operator).await.unwrap().split();
    sender.send(&ToManager::Hello(hello("three", 1000, &[]))).await.unwrap();
    match within(receiver.recv()).await.unwrap() {
        ToPeer::Error(error) => assert_eq!(error.code, ErrorCode::Forbidden),
        other => panic!("{other:?}"),
    }
    let (mut receiver, mut sender) = PeerSocket::connect(&two).await.unwrap().split();
    sender.send(&ToManager::Hello(hello("one", 1000, &[]))).await.unwrap();
    match within(receiver.recv()).await.unwrap() {
        ToPeer::Refused(error) => assert_eq!(error.code, ErrorCode::Forbidden),
        other => panic!("{other:?}"),
    }
    // An agent cannot report in the session of another one, end it, or keep it alive.
    let ended = Report(1, attempt, ReportFact::Ended(Outcome::exited(0)));
    sender.send(&ToManager::Reports(agent.epoch(), vec![ended])).await.unwrap();
    assert_eq!(within(receiver.recv()).await.unwrap(), ToPeer::HelloAgain(agent.epoch()));
    sender.send(&ToManager::Goodbye(agent.epoch())).await.unwrap();
    assert_eq!(within(receiver.recv()).await.unwrap(), ToPeer::HelloAgain(agent.epoch()));
    let mut beats = two.heartbeats().await.unwrap();
    let beat = podmesh_wire::heartbeat::Beat { epoch: agent.epoch(), sequence: 1 };
    podmesh_wire::heartbeat::write_beat(&mut beats, &beat).await.unwrap();
    assert!(within(podmesh_wire::heartbeat::read_beat(&mut beats)).await.is_err());

    agent.end(attempt).await;
    manager.stop().await;
}

#[tokio::test]
async fn a_revocation_cuts_open_connections_and_is_permanent() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let admin = manager.client().await;
    let viewer = join(&admin, dir.path(), Role::Viewer, "ann").await;
    let node = join(&admin, dir.path(), Role::Agent, "one").await;
    let client = Client::connect(&viewer).await.unwrap();
    client.request(RequestBody::WhoAmI).await.unwrap();
    let mut agent = Agent::connect_by(&node, hello("one", 1000, &[])).await;

    for (kind, name) in [(PrincipalKind::User, "ann"), (PrincipalKind::Node, "one")] {
        let revoke = RequestBody::Revoke { kind, name: name.parse().unwrap() };
        assert_eq!(admin.request(revoke).await.unwrap(), ReplyBody::Revoked);
    }
    let ended = within(agent.receiver.recv()).await;
    assert!(matches!(ended, Err(WireError::Disconnected)), "{ended:?}");
    within(async { while client.request(RequestBody::WhoAmI).await.is_ok() {} }).await;
    event(&admin, |fact| {
        matches!(fact, EventFact::KeyRevoked { role: MaybeKnown::Known(Role::Agent), .. })
    })
    .await;

    // A restart or a new token does not help.
    manager.stop().await;
    let manager = start(dir.path()).await;
    let admin = manager.client().await;
    for (who, role) in [("ann", Role::Viewer), ("one", Role::Agent)] {
        let dir = dir.path().join(who);
        let token = token(&admin, role, 1).await;
        let error = Enrolment::join(&dir, &token, &who.parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("revoked"), "{error}");
        let address = manager.endpoint.address.into();
        let route = Enrolment::load(&dir).unwrap().route(&dir, Some(&address)).unwrap();
        let error = Client::connect(&route).await.err().unwrap();
        assert!(matches!(error, WireError::Refused { .. }), "{error:?}");
    }
    manager.stop().await;
}

#[tokio::test]
async fn a_token_is_used_once_and_its_use_is_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(dir.path()).await;
    let admin = manager.client().await;
    let token = token(&admin, Role::Agent, 1).await;
    let name = "one".parse().unwrap();
    Enrolment::join(&dir.path().join("a"), &token, &name).await.unwrap();
    let other = "two".parse().unwrap();
    let error = Enrolment::join(&dir.path().join("b"), &token, &other).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("used up") && said.contains("podmesh token create"), "{said}");
    let facts: Vec<_> = events(&admin).await.into_iter().map(|(_, fact)| fact).collect();
    assert!(
        matches!(
            &facts[..],
            [
                EventFact::TokenCreated {
                    token: TokenId(1),
                    role: MaybeKnown::Known(Role::Agent),
                    ..
                },
                EventFact::Enrolled { role: MaybeKnown::Known(Role::Agent), token: TokenId(1), .. },
                EventFact::JoinsRefused { count: 1, .. }
            ]
        ),
        "{facts:?}"
    );
    manager.stop().await;
}
