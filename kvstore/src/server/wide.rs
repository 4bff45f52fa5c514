//! Commands that ask every group, or the node itself, and not one key's group.

use bytes::{Bytes, BytesMut};
use paxos::{ProposeError, node::Read};

use super::{Session, Shared, info};
use crate::{
    command::codec,
    machine::operations::{self as op, Operation},
    resp::{Args, Value, parse, write},
    shards::HASH_SLOTS,
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
            let sizes = shared.ask_all(op::DBSIZE, &[]).await?;
            let sum = sizes
                .iter()
                .map(|size| if let Value::Integer(size) = size { *size } else { 0 })
                .sum();
            write::integer(reply, sum);
        }
        Wide::Keys => {
            let found = shared.ask_all(op::KEYS, &[args.get(1)]).await?;
            let keys = || {
                found.iter().filter_map(|keys| {
                    if let Value::Array(keys) = keys {
                        Some(keys)
                    } else {
                        None
                    }
                })
            };
            write::array(reply, keys().map(Vec::len).sum());
            for key in keys().flatten() {
                if let Value::Bulk(key) = key {
                    write::bulk(reply, key);
                }
            }
        }
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
        Wide::Status => {
            let report = shared.report().await;
            let text = serde_json::to_vec(&report).map_err(|error| format!("ERR {error}"))?;
            write::bulk(reply, &text);
        }
    }
    Ok(())
}

fn is(arg: &[u8], name: &str) -> bool {
    arg.eq_ignore_ascii_case(name.as_bytes())
}

fn encoded(operation: Operation, args: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::new();
    codec::encode(&mut bytes, operation.code, args.iter().copied());
    bytes.freeze()
}

impl Shared {
    /// Reads from one group.
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

    /// Reads from every group, linearizably each; the first error counts.
    async fn ask_all(&self, operation: Operation, args: &[&[u8]]) -> Result<Vec<Value>, String> {
        let mut values = Vec::with_capacity(self.groups.len());
        for group in 0..self.groups.len() {
            let reply = self.ask(group, Read::Linearizable, operation, args).await?;
            values.push(value(&reply)?);
        }
        Ok(values)
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

/// One page. The cursor is the hash slot that comes next, so it means the same on every node and after a failover.
async fn scan(shared: &Shared, args: Args<'_>, reply: &mut BytesMut) -> Result<(), String> {
    let first = parse::integer(args.get(1))
        .and_then(|cursor| u16::try_from(cursor).ok())
        .filter(|cursor| *cursor < HASH_SLOTS)
        .ok_or("ERR invalid cursor")?;
    let group = shared.shards.group_of_slot(first);
    let end = shared.shards.slots(group).end;
    let (first, end_text) = (first.to_string(), end.to_string());
    let mut operands = vec![first.as_bytes(), end_text.as_bytes()];
    operands.extend(args.from(2));
    let page = value(&shared.ask(group, Read::Linearizable, op::SCAN, &operands).await?)?;
    let Value::Array(page) = page else {
        return Err("ERR unexpected page".into());
    };
    let [Value::Integer(next), Value::Array(keys)] = &page[..] else {
        return Err("ERR unexpected page".into());
    };
    let next = if *next == i64::from(HASH_SLOTS) { 0 } else { *next };
    write::array(reply, 2);
    write::bulk(reply, next.to_string().as_bytes());
    write::array(reply, keys.len());
    for key in keys {
        if let Value::Bulk(key) = key {
            write::bulk(reply, key);
        }
    }
    Ok(())
}

/// Atomic in each group, not over several: every outcome counts for what the client is told.
async fn flush(shared: &Shared) -> Result<(), String> {
    let command = encoded(op::FLUSH, &[]);
    let timeout = shared.settings.request_timeout;
    let asked: Vec<_> = shared
        .groups
        .iter()
        .map(|group| group.propose_within(command.clone(), timeout))
        .collect();
    let mut outcomes = Vec::with_capacity(asked.len());
    for outcome in asked {
        outcomes.push(outcome.await);
    }
    flushed(outcomes, |error| shared.propose_error(error))
}

/// What the client is told of the outcomes of all groups.
fn flushed(
    outcomes: Vec<Result<Bytes, ProposeError>>,
    told: impl FnOnce(&ProposeError) -> String,
) -> Result<(), String> {
    let count = outcomes.len();
    let errors: Vec<ProposeError> = outcomes.into_iter().filter_map(Result::err).collect();
    match errors.first() {
        None => Ok(()),
        Some(error) if count == 1 => Err(told(error)),
        Some(error) if errors.len() == count && errors.iter().all(ProposeError::is_definite) => {
            Err(told(error))
        }
        Some(_) => Err("UNKNOWN part of it may have happened; do it again to be sure".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_in_some_groups_only_is_not_called_undone() {
        let told = |outcomes| flushed(outcomes, |error| format!("told: {error}"));
        let done = || Ok(Bytes::from_static(b"+OK\r\n"));
        let (undone, unknown) = (|| Err(ProposeError::Expired), || Err(ProposeError::Unknown));
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
