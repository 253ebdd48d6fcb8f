//! The LSP's service: adapters around `factory-tree`, and the operator's surfaces.

pub mod admin;
pub mod alarms;
pub mod app;
pub mod ceremony;
pub mod chain_task;
pub mod cli;
pub mod clock;
pub mod config;
pub mod config_file;
pub mod context;
pub mod datadir;
pub mod event;
pub mod fault;
pub mod funding;
pub mod jit;
pub mod keys;
pub mod ladder;
pub mod lightning;
pub mod limits;
pub mod lsps;
pub mod lsps1;
pub mod notify;
pub mod params;
pub mod reclaim;
pub mod reputation;
pub mod sales;
pub mod server;
pub mod sessions;
pub mod store;
pub mod trees;
pub mod webhooks;

#[cfg(test)]
mod testing;
