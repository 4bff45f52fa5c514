//! What a run is like: drawn once from its seed.

use core::{fmt, time::Duration};
use std::vec::Vec;

use super::{Options, random::Random};
use crate::core::{Config, Lease};

macro_rules! faults {
    ($($name:ident = $text:literal,)*) => {
        /// A class of faults. Each is absent from a good part of the runs, so that no class hides what another
        /// would show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $(#[doc = $text] $name,)*
        }

        impl Fault {
            /// All classes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name for the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

faults! {
    Loss = "Messages are lost.",
    Duplication = "Messages arrive twice.",
    Replay = "Messages arrive again, seconds later.",
    Reordering = "Messages overtake each other.",
    Clog = "A link delivers nothing for a while, then everything.",
    Partition = "The nodes fall into two sides.",
    Cut = "Two nodes cannot reach each other.",
    OneWayCut = "One node's messages do not reach another.",
    Isolation = "The leader is cut off from everybody else.",
    Succession = "One leader after the other reaches a single node, proposes, and is cut off.",
    Gap = "What a leader proposes is lost, what it proposes next is not, and it crashes.",
    Crash = "A minority of the nodes crashes and comes back.",
    CrashAll = "All nodes crash at once and come back.",
    Pause = "A node stands still for a while.",
    SlowDisk = "A disk takes long for a while.",
    FailedSync = "A sync fails, which stops its node.",
    FullDisk = "A disk is full for a while: syncs fail, and its node cannot start again.",
    Damage = "Records of the log are damaged, while their node lives or is down; each slot stays whole at a quorum.",
    Drift = "Clocks run up to 5 % fast or slow.",
    Refusal = "The transport refuses messages to nodes that it cannot reach.",
    Hangup = "Broken connections are noticed.",
    Overload = "Clients propose in bursts.",
    Oddities = "Clients propose empty and oversized commands, and cancel.",
    LateAnswers = "What a leader is told reaches it late, when what it says has ceased to reach anybody.",
    Transfer = "Leadership is transferred on request.",
    Lull = "Clients have nothing to ask for a while, so that groups rest.",
    Reconfiguration = "The members of the groups change, sometimes by force and to all others at once.",
    LostDisk = "A node loses its disk and comes back with an empty one. A minority at the most.",
    SnapshotSwap = "Machines are replaced by copies restored from their snapshots.",
    Snapshots = "Snapshots are taken, and the log is trimmed behind them.",
    SnapshotFailure = "A snapshot cannot be written.",
    SnapshotDamage = "A snapshot is damaged where it is read for a peer.",
    SlowInstall = "Snapshots take long to be installed.",
    Absence = "A node that does not lead is cut off for long.",
    Alteration = "At the end an entry on one node's disk is altered, or the disk is set back.",
}

/// A set of fault classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSet(u64);

impl FaultSet {
    /// No faults at all.
    pub const NONE: Self = Self(0);
    /// Every class may be drawn.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether this class is in the set.
    pub const fn has(self, fault: Fault) -> bool {
        self.0 & 1 << fault as u64 != 0
    }

    /// The set with this class too.
    #[must_use]
    pub const fn with(self, fault: Fault) -> Self {
        Self(self.0 | 1 << fault as u64)
    }

    /// How many classes are in the set.
    pub fn count(self) -> usize {
        Fault::ALL.iter().filter(|fault| self.has(**fault)).count()
    }

    /// The set without this class.
    #[must_use]
    pub const fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u64))
    }
}

impl fmt::Display for FaultSet {
    /// The names, with commas between them; `none` for an empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut faults = Fault::ALL.iter().filter(|fault| self.has(**fault));
        match faults.next() {
            None => f.write_str("none"),
            Some(first) => {
                f.write_str(first.name())?;
                faults.try_for_each(|fault| write!(f, ",{}", fault.name()))
            }
        }
    }
}

pub(super) const MS: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// Everything about a run that is decided before it begins. Times are in microseconds of virtual time.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) nodes: usize,
    /// Nodes that are no members at first.
    pub(super) spares: usize,
    pub(super) groups: usize,
    pub(super) config: Config,
    pub(super) faults: FaultSet,
    pub(super) clients: usize,
    pub(super) reads_permille: u64,
    pub(super) think_mean: u64,
    pub(super) patience: u64,
    pub(super) storms: u32,
    pub(super) storm_mean: u64,
    pub(super) fault_gap_mean: u64,
    pub(super) loss_permille: u64,
    pub(super) duplication_permille: u64,
    pub(super) replay_permille: u64,
    pub(super) delay_mean: u64,
    pub(super) sync_mean: u64,
    pub(super) sync_failure_permille: u64,
    /// Each node's clock, in thousandths of true speed.
    pub(super) clock_rates: Vec<u64>,
    /// How much later than its deadline a tick may come.
    pub(super) tick_lateness: u64,
    /// How long it takes to write a snapshot, and to restore a machine from one.
    pub(super) snapshot_mean: u64,
    /// How long it takes to store a piece of one.
    pub(super) store_mean: u64,
    pub(super) install_mean: u64,
    pub(super) snapshot_failure_permille: u64,
    pub(super) chunk_damage_permille: u64,
    /// How many snapshots of a group a node keeps.
    pub(super) keep_snapshots: usize,
}

impl Plan {
    /// What is fixed by the options is drawn too, so that fixing what the seed would draw changes nothing.
    pub(super) fn draw(random: &mut Random, options: &Options) -> Self {
        let drawn = random.pick(&[1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 4, 5, 5, 5, 5]);
        let nodes = options.nodes.unwrap_or(drawn).max(1);
        let drawn = random.pick(&[1, 1, 1, 2, 2, 3]);
        let groups = options.groups.unwrap_or(drawn).max(1);
        let absent = random.between(150, 500);
        let mut faults = FaultSet::NONE;
        for fault in Fault::ALL.iter().filter(|fault| **fault != Fault::Alteration) {
            if !random.chance(absent) && options.faults.has(*fault) {
                faults = faults.with(*fault);
            }
        }
        let takes_nodes = faults.has(Fault::Reconfiguration) || faults.has(Fault::LostDisk);
        if faults.has(Fault::Damage) && takes_nodes {
            // Together each of them is rarer: what would take the last copy of something away does not happen.
            faults = match absent % 3 {
                0 => faults.without(Fault::Reconfiguration).without(Fault::LostDisk),
                1 => faults.without(Fault::Damage),
                _ => faults,
            };
        }
        let rate = |random: &mut Random, fault, most: u64| {
            let drawn = random.below(most + 1);
            if faults.has(fault) { drawn } else { 0 }
        };
        let loss_permille = rate(random, Fault::Loss, 300);
        let duplication_permille = rate(random, Fault::Duplication, 300);
        let replay_permille = rate(random, Fault::Replay, 50);
        let drawn = random.between(0, 3) as usize;
        let spares = if faults.has(Fault::Reconfiguration) {
            drawn
        } else {
            0
        };
        let clock_rates = (0..nodes + spares)
            .map(|_| {
                let drawn = random.between(950, 1_050);
                if faults.has(Fault::Drift) { drawn } else { 1_000 }
            })
            .collect();
        let config = Config {
            snapshots: faults.has(Fault::Snapshots),
            ..draw_config(random)
        };
        let clients = random.between(1, 6) as usize;
        let storms = random.between(1, 2) as u32;
        let sync_failure_permille = rate(random, Fault::FailedSync, 5);
        let snapshot_failure_permille = rate(random, Fault::SnapshotFailure, 300);
        let chunk_damage_permille = rate(random, Fault::SnapshotDamage, 200);
        let slow_install = random.pick(&[50 * MS, SECOND, 4 * SECOND, 4 * SECOND]);
        let mut plan = Self {
            nodes,
            spares,
            groups,
            config,
            faults,
            clients: options.clients.unwrap_or(clients),
            reads_permille: random.pick(&[100, 300, 500]),
            think_mean: random.between(20, 150) * MS,
            patience: random.between(300, 3_000) * MS,
            storms: options.storms.unwrap_or(storms),
            storm_mean: random.between(1, 4) * SECOND,
            fault_gap_mean: random.between(100, 1_000) * MS,
            loss_permille,
            duplication_permille,
            replay_permille,
            delay_mean: random.between(500, 10 * MS) * random.between(1, 3),
            sync_mean: random.pick(&[100, MS, MS, 5 * MS, 20 * MS]),
            sync_failure_permille,
            clock_rates,
            tick_lateness: random.pick(&[0, 100, 5 * MS]),
            snapshot_mean: random.pick(&[MS, 20 * MS, 300 * MS]),
            store_mean: random.pick(&[MS, MS, 20 * MS, 200 * MS]),
            install_mean: if faults.has(Fault::SlowInstall) {
                slow_install
            } else {
                MS
            },
            snapshot_failure_permille,
            chunk_damage_permille,
            keep_snapshots: random.pick(&[1, 2]),
        };
        // Drawn last, because it comes last: before that a run is the same with and without it.
        if random.chance(300) && options.faults.has(Fault::Alteration) {
            plan.faults = plan.faults.with(Fault::Alteration);
        }
        plan
    }
}

fn draw_config(random: &mut Random) -> Config {
    let (heartbeat, election) = random.pick(&[(50, 300), (100, 500), (100, 500), (100, 1_000)]);
    Config {
        heartbeat_interval: Duration::from_millis(heartbeat),
        election_timeout: Duration::from_millis(election),
        rest_after_heartbeats: random.pick(&[0, 1, 2, 5]),
        max_window_entries: random.pick(&[1, 4, 32, 1_024]),
        max_window_bytes: random.pick(&[4 << 10, 32 << 20]),
        max_batch_commands: random.pick(&[1, 3, 1_024]),
        max_batch_bytes: random.pick(&[256, 1 << 20]),
        max_command_bytes: 2 << 10,
        max_pending_commands: random.pick(&[8, 64, 16_384]),
        max_pending_bytes: random.pick(&[8 << 10, 64 << 20]),
        max_pending_reads: random.pick(&[4, 65_536]),
        max_message_bytes: random.pick(&[256, 4 << 10, 1 << 20]),
        max_peer_inflight_bytes: random.pick(&[2 << 10, 16 << 20]),
        max_cache_bytes: random.pick(&[0, 0, 1 << 10, 16 << 20]),
        max_watermark_delay: Duration::from_millis(random.pick(&[0, 2, 20])),
        balance_leaders: random.chance(300),
        lease: draw_lease(random, election),
        forward: random.chance(800),
        pin_storages: random.chance(800),
        readmit: true,
        promote_learners: random.chance(200),
        snapshots: false,
        snapshot_entries: random.pick(&[0, 5, 5, 20, 1_000]),
        snapshot_bytes: random.pick(&[0, 2 << 10, 1 << 20]),
        keep_entries: random.pick(&[0, 0, 2, 10, 100]),
        keep_bytes: random.pick(&[256, 4 << 10, 1 << 20]),
        max_laggard_entries: random.pick(&[0, 0, 10, 1_000]),
        snapshot_chunk_bytes: random.pick(&[64, 64, 200, 1 << 20]),
    }
}

/// In half of the runs, with a bound that covers the drift of the clocks.
fn draw_lease(random: &mut Random, election: u64) -> Option<Lease> {
    let percent = random.pick(&[60, 80, 100, 100]);
    random.chance(500).then(|| Lease {
        duration: Duration::from_millis(election * percent / 100),
        max_drift_permille: 50,
    })
}
