//! The state as a stream of bytes.
//!
//! `"KVSTORE" [format]`, the revision, the number of keys and of nodes, then each record and each node, then a CRC-32C
//! of everything before it. Numbers are 64-bit little-endian; strings have their length in front.

use std::io::{self, BufWriter, Read, Write};

use paxos::SnapshotSource;

use super::{NodeAddresses, State, writes::MAX_VALUE_BYTES};

const MAGIC: &[u8; 8] = b"KVSTORE\x01";

/// A frozen state that will be written.
pub(super) struct Frozen(pub(super) State);

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        let mut out = Summed::new(BufWriter::with_capacity(256 << 10, to));
        let State { space, nodes } = &self.0;
        out.bytes(MAGIC)?;
        out.number(space.revision)?;
        out.number(space.len())?;
        out.number(nodes.len() as u64)?;
        for record in space.iter() {
            out.number(record.revision())?;
            out.string(record.key())?;
            out.string(record.value())?;
        }
        for (node, addresses) in nodes {
            out.number(*node)?;
            out.string(addresses.resp.as_bytes())?;
            out.string(addresses.http.as_bytes())?;
        }
        let sum = out.sum;
        out.inner.write_all(&sum.to_le_bytes())?;
        out.inner.flush()
    }
}

/// Reads a whole state back. Nothing that fails the checksum is returned.
pub(super) fn read(from: &mut dyn Read) -> io::Result<State> {
    let mut from = Summed::new(io::BufReader::with_capacity(256 << 10, from));
    if from.take(MAGIC.len())? != MAGIC {
        return Err(bad("not a snapshot of this store, or one of another version"));
    }
    let revision = from.take_number()?;
    let (keys, members) = (from.take_number()?, from.take_number()?);
    let mut state = State::default();
    for _ in 0..keys {
        let revision = from.take_number()?;
        let (key, value) = (from.take_string()?, from.take_string()?);
        state.space.insert(&key, &value, revision);
    }
    for _ in 0..members {
        let node = from.take_number()?;
        let mut text = || String::from_utf8(from.take_string()?).map_err(|_| bad("an address is not UTF-8"));
        let addresses = NodeAddresses {
            resp: text()?,
            http: text()?,
        };
        state.nodes.insert(node, addresses);
    }
    let expected = from.sum;
    let mut sum = [0; 4];
    from.inner.read_exact(&mut sum)?;
    if u32::from_le_bytes(sum) != expected || state.space.len() != keys {
        return Err(bad("the snapshot fails its checksum"));
    }
    if from.inner.read(&mut [0])? != 0 {
        return Err(bad("something follows the snapshot's end"));
    }
    state.space.revision = revision;
    Ok(state)
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A stream and the checksum of what went through it.
struct Summed<T> {
    inner: T,
    sum: u32,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self { inner, sum: 0 }
    }
}

impl<W: Write> Summed<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.inner.write_all(bytes)
    }

    fn number(&mut self, number: u64) -> io::Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    fn string(&mut self, string: &[u8]) -> io::Result<()> {
        self.number(string.len() as u64)?;
        self.bytes(string)
    }
}

impl<R: Read> Summed<R> {
    fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        // A damaged length must not reserve memory: what is not there is not allocated.
        let mut taken = Vec::with_capacity(bytes.min(4 << 10));
        if (&mut self.inner).take(bytes as u64).read_to_end(&mut taken)? < bytes {
            return Err(bad("the snapshot is cut off"));
        }
        self.sum = crc32c::crc32c_append(self.sum, &taken);
        Ok(taken)
    }

    fn take_number(&mut self) -> io::Result<u64> {
        let mut number = [0; 8];
        self.inner
            .read_exact(&mut number)
            .map_err(|_| bad("the snapshot is cut off"))?;
        self.sum = crc32c::crc32c_append(self.sum, &number);
        Ok(u64::from_le_bytes(number))
    }

    fn take_string(&mut self) -> io::Result<Vec<u8>> {
        let bytes = usize::try_from(self.take_number()?)
            .ok()
            .filter(|bytes| *bytes <= MAX_VALUE_BYTES);
        self.take(bytes.ok_or_else(|| bad("a string of the snapshot is too long"))?)
    }
}
