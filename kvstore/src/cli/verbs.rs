//! `get`, `put`, `del`, `incr`, `cas`: the verbs that talk to a running cluster.

use std::{
    io,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{ClientOptions, Exit, Failure, Output, terminal::say};
use crate::{
    client::{Client, ClientError},
    command::table,
    resp::Value,
};

/// How long a connection may take to be made, however long the reply may take.
const MAX_CONNECT: Duration = Duration::from_secs(5);
/// How many redirections a command follows.
const MAX_REDIRECTIONS: usize = 5;

/// Carries one command out at the first endpoint that can. What may have happened is never tried again; what certainly
/// did not happen, and every read, goes on to the next endpoint, within the timeout.
pub(super) async fn call(options: &ClientOptions, args: &[&[u8]]) -> Result<Value, Failure> {
    let writes = may_write(args);
    let deadline = Instant::now() + options.timeout;
    let mut no_quorum = None;
    let mut failures = Vec::new();
    let mut is_slow = false;
    for (at, endpoint) in options.endpoints.iter().enumerate() {
        let started = Instant::now();
        let remaining = deadline.saturating_duration_since(started);
        let is_last = at + 1 == options.endpoints.len();
        let share = if is_last { remaining } else { remaining / 2 };
        // A write that was sent can go nowhere else.
        let reply_within = if writes { remaining } else { share };
        match attempt(endpoint, args, share.min(MAX_CONNECT), reply_within).await {
            Ok(Value::Error(error)) if is_unavailable(&error) => no_quorum = Some(error),
            Ok(Value::Error(error)) => return Err(Failure::error(error)),
            Ok(value) => return Ok(value),
            Err(error @ ClientError::NoReply { .. }) if writes => {
                return Err(Failure::error(format!("{error}; the command may have happened")));
            }
            Err(ClientError::NoReply { address, cause }) if cause.kind() == io::ErrorKind::TimedOut => {
                is_slow = true;
                failures.push(format!("{address} did not answer within {reply_within:.1?}"));
            }
            Err(error) => failures.push(error.to_string()),
        }
        if writes && deadline.saturating_duration_since(Instant::now()) < started.elapsed() {
            // The next endpoint would be left too soon for a definite answer.
            break;
        }
    }
    if let Some(error) = no_quorum {
        return Err(Failure::new(Exit::NoQuorum, error));
    }
    let failures = failures.join("; ");
    Err(Failure::error(if is_slow {
        format!("{failures}; what was asked for may go on there; to wait longer, see --timeout")
    } else {
        format!("no endpoint answers ({failures}); is the cluster running? see --endpoints")
    }))
}

fn may_write(args: &[&[u8]]) -> bool {
    let command = args.first().and_then(|name| table::find(name));
    command.is_none_or(|index| table::COMMANDS[index].flags().contains(&"write"))
}

/// The node certainly did nothing, and another one may do better.
fn is_unavailable(error: &str) -> bool {
    matches!(
        error.split_ascii_whitespace().next(),
        Some("LOADING" | "CLUSTERDOWN")
    )
}

/// Carries one command out at one endpoint, or where it redirects to.
async fn attempt(
    endpoint: &str,
    args: &[&[u8]],
    connect_within: Duration,
    reply_within: Duration,
) -> Result<Value, ClientError> {
    let mut address = endpoint.to_owned();
    let mut redirections = 0;
    loop {
        let mut client = Client::connect(&address, connect_within).await?;
        client.set_timeout(reply_within);
        let value = client.call(args).await?;
        let moved = match &value {
            Value::Error(error) => error
                .strip_prefix("MOVED ")
                .and_then(|moved| moved.split_once(' ')),
            _ => None,
        };
        let Some((_, leader)) = moved else {
            return Ok(value);
        };
        if redirections == MAX_REDIRECTIONS {
            let why = "CLUSTERDOWN redirected too often; the leader keeps changing, try again";
            return Ok(Value::Error(why.into()));
        }
        redirections += 1;
        leader.clone_into(&mut address);
    }
}

fn unexpected(value: &Value) -> Failure {
    Failure::error(format!("unexpected reply: {value:?}"))
}

/// Prints a result: `text` for people, `json` for programs.
fn show(options: &ClientOptions, text: &str, json: &serde_json::Value) {
    match options.output {
        Output::Table => say!("{text}"),
        Output::Json => say!("{json}"),
    }
}

pub(super) async fn get(options: &ClientOptions, key: &str) -> Result<Exit, Failure> {
    match call(options, &[b"GET", key.as_bytes()]).await? {
        Value::Null => {
            show(options, "(not found)", &json!({"key": key, "value": null}));
            Ok(Exit::NotFound)
        }
        value => {
            let text = value.to_text();
            show(options, &text, &json!({"key": key, "value": text}));
            Ok(Exit::Ok)
        }
    }
}

pub(super) async fn put(options: &ClientOptions, key: &str, value: &str) -> Result<Exit, Failure> {
    let reply = call(options, &[b"SET", key.as_bytes(), value.as_bytes()]).await?;
    show(options, &reply.to_text(), &json!({"key": key, "ok": true}));
    Ok(Exit::Ok)
}

pub(super) async fn del(options: &ClientOptions, keys: &[String]) -> Result<Exit, Failure> {
    let mut args: Vec<&[u8]> = vec![b"DEL"];
    args.extend(keys.iter().map(String::as_bytes));
    let Value::Integer(removed) = call(options, &args).await? else {
        return Err(Failure::error("unexpected reply"));
    };
    show(options, &removed.to_string(), &json!({"removed": removed}));
    Ok(if removed == 0 { Exit::NotFound } else { Exit::Ok })
}

pub(super) async fn incr(options: &ClientOptions, key: &str, by: i64) -> Result<Exit, Failure> {
    match call(options, &[b"INCRBY", key.as_bytes(), by.to_string().as_bytes()]).await? {
        Value::Integer(value) => {
            show(options, &value.to_string(), &json!({"key": key, "value": value}));
            Ok(Exit::Ok)
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn cas(options: &ClientOptions, key: &str, old: &str, new: &str) -> Result<Exit, Failure> {
    match call(options, &[b"CAS", key.as_bytes(), old.as_bytes(), new.as_bytes()]).await? {
        Value::Integer(swapped) => {
            let text = if swapped == 1 {
                "swapped"
            } else {
                "not swapped: the value is another one"
            };
            show(options, text, &json!({"key": key, "swapped": swapped == 1}));
            Ok(if swapped == 1 { Exit::Ok } else { Exit::NotFound })
        }
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure(endpoint: String) -> String {
        let options = ClientOptions {
            endpoints: vec![endpoint],
            output: Output::Table,
            timeout: Duration::from_millis(300),
        };
        call(&options, &[b"KV.SNAPSHOT", b"SAVE"]).await.unwrap_err().text
    }

    #[tokio::test]
    async fn a_node_that_takes_long_is_not_called_absent() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let told = failure(address.clone()).await;
        assert!(
            told.starts_with(&format!("{address} did not answer within ")),
            "{told}"
        );
        assert!(told.contains("may go on") && told.contains("--timeout"), "{told}");
        drop(silent);
        let told = failure(address).await;
        assert!(told.contains("is the cluster running?"), "{told}");
    }
}
