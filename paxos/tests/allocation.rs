//! What decoding any bytes may allocate: a small multiple of their number, whatever counts and lengths they claim. And
//! what freezing sessions may.

use allocation_counter::measure;
use bytes::Bytes;
use paxos::{
    ApplyCommand, Ballot, Chosen, GroupId, Identity, MachineError, ProposalId, Slot, SnapshotSource,
    StateMachine,
    core::batch,
    record::{self, Records},
    sessions::{Answer, Call, Command, Sessions},
    wire::{self, PREFIX_BYTES},
};
use proptest::prelude::*;

/// How many bytes may be allocated for each byte decoded: a decoded entry or command has a fixed size that is some times
/// larger than its row in a frame, and the vectors that hold them grow by doubling.
const PER_BYTE: u64 = 64;
/// How many bytes may be allocated in any case: buffers of the CBOR reader, texts of errors.
const FIXED_BYTES: u64 = 16 << 10;

fn is_bounded(bytes: usize, decode: impl FnOnce()) -> Result<(), TestCaseError> {
    let allocated = measure(decode).bytes_total;
    let bound = PER_BYTE * bytes as u64 + FIXED_BYTES;
    prop_assert!(allocated <= bound, "{bytes} bytes made it allocate {allocated}");
    Ok(())
}

/// Bytes in which large numbers are frequent: they claim to begin much.
fn claims() -> impl Strategy<Value = Vec<u8>> {
    // CBOR: byte strings, texts, arrays and maps with lengths of 4 and 8 bytes.
    const HEADS: [u8; 8] = [0x5a, 0x5b, 0x7a, 0x7b, 0x9a, 0x9b, 0xba, 0xbb];
    let weighted = |byte: u8| match byte {
        0..64 => 0xff,
        64..96 => 0,
        96..160 => HEADS[usize::from(byte) % HEADS.len()],
        _ => byte,
    };
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    bytes.prop_map(move |bytes| bytes.into_iter().map(weighted).collect())
}

/// A frame with a good prefix and checksum.
fn sealed_frame(kind: u8, header_bytes: u32, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; PREFIX_BYTES];
    frame.extend_from_slice(rest);
    let length = frame.len() as u32;
    frame[..4].copy_from_slice(&[b'P', b'x', wire::VERSION, kind]);
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    let before = crc32c::crc32c(&frame[..8]);
    let checksum = crc32c::crc32c_append(before, &frame[12..]);
    frame[8..12].copy_from_slice(&checksum.to_le_bytes());
    frame
}

/// A record of group 1, slot 1 in the store with the identity zero, with a good checksum.
fn sealed_record(kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    let mut record = vec![record::VERSION, kind[0], kind[1], 0, 0, 0, 0, 0];
    record.extend_from_slice(body);
    let mut sum = crc32c::crc32c(&[0; 24]);
    sum = crc32c::crc32c_append(sum, &1_u32.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &1_u64.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &record[..4]);
    sum = crc32c::crc32c_append(sum, body);
    record[4..8].copy_from_slice(&sum.to_le_bytes());
    record
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn frames_with_good_checksums(kind in 0_u8..24, header_bytes in 0_u32..250, rest in claims()) {
        let frame = Bytes::from(sealed_frame(kind, header_bytes, &rest));
        prop_assert!(wire::verify(&frame).is_ok());
        is_bounded(frame.len(), || drop(wire::decode(frame.clone())))?;
    }

    #[test]
    fn frames_with_any_bytes(bytes in claims()) {
        let bytes = Bytes::from(bytes);
        is_bounded(bytes.len(), || drop(wire::decode(bytes.clone())))?;
    }

    #[test]
    fn records_with_good_checksums(kind: [u8; 2], body in claims()) {
        let records = Records::new(Identity::default());
        let record = Bytes::from(sealed_record([kind[0] % 5, kind[1] % 3], &body));
        is_bounded(record.len(), || drop(records.decode_slot(GroupId(1), Slot(1), &record)))?;
    }

    #[test]
    fn batches(bytes in claims()) {
        let bytes = Bytes::from(bytes);
        is_bounded(bytes.len(), || drop(batch::decode(&bytes)))?;
    }

    #[test]
    fn batches_of_many_runs_of_empty_commands(counts in prop::collection::vec(0_u32..40, 0..10), claimed: u32) {
        let mut bytes = vec![0; 16];
        for count in counts {
            bytes.extend_from_slice(&[0; 24]);
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend(std::iter::repeat_n(0, 4 * count as usize));
        }
        bytes.extend_from_slice(&[0; 24]);
        bytes.extend_from_slice(&claimed.to_le_bytes());
        let bytes = Bytes::from(bytes);
        is_bounded(bytes.len(), || drop(batch::decode(&bytes)))?;
    }
}

#[test]
fn the_counter_counts() {
    let outcome = is_bounded(10, || drop(Vec::<u8>::with_capacity(1 << 20)));
    assert!(outcome.is_err(), "a reservation of a claimed size is found");
}

#[test]
fn a_good_record_reaches_the_body() {
    let records = Records::new(Identity::default());
    let body = [&[0_u8; 16][..], &3_u32.to_le_bytes(), b"abc"].concat();
    let record = Bytes::from(sealed_record([1, 1], &body));
    assert!(records.decode_slot(GroupId(1), Slot(1), &record).is_ok());
}

/// A machine without a state, whose sessions are all that there is.
#[derive(Default)]
struct Stateless(Slot);

impl StateMachine for Stateless {
    fn applied(&self) -> Slot {
        self.0
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        replies.extend(chosen.commands.iter().map(|command| command.payload.clone()));
        self.0 = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        query
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Nothing))
    }

    fn restore(&mut self, upto: Slot, _: &mut dyn std::io::Read) -> Result<(), MachineError> {
        self.0 = upto;
        Ok(())
    }
}

struct Nothing;

impl SnapshotSource for Nothing {
    fn write_to(self: Box<Self>, _: &mut dyn std::io::Write) -> std::io::Result<()> {
        Ok(())
    }
}

/// A snapshot is frozen on the group's task: it must not copy what thousands of sessions have kept.
#[test]
fn freezing_sessions_copies_none_of_them() {
    const SESSIONS: usize = 4_000;
    let mut machine = Sessions::new(Stateless::default());
    let mut run = |payloads: Vec<Bytes>| {
        let slot = machine.applied().next();
        let command = |payload| ApplyCommand {
            slot,
            ballot: Ballot::default(),
            id: ProposalId::default(),
            payload,
        };
        let commands: Vec<_> = payloads.into_iter().map(command).collect();
        let (mut replies, upto) = (Vec::new(), slot);
        let commands = &commands[..];
        machine.apply(Chosen { upto, commands }, &mut replies).unwrap();
        replies
    };
    let open = Command::Open {
        ttl_ms: 60_000,
        stamp_ms: 1,
    };
    let opened = run(vec![open.encode(); SESSIONS]);
    for sequence in 1..=4 {
        let call = |opened| {
            let Some(Answer::Opened(session)) = Answer::decode(opened) else {
                panic!("no session was opened");
            };
            let (acked, stamp_ms) = (1, 1);
            Call {
                session,
                sequence,
                acked,
                stamp_ms,
            }
            .encode(&[7; 100])
        };
        run(opened.iter().map(call).collect());
    }
    assert!(machine.sessions() == SESSIONS && machine.reply_bytes() > SESSIONS * 400);
    let allocated = measure(|| drop(machine.snapshot().unwrap()));
    assert!(allocated.bytes_total < 16 << 10, "{allocated:?}");
}
