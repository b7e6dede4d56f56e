//! The typed sockets against each other, through the front: by the network and on one machine.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use podmesh_protocol::client::{Reply, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{Epoch, InstanceId, JobId, Revision};
use podmesh_protocol::report::JobState;
use podmesh_protocol::session::{ToManager, ToPeer};
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
        let (mut peer_receiver, mut peer_sender) =
            PeerSocket::connect(&route).await.unwrap().split();
        peer_sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
        let peer = manager.next_goodbye().await;
        manager.sender.send(&peer, &ToPeer::HelloAgain(Epoch(3))).await.unwrap();
        assert_eq!(peer_receiver.recv().await.unwrap(), ToPeer::HelloAgain(Epoch(3)));
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_told_apart_and_harm_nobody() {
    let TestManager { mut receiver, mut sender, local, _running, .. } = TestManager::start().await;
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
    // The look whether anybody is there is a connection, too, and has ended.
    loop {
        match receiver.recv().await.unwrap().message {
            Err(WireError::PeerGone) => {}
            message => return assert!(message.is_ok()),
        }
    }
}

#[tokio::test]
async fn the_manager_is_told_of_a_connection_that_ends_and_can_send_there_no_more() {
    let mut manager = TestManager::start().await;
    for route in manager.routes() {
        let (peer_receiver, mut peer_sender) = PeerSocket::connect(&route).await.unwrap().split();
        peer_sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
        let peer = manager.next_goodbye().await;
        drop((peer_receiver, peer_sender));
        manager.gone(&peer).await;
        let result = manager.sender.send(&peer, &ToPeer::HelloAgain(Epoch(3))).await;
        assert!(matches!(result, Err(WireError::PeerGone)), "{result:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once_that_says_where() {
    let manager = TestManager::start().await;
    let routes = manager.routes();
    manager.stop().await;
    for route in routes {
        let said = PeerSocket::connect(&route).await.err().unwrap().to_string();
        assert!(said.contains(&route.to_string()), "{said}");
    }
}

fn cancel(job: u64) -> RequestBody {
    RequestBody::Cancel { job: JobId(job) }
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let TestManager { mut receiver, mut sender, remote, _running, .. } = TestManager::start().await;
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
                Ok(ReplyBody::Cancelled { state: JobState::Cancelling })
            } else {
                Err(ErrorReply::new(ErrorCode::NotFound, "no such job"))
            };
            let reply = ToPeer::Reply(Reply { id: request.id, result });
            sender.send(&peer, &reply).await.unwrap();
        }
    };
    let (one, two, ()) = tokio::join!(client.request(cancel(1)), client.request(cancel(2)), server);
    assert_eq!(one.unwrap(), ReplyBody::Cancelled { state: JobState::Cancelling });
    assert!(matches!(two, Err(ClientError::Refused(_))), "{two:?}");
}

#[tokio::test]
async fn a_request_learns_at_once_that_the_manager_is_gone() {
    let TestManager { mut receiver, sender, remote, _running, .. } = TestManager::start().await;
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
async fn subscribers_get_the_topics_that_they_asked_for() {
    let TestManager { mut publisher, remote, _running, .. } = TestManager::start().await;
    let mut subscriber = Subscriber::connect(&remote, &[TOPIC_EVENTS]).await.unwrap();
    let manager = Published::Manager {
        instance: InstanceId(uuid::Uuid::nil()),
        revision: Revision(1),
        stopping: false,
    };
    let events = Published::Events { since: Revision(0), last: Revision(2), chunk: None };
    // A subscription takes effect a moment after it is made: publish until one comes.
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
