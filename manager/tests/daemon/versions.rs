//! Peers of other versions of the protocol. There is only one version yet, but a manager and its
//! peers can be told to speak others.

use podmesh_manager::ManagerConfig;
use podmesh_protocol::access::{JoinToken, Role};
use podmesh_protocol::client::{Reply, ReplyBody, RequestBody};
use podmesh_protocol::codec;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::JobId;
use podmesh_protocol::session::{Hello, ToManager, ToPeer};
use podmesh_protocol::version::VersionRange;
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use rmpv::Value;

use crate::support::*;

fn range(oldest: u16, newest: u16) -> VersionRange {
    VersionRange { oldest, newest }
}

async fn manager_of(dir: &tempfile::TempDir, versions: VersionRange) -> Running {
    start_with(ManagerConfig { versions, ..patient(dir.path()) }).await
}

/// The manager's answer to the hello of an agent.
async fn answer(manager: &Running, version: u16, version_oldest: Option<u16>) -> ToPeer {
    let (mut receiver, mut sender) = PeerSocket::connect(&manager.route()).await.unwrap().split();
    let hello = Hello { version, version_oldest, ..hello("a", 1000, &[]) };
    sender.send(&ToManager::Hello(hello)).await.unwrap();
    within(receiver.recv()).await.unwrap()
}

#[tokio::test]
async fn a_session_has_the_highest_common_version() {
    for (manager_speaks, version, version_oldest, common) in [
        // Each with the neighbouring version, and with itself.
        (range(1, 2), 1, None, 1),
        (range(1, 1), 2, Some(1), 1),
        (range(1, 2), 2, Some(1), 2),
        (range(1, 2), 3, Some(2), 2),
        (range(2, 3), 2, Some(1), 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager_of(&dir, manager_speaks).await;
        match answer(&manager, version, version_oldest).await {
            ToPeer::Welcome(welcome) => assert_eq!(welcome.version, common),
            other => panic!("{other:?}"),
        }
        manager.stop().await;
    }
}

#[tokio::test]
async fn an_agent_without_a_common_version_is_told_what_to_upgrade() {
    for (manager_speaks, version, version_oldest, said) in [
        (
            range(2, 3),
            1,
            None,
            "the agent speaks version 1 of the protocol, and the manager speaks versions 2 to 3: upgrade podmesh on the machine of the agent",
        ),
        (
            range(1, 1),
            3,
            Some(2),
            "the agent speaks versions 2 to 3 of the protocol, and the manager speaks version 1: upgrade podmesh on the machine of the manager",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager_of(&dir, manager_speaks).await;
        match answer(&manager, version, version_oldest).await {
            ToPeer::Refused(ErrorReply { code, message, versions, .. }) => {
                assert_eq!(code, ErrorCode::UnsupportedVersion);
                assert_eq!((message.as_str(), versions), (said, Some(manager_speaks)));
            }
            other => panic!("{other:?}"),
        }
        manager.stop().await;
    }
}

#[tokio::test]
async fn a_client_uses_a_version_that_the_manager_speaks() {
    for (manager_speaks, client_speaks) in [
        (range(1, 2), range(1, 1)),
        (range(1, 1), range(1, 2)),
        (range(1, 2), range(2, 3)),
        (range(2, 3), range(1, 2)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager_of(&dir, manager_speaks).await;
        let client = Client::connect_speaking(&manager.route(), client_speaks).await.unwrap();
        // Also if the first request is not a question.
        assert_eq!(submit(&client, 1, 1).await, (JobId(1), false));
        match client.request(RequestBody::Info).await.unwrap() {
            ReplyBody::Info(info) => assert_eq!(info.version, manager_speaks.newest),
            other => panic!("{other:?}"),
        }
        assert_eq!(submit(&client, 2, 1).await, (JobId(2), false));
        manager.stop().await;
    }
}

#[tokio::test]
async fn a_client_without_a_common_version_is_told_what_to_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager_of(&dir, range(1, 1)).await;
    let client = Client::connect_speaking(&manager.route(), range(2, 3)).await.unwrap();
    let error = client.request(RequestBody::Info).await.unwrap_err();
    assert!(matches!(error, ClientError::NoCommonVersion(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "this client speaks versions 2 to 3 of the protocol, and the manager speaks version 1: upgrade podmesh on the machine of the manager"
    );
    manager.stop().await;
}

/// A request of a kind that the manager does not know.
fn unknown_request(version: u16, id: u64) -> Vec<u8> {
    let body = vec![("service_create".into(), Value::Map(vec![("name".into(), "web".into())]))];
    let request = Value::Map(vec![
        ("version".into(), version.into()),
        ("id".into(), id.into()),
        ("body".into(), Value::Map(body)),
    ]);
    let mut bytes = Vec::new();
    let message = Value::Map(vec![("request".into(), request)]);
    rmpv::encode::write_value(&mut bytes, &message).unwrap();
    bytes
}

#[tokio::test]
async fn the_answer_to_a_request_of_a_later_version_has_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager_of(&dir, range(1, 2)).await;
    let mut peer = RawPeer::connect(&manager).await;
    for (version, code, versions) in
        [(3, ErrorCode::UnsupportedVersion, Some(range(1, 2))), (2, ErrorCode::BadMessage, None)]
    {
        peer.send(&unknown_request(version, 7)).await;
        match codec::decode(&peer.recv().await).unwrap() {
            ToPeer::Reply(Reply { id: 7, result: Err(error) }) => {
                assert_eq!((error.code, error.versions), (code, versions), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    manager.stop().await;
}

async fn token(manager: &Running) -> JoinToken {
    let versions = range(1, u16::MAX);
    let client = Client::connect_speaking(&manager.route(), versions).await.unwrap();
    let body = RequestBody::TokenCreate { role: Role::Viewer, ttl_ms: 60_000, uses: 1 };
    match client.request(body).await.unwrap() {
        ReplyBody::TokenCreated { token, .. } => token.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_peer_joins_if_there_is_a_common_version() {
    let ours = VersionRange::SPOKEN;
    let later = range(ours.newest + 1, ours.newest + 2);
    for (manager_speaks, joins) in [(range(ours.newest, ours.newest + 1), true), (later, false)] {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager_of(&dir, manager_speaks).await;
        let token = token(&manager).await;
        let name = "ann".parse().unwrap();
        let joined = Enrolment::join(&dir.path().join("ann"), &token, &name).await;
        if joins {
            joined.unwrap();
        } else {
            let said = joined.unwrap_err().to_string();
            assert!(said.contains(&format!("speaks {ours} of the protocol")), "{said}");
            assert!(said.contains(&format!("the manager speaks {later}: ")), "{said}");
            assert!(
                said.ends_with("upgrade podmesh on the machine of the peer that joins"),
                "{said}"
            );
        }
        manager.stop().await;
    }
}
