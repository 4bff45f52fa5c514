//! Commands on the log, applied to the key-value state machine: any bytes are a command or a refusal, and every command
//! has one reply. Only what a newer program wrote halts the machine.
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
    match machine.apply(chosen, &mut replies) {
        Ok(()) => assert_eq!(replies.len(), commands.len()),
        Err(error) => assert!(error.to_string().contains("runs an older version"), "{error}"),
    }
    for command in commands {
        let _ = machine.query(command.payload);
    }
});
