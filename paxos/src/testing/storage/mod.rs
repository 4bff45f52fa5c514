//! Tells whether a [`Storage`] is right: a conformance suite, a model, and a disk that fails on purpose.
//!
//! A plug-in author runs the whole suite with three lines in a test file; every check becomes a test of its own:
//!
//! ```
//! # #[derive(Clone, Default)] struct MyDisk;
//! # fn my_open(_: &MyDisk, _: paxos::storage::Owner) -> Result<Box<dyn paxos::Storage>, paxos::StorageError> {
//! #     unimplemented!() }
//! paxos::storage_conformance!(my_storage, || {
//!     let disk = MyDisk::default(); // an empty place to store things in, a temporary directory as a rule
//!     move |owner| my_open(&disk, owner) // opens the store that is there; called many times
//! });
//! ```
//!
//! [`run_all`] does the same at run time and returns a [`Report`]. Stores whose disk can be made to fail implement
//! [`Place`] themselves instead of passing a closure, and are then tested for an error at every single call; those whose
//! records can be damaged, for damage.

#![allow(
    clippy::wildcard_imports,
    reason = "the words of `support` are in every line of a check"
)]

#[macro_use]
mod support;
mod batches;
mod damage;
mod entries;
mod faults;
mod faulty;
mod groups;
mod histories;
mod model;
mod opening;
mod reading;

use std::{boxed::Box, fmt, format, future::Future, pin::Pin, string::String, vec::Vec};

pub use self::{
    damage::flip_in_files,
    faulty::{Fault, FaultyStorage},
    model::{Model, ModelGroup},
};
use crate::{
    storage::{Owner, Recovered, RecoveredGroup, Storage, StorageError, WriteBatch},
    types::{ClusterId, GroupId, NodeId, Slot, WriteOp},
};

/// Who opens the stores of the suite.
pub const OWNER: Owner = Owner {
    cluster: ClusterId(0x5EED),
    node: NodeId(7),
};

/// A place where one store is kept, empty at first. Closures that open the store are places.
pub trait Place {
    /// Opens the store that is here, creating it the first time. An earlier one has been dropped, with or without
    /// having been closed.
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError>;

    /// Opens the store so that its `call`-th operation on the disk, counted from 0, fails; `None` if this cannot be
    /// arranged, and the checks that need it pass.
    fn open_failing(&mut self, owner: Owner, call: u64) -> Option<Result<Box<dyn Storage>, StorageError>> {
        let _ = (owner, call);
        None
    }

    /// Damages the record of a slot where it is kept; the entry's payload is `payload`, and it is in no other record. The
    /// store is not open. False if this cannot be arranged, and the checks that need it pass. Stores in files may use
    /// [`flip_in_files`].
    fn damage(&mut self, group: GroupId, slot: Slot, payload: &[u8]) -> bool {
        let _ = (group, slot, payload);
        false
    }
}

impl<S: Storage, F: FnMut(Owner) -> Result<S, StorageError>> Place for F {
    fn open(&mut self, owner: Owner) -> Result<Box<dyn Storage>, StorageError> {
        Ok(Box::new(self(owner)?))
    }
}

/// Why a check failed, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self(format!("an unexpected error: {error}"))
    }
}

type Outcome<T = ()> = Result<T, Failure>;

/// One named property of a storage.
#[derive(Clone, Copy)]
pub struct Check {
    /// What holds, with underscores.
    pub name: &'static str,
    property: for<'a> fn(&'a mut Bed<'_>) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

impl Check {
    /// The check with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CHECKS.iter().find(|check| check.name == name)
    }

    /// Runs it on places of its own. Must be called inside a tokio runtime with a timer.
    pub async fn run<P: Place + 'static>(&self, mut new_place: impl FnMut() -> P) -> Result<(), Failure> {
        let mut new_place = || -> Box<dyn Place> { Box::new(new_place()) };
        (self.property)(&mut Bed::new(&mut new_place)).await
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What became of a run of the whole suite.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Report {
    /// Checks that passed.
    pub passed: Vec<&'static str>,
    /// Checks that failed, and why.
    pub failed: Vec<(&'static str, Failure)>,
}

impl Report {
    /// Whether this check failed.
    pub fn has_failed(&self, name: &str) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, failure) in &self.failed {
            writeln!(f, "FAILED {name}: {failure}")?;
        }
        write!(f, "{} passed, {} failed", self.passed.len(), self.failed.len())
    }
}

/// Runs every check on a place of its own. Must be called inside a tokio runtime with a timer.
pub async fn run_all<P: Place + 'static>(mut new_place: impl FnMut() -> P) -> Report {
    let mut report = Report::default();
    for check in CHECKS {
        match check.run(&mut new_place).await {
            Ok(()) => report.passed.push(check.name),
            Err(failure) => report.failed.push((check.name, failure)),
        }
    }
    report
}

/// Runs the check with this name in a runtime of its own; panics if it fails. What
/// [`storage_conformance!`](crate::storage_conformance) calls.
pub fn run_check<P: Place + 'static>(name: &str, new_place: impl FnMut() -> P) {
    let check = Check::named(name).unwrap_or_else(|| panic!("there is no check named {name}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    if let Err(failure) = runtime.block_on(check.run(new_place)) {
        panic!("{name}: {failure}");
    }
}

/// Where a check takes place.
struct Bed<'a> {
    new_place: &'a mut dyn FnMut() -> Box<dyn Place>,
    place: Box<dyn Place>,
}

impl<'a> Bed<'a> {
    fn new(new_place: &'a mut dyn FnMut() -> Box<dyn Place>) -> Self {
        Self {
            place: new_place(),
            new_place,
        }
    }

    async fn open(&mut self) -> Outcome<Opened> {
        Opened::recover(self.place.open(OWNER)?).await
    }

    /// Writes synced batches and compares with the model: at once, after a crash, and after an orderly close.
    async fn holds(&mut self, batches: impl IntoIterator<Item = Vec<WriteOp>>) -> Outcome<Model> {
        let mut model = Model::default();
        let mut opened = self.open().await?;
        for ops in batches {
            model.apply(&ops);
            opened.write(ops).await?;
        }
        opened.reads_like(&model).await?;
        drop(opened);
        let mut opened = self.open().await?;
        opened
            .is_like(&model)
            .await
            .map_err(|failure| failure.when("after a crash"))?;
        opened.storage.close().await?;
        drop(opened);
        let mut opened = self.open().await?;
        opened
            .is_like(&model)
            .await
            .map_err(|failure| failure.when("after a close"))?;
        Ok(model)
    }
}

impl Failure {
    fn when(self, when: impl fmt::Display) -> Self {
        Self(format!("{when}: {}", self.0))
    }
}

/// A store that has been recovered.
struct Opened {
    storage: Box<dyn Storage>,
    recovered: Recovered,
}

impl Opened {
    async fn recover(mut storage: Box<dyn Storage>) -> Outcome<Self> {
        let recovered = storage.recover().await?;
        Ok(Self { storage, recovered })
    }

    /// What was recovered of a group that has been written.
    fn group(&self, id: GroupId) -> Outcome<&RecoveredGroup> {
        let group = self.recovered.groups.get(&id);
        group.ok_or_else(|| Failure(format!("group {id} was not recovered")))
    }

    /// Durably.
    async fn write(&mut self, ops: Vec<WriteOp>) -> Result<(), StorageError> {
        self.storage.write(WriteBatch { sync: true, ops }).await
    }

    async fn write_unsynced(&mut self, ops: Vec<WriteOp>) -> Result<(), StorageError> {
        self.storage.write(WriteBatch { sync: false, ops }).await
    }

    /// What was recovered, and what is read, is what the model holds.
    async fn is_like(&mut self, model: &Model) -> Outcome {
        if let Some(difference) = model.difference(&self.recovered) {
            return Err(Failure(difference));
        }
        ensure!(
            self.recovered.findings.is_empty(),
            "a sound store reports {:?}",
            self.recovered.findings
        );
        self.reads_like(model).await
    }

    async fn reads_like(&mut self, model: &Model) -> Outcome {
        for group in model.groups.keys() {
            let expected = model.read(*group, Slot(1)..Slot::MAX, usize::MAX);
            let found = self.storage.read(*group, Slot(1)..Slot::MAX, usize::MAX).await?;
            if expected != found {
                let at = expected
                    .iter()
                    .zip(&found)
                    .find(|(expected, found)| expected != found);
                let what = at.map_or_else(
                    || format!("{} entries instead of {}", found.len(), expected.len()),
                    |((slot, _), (found, _))| format!("wrong from slot {slot} on (found slot {found})"),
                );
                return Err(Failure(format!("group {group} reads {what}")));
            }
        }
        Ok(())
    }
}

/// Declares the suite: the list [`CHECKS`] and the macro that makes a test of each.
macro_rules! suite {
    (($d:tt) $($module:ident { $($name:ident,)* })*) => {
        /// All checks of the suite.
        pub static CHECKS: &[Check] = &[
            $($(Check {
                name: stringify!($name),
                property: |bed| Box::pin($module::$name(bed)),
            },)*)*
        ];

        /// Tests a storage: `storage_conformance!(name, new_place)` expands to a module with one `#[test]` for every
        /// check of [`paxos::testing::storage`](crate::testing::storage). `new_place` is a function without arguments
        /// that returns a [`Place`](crate::testing::storage::Place).
        #[macro_export]
        macro_rules! storage_conformance {
            ($d module:ident, $d new_place:expr) => {
                mod $d module {
                    #[allow(unused_imports, reason = "for the expression that opens the store")]
                    use super::*;

                    $($(
                        #[test]
                        fn $name() {
                            $d crate::testing::storage::run_check(stringify!($name), $d new_place);
                        }
                    )*)*
                }
            };
        }
    };
}

suite! { ($)
    opening {
        a_new_store_is_empty,
        a_store_says_whose_it_is,
        the_storage_id_stays,
        two_stores_have_two_storage_ids,
        every_opening_is_a_new_incarnation,
        the_node_of_another_cluster_is_refused,
        another_node_is_refused,
        a_refused_owner_changes_nothing,
        writing_before_recover_is_misuse,
        reading_before_recover_is_misuse,
        recovering_twice_is_misuse,
        a_store_that_was_never_recovered_can_be_closed,
        closing_makes_unsynced_batches_durable,
    }
    entries {
        an_entry_comes_back_whole,
        every_kind_of_entry_comes_back,
        an_empty_payload_is_an_entry,
        payloads_of_all_sizes_come_back,
        a_payload_of_two_mebibytes_comes_back,
        every_byte_value_comes_back,
        gaps_between_slots_stay_gaps,
        slots_may_be_written_in_any_order,
        a_higher_ballot_overwrites,
        overwriting_changes_kind_and_length,
        the_last_of_two_entries_in_a_batch_counts,
        the_largest_slots_ballots_and_groups_work,
        slot_zero_is_misuse,
        thousands_of_entries_come_back,
        the_index_tells_ballots_and_lengths,
        a_hard_state_comes_back,
        the_last_hard_state_counts,
        entries_do_not_touch_the_hard_state,
        a_promise_that_goes_down_is_misuse,
    }
    reading {
        an_unknown_group_reads_empty,
        the_end_of_a_range_is_left_out,
        an_empty_or_reversed_range_reads_empty,
        the_first_entry_is_read_in_any_case,
        max_bytes_counts_entry_sizes,
        reads_skip_gaps,
        reads_see_writes_that_are_not_synced,
        every_range_reads_like_the_model,
    }
    batches {
        an_empty_batch_is_fine,
        a_batch_takes_effect_in_order,
        a_batch_spans_groups,
        a_misused_batch_changes_nothing,
        misuse_does_not_end_the_store,
        unsynced_batches_survive_as_a_prefix,
        a_synced_batch_makes_earlier_ones_durable,
        trimming_drops_everything_up_to_the_mark,
        trimming_everything_leaves_the_mark,
        trimming_beyond_the_last_slot_is_fine,
        trimming_below_the_mark_changes_nothing,
        accepting_below_the_mark_changes_nothing,
        trimming_into_a_gap_is_fine,
        a_large_trim_is_complete,
        trims_and_entries_share_a_batch,
    }
    groups {
        groups_are_apart,
        promises_of_groups_are_apart,
        trimming_one_group_leaves_the_others,
        trimming_an_unknown_group_creates_it,
        a_removed_group_is_gone,
        a_removed_group_comes_back_empty,
        a_group_may_be_replaced_in_one_batch,
        a_group_may_be_removed_right_after_a_large_trim,
        removing_an_unknown_group_is_fine,
        hundreds_of_groups_share_a_store,
    }
    damage {
        a_damaged_slot_is_reported_and_never_read,
        a_damaged_slot_that_is_written_again_is_whole,
        a_damaged_slot_that_is_trimmed_is_forgotten,
    }
    histories {
        random_histories_match_the_model,
    }
    faults {
        a_fault_at_any_call_loses_nothing_acknowledged,
        after_a_fault_every_call_is_refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_checks_have_one_name() {
        let names: alloc::collections::BTreeSet<_> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
