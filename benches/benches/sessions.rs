//! What do the layers between the engine and a machine cost? Commands of 64 bytes with replies of 8, in runs of 256, to
//! a machine that does next to nothing: alone, in a router, and with sessions whose clients number everything.
//!
//! `cargo bench -p paxos-benches --bench sessions`
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::{io, time::Duration};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use paxos::{
    ApplyCommand, Ballot, Chosen, MachineError, ProposalId, Slot, SnapshotSource, StateMachine,
    router::{MachineId, Router},
    sessions::{Call, Command, SessionId, Sessions},
};

const RUN: u64 = 256;

#[derive(Clone, Default)]
struct Nothing(Slot);

impl StateMachine for Nothing {
    fn applied(&self) -> Slot {
        self.0
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        replies.extend(chosen.commands.iter().map(|_| Bytes::from_static(b"8 bytes.")));
        self.0 = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        query
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Err(MachineError::new("none"))
    }

    fn restore(&mut self, _: Slot, _: &mut dyn io::Read) -> Result<(), MachineError> {
        Err(MachineError::new("none"))
    }
}

/// Runs of one command each slot, whose payloads a function makes from the slot.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    mut machine: impl StateMachine,
    payload: impl Fn(u64) -> Bytes,
) {
    let mut group = criterion.benchmark_group("layers: commands applied");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .throughput(Throughput::Elements(RUN));
    let mut slot = machine.applied().0;
    let mut replies = Vec::new();
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || {
                let commands: Vec<ApplyCommand> = (slot + 1..=slot + RUN)
                    .map(|slot| ApplyCommand {
                        slot: Slot(slot),
                        ballot: Ballot::ZERO,
                        id: ProposalId::default(),
                        payload: payload(slot),
                    })
                    .collect();
                slot += RUN;
                (Slot(slot), commands)
            },
            |(upto, commands)| {
                replies.clear();
                let upto = *upto;
                machine.apply(Chosen { upto, commands }, &mut replies)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn sessions(count: u64) -> (Sessions<Nothing>, Vec<SessionId>) {
    let mut machine = Sessions::new(Nothing::default());
    let ids = (1..=count).map(|slot| {
        let open = Command::Open {
            ttl_ms: u64::MAX,
            stamp_ms: 1_000_000,
        };
        let commands = &[ApplyCommand {
            slot: Slot(slot),
            ballot: Ballot::ZERO,
            id: ProposalId::default(),
            payload: open.encode(),
        }];
        let (upto, mut replies) = (Slot(slot), Vec::new());
        machine
            .apply(Chosen { upto, commands }, &mut replies)
            .expect("sessions are opened");
        SessionId(1_000_000 + slot - 1)
    });
    let ids = ids.collect();
    (machine, ids)
}

fn layers(criterion: &mut Criterion) {
    let body = Bytes::from(vec![b'v'; 64]);
    bench(criterion, "alone", Nothing::default(), |_| body.clone());

    let router = Router::new()
        .machine(MachineId(1), Nothing::default())
        .machine(MachineId(2), Nothing::default());
    let routes = router.routes();
    let commands = [1, 2].map(|id| {
        routes
            .command(MachineId(id), &body)
            .expect("it has both machines")
    });
    bench(criterion, "router of two", router, |slot| {
        commands[slot as usize % 2].clone()
    });

    for (count, in_turn) in [(1, 1), (3, 85), (10_000, 1)] {
        let (machine, ids) = sessions(count);
        let name = format!("{count} sessions, {in_turn} commands in turn, window 1 000");
        bench(criterion, &name, machine, |slot| {
            let turn = slot / in_turn;
            let sequence = 1 + turn / count * in_turn + slot % in_turn;
            let call = Call {
                session: ids[(turn % count) as usize],
                sequence,
                acked: sequence.saturating_sub(1_000).max(1),
                stamp_ms: 1_000_000 + slot / 100,
            };
            call.encode(&body)
        });
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
