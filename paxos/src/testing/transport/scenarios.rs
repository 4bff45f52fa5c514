//! What a transport has to do, one scenario each.

use std::{
    boxed::Box,
    format,
    string::{String, ToString},
    time::Duration,
    vec::Vec,
};

use super::{Lab, MAX_QUEUE_BYTES, Outcome, Scenario, TestNode, frame, introduce};
use crate::{
    transport::{Lane, Outgoing, SendError},
    types::NodeId,
};

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        /// All scenarios, by name.
        pub(super) const ALL: &[(&str, Scenario)] = &[$((stringify!($name), |lab| Box::pin($name(lab)))),*];
    };
}

scenarios! {
    frames_arrive_whole_and_in_order,
    both_ends_send_at_once,
    concurrent_senders_keep_their_order,
    a_peer_that_reads_nothing_fills_its_queue_and_nothing_waits,
    what_was_accepted_arrives_when_the_peer_reads_again,
    control_overtakes_bulk,
    a_stuck_peer_does_not_disturb_the_others,
    sends_to_nobody_are_refused,
    bursts_arrive_among_single_frames_in_order,
    of_a_burst_only_what_has_no_room_is_refused,
    a_peer_that_closes_is_disconnected_and_one_that_returns_is_connected,
    peers_come_and_go,
    a_peer_may_move_to_another_address,
    a_node_that_is_not_known_yet_is_let_in_and_answered_once_it_is_known,
    a_node_that_is_not_known_yet_fills_its_queue_only,
    close_stops_deliveries,
    misuse_is_an_error,
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

async fn close(nodes: &[TestNode]) {
    for node in nodes {
        node.recorder.open();
        node.transport.close().await;
    }
}

fn sent(result: Result<(), SendError>) -> Outcome {
    result.map_err(|error| format!("a frame that there was room for was refused: {error}"))
}

/// Sends one frame to a connected peer; tries again while it is refused for lack of room.
async fn send_patiently(lab: &Lab<'_>, from: &TestNode, to: NodeId, frame: &Outgoing) -> Outcome {
    let started = tokio::time::Instant::now();
    loop {
        let (transport, frame) = (from.transport.clone(), frame.clone());
        match watched(lab, move || transport.send(to, &frame)).await? {
            Err(SendError::Full) if started.elapsed() < lab.patience => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            result => return sent(result),
        }
    }
}

/// Runs `send` on a thread of its own, since a wrong transport may block it; gives up when patience ends.
async fn watched<R: Send + 'static>(
    lab: &Lab<'_>,
    send: impl FnOnce() -> R + Send + 'static,
) -> Result<R, String> {
    let runtime = tokio::runtime::Handle::current();
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _entered = runtime.enter();
        // Nobody listens any more when patience has ended.
        let _ = done.send(send());
    });
    match tokio::time::timeout(lab.patience, result).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err("send panicked".to_string()),
        Err(_) => Err("send waits instead of refusing".to_string()),
    }
}

/// Sends numbered frames on a lane until one is refused; returns how many were accepted.
async fn fill(lab: &Lab<'_>, from: &TestNode, to: NodeId, lane: Lane) -> Result<u64, String> {
    const FRAME_BYTES: usize = 16 << 10;
    const ROUND: u64 = 256;
    let mut accepted = 0;
    // The system's buffers take some more after a first refusal; only a lasting one means that all are full.
    let mut refusals = 0;
    while refusals < 50 {
        let (transport, id) = (from.transport.clone(), from.id());
        let (count, refusal) = watched(lab, move || {
            let frames = (accepted + 1..=accepted + ROUND).map(|number| frame(id, lane, number, FRAME_BYTES));
            let mut count = 0;
            for frame in frames {
                match transport.send(to, &frame) {
                    Ok(()) => count += 1,
                    Err(refusal) => return (count, Some(refusal)),
                }
            }
            (count, None)
        })
        .await?;
        accepted += count;
        ensure(accepted as usize * FRAME_BYTES < MAX_QUEUE_BYTES, || {
            format!(
                "more than {MAX_QUEUE_BYTES} bytes were accepted for a peer that reads nothing ({lane:?})"
            )
        })?;
        match refusal {
            None => {}
            Some(SendError::Full) => {
                refusals = if count == 0 { refusals + 1 } else { 0 };
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Some(other) => return Err(format!("a full queue was reported as: {other}")),
        }
    }
    ensure(accepted > 0, || {
        format!("a connected peer has no room for a single {lane:?} frame")
    })?;
    Ok(accepted)
}

async fn frames_arrive_whole_and_in_order(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    let sizes = [0, 1, 300, 1_025, 4_096, 70_000, 1 << 20, 5, 0, 256, 2_000];
    for lane in Lane::ALL {
        let mut number = 0;
        for _ in 0..5 {
            for bytes in sizes {
                number += 1;
                let frame = nodes[0].frame(lane, number, bytes);
                send_patiently(lab, &nodes[0], NodeId(2), &frame).await?;
            }
        }
        nodes[1].recorder.all_in_order(NodeId(1), lane, number).await?;
        for arrived in nodes[1]
            .recorder
            .frames()
            .iter()
            .filter(|arrived| arrived.lane == lane)
        {
            let bytes = sizes[(arrived.number as usize - 1) % sizes.len()];
            let expected = nodes[0].frame(lane, arrived.number, bytes).len();
            ensure(arrived.bytes == expected, || {
                format!(
                    "frame {} has {} bytes instead of {expected}",
                    arrived.number, arrived.bytes
                )
            })?;
        }
    }
    close(&nodes).await;
    Ok(())
}

async fn both_ends_send_at_once(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(3).await?;
    for number in 1..=200 {
        for from in &nodes {
            for to in nodes.iter().filter(|to| to.id() != from.id()) {
                send_patiently(lab, from, to.id(), &from.frame(Lane::Control, number, 256)).await?;
            }
        }
    }
    for to in &nodes {
        for from in nodes.iter().filter(|from| from.id() != to.id()) {
            to.recorder.all_in_order(from.id(), Lane::Control, 200).await?;
        }
    }
    close(&nodes).await;
    Ok(())
}

async fn concurrent_senders_keep_their_order(lab: &Lab<'_>) -> Outcome {
    const SENDERS: u64 = 4;
    const FRAMES: u64 = 500;
    let nodes = lab.nodes(2).await?;
    let frames_of = |sender: u64| -> Vec<_> {
        (0..FRAMES)
            .map(|n| nodes[0].frame(Lane::Control, n * SENDERS + sender, 200))
            .collect()
    };
    let all_frames: Vec<_> = (0..SENDERS).map(frames_of).collect();
    let transport = nodes[0].transport.clone();
    let all_sent = watched(lab, move || {
        let runtime = &tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let send_all = |frames: Vec<Outgoing>| {
                let transport = &transport;
                scope.spawn(move || {
                    let _entered = runtime.enter();
                    frames
                        .iter()
                        .try_for_each(|frame| transport.send(NodeId(2), frame))
                })
            };
            let threads: Vec<_> = all_frames.into_iter().map(send_all).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("send does not panic"))
        })
    });
    sent(all_sent.await?)?;
    let to = &nodes[1].recorder;
    to.until("the frames of all senders", |to| {
        to.frames().len() as u64 >= SENDERS * FRAMES
    })
    .await?;
    let numbers = to.numbers(NodeId(1), Lane::Control);
    for sender in 0..SENDERS {
        let own: Vec<u64> = numbers
            .iter()
            .copied()
            .filter(|number| number % SENDERS == sender)
            .collect();
        ensure(own.is_sorted() && own.len() as u64 == FRAMES, || {
            format!("the frames of sender {sender} arrived out of order or not exactly once")
        })?;
    }
    close(&nodes).await;
    Ok(())
}

async fn a_peer_that_reads_nothing_fills_its_queue_and_nothing_waits(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    nodes[1].recorder.shut();
    for lane in Lane::ALL {
        fill(lab, &nodes[0], NodeId(2), lane).await?;
    }
    close(&nodes).await;
    Ok(())
}

async fn what_was_accepted_arrives_when_the_peer_reads_again(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    for lane in Lane::ALL {
        nodes[1].recorder.shut();
        let accepted = fill(lab, &nodes[0], NodeId(2), lane).await?;
        nodes[1].recorder.open();
        nodes[1].recorder.all_in_order(NodeId(1), lane, accepted).await?;
        let more = nodes[0].frame(lane, accepted + 1, 300);
        send_patiently(lab, &nodes[0], NodeId(2), &more).await?;
        nodes[1]
            .recorder
            .all_in_order(NodeId(1), lane, accepted + 1)
            .await?;
    }
    close(&nodes).await;
    Ok(())
}

async fn control_overtakes_bulk(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    nodes[1].recorder.shut();
    let bulk = fill(lab, &nodes[0], NodeId(2), Lane::Bulk).await?;
    let (transport, urgent) = (nodes[0].transport.clone(), nodes[0].frame(Lane::Control, 1, 100));
    sent(watched(lab, move || transport.send(NodeId(2), &urgent)).await?)?;
    nodes[1].recorder.open();
    nodes[1]
        .recorder
        .all_in_order(NodeId(1), Lane::Bulk, bulk)
        .await?;
    nodes[1]
        .recorder
        .all_in_order(NodeId(1), Lane::Control, 1)
        .await?;
    let frames = nodes[1].recorder.frames();
    let last = frames.last().map(|frame| frame.lane);
    ensure(last == Some(Lane::Bulk), || {
        format!("a control frame arrived after all {bulk} bulk frames that were queued before it")
    })?;
    close(&nodes).await;
    Ok(())
}

async fn a_stuck_peer_does_not_disturb_the_others(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(3).await?;
    nodes[1].recorder.shut();
    for lane in Lane::ALL {
        fill(lab, &nodes[0], NodeId(2), lane).await?;
    }
    for number in 1..=100 {
        let frame = nodes[0].frame(Lane::Control, number, 256);
        send_patiently(lab, &nodes[0], NodeId(3), &frame).await?;
    }
    nodes[2]
        .recorder
        .all_in_order(NodeId(1), Lane::Control, 100)
        .await?;
    close(&nodes).await;
    Ok(())
}

async fn sends_to_nobody_are_refused(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    let frame = nodes[0].frame(Lane::Control, 1, 10);
    let unknown = nodes[0].transport.send(NodeId(99), &frame);
    ensure(unknown == Err(SendError::UnknownPeer), || {
        format!("a send to no peer returned {unknown:?}")
    })?;
    let itself = nodes[0].transport.send(NodeId(1), &frame);
    ensure(itself.is_err(), || {
        "a send to the node itself was accepted".to_string()
    })?;
    close(&nodes).await;
    let closed = nodes[0].transport.send(NodeId(2), &frame);
    ensure(closed == Err(SendError::Closed), || {
        format!("a send after close returned {closed:?}")
    })?;
    let (new, _) = (lab.make)(NodeId(1), None);
    let early = new.send(NodeId(2), &frame);
    ensure(early == Err(SendError::Closed), || {
        format!("a send before start returned {early:?}")
    })
}

async fn bursts_arrive_among_single_frames_in_order(lab: &Lab<'_>) -> Outcome {
    const ROUNDS: u64 = 50;
    let peers = [NodeId(2), NodeId(3)];
    let sizes = [0, 300, 4_000];
    let nodes = lab.nodes(3).await?;
    let mut number = 0;
    for _ in 0..ROUNDS {
        let mut burst = Vec::new();
        for bytes in sizes {
            number += 1;
            for lane in Lane::ALL {
                let frame = nodes[0].frame(lane, number, bytes);
                burst.extend(peers.map(|peer| (peer, frame.clone())));
            }
        }
        let transport = nodes[0].transport.clone();
        let refused = watched(lab, move || transport.send_all(&burst)).await?;
        ensure(refused.is_empty(), || {
            format!("of a burst that there was room for was refused: {refused:?}")
        })?;
        number += 1;
        for lane in Lane::ALL {
            for peer in peers {
                send_patiently(lab, &nodes[0], peer, &nodes[0].frame(lane, number, 100)).await?;
            }
        }
        if number.is_multiple_of(20) {
            // Bursts meet empty queues and connections at rest too.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for node in &nodes[1..] {
        for lane in Lane::ALL {
            node.recorder.all_in_order(NodeId(1), lane, number).await?;
        }
    }
    close(&nodes).await;
    Ok(())
}

async fn of_a_burst_only_what_has_no_room_is_refused(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(3).await?;
    nodes[1].recorder.shut();
    fill(lab, &nodes[0], NodeId(2), Lane::Bulk).await?;
    let frame = nodes[0].frame(Lane::Bulk, 1, 16 << 10);
    let burst = [NodeId(3), NodeId(2), NodeId(99)].map(|peer| (peer, frame.clone()));
    let transport = nodes[0].transport.clone();
    let refused = watched(lab, move || transport.send_all(&burst)).await?;
    let expected = [(1, SendError::Full), (2, SendError::UnknownPeer)];
    ensure(refused == expected, || {
        format!(
            "of a burst to a free, a full and an unknown peer was refused: {refused:?} instead of {expected:?}"
        )
    })?;
    nodes[2].recorder.all_in_order(NodeId(1), Lane::Bulk, 1).await?;
    close(&nodes).await;
    let closed = nodes[0].transport.send_all(&[(NodeId(3), frame)]);
    ensure(closed == [(0, SendError::Closed)], || {
        format!("a burst after close was refused as: {closed:?}")
    })
}

async fn a_peer_that_closes_is_disconnected_and_one_that_returns_is_connected(lab: &Lab<'_>) -> Outcome {
    let mut nodes = lab.nodes(2).await?;
    let (made, broken) = nodes[0].recorder.connections(NodeId(2));
    ensure((made, broken) == (1, 0), || {
        format!("{made} connections were made and {broken} broke where one was made")
    })?;
    for life in 2..=4 {
        let old = nodes.remove(1);
        old.transport.close().await;
        nodes[0].recorder.disconnected(NodeId(2)).await?;
        let refused = nodes[0]
            .transport
            .send(NodeId(2), &nodes[0].frame(Lane::Control, 1, 10));
        ensure(refused == Err(SendError::NotConnected), || {
            format!("a send to a peer that is gone returned {refused:?}")
        })?;

        nodes.push(lab.node(2, Some(&old.peer.address)).await?);
        introduce(&[&nodes[0], &nodes[1]]);
        nodes[0].recorder.connected(NodeId(2)).await?;
        nodes[1].recorder.connected(NodeId(1)).await?;
        for lane in Lane::ALL {
            send_patiently(lab, &nodes[0], NodeId(2), &nodes[0].frame(lane, 1, 3_000)).await?;
            nodes[1].recorder.all_in_order(NodeId(1), lane, 1).await?;
            send_patiently(lab, &nodes[1], NodeId(1), &nodes[1].frame(lane, life - 1, 3_000)).await?;
            nodes[0].recorder.all_in_order(NodeId(2), lane, life - 1).await?;
        }
    }
    close(&nodes).await;
    Ok(())
}

async fn peers_come_and_go(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    let frame = nodes[0].frame(Lane::Control, 1, 10);
    nodes[0].transport.set_peers(std::slice::from_ref(&nodes[0].peer));
    let gone = nodes[0].transport.send(NodeId(2), &frame);
    ensure(gone == Err(SendError::UnknownPeer), || {
        format!("a send to a former peer returned {gone:?}")
    })?;
    nodes[0].recorder.disconnected(NodeId(2)).await?;

    introduce(&[&nodes[0], &nodes[1]]);
    nodes[0].recorder.connected(NodeId(2)).await?;
    send_patiently(lab, &nodes[0], NodeId(2), &frame).await?;
    nodes[1]
        .recorder
        .all_in_order(NodeId(1), Lane::Control, 1)
        .await?;
    close(&nodes).await;
    Ok(())
}

async fn a_peer_may_move_to_another_address(lab: &Lab<'_>) -> Outcome {
    let mut nodes = lab.nodes(2).await?;
    nodes.remove(1).transport.close().await;
    nodes[0].recorder.disconnected(NodeId(2)).await?;
    nodes.push(lab.node(2, None).await?);
    introduce(&[&nodes[0], &nodes[1]]);
    nodes[0].recorder.connected(NodeId(2)).await?;
    send_patiently(lab, &nodes[0], NodeId(2), &nodes[0].frame(Lane::Bulk, 1, 500)).await?;
    nodes[1].recorder.all_in_order(NodeId(1), Lane::Bulk, 1).await?;
    close(&nodes).await;
    Ok(())
}

/// Nodes of one cluster of which the second knows the first, but not the other way round.
async fn acquainted_one_way(lab: &Lab<'_>) -> Result<Vec<TestNode>, String> {
    let nodes = Vec::from([lab.node(1, None).await?, lab.node(2, None).await?]);
    nodes[1].transport.set_peers(std::slice::from_ref(&nodes[0].peer));
    nodes[1].recorder.connected(NodeId(1)).await?;
    Ok(nodes)
}

async fn a_node_that_is_not_known_yet_is_let_in_and_answered_once_it_is_known(lab: &Lab<'_>) -> Outcome {
    let nodes = acquainted_one_way(lab).await?;
    for lane in Lane::ALL {
        for number in 1..=10 {
            send_patiently(lab, &nodes[1], NodeId(1), &nodes[1].frame(lane, number, 300)).await?;
        }
        nodes[0].recorder.all_in_order(NodeId(2), lane, 10).await?;
    }
    let answer = nodes[0].frame(Lane::Control, 1, 10);
    let early = nodes[0].transport.send(NodeId(2), &answer);
    ensure(early == Err(SendError::UnknownPeer), || {
        format!("a send to a node without an address returned {early:?}")
    })?;

    introduce(&[&nodes[0], &nodes[1]]);
    nodes[0].recorder.connected(NodeId(2)).await?;
    send_patiently(lab, &nodes[0], NodeId(2), &answer).await?;
    nodes[1]
        .recorder
        .all_in_order(NodeId(1), Lane::Control, 1)
        .await?;
    close(&nodes).await;
    Ok(())
}

async fn a_node_that_is_not_known_yet_fills_its_queue_only(lab: &Lab<'_>) -> Outcome {
    let nodes = acquainted_one_way(lab).await?;
    nodes[0].recorder.shut();
    let mut accepted = Vec::new();
    for lane in Lane::ALL {
        accepted.push((lane, fill(lab, &nodes[1], NodeId(1), lane).await?));
    }
    nodes[0].recorder.open();
    for (lane, count) in accepted {
        nodes[0].recorder.all_in_order(NodeId(2), lane, count).await?;
    }
    close(&nodes).await;
    Ok(())
}

async fn close_stops_deliveries(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(2).await?;
    let transport = nodes[0].transport.clone();
    watched(lab, move || {
        for number in 1..=2_000 {
            // Refusals are fine here: there just has to be something under way.
            let _ = transport.send(NodeId(2), &frame(NodeId(1), Lane::Control, number, 1_000));
        }
    })
    .await?;
    nodes[1]
        .recorder
        .until("a first frame", |to| !to.frames().is_empty())
        .await?;
    nodes[1].transport.close().await;
    let at_close = nodes[1].recorder.frames().len();
    nodes[0].recorder.disconnected(NodeId(2)).await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let later = nodes[1].recorder.frames().len();
    ensure(later == at_close, || {
        format!("{} frames were delivered after close", later - at_close)
    })?;
    close(&nodes).await;
    Ok(())
}

async fn misuse_is_an_error(lab: &Lab<'_>) -> Outcome {
    let nodes = lab.nodes(1).await?;
    ensure(nodes[0].start().await.is_err(), || {
        "a second start succeeded".to_string()
    })?;
    nodes[0].transport.close().await;
    ensure(nodes[0].start().await.is_err(), || {
        "a start after close succeeded".to_string()
    })?;
    nodes[0].transport.close().await;
    Ok(())
}
