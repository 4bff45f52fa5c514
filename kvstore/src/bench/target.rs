//! Where the load goes: to any endpoint, or, as cluster clients do, to the node that leads a key's hash slot.

use std::collections::BTreeMap;

use super::load::key_name;
use crate::{
    resp::Value,
    shards::{HASH_SLOTS, hash_slot},
};

/// How many keys are drawn at the most before one of another node's is taken: with very few keys a node may have none.
const MAX_DRAWS: usize = 1_000;

/// A server that clients are connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port.
    pub address: String,
    /// By hash slot whether its keys are used there; all of them if there is no list.
    slots: Option<Vec<bool>>,
}

impl Target {
    /// Takes all keys.
    pub fn any(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            slots: None,
        }
    }

    /// The masters that a reply to `CLUSTER SLOTS` names, each for its slots only.
    ///
    /// # Errors
    ///
    /// It is no such reply, or leaves slots to nobody.
    pub fn masters(reply: &Value) -> Result<Vec<Self>, String> {
        let unreadable = || {
            "the reply to CLUSTER SLOTS does not give first slot, last slot, and a host and port for each range".to_owned()
        };
        let Value::Array(ranges) = reply else {
            return Err(unreadable());
        };
        let mut masters: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for range in ranges {
            let (first, last, address) = read(range).ok_or_else(unreadable)?;
            let slots = masters
                .entry(address)
                .or_insert_with(|| vec![false; HASH_SLOTS.into()]);
            slots.get_mut(first..=last).ok_or_else(unreadable)?.fill(true);
        }
        let is_led = |slot: usize| masters.values().any(|slots| slots[slot]);
        if !(0..HASH_SLOTS.into()).all(is_led) {
            return Err("CLUSTER SLOTS leaves hash slots to nobody: wait until the cluster is whole".into());
        }
        let target = |(address, slots)| Self {
            address,
            slots: Some(slots),
        };
        Ok(masters.into_iter().map(target).collect())
    }

    /// The first of the keys that `draw` gives that is used here.
    pub(super) fn key(&self, mut draw: impl FnMut() -> u64) -> u64 {
        let Some(slots) = &self.slots else {
            return draw();
        };
        for _ in 1..MAX_DRAWS {
            let key = draw();
            if slots[usize::from(hash_slot(&key_name(key)))] {
                return key;
            }
        }
        draw()
    }
}

/// First slot, last slot and the master's address of one range.
fn read(range: &Value) -> Option<(usize, usize, String)> {
    let Value::Array(range) = range else {
        return None;
    };
    let [
        Value::Integer(first),
        Value::Integer(last),
        Value::Array(master),
        ..,
    ] = range.as_slice()
    else {
        return None;
    };
    let [host, Value::Integer(port), ..] = master.as_slice() else {
        return None;
    };
    let slot = |slot: &i64| usize::try_from(*slot).ok();
    let address = match host.to_text() {
        host if host.is_empty() => return None,
        host if host.contains(':') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    };
    Some((slot(first)?, slot(last)?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64, port: i64) -> Value {
        range_at("host", first, last, port)
    }

    fn range_at(host: &'static str, first: i64, last: i64, port: i64) -> Value {
        let master = Value::Array(vec![Value::Bulk(host.into()), Value::Integer(port)]);
        Value::Array(vec![Value::Integer(first), Value::Integer(last), master])
    }

    #[test]
    fn a_host_of_ipv6_gets_its_brackets() {
        let masters = Target::masters(&Value::Array(vec![range_at("::1", 0, 16_383, 7001)]));
        assert_eq!(masters.unwrap()[0].address, "[::1]:7001");
    }

    #[test]
    fn each_master_takes_the_keys_of_its_slots() {
        let reply = Value::Array(vec![
            range(0, 99, 1),
            range(100, 16_000, 2),
            range(16_001, 16_383, 1),
        ]);
        let masters = Target::masters(&reply).unwrap();
        assert_eq!(masters.len(), 2);
        for master in &masters {
            let mut next = 0;
            for _ in 0..100 {
                let draw = || {
                    next += 1;
                    next
                };
                let slot = hash_slot(&key_name(master.key(draw)));
                assert_eq!((100..=16_000).contains(&slot), master.address == "host:2");
            }
        }
    }

    #[test]
    fn what_is_no_whole_map_of_the_slots_is_refused() {
        let of = |ranges: Vec<Value>| Target::masters(&Value::Array(ranges));
        assert!(of(vec![range(0, 16_382, 1)]).unwrap_err().contains("nobody"));
        let no_host = range_at("", 0, 16_383, 1);
        for bad in [
            range(0, 16_384, 1),
            range(-1, 5, 1),
            range(9, 3, 1),
            Value::Null,
            no_host,
        ] {
            assert!(of(vec![bad]).unwrap_err().contains("CLUSTER SLOTS"));
        }
        assert!(Target::masters(&Value::Null).is_err());
    }
}
