//! What can be wrong with a message's form.

/// Why a message was refused. Each names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A message without content, or with content this version does not know.
    #[error("{field} is missing or unknown to this version")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// Bytes of a fixed length that have another.
    #[error("{field} has {found} bytes, expected {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// A list of things of one size that is cut off.
    #[error("{field} has {found} bytes, which is no multiple of {item}")]
    Ragged {
        /// The field.
        field: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes of one item.
        item: usize,
    },
    /// More items or bytes than any honest message has.
    #[error("{field} has {found} {unit}, allowed are at most {max}")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
        /// Of what.
        unit: &'static str,
    },
    /// Two lists that belong together differ in length.
    #[error("{field} has {found} entries, expected {expected}")]
    Count {
        /// The field.
        field: &'static str,
        /// Entries found.
        found: usize,
        /// Entries expected.
        expected: usize,
    },
    /// A value that is none of an enum's.
    #[error("{field} has the unknown value {value}")]
    UnknownEnum {
        /// The field.
        field: &'static str,
        /// The value.
        value: i32,
    },
    /// A number that its type cannot hold.
    #[error("{field} is {value}, allowed are at most {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The value.
        value: u64,
        /// The largest value allowed.
        max: u64,
    },
    /// More satoshi than there can be.
    #[error("{field} is {sat} sat, more than the 21 million bitcoin there can be")]
    AmountTooLarge {
        /// The field.
        field: &'static str,
        /// The amount.
        sat: u64,
    },
    /// Less than an output may hold.
    #[error("{field} is {sat} sat, an output holds at least {min} sat")]
    AmountTooSmall {
        /// The field.
        field: &'static str,
        /// The amount.
        sat: u64,
        /// The least.
        min: u64,
    },
    /// Bytes that are not a public key.
    #[error("{field}: entry {index} is not a point on the curve")]
    Point {
        /// The field.
        field: &'static str,
        /// Which entry of a list, else 0.
        index: usize,
    },
    /// Bytes that are not a nonce, a partial signature or a signature.
    #[error("{field}: entry {index} is not well-formed")]
    Scalar {
        /// The field.
        field: &'static str,
        /// Which entry of a list, else 0.
        index: usize,
    },
    /// A script of another kind than the field holds.
    #[error("{field}: entry {index} is not a P2TR script")]
    Script {
        /// The field.
        field: &'static str,
        /// Which entry of a list, else 0.
        index: usize,
    },
    /// Bytes that are not a transaction.
    #[error("{field} is not a transaction: {reason}")]
    Transaction {
        /// The field.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A message about another chain.
    #[error("{field} is {found}, this side is on {expected}")]
    Network {
        /// The field.
        field: &'static str,
        /// What the message says.
        found: bitcoin::Network,
        /// What it should say.
        expected: bitcoin::Network,
    },
    /// A place that is not in the tree.
    #[error("no client at position {position}")]
    Position {
        /// The place.
        position: u32,
    },
}
