//! The typed sockets connected through the front: over the network and on one machine.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::time::Duration;

use podmesh_protocol::client::{Reply, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{EventChunk, EventFact, Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{Epoch, InstanceId, JobId, Revision};
use podmesh_protocol::report::JobState;
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_protocol::version::{NoCommonVersion, VersionRange};
use podmesh_wire::WireError;
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::control::PeerSocket;
use podmesh_wire::publish::Subscriber;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketSend, ZmqMessage};

use support::{PATIENCE, TestManager};

#[tokio::test]
async fn messages_cross_both_ways() {
    let mut manager = TestManager::start().await;
    for route in manager.routes() {
        let socket = PeerSocket::connect(&route).await.unwrap();
        let is_remote = matches!(route, podmesh_wire::route::Route::Remote { .. });
        assert_eq!(socket.local_address(), is_remote.then_some([127, 0, 0, 1].into()));
        let (mut peer_receiver, mut peer_sender) = socket.split();
        peer_sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
        let peer = manager.next_goodbye().await;
        manager.sender.send(&peer, &ToPeer::HelloAgain(Epoch(3))).await.unwrap();
        assert_eq!(peer_receiver.recv().await.unwrap(), ToPeer::HelloAgain(Epoch(3)));
    }
}

#[tokio::test]
async fn bytes_that_are_not_a_message_are_recognized_and_harmless() {
    let TestManager { mut receiver, mut sender, local, _running, publisher: _publisher, .. } =
        TestManager::start().await;
    let mut vandal = DealerSocket::new();
    let path = local.path().join("control.sock");
    vandal.connect(&format!("ipc://{}", path.display())).await.unwrap();
    vandal.send(ZmqMessage::from(vec![0xc1, 0, 0xff])).await.unwrap();
    let received = receiver.recv().await.unwrap();
    assert!(matches!(received.message, Err(WireError::Decode(_))), "{received:?}");
    let mut two = ZmqMessage::from("a");
    two.push_back("b".into());
    vandal.send(two).await.unwrap();
    let received = receiver.recv().await.unwrap();
    assert!(matches!(received.message, Err(WireError::Frames { frames: 2, expected: 1 })));
    let error = ErrorReply::new(ErrorCode::BadMessage, "no");
    sender.send(&received.peer, &ToPeer::Error(error)).await.unwrap();

    let route = podmesh_wire::route::Route::Local(local.path().into());
    let (_, mut honest) = PeerSocket::connect(&route).await.unwrap().split();
    honest.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    assert!(receiver.recv().await.unwrap().message.is_ok());
}

#[tokio::test]
async fn the_manager_is_informed_of_the_end_of_a_connection_after_its_messages() {
    let mut manager = TestManager::start().await;
    for route in manager.routes() {
        for _ in 0..20 {
            let (receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
            for epoch in 1..=5 {
                sender.send(&ToManager::Goodbye(Epoch(epoch))).await.unwrap();
            }
            drop((receiver, sender));
            let mut peer = None;
            for epoch in 1..=5 {
                let received = timeout(PATIENCE, manager.receiver.recv()).await.unwrap().unwrap();
                assert_eq!(received.message.unwrap(), ToManager::Goodbye(Epoch(epoch)));
                assert_eq!(*peer.get_or_insert(received.peer.clone()), received.peer);
            }
            let peer = peer.unwrap();
            manager.gone(&peer).await;
            // A message to it is lost, and disturbs nobody.
            manager.sender.send(&peer, &ToPeer::HelloAgain(Epoch(3))).await.unwrap();
        }
        // A peer that never sent anything is not mentioned.
        drop(PeerSocket::connect(&route).await.unwrap());
        let (_receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
        sender.send(&ToManager::Goodbye(Epoch(9))).await.unwrap();
        let received = timeout(PATIENCE, manager.receiver.recv()).await.unwrap().unwrap();
        assert_eq!(received.message.unwrap(), ToManager::Goodbye(Epoch(9)));
        drop((_receiver, sender));
        manager.gone(&received.peer).await;
    }
}

/// Returns a reply of about 100 kB.
fn large_reply(id: u64) -> ToPeer {
    let error = ErrorReply::new(ErrorCode::NotFound, "x".repeat(100_000));
    ToPeer::Reply(Reply { id, result: Err(error) })
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_without_effect_on_others() {
    let mut manager = TestManager::start().await;
    let (_deaf, mut sender) = PeerSocket::connect(&manager.remote).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    let deaf = manager.next_goodbye().await;
    let (mut receiver, mut sender) = PeerSocket::connect(&manager.remote).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(2))).await.unwrap();
    let reader = manager.next_goodbye().await;
    // Five times as much as a client may leave unread.
    for id in 0..800 {
        manager.sender.send(&deaf, &large_reply(id)).await.unwrap();
        manager.sender.send(&reader, &large_reply(id)).await.unwrap();
        let read = timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap();
        assert_eq!(read, large_reply(id));
    }
    manager.gone(&deaf).await;
    manager.gate.refused_for("CLIENT_UNREAD_BYTES_MAX").await;
}

#[tokio::test]
async fn nothing_is_read_from_a_peer_that_does_not_read() {
    let mut manager = TestManager::start().await;
    let [_, local] = manager.routes();
    let (mut receiver, mut sender) = PeerSocket::connect(&local).await.unwrap().split();
    sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    let peer = manager.next_goodbye().await;
    // More than the system buffers for a unix socket, so that some wait at the front.
    for id in 0..150 {
        manager.sender.send(&peer, &large_reply(id)).await.unwrap();
    }
    // When a message to another peer has arrived, all of these are at the front.
    let (mut other, mut other_sender) = PeerSocket::connect(&local).await.unwrap().split();
    other_sender.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    let identity = manager.next_goodbye().await;
    manager.sender.send(&identity, &large_reply(0)).await.unwrap();
    timeout(PATIENCE, other.recv()).await.unwrap().unwrap();
    sender.send(&ToManager::Goodbye(Epoch(2))).await.unwrap();
    sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
    let mut heard = 0;
    // The first request may have been received before the replies.
    while timeout(Duration::from_millis(200), manager.receiver.recv()).await.is_ok() {
        heard += 1;
    }
    assert!(heard < 2, "its requests were read although it did not read");
    for id in 0..150 {
        assert_eq!(timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap(), large_reply(id));
    }
    for _ in heard..2 {
        manager.next_goodbye().await;
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_misses_publications_and_stays() {
    let mut manager = TestManager::start().await;
    let [_, local] = manager.routes();
    let mut deaf = Subscriber::connect(&local, &[TOPIC_EVENTS]).await.unwrap();
    let mut reader = Subscriber::connect(&local, &[TOPIC_EVENTS]).await.unwrap();
    let published = |last| {
        let facts = vec![EventFact::ConnectionsRefused { message: "y".repeat(60_000), count: 1 }];
        let chunk = EventChunk { first: Revision(last), wall_ms: 0, facts };
        Published::Events { since: Revision(last - 1), last: Revision(last), chunk: Some(chunk) }
    };
    // A subscription takes effect with a delay: publish until a message arrives.
    for subscriber in [&mut deaf, &mut reader] {
        let first = timeout(PATIENCE, async {
            loop {
                manager.publisher.publish(TOPIC_EVENTS, &published(1)).await.unwrap();
                if let Ok(received) = timeout(Duration::from_millis(20), subscriber.recv()).await {
                    return received.unwrap();
                }
            }
        });
        assert_eq!(first.await.unwrap(), published(1));
    }
    // 18 MB: more than the front and the system buffer.
    for last in 2..300 {
        manager.publisher.publish(TOPIC_EVENTS, &published(last)).await.unwrap();
        while timeout(PATIENCE, reader.recv()).await.unwrap().unwrap() != published(last) {}
    }
    let mut received = 0;
    let end = async {
        loop {
            match timeout(Duration::from_millis(20), deaf.recv()).await {
                Ok(publication) => {
                    received += 1;
                    if publication.unwrap() == published(1000) {
                        return;
                    }
                }
                Err(_) => {
                    manager.publisher.publish(TOPIC_EVENTS, &published(1000)).await.unwrap();
                }
            }
        }
    };
    timeout(PATIENCE, end).await.unwrap();
    assert!(received < 200, "{received} were kept");
}

#[tokio::test]
async fn an_unreachable_manager_is_an_immediate_error_with_the_address() {
    let manager = TestManager::start().await;
    let routes = manager.routes();
    manager.stop().await;
    for route in routes {
        let said = PeerSocket::connect(&route).await.err().unwrap().to_string();
        assert!(said.contains(&route.to_string()), "{said}");
    }
}

fn cancel(job: u64) -> RequestBody {
    RequestBody::Cancel { job: JobId(job), downstream: false }
}

#[tokio::test]
async fn whoever_asks_connects_once() {
    let mut manager = TestManager::start().await;
    for (asked, route) in manager.routes().into_iter().enumerate() {
        let client = Client::connect(&route).await.unwrap();
        let server = async {
            let received = manager.receiver.recv().await.unwrap();
            let Ok(ToManager::Request(request)) = received.message else { panic!("{received:?}") };
            let result =
                Ok(ReplyBody::Cancelled { state: JobState::Cancelling.into(), downstream: 0 });
            let reply = ToPeer::Reply(Reply { id: request.id, result });
            manager.sender.send(&received.peer, &reply).await.unwrap();
        };
        let (reply, ()) = tokio::join!(client.request(cancel(1)), server);
        reply.unwrap();
        assert_eq!(manager.gate.cuts.lock().unwrap().len(), asked + 1);
        drop(client);
        let gone = manager.receiver.recv().await.unwrap();
        assert!(matches!(gone.message, Err(WireError::PeerGone)), "{gone:?}");
    }
}

#[tokio::test]
async fn a_refused_version_is_replaced_once_and_for_later_requests() {
    let TestManager { mut receiver, mut sender, remote, _running, publisher: _publisher, .. } =
        TestManager::start().await;
    let range = |oldest, newest| VersionRange { oldest, newest };
    let client = Client::connect_speaking(&remote, range(1, 3)).await.unwrap();
    // Answers a request like a manager that speaks these versions. Returns the request's version.
    let mut answer = async |manager: VersionRange| {
        let received = receiver.recv().await.unwrap();
        let Ok(ToManager::Request(request)) = received.message else { panic!("{received:?}") };
        let result = if manager.contains(request.version) {
            Ok(ReplyBody::TokenRevoked)
        } else {
            let theirs = VersionRange::sent(request.version, None);
            Err(NoCommonVersion { peer: "the client", theirs, manager }.into())
        };
        let reply = ToPeer::Reply(Reply { id: request.id, result });
        sender.send(&received.peer, &reply).await.unwrap();
        request.version
    };
    let first = async { [answer(range(1, 2)).await, answer(range(1, 2)).await] };
    let (reply, versions) = tokio::join!(client.request(cancel(1)), first);
    assert_eq!((reply.unwrap(), versions), (ReplyBody::TokenRevoked, [3, 2]));
    let (reply, version) = tokio::join!(client.request(cancel(1)), answer(range(1, 2)));
    assert_eq!((reply.unwrap(), version), (ReplyBody::TokenRevoked, 2));

    // A manager that refuses each version of its own range is asked no more than twice.
    let twice = async { [answer(range(1, 1)).await, answer(range(3, 3)).await] };
    let (reply, versions) = tokio::join!(client.request(cancel(1)), twice);
    assert!(matches!(reply, Err(ClientError::Refused(_))), "{reply:?}");
    assert_eq!(versions, [2, 1]);

    let (reply, _) = tokio::join!(client.request(cancel(1)), answer(range(4, 5)));
    let error = reply.unwrap_err().to_string();
    assert!(error.contains("versions 1 to 3") && error.contains("versions 4 to 5"), "{error}");
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let TestManager { mut receiver, mut sender, remote, _running, publisher: _publisher, .. } =
        TestManager::start().await;
    let client = Client::connect(&remote).await.unwrap();
    let server = async {
        let mut requests = Vec::new();
        while requests.len() < 2 {
            let received = receiver.recv().await.unwrap();
            let Ok(ToManager::Request(request)) = received.message else { panic!("{received:?}") };
            requests.push((received.peer, request));
        }
        for (peer, request) in requests.into_iter().rev() {
            let result = if request.body == cancel(1) {
                Ok(ReplyBody::Cancelled { state: JobState::Cancelling.into(), downstream: 0 })
            } else {
                Err(ErrorReply::new(ErrorCode::NotFound, "no such job"))
            };
            let reply = ToPeer::Reply(Reply { id: request.id, result });
            sender.send(&peer, &reply).await.unwrap();
        }
    };
    let (one, two, ()) = tokio::join!(client.request(cancel(1)), client.request(cancel(2)), server);
    assert_eq!(
        one.unwrap(),
        ReplyBody::Cancelled { state: JobState::Cancelling.into(), downstream: 0 }
    );
    assert!(matches!(two, Err(ClientError::Refused(_))), "{two:?}");
}

#[tokio::test]
async fn a_request_fails_at_once_when_the_manager_is_gone() {
    let TestManager { mut receiver, sender, remote, _running, publisher: _publisher, .. } =
        TestManager::start().await;
    let client = Client::connect(&remote).await.unwrap();
    let server = async {
        receiver.recv().await.unwrap();
        drop((receiver, sender));
    };
    let (result, ()) =
        timeout(PATIENCE, async { tokio::join!(client.request(cancel(1)), server) }).await.unwrap();
    assert!(matches!(result, Err(ClientError::Wire(WireError::Disconnected))), "{result:?}");
    let again = client.request(cancel(1)).await;
    assert!(matches!(again, Err(ClientError::Wire(WireError::Disconnected))), "{again:?}");
}

#[tokio::test]
async fn subscribers_get_the_topics_of_their_subscriptions() {
    let TestManager {
        mut publisher, remote, _running, receiver: _receiver, sender: _sender, ..
    } = TestManager::start().await;
    let mut subscriber = Subscriber::connect(&remote, &[TOPIC_EVENTS]).await.unwrap();
    let manager = Published::Manager {
        instance: InstanceId(uuid::Uuid::nil()),
        revision: Revision(1),
        stopping: false,
    };
    let events = Published::Events { since: Revision(0), last: Revision(2), chunk: None };
    // A subscription takes effect with a delay: publish until a message arrives.
    let publish = async {
        loop {
            publisher.publish(TOPIC_MANAGER, &manager).await.unwrap();
            publisher.publish(TOPIC_EVENTS, &events).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let received = timeout(PATIENCE, async {
        tokio::select! {
            received = subscriber.recv() => received.unwrap(),
            () = publish => unreachable!(),
        }
    });
    assert_eq!(received.await.unwrap(), events);
}
