//! The typed sockets against each other, over loopback.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use podmesh_protocol::client::{Reply, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::{Published, TOPIC_EVENTS, TOPIC_MANAGER};
use podmesh_protocol::ids::{Epoch, InstanceId, JobId, Revision};
use podmesh_protocol::report::JobState;
use podmesh_protocol::session::{ToManager, ToPeer};
use podmesh_wire::WireError;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::control::{ManagerReceiver, ManagerSender, ManagerSocket, PeerSocket};
use podmesh_wire::publish::{Publisher, Subscriber};
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketSend, ZmqMessage};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Far beyond what any of this takes: a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(30);

async fn manager() -> (ManagerReceiver, ManagerSender, ManagerAddress) {
    let socket = ManagerSocket::bind(ANY_PORT).await.unwrap();
    let address = socket.local_address().into();
    let (receiver, sender) = socket.split();
    (receiver, sender, address)
}

#[tokio::test]
async fn messages_cross_both_ways() {
    let (mut receiver, mut sender, address) = manager().await;
    let (mut peer_receiver, mut peer_sender) = PeerSocket::connect(&address).await.unwrap().split();
    peer_sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
    let received = receiver.recv().await.unwrap();
    assert!(matches!(received.message, Ok(ToManager::Goodbye(Epoch(3)))));
    sender.send(&received.peer, &ToPeer::HelloAgain(Epoch(3))).await.unwrap();
    assert_eq!(peer_receiver.recv().await.unwrap(), ToPeer::HelloAgain(Epoch(3)));
}

#[tokio::test]
async fn bytes_that_are_no_message_are_told_apart_and_harm_nobody() {
    let (mut receiver, mut sender, address) = manager().await;
    let mut vandal = DealerSocket::new();
    vandal.connect(&format!("tcp://{address}")).await.unwrap();
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

    let (_, mut honest) = PeerSocket::connect(&address).await.unwrap().split();
    honest.send(&ToManager::Goodbye(Epoch(1))).await.unwrap();
    assert!(receiver.recv().await.unwrap().message.is_ok());
}

#[tokio::test]
async fn the_manager_is_told_of_a_connection_that_ends_and_can_send_there_no_more() {
    let (mut receiver, mut sender, address) = manager().await;
    let (peer_receiver, mut peer_sender) = PeerSocket::connect(&address).await.unwrap().split();
    peer_sender.send(&ToManager::Goodbye(Epoch(3))).await.unwrap();
    let peer = receiver.recv().await.unwrap().peer;
    drop((peer_receiver, peer_sender));
    let received = timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap();
    assert_eq!(received.peer, peer);
    assert!(matches!(received.message, Err(WireError::PeerGone)));
    let result = sender.send(&peer, &ToPeer::HelloAgain(Epoch(3))).await;
    assert!(matches!(result, Err(WireError::PeerGone)), "{result:?}");
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once_that_names_the_address() {
    let (receiver, sender, address) = manager().await;
    drop((receiver, sender));
    // The port may take a moment to close; after that, nobody takes it again in this test.
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = PeerSocket::connect(&address).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    let said = error.await.unwrap().to_string();
    assert!(said.contains(&address.to_string()), "{said}");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let (_receiver, _sender, address) = manager().await;
    let taken: SocketAddr = address.to_string().parse().unwrap();
    let said = ManagerSocket::bind(taken).await.err().unwrap().to_string();
    assert!(said.contains(&address.to_string()), "{said}");
}

fn cancel(job: u64) -> RequestBody {
    RequestBody::Cancel { job: JobId(job) }
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let (mut receiver, mut sender, address) = manager().await;
    let client = Client::connect(&address).await.unwrap();
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
    let (mut receiver, sender, address) = manager().await;
    let client = Client::connect(&address).await.unwrap();
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
    let mut publisher = Publisher::bind(ANY_PORT).await.unwrap();
    let address = publisher.local_address().into();
    let mut subscriber = Subscriber::connect(&address, &[TOPIC_EVENTS]).await.unwrap();
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
