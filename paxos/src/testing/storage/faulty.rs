//! A storage that misbehaves on purpose, around any other.

use std::{boxed::Box, collections::BTreeMap, io, ops::Range, time::Duration, vec::Vec};

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;

use crate::{
    storage::{Recovered, Storage, StorageError, WriteBatch},
    types::{Accepted, GroupId, Slot},
};

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails before it does anything: nothing of its batch is stored.
    Fail,
    /// The batch is stored, durably even, but the call says that it failed: what a sync that fails late looks like.
    FailAfterwards,
    /// As [`Fault::Fail`], because the disk is full.
    Full,
    /// Only the first half of the batch is stored, then the call fails. No sound storage does this: with it one sees
    /// whether a test notices broken atomicity.
    Tear,
    /// The batch is not stored but acknowledged. No sound storage does this: with it one sees whether a test notices
    /// lost writes.
    Lie,
    /// One bit of the first payload that is read, if there is any, is flipped. No sound storage does this: with it one
    /// sees whether a test notices damage.
    Flip,
    /// The call takes this long, then succeeds.
    Stall(Duration),
}

/// Wraps a storage and makes calls go wrong: at given calls, or at random by a seed.
///
/// Calls of `write` and `read` are counted together, from 0. What is not synced is held back and reaches the inner
/// storage with the next synced write, a read, or a close; when the wrapper is dropped before that, a power failure as
/// it were, a random prefix of it survives if [`drop_unsynced`](Self::drop_unsynced) is asked for, and nothing
/// otherwise. After a call has failed, every later one does too.
///
/// ```
/// use paxos::testing::storage::{Fault, FaultyStorage};
/// # fn wrap<S: paxos::Storage>(my_storage: S) -> FaultyStorage<S> {
/// FaultyStorage::new(my_storage).at(10, Fault::FailAfterwards)
/// # }
/// ```
#[derive(Debug)]
pub struct FaultyStorage<S> {
    inner: S,
    calls: u64,
    plan: BTreeMap<u64, Fault>,
    random: Option<RandomFaults>,
    held_back: Vec<WriteBatch>,
    failed: Option<StorageError>,
}

#[derive(Debug)]
struct RandomFaults {
    random: Rng,
    one_in: u64,
    faults: Vec<Fault>,
}

impl<S: Storage> FaultyStorage<S> {
    /// A wrapper that does nothing wrong yet.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            calls: 0,
            plan: BTreeMap::new(),
            random: None,
            held_back: Vec::new(),
            failed: None,
        }
    }

    /// Makes one call go wrong.
    #[must_use]
    pub fn at(mut self, call: u64, fault: Fault) -> Self {
        self.plan.insert(call, fault);
        self
    }

    /// Makes one in `one_in` calls go wrong in one of these ways, by a seed: the same calls every time.
    #[must_use]
    pub fn at_random(mut self, seed: u64, one_in: u64, faults: &[Fault]) -> Self {
        self.random = Some(RandomFaults {
            random: Rng::with_seed(seed),
            one_in: one_in.max(1),
            faults: faults.to_vec(),
        });
        self
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// A power failure: a prefix of the batches that were not synced, drawn by the seed, reaches the inner storage,
    /// which is returned as it is then.
    pub async fn drop_unsynced(mut self, seed: u64) -> Result<S, StorageError> {
        let kept = Rng::with_seed(seed).usize(..=self.held_back.len());
        for batch in self.held_back.drain(..kept) {
            self.inner.write(batch).await?;
        }
        Ok(self.inner)
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let call = self.calls;
        self.calls += 1;
        if let Some(fault) = self.plan.get(&call) {
            return Some(*fault);
        }
        let RandomFaults {
            random,
            one_in,
            faults,
        } = self.random.as_mut()?;
        if random.u64(..*one_in) == 0 {
            random.choice(faults.iter()).copied()
        } else {
            None
        }
    }

    fn refuse(&self) -> Result<(), StorageError> {
        self.failed.as_ref().map_or(Ok(()), |first| Err(first.poisoned()))
    }

    fn fail<T>(&mut self, error: StorageError) -> Result<T, StorageError> {
        self.failed = Some(error.clone());
        Err(error)
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        for batch in core::mem::take(&mut self.held_back) {
            self.inner.write(batch).await?;
        }
        Ok(())
    }

    async fn store(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        if batch.sync {
            self.flush().await?;
            self.inner.write(batch).await
        } else {
            self.held_back.push(batch);
            Ok(())
        }
    }
}

fn injected(kind: io::ErrorKind) -> StorageError {
    StorageError::io("obeying a test", io::Error::new(kind, "injected fault"))
}

fn flip_first_bit(entries: &mut [(Slot, Accepted)]) {
    let hit = entries
        .iter_mut()
        .find(|(_, accepted)| !accepted.entry.payload.is_empty());
    if let Some((_, accepted)) = hit {
        let mut payload = accepted.entry.payload.to_vec();
        payload[0] ^= 1;
        accepted.entry.payload = Bytes::from(payload);
    }
}

#[async_trait]
impl<S: Storage> Storage for FaultyStorage<S> {
    async fn recover(&mut self) -> Result<Recovered, StorageError> {
        self.refuse()?;
        self.inner.recover().await
    }

    async fn write(&mut self, mut batch: WriteBatch) -> Result<(), StorageError> {
        self.refuse()?;
        match self.next_fault() {
            Some(Fault::Fail) => self.fail(injected(io::ErrorKind::Other)),
            Some(Fault::Full) => self.fail(injected(io::ErrorKind::StorageFull)),
            Some(Fault::FailAfterwards) => {
                batch.sync = true;
                self.store(batch).await?;
                self.fail(injected(io::ErrorKind::Other))
            }
            Some(Fault::Tear) => {
                batch.ops.truncate(batch.ops.len() / 2);
                batch.sync = true;
                self.store(batch).await?;
                self.fail(injected(io::ErrorKind::Other))
            }
            Some(Fault::Lie) => Ok(()),
            Some(Fault::Stall(duration)) => {
                tokio::time::sleep(duration).await;
                self.store(batch).await
            }
            Some(Fault::Flip) | None => self.store(batch).await,
        }
    }

    async fn read(
        &mut self,
        group: GroupId,
        slots: Range<Slot>,
        max_bytes: usize,
    ) -> Result<Vec<(Slot, Accepted)>, StorageError> {
        self.refuse()?;
        let fault = self.next_fault();
        match fault {
            Some(Fault::Fail | Fault::FailAfterwards | Fault::Full | Fault::Tear) => {
                return self.fail(injected(io::ErrorKind::Other));
            }
            Some(Fault::Stall(duration)) => tokio::time::sleep(duration).await,
            Some(Fault::Lie | Fault::Flip) | None => {}
        }
        self.flush().await?;
        let mut entries = self.inner.read(group, slots, max_bytes).await?;
        if fault == Some(Fault::Flip) {
            flip_first_bit(&mut entries);
        }
        Ok(entries)
    }

    async fn close(&mut self) -> Result<(), StorageError> {
        self.refuse()?;
        self.flush().await?;
        self.inner.close().await
    }
}
