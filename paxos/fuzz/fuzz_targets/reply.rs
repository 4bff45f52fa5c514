//! What a server answers to our own client.
#![no_main]

use bytes::BytesMut;
use kvstore::resp::Value;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(value)) = Value::take(&mut buffer) {
        let _ = value.to_text();
    }
});
