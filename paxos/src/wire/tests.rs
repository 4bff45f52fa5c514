use alloc::{string::ToString, vec, vec::Vec};

use core::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec as many, prelude::*};

use super::*;
use crate::core::{Checkpoint, Holding, Life, Pulse, Reported, TransferRejection};
use crate::types::{Accepted, Ballot, Entry, EntryKind, Incarnation, Slot};

fn envelope(message: Message) -> Envelope {
    Envelope {
        cluster: ClusterId(0x0123_4567_89ab_cdef),
        from: NodeId(1),
        storage: StorageId(0xfedc_ba98_7654_3210),
        group: GroupId(7),
        message,
    }
}

fn encoded(message: Message) -> Bytes {
    Outgoing::encode(&envelope(message)).unwrap().to_bytes()
}

const BALLOT: Ballot = Ballot {
    round: 12,
    node: NodeId(2),
};

/// An `Accept` of `count` entries with `bytes` bytes each, late in a long log.
fn accept(count: usize, bytes: usize) -> Message {
    let entry = Entry {
        kind: EntryKind::Commands,
        payload: Bytes::from(vec![b'v'; bytes]),
    };
    Message::Accept {
        ballot: BALLOT,
        start: Slot(1_000_000),
        first: Slot(2_000_000),
        entries: vec![entry; count],
        chosen: Slot(1_999_990),
    }
}

fn heartbeat() -> Message {
    Message::Heartbeat {
        ballot: BALLOT,
        start: Slot(1_000_000),
        chosen: Slot(2_000_000),
        round: 100_000,
        lease: Duration::from_millis(400),
        checkpoint: Checkpoint {
            slot: Slot(2_000_000),
            hash: u64::MAX,
        },
    }
}

/// Gives a frame whose bytes were changed on purpose the length and the checksum that belong to them.
fn sealed(mut frame: Vec<u8>) -> Bytes {
    let length = frame.len() as u32;
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&frame, []);
    frame[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    frame.into()
}

#[test]
fn the_size_of_frames_is_pinned() {
    // A change here is a change of the format or of its cost: it wants a new VERSION, or a good reason.
    assert_eq!(encoded(accept(1, 256)).len(), 357);
    assert_eq!(encoded(accept(64, 256)).len(), 16_801);
    assert_eq!(encoded(heartbeat()).len(), 126);
}

#[test]
fn large_values_are_not_copied() {
    let payload = Bytes::from(vec![7; 100_000]);
    let message = Message::Forward {
        ballot: Ballot::ZERO,
        incarnation: Incarnation(1),
        first: 1,
        commands: vec![Bytes::from_static(b"small"), payload.clone(), payload.clone()],
    };
    let frame = Outgoing::encode(&envelope(message.clone())).unwrap();
    let shared = frame
        .parts()
        .iter()
        .filter(|part| part.as_ptr() == payload.as_ptr());
    assert_eq!(shared.count(), 2);
    assert_eq!(decode(frame.to_bytes()), Ok(envelope(message)));
}

#[test]
fn decoded_values_are_slices_of_the_frame() {
    let frame = encoded(accept(3, 300));
    let Message::Accept { entries, .. } = decode(frame.clone()).unwrap().message else {
        panic!("an Accept was encoded");
    };
    let within = frame.as_ptr_range();
    assert!(
        entries
            .iter()
            .all(|entry| within.contains(&entry.payload.as_ptr()))
    );
}

#[test]
fn bulk_messages_take_the_bulk_lane() {
    let learned = Message::Learned {
        from: Slot(1),
        entries: vec![],
        chosen: Slot(0),
    };
    assert_eq!(Outgoing::encode(&envelope(learned)).unwrap().lane(), Lane::Bulk);
    assert_eq!(
        Outgoing::encode(&envelope(heartbeat())).unwrap().lane(),
        Lane::Control
    );
}

#[test]
fn a_frame_above_the_bound_is_refused_when_encoded() {
    let too_large = Outgoing::encode(&envelope(accept(1, MAX_FRAME_BYTES)));
    assert!(
        matches!(too_large, Err(WireError::TooLarge { .. })),
        "{too_large:?}"
    );
}

#[test]
fn the_length_is_known_after_eight_bytes_and_strangers_are_refused_before() {
    let frame = encoded(heartbeat());
    for cut in 0..LENGTH_BYTES {
        assert_eq!(frame_length(&frame[..cut], 1 << 20), Ok(None));
    }
    assert_eq!(
        frame_length(&frame[..LENGTH_BYTES], 1 << 20),
        Ok(Some(frame.len()))
    );
    assert_eq!(frame_length(b"G", 1 << 20), Err(WireError::NotAFrame));
    assert_eq!(
        frame_length(b"GET / HTTP/1.1", 1 << 20),
        Err(WireError::NotAFrame)
    );
    assert_eq!(
        frame_length(b"Px\x09", 1 << 20),
        Err(WireError::Version { found: 9 })
    );
    assert_eq!(
        frame_length(&frame, 50),
        Err(WireError::TooLarge {
            bytes: frame.len(),
            max: 50
        })
    );
    let short = b"Px\x01\x01\x2b\0\0\0";
    assert!(matches!(
        frame_length(short, 1 << 20),
        Err(WireError::Length { told: 43, .. })
    ));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let frame = encoded(accept(2, 20));
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(damaged.into()).is_err(), "bit {bit}");
    }
}

#[test]
fn a_cut_or_prolonged_frame_is_refused() {
    let frame = encoded(accept(2, 20));
    for cut in 0..frame.len() {
        assert!(decode(frame.slice(..cut)).is_err(), "cut after {cut}");
    }
    let mut longer = frame.to_vec();
    longer.push(0);
    assert!(matches!(decode(longer.into()), Err(WireError::Length { .. })));
}

#[test]
fn trailing_bytes_are_refused_even_with_a_good_checksum() {
    for message in [accept(2, 20), heartbeat()] {
        let mut longer = encoded(message).to_vec();
        longer.push(0);
        let error = decode(sealed(longer)).unwrap_err();
        assert!(error.to_string().contains("bytes follow the message"), "{error}");
    }
}

#[test]
fn trailing_bytes_in_the_header_are_refused() {
    let mut frame = encoded(heartbeat()).to_vec();
    let header_bytes = frame.len() - PREFIX_BYTES + 1;
    frame[12..16].copy_from_slice(&(header_bytes as u32).to_le_bytes());
    frame.push(0);
    let error = decode(sealed(frame)).unwrap_err();
    assert!(error.to_string().contains("bytes follow the header"), "{error}");
}

#[test]
fn another_version_and_an_unknown_kind_are_refused() {
    let mut frame = encoded(heartbeat()).to_vec();
    frame[2] = VERSION + 1;
    assert_eq!(
        decode(sealed(frame.clone())),
        Err(WireError::Version { found: VERSION + 1 })
    );
    frame[2] = VERSION;
    frame[3] = 200;
    assert_eq!(decode(sealed(frame)), Err(WireError::UnknownKind(200)));
}

#[test]
fn a_count_beyond_the_frame_allocates_nothing() {
    let mut frame = encoded(accept(1, 20)).to_vec();
    let at = frame.windows(5).position(|window| window == b"count").unwrap() + 5;
    assert_eq!(frame[at], 1, "the CBOR integer 1");
    frame.splice(at..=at, [0x1a, 0xff, 0xff, 0xff, 0xff]);
    let header_bytes = u32::from_le_bytes(frame[12..16].try_into().unwrap()) + 4;
    frame[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    let error = decode(sealed(frame)).unwrap_err();
    assert!(error.to_string().contains("4294967295 rows"), "{error}");
}

#[test]
fn slots_that_overflow_are_refused() {
    let Message::Accept {
        ballot,
        start,
        entries,
        chosen,
        ..
    } = accept(2, 1)
    else {
        panic!("an Accept was made");
    };
    let first = Slot::MAX;
    let frame = encoded(Message::Accept {
        ballot,
        start,
        first,
        entries,
        chosen,
    });
    assert!(decode(frame).unwrap_err().to_string().contains("overflow"));
}

#[test]
fn a_newer_node_may_add_fields() {
    let mut frame = encoded(Message::ReadIndex { token: 5 }).to_vec();
    assert_eq!(frame[PREFIX_BYTES], 0xa1, "a CBOR map of one field");
    frame[PREFIX_BYTES] = 0xa2;
    frame.extend_from_slice(b"\x66future\x82\x01\x02");
    let header_bytes = (frame.len() - PREFIX_BYTES) as u32;
    frame[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    assert_eq!(
        decode(sealed(frame)).unwrap().message,
        Message::ReadIndex { token: 5 }
    );
}

fn any_ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<u64>()).prop_map(|(round, node)| Ballot {
        round,
        node: NodeId(node),
    })
}

fn any_slot() -> impl Strategy<Value = Slot> {
    prop_oneof![0..1_000_u64, any::<u64>()].prop_map(Slot)
}

/// A slot that a run of entries may begin at.
fn low_slot() -> impl Strategy<Value = Slot> {
    (0..u64::MAX - 1_000).prop_map(Slot)
}

fn any_value() -> impl Strategy<Value = Bytes> {
    // Below and above the bound for values that stay pieces of their own.
    prop_oneof![0..64_usize, INLINE_BYTES - 2..INLINE_BYTES + 3]
        .prop_flat_map(|length| many(any::<u8>(), length).prop_map(Bytes::from))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        Just(EntryKind::Noop),
        Just(EntryKind::Commands),
        Just(EntryKind::Membership)
    ];
    (kind, any_value()).prop_map(|(kind, payload)| Entry { kind, payload })
}

fn any_accepted() -> impl Strategy<Value = Accepted> {
    (any_ballot(), any_entry()).prop_map(|(ballot, entry)| Accepted { ballot, entry })
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        message_of_elections(),
        message_of_the_log(),
        message_of_snapshots(),
        message_of_users()
    ]
}

fn message_of_snapshots() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_slot().prop_map(|snapshot| Message::Trimmed { snapshot }),
        (any_slot(), any::<u64>()).prop_map(|(upto, offset)| Message::FetchSnapshot { upto, offset }),
        (any_slot(), any::<u64>(), 0..u64::MAX - 10_000, any_value()).prop_map(
            |(upto, total, offset, data)| {
                Message::SnapshotChunk {
                    upto,
                    total,
                    offset,
                    data,
                }
            }
        ),
    ]
}

fn message_of_elections() -> impl Strategy<Value = Message> {
    let slot_entries = many((any_slot(), any_accepted()), 0..6);
    prop_oneof![
        (any_ballot(), any_slot()).prop_map(|(ballot, chosen)| Message::Canvass { ballot, chosen }),
        (any_ballot(), any::<bool>(), any_ballot(), any_slot()).prop_map(
            |(ballot, granted, highest, chosen)| {
                Message::CanvassReply {
                    ballot,
                    granted,
                    highest,
                    chosen,
                }
            }
        ),
        (any_ballot(), any_slot(), proptest::option::of(any_ballot())).prop_map(
            |(ballot, from, released)| Message::Prepare {
                ballot,
                from,
                released
            }
        ),
        (
            any_ballot(),
            any_slot(),
            any_slot(),
            any_slot(),
            slot_entries,
            proptest::collection::vec(any_slot(), 0..4)
        )
            .prop_map(|(ballot, chosen, first, last, entries, damaged)| {
                let reported = Reported {
                    first,
                    last,
                    entries,
                    damaged,
                };
                Message::Promise {
                    ballot,
                    chosen,
                    reported,
                }
            }),
        (any_ballot(), any_ballot()).prop_map(|(ballot, promised)| Message::Refuse { ballot, promised }),
        (
            any_ballot(),
            any_slot(),
            any_slot(),
            any::<u64>(),
            any::<u64>(),
            any_checkpoint()
        )
            .prop_map(
                |(ballot, start, chosen, round, lease, checkpoint)| Message::Heartbeat {
                    ballot,
                    start,
                    chosen,
                    round,
                    lease: Duration::from_nanos(lease),
                    checkpoint,
                }
            ),
        (
            any_ballot(),
            any::<u64>(),
            any_slot(),
            any_slot(),
            any_slot(),
            any::<(bool, bool)>(),
            (any_checkpoint(), any_life())
        )
            .prop_map(
                |(ballot, round, received, accepted, chosen, (ready, leased), (checkpoint, life))| {
                    let pulse = Pulse {
                        round,
                        received,
                        accepted,
                        chosen,
                        ready,
                        leased,
                        checkpoint,
                        life,
                    };
                    Message::HeartbeatReply { ballot, pulse }
                }
            ),
        (any_ballot(), any_life()).prop_map(|(ballot, life)| Message::RolledBack {
            ballot,
            incarnation: life.incarnation,
            lost: life.holds,
        }),
        (any_ballot(), any_checkpoint()).prop_map(|(ballot, right)| Message::Diverged { ballot, right }),
        (any_ballot(), any_slot(), any_slot(), any::<bool>()).prop_map(|(ballot, start, chosen, by_hand)| {
            Message::TakeOver {
                ballot,
                start,
                chosen,
                by_hand,
            }
        }),
        any::<u64>().prop_map(|request| Message::LeadsOn { request }),
        (any_ballot(), any::<u64>()).prop_map(|(ballot, number)| Message::Drain { ballot, number }),
        (any_ballot(), any::<u64>()).prop_map(|(ballot, number)| Message::Drained { ballot, number }),
        (any::<u64>(), any::<u64>()).prop_map(|(request, to)| Message::TransferLeadership {
            request,
            to: NodeId(to)
        }),
        (any::<u64>(), any_transfer_rejection())
            .prop_map(|(request, reason)| Message::TransferRefused { request, reason }),
    ]
}

fn any_holding() -> impl Strategy<Value = Holding> {
    (any_slot(), any_ballot()).prop_map(|(slot, promised)| Holding { slot, promised })
}

fn any_life() -> impl Strategy<Value = Life> {
    (any::<u64>(), any_holding(), any_holding()).prop_map(|(incarnation, began, holds)| Life {
        incarnation: Incarnation(incarnation),
        began,
        holds,
    })
}

fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
    (any_slot(), any::<u64>()).prop_map(|(slot, hash)| Checkpoint { slot, hash })
}

fn any_transfer_rejection() -> impl Strategy<Value = TransferRejection> {
    prop_oneof![
        Just(TransferRejection::NoLeader),
        Just(TransferRejection::TooMany),
        any::<u64>().prop_map(|node| TransferRejection::NotVoter { node: NodeId(node) }),
        any::<u64>().prop_map(|node| TransferRejection::UnderWay { to: NodeId(node) }),
    ]
}

fn message_of_the_log() -> impl Strategy<Value = Message> {
    prop_oneof![
        (
            any_ballot(),
            any_slot(),
            low_slot(),
            many(any_entry(), 0..6),
            any_slot()
        )
            .prop_map(|(ballot, start, first, entries, chosen)| Message::Accept {
                ballot,
                start,
                first,
                entries,
                chosen
            }),
        (any_ballot(), any_slot(), any_slot()).prop_map(|(ballot, upto, chosen)| Message::Accepted {
            ballot,
            upto,
            chosen
        }),
        (any_slot(), any_slot()).prop_map(|(from, upto)| Message::Learn { from, upto }),
        (low_slot(), many(any_accepted(), 0..6), any_slot()).prop_map(|(from, entries, chosen)| {
            Message::Learned {
                from,
                entries,
                chosen,
            }
        }),
    ]
}

fn message_of_users() -> impl Strategy<Value = Message> {
    prop_oneof![
        (
            any_ballot(),
            any::<u64>(),
            0..u64::MAX - 10,
            many(any_value(), 0..6)
        )
            .prop_map(|(ballot, life, first, commands)| {
                Message::Forward {
                    ballot,
                    incarnation: Incarnation(life),
                    first,
                    commands,
                }
            }),
        (any_ballot(), any::<u64>(), any::<u64>()).prop_map(|(ballot, life, expected)| Message::Forwarded {
            ballot,
            incarnation: Incarnation(life),
            expected
        }),
        any::<u64>().prop_map(|token| Message::ReadIndex { token }),
        (any::<u64>(), proptest::option::of(any_slot()))
            .prop_map(|(token, slot)| Message::ReadIndexReply { token, slot }),
        (any_ballot(), any_slot(), any_slot()).prop_map(|(ballot, start, chosen)| Message::Chosen {
            ballot,
            start,
            chosen
        }),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was(
        cluster: u64, from: u64, storage: u64, group: u32, message in any_message(),
    ) {
        let envelope = Envelope {
            cluster: ClusterId(cluster),
            from: NodeId(from),
            storage: StorageId(storage),
            group: GroupId(group),
            message,
        };
        let frame = Outgoing::encode(&envelope).unwrap();
        let bytes: BytesMut = frame.parts().iter().flatten().copied().collect();
        prop_assert_eq!(bytes.len(), frame.len());
        prop_assert_eq!(frame_length(&bytes, MAX_FRAME_BYTES), Ok(Some(frame.len())));
        prop_assert_eq!(decode(bytes.freeze()), Ok(envelope));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in many(any::<u8>(), 0..300)) {
        prop_assert!(decode(bytes.into()).is_err());
    }

    #[test]
    fn mutated_frames_with_good_checksums_never_panic(
        message in any_message(),
        changes in many((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        kind in 0..70_u8,
        keep_kind: bool,
    ) {
        let mut frame = encoded(message).to_vec();
        for (at, byte) in changes {
            // Behind magic, version, kind, length and checksum, all of which are checked first.
            let at = CHECKSUM.end + at.index(frame.len() - CHECKSUM.end);
            frame[at] = byte;
        }
        if !keep_kind {
            frame[3] = kind;
        }
        // Whatever is accepted is a message like any other.
        if let Ok(envelope) = decode(sealed(frame)) {
            prop_assert!(Outgoing::encode(&envelope).is_ok());
        }
    }

    #[test]
    fn arbitrary_headers_with_good_checksums_never_panic(
        kind in 1..70_u8, header in many(any::<u8>(), 0..200),
    ) {
        let mut frame = encoded(heartbeat())[..PREFIX_BYTES].to_vec();
        frame[3] = kind;
        frame[12..16].copy_from_slice(&(header.len() as u32).to_le_bytes());
        frame.extend_from_slice(&header);
        let _ = decode(sealed(frame));
    }
}
