//! What scenario tests run on: real processes on a real regtest node.

pub mod binaries;
pub mod bitcoind;
pub mod coins;
pub mod command;
pub mod crowd;
pub mod event;
pub mod export;
pub mod ladder;
pub mod ledger;
pub mod mining;
pub mod outside;
pub mod payments;
pub mod process;
pub mod service;
pub mod wallets;
pub mod watchdog;
pub mod watcher;
pub mod webhook;
pub mod world;
