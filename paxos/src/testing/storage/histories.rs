//! Random histories against the model.

use std::{env, vec, vec::Vec};

use fastrand::Rng;

use super::{Bed, Failure, Model, Outcome, support::*};
use crate::types::{GroupId, Slot, WriteOp};

/// How many histories, unless the environment says otherwise.
const HISTORIES: u64 = 12;
const BATCHES: usize = 40;

/// `PAXOS_STORAGE_HISTORIES` sets the number of histories, `PAXOS_STORAGE_SEED` the first seed.
pub(super) async fn random_histories_match_the_model(bed: &mut Bed<'_>) -> Outcome {
    let number = |name: &str| env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = number("PAXOS_STORAGE_SEED").unwrap_or(0);
    let histories = number("PAXOS_STORAGE_HISTORIES").unwrap_or(HISTORIES);
    for seed in first..first.saturating_add(histories) {
        bed.place = (bed.new_place)();
        history(bed, seed)
            .await
            .map_err(|failure| failure.when(std::format_args!("PAXOS_STORAGE_SEED={seed}")))?;
    }
    Ok(())
}

/// Random batches, reads and restarts. At every restart without a close, some prefix of the batches that were not
/// synced may be lost; whichever it is becomes the model.
async fn history(bed: &mut Bed<'_>, seed: u64) -> Outcome {
    let mut random = Rng::with_seed(seed);
    let mut opened = bed.open().await?;
    // What may be there after a crash; the last is what is there now.
    let mut allowed = vec![Model::default()];
    for batch in 0..BATCHES {
        let mut model = allowed.last().cloned().unwrap_or_default();
        let ops = random_ops(&mut random, &model);
        model.apply(&ops);
        if random.u8(..3) == 0 {
            opened.write_unsynced(ops).await?;
            allowed.push(model);
        } else {
            opened.write(ops).await?;
            allowed = vec![model];
        }
        random_read(&mut random, bed_read(&mut opened, &allowed)).await?;
        if random.u8(..6) == 0 {
            if random.bool() {
                opened.storage.close().await?;
                allowed.drain(..allowed.len() - 1);
            }
            drop(opened);
            opened = bed.open().await?;
            let held = allowed
                .iter()
                .find(|model| model.difference(&opened.recovered).is_none());
            let Some(held) = held.cloned() else {
                let newest = allowed
                    .last()
                    .and_then(|model| model.difference(&opened.recovered));
                let newest = newest.unwrap_or_default();
                return Err(Failure(newest).when(std::format_args!("reopened after batch {batch}")));
            };
            opened.is_like(&held).await?;
            allowed = vec![held];
        }
    }
    Ok(())
}

fn bed_read<'a>(opened: &'a mut super::Opened, allowed: &'a [Model]) -> (&'a mut super::Opened, &'a Model) {
    (opened, allowed.last().expect("there is always what is there now"))
}

async fn random_read(random: &mut Rng, (opened, model): (&mut super::Opened, &Model)) -> Outcome {
    let group = GroupId(random.u32(..4));
    let range = Slot(random.u64(..40))..Slot(random.u64(..40));
    let max_bytes = random.usize(..2_000);
    let read = opened.storage.read(group, range.clone(), max_bytes).await?;
    let expected = model.read(group, range.clone(), max_bytes);
    ensure!(
        read == expected,
        "group {group}, slots {range:?} within {max_bytes} bytes read wrong"
    );
    Ok(())
}

fn random_ops(random: &mut Rng, model: &Model) -> Vec<WriteOp> {
    let mut model = model.clone();
    let count = random.usize(..8);
    let mut ops = Vec::with_capacity(count);
    for _ in 0..count {
        let group = GroupId(random.u32(..4));
        let op = match random.u8(..20) {
            0..=3 => hard_state(
                group,
                model.promised(group).round + random.u64(..3),
                random.u64(..40),
            ),
            4..=5 => trim(group, random.u64(..40)),
            6 => remove(group),
            _ => {
                let payload = std::vec![random.u8(..); random.usize(..400)];
                accept_entry(group, random.u64(1..40), random.u64(1..100), commands(payload))
            }
        };
        // Ballots of one round may differ in their node, which may not go down either.
        model.apply(core::slice::from_ref(&op));
        ops.push(op);
    }
    ops
}
