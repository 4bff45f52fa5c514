//! Frames of peers: as they come, and with a good prefix and checksum before them, so that headers and tables are
//! reached. What decodes is encoded again and decodes to the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use paxos::wire::{self, Outgoing, PREFIX_BYTES};

/// Makes the bytes a frame: magic, version, length and checksum are right; kind, header length and the rest are given.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut frame = data.to_vec();
    frame.resize(frame.len().max(PREFIX_BYTES), 0);
    frame[..3].copy_from_slice(&[b'P', b'x', wire::VERSION]);
    let length = frame.len() as u32;
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    let before = crc32c::crc32c(&frame[..8]);
    let checksum = crc32c::crc32c_append(before, &frame[12..]);
    frame[8..12].copy_from_slice(&checksum.to_le_bytes());
    frame
}

fuzz_target!(|data: &[u8]| {
    let _ = wire::frame_length(data, wire::MAX_FRAME_BYTES);
    let _ = wire::decode(Bytes::copy_from_slice(data));
    let frame = sealed(data);
    wire::verify(&frame).expect("the frame was sealed");
    if let Ok(envelope) = wire::decode(frame.into()) {
        let again = Outgoing::encode(&envelope).expect("what came in a frame fits into one");
        assert_eq!(wire::decode(again.to_bytes()), Ok(envelope));
    }
});
