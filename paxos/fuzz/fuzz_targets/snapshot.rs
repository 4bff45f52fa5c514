//! Snapshots of the key-value state machine: as they come, and with a good magic and checksum.
#![no_main]

use kvstore::machine::Machine;
use libfuzzer_sys::fuzz_target;
use paxos::{Slot, StateMachine};

fuzz_target!(|data: &[u8]| {
    let _ = Machine::default().restore(Slot(1), &mut { data });
    let mut whole = b"KVSTORE\x01".to_vec();
    whole.extend_from_slice(data);
    let checksum = crc32c::crc32c(&whole);
    whole.extend_from_slice(&checksum.to_le_bytes());
    let mut machine = Machine::default();
    if machine.restore(Slot(1), &mut whole.as_slice()).is_ok() {
        let mut again = Vec::new();
        let source = machine.snapshot().expect("a restored machine can be frozen");
        source.write_to(&mut again).expect("memory takes everything");
        Machine::default()
            .restore(Slot(1), &mut again.as_slice())
            .expect("a snapshot can be read back");
    }
});
