//! Who is connected.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::{BufMut, BytesMut};

use crate::resp::write;

/// What a connection knows of its client.
#[derive(Clone, Debug)]
pub struct Session {
    /// Numbers the connections of this node, from 1.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether the client is on this node's machine.
    pub is_local: bool,
    /// As given by `CLIENT SETNAME`.
    pub name: String,
    /// As given by `CLIENT SETINFO`: the library's name and version.
    pub library: (String, String),
    /// Whether the client speaks version 3 of the protocol.
    pub resp3: bool,
    /// As said by `READONLY`: its reads are answered here, whoever leads.
    pub read_only: bool,
    /// The connection ends when its replies are written.
    pub close: bool,
    connected: Instant,
}

impl Session {
    /// Appends a reply, which is in version 3 of the protocol, in the client's version.
    pub(super) fn answer(&self, out: &mut BytesMut, reply: &[u8]) {
        if self.resp3 {
            out.put_slice(reply);
        } else {
            write::downgrade(out, reply);
        }
    }

    /// One line of `CLIENT LIST`.
    pub(super) fn describe(&self, line: &mut String) {
        let _ = writeln!(
            line,
            "id={} addr={} name={} age={} db=0 resp={} lib-name={} lib-ver={}",
            self.id,
            self.peer,
            self.name,
            self.connected.elapsed().as_secs(),
            if self.resp3 { 3 } else { 2 },
            self.library.0,
            self.library.1,
        );
    }
}

/// Whether both ends of a connection are on one machine: who comes from the very address that it has reached, or over
/// the loopback.
fn is_local(peer: SocketAddr, own: Option<SocketAddr>) -> bool {
    let [peer, own] = [Some(peer), own].map(|end| end.map(|end| end.ip().to_canonical()));
    peer == own || peer.is_some_and(|peer| peer.is_loopback())
}

/// All connected clients.
#[derive(Debug, Default)]
pub struct Clients {
    last_id: AtomicU64,
    sessions: Mutex<BTreeMap<u64, Session>>,
}

impl Clients {
    /// Somebody at `peer` has reached this node at its address `own`.
    pub(super) fn connect(&self, peer: SocketAddr, own: Option<SocketAddr>) -> Session {
        let session = Session {
            id: self.last_id.fetch_add(1, Relaxed) + 1,
            peer,
            is_local: is_local(peer, own),
            name: String::new(),
            library: Default::default(),
            resp3: false,
            read_only: false,
            close: false,
            connected: Instant::now(),
        };
        self.update(&session);
        session
    }

    /// Takes over what `CLIENT LIST` shows of this client.
    pub(super) fn update(&self, session: &Session) {
        self.lock().insert(session.id, session.clone());
    }

    pub(super) fn disconnect(&self, session: &Session) {
        self.lock().remove(&session.id);
    }

    /// How many clients are connected.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no client is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many clients have ever connected.
    pub fn total(&self) -> u64 {
        self.last_id.load(Relaxed)
    }

    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        self.lock()
            .values()
            .for_each(|session| session.describe(&mut text));
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_on_the_node_s_machine_are_known_by_their_address() {
        for (peer, own, expected) in [
            ("127.0.0.1:50000", "127.0.0.1:6379", true),
            ("[::1]:50000", "[::1]:6379", true),
            ("10.0.0.1:50000", "10.0.0.1:6379", true),
            ("[::ffff:10.0.0.1]:50000", "10.0.0.1:6379", true),
            ("10.0.0.2:50000", "10.0.0.1:6379", false),
            ("[fd00::2]:50000", "[fd00::1]:6379", false),
        ] {
            let own = own.parse().ok();
            let session = Clients::default().connect(peer.parse().unwrap(), own);
            assert_eq!(session.is_local, expected, "{peer} to {own:?}");
        }
    }
}
