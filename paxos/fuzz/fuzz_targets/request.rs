//! What clients send: the same commands come out whether the bytes arrive at once or in two pieces.
#![no_main]

use kvstore::resp::{Limits, Parser, ProtocolError};
use libfuzzer_sys::fuzz_target;

type Commands = Vec<Vec<Vec<u8>>>;

fn commands(pieces: &[&[u8]]) -> (Commands, Result<(), ProtocolError>) {
    let limits = Limits {
        max_args: 64,
        max_command_bytes: 512,
        max_inline_bytes: 128,
    };
    let mut parser = Parser::new(limits);
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let outcome = parser.parse(&mut buffer);
        for index in 0..parser.len() {
            let args = parser.command(index, &buffer);
            assert!(!args.is_empty());
            found.push(args.from(0).map(<[u8]>::to_vec).collect());
        }
        if outcome.is_err() {
            return (found, outcome);
        }
        let consumed = parser.consumed();
        buffer.drain(..consumed);
        parser.clear();
    }
    (found, Ok(()))
}

fuzz_target!(|data: &[u8]| {
    let Some((at, data)) = data.split_first() else { return };
    let (first, second) = data.split_at(usize::from(*at).min(data.len()));
    assert_eq!(commands(&[data]).0, commands(&[first, second]).0);
});
