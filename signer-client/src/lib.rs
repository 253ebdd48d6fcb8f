//! The wallet's side of a SuperScalar factory: takes part in ceremonies, keeps its exit kits, and
//! leaves when it has to, with nobody's help.
//!
//! [`SignerClient`] is the wallet as one object. It works on two traits, so that a wallet that
//! embeds it can bring its own: [`store::ClientStore`] for what it remembers (SQLite is the
//! implementation here), [`chain::ChainSource`] for the chain (bitcoind's RPC, in the crate
//! `chain`). The command-line wallet is built on nothing else.
#![forbid(unsafe_code)]

mod ceremony;
pub mod cli;
pub mod client;
pub mod config;
mod connection;
pub mod error;
pub mod event;
mod exit;
pub mod fault;
mod jit;
pub mod keys;
mod lightning;
pub mod lock;
mod lsps1;
mod migration;
#[cfg(feature = "fault-points")]
mod misbehave;
mod sales;
mod shared_chain;
pub mod store;
mod watch;
pub mod webhooks;

pub use channel_host::{Msat, PaymentHash};
pub use client::{
    Account, ClientParts, LeavingView, MoveView, NoticeView, Shutdown, SignerClient, Tasks, Window,
};
pub use config::Config;
pub use error::{Error, Result};
pub use event::{Event, Stamped};
pub use jit::{JitError, JitInvoice, JitOptions, JitQuote};
pub use lightning::{
    ChannelState, ChannelView, Invoice, InvoiceOptions, LightningBalance, SpentView,
};
pub use lsps1::{ChannelQuote, OrderError, OrderView};
pub use sales::{
    CoverageView, LimitChannel, LimitQuote, LimitView, PurchaseView, QuoteRefusal, SaleError,
    StockView, TopUpState, TopUpView, UpgradeOptions,
};
pub use shared_chain::SharedChain;
