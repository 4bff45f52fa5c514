//! The Redis serialization protocol, versions 2 and 3, written by hand.
//!
//! [`parse`] reads what clients send; [`mod@write`] writes replies, always in version 3, and translates them for
//! connections that speak version 2; [`value`] reads replies, for our own client.

mod args;
mod inline;
pub mod number;
pub mod parse;
pub mod value;
pub mod write;

pub use args::{Args, is};
pub use parse::{Limits, Parser, ProtocolError};
pub use value::Value;
