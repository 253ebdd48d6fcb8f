//! A wallet of somebody else: unmodified LDK with `lightning-liquidity`'s client, and no code of ours but the chain's blocks. What it knows it
//! keeps in memory.

mod orders;
mod parts;
mod wallet;

pub use orders::Ordered;
pub use wallet::{Independent, Offer, Received, code};
