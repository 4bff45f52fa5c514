//! What reading any bytes of a client, a server or a snapshot may allocate: a small multiple of their number.

use allocation_counter::measure;
use bytes::BytesMut;
use kvstore::{
    machine::Machine,
    resp::{Limits, Parser, Value},
};
use paxos::{Slot, StateMachine};
use proptest::prelude::*;

/// How many bytes may be allocated for each byte read: places and values of a fixed size stand for a few bytes each.
const PER_BYTE: u64 = 64;

fn is_bounded(bytes: usize, fixed_bytes: u64, read: impl FnOnce()) -> Result<(), TestCaseError> {
    let allocated = measure(read).bytes_total;
    let bound = PER_BYTE * bytes as u64 + fixed_bytes;
    prop_assert!(allocated <= bound, "{bytes} bytes made it allocate {allocated}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn requests(text in "([*$]-?[0-9]{0,12}\r\n|[a-z\"' \\\\x]{0,9}\r?\n?){0,30}") {
        let mut bytes = text.into_bytes();
        is_bounded(bytes.len(), 4 << 10, || {
            let mut parser = Parser::new(Limits::default());
            let _ = parser.parse(&mut bytes);
        })?;
    }

    #[test]
    fn replies(text in "([*$%~>:+_,#=-]-?[0-9]{0,12}\r\n|[a-z]{0,9}\r\n){0,30}") {
        let mut bytes = BytesMut::from(text.as_bytes());
        is_bounded(bytes.len(), 4 << 10, || while let Ok(Some(_)) = Value::take(&mut bytes) {})?;
    }

    /// A buffer and an empty table of the hash slots belong to every restore.
    #[test]
    fn snapshots(rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(0_u8), Just(0xff)], 0..100)) {
        let bytes = [&b"KVSTORE\x01"[..], &rest].concat();
        let mut machine = Machine::default();
        is_bounded(bytes.len(), 448 << 10, || drop(machine.restore(Slot(1), &mut bytes.as_slice())))?;
    }
}
