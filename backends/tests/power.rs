//! Power failures: a filesystem of its own is cut off from one moment to the next, without writing what it has in memory.
//!
//! Needs root, and Python for the system call that no safe Rust makes.

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use paxos::{GroupId, Slot, Storage, storage::Finding};
use support::{DURABLE, accept, amount, block_on, hard_state, open, recover, skip, write};
use tempfile::TempDir;

/// The system call `FS_IOC_SHUTDOWN` on the filesystem, telling it to write nothing any more.
const CUT_OFF: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

fn succeeds(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// An ext4 filesystem in a file, unmounted when dropped.
struct Disk {
    place: TempDir,
    is_mounted: bool,
}

impl Disk {
    fn new() -> Option<Self> {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut disk = Self {
            place,
            is_mounted: false,
        };
        std::fs::create_dir(disk.path()).expect("a directory");
        let image = std::fs::File::create(disk.image()).expect("a file");
        image.set_len(64 << 20).expect("a sparse file");
        let is_made = succeeds(Command::new("mkfs.ext4").arg("-q").arg(disk.image()));
        if is_made && disk.mount() {
            return Some(disk);
        }
        skip("no filesystem of its own can be mounted here");
        None
    }

    fn path(&self) -> std::path::PathBuf {
        self.place.path().join("disk")
    }

    fn image(&self) -> std::path::PathBuf {
        self.place.path().join("image")
    }

    fn mount(&mut self) -> bool {
        let mut mount = Command::new("mount");
        self.is_mounted = succeeds(mount.args(["-o", "loop"]).arg(self.image()).arg(self.path()));
        self.is_mounted
    }

    fn unmount(&mut self) {
        // SQLite's files are closed by a thread that nobody waits for.
        let mut attempts = 0..100;
        while !succeeds(Command::new("umount").arg(self.path())) {
            assert!(attempts.next().is_some(), "the filesystem is still mounted");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        self.is_mounted = false;
    }

    fn cut_off(&self) -> bool {
        succeeds(Command::new("python3").args(["-c", CUT_OFF]).arg(self.path()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            self.unmount();
        }
    }
}

fn payload(slot: u64) -> Bytes {
    Bytes::from(vec![slot as u8; 50 + (slot * 131 % 9_000) as usize])
}

/// Writes so many batches after `before`, then pulls the plug while the store is open.
async fn write_until_power_fails(disk: &Disk, storage: &mut dyn Storage, before: u64, batches: u64) -> bool {
    for slot in before + 1..=before + batches {
        let ops = vec![accept(1, slot, slot, payload(slot)), hard_state(2, slot, 0)];
        write(storage, ops).await.expect("a sound disk");
    }
    if !disk.cut_off() {
        skip("the filesystem cannot be cut off here");
        return false;
    }
    let refused = write(storage, vec![hard_state(2, before + batches + 1, 0)]).await;
    assert!(refused.is_err(), "a write without a disk");
    true
}

#[test]
fn power_failures_lose_nothing_acknowledged() {
    for backend in DURABLE {
        let Some(mut disk) = Disk::new() else {
            return;
        };
        let mut acknowledged = 0;
        for cycle in 0..amount("PAXOS_POWER_FAILURES", 3) as u64 {
            let store = disk.path().join("store");
            let batches = 40 + 37 * cycle;
            let is_cut_off = block_on(async {
                let (mut storage, recovered) = recover(backend, &store).await.expect("the store opens");
                holds(&recovered_index(&recovered), acknowledged, backend.name());
                let read = storage.read(GroupId(1), Slot(1)..Slot::MAX, usize::MAX).await;
                for (slot, accepted) in read.expect("sound entries") {
                    assert_eq!(accepted.entry.payload, payload(slot.0), "{backend}, slot {slot}");
                }
                write_until_power_fails(&disk, &mut *storage, acknowledged, batches).await
            });
            if !is_cut_off {
                return;
            }
            acknowledged += batches;
            disk.unmount();
            assert!(disk.mount(), "the filesystem can be mounted again");
        }
        let (_, recovered) = block_on(recover(backend, &disk.path().join("store"))).expect("the store opens");
        holds(&recovered_index(&recovered), acknowledged, backend.name());
        let promised = recovered.groups[&GroupId(2)].hard_state.promised.round;
        assert!(
            promised >= acknowledged,
            "{backend}: the promise went back to {promised}"
        );
        assert!(
            no_damage(&recovered.findings),
            "{backend}: {:?}",
            recovered.findings
        );
    }
}

fn recovered_index(recovered: &paxos::storage::Recovered) -> Vec<u64> {
    let group = recovered.groups.get(&GroupId(1));
    group.map_or_else(Vec::new, |group| group.index.keys().map(|slot| slot.0).collect())
}

fn holds(slots: &[u64], acknowledged: u64, what: &str) {
    assert_eq!(slots, (1..=acknowledged).collect::<Vec<_>>(), "{what}");
}

fn no_damage(findings: &[Finding]) -> bool {
    !findings
        .iter()
        .any(|finding| matches!(finding, Finding::Damaged { .. }))
}

#[test]
fn a_new_store_is_there_or_not_after_a_power_failure() {
    for backend in DURABLE {
        let Some(mut disk) = Disk::new() else {
            return;
        };
        let path: &Path = &disk.path().join("store");
        drop(open(backend, path).expect("a new store"));
        if !disk.cut_off() {
            skip("the filesystem cannot be cut off here");
            return;
        }
        disk.unmount();
        assert!(disk.mount(), "the filesystem can be mounted again");
        let (_, recovered) = block_on(recover(backend, path)).expect("a new store opens");
        assert_eq!(recovered.groups.len(), 0, "{backend}");
    }
}
