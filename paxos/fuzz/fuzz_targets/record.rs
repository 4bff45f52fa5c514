//! Records of a store: as they come, and with a good version and checksum, so that the bodies are reached. What decodes
//! is encoded again to the same bytes.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use paxos::{
    GroupId, Identity, Slot,
    record::{HEADER_BYTES, Records, SlotRecord, VERSION},
};

const GROUP: GroupId = GroupId(3);

/// Makes the bytes a record of this place, in a store with the identity zero.
fn sealed(data: &[u8], group: GroupId, slot: Slot) -> Vec<u8> {
    let mut record = data.to_vec();
    record.resize(record.len().max(HEADER_BYTES), 0);
    record[0] = VERSION;
    record[3] = 0;
    let mut sum = crc32c::crc32c(&[0; 24]);
    sum = crc32c::crc32c_append(sum, &group.0.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &slot.0.to_le_bytes());
    sum = crc32c::crc32c_append(sum, &record[..4]);
    sum = crc32c::crc32c_append(sum, &record[HEADER_BYTES..]);
    record[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    record
}

fuzz_target!(|data: &[u8]| {
    let records = Records::new(Identity::default());
    let _ = records.decode_slot(GROUP, Slot(7), &Bytes::copy_from_slice(data));
    let _ = records.decode_group(GROUP, data);
    let _ = records.decode_store(data);

    let slot = Bytes::from(sealed(data, GROUP, Slot(7)));
    if let Ok(SlotRecord::Entry(accepted)) = records.decode_slot(GROUP, Slot(7), &slot) {
        assert_eq!(records.encode_entry(GROUP, Slot(7), &accepted), slot);
    }
    let group = sealed(data, GROUP, Slot::ZERO);
    if let Ok(state) = records.decode_group(GROUP, &group) {
        assert_eq!(records.decode_group(GROUP, &records.encode_group(GROUP, &state)), Ok(state));
    }
    let store = sealed(data, GroupId(0), Slot::ZERO);
    if let Ok(state) = records.decode_store(&store) {
        assert_eq!(records.decode_store(&records.encode_store(&state)), Ok(state));
    }
});
