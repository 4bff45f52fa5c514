//! Directories that are there after a crash. For stores that keep files, those of this project among them; no part of the
//! crate's interface.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
};

/// Makes the entries of a directory durable: what was created, renamed or removed in it.
pub fn sync(path: &Path) -> io::Result<()> {
    // Elsewhere directories cannot be opened, and their entries are as durable as it gets.
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Creates the directory, and all above it that are missing, durably. One that is there is made durable too: whoever
/// created it may not have come so far.
pub fn create(path: &Path) -> io::Result<()> {
    create_by(path, &|path| fs::create_dir(path), &sync)
}

/// As [`create`], with these steps: `make` creates one directory, `sync` is [`sync`].
pub fn create_by(
    path: &Path,
    make: &dyn Fn(&Path) -> io::Result<()>,
    sync: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let is_there = path.is_dir();
    if !is_there {
        if !parent.is_dir() {
            create_by(parent, make, sync)?;
        }
        match make(path) {
            Err(error) if !path.is_dir() => return Err(error),
            _ => {}
        }
    }
    match sync(parent) {
        Err(error) if is_there && is_none_of_ours(&error) => Ok(()),
        synced => synced,
    }
}

/// Whether a directory cannot be synced because it belongs to somebody else, or because nothing on its file system can:
/// then whoever made what is in it has seen to that. The root of a container may be such a file system, with a data
/// volume in it.
fn is_none_of_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
            | ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates this in a directory that cannot be synced because of that.
    fn create_in_one_that_fails(path: &Path, kind: ErrorKind) -> io::Result<()> {
        create_by(path, &|path| fs::create_dir(path), &|_| Err(kind.into()))
    }

    #[test]
    fn a_directory_that_is_there_needs_no_parent_that_can_be_synced() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [
            ErrorKind::PermissionDenied,
            ErrorKind::InvalidInput,
            ErrorKind::Unsupported,
            ErrorKind::ReadOnlyFilesystem,
        ] {
            create_in_one_that_fails(directory.path(), kind).unwrap();
            let new = directory.path().join(std::format!("{kind:?}"));
            create_in_one_that_fails(&new, kind).unwrap_err();
        }
        create_in_one_that_fails(directory.path(), ErrorKind::Other).unwrap_err();
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        create(file.path()).unwrap_err();
        create(&file.path().join("below")).unwrap_err();
    }
}
