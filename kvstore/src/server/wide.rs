//! Commands that ask every group, or the node itself, and not one key's group.

use bytes::{Bytes, BytesMut};
use paxos::node::Read;

use super::{
    Session, Shared, admin, info, members,
    writer::{Draft, WriteError},
};
use crate::{
    command::codec,
    machine::{
        Cursor, MAX_REPLY_BYTES,
        operations::{self as op, Operation},
    },
    resp::{Args, Value, is, number, write},
    shards::HASH_SLOTS,
    together::all,
};

/// A command of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wide {
    /// `DBSIZE`
    DbSize,
    /// `KEYS pattern`
    Keys,
    /// `SCAN cursor ...`
    Scan,
    /// `FLUSHALL`, `FLUSHDB`
    Flush,
    /// `INFO`
    Info,
    /// `KV.STATUS`
    Status,
    /// `KV.LEADER`
    Leader,
    /// `KV.MEMBER`
    Member,
    /// `KV.SNAPSHOT`
    Snapshot,
}

/// Carries the command out and writes its reply, or returns the error for the client.
pub(super) async fn run(
    command: Wide,
    shared: &Shared,
    session: &Session,
    args: Args<'_>,
    reply: &mut BytesMut,
) -> Result<(), String> {
    match command {
        Wide::DbSize => {
            let mut sum = 0;
            for size in shared.ask_all(shared.settings.read, op::DBSIZE, &[]).await {
                if let Value::Integer(size) = size? {
                    sum += size;
                }
            }
            write::integer(reply, sum);
        }
        Wide::Keys => keys(shared, args.get(1), reply).await?,
        Wide::Scan => scan(shared, args, reply).await?,
        Wide::Flush => {
            let mode = args.get(1);
            if args.len() > 2 || !(mode.is_empty() || is(mode, "ASYNC") || is(mode, "SYNC")) {
                return Err("ERR syntax error".into());
            }
            flush(shared).await?;
            reply.extend_from_slice(write::OK);
        }
        Wide::Info => {
            let text = info::text(shared, args, session).await;
            write::bulk(reply, text.as_bytes());
        }
        Wide::Status => json(&shared.report().await, reply)?,
        Wide::Leader => json(&admin::leader(shared, args).await?, reply)?,
        Wide::Member => json(&members::member(shared, args).await?, reply)?,
        Wide::Snapshot => json(&admin::snapshot(shared, args).await?, reply)?,
    }
    Ok(())
}

fn json(value: &impl serde::Serialize, reply: &mut BytesMut) -> Result<(), String> {
    let text = serde_json::to_vec(value).map_err(|error| format!("ERR {error}"))?;
    write::bulk(reply, &text);
    Ok(())
}

pub(super) fn encoded(operation: Operation, args: &[&[u8]]) -> Bytes {
    codec::encoded(0, operation.code, args.iter().copied()).freeze()
}

impl Shared {
    /// Reads from one group; the shards and the loops over the groups name none that is not there.
    pub(super) async fn ask(
        &self,
        group: usize,
        read: Read,
        operation: Operation,
        args: &[&[u8]],
    ) -> Result<Bytes, String> {
        let outcome = self.groups[group].query(read, encoded(operation, args)).await;
        outcome.map_err(|error| self.read_error(&error))
    }

    /// Reads from every group, all at once.
    pub(super) async fn ask_all(
        &self,
        read: Read,
        operation: Operation,
        args: &[&[u8]],
    ) -> Vec<Result<Value, String>> {
        let query = encoded(operation, args);
        // A read takes its place at the call, so all groups work at once.
        let asked: Vec<_> = self
            .groups
            .iter()
            .map(|group| group.query(read, query.clone()))
            .collect();
        let mut values = Vec::with_capacity(asked.len());
        for answer in asked {
            let reply = answer.await.map_err(|error| self.read_error(&error));
            values.push(reply.and_then(|reply| value(&reply)));
        }
        values
    }
}

/// A machine's reply as a value; its error is the client's.
pub(super) fn value(reply: &[u8]) -> Result<Value, String> {
    match Value::take(&mut BytesMut::from(reply)) {
        Ok(Some(Value::Error(error))) => Err(error),
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err("ERR incomplete reply".into()),
        Err(error) => Err(format!("ERR {error}")),
    }
}

/// One page. The cursor means the same on every node and after a failover.
async fn scan(shared: &Shared, args: Args<'_>, reply: &mut BytesMut) -> Result<(), String> {
    let first = Cursor::parse(args.get(1))
        .filter(|cursor| cursor.slot() < HASH_SLOTS)
        .ok_or("ERR invalid cursor")?;
    let group = shared.shards.group_of_slot(first.slot());
    let end = shared.shards.slots(group).end.to_string();
    let first = first.number().to_string();
    let mut operands = vec![first.as_bytes(), end.as_bytes()];
    operands.extend(args.from(2));
    let answer = shared
        .ask(group, shared.settings.read, op::SCAN, &operands)
        .await?;
    let page = Page::read(&answer)?;
    let next = if page.next == Cursor::at(HASH_SLOTS) {
        0
    } else {
        page.next.number()
    };
    write::array(reply, 2);
    write::bulk(reply, next.to_string().as_bytes());
    write::array(reply, page.count);
    reply.extend_from_slice(page.keys);
    Ok(())
}

/// The reply to `op::SCAN`.
struct Page<'a> {
    next: Cursor,
    count: usize,
    /// As they are sent to clients, of either version of the protocol.
    keys: &'a [u8],
}

impl<'a> Page<'a> {
    fn read(reply: &'a [u8]) -> Result<Self, String> {
        Self::parse(reply).ok_or_else(|| match value(reply) {
            Err(error) => error,
            Ok(_) => "ERR unexpected page".into(),
        })
    }

    fn parse(reply: &'a [u8]) -> Option<Self> {
        let (_, rest) = line(b"*2", reply)?;
        let (next, rest) = line(b":", rest)?;
        let (count, keys) = line(b"*", rest)?;
        Some(Self {
            next: Cursor::parse(next)?,
            count: usize::try_from(number::integer(count)?).ok()?,
            keys,
        })
    }
}

/// What the first line says behind this beginning, and the rest.
fn line<'a>(beginning: &[u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let end = text.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = text.split_at_checked(end)?;
    Some((line.strip_prefix(beginning)?, rest.get(2..)?))
}

/// How many keys `KEYS` has a group look at before it lets others have a turn.
const KEYS_PAGE: &str = "4096";

/// Writes all keys that match, page by page and from all groups at once: no group is kept from its work for long. A key
/// that is there all the while is found exactly once.
async fn keys(shared: &Shared, pattern: &[u8], reply: &mut BytesMut) -> Result<(), String> {
    let (mut found, mut count) = (BytesMut::new(), 0);
    let mut open: Vec<_> = (0..shared.groups.len())
        .map(|group| (group, shared.shards.slots(group)))
        .map(|(group, slots)| (group, Cursor::at(slots.start), slots.end))
        .collect();
    while !open.is_empty() {
        let asked: Vec<_> = open
            .iter()
            .map(|(group, next, end)| {
                let (next, end) = (next.number().to_string(), end.to_string());
                let operands: [&[u8]; 6] = [
                    next.as_bytes(),
                    end.as_bytes(),
                    b"MATCH",
                    pattern,
                    b"COUNT",
                    KEYS_PAGE.as_bytes(),
                ];
                shared.groups[*group].query(shared.settings.read, encoded(op::SCAN, &operands))
            })
            .collect();
        for ((_, next, _), answer) in open.iter_mut().zip(asked) {
            let answer = answer.await.map_err(|error| shared.read_error(&error))?;
            let page = Page::read(&answer)?;
            *next = page.next;
            count += page.count;
            found.extend_from_slice(page.keys);
            if found.len() > MAX_REPLY_BYTES {
                return Err(format!(
                    "ERR more than {MAX_REPLY_BYTES} bytes of keys match, one reply may not have more; use SCAN"
                ));
            }
        }
        open.retain(|(_, next, end)| *next != Cursor::at(*end));
    }
    write::array(reply, count);
    reply.unsplit(found);
    Ok(())
}

/// Atomic in each group, not over several: every outcome counts for what the client is told.
async fn flush(shared: &Shared) -> Result<(), String> {
    let patience = shared.settings.request_timeout;
    let flush = || Draft::encode(op::FLUSH.code, []);
    let asked = shared
        .writers
        .iter()
        .map(|writer| writer.write_one(flush(), patience));
    let outcomes = all(asked).await;
    flushed(outcomes, |error| shared.write_error(error))
}

/// What the client is told of the outcomes of all groups.
fn flushed(
    outcomes: Vec<Result<Bytes, WriteError>>,
    told: impl FnOnce(&WriteError) -> String,
) -> Result<(), String> {
    let count = outcomes.len();
    let errors: Vec<WriteError> = outcomes.into_iter().filter_map(Result::err).collect();
    match errors.first() {
        None => Ok(()),
        Some(error) if count == 1 => Err(told(error)),
        Some(error) if errors.len() == count && errors.iter().all(WriteError::is_definite) => {
            Err(told(error))
        }
        Some(_) => Err("UNKNOWN part of it may have happened; do it again to be sure".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paxos::ProposeError;

    #[test]
    fn what_happened_in_some_groups_only_is_not_called_undone() {
        let told = |outcomes| flushed(outcomes, |error| format!("told: {error:?}"));
        let done = || Ok(Bytes::from_static(b"+OK\r\n"));
        let (undone, unknown) = (
            || Err(WriteError::Proposal(ProposeError::Expired)),
            || Err(WriteError::Proposal(ProposeError::Unknown)),
        );
        assert_eq!(told(vec![done(), done()]), Ok(()));
        for definite in [vec![undone()], vec![undone(), undone()], vec![unknown()]] {
            assert!(told(definite).unwrap_err().starts_with("told: "));
        }
        for partial in [
            vec![done(), undone()],
            vec![undone(), done()],
            vec![undone(), unknown()],
            vec![unknown(), done()],
        ] {
            assert!(told(partial).unwrap_err().starts_with("UNKNOWN part of it may"));
        }
    }
}
