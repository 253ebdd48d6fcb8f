//! Just-in-time channels (LSPS2, bLIP-52): what was promised, and how far it is. The node's part is in `node::jit`; a client's in
//! `awaited` and `node::jit_client`.
//!
//! Nothing here depends on the order in which things happen: what is due follows from the record, the payments that are held and the channels
//! there are, so that a start after a crash goes on where it was (docs/adr/0009).

mod awaited;
mod awaited_book;
mod book;
mod order;
mod shares;

pub use awaited::{JitAwaited, JitChannel, JitPromise, Promised};
pub use order::{JitGates, JitGround, JitOpening, JitOrder, JitRefusal, jit_capacity, opening_fee};

pub(crate) use awaited::{Awaited, may_keep};
pub(crate) use awaited_book::AwaitedBook;
pub(crate) use book::JitBook;
pub(crate) use order::{PartKey, Record, Stage};
pub(crate) use shares::shares;

#[cfg(test)]
mod tests;
