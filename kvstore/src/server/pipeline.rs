//! One burst of commands of one connection.
//!
//! Consecutive writes become one burst of proposals for each group, consecutive reads one burst of queries. A read
//! waits for the writes before it and a write for the reads before it, so a client sees its commands done in order.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use paxos::node::Answers;

use super::{
    Session, Shared,
    local::{MAX_SHOWN_BYTES, shown},
    unwritten::Unwritten,
    wide,
    writer::Draft,
};
use crate::{
    command::{Command, Run, codec, table},
    machine::operations::Action,
    resp::{Args, is, write},
    together::all,
};

/// So many bytes are kept for putting together the replies that no group gives.
const MAX_IDLE_REPLY_BYTES: usize = 64 << 10;
/// At most this many commands wait for each other.
const MAX_BURST_COMMANDS: usize = 1024;
/// How many keys reads may name at once, unless a single command names more.
const MAX_READ_KEYS: usize = 256;
/// Reads are asked of a group until the replies have so many bytes, and the others when these are on their way.
const MAX_READ_REPLY_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reads,
    Writes,
}

/// Where a command's reply comes from.
#[derive(Debug)]
enum Answer {
    /// The next reply of this group, to this command (a position in the table).
    Group(usize, usize),
    /// An error that is known already.
    Refused(String),
}

/// The commands of one connection that have been read and not answered.
#[derive(Debug)]
pub(super) struct Pipeline {
    kind: Kind,
    /// For each group, what is to be read from it.
    queries: Vec<Vec<Bytes>>,
    /// For each group, what is to be written to it.
    drafts: Vec<Vec<Draft>>,
    /// In the order of the commands.
    answers: Vec<Answer>,
    /// How many keys the commands name.
    keys: usize,
    /// For each group, the replies to what was asked of it.
    replies: Vec<Replies>,
    /// A reply in version 3 before it is translated.
    reply: BytesMut,
    started: Instant,
}

impl Pipeline {
    pub(super) fn new(groups: usize) -> Self {
        Self {
            kind: Kind::Reads,
            queries: vec![Vec::new(); groups],
            drafts: (0..groups).map(|_| Vec::new()).collect(),
            answers: Vec::new(),
            keys: 0,
            replies: (0..groups).map(|_| Replies::default()).collect(),
            reply: BytesMut::new(),
            started: Instant::now(),
        }
    }

    /// Notes when the commands that follow were read.
    pub(super) fn begin(&mut self) {
        self.started = Instant::now();
    }

    /// Takes one command in; replies that are there go to `out`. See [`finish`](Self::finish).
    pub(super) async fn take(
        &mut self,
        args: Args<'_>,
        shared: &Shared,
        session: &mut Session,
        out: &mut Unwritten<'_>,
    ) -> io::Result<()> {
        if self.answers.len() >= MAX_BURST_COMMANDS {
            self.finish(shared, session, out).await?;
        }
        let Some(index) = table::find(args.get(0)) else {
            if is_http(args.get(0)) {
                tracing::warn!(
                    client = session.id,
                    peer = %session.peer,
                    "this client speaks HTTP, perhaps a web page that attacks through its reader's browser; disconnected"
                );
                session.close = true;
                return Ok(());
            }
            shared.metrics.unknown_commands.increment();
            self.answers.push(Answer::Refused(unknown_command(args)));
            return Ok(());
        };
        let command = &table::COMMANDS[index];
        if !command.takes(args.len()) {
            shared.metrics.commands[index].failed.increment();
            self.answers.push(Answer::Refused(wrong_arity(command.name)));
            return Ok(());
        }
        match command.run {
            Run::Machine(operation) => {
                let kind = match operation.action {
                    Action::Write(_) => Kind::Writes,
                    Action::Read(_) => Kind::Reads,
                };
                let keys = command.keys.of(args).count();
                let is_full = kind == Kind::Reads && self.keys + keys > MAX_READ_KEYS;
                if kind != self.kind || is_full {
                    self.finish(shared, session, out).await?;
                    self.kind = kind;
                }
                self.keys += keys;
                self.ask(command, index, operation.code, args, shared, session);
            }
            Run::Local(run) => {
                self.finish(shared, session, out).await?;
                run(shared, session, args, &mut self.reply);
                self.answer_here(index, shared, session, out);
            }
            Run::Wide(wide) => {
                self.finish(shared, session, out).await?;
                if let Err(error) = wide::run(wide, shared, session, args, &mut self.reply).await {
                    self.reply.clear();
                    write::error(&mut self.reply, &error);
                }
                self.answer_here(index, shared, session, out);
            }
        }
        out.relieve().await
    }

    fn ask(
        &mut self,
        command: &Command,
        index: usize,
        code: u8,
        args: Args<'_>,
        shared: &Shared,
        session: &Session,
    ) {
        let stays = self.kind == Kind::Reads && session.read_only;
        let group = match shared.group_for(command.keys, args, stays) {
            Ok(group) => group,
            Err(error) => {
                shared.metrics.commands[index].failed.increment();
                self.answers.push(Answer::Refused(error));
                return;
            }
        };
        match self.kind {
            Kind::Reads => self.queries[group].push(codec::encoded(0, code, args.from(1)).freeze()),
            Kind::Writes => self.drafts[group].push(Draft::encode(code, args.from(1))),
        }
        self.answers.push(Answer::Group(group, index));
    }

    fn answer_here(&mut self, index: usize, shared: &Shared, session: &Session, out: &mut Unwritten<'_>) {
        let failed = self.reply.first() == Some(&b'-');
        shared.metrics.commands[index].count(failed, self.started.elapsed(), 1);
        session.answer(&mut out.bytes, &self.reply);
        self.reply.clear();
        if self.reply.capacity() > MAX_IDLE_REPLY_BYTES {
            self.reply = BytesMut::new();
        }
    }

    /// Waits for the replies to all commands taken in, which go to `out` in order.
    pub(super) async fn finish(
        &mut self,
        shared: &Shared,
        session: &Session,
        out: &mut Unwritten<'_>,
    ) -> io::Result<()> {
        match (&self.answers[..], self.kind) {
            ([], _) => return Ok(()),
            // Of a burst of one nothing needs to be put in order.
            (&[Answer::Group(group, _)], kind) => {
                let reply = match kind {
                    Kind::Writes => self.write_one(shared, group).await,
                    Kind::Reads => self.query_one(shared, group).await,
                };
                self.replies[group] = Replies::One(reply);
            }
            (_, Kind::Writes) => self.write(shared).await,
            (_, Kind::Reads) => {
                for (group, queries) in shared.groups.iter().zip(&self.queries) {
                    shared.count_forwarded(group, queries.len());
                }
                self.query(shared).await;
            }
        }
        self.answer(shared, session, out).await
    }

    async fn answer(
        &mut self,
        shared: &Shared,
        session: &Session,
        out: &mut Unwritten<'_>,
    ) -> io::Result<()> {
        let mut elapsed = self.started.elapsed();
        let mut alike = Alike::default();
        for at in 0..self.answers.len() {
            let (group, index) = match &self.answers[at] {
                Answer::Group(group, index) => (*group, *index),
                Answer::Refused(error) => {
                    write::error(&mut out.bytes, error);
                    continue;
                }
            };
            if self.replies[group].is_empty() && !self.queries[group].is_empty() {
                alike.count(shared, elapsed);
                self.query(shared).await;
                elapsed = self.started.elapsed();
            }
            let failed = match self.replies[group].next() {
                Ok(reply) => {
                    session.answer(&mut out.bytes, &reply);
                    reply.first() == Some(&b'-')
                }
                Err(error) => {
                    write::error(&mut out.bytes, &error);
                    true
                }
            };
            if (alike.index, alike.failed) != (index, failed) {
                alike.count(shared, elapsed);
                alike = Alike {
                    index,
                    failed,
                    commands: 0,
                };
            }
            alike.commands += 1;
            out.relieve().await?;
        }
        alike.count(shared, elapsed);
        self.answers.clear();
        self.keys = 0;
        Ok(())
    }

    async fn write_one(&mut self, shared: &Shared, group: usize) -> Reply {
        let draft = self.drafts[group].pop().ok_or_else(no_reply)?;
        shared.count_forwarded(&shared.groups[group], 1);
        let patience = shared.settings.request_timeout;
        let written = shared.writers[group].write_one(draft, patience).await;
        written.map_err(|error| shared.write_error(&error))
    }

    async fn query_one(&mut self, shared: &Shared, group: usize) -> Reply {
        let query = self.queries[group].pop().ok_or_else(no_reply)?;
        shared.count_forwarded(&shared.groups[group], 1);
        let answer = shared.groups[group].query(shared.settings.read, query).await;
        answer.map_err(|error| shared.read_error(&error))
    }

    async fn write(&mut self, shared: &Shared) {
        let patience = shared.settings.request_timeout;
        let (mut asked, mut groups) = (Vec::new(), Vec::new());
        for (group, drafts) in self.drafts.iter_mut().enumerate() {
            if !drafts.is_empty() {
                let drafts = std::mem::take(drafts);
                shared.count_forwarded(&shared.groups[group], drafts.len());
                asked.push(shared.writers[group].write(drafts, patience));
                groups.push(group);
            }
        }
        for (group, written) in groups.into_iter().zip(all(asked).await) {
            let told = written
                .into_iter()
                .map(|written| written.map_err(|error| shared.write_error(&error)));
            self.replies[group] = Replies::Many(told.collect::<Vec<_>>().into_iter());
        }
    }

    /// Asks every group of which something is to be read and no reply is left. What it does not answer at once, because
    /// the replies are large, remains to be read.
    async fn query(&mut self, shared: &Shared) {
        let mut asked = Vec::new();
        for (group, queries) in self.queries.iter_mut().enumerate() {
            if !queries.is_empty() && self.replies[group].is_empty() {
                let queries = std::mem::take(queries);
                let count = queries.len();
                // A read takes its place at the call, so all groups work at once.
                let answers =
                    shared.groups[group].query_all(shared.settings.read, queries, MAX_READ_REPLY_BYTES);
                asked.push((group, count, answers));
            }
        }
        for (group, count, answers) in asked {
            let replies: Vec<Reply> = match answers.await {
                Ok(Answers { answers, unanswered }) => {
                    self.queries[group] = unanswered;
                    answers.into_iter().map(Ok).collect()
                }
                Err(error) => vec![Err(shared.read_error(&error)); count],
            };
            self.replies[group] = Replies::Many(replies.into_iter());
        }
    }
}

/// Commands of a burst with the same name and the same outcome, one behind the other: they are counted at once.
#[derive(Debug, Default)]
struct Alike {
    /// In the table of commands.
    index: usize,
    failed: bool,
    commands: u64,
}

impl Alike {
    fn count(&mut self, shared: &Shared, elapsed: Duration) {
        if self.commands > 0 {
            shared.metrics.commands[self.index].count(self.failed, elapsed, self.commands);
            self.commands = 0;
        }
    }
}

/// What a client is told: a reply, or the text of an error.
type Reply = Result<Bytes, String>;

/// The replies of one group to a burst, in order.
#[derive(Debug)]
enum Replies {
    One(Reply),
    Many(std::vec::IntoIter<Reply>),
}

impl Default for Replies {
    fn default() -> Self {
        Self::Many(Vec::new().into_iter())
    }
}

impl Replies {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Many(replies) if replies.len() == 0)
    }

    fn next(&mut self) -> Reply {
        match self {
            Self::Many(replies) => replies.next().unwrap_or_else(|| Err(no_reply())),
            Self::One(_) => match std::mem::take(self) {
                Self::One(reply) => reply,
                Self::Many(_) => Err(no_reply()),
            },
        }
    }
}

fn no_reply() -> String {
    "ERR no reply".into()
}

/// What Redis says of a wrong number of arguments.
pub(super) fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

/// What every HTTP request that could carry commands has: it must end the connection before they are carried out.
fn is_http(name: &[u8]) -> bool {
    is(name, "POST") || is(name, "Host:")
}

/// What Redis says of a command that it does not know.
fn unknown_command(args: Args<'_>) -> String {
    let mut text = format!(
        "ERR unknown command '{}', with args beginning with: ",
        shown(args.get(0))
    );
    let mut room = MAX_SHOWN_BYTES;
    for arg in args.from(1) {
        if room == 0 {
            break;
        }
        let arg = shown(&arg[..arg.len().min(room)]);
        room = room.saturating_sub(arg.len() + 3);
        text.push('\'');
        text.push_str(&arg);
        text.push_str("' ");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Parser;

    #[test]
    fn unknown_commands_are_quoted_as_redis_does() {
        let mut parser = Parser::default();
        let mut buffer = b"foo bar 'b z'\r\n".to_vec();
        parser.parse(&mut buffer).unwrap();
        assert_eq!(
            unknown_command(parser.command(0, &buffer)),
            "ERR unknown command 'foo', with args beginning with: 'bar' 'b z' "
        );
        let mut buffer = [&b"foo "[..], &[b'x'; 500], b" y\r\n"].concat();
        let mut parser = Parser::default();
        parser.parse(&mut buffer).unwrap();
        assert!(unknown_command(parser.command(0, &buffer)).len() < 200);
    }
}
