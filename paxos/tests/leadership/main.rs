//! Directed scenarios of leadership: handing it over, leases, and who should lead.
//!
//! The [`Rig`] checks the safety invariants on every write and every message; a violation fails the test with the
//! transcript. Its clock stands still unless a scenario moves it, and everything is delivered at once: what happens in
//! [`Rig::settle`] needs no timer.
#![cfg(feature = "testing")]

mod leases;
mod preference;
mod transfer;

use core::time::Duration;

use paxos::{
    NodeId,
    core::{Config, Input, Lease, Message, Phase, Token, TransferRejection},
    testing::sim::{Ending, Letter, Rig},
};

fn rig_with(nodes: u64, config: Config) -> Rig {
    // A bug may be planted, to see that the scenario made for it fails.
    #[cfg(paxos_planted)]
    if let Ok(name) = std::env::var("PAXOS_PLANT")
        && !name.is_empty()
    {
        paxos::planted::plant(&name).expect("the name of a bug");
    }
    Rig::with(nodes, config)
}

/// Led by n1, who has heard from everybody.
fn led_by_1(nodes: u64) -> Rig {
    led_by_1_with(nodes, Config::default())
}

fn led_by_1_with(nodes: u64, config: Config) -> Rig {
    let mut rig = rig_with(nodes, config);
    rig.elect(1);
    rig.pass(200);
    rig
}

fn is_take_over(letter: &Letter) -> bool {
    matches!(letter.message, Message::TakeOver { .. })
}

fn is_accept(letter: &Letter) -> bool {
    matches!(letter.message, Message::Accept { .. })
}

fn happened(rig: &Rig, token: Token) -> bool {
    matches!(rig.ending(token), Some(Ending::Applied(_)))
}

fn transferred(rig: &Rig, token: Token) -> Option<Result<u64, TransferRejection>> {
    match rig.ending(token)? {
        Ending::Transferred(result) => Some(result.map(|NodeId(node)| node)),
        other => panic!("{token:?} is no transfer: {other:?}"),
    }
}
