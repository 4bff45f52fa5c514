//! The disk of a node fills up: it stops and says why, the others go on, and with room again it comes back with
//! everything that it ever said.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    alone, block_on, nodes,
    run::{self, PATIENCE, Run},
};

const DISK_BYTES: usize = 64 << 20;
/// How long clients write before the disk is full.
const BEFORE: Duration = Duration::from_millis(500);

/// A small file system in memory.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one; fails where that is not permitted.
    pub(crate) fn mount(path: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|error| error.to_string())?;
        let size = format!("size={DISK_BYTES}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "kvstore-chaos"])
            .arg(path)
            .output()
            .map_err(|error| format!("mount: {error}"))?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).into_owned());
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("a file on the small disk");
        for piece in [vec![1_u8; 1 << 20], vec![1_u8; 4 << 10], vec![1_u8]] {
            while file.write_all(&piece).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the file on the small disk is removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Leader,
    Follower,
}

/// Fills the disk of one node under load, and frees it again.
async fn fill_the_disk_of(victim: Victim, run: &mut Run) -> Result<(), String> {
    run.until_it_works().await?;
    sleep(BEFORE).await;
    let leader = run.nodes.leader().await.ok_or("nobody leads")?;
    let node = match victim {
        Victim::Leader => leader,
        Victim::Follower => leader % run.nodes.ids().count() + 1,
    };
    run.nemesis
        .note(&format!("the disk of node {node} ({victim:?}) is full"));
    run.disks[node - 1].fill();
    let deadline = Instant::now() + PATIENCE;
    while !run.nodes.has_ended(node) {
        if Instant::now() > deadline {
            return Err(format!("node {node} goes on although its disk is full"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    let log = std::fs::read_to_string(run.nodes.log(node)).unwrap_or_default();
    if !log.contains("full") && !log.contains("No space left") {
        return Err(format!("node {node} does not say that its disk is full:\n{log}"));
    }
    for other in run.nodes.ids().filter(|other| *other != node) {
        run.read_at(other).await?;
    }
    // Started without room, it may stop again, but must not do harm.
    run.nodes.start_node(node);
    sleep(BEFORE).await;
    run.nodes.has_ended(node);
    run.disks[node - 1].free();
    run.nodes.kill(node);
    run.nodes.start_node(node);
    run.until_it_works().await
}

fn a_disk_fills_up(storage: &str) {
    let _alone = alone();
    for (victim, seed) in [(Victim::Follower, 1), (Victim::Leader, 2)] {
        let directory = run::directory();
        let disks = (1..=run::NODES).map(|node| SmallDisk::mount(&nodes::data_dir(directory.path(), node)));
        let disks = match disks.collect::<Result<Vec<_>, _>>() {
            Ok(disks) => disks,
            Err(why) => {
                // Past the test runner, which hides what tests print that pass.
                let said =
                    format!("SKIPPED, nothing was tested: a small disk cannot be mounted here: {why}\n");
                let _ = std::io::stderr().write_all(said.as_bytes());
                return;
            }
        };
        block_on(async {
            let mut run = Run::start(storage, seed, directory).await;
            run.disks = disks;
            let outcome = fill_the_disk_of(victim, &mut run).await;
            run.finish(outcome.map_err(|text| format!("{victim:?}: {text}")))
                .await;
        });
    }
}

#[cfg(feature = "leveldb")]
#[test]
fn leveldb_stops_at_a_full_disk() {
    a_disk_fills_up("leveldb");
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_stops_at_a_full_disk() {
    a_disk_fills_up("sqlite");
}
