//! Ranges and bounds of reads.

use std::{vec, vec::Vec};

use super::{Bed, Model, Outcome, support::*};
use crate::types::{Accepted, Entry, Slot};

fn slots(read: &[(Slot, Accepted)]) -> Vec<u64> {
    read.iter().map(|(slot, _)| slot.0).collect()
}

pub(super) async fn an_unknown_group_reads_empty(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened.write(vec![accept(A, 1, 1)]).await?;
    let read = opened.storage.read(B, Slot(0)..Slot::MAX, usize::MAX).await?;
    ensure!(read.is_empty(), "group {B} was never written, read: {read:?}");
    Ok(())
}

pub(super) async fn the_end_of_a_range_is_left_out(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened.write(accept_run(A, 1..=9)).await?;
    let read = slots(&opened.storage.read(A, Slot(3)..Slot(6), usize::MAX).await?);
    ensure!(read == [3, 4, 5], "slots 3..6 read as {read:?}");
    Ok(())
}

pub(super) async fn an_empty_or_reversed_range_reads_empty(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened.write(accept_run(A, 1..=9)).await?;
    for (from, to) in [(3, 3), (6, 3), (0, 0), (u64::MAX, 0), (10, 20)] {
        let read = opened.storage.read(A, Slot(from)..Slot(to), usize::MAX).await?;
        ensure!(read.is_empty(), "slots {from}..{to} read as {read:?}");
    }
    Ok(())
}

pub(super) async fn the_first_entry_is_read_in_any_case(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    let ops = (1..=3).map(|slot| accept_entry(A, slot, 1, commands(vec![0; 10_000])));
    opened.write(ops.collect()).await?;
    for max_bytes in [0, 1, 9_999] {
        let read = slots(&opened.storage.read(A, Slot(2)..Slot(4), max_bytes).await?);
        ensure!(
            read == [2],
            "with a bound of {max_bytes} bytes, slots 2..4 read as {read:?}"
        );
    }
    Ok(())
}

pub(super) async fn max_bytes_counts_entry_sizes(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    let ops = (1..=5).map(|slot| accept_entry(A, slot, 1, commands(vec![0; 100])));
    opened.write(ops.collect()).await?;
    let size = 100 + Entry::OVERHEAD;
    for (max_bytes, expected) in [
        (2 * size - 1, 1),
        (2 * size, 2),
        (3 * size - 1, 2),
        (3 * size, 3),
        (5 * size, 5),
        (usize::MAX, 5),
    ] {
        let read = opened.storage.read(A, Slot(1)..Slot::MAX, max_bytes).await?.len();
        ensure!(
            read == expected,
            "{max_bytes} bytes hold {expected} entries of {size} bytes, {read} were read"
        );
    }
    Ok(())
}

pub(super) async fn reads_skip_gaps(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened
        .write([2, 5, 90].map(|slot| accept(A, slot, 1)).to_vec())
        .await?;
    let read = slots(&opened.storage.read(A, Slot(1)..Slot(91), usize::MAX).await?);
    ensure!(read == [2, 5, 90], "slots 2, 5 and 90 read as {read:?}");
    Ok(())
}

pub(super) async fn reads_see_writes_that_are_not_synced(bed: &mut Bed<'_>) -> Outcome {
    let mut model = Model::default();
    let mut opened = bed.open().await?;
    for ops in [
        accept_run(A, 1..=5),
        vec![accept(A, 3, 2), accept(B, 1, 1)],
        vec![trim(A, 2), accept(A, 6, 2)],
    ] {
        model.apply(&ops);
        opened.write_unsynced(ops).await?;
        opened.reads_like(&model).await?;
    }
    Ok(())
}

pub(super) async fn every_range_reads_like_the_model(bed: &mut Bed<'_>) -> Outcome {
    let ops: Vec<_> = [1, 2, 3, 6, 7, 11].map(|slot| accept(A, slot, slot)).to_vec();
    let model = bed.holds([ops, vec![trim(A, 1), accept(B, 4, 1)]]).await?;
    let mut opened = bed.open().await?;
    for from in 0..13 {
        for to in 0..13 {
            for max_bytes in [0, 150, 230, 1_000] {
                let range = Slot(from)..Slot(to);
                let expected = model.read(A, range.clone(), max_bytes);
                let read = opened.storage.read(A, range, max_bytes).await?;
                ensure!(
                    read == expected,
                    "slots {from}..{to} within {max_bytes} bytes are {:?}, read: {:?}",
                    slots(&expected),
                    slots(&read)
                );
            }
        }
    }
    Ok(())
}
