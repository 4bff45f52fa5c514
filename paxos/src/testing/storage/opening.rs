//! Whose a store is, and its lives.

use std::vec;

use super::{Bed, Failure, Model, OWNER, Opened, Outcome, support::*};
use crate::{
    storage::{Owner, StorageError, WriteBatch},
    types::{ClusterId, NodeId, Slot},
};

pub(super) async fn a_new_store_is_empty(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    opened.is_like(&Model::default()).await
}

pub(super) async fn a_store_says_whose_it_is(bed: &mut Bed<'_>) -> Outcome {
    let identity = bed.open().await?.recovered.identity;
    ensure!(
        identity.cluster == OWNER.cluster,
        "cluster {} was not recorded",
        OWNER.cluster
    );
    ensure!(
        identity.node == OWNER.node,
        "node {} was not recorded",
        OWNER.node
    );
    ensure!(identity.storage.0 != 0, "the store has no storage id");
    Ok(())
}

pub(super) async fn the_storage_id_stays(bed: &mut Bed<'_>) -> Outcome {
    let first = bed.open().await?.recovered.identity;
    let second = bed.open().await?.recovered.identity;
    ensure!(first == second, "{first:?} became {second:?}");
    Ok(())
}

pub(super) async fn two_stores_have_two_storage_ids(bed: &mut Bed<'_>) -> Outcome {
    let first = bed.open().await?.recovered.identity.storage;
    bed.place = (bed.new_place)();
    let second = bed.open().await?.recovered.identity.storage;
    ensure!(first != second, "two stores share the storage id {first}");
    Ok(())
}

pub(super) async fn every_opening_is_a_new_incarnation(bed: &mut Bed<'_>) -> Outcome {
    let mut last = 0;
    for life in 0..6 {
        let mut opened = bed.open().await?;
        let incarnation = opened.recovered.incarnation.0;
        ensure!(
            incarnation > last,
            "incarnation {last} is followed by {incarnation}"
        );
        last = incarnation;
        // Lives end in every way, even without a single write.
        if life % 3 == 1 {
            opened.write(vec![hard_state(A, life + 1, 0)]).await?;
        }
        if life % 2 == 0 {
            opened.storage.close().await?;
        }
    }
    Ok(())
}

pub(super) async fn the_node_of_another_cluster_is_refused(bed: &mut Bed<'_>) -> Outcome {
    let cluster = ClusterId(OWNER.cluster.0 + 1);
    is_refused(bed, Owner { cluster, ..OWNER }, "cluster").await
}

pub(super) async fn another_node_is_refused(bed: &mut Bed<'_>) -> Outcome {
    let node = NodeId(OWNER.node.0 + 1);
    is_refused(bed, Owner { node, ..OWNER }, "node").await
}

async fn is_refused(bed: &mut Bed<'_>, stranger: Owner, expected: &str) -> Outcome {
    drop(bed.open().await?);
    let refused = match bed.place.open(stranger) {
        Ok(mut storage) => storage.recover().await.map(drop),
        Err(error) => Err(error),
    };
    match refused {
        Err(StorageError::WrongIdentity { what, .. }) if what == expected => Ok(()),
        Err(error) => Err(Failure(std::format!("refused, but with: {error}"))),
        Ok(()) => Err(Failure(std::format!("the {expected} was not checked"))),
    }
}

pub(super) async fn a_refused_owner_changes_nothing(bed: &mut Bed<'_>) -> Outcome {
    let ops = vec![hard_state(A, 3, 1), accept(A, 1, 3)];
    let mut model = Model::default();
    model.apply(&ops);
    bed.open().await?.write(ops).await?;
    another_node_is_refused(bed).await?;
    bed.open().await?.is_like(&model).await
}

fn is_misuse<T>(result: Result<T, StorageError>, what: &str) -> Outcome {
    match result {
        Err(StorageError::Misuse(_)) => Ok(()),
        Err(error) => Err(Failure(std::format!("{what} is refused, but with: {error}"))),
        Ok(_) => Err(Failure(std::format!("{what} is not refused"))),
    }
}

pub(super) async fn writing_before_recover_is_misuse(bed: &mut Bed<'_>) -> Outcome {
    let mut storage = bed.place.open(OWNER)?;
    let ops = vec![accept(A, 1, 1)];
    is_misuse(
        storage.write(WriteBatch { sync: true, ops }).await,
        "write before recover",
    )?;
    Opened::recover(storage).await?.is_like(&Model::default()).await
}

pub(super) async fn reading_before_recover_is_misuse(bed: &mut Bed<'_>) -> Outcome {
    let mut storage = bed.place.open(OWNER)?;
    is_misuse(storage.read(A, Slot(1)..Slot(2), 1).await, "read before recover")?;
    Opened::recover(storage).await?.is_like(&Model::default()).await
}

pub(super) async fn recovering_twice_is_misuse(bed: &mut Bed<'_>) -> Outcome {
    let mut opened = bed.open().await?;
    is_misuse(opened.storage.recover().await, "a second recover")?;
    Ok(opened.write(vec![accept(A, 1, 1)]).await?)
}

pub(super) async fn a_store_that_was_never_recovered_can_be_closed(bed: &mut Bed<'_>) -> Outcome {
    bed.place.open(OWNER)?.close().await?;
    bed.open().await?.is_like(&Model::default()).await
}

pub(super) async fn closing_makes_unsynced_batches_durable(bed: &mut Bed<'_>) -> Outcome {
    let mut model = Model::default();
    let mut opened = bed.open().await?;
    for slot in 1..=5 {
        let ops = vec![accept(A, slot, 1)];
        model.apply(&ops);
        opened.write_unsynced(ops).await?;
    }
    opened.storage.close().await?;
    drop(opened);
    bed.open().await?.is_like(&model).await
}
