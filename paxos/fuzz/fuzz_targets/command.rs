//! Commands on the log, applied to the key-value state machine: any bytes are a command or a refusal, never a halt.
#![no_main]

use bytes::Bytes;
use kvstore::{command::codec, machine::Machine};
use libfuzzer_sys::fuzz_target;
use paxos::{Ballot, Chosen, Incarnation, NodeId, ProposalId, Slot, StateMachine};

fuzz_target!(|data: &[u8]| {
    if let Ok((_, operands)) = codec::decode(data) {
        assert!(operands.map(<[u8]>::len).sum::<usize>() <= data.len());
    }
    let _ = Machine::default().query(Bytes::copy_from_slice(data));
});
