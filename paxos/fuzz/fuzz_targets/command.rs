//! Commands on the log, applied to the key-value state machine: any bytes are a command or a refusal, never a halt, and
//! every command has one reply.
#![no_main]

use bytes::Bytes;
use kvstore::machine::Machine;
use libfuzzer_sys::fuzz_target;
use paxos::{ApplyCommand, Ballot, Chosen, NodeId, ProposalId, Slot, StateMachine};

fuzz_target!(|data: &[u8]| {
    let commands: Vec<ApplyCommand> = data
        .split(|byte| *byte == 0xff)
        .map(|payload| ApplyCommand {
            slot: Slot(1),
            ballot: Ballot {
                round: 1,
                node: NodeId(1),
            },
            id: ProposalId::default(),
            payload: Bytes::copy_from_slice(payload),
        })
        .collect();
    let mut machine = Machine::default();
    let mut replies = Vec::new();
    let chosen = Chosen {
        upto: Slot(1),
        commands: &commands,
    };
    machine.apply(chosen, &mut replies).expect("no command halts the machine");
    assert_eq!(replies.len(), commands.len());
    for command in commands {
        let _ = machine.query(command.payload);
    }
});
