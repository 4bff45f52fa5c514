//! Files and directories, durably.

use std::{fs::File, io, path::Path};

/// Makes the entries of a directory durable: files created, renamed or deleted in it.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    // Elsewhere directories cannot be opened for syncing, and their entries are durable with the files.
    if cfg!(unix) {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}
