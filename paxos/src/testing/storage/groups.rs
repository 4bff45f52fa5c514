//! Many groups in one store.

use std::{vec, vec::Vec};

use super::{Bed, Outcome, support::*};
use crate::types::GroupId;

pub(super) async fn groups_are_apart(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        vec![accept(A, 1, 1), accept(B, 1, 2), accept(C, 1, 3)],
        vec![
            accept(B, 1, 5),
            accept(GroupId(256), 1, 1),
            accept(GroupId(1 << 24), 1, 1),
        ],
    ])
    .await?;
    Ok(())
}

pub(super) async fn promises_of_groups_are_apart(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        vec![hard_state(A, 9, 1)],
        vec![hard_state(B, 2, 5)],
        vec![hard_state(C, 1, 0)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn trimming_one_group_leaves_the_others(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=5),
        accept_run(B, 1..=5),
        accept_run(C, 1..=5),
        vec![trim(B, 4)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn trimming_an_unknown_group_creates_it(bed: &mut Bed<'_>) -> Outcome {
    // What installing a snapshot in a new replica does.
    bed.holds([
        vec![trim(A, 1_000), hard_state(A, 3, 1_000)],
        vec![accept(A, 1_001, 3)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn a_removed_group_is_gone(bed: &mut Bed<'_>) -> Outcome {
    let model = bed
        .holds([
            accept_run(A, 1..=50),
            accept_run(B, 1..=50),
            vec![hard_state(A, 4, 2), hard_state(B, 4, 2)],
            vec![remove(A)],
        ])
        .await?;
    ensure!(!model.groups.contains_key(&A), "the model is wrong");
    Ok(())
}

pub(super) async fn a_removed_group_comes_back_empty(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=50),
        vec![hard_state(A, 9, 2), trim(A, 20)],
        vec![remove(A)],
        vec![accept(A, 7, 1), hard_state(A, 1, 0)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn a_group_may_be_replaced_in_one_batch(bed: &mut Bed<'_>) -> Outcome {
    let mut ops = vec![accept(A, 60, 8), remove(A)];
    ops.extend([accept(A, 3, 1), hard_state(A, 1, 0), accept(A, 51, 1)]);
    bed.holds([accept_run(A, 1..=50), vec![hard_state(A, 9, 2)], ops])
        .await?;
    Ok(())
}

pub(super) async fn a_group_may_be_removed_right_after_a_large_trim(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=2_600),
        vec![trim(A, 2_500)],
        vec![remove(A)],
        accept_run(A, 2_000..=2_010),
        vec![accept(B, 1, 1)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn removing_an_unknown_group_is_fine(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![remove(A)], vec![accept(B, 1, 1), remove(C)]])
        .await?;
    Ok(())
}

pub(super) async fn hundreds_of_groups_share_a_store(bed: &mut Bed<'_>) -> Outcome {
    let all =
        |op: fn(GroupId) -> crate::types::WriteOp| -> Vec<_> { (0..300).map(GroupId).map(op).collect() };
    bed.holds([
        all(|group| accept(group, 1, 1)),
        all(|group| hard_state(group, 2, 1)),
        all(|group| accept(group, 2, 2)),
    ])
    .await?;
    Ok(())
}
