//! Files of whole blocks, written past the page cache where that can be done.
//!
//! A log is written once and hardly ever read: copying it into the page cache, one new page after the other, costs more
//! of the processor than everything else that a commit does. So whole blocks go from aligned memory straight to the
//! disk (`O_DIRECT`). Where a filesystem does not have that, and for anything that is not aligned, the page cache is
//! used as usual; the kernel keeps both ways of access consistent, and what makes a write durable is the sync, either
//! way.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use crate::files;

/// Frames and direct writes begin at multiples of this many bytes: so a torn frame spoils no other.
pub(super) const BLOCK_BYTES: usize = 4_096;

/// A file, and the way past the page cache to it.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    /// None once the filesystem has refused it.
    direct: Option<File>,
}

impl BlockFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::open_as(path, OpenOptions::new().read(true).write(true))
    }

    /// A new and empty file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Self::open_as(path, OpenOptions::new().write(true).create_new(true))
    }

    fn open_as(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let file = options.open(path)?;
        let direct = open_direct(path).ok();
        Ok(Self { file, direct })
    }

    pub(super) fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        files::read_exact_at(&self.file, buffer, at)
    }

    /// Writes all bytes: one system call as a rule.
    pub(super) fn write_all_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(bytes, at)) {
            match files::write_all_at(direct, bytes, at) {
                // What filesystems say that would open the file so, but not write it.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                written => return written,
            }
        }
        files::write_all_at(&self.file, bytes, at)
    }

    /// What was written is durable, with what is needed to find it.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// As [`sync_data`](Self::sync_data), and all that the filesystem knows of the file.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn is_aligned(bytes: &[u8], at: u64) -> bool {
    bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
        && bytes.len().is_multiple_of(BLOCK_BYTES)
        && at.is_multiple_of(BLOCK_BYTES as u64)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Memory that begins where a block would, used again and again.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Never grows in place: that could move what is aligned.
    memory: Vec<u8>,
    begin: usize,
    bytes: usize,
}

impl Blocks {
    /// So many bytes of zeros, instead of what was there.
    pub(super) fn zeroed(&mut self, bytes: usize) -> &mut [u8] {
        if self.memory.len() < self.begin + bytes {
            self.memory = vec![0; (bytes + BLOCK_BYTES).next_power_of_two()];
            // Unaligned memory is written by way of the page cache.
            let begin = self.memory.as_ptr().align_offset(BLOCK_BYTES);
            self.begin = if begin < BLOCK_BYTES { begin } else { 0 };
        }
        self.bytes = bytes;
        let zeroed = &mut self.memory[self.begin..self.begin + bytes];
        zeroed.fill(0);
        zeroed
    }

    /// Lets go of what is behind so many bytes.
    pub(super) fn truncate(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_any_size_are_aligned_and_zero() {
        let mut blocks = Blocks::default();
        for count in [1, 3, 2, 700, 1, 513] {
            let bytes = count * BLOCK_BYTES;
            blocks.zeroed(bytes).fill(7);
            assert!(is_aligned(blocks.as_slice(), 0));
            assert!(blocks.zeroed(bytes).iter().all(|byte| *byte == 0));
            blocks.truncate(bytes - 1);
            assert_eq!(blocks.as_slice().len(), bytes - 1);
            assert!(!is_aligned(blocks.as_slice(), 0));
        }
    }

    #[test]
    fn what_is_written_either_way_is_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        let mut file = BlockFile::create(&path).expect("a new file");
        let mut blocks = Blocks::default();
        blocks.zeroed(3 * BLOCK_BYTES).fill(1);
        file.write_all_at(blocks.as_slice(), 0).expect("aligned");
        let mut file = BlockFile::open(&path).expect("the file");
        file.write_all_at(&[2; 10], BLOCK_BYTES as u64)
            .expect("not aligned");
        blocks.zeroed(BLOCK_BYTES).fill(3);
        file.write_all_at(blocks.as_slice(), 2 * BLOCK_BYTES as u64)
            .expect("aligned");
        file.sync_data().expect("a sound disk");
        let mut read = vec![0; 3 * BLOCK_BYTES];
        file.read_exact_at(&mut read, 0).expect("three blocks");
        let expected = [
            vec![1; BLOCK_BYTES],
            vec![2; 10],
            vec![1; BLOCK_BYTES - 10],
            vec![3; BLOCK_BYTES],
        ];
        assert_eq!(read, expected.concat());
    }
}
