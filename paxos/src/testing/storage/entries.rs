//! Entries and hard states, as they were written.

use std::{vec, vec::Vec};

use bytes::Bytes;

use super::{Bed, Outcome, support::*};
use crate::{
    storage::StorageError,
    types::{Ballot, Entry, EntryKind, GroupId, HardState, NodeId, Quarantine, Slot, WriteOp},
};

pub(super) async fn an_entry_comes_back_whole(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![accept(A, 1, 5)]]).await?;
    let mut opened = bed.open().await?;
    let read = opened.storage.read(A, Slot(1)..Slot(2), 0).await?;
    let [(Slot(1), accepted)] = &read[..] else {
        ensure!(false, "one entry was written to slot 1, read: {read:?}");
        return Ok(());
    };
    ensure!(
        accepted.ballot == ballot(5),
        "the ballot became {}",
        accepted.ballot
    );
    ensure!(
        accepted.entry == commands("1/1@5"),
        "the entry became {:?}",
        accepted.entry
    );
    Ok(())
}

pub(super) async fn every_kind_of_entry_comes_back(bed: &mut Bed<'_>) -> Outcome {
    let membership = Entry {
        kind: EntryKind::Membership,
        payload: Bytes::from_static(b"who"),
    };
    let entries = [Entry::NOOP, commands("what"), membership];
    let ops = (1..)
        .zip(entries)
        .map(|(slot, entry)| accept_entry(A, slot, 1, entry));
    bed.holds([ops.collect()]).await?;
    Ok(())
}

pub(super) async fn an_empty_payload_is_an_entry(bed: &mut Bed<'_>) -> Outcome {
    let model = bed
        .holds([vec![
            accept_entry(A, 1, 1, commands("")),
            accept_entry(A, 2, 1, Entry::NOOP),
        ]])
        .await?;
    ensure!(model.groups[&A].slots.len() == 2, "the model is wrong");
    Ok(())
}

pub(super) async fn payloads_of_all_sizes_come_back(bed: &mut Bed<'_>) -> Outcome {
    // Around the block sizes that engines use.
    let around = |size: usize| [size - 40, size - 1, size, size + 1];
    let sizes = [128, 256, 512, 4_096, 8_192, 16_384, 32_768, 65_536];
    let payload = |bytes: usize| (0..bytes).map(|at| (at * 31 + bytes) as u8).collect::<Bytes>();
    let ops = (1..).zip(sizes.into_iter().flat_map(around));
    let ops = ops.map(|(slot, bytes)| accept_entry(A, slot, 1, commands(payload(bytes))));
    bed.holds([ops.collect()]).await?;
    Ok(())
}

pub(super) async fn a_payload_of_two_mebibytes_comes_back(bed: &mut Bed<'_>) -> Outcome {
    let large = Bytes::from(vec![0xA5; 2 << 20]);
    bed.holds([
        vec![
            accept(A, 1, 1),
            accept_entry(A, 2, 1, commands(large)),
            accept(A, 3, 1),
        ],
        vec![accept(B, 1, 1)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn every_byte_value_comes_back(bed: &mut Bed<'_>) -> Outcome {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let single = (0..=u8::MAX).map(|byte| accept_entry(A, u64::from(byte) + 2, 1, commands(vec![byte; 3])));
    let ops = core::iter::once(accept_entry(A, 1, 1, commands(all))).chain(single);
    bed.holds([ops.collect()]).await?;
    Ok(())
}

pub(super) async fn gaps_between_slots_stay_gaps(bed: &mut Bed<'_>) -> Outcome {
    let ops = [3, 4, 1_000, 1_000_000, 1 << 40].map(|slot| accept(A, slot, 1));
    bed.holds([ops.to_vec(), vec![accept(A, 7, 1)]]).await?;
    Ok(())
}

pub(super) async fn slots_may_be_written_in_any_order(bed: &mut Bed<'_>) -> Outcome {
    let ops = [9, 2, 300, 5, 1, 256, 255].map(|slot| accept(A, slot, 1));
    bed.holds(ops.map(|op| vec![op])).await?;
    Ok(())
}

pub(super) async fn a_higher_ballot_overwrites(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        accept_run(A, 1..=10),
        (3..=7).map(|slot| accept(A, slot, 2)).collect(),
        vec![accept(A, 5, 9)],
    ])
    .await?;
    Ok(())
}

pub(super) async fn overwriting_changes_kind_and_length(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([
        vec![
            accept_entry(A, 1, 1, commands(vec![1; 5_000])),
            accept_entry(A, 2, 1, Entry::NOOP),
        ],
        vec![
            accept_entry(A, 1, 2, Entry::NOOP),
            accept_entry(A, 2, 2, commands(vec![2; 5_000])),
        ],
    ])
    .await?;
    Ok(())
}

pub(super) async fn the_last_of_two_entries_in_a_batch_counts(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![
        accept(A, 1, 1),
        accept(A, 2, 1),
        accept(A, 1, 2),
        accept(A, 1, 3),
    ]])
    .await?;
    Ok(())
}

pub(super) async fn the_largest_slots_ballots_and_groups_work(bed: &mut Bed<'_>) -> Outcome {
    let highest = Ballot {
        round: u64::MAX,
        node: NodeId(u64::MAX),
    };
    let mut ops = Vec::new();
    for group in [GroupId(0), GroupId(255), GroupId(u32::MAX)] {
        let state = HardState {
            promised: highest,
            chosen: Slot::MAX,
            membership: Slot::MAX,
            quarantine: Some(Quarantine::Diverged { slot: Slot::MAX }),
        };
        ops.push(WriteOp::HardState { group, state });
        for slot in [1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, u64::MAX - 1] {
            ops.push(accept(group, slot, 1));
        }
        ops.push(WriteOp::Accept {
            group,
            slot: Slot(2),
            ballot: highest,
            entry: commands("highest"),
        });
    }
    bed.holds([ops]).await?;
    Ok(())
}

pub(super) async fn slot_zero_is_misuse(bed: &mut Bed<'_>) -> Outcome {
    let result = bed.open().await?.write(vec![accept(A, 0, 1)]).await;
    ensure!(
        matches!(result, Err(StorageError::Misuse(_))),
        "writing slot 0 gave {result:?}"
    );
    Ok(())
}

pub(super) async fn thousands_of_entries_come_back(bed: &mut Bed<'_>) -> Outcome {
    let batches = (0..30).map(|batch| {
        let slots = (batch * 100 + 1)..=(batch * 100 + 100);
        let mut ops: Vec<_> = slots
            .map(|slot| accept(GroupId((slot % 7) as u32), slot, 1))
            .collect();
        ops.push(hard_state(A, batch + 1, batch * 100));
        ops
    });
    bed.holds(batches).await?;
    Ok(())
}

pub(super) async fn the_index_tells_ballots_and_lengths(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![accept_entry(A, 4, 6, commands("12345"))]])
        .await?;
    let opened = bed.open().await?;
    let index = &opened.group(A)?.index;
    let entry = index.get(&Slot(4)).copied().unwrap_or_default();
    ensure!(
        index.len() == 1 && entry.ballot == ballot(6) && entry.bytes == 5,
        "the index of one entry of 5 bytes is {index:?}"
    );
    Ok(())
}

pub(super) async fn a_hard_state_comes_back(bed: &mut Bed<'_>) -> Outcome {
    bed.holds([vec![hard_state(A, 12, 34)]]).await?;
    let found = bed.open().await?.group(A)?.hard_state;
    let expected = HardState {
        promised: ballot(12),
        chosen: Slot(34),
        membership: Slot(17),
        quarantine: None,
    };
    ensure!(found == expected, "{expected:?} became {found:?}");
    Ok(())
}

pub(super) async fn the_last_hard_state_counts(bed: &mut Bed<'_>) -> Outcome {
    let mut batches: Vec<_> = (1..=20).map(|round| vec![hard_state(A, round, 0)]).collect();
    batches.push(vec![
        hard_state(A, 30, 1),
        hard_state(A, 30, 2),
        hard_state(A, 31, 2),
    ]);
    bed.holds(batches).await?;
    Ok(())
}

pub(super) async fn entries_do_not_touch_the_hard_state(bed: &mut Bed<'_>) -> Outcome {
    let model = bed
        .holds([vec![hard_state(A, 2, 0)], vec![accept(A, 1, 9)]])
        .await?;
    ensure!(model.promised(A) == ballot(2), "the model is wrong");
    Ok(())
}

pub(super) async fn a_promise_that_goes_down_is_misuse(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened.write(vec![hard_state(A, 5, 0)]).await?;
    for ops in [
        vec![hard_state(A, 4, 0)],
        vec![hard_state(A, 7, 0), accept(A, 1, 7), hard_state(A, 6, 0)],
    ] {
        let result = opened.write(ops).await;
        ensure!(
            matches!(result, Err(StorageError::Misuse(_))),
            "a lower promise gave {result:?}"
        );
    }
    drop(opened);
    let promised = bed.open().await?.group(A)?.hard_state.promised;
    ensure!(
        promised == ballot(5),
        "a promise of {} went to {promised}",
        ballot(5)
    );
    Ok(())
}
