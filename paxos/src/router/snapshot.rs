//! The snapshot of a router: those of its machines, one behind the other.
//!
//! It is `PRTR`, a version byte, the count of machines and their ids (u32 each), and for each machine, in this order, its
//! own snapshot in chunks: a length (u32) and so many bytes; the length zero ends it. All little-endian.

use core::mem;
use std::{
    boxed::Box,
    format,
    io::{self, Read, Write},
    vec::Vec,
};

use super::{MachineId, Router};
use crate::{
    state_machine::{MachineError, SnapshotSource},
    types::Slot,
};

const MAGIC: [u8; 4] = *b"PRTR";
const VERSION: u8 = 1;
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// The frozen states of all machines.
pub(super) struct Frozen(pub(super) Vec<(MachineId, Box<dyn SnapshotSource>)>);

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&MAGIC)?;
        to.write_all(&[VERSION])?;
        let count = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        to.write_all(&count.to_le_bytes())?;
        for (id, _) in &self.0 {
            to.write_all(&id.0.to_le_bytes())?;
        }
        for (_, source) in self.0 {
            let mut chunks = Chunks {
                to,
                chunk: Vec::with_capacity(CHUNK_BYTES),
            };
            source.write_to(&mut chunks)?;
            chunks.flush()?;
            to.write_all(&0_u32.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Writes what it is given in chunks, none of them empty.
struct Chunks<'a> {
    to: &'a mut dyn Write,
    chunk: Vec<u8>,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        let count = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = mem::take(&mut self.chunk);
        if !chunk.is_empty() {
            self.to.write_all(&(chunk.len() as u32).to_le_bytes())?;
            self.to.write_all(&chunk)?;
        }
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }
}

/// One machine's part of a snapshot.
struct Part<'a> {
    from: &'a mut dyn Read,
    /// What is left of the chunk.
    left: u32,
    ended: bool,
}

impl<'a> Part<'a> {
    fn new(from: &'a mut dyn Read) -> Self {
        Self {
            from,
            left: 0,
            ended: false,
        }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.left = read_u32(self.from)?;
            self.ended = self.left == 0;
        }
        let count = into.len().min(self.left as usize);
        let read = self.from.read(&mut into[..count])?;
        if read == 0 && count > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u32;
        Ok(read)
    }
}

fn read_u32(from: &mut dyn Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn cannot_read(error: io::Error) -> MachineError {
    MachineError(format!("cannot read the router's snapshot: {error}"))
}

fn read_ids(from: &mut dyn Read) -> Result<Vec<MachineId>, MachineError> {
    let mut header = [0; 5];
    from.read_exact(&mut header).map_err(cannot_read)?;
    let [m0, m1, m2, m3, version] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(MachineError::new(
            "the snapshot is not one of a router: it was taken of another service, or before a router was put round it",
        ));
    }
    if version != VERSION {
        return Err(MachineError(format!(
            "the router's snapshot has format {version}; this version reads format {VERSION}"
        )));
    }
    let count = read_u32(from).map_err(cannot_read)?;
    let ids = (0..count).map(|_| read_u32(from).map(MachineId).map_err(cannot_read));
    let ids: Vec<MachineId> = ids.collect::<Result<_, _>>()?;
    if ids.is_sorted_by(|a, b| a < b) {
        Ok(ids)
    } else {
        Err(MachineError::new(
            "the router's snapshot does not list its machines in order",
        ))
    }
}

impl Router {
    pub(super) fn restore_machines(&mut self, upto: Slot, from: &mut dyn Read) -> Result<(), MachineError> {
        let ids = read_ids(from)?;
        self.fits(&ids)?;
        for (id, routed) in &mut self.machines {
            if let (Some(empty), false) = (&routed.empty, ids.contains(id)) {
                let emptied = routed.machine.restore(upto, &mut &empty[..]);
                emptied.map_err(|error| error.of(*id))?;
            }
        }
        for id in ids {
            let mut part = Part::new(from);
            if let Some(routed) = self.machines.get_mut(&id) {
                routed
                    .machine
                    .restore(upto, &mut part)
                    .map_err(|error| error.of(id))?;
            }
            // A machine need not have read its part to the end.
            io::copy(&mut part, &mut io::sink()).map_err(cannot_read)?;
        }
        Ok(())
    }

    fn fits(&self, ids: &[MachineId]) -> Result<(), MachineError> {
        for id in ids {
            if !self.machines.contains_key(id) && !self.retired.contains(id) {
                return Err(MachineError(format!(
                    "the snapshot holds machine {id}, which this version does not have; run the version that wrote it, \
                     or declare the id retired"
                )));
            }
        }
        let mut lacking = self.machines.iter().filter(|(id, _)| !ids.contains(id));
        match lacking.find(|(_, routed)| routed.empty.is_none()) {
            Some((id, _)) => Err(MachineError(format!(
                "the snapshot lacks machine {id}; if it is older than that machine, declare it an added one"
            ))),
            None => Ok(()),
        }
    }
}
