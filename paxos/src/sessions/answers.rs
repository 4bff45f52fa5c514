//! Answers that hold the machine's replies, in few allocations.

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::Answer;

/// So many bytes of short answers share an allocation. An answer that is kept keeps all of it: not more than a few times
/// of what the bounds on kept replies count for each.
const SHARED_BYTES: usize = 256;
/// A longer answer has an allocation of its own.
const MAX_SHARED_ANSWER_BYTES: usize = 64;

/// Wraps replies. Most are short, and nearly each command has one, on every replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    room: BytesMut,
}

impl Answers {
    /// The bytes of [`Answer::Reply`].
    pub(super) fn wrap(&mut self, reply: &[u8]) -> Bytes {
        let bytes = 1 + reply.len();
        if bytes > MAX_SHARED_ANSWER_BYTES {
            return Answer::wrap(reply);
        }
        if self.room.capacity() < bytes {
            self.room = BytesMut::with_capacity(SHARED_BYTES);
        }
        self.room.put_u8(Answer::REPLY);
        self.room.put_slice(reply);
        self.room.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn answers_of_every_length_are_what_the_wire_says() {
        let mut answers = Answers::default();
        let all: vec::Vec<_> = (0..200).map(|bytes| vec![7; bytes]).collect();
        let wrapped: vec::Vec<_> = all.iter().map(|reply| answers.wrap(reply)).collect();
        for (reply, wrapped) in all.into_iter().zip(wrapped) {
            assert_eq!(Answer::decode(&wrapped), Some(Answer::Reply(reply.into())));
        }
    }
}
