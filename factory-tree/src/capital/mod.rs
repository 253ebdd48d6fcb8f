//! What a ladder of so many clients takes: capital, block space and fees, day by day
//! (`coordinator plan`).
//!
//! A simulation in days (the ladder's spacing) of every single client: it signs up, comes to one
//! of its invitations or to none, and is published in the end or its factory is reaped. Calendar
//! and invitations are those of [`crate::ladder`]; sizes are measured on transactions built by this
//! crate ([`sizes`]). Deterministic: the seed decides who stays away. Integers only: satoshi,
//! sat/vB, parts per million.

mod chart;
mod feerate;
mod params;
mod run;
pub mod sizes;
mod summary;
#[cfg(test)]
mod tests;

pub use chart::svg;
pub use feerate::FeeratePath;
pub use params::{PlanError, PlanParams, parts_per_million};
pub use run::{Day, simulate};
pub use summary::{Locked, MassExit, OneFactory, Plan, Steady, Totals};
