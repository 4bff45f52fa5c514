//! Damaged records: reported, never read, and gone when they are written again or trimmed.

use std::{fs, io, path::Path, vec, vec::Vec};

use bytes::Bytes;

use super::{Bed, Model, Opened, Outcome, support::*};
use crate::{
    storage::{Finding, StorageError},
    types::{Slot, WriteOp},
};

/// So large that a store that keeps records in blocks keeps few of them in one.
const PAYLOAD_BYTES: usize = 9_000;

/// The slot whose record is damaged.
const HIT: Slot = Slot(5);

/// Flips a bit of these bytes wherever they are in the files of a directory, and of those in it. Whether they were there.
///
/// # Errors
///
/// A file that cannot be read or written.
pub fn flip_in_files(directory: &Path, wanted: &[u8]) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found |= flip_in_files(&path, wanted)?;
            continue;
        }
        let mut contents = fs::read(&path)?;
        let windows = contents.windows(wanted.len().max(1)).enumerate();
        let hits: Vec<usize> = windows
            .filter(|(_, window)| *window == wanted)
            .map(|(at, _)| at + wanted.len() / 2)
            .collect();
        for at in &hits {
            if let Some(byte) = contents.get_mut(*at) {
                *byte ^= 4;
            }
        }
        if !hits.is_empty() {
            fs::write(&path, contents)?;
            found = true;
        }
    }
    Ok(found)
}

fn payload(slot: u64, round: u64) -> Bytes {
    let mut payload = std::format!("slot {slot}, round {round}; ").into_bytes();
    let mut byte = slot as u8;
    payload.resize_with(PAYLOAD_BYTES, || {
        byte = byte.wrapping_mul(31).wrapping_add(7);
        byte
    });
    payload.into()
}

fn large(slot: u64, round: u64) -> WriteOp {
    accept_entry(A, slot, round, commands(payload(slot, round)))
}

/// A store that was opened after one of its records was damaged, and what it held; `None` if that cannot be arranged.
async fn damaged(bed: &mut Bed<'_>) -> Outcome<Option<(Opened, Model)>> {
    let mut model = Model::default();
    // Records of an earlier life are in other places than those of the last.
    for slots in [1..=10, 11..=14] {
        let mut opened = bed.open().await?;
        for slot in slots {
            let ops = vec![large(slot, 1), hard_state(A, slot, slot), accept(B, slot, slot)];
            model.apply(&ops);
            opened.write(ops).await?;
        }
        opened.storage.close().await?;
    }
    if !bed.place.damage(A, HIT, &payload(HIT.0, 1)) {
        return Ok(None);
    }
    Ok(Some((bed.open().await?, model)))
}

/// Of the group whose record was hit.
fn lost(opened: &Opened) -> Outcome<Vec<Slot>> {
    Ok(opened.group(A)?.damaged.clone())
}

pub(super) async fn a_damaged_slot_is_reported_and_never_read(bed: &mut Bed<'_>) -> Outcome {
    let Some((mut opened, model)) = damaged(bed).await? else {
        return Ok(());
    };
    // A store that is opened again has not forgotten it.
    for _ in 0..2 {
        let (group, slots) = (opened.group(A)?.clone(), lost(&opened)?);
        ensure!(slots.contains(&HIT), "damaged is {slots:?}, not slot {HIT}");
        let reported = |finding: &Finding| matches!(finding, Finding::Damaged { group, .. } if *group == A);
        let findings = &opened.recovered.findings;
        ensure!(findings.iter().any(reported), "the findings are {findings:?}");
        for (slot, accepted) in &model.groups[&A].slots {
            let read = opened.storage.read(A, *slot..slot.next(), usize::MAX).await;
            if slots.contains(slot) {
                ensure!(
                    matches!(read, Err(StorageError::Corrupt(_))),
                    "the damaged slot {slot} reads {read:?}"
                );
                ensure!(
                    !group.index.contains_key(slot),
                    "the damaged slot {slot} is in the index"
                );
            } else {
                let expected = vec![(*slot, accepted.clone())];
                ensure!(read? == expected, "slot {slot} is whole and reads something else");
            }
        }
        drop(opened);
        opened = bed.open().await?;
    }
    Ok(())
}

pub(super) async fn a_damaged_slot_that_is_written_again_is_whole(bed: &mut Bed<'_>) -> Outcome {
    let Some((mut opened, mut model)) = damaged(bed).await? else {
        return Ok(());
    };
    let ops: Vec<WriteOp> = lost(&opened)?.iter().map(|slot| large(slot.0, 2)).collect();
    ensure!(!ops.is_empty(), "nothing is reported as damaged");
    model.apply(&ops);
    opened.write(ops).await?;
    opened.reads_like(&model).await?;
    is_whole(bed, opened, &model).await
}

pub(super) async fn a_damaged_slot_that_is_trimmed_is_forgotten(bed: &mut Bed<'_>) -> Outcome {
    let Some((mut opened, mut model)) = damaged(bed).await? else {
        return Ok(());
    };
    let last = lost(&opened)?.last().copied().unwrap_or_default();
    ensure!(last >= HIT, "slot {HIT} is not reported as damaged");
    let ops = vec![trim(A, last.0)];
    model.apply(&ops);
    opened.write(ops).await?;
    opened.reads_like(&model).await?;
    is_whole(bed, opened, &model).await
}

/// After a crash, and after an orderly close.
async fn is_whole(bed: &mut Bed<'_>, opened: Opened, model: &Model) -> Outcome {
    drop(opened);
    let mut opened = bed.open().await?;
    opened
        .is_like(model)
        .await
        .map_err(|failure| failure.when("after a crash"))?;
    opened.storage.close().await?;
    drop(opened);
    let mut opened = bed.open().await?;
    opened
        .is_like(model)
        .await
        .map_err(|failure| failure.when("after a close"))
}
