//! The durable record format: what was written comes back, everything else is an error.
#![cfg(feature = "std")]

use bytes::Bytes;
use paxos::{
    Accepted, Ballot, ClusterId, Entry, EntryKind, GroupId, HardState, Identity, Incarnation, NodeId,
    Quarantine, Slot, StorageId,
    record::{
        Contents, Digest, GroupRecord, RecordError, Records, SlotRecord, StoreRecord, VERSION, checksum,
    },
};
use proptest::prelude::*;

const IDENTITY: Identity = Identity {
    cluster: ClusterId(1),
    node: NodeId(2),
    storage: StorageId(3),
};

fn accepted() -> impl Strategy<Value = Accepted> {
    let kind = prop_oneof![
        Just(EntryKind::Noop),
        Just(EntryKind::Commands),
        Just(EntryKind::Membership)
    ];
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    (any::<u64>(), any::<u64>(), kind, payload).prop_map(|(round, node, kind, payload)| Accepted {
        ballot: Ballot {
            round,
            node: NodeId(node),
        },
        entry: Entry {
            kind,
            payload: payload.into(),
        },
    })
}

fn group_record() -> impl Strategy<Value = GroupRecord> {
    let quarantine = any::<(u8, u64)>().prop_map(|(why, slot)| match why % 3 {
        0 => None,
        1 => Some(Quarantine::Diverged { slot: Slot(slot) }),
        _ => Some(Quarantine::RolledBack { slot: Slot(slot) }),
    });
    (any::<[u64; 9]>(), quarantine).prop_map(
        |(
            [
                round,
                node,
                chosen,
                membership,
                trimmed,
                last,
                overwritten,
                entries,
                digest,
            ],
            quarantine,
        )| GroupRecord {
            hard_state: HardState {
                promised: Ballot {
                    round,
                    node: NodeId(node),
                },
                chosen: Slot(chosen),
                membership: Slot(membership),
                quarantine,
            },
            trimmed: Slot(trimmed),
            contents: Contents {
                last: Slot(last),
                overwritten: Slot(overwritten),
                entries,
                digest: Digest(digest),
            },
        },
    )
}

fn is_refused(records: Records, group: GroupId, slot: Slot, bytes: &Bytes) -> bool {
    records.decode_slot(group, slot, bytes).is_err()
        && records.decode_group(group, bytes).is_err()
        && records.decode_store(bytes).is_err()
}

proptest! {
    #[test]
    fn an_entry_comes_back(group: u32, slot: u64, accepted in accepted()) {
        let records = Records::new(IDENTITY);
        let record = Bytes::from(records.encode_entry(GroupId(group), Slot(slot), &accepted));
        prop_assert_eq!(
            records.decode_slot(GroupId(group), Slot(slot), &record),
            Ok(SlotRecord::Entry(accepted))
        );
    }

    #[test]
    fn a_group_comes_back(group: u32, state in group_record()) {
        let records = Records::new(IDENTITY);
        let record = records.encode_group(GroupId(group), &state);
        prop_assert_eq!(records.decode_group(GroupId(group), &record), Ok(state));
    }

    #[test]
    fn a_store_comes_back(incarnation: u64, commit: u64, groups: u64, digest: u64) {
        let records = Records::new(IDENTITY);
        let state = StoreRecord {
            incarnation: Incarnation(incarnation),
            commit,
            groups,
            digest: Digest(digest),
        };
        prop_assert_eq!(records.decode_store(&records.encode_store(&state)), Ok(state));
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), group: u32, slot: u64) {
        let records = Records::new(IDENTITY);
        prop_assert!(is_refused(records, GroupId(group), Slot(slot), &bytes.into()));
    }

    #[test]
    fn a_flipped_bit_is_found(accepted in accepted(), at: prop::sample::Index, bit in 0..8_u8) {
        let records = Records::new(IDENTITY);
        let mut record = records.encode_entry(GroupId(1), Slot(1), &accepted);
        let at = at.index(record.len());
        record[at] ^= 1 << bit;
        prop_assert!(is_refused(records, GroupId(1), Slot(1), &record.into()));
    }

    #[test]
    fn a_cut_record_is_found(accepted in accepted(), at: prop::sample::Index) {
        let records = Records::new(IDENTITY);
        let mut record = records.encode_entry(GroupId(1), Slot(1), &accepted);
        record.truncate(at.index(record.len()));
        prop_assert!(is_refused(records, GroupId(1), Slot(1), &record.into()));
    }

    #[test]
    fn a_record_in_another_place_is_found(accepted in accepted(), group in 0..3_u32, slot in 0..3_u64) {
        let records = Records::new(IDENTITY);
        let record = Bytes::from(records.encode_entry(GroupId(1), Slot(1), &accepted));
        let found = records.decode_slot(GroupId(group), Slot(slot), &record);
        prop_assert_eq!(found.is_ok(), (group, slot) == (1, 1));
    }

    #[test]
    fn a_digest_does_not_depend_on_the_order(mut set in proptest::collection::vec(any::<(u64, u32)>(), 0..20)) {
        let sum = |set: &[(u64, u32)]| {
            let mut digest = Digest::default();
            for (key, checksum) in set {
                digest.add(*key, *checksum);
            }
            digest
        };
        let forwards = sum(&set);
        set.reverse();
        prop_assert_eq!(sum(&set), forwards);
        let mut rest = forwards;
        for (key, checksum) in &set {
            rest.remove(*key, *checksum);
        }
        prop_assert_eq!(rest, Digest::default());
    }
}

#[test]
fn the_record_of_another_store_is_found() {
    let entry = Accepted::default();
    let record = Bytes::from(Records::new(IDENTITY).encode_entry(GroupId(1), Slot(1), &entry));
    for other in [
        Identity {
            cluster: ClusterId(9),
            ..IDENTITY
        },
        Identity {
            node: NodeId(9),
            ..IDENTITY
        },
        Identity {
            storage: StorageId(9),
            ..IDENTITY
        },
    ] {
        let found = Records::new(other).decode_slot(GroupId(1), Slot(1), &record);
        assert_eq!(found, Err(RecordError::Checksum));
    }
}

#[test]
fn a_whole_record_of_a_newer_format_is_told_apart_from_damage() {
    let records = Records::new(IDENTITY);
    let mut record = records.encode_store(&StoreRecord::default());
    record[0] = VERSION + 1;
    assert_eq!(records.decode_store(&record), Err(RecordError::Checksum));
    // What a newer program would write: the same header, its own checksum.
    let mut key = Vec::new();
    key.extend(IDENTITY.cluster.0.to_le_bytes());
    key.extend(IDENTITY.node.0.to_le_bytes());
    key.extend(IDENTITY.storage.0.to_le_bytes());
    key.extend([0; 4 + 8]);
    key.extend(&record[..4]);
    key.extend(&record[8..]);
    record[4..8].copy_from_slice(&crc32c::crc32c(&key).to_le_bytes());
    assert_eq!(
        records.decode_store(&record),
        Err(RecordError::Version { found: VERSION + 1 })
    );
}

#[test]
fn a_lost_entry_is_marked_in_its_place() {
    let records = Records::new(IDENTITY);
    let record = Bytes::from(records.encode_damaged(GroupId(1), Slot(5)));
    assert_eq!(
        records.decode_slot(GroupId(1), Slot(5), &record),
        Ok(SlotRecord::Damaged)
    );
    assert!(records.decode_slot(GroupId(1), Slot(6), &record).is_err());
}

#[test]
fn the_format_does_not_change_unnoticed() {
    let entry = Accepted {
        ballot: Ballot {
            round: 0x0102,
            node: NodeId(3),
        },
        entry: Entry {
            kind: EntryKind::Commands,
            payload: Bytes::from_static(b"hello"),
        },
    };
    let record = Records::new(IDENTITY).encode_entry(GroupId(7), Slot(9), &entry);
    let mut expected = vec![VERSION, 1, 1, 0];
    expected.extend(checksum(&record).expect("a checksum").to_le_bytes());
    expected.extend([2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
    expected.extend(b"hello");
    assert_eq!(record, expected);
    assert_eq!(checksum(&record), Some(2_503_481_577));
}
