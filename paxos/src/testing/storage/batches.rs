//! Atomicity, order, durability; trimming.

use std::{vec, vec::Vec};

use super::{Bed, Model, Outcome, support::*};
use crate::storage::StorageError;

pub(super) async fn an_empty_batch_is_fine(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![], vec![accept(A, 1, 1)], vec![]]).await?;
    Ok(())
}

pub(super) async fn a_batch_takes_effect_in_order(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=4),
        vec![
            accept(A, 5, 1),
            trim(A, 5),
            accept(A, 6, 1),
            hard_state(A, 1, 5),
            hard_state(A, 2, 6),
            accept(A, 6, 2),
        ],
    ])
    .await?;
    Ok(())
}

pub(super) async fn a_batch_spans_groups(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        vec![
            accept(A, 1, 1),
            hard_state(B, 4, 0),
            accept(C, 1, 2),
            accept(A, 2, 1),
            accept(B, 9, 4),
        ],
        vec![trim(A, 1), hard_state(C, 2, 1), accept(B, 10, 4)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn a_misused_batch_changes_nothing(bed: &mut Bed<'_>) -> Outcome {
    let ops = vec![hard_state(A, 2, 0), accept(A, 1, 1), accept(B, 1, 1)];
    let mut model = Model::default();
    model.apply(&ops);
    let mut opened = bed.open().await?;
    opened.write(ops).await?;
    for misused in [
        vec![accept(A, 2, 2), remove(B), accept(A, 0, 2)],
        vec![accept(C, 1, 1), trim(A, 1), hard_state(A, 1, 0)],
    ] {
        let result = opened.write(misused).await;
        ensure!(
            matches!(result, Err(StorageError::Misuse(_))),
            "a misused batch gave {result:?}"
        );
    }
    opened.reads_like(&model).await?;
    drop(opened);
    bed.open().await?.is_like(&model).await
}

pub(super) async fn misuse_does_not_end_the_store(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    let refused = opened.write(vec![accept(A, 0, 1)]).await;
    ensure!(refused.is_err(), "writing slot 0 is not refused");
    opened.write(vec![accept(A, 1, 1)]).await?;
    let mut model = Model::default();
    model.apply(&[accept(A, 1, 1)]);
    drop(opened);
    bed.open().await?.is_like(&model).await
}

pub(super) async fn unsynced_batches_survive_as_a_prefix(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    let mut model = Model::default();
    let synced = vec![hard_state(A, 1, 0), accept(A, 1, 1)];
    model.apply(&synced);
    opened.write(synced).await?;
    let mut allowed = vec![model.clone()];
    for slot in 2..=20 {
        let ops = vec![accept(A, slot, 1), accept(B, slot, 1), hard_state(C, slot, slot)];
        model.apply(&ops);
        allowed.push(model.clone());
        opened.write_unsynced(ops).await?;
    }
    drop(opened);
    let mut opened = bed.open().await?;
    let held = allowed
        .iter()
        .find(|model| model.difference(&opened.recovered).is_none());
    ensure!(
        held.is_some(),
        "after a crash the store holds no prefix of the batches"
    );
    opened.reads_like(held.unwrap_or(&model)).await
}

pub(super) async fn a_synced_batch_makes_earlier_ones_durable(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    let mut model = Model::default();
    for slot in 1..=10 {
        let ops = vec![accept(A, slot, 1)];
        model.apply(&ops);
        opened.write_unsynced(ops).await?;
    }
    let last = vec![accept(B, 1, 1)];
    model.apply(&last);
    opened.write(last).await?;
    drop(opened);
    bed.open().await?.is_like(&model).await
}

pub(super) async fn trimming_drops_everything_up_to_the_mark(bed: &mut Bed<'_>) -> Outcome {
    let model = bed
        .holds([accept_run(A, 1..=10), vec![trim(A, 4)], vec![trim(A, 6)]])
        .await?;
    ensure!(model.groups[&A].slots.len() == 4, "the model is wrong");
    Ok(())
}

pub(super) async fn trimming_everything_leaves_the_mark(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([accept_run(A, 1..=10), vec![trim(A, 10)]]).await?;
    Ok(())
}

pub(super) async fn trimming_beyond_the_last_slot_is_fine(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=3),
        vec![trim(A, 100)],
        vec![accept(A, 101, 1), accept(A, 103, 1)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn trimming_below_the_mark_changes_nothing(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=9),
        vec![trim(A, 5)],
        vec![trim(A, 3)],
        vec![trim(A, 0), trim(A, 5)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn accepting_below_the_mark_changes_nothing(bed: &mut Bed<'_>) -> Outcome {
    let below = vec![accept(A, 2, 9), accept(A, 5, 9), accept(A, 6, 9)];
    bed.holds([accept_run(A, 1..=9), vec![trim(A, 5)], below.clone()])
        .await?;
    bed.place = (bed.new_place)();
    let mut together = accept_run(A, 1..=9);
    together.push(trim(A, 5));
    together.extend(below);
    bed.holds([together]).await?;
    Ok(())
}

pub(super) async fn trimming_into_a_gap_is_fine(bed: &mut Bed<'_>) -> Outcome {
    let ops: Vec<_> = [1, 2, 8, 9].map(|slot| accept(A, slot, 1)).to_vec();
    bed.holds([ops, vec![trim(A, 5)], vec![accept(A, 6, 1)]]).await?;
    Ok(())
}

pub(super) async fn a_large_trim_is_complete(bed: &mut Bed<'_>) -> Outcome {
    // More than a store may want to delete at once, and then some more life.
    let mut batches = vec![
        accept_run(A, 1..=2_600),
        accept_run(B, 1..=700),
        vec![trim(A, 2_550), trim(B, 700)],
    ];
    batches.extend((2_601..=2_605).map(|slot| vec![accept(A, slot, 2), trim(A, slot - 40)]));
    bed.holds(batches).await?;
    Ok(())
}

pub(super) async fn trims_and_entries_share_a_batch(bed: &mut Bed<'_>) -> Outcome {
    let batches = (1..=20_u64).map(|slot| vec![accept(A, slot, 1), trim(A, slot.saturating_sub(3))]);
    bed.holds(batches).await?;
    Ok(())
}
