//! A replicated key-value store that ordinary Redis clients use unchanged.
fn main() {}
