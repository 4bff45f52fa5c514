//! The durable record format that all backends share: every value carries a checksum over itself and its key.
