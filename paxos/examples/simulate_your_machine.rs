//! Your own state machine in a simulated cluster: `cargo run --release -p paxos --features testing --example
//! simulate_your_machine`.
//!
//! The machine here is a small bank. Two bugs can be planted in it, of the kinds that are made most often: a reply that
//! does not follow from the log alone, and a field that the snapshot forgets. The tests show that the simulator finds
//! both; what one writes for that is the part between the two lines.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
};

use bytes::Bytes;
use paxos::{Chosen, MachineError, Slot, SnapshotSource, StateMachine};

// ---------------------------------------------------------------------------------------------------------------------

use paxos::testing::sim::{Failure, Options, Random, Workload, run};

/// Clients that put money into accounts and ask for the balance.
struct Banking(Bug);

impl Workload for Banking {
    type Machine = Bank;

    fn machine(&self) -> Bank {
        Bank::new(self.0)
    }

    fn command(&self, random: &mut Random, unique: u64) -> Bytes {
        let account = random.pick(&["alice", "bob", "carol"]);
        format!("{account} {} {unique}", random.between(1, 100)).into()
    }

    fn query(&self, random: &mut Random) -> Bytes {
        random.pick(&["alice", "bob", "carol"]).into()
    }
}

fn first_failure(bug: Bug, seeds: u64) -> Option<Failure> {
    (1..=seeds).find_map(|seed| run(seed, &Options::default(), &Banking(bug)).failure)
}

fn main() {
    match first_failure(Bug::None, 200) {
        None => println!("200 clusters lived and died, and the bank is right"),
        Some(failure) => println!("{failure}"),
    }
}

// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "planted by the tests")]
enum Bug {
    None,
    /// The reply tells the accounts in the order of a hash map, which is another one in every process.
    HashOrder,
    /// The snapshot holds the balances, but not the number of deposits.
    ForgottenField,
}

/// Commands are `account amount`; the reply is all balances and how many deposits there were.
struct Bank {
    bug: Bug,
    applied: Slot,
    balances: BTreeMap<String, u64>,
    deposits: u64,
}

impl Bank {
    const fn new(bug: Bug) -> Self {
        Self {
            bug,
            applied: Slot::ZERO,
            balances: BTreeMap::new(),
            deposits: 0,
        }
    }

    fn deposit(&mut self, command: &[u8]) -> String {
        let text = String::from_utf8_lossy(command);
        let mut words = text.split(' ');
        let (Some(account), Some(Ok(amount))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            return "what?".into();
        };
        *self.balances.entry(account.into()).or_default() += amount;
        self.deposits += 1;
        let balances: Vec<String> = if self.bug == Bug::HashOrder {
            let hashed: HashMap<&String, &u64> = self.balances.iter().collect();
            hashed.iter().map(|(name, sum)| format!("{name}={sum}")).collect()
        } else {
            let sorted = self.balances.iter();
            sorted.map(|(name, sum)| format!("{name}={sum}")).collect()
        };
        format!("{} after {} deposits", balances.join(" "), self.deposits)
    }
}

/// The state as text, one line for each account.
struct Frozen(String);

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(self.0.as_bytes())
    }
}

impl StateMachine for Bank {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for command in chosen.commands {
            replies.push(self.deposit(&command.payload).into());
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        let account = String::from_utf8_lossy(&query).into_owned();
        self.balances
            .get(&account)
            .copied()
            .unwrap_or(0)
            .to_string()
            .into()
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let deposits = if self.bug == Bug::ForgottenField {
            0
        } else {
            self.deposits
        };
        let balances = self.balances.iter().map(|(name, sum)| format!("{name} {sum}"));
        let lines: Vec<String> = std::iter::once(deposits.to_string()).chain(balances).collect();
        Ok(Box::new(Frozen(lines.join("\n"))))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn Read) -> Result<(), MachineError> {
        let broken = || MachineError::new("the snapshot of the bank is malformed");
        let mut text = String::new();
        from.read_to_string(&mut text).map_err(|_| broken())?;
        let mut lines = text.lines();
        let deposits = lines.next().and_then(|line| line.parse().ok());
        let balances = lines.map(|line| {
            let (name, sum) = line.rsplit_once(' ')?;
            Some((name.to_owned(), sum.parse().ok()?))
        });
        self.deposits = deposits.ok_or_else(broken)?;
        self.balances = balances.collect::<Option<_>>().ok_or_else(broken)?;
        self.applied = upto;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caught_by(bug: Bug) -> Option<&'static str> {
        first_failure(bug, 60).map(|failure| failure.violation.oracle)
    }

    #[test]
    fn a_sound_machine_passes() {
        assert_eq!(first_failure(Bug::None, 60), None);
    }

    #[test]
    fn a_machine_that_is_not_deterministic_is_caught() {
        assert_eq!(caught_by(Bug::HashOrder), Some("I8"));
    }

    #[test]
    fn a_field_that_the_snapshot_forgets_is_caught() {
        assert_eq!(caught_by(Bug::ForgottenField), Some("I8"));
    }
}
