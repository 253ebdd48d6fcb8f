//! The construction ceremony (protocol.md section 3) as two pure state machines.

pub mod coordinator;
pub mod message;
pub mod signer;
#[cfg(test)]
mod sim;
