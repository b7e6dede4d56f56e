#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const MESSAGES: Traffic = Traffic::Messages;
const ANY_TOPIC: Traffic = Traffic::Subscriptions { only: None };

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flags];
    if flags & LONG == 0 {
        bytes.push(u8::try_from(body.len()).unwrap());
    } else {
        bytes.extend((body.len() as u64).to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

/// Passes the bytes in pieces, as they may arrive from the network. Returns the accepted bytes and
/// the verdict.
fn show(traffic: Traffic, bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), Violation>) {
    let mut inspector = Inspector::new(traffic);
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        held.extend(piece);
        match inspector.inspect(&held) {
            Ok(count) => passed.extend(held.drain(..count)),
            Err(violation) => return (passed, Err(violation)),
        }
        assert!(held.len() < Inspector::NEEDED, "{} bytes held", held.len());
    }
    (passed, Ok(()))
}

#[test]
fn a_frame_with_an_excessive_length_is_refused() {
    for shift in [33, 47, 62, 63] {
        let mut bytes = vec![LONG];
        bytes.extend((1_u64 << shift).to_be_bytes());
        for traffic in [MESSAGES, ANY_TOPIC] {
            let (passed, verdict) = show(traffic, &bytes, 1);
            assert!(passed.is_empty());
            assert!(matches!(verdict, Err(Violation::Frame { .. })), "{verdict:?}");
        }
        bytes[0] |= COMMAND;
        assert!(command_length(&bytes).is_err());
    }
}

#[test]
fn frames_up_to_the_limit_are_accepted_and_longer_ones_are_not() {
    for (length, passes) in
        [(0, true), (255, true), (FRAME_BYTES_MAX, true), (FRAME_BYTES_MAX + 1, false)]
    {
        let bytes = frame(LONG, &vec![7; length]);
        let (passed, verdict) = show(MESSAGES, &bytes, 1000);
        assert_eq!(verdict.is_ok(), passes, "{length}");
        assert_eq!(passed == bytes, passes, "{length}");
    }
}

#[test]
fn commands_unknown_flags_and_too_many_parts_are_refused() {
    assert_eq!(show(MESSAGES, &frame(COMMAND, b"\x04PING"), 9).1, Err(Violation::Command));
    assert_eq!(show(MESSAGES, &frame(0x80, b""), 9).1, Err(Violation::Flags(0x80)));
    let two = [frame(MORE, b"a"), frame(0, b"b")].concat();
    assert_eq!(show(MESSAGES, &two.repeat(3), 1), (two.repeat(3), Ok(())));
    let three = [frame(MORE, b"a"), frame(MORE, b"b"), frame(0, b"c")].concat();
    assert_eq!(show(MESSAGES, &three, 1).1, Err(Violation::Parts));
}

#[test]
fn a_publisher_accepts_only_subscriptions() {
    let subscribe = frame(0, b"\x01manager");
    assert_eq!(show(ANY_TOPIC, &subscribe, 1), (subscribe.clone(), Ok(())));
    let one = Traffic::Subscriptions { only: Some("manager") };
    assert_eq!(show(one, &subscribe, 1), (subscribe.clone(), Ok(())));
    for other in [&b"\x01"[..], b"\x01manage", b"\x01managers", b"\x01events"] {
        assert_eq!(show(one, &frame(0, other), 1).1, Err(Violation::Subscription), "{other:?}");
    }
    for other in [&b""[..], b"\x02manager", b"hello"] {
        assert_eq!(show(ANY_TOPIC, &frame(0, other), 1).1, Err(Violation::Subscription));
    }
    assert_eq!(show(ANY_TOPIC, &frame(MORE, b"\x01a"), 1).1, Err(Violation::Parts));
    let long = frame(0, &[1; SUBSCRIPTION_BYTES_MAX + 1]);
    assert!(matches!(show(ANY_TOPIC, &long, 1).1, Err(Violation::Frame { .. })));
    let many = subscribe.repeat(SUBSCRIPTIONS_MAX as usize + 1);
    let (passed, verdict) = show(ANY_TOPIC, &many, 50);
    assert_eq!(verdict, Err(Violation::Subscriptions));
    assert!(passed.len() <= many.len() - subscribe.len());
}

#[test]
fn greetings_and_ready_commands_are_recognized() {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    assert_eq!(check_greeting(&greeting), Ok(()));
    for (at, byte) in [(0, 0), (9, 0), (10, 2), (12, b'C'), (16, b'L'), (32, 1)] {
        let mut other = greeting;
        other[at] = byte;
        assert_eq!(check_greeting(&other), Err(Violation::Greeting), "{at}");
    }
    let ready = ready_frame("DEALER", &[9; 16]);
    let (header, body) = command_length(&ready).unwrap().unwrap();
    assert_eq!(ready.len(), header + body);
    assert_eq!(socket_type(&ready[header..]), Ok("DEALER"));
    assert_eq!(command_length(&ready[..1]), Ok(None));
    assert_eq!(command_length(&frame(LONG, b"x")), Err(Violation::Ready));
    // Up to the end of the first property it would be whole.
    let whole = ready.len() - (1 + "Identity".len() + 4 + 16);
    for cut in (header..ready.len()).filter(|cut| *cut != whole) {
        assert_eq!(socket_type(&ready[header..cut]), Err(Violation::Ready), "{cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any input in any pieces: no panic, the same verdict, and the accepted bytes are a prefix of
    /// the input.
    #[test]
    fn any_bytes_get_the_same_verdict_in_any_pieces(
        bytes in prop::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 0..300),
        piece in 1..20_usize,
        subscriptions in any::<bool>(),
    ) {
        let traffic = if subscriptions { ANY_TOPIC } else { MESSAGES };
        let (whole, verdict) = show(traffic, &bytes, 1);
        prop_assert!(bytes.starts_with(&whole));
        let (pieces, of_pieces) = show(traffic, &bytes, piece);
        prop_assert_eq!(verdict, of_pieces);
        // Nothing of a piece with a violation is accepted.
        prop_assert!(whole.starts_with(&pieces));
        _ = command_length(&bytes);
        _ = socket_type(&bytes);
    }
}
