//! What moves a client from a factory that ends to a younger one.

use std::fmt;

use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{FactoryId, LeafId};
use factory_tree::ladder::{Notice as Words, Warning};
use factory_tree::units::Height;

use super::WireError;
use super::fields::{copied, fixed, items, joined, text};
use crate::v1;

/// Sales of one stock: their number is a byte.
const MAX_SOLD: usize = 255;

/// A client wants this much to arrive over its channel in the younger factory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MovePart {
    /// The factory that ends.
    pub from: FactoryId,
    /// The younger one.
    pub to: FactoryId,
    /// Its channel in the one that ends; `None`: the one it was born with.
    pub from_leaf: Option<LeafId>,
    /// Its channel in the younger one, likewise.
    pub to_leaf: Option<LeafId>,
    /// Of a preimage that only the client knows.
    pub hash: [u8; 32],
    /// What the coordinator's payment carries (BOLT 11).
    pub payment_secret: [u8; 32],
    /// What is to arrive, in msat.
    pub amount_msat: u64,
}

/// How a client pays for a part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PartTerms {
    /// Its hash.
    pub hash: [u8; 32],
    /// What the client's payment carries (BOLT 11).
    pub payment_secret: [u8; 32],
    /// What the client pays beyond what arrives, in msat.
    pub fee_msat: u64,
    /// When the coordinator's payment expires.
    pub outgoing_expiry: Height,
    /// When the client's payment expires.
    pub incoming_expiry: Height,
}

/// What a client hands over of a factory it has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The factory.
    pub factory: FactoryId,
    /// Its secret keys there, masked.
    pub keys: MaskedKeys,
}

/// A client's factory ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub factory: FactoryId,
    /// How urgent it is, and the words.
    pub words: Words,
}

// Whoever knows a payment secret can pay in somebody's stead, and learns what was paid.
impl fmt::Debug for MovePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovePart")
            .field("from", &self.from)
            .field("to", &self.to)
            .field("from_leaf", &self.from_leaf)
            .field("to_leaf", &self.to_leaf)
            .field("amount_msat", &self.amount_msat)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PartTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartTerms")
            .field("fee_msat", &self.fee_msat)
            .field("outgoing_expiry", &self.outgoing_expiry)
            .field("incoming_expiry", &self.incoming_expiry)
            .finish_non_exhaustive()
    }
}

fn factory(field: &'static str, bytes: &[u8]) -> Result<FactoryId, WireError> {
    fixed(field, bytes).map(FactoryId)
}

fn leaf(field: &'static str, bytes: Option<bytes::Bytes>) -> Result<Option<LeafId>, WireError> {
    let leaf = bytes.map(|bytes| fixed(field, &bytes).map(LeafId));
    leaf.transpose()
}

impl TryFrom<v1::MovePart> for MovePart {
    type Error = WireError;
    fn try_from(wire: v1::MovePart) -> Result<Self, WireError> {
        Ok(Self {
            from: factory("move_part.from", &wire.from)?,
            to: factory("move_part.to", &wire.to)?,
            from_leaf: leaf("move_part.from_leaf", wire.from_leaf)?,
            to_leaf: leaf("move_part.to_leaf", wire.to_leaf)?,
            hash: fixed("move_part.hash", &wire.hash)?,
            payment_secret: fixed("move_part.payment_secret", &wire.payment_secret)?,
            amount_msat: wire.amount_msat,
        })
    }
}

impl From<MovePart> for v1::MovePart {
    fn from(part: MovePart) -> Self {
        Self {
            from: copied(part.from.0),
            to: copied(part.to.0),
            from_leaf: part.from_leaf.map(|leaf| copied(leaf.0)),
            to_leaf: part.to_leaf.map(|leaf| copied(leaf.0)),
            hash: copied(part.hash),
            payment_secret: copied(part.payment_secret),
            amount_msat: part.amount_msat,
        }
    }
}

impl TryFrom<v1::PartTerms> for PartTerms {
    type Error = WireError;
    fn try_from(wire: v1::PartTerms) -> Result<Self, WireError> {
        Ok(Self {
            hash: fixed("part_terms.hash", &wire.hash)?,
            payment_secret: fixed("part_terms.payment_secret", &wire.payment_secret)?,
            fee_msat: wire.fee_msat,
            outgoing_expiry: Height(wire.outgoing_expiry),
            incoming_expiry: Height(wire.incoming_expiry),
        })
    }
}

impl From<PartTerms> for v1::PartTerms {
    fn from(terms: PartTerms) -> Self {
        Self {
            hash: copied(terms.hash),
            payment_secret: copied(terms.payment_secret),
            fee_msat: terms.fee_msat,
            outgoing_expiry: terms.outgoing_expiry.0,
            incoming_expiry: terms.incoming_expiry.0,
        }
    }
}

impl TryFrom<v1::Handover> for Handover {
    type Error = WireError;
    fn try_from(wire: v1::Handover) -> Result<Self, WireError> {
        Ok(Self {
            factory: factory("handover.factory", &wire.factory)?,
            keys: MaskedKeys {
                factory: fixed("handover.factory_key", &wire.factory_key)?,
                payout: fixed("handover.payout_key", &wire.payout_key)?,
                channel: fixed("handover.channel_key", &wire.channel_key)?,
                sold: items(
                    "handover.sold_channel_keys",
                    &wire.sold_channel_keys,
                    MAX_SOLD,
                )?
                .to_vec(),
            },
        })
    }
}

impl From<Handover> for v1::Handover {
    fn from(handover: Handover) -> Self {
        let keys = handover.keys;
        Self {
            factory: copied(handover.factory.0),
            factory_key: copied(keys.factory),
            payout_key: copied(keys.payout),
            channel_key: copied(keys.channel),
            sold_channel_keys: joined(keys.sold.into_iter()),
        }
    }
}

/// The factory whose keys were taken.
pub(super) fn taken(wire: &v1::HandoverTaken) -> Result<FactoryId, WireError> {
    factory("handover_taken.factory", &wire.factory)
}

impl TryFrom<v1::Notice> for Notice {
    type Error = WireError;
    fn try_from(wire: v1::Notice) -> Result<Self, WireError> {
        let level = match wire.level() {
            v1::NoticeLevel::Unspecified => {
                return Err(WireError::UnknownEnum {
                    field: "notice.level",
                    value: wire.level,
                });
            }
            v1::NoticeLevel::Early => Warning::Early,
            v1::NoticeLevel::Dying => Warning::Dying,
            v1::NoticeLevel::LastDay => Warning::LastDay,
            v1::NoticeLevel::Over => Warning::Over,
        };
        Ok(Self {
            factory: factory("notice.factory", &wire.factory)?,
            words: Words {
                level,
                what: text("notice.what", wire.what)?,
                action: text("notice.action", wire.action)?,
                cost: text("notice.cost", wire.cost)?,
                otherwise: text("notice.otherwise", wire.otherwise)?,
                by: Height(wire.by_height),
            },
        })
    }
}

impl From<Notice> for v1::Notice {
    fn from(notice: Notice) -> Self {
        let words = notice.words;
        let level = match words.level {
            Warning::Early => v1::NoticeLevel::Early,
            Warning::Dying => v1::NoticeLevel::Dying,
            Warning::LastDay => v1::NoticeLevel::LastDay,
            Warning::Over => v1::NoticeLevel::Over,
        };
        Self {
            factory: copied(notice.factory.0),
            level: level.into(),
            what: words.what,
            action: words.action,
            cost: words.cost,
            otherwise: words.otherwise,
            by_height: words.by.0,
        }
    }
}
