//! A machine for tests.

use std::time::Duration;

use bytes::Bytes;
use paxos::{ApplyCommand, Chosen, MachineError, Slot, SnapshotSource, StateMachine};

/// A list of all commands in their order; replies with the position of the command. Obeys some commands.
#[derive(Default)]
pub(crate) struct List {
    applied: Slot,
    pub(crate) commands: Vec<Bytes>,
}

impl StateMachine for List {
    fn applied(&self) -> Slot {
        self.applied
    }

    fn apply(&mut self, chosen: Chosen<'_>, replies: &mut Vec<Bytes>) -> Result<(), MachineError> {
        for ApplyCommand { payload, .. } in chosen.commands {
            match &**payload {
                b"fail" => return Err(MachineError::new("told to fail")),
                b"panic" => panic!("told to panic"),
                b"block" => std::thread::sleep(Duration::from_millis(500)),
                _ => {}
            }
            self.commands.push(payload.clone());
            replies.push(Bytes::from(self.commands.len().to_string()));
        }
        self.applied = chosen.upto;
        Ok(())
    }

    fn query(&self, query: Bytes) -> Bytes {
        assert_ne!(&*query, b"panic", "told to panic");
        Bytes::from(
            self.commands
                .iter()
                .map(|command| String::from_utf8_lossy(command))
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(Frozen(self.commands.clone())))
    }

    fn restore(&mut self, upto: Slot, from: &mut dyn std::io::Read) -> Result<(), MachineError> {
        let mut text = String::new();
        from.read_to_string(&mut text)
            .map_err(|error| MachineError::new(error.to_string()))?;
        self.commands = text
            .lines()
            .map(|line| Bytes::copy_from_slice(line.as_bytes()))
            .collect();
        self.applied = upto;
        Ok(())
    }

    fn digest(&self) -> Option<u64> {
        Some(self.commands.iter().flatten().fold(0, |digest, byte| {
            u64::from(*byte)
                .wrapping_add(digest)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }))
    }
}

/// One command a line.
struct Frozen(Vec<Bytes>);

impl SnapshotSource for Frozen {
    fn write_to(self: Box<Self>, to: &mut dyn std::io::Write) -> std::io::Result<()> {
        for command in self.0 {
            to.write_all(&command)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }
}
