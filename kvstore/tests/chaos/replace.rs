//! Three nodes are replaced by three others, one after the other, while clients write and note what they are answered.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    alone, block_on,
    common::run,
    number,
    run::{NODES, PATIENCE, Run, directory},
};

/// Runs a verb at these nodes.
async fn verb(words: &[&str], endpoints: &[String]) -> Result<(), String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let endpoints = endpoints.join(",");
    let output = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        (
            run(&[&words[..], &["--endpoints", &endpoints]].concat()),
            words.join(" "),
        )
    });
    let (output, words) = output.await.map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{words}: {told}"))
    }
}

async fn replace_all(run: &mut Run, length: Duration) -> Result<(), String> {
    run.until_it_works().await?;
    for old in 1..=NODES {
        let new = old + NODES;
        run.nemesis.note(&format!("{old} is replaced by {new}"));
        run.nodes.join(new);
        let member = format!("{new}={}", run.nodes.peer(new));
        let endpoints = run.nodes.resp().to_vec();
        let words = ["member", "replace", &old.to_string(), &member, "--timeout", "20s"];
        verb(&words, &endpoints).await?;
        // The node that has left still answers, and says that it cannot serve.
        sleep(length / 6).await;
        run.nodes.retire(old);
        run.nemesis.note(&format!("{old} has left"));
        let leader = run.nodes.leader_within(Instant::now() + PATIENCE).await?;
        verb(
            &["leader", "transfer", &new.to_string()],
            &endpoints[leader - 1..leader],
        )
        .await?;
        sleep(length / 6).await;
    }
    Ok(())
}

#[cfg(feature = "wal")]
#[test]
fn three_nodes_are_replaced_under_load_and_nothing_is_lost() {
    let _alone = alone();
    let length = Duration::from_secs(number("KVSTORE_CHAOS_SECONDS", 4));
    block_on(async {
        let mut run =
            Run::start_with_spares("wal", number("KVSTORE_CHAOS_SEED", 5), directory(), NODES).await;
        let outcome = replace_all(&mut run, length).await;
        run.finish(outcome).await;
    });
}
