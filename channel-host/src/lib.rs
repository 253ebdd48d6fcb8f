//! Lightning channels on factory outpoints.
//!
//! A leaf's channel output is BOLT 3's 2-of-2 of two funding keys, and the tree that carries it is signed before LDK has heard of
//! the channel. So the funding keys must be known early, and LDK must arrive at the same ones later. [`LeafKeys`] is
//! the `SignerProvider` that makes it so: both sides' keys follow from the LDK seed and a channel id of their own making.
//!
//! | side | channel id (`user_channel_id`) |
//! |---|---|
//! | client | its leaf id, as a big-endian number |
//! | coordinator | [`lsp_channel_id`]`(leaf id, fresh randomness stored first)` |
//!
//! Per-commitment secrets follow from the same id. Whoever makes a side use one id for two channels knows the secrets of the
//! second before they are revealed, and takes all of it. Therefore each side makes its own id, and [`Node`] refuses to see one twice.
//!
//! [`Node`] is the Lightning node of either side, unmodified LDK behind typed calls and [`NodeEvent`]s:
//!
//! * a [`Store`] of its own, one file, written before anything is promised;
//! * blocks from `chain`'s follower, transactions out through its package submission, fees from whoever implements [`FeeCoins`];
//! * leaves ([`Leaf`]): opened by the coordinator, expected by the client, compared with what was verified, gated until their factory is
//!   confirmed, sent to the chain when the rules of factories say so ([`claim_verdict`]), told from other spends at their end;
//! * payments in, out and through, and ordinary channels;
//! * moves of a balance from one leaf to another, in parts ([`MovePart`]);
//! * questions and answers by LSPS0 ([`LspsService`]);
//! * channels opened when the payment for them is here ([`JitOrder`]), and the client's side of them ([`JitPromise`]); or opened on the host's word
//!   ([`BoughtChannel`]).
//!
//! [`Host`] keeps a node running.
//!

mod bought;
mod clock;
mod coins;
mod config;
mod error;
mod event;
mod host;
mod ids;
mod jit;
mod leaf;
mod leaf_keys;
mod lsps0;
mod moves;
mod node;
mod pay;
mod store;
mod timeout;
mod unseen;
mod wallet_coins;

pub use bought::{BoughtChannel, BoughtView};
pub use coins::{FeeCoin, FeeCoins, FeeCoinsError};
pub use config::{FeePolicy, NodeConfig};
pub use error::NodeError;
pub use event::{EventSink, ExitReason, Msat, NodeEvent, NotTakenIn, PaymentHash};
pub use host::{Host, HostState};
pub use ids::{is_leaf, lsp_channel_id};
pub use jit::{
    JitAwaited, JitChannel, JitGates, JitGround, JitOpening, JitOrder, JitPromise, JitRefusal,
    Promised, jit_capacity, opening_fee,
};
pub use leaf::{KnownSpend, Leaf, LeafId, LeafRefusal, LeafView, Side, SpendKind, Stage};
pub use leaf_keys::{LeafKeys, is_signed_by, notification_text};
pub use lsps0::{AskError, LspsService, RpcError, read_params};
pub use moves::{MovePart, PartState, PartView};
pub use node::{ChannelView, LeafBalance, Node, PaymentState, PaymentView, Settlement};
pub use pay::{
    CLAIM_BUFFER, ClaimRefusal, Description, ForwardRefusal, InterceptHint, InvoiceRequest,
    InvoiceView, LeafTerms, claim_verdict, min_final_delta, read_invoice,
};
pub use store::{Change, EntryKey, Store, StoreError};
pub use timeout::{TimeoutError, funding_redeem_script};
pub use wallet_coins::WalletCoins;
