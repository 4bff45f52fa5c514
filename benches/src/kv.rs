//! Three `kvstore` processes and clients of the Redis protocol. The servers are this very program, started again: see
//! [`serve_if_asked`].

use std::{
    cell::Cell,
    env, fmt, io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use crate::Directories;

/// Tells a program that it is started as a server.
const AS_SERVER: &str = "PAXOS_BENCH_SERVER";
/// How many nodes the cluster has.
const NODES: usize = 3;
/// How long the cluster may take to serve; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Over how many keys clients write.
const KEYS: u64 = 100_000;
/// How large a value is, in bytes.
pub const VALUE_BYTES: usize = 256;

/// Call this first in `main`, and end with what it returns: a program that [`Servers`] have started is a server.
pub fn serve_if_asked() -> Option<ExitCode> {
    env::var_os(AS_SERVER).is_some().then(kvstore::cli::main)
}

/// What clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// `SET` with a value of [`VALUE_BYTES`].
    Set,
    /// Linearizable `GET` of such a value.
    Get,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "SET",
            Self::Get => "GET",
        })
    }
}

impl Load {
    fn request(self, key: u64, into: &mut Vec<u8>) {
        let key = format!("key:{key:06}");
        match self {
            Self::Set => {
                into.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
                append_value(into);
            }
            Self::Get => {
                into.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
            }
        }
    }

    /// The reply that every request must have.
    fn reply(self) -> Vec<u8> {
        match self {
            Self::Set => b"+OK\r\n".to_vec(),
            Self::Get => {
                let mut reply = Vec::new();
                append_value(&mut reply);
                reply
            }
        }
    }
}

fn append_value(into: &mut Vec<u8>) {
    into.extend_from_slice(format!("${VALUE_BYTES}\r\n").as_bytes());
    into.extend(std::iter::repeat_n(b'v', VALUE_BYTES));
    into.extend_from_slice(b"\r\n");
}

/// A cluster of processes with the default settings, and the runtime of its clients.
#[derive(Debug)]
pub struct Servers {
    processes: Vec<Child>,
    /// Where the leader serves clients.
    leader: SocketAddr,
    /// Each load goes on at the keys behind those of the one before.
    next_key: Cell<u64>,
    runtime: Runtime,
    _directories: Directories,
}

impl Servers {
    /// Starts the cluster with this storage, waits until it serves, and writes every key once.
    ///
    /// # Panics
    ///
    /// If it does not serve.
    pub fn start(storage: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be built");
        let mut directories = Directories::default();
        let ports = free_addresses(3 * NODES);
        let (peers, ports) = ports.split_at(NODES);
        let (clients, http) = ports.split_at(NODES);
        let members: Vec<String> = peers
            .iter()
            .zip(1..)
            .map(|(peer, id)| format!("{id}={peer}"))
            .collect();
        let start = |node: usize| {
            let data: PathBuf = directories.create().join("data");
            Command::new(env::current_exe()?)
                .env(AS_SERVER, "1")
                .args([
                    "serve",
                    "--id",
                    &(node + 1).to_string(),
                    "--cluster",
                    &members.join(","),
                ])
                .args([
                    "--resp",
                    &clients[node].to_string(),
                    "--http",
                    &http[node].to_string(),
                ])
                .args(["--storage", storage, "--log", "error", "--data-dir"])
                .arg(data)
                .stdin(Stdio::null())
                .spawn()
        };
        let processes: io::Result<Vec<Child>> = (0..NODES).map(start).collect();
        let mut servers = Self {
            processes: processes.expect("this program can be started again"),
            leader: clients[0],
            next_key: Cell::new(0),
            runtime,
            _directories: directories,
        };
        servers.leader = servers.runtime.block_on(find_leader(clients));
        servers.load(Load::Set, 1, 100, KEYS.div_ceil(100));
        servers
    }

    /// So many clients of the leader send so many bursts of `pipeline` commands each, each burst when the one before is
    /// answered; says how long that took.
    ///
    /// # Panics
    ///
    /// If a reply is not what it must be.
    pub fn load(&self, load: Load, clients: u64, pipeline: u64, bursts: u64) -> Duration {
        let first_key = self.next_key.get();
        self.next_key.set((first_key + pipeline * bursts) % KEYS);
        self.runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..clients {
                let stream = TcpStream::connect(self.leader)
                    .await
                    .expect("the leader takes clients");
                stream.set_nodelay(true).expect("a socket has options");
                streams.push(stream);
            }
            let mut running = JoinSet::new();
            let start = Instant::now();
            for (client, stream) in streams.into_iter().enumerate() {
                running.spawn(converse(
                    stream,
                    load,
                    first_key + client as u64 * (KEYS / clients),
                    pipeline,
                    bursts,
                ));
            }
            while let Some(ended) = running.join_next().await {
                ended
                    .expect("the client runs to its end")
                    .expect("the leader answers");
            }
            start.elapsed()
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<TcpListener> = (0..count).map(listen).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("a local address");
    listeners.iter().map(address).collect()
}

/// Asks until a node says that it leads.
async fn find_leader(clients: &[SocketAddr]) -> SocketAddr {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for address in clients {
            if leads(*address).await.unwrap_or(false) {
                return *address;
            }
        }
        assert!(Instant::now() < deadline, "no node leads within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `ROLE`, as Redis has it, begins with the role.
async fn leads(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"*1\r\n$4\r\nROLE\r\n").await?;
    let mut reply = [0; 256];
    let read = stream.read(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply[..read]).contains("master"))
}

async fn converse(
    mut stream: TcpStream,
    load: Load,
    first_key: u64,
    pipeline: u64,
    bursts: u64,
) -> io::Result<()> {
    let expected = load.reply().repeat(pipeline as usize);
    let mut replies = vec![0; expected.len()];
    let mut request = Vec::new();
    for burst in 0..bursts {
        request.clear();
        for command in 0..pipeline {
            load.request((first_key + burst * pipeline + command) % KEYS, &mut request);
        }
        stream.write_all(&request).await?;
        stream.read_exact(&mut replies).await?;
        if replies != expected {
            let text = String::from_utf8_lossy(&replies[..replies.len().min(100)]).into_owned();
            return Err(io::Error::other(format!("unexpected replies: {text}")));
        }
    }
    Ok(())
}
