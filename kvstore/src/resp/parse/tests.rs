//! Requests in any pieces, whole, broken and too large.

use super::*;
use proptest::prelude::*;

fn small() -> Limits {
    Limits {
        max_args: 8,
        max_command_bytes: 256,
        max_inline_bytes: 64,
    }
}

/// Feeds `pieces` one after the other, as reads from a socket would come, and collects all commands.
fn feed(limits: Limits, pieces: &[&[u8]]) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
    let mut parser = Parser::new(limits);
    let mut buffer = Vec::new();
    let mut commands = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let outcome = parser.parse(&mut buffer);
        for index in 0..parser.len() {
            commands.push(
                parser
                    .command(index, &buffer)
                    .from(0)
                    .map(<[u8]>::to_vec)
                    .collect(),
            );
        }
        if let Err(error) = outcome {
            return (commands, Some(error.to_string()));
        }
        buffer.drain(..parser.consumed());
        parser.clear();
    }
    (commands, None)
}

fn texts(commands: &[Vec<Vec<u8>>]) -> Vec<Vec<&str>> {
    commands
        .iter()
        .map(|args| args.iter().map(|arg| std::str::from_utf8(arg).unwrap()).collect())
        .collect()
}

#[test]
fn a_pipeline_is_found_whole() {
    let (commands, error) = feed(
        Limits::default(),
        &[b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n$3\r\nget\r\n$1\r\na\r\nPING\r\n"],
    );
    assert_eq!(
        texts(&commands),
        [vec!["SET", "a", ""], vec!["get", "a"], vec!["PING"]]
    );
    assert_eq!(error, None);
}

#[test]
fn a_command_cut_anywhere_is_found_when_its_rest_comes() {
    let bytes = b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\nvv\r\n*1\r\n$4\r\nPING\r\n";
    for cut in 0..bytes.len() {
        for second in cut..bytes.len() {
            let (commands, error) = feed(small(), &[&bytes[..cut], &bytes[cut..second], &bytes[second..]]);
            assert_eq!(texts(&commands), [vec!["SET", "k\r\n", "vv"], vec!["PING"]]);
            assert_eq!(error, None);
        }
    }
}

#[test]
fn empty_commands_are_skipped() {
    let (commands, error) = feed(small(), &[b"*0\r\n*-1\r\n\r\n  \r\n*1\r\n$4\r\nPING\r\n"]);
    assert_eq!(texts(&commands), [vec!["PING"]]);
    assert_eq!(error, None);
}

#[test]
fn lines_are_split_and_unescaped_as_redis_does() {
    for (line, expected) in [
        ("set a b\r\n", Some(vec!["set", "a", "b"])),
        (
            "  set\t'a b' \"c\\x41\\n\\\"\"\n",
            Some(vec!["set", "a b", "cA\n\""]),
        ),
        ("set 'it\\'s' \"\"\n", Some(vec!["set", "it's", ""])),
        ("set \"open\r\n", None),
        ("set \"a\"b\r\n", None),
    ] {
        let (commands, error) = feed(small(), &[line.as_bytes()]);
        match expected {
            Some(expected) => assert_eq!(texts(&commands), [expected], "{line:?}"),
            None => assert!(error.unwrap().contains("unbalanced quotes"), "{line:?}"),
        }
    }
}

#[test]
fn what_breaks_the_protocol_or_a_bound_is_named() {
    for (bytes, expected) in [
        (&b"*9\r\n"[..], "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$999\r\n", "invalid bulk length"),
        (b"*2\r\n$200\r\n", ""),
        (b"*1\rx", "ends with"),
        (&[b'*'; 64], "too big mbulk count string"),
        (&[b'a'; 65], "too big inline request"),
    ] {
        let (commands, error) = feed(small(), &[bytes]);
        assert!(commands.is_empty());
        if expected.is_empty() {
            assert_eq!(error, None);
        } else {
            let error = error.unwrap();
            assert!(error.contains(expected), "{error} for {bytes:?}");
        }
    }
}

#[test]
fn the_sum_of_arguments_is_bounded() {
    let mut bytes = b"*3\r\n".to_vec();
    for _ in 0..3 {
        bytes.extend_from_slice(b"$100\r\n");
        bytes.extend_from_slice(&[b'x'; 100]);
        bytes.extend_from_slice(b"\r\n");
    }
    assert!(feed(small(), &[&bytes]).1.unwrap().contains("too large"));
}

#[test]
fn commands_before_an_error_are_kept() {
    let (commands, error) = feed(small(), &[b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n!"]);
    assert_eq!(commands.len(), 2);
    assert_eq!(error, None);
    let (commands, error) = feed(small(), &[b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n!\r\n"]);
    assert_eq!(commands.len(), 2);
    assert!(error.is_some());
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_never_panic(pieces: Vec<Vec<u8>>) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        feed(small(), &pieces);
    }

    #[test]
    fn bytes_that_look_like_the_protocol_never_panic(
        bytes in "[*$0-9\\-\r\n a\"'\\\\x]{0,200}", cut in 0_usize..200,
    ) {
        let cut = cut.min(bytes.len());
        let whole = feed(small(), &[bytes.as_bytes()]);
        let pieces = feed(small(), &[&bytes.as_bytes()[..cut], &bytes.as_bytes()[cut..]]);
        prop_assert_eq!(whole.0, pieces.0);
    }

    #[test]
    fn every_command_comes_back(
        commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6), 0..6),
        cut in 0_usize..2000,
    ) {
        let mut bytes = Vec::new();
        for command in &commands {
            bytes.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for arg in command {
                bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                bytes.extend_from_slice(arg);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        let cut = cut.min(bytes.len());
        let (found, error) = feed(Limits::default(), &[&bytes[..cut], &bytes[cut..]]);
        prop_assert_eq!(error, None);
        prop_assert_eq!(found, commands);
    }
}
