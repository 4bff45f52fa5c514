//! Snapshots on a simulated disk: whole ones survive a crash, what is being written or received does not.

use std::{collections::BTreeMap, vec::Vec};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{snapshot::SnapshotHeader, types::Slot};

/// The snapshots of one group on one node.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    whole: BTreeMap<Slot, Bytes>,
    partial: Option<Partial>,
}

/// A snapshot that is being received.
#[derive(Clone, Debug)]
struct Partial {
    upto: Slot,
    total: u64,
    bytes: Vec<u8>,
}

/// What came of a piece.
#[derive(Debug)]
pub(super) enum Stored {
    /// So many bytes are there without a gap.
    Upto(u64),
    Whole(SnapshotHeader),
    /// The whole fails its checksum.
    Damaged,
}

impl Files {
    pub(super) fn newest(&self) -> Slot {
        self.whole.keys().next_back().copied().unwrap_or_default()
    }

    /// The newest whole snapshot: its header and the machine's bytes.
    pub(super) fn open_newest(&self) -> Option<(SnapshotHeader, Bytes)> {
        self.whole.values().next_back().and_then(unseal)
    }

    /// The machine's bytes of a snapshot.
    pub(super) fn open(&self, upto: Slot) -> Option<Bytes> {
        self.whole.get(&upto).and_then(unseal).map(|(_, machine)| machine)
    }

    /// A snapshot is durable from now on; only the `keep` newest ones stay.
    pub(super) fn save(&mut self, header: &SnapshotHeader, machine: &[u8], keep: usize) {
        self.add(header.upto, seal(header, machine), keep);
    }

    fn add(&mut self, upto: Slot, file: Bytes, keep: usize) {
        self.whole.insert(upto, file);
        while self.whole.len() > keep {
            self.whole.pop_first();
        }
    }

    /// How many bytes the whole has, and a piece of it; nothing of nothing if that snapshot is not there.
    pub(super) fn read(&self, upto: Slot, offset: u64, max_bytes: usize) -> (u64, Bytes) {
        let Some(file) = self.whole.get(&upto) else {
            return (0, Bytes::new());
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
        let to = from.saturating_add(max_bytes).min(file.len());
        (file.len() as u64, file.slice(from..to))
    }

    /// Keeps a piece of a peer's snapshot.
    pub(super) fn store(&mut self, upto: Slot, total: u64, offset: u64, data: &[u8], keep: usize) -> Stored {
        let other = |partial: &Partial| partial.upto != upto || partial.total != total;
        if self.partial.as_ref().is_none_or(other) {
            if offset != 0 {
                return Stored::Upto(0);
            }
            let bytes = Vec::new();
            self.partial = Some(Partial { upto, total, bytes });
        }
        let Some(partial) = &mut self.partial else {
            return Stored::Upto(0);
        };
        if offset == partial.bytes.len() as u64 {
            partial.bytes.extend_from_slice(data);
        }
        if (partial.bytes.len() as u64) < total {
            return Stored::Upto(partial.bytes.len() as u64);
        }
        let file = Bytes::from(core::mem::take(&mut partial.bytes));
        self.partial = None;
        match unseal(&file) {
            Some((header, _)) => {
                self.add(upto, file, keep);
                Stored::Whole(header)
            }
            None => Stored::Damaged,
        }
    }

    pub(super) const fn is_receiving(&self) -> bool {
        self.partial.is_some()
    }

    /// All but those as of these slots are gone, or damaged, which comes to the same.
    pub(super) fn lose_above(&mut self, kept: Slot) {
        self.whole.retain(|upto, _| *upto <= kept);
        self.partial = None;
    }

    /// What was not whole is gone.
    pub(super) fn crash(&mut self) {
        self.partial = None;
    }
}

/// `header length u32, header, machine, crc32c u32`, little-endian.
fn seal(header: &SnapshotHeader, machine: &[u8]) -> Bytes {
    let header = header.encode();
    let mut file = BytesMut::new();
    file.put_u32_le(header.len() as u32);
    file.put_slice(&header);
    file.put_slice(machine);
    let sum = crc32c::crc32c(&file);
    file.put_u32_le(sum);
    file.freeze()
}

fn unseal(file: &Bytes) -> Option<(SnapshotHeader, Bytes)> {
    let mut rest = file.clone();
    let mut sum = rest.split_off(rest.len().checked_sub(4)?);
    if crc32c::crc32c(&rest) != sum.get_u32_le() || rest.len() < 4 {
        return None;
    }
    let header_bytes = rest.get_u32_le() as usize;
    if header_bytes > rest.len() {
        return None;
    }
    let header = SnapshotHeader::decode(&rest.split_to(header_bytes)).ok()?;
    Some((header, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(upto: u64) -> SnapshotHeader {
        SnapshotHeader {
            upto: Slot(upto),
            ..SnapshotHeader::default()
        }
    }

    #[test]
    fn a_snapshot_goes_over_in_pieces_and_a_damaged_one_does_not() {
        let (mut from, mut to) = (Files::default(), Files::default());
        from.save(&header(7), b"state", 1);
        for damage in [true, false] {
            let mut offset = 0;
            let stored = loop {
                let (total, data) = from.read(Slot(7), offset, 10);
                let mut data = data.to_vec();
                if damage && offset == 20 {
                    data[0] ^= 1;
                }
                match to.store(Slot(7), total, offset, &data, 1) {
                    Stored::Upto(next) => offset = next,
                    end => break end,
                }
            };
            assert_eq!(matches!(stored, Stored::Damaged), damage);
        }
        assert_eq!(to.open(Slot(7)).as_deref(), Some(&b"state"[..]));
        from.save(&header(9), b"later", 1);
        assert_eq!(from.read(Slot(7), 0, 10).0, 0, "only the newest one is kept");
    }
}
