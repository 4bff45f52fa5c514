//! `get`, `put`, `del`, `incr`, `cas`, `bench`: the verbs that talk to a running cluster.

use serde_json::json;

use super::{ClientOptions, Exit, Failure, Output};
use crate::{
    bench::{self, BenchOptions},
    client::{Client, ClientError},
    resp::Value,
};

/// How many redirections a command follows.
const MAX_REDIRECTIONS: usize = 5;

/// Carries one command out at the first endpoint that can be reached. What may have happened is never tried again.
pub(super) async fn call(options: &ClientOptions, args: &[&[u8]]) -> Result<Value, Failure> {
    let mut client = connect(options).await?;
    for _ in 0..MAX_REDIRECTIONS {
        let value = client
            .call(args)
            .await
            .map_err(|error| Failure::error(error.to_string()))?;
        let Value::Error(error) = value else {
            return Ok(value);
        };
        let mut words = error.split_ascii_whitespace();
        match (words.next(), words.nth(1)) {
            (Some("MOVED"), Some(address)) => {
                let moved = Client::connect(address, options.timeout).await;
                client = moved.map_err(|error| Failure::error(error.to_string()))?;
            }
            (Some("LOADING" | "CLUSTERDOWN"), _) => return Err(Failure::new(Exit::NoQuorum, error)),
            _ => return Err(Failure::error(error)),
        }
    }
    Err(Failure::error(
        "redirected too often; the leader keeps changing, try again",
    ))
}

async fn connect(options: &ClientOptions) -> Result<Client, Failure> {
    let mut refused = Vec::new();
    for endpoint in &options.endpoints {
        match Client::connect(endpoint, options.timeout).await {
            Ok(client) => return Ok(client),
            Err(ClientError::Connect { address, cause }) => refused.push(format!("{address}: {cause}")),
            Err(error) => refused.push(error.to_string()),
        }
    }
    let refused = refused.join("; ");
    Err(Failure::error(format!(
        "no endpoint can be reached ({refused}); is the cluster running? see --endpoints"
    )))
}

fn unexpected(value: &Value) -> Failure {
    Failure::error(format!("unexpected reply: {value:?}"))
}

/// Prints a result: `text` for people, `json` for programs.
fn show(options: &ClientOptions, text: &str, json: &serde_json::Value) {
    match options.output {
        Output::Table => println!("{text}"),
        Output::Json => println!("{json}"),
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

pub(super) async fn bench(bench: BenchOptions, options: &ClientOptions) -> Result<Exit, Failure> {
    // One command first: a cluster that cannot be reached should say so at once.
    call(options, &[b"PING"]).await?;
    let summary = bench::run(&bench, &options.endpoints, options.timeout).await;
    match options.output {
        Output::Table => println!("{summary}"),
        Output::Json => {
            let text = serde_json::to_string(&summary).map_err(|error| Failure::error(error.to_string()))?;
            println!("{text}");
        }
    }
    Ok(if summary.commands == 0 {
        Exit::Error
    } else {
        Exit::Ok
    })
}
