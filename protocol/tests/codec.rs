//! The codec: encoded messages can be decoded, and no input does harm.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use podmesh_protocol::client::{LogSlice, Reply, ReplyBody};
use podmesh_protocol::codec::{DecodeError, EncodeError, decode, encode};
use podmesh_protocol::event::{EventChunk, EventFact, Published};
use podmesh_protocol::ids::{AttemptId, Epoch, InstanceId, JobId, Revision};
use podmesh_protocol::limits::FRAME_BYTES_MAX;
use podmesh_protocol::report::{Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::session::{Hello, StopReason, ToManager, ToPeer};
use podmesh_protocol::spec::{Resources, RuntimeKind};
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
    ]
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
                address: None,
                attempts,
            })
        },
    );
    prop_oneof![
        hello,
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
