//! The pure SuperScalar protocol: no IO, no clock, no database, no randomness of its own.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

pub mod capital;
pub mod ceremony;
pub mod exit;
pub mod expiry;
pub mod export;
pub mod factory;
pub mod guard;
pub mod handover;
pub mod ids;
#[cfg(test)]
mod kernel;
pub mod keys;
pub mod kit;
pub mod ladder;
pub mod musig;
pub mod output;
pub mod params;
pub mod path;
pub mod plan;
pub mod purpose;
pub mod sale;
pub mod session;
pub mod shape;
pub mod sweep;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;
pub mod tx;
pub mod units;
pub mod verify;
