//! The chain crate against a real node.

mod harness;
