//! Payloads of entries: what decodes is encoded again, to the same commands.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use paxos::core::batch;

fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = batch::decode(&Bytes::copy_from_slice(data)) {
        let again = batch::encode(batch.ballot, &batch.commands);
        assert_eq!(batch::decode(&again.payload), Ok(batch));
    }
});
