//! Leaves as the Lightning node sees them: what was verified, what became of the channel, and what may be done over it now.

mod book;
mod policy;
mod record;

pub use record::{KnownSpend, Leaf, LeafId, LeafRefusal, LeafView, Side, SpendKind, Stage};

pub(crate) use book::{Book, ChainNews};
pub(crate) use policy::{HtlcView, exit_by, exit_due};
pub(crate) use record::{Closing, Record};
