//! What scenario tests run on: real processes on a real regtest node.

pub mod bitcoind;
pub mod watchdog;
