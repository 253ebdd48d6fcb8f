//! A client's balance on its way from the channel of an old leaf to that of a new one, in parts: each is two payments under one hash, from the
//! client over the old channel and from the coordinator over the new one (protocol.md 7.2).

mod book;
mod record;

pub use record::{MovePart, PartState, PartView};

pub(crate) use book::PartBook;
pub(crate) use record::{PartRecord, Progress};
