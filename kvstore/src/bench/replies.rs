//! Finds the ends of replies without looking into them.

/// A reply that is there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// How many bytes it takes.
    pub(super) bytes: usize,
    /// What it says, if it is an error.
    pub(super) error: Option<&'a [u8]>,
}

/// The first reply of `buffer`; `None` if more bytes must come first. An error says what else is there: only the replies
/// to `GET` and `SET` are known.
pub(super) fn first(buffer: &[u8]) -> Result<Option<Found<'_>>, String> {
    let Some(kind) = buffer.first() else {
        return Ok(None);
    };
    let Some(end) = buffer.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let line = buffer.get(1..end.saturating_sub(1)).unwrap_or_default();
    let bytes = end + 1;
    let found = |error| Ok(Some(Found { bytes, error }));
    match kind {
        b'-' => found(Some(line)),
        b'+' | b':' | b'_' => found(None),
        b'$' => {
            let length = std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.parse::<i64>().ok());
            let length = length.ok_or_else(|| unexpected(buffer))?;
            let Ok(length) = usize::try_from(length) else {
                return found(None);
            };
            let all = bytes.saturating_add(length).saturating_add(2);
            Ok((buffer.len() >= all).then_some(Found {
                bytes: all,
                error: None,
            }))
        }
        _ => Err(unexpected(buffer)),
    }
}

fn unexpected(buffer: &[u8]) -> String {
    let shown = buffer.get(..40).unwrap_or(buffer);
    format!("this is no Redis server: it replied '{}'", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_end_where_redis_ends_them() {
        for (reply, error) in [
            (&b"+OK\r\n"[..], None),
            (b"$-1\r\n", None),
            (b"_\r\n", None),
            (b":12\r\n", None),
            (b"$3\r\na\nb\r\n", None),
            (b"$0\r\n\r\n", None),
            (b"-BUSY later\r\n", Some(&b"BUSY later"[..])),
        ] {
            let bytes = reply.len();
            for cut in 0..bytes {
                assert_eq!(first(&reply[..cut]), Ok(None), "{:?}", &reply[..cut]);
            }
            let two = [reply, b"+OK\r\n"].concat();
            assert_eq!(first(&two), Ok(Some(Found { bytes, error })));
        }
    }

    #[test]
    fn what_no_redis_says_is_named() {
        assert!(
            first(b"HTTP/1.1 400 Bad Request\r\n")
                .unwrap_err()
                .contains("HTTP/1.1 400")
        );
        assert!(first(b"$x\r\n").is_err());
    }
}
