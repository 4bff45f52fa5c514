//! The operations of the log and of queries, by code.
//!
//! Codes are written to disks and sent to peers: a code never changes its meaning, and the code of an operation that
//! is gone is never used again.

use super::{Read, Write, reads, writes};

/// What an operation does to the state.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Changes it; must be proposed.
    Write(Write),
    /// Only reads it.
    Read(Read),
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its code, for ever.
    pub code: u8,
    /// What runs it.
    pub action: Action,
}

const fn write(code: u8, run: Write) -> Operation {
    Operation {
        code,
        action: Action::Write(run),
    }
}

const fn read(code: u8, run: Read) -> Operation {
    Operation {
        code,
        action: Action::Read(run),
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $operation:expr;)*) => {
        $($(#[$doc])* pub const $name: Operation = $operation;)*

        const ALL: &[Operation] = &[$($name),*];
    };
}

operations! {
    /// `key value [NX|XX] [GET]`
    SET = write(1, writes::set);
    /// `key value`
    SETNX = write(2, writes::setnx);
    /// `(key value)+`
    MSET = write(3, writes::mset);
    /// `key suffix`
    APPEND = write(4, writes::append);
    /// `key`
    INCR = write(5, writes::incr);
    /// `key`
    DECR = write(6, writes::decr);
    /// `key amount`
    INCRBY = write(7, writes::incrby);
    /// `key amount`
    DECRBY = write(8, writes::decrby);
    /// `key+`
    DEL = write(9, writes::del);
    /// `key old new`
    CAS = write(10, writes::cas);
    /// no arguments: removes every key
    FLUSH = write(11, writes::flush);
    /// `node resp http`: where a node is reached; not a client's command
    ANNOUNCE = write(12, writes::announce);

    /// `key`
    GET = read(128, reads::get);
    /// `key+`
    MGET = read(129, reads::mget);
    /// `key`
    STRLEN = read(130, reads::strlen);
    /// `key+`
    EXISTS = read(131, reads::exists);
    /// `key`
    TYPE = read(132, reads::kind);
    // 133 is taken.
    /// `cursor end-slot [MATCH pattern] [COUNT n] [TYPE t]`: one page of the hash slots of one group
    SCAN = read(134, reads::scan);
    /// no arguments
    DBSIZE = read(135, reads::dbsize);
    /// `key`
    REVISION = read(136, reads::revision);
    /// no arguments: `(node resp http)*`; not a client's command
    NODES = read(137, reads::nodes);
    /// no arguments: keys, bytes and revision; not a client's command
    SIZES = read(138, reads::sizes);
}

const BY_CODE: [Option<Action>; 256] = by_code();

const fn by_code() -> [Option<Action>; 256] {
    let mut table = [None; 256];
    let mut at = 0;
    while at < ALL.len() {
        let code = ALL[at].code as usize;
        assert!(table[code].is_none(), "two operations have one code");
        table[code] = Some(ALL[at].action);
        at += 1;
    }
    table
}

/// What runs the operation with this code.
pub(super) fn action(code: u8) -> Option<Action> {
    BY_CODE[usize::from(code)]
}
