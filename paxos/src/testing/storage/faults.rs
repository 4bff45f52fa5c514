//! A disk that fails, at every single call in turn.

use std::{format, vec, vec::Vec};

use super::{Bed, Failure, Model, OWNER, Outcome, support::*};
use crate::{
    storage::{Storage, StorageError, WriteBatch},
    types::{Slot, WriteOp},
};

/// No workload of the checks needs more calls than this.
const MAX_CALLS: u64 = 5_000;

fn workload() -> Vec<Vec<WriteOp>> {
    let mut batches: Vec<_> = (1..=12)
        .map(|slot| {
            vec![
                accept(A, slot, 1),
                hard_state(A, slot, slot),
                accept(B, slot, slot),
            ]
        })
        .collect();
    batches.push(vec![trim(A, 6), remove(B), accept(C, 1, 1)]);
    batches.extend((13..=16).map(|slot| vec![accept(A, slot, 2)]));
    batches
}

/// What a run with a failing disk left behind.
struct Run {
    /// Every state that is allowed now: what was acknowledged, and that with the batch that failed.
    allowed: Vec<Model>,
    /// Whether anything failed at all.
    has_failed: bool,
}

async fn run(mut storage: alloc::boxed::Box<dyn Storage>, before: Model) -> Outcome<Run> {
    let mut model = before;
    if storage.recover().await.is_err() {
        return Ok(Run {
            allowed: vec![model],
            has_failed: true,
        });
    }
    for ops in workload() {
        let mut next = model.clone();
        next.apply(&ops);
        match storage.write(WriteBatch { sync: true, ops }).await {
            Ok(()) => model = next,
            Err(StorageError::Misuse(what)) => return Err(Failure(format!("a fault became misuse: {what}"))),
            Err(_) => {
                is_dead(&mut *storage).await?;
                return Ok(Run {
                    allowed: vec![model, next],
                    has_failed: true,
                });
            }
        }
    }
    let has_failed = storage.close().await.is_err();
    Ok(Run {
        allowed: vec![model],
        has_failed,
    })
}

async fn is_dead(storage: &mut dyn Storage) -> Outcome {
    for _ in 0..2 {
        let ops = vec![accept(C, 9, 9)];
        let written = storage.write(WriteBatch { sync: true, ops }).await;
        ensure!(
            matches!(written, Err(StorageError::Poisoned(_))),
            "after a failed write, a write gave {written:?}"
        );
        let read = storage.read(A, Slot(1)..Slot(3), 0).await;
        ensure!(
            matches!(read, Err(StorageError::Poisoned(_))),
            "after a failed write, a read gave {read:?}"
        );
    }
    Ok(())
}

pub(super) async fn a_fault_at_any_call_loses_nothing_acknowledged(bed: &mut Bed<'_>) -> Outcome {
    for call in 0..MAX_CALLS {
        bed.place = (bed.new_place)();
        let Some(opened) = bed.place.open_failing(OWNER, call) else {
            return Ok(());
        };
        let when = |failure: Failure| failure.when(format_args!("fault at call {call}"));
        let after = match opened {
            Ok(storage) => run(storage, Model::default()).await.map_err(when)?,
            Err(_) => Run {
                allowed: vec![Model::default()],
                has_failed: true,
            },
        };
        let mut opened = bed.open().await.map_err(when)?;
        let held = after
            .allowed
            .iter()
            .find(|model| model.difference(&opened.recovered).is_none());
        let Some(held) = held else {
            let difference = after.allowed[0].difference(&opened.recovered).unwrap_or_default();
            return Err(when(Failure(difference)));
        };
        opened.reads_like(held).await.map_err(when)?;
        if !after.has_failed {
            return Ok(());
        }
    }
    Err(Failure(format!(
        "the disk was called more than {MAX_CALLS} times"
    )))
}

pub(super) async fn after_a_fault_every_call_is_refused(bed: &mut Bed<'_>) -> Outcome {
    for call in 0..MAX_CALLS {
        bed.place = (bed.new_place)();
        let Some(Ok(mut storage)) = bed.place.open_failing(OWNER, call) else {
            return Ok(());
        };
        if storage.recover().await.is_ok() {
            return Ok(());
        }
        let again = storage.recover().await.map(drop);
        ensure!(
            matches!(again, Err(StorageError::Poisoned(_))),
            "after a failed recover, another one gave {again:?}"
        );
        is_dead(&mut *storage)
            .await
            .map_err(|failure| failure.when(format_args!("fault at call {call}")))?;
    }
    Ok(())
}
