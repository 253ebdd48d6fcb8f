//! Strict conversions between the generated types and the values of `factory-tree`.
//!
//! A conversion checks the *form*: lengths, points, enum values, amounts of bitcoin, sizes of lists
//! (before anything is allocated for them). Whether a well-formed message is acceptable is for the
//! ceremony machines and the client's rules to say. Unknown fields are ignored, as protobuf does;
//! an unknown value of an enum is refused.

mod ceremony;
mod error;
pub(crate) mod fields;
mod ids;
mod ladder;
mod params;
mod proposal;
mod sale;
mod session;

pub use error::WireError;
pub use ladder::{Handover, MovePart, Notice, PartTerms};
pub use params::{network_from_wire, network_to_wire};
pub use proposal::ProposalParts;
pub use session::{FromClient, FromServer, Interest, Lightning, Welcome};

/// Keys in a proposal: far above any factory that a route budget allows.
pub const MAX_CLIENTS: usize = 65_536;
/// Nonces, partial signatures or signatures of one client.
pub const MAX_SESSIONS: usize = 256;
/// Transactions on a path.
pub const MAX_LEVELS: usize = 64;
/// Outputs of one transaction, or branches of one timeout.
pub const MAX_OUTPUTS: usize = 1024;
/// Bytes of the script of an output: the longest witness program (BIP-141).
pub const MAX_SCRIPT_BYTES: usize = 42;
/// Bytes of the funding transaction: as much as a standard transaction may have.
pub const MAX_FUNDING_BYTES: usize = 100_000;
/// Bytes of a text for people.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Least capacity of a channel: no output but an anchor is smaller (protocol section 1).
pub const MIN_CAPACITY_SAT: u64 = 330;
