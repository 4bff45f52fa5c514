//! Shared pieces of the benchmarks.

pub mod lockstep;
pub mod storage;
