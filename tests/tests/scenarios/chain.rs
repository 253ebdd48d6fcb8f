//! The chain crate against a real node.

mod blocks;
mod errors;
mod harness;
mod packages;
mod publish;
pub(crate) mod support;
mod wallet;
