//! The client of sessions, at nodes that fail in every way that a node can.
#![cfg(feature = "testing")]

#[path = "common/list.rs"]
mod list;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use paxos::{
    ApplyCommand, Ballot, Chosen, NodeId, ProposalId, ProposeError, StateMachine,
    sessions::{ClientOptions, Command, Limits, Proposer, SessionClient, SessionError, Sessions},
};

use list::List;

/// What a node does with the next burst.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Refuse,
    Overloaded,
    /// Says unknown, and nothing has happened.
    Lose,
    /// Says unknown, and it has happened.
    LoseReply,
    /// Says unknown, and it happens when the next burst that is taken has been applied.
    Delay,
    NeverAnswer,
    TooLarge,
    NotLeader(NodeId),
}

/// The group's log, applied at once, and the nodes' next turns; without one a node works.
#[derive(Clone)]
struct Log(Arc<Mutex<State>>);

struct State {
    machine: Sessions<List>,
    turns: [VecDeque<Turn>; 2],
    delayed: Vec<Bytes>,
    asked: Vec<u64>,
}

impl State {
    fn apply(&mut self, payloads: Vec<Bytes>) -> Vec<Bytes> {
        let upto = self.machine.applied().next();
        let commands: Vec<ApplyCommand> = payloads
            .into_iter()
            .map(|payload| ApplyCommand {
                slot: upto,
                ballot: Ballot::ZERO,
                id: ProposalId::default(),
                payload,
            })
            .collect();
        let mut replies = Vec::new();
        let commands = &commands;
        self.machine
            .apply(Chosen { upto, commands }, &mut replies)
            .unwrap();
        replies
    }
}

struct Seat(Log, u64);

impl Proposer for Seat {
    async fn propose_all(&self, commands: Vec<Bytes>, _: Duration) -> Vec<Result<Bytes, ProposeError>> {
        let all = |error: ProposeError| vec![Err(error); commands.len()];
        let turn = {
            let mut state = self.0.0.lock().unwrap();
            state.asked.push(self.1);
            state.turns[self.1 as usize - 1].pop_front()
        };
        let mut state = self.0.0.lock().unwrap();
        match turn {
            Some(Turn::Refuse) => return all(ProposeError::Stopped("down".into())),
            Some(Turn::Overloaded) => {
                let retry_after = Duration::from_millis(40);
                return all(ProposeError::Overloaded { retry_after });
            }
            Some(Turn::NotLeader(node)) => return all(ProposeError::NotLeader { leader: Some(node) }),
            Some(Turn::TooLarge) => return all(ProposeError::TooLarge { bytes: 9, max: 8 }),
            Some(Turn::Lose) => return all(ProposeError::Unknown),
            Some(Turn::LoseReply) => {
                state.apply(commands.clone());
                return all(ProposeError::Unknown);
            }
            Some(Turn::Delay) => {
                state.delayed.extend(commands.iter().cloned());
                return all(ProposeError::Unknown);
            }
            Some(Turn::NeverAnswer) => {}
            None => {
                let replies = state.apply(commands);
                let delayed = std::mem::take(&mut state.delayed);
                state.apply(delayed);
                return replies.into_iter().map(Ok).collect();
            }
        }
        drop(state);
        std::future::pending().await
    }

    fn node(&self) -> Option<NodeId> {
        Some(NodeId(self.1))
    }
}

impl Log {
    fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(State {
            machine: Sessions::with_limits(List::default(), limits),
            turns: [VecDeque::new(), VecDeque::new()],
            delayed: Vec::new(),
            asked: Vec::new(),
        })))
    }

    fn turns(&self, node: usize, turns: impl IntoIterator<Item = Turn>) {
        self.0.lock().unwrap().turns[node - 1].extend(turns);
    }

    fn client(&self) -> SessionClient<Seat> {
        self.client_with(ClientOptions::default())
    }

    fn client_with(&self, options: ClientOptions) -> SessionClient<Seat> {
        SessionClient::new([1, 2].map(|node| Seat(self.clone(), node)), options)
    }

    fn effects(&self) -> String {
        let state = self.0.lock().unwrap();
        let commands = state.machine.machine().commands.iter();
        commands
            .map(|command| String::from_utf8_lossy(command))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }

    fn close_behind_the_clients_back(&self, client: &SessionClient<Seat>) {
        let session = client.session().unwrap();
        let close = Command::Close { session, stamp_ms: 0 };
        self.0.lock().unwrap().apply(vec![close.encode()]);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_on_the_way_there_is_one_effect_and_its_answer() {
    let every = [
        Turn::Refuse,
        Turn::Overloaded,
        Turn::Lose,
        Turn::LoseReply,
        Turn::Delay,
        Turn::NeverAnswer,
        Turn::NotLeader(NodeId(2)),
    ];
    for first in every {
        for second in every {
            let log = Log::new(Limits::default());
            let client = log.client();
            assert_eq!(client.call("a").await.unwrap(), "1");
            log.turns(1, [first]);
            log.turns(2, [second]);
            assert_eq!(client.call("b").await.unwrap(), "2", "{first:?} {second:?}");
            assert_eq!(client.call("c").await.unwrap(), "3");
            assert_eq!(log.effects(), "a b c", "{first:?} {second:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_repeated_in_order_and_many_bursts_share_a_window() {
    let log = Log::new(Limits::default());
    let client = log.client_with(ClientOptions {
        window: 3,
        ..ClientOptions::default()
    });
    log.turns(1, [Turn::LoseReply, Turn::Delay]);
    let burst = |from: u32, to: u32| {
        let client = client.clone();
        let commands = (from..to).map(|number| Bytes::from(number.to_string())).collect();
        async move { client.call_all(commands).await }
    };
    let (first, second) = tokio::join!(burst(0, 7), burst(7, 9));
    assert!(first.iter().chain(&second).all(Result::is_ok));
    let effects = log.effects();
    let mut numbers: Vec<u32> = effects.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.retain(|number| *number < 7);
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(effects.split(' ').count(), 9);
}

#[tokio::test(start_paused = true)]
async fn an_error_says_truthfully_whether_it_may_have_happened() {
    let log = Log::new(Limits::default());
    let client = log.client();
    client.call("a").await.unwrap();
    log.turns(1, [Turn::Refuse; 1_000]);
    log.turns(2, [Turn::Overloaded; 1_000]);
    let error = client.call("b").await.unwrap_err();
    assert!(error.is_definite(), "{error}");

    log.0.lock().unwrap().turns[0].push_front(Turn::LoseReply);
    log.0.lock().unwrap().turns[1].push_front(Turn::LoseReply);
    let error = client.call("c").await.unwrap_err();
    assert_eq!(error, SessionError::Unknown);
    assert_eq!(log.effects(), "a c");

    log.0.lock().unwrap().turns = [VecDeque::new(), VecDeque::new()];
    log.turns(1, [Turn::TooLarge]);
    log.turns(2, [Turn::TooLarge]);
    let error = client.call("d").await.unwrap_err();
    assert!(matches!(
        error,
        SessionError::NotExecuted(ProposeError::TooLarge { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_cannot_happen_after_the_next_answer() {
    let log = Log::new(Limits::default());
    let client = log.client_with(ClientOptions {
        deadline: Duration::from_millis(1),
        ..ClientOptions::default()
    });
    client.call("a").await.unwrap();
    log.turns(1, [Turn::Delay]);
    log.turns(2, [Turn::Delay]);
    assert_eq!(client.call("b").await.unwrap_err(), SessionError::Unknown);
    log.0.lock().unwrap().turns = [VecDeque::new(), VecDeque::new()];
    assert_eq!(
        client.call("c").await.unwrap(),
        "2",
        "after it the copies of b come"
    );
    assert_eq!(log.effects(), "a c");
}

#[tokio::test(start_paused = true)]
async fn a_new_session_takes_what_certainly_did_not_happen_in_the_one_that_ended() {
    let log = Log::new(Limits::default());
    let client = log.client();
    client.call("a").await.unwrap();
    let before = client.session();
    log.close_behind_the_clients_back(&client);
    assert_eq!(client.call("b").await.unwrap(), "2");
    assert_ne!(client.session(), before);

    log.turns(1, [Turn::LoseReply]);
    let closer = log.clone();
    let (called, ()) = tokio::join!(client.call("c"), async {
        tokio::task::yield_now().await;
        closer.close_behind_the_clients_back(&client);
    });
    assert_eq!(
        called,
        Err(SessionError::Unknown),
        "it may have been executed there"
    );
    assert_eq!(log.effects(), "a b c");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_works_is_stayed_with_and_hints_are_followed() {
    let log = Log::new(Limits::default());
    let client = log.client();
    log.turns(1, [Turn::NotLeader(NodeId(2))]);
    client.call("a").await.unwrap();
    client.call("b").await.unwrap();
    assert_eq!(log.asked(), [1, 2, 2, 2], "refused, opened, two commands");
    log.turns(2, [Turn::Overloaded]);
    client.call("c").await.unwrap();
    assert_eq!(log.asked(), [2, 2], "an overloaded node is not at fault");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_and_a_service_without_sessions_are_named() {
    let log = Log::new(Limits {
        max_session_reply_bytes: 0,
        ..Limits::default()
    });
    let client = log.client();
    client.call("a").await.unwrap();
    log.turns(1, [Turn::LoseReply]);
    assert_eq!(client.call("b").await, Err(SessionError::ReplyDropped));
    assert_eq!(log.effects(), "a b");
    client.close().await.unwrap();
    assert_eq!(log.0.lock().unwrap().machine.sessions(), 0);

    let plain = |commands: Vec<Bytes>, _: Duration| async move {
        vec![Ok(Bytes::from_static(b"OK")); commands.len()]
    };
    let error = SessionClient::new([plain], ClientOptions::default())
        .call("a")
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::Misfit(_)) && error.is_definite());
}
