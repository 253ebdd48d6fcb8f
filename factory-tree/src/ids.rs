//! Identifiers. Each is a type of its own, printed and serialised as lower-case hex.

use core::fmt;
use core::str::FromStr;

use bitcoin::OutPoint;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A hex string that is not an identifier of the expected length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {bytes} bytes of hex for a {what}")]
pub struct IdParseError {
    what: &'static str,
    bytes: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut out = [0u8; $len];
                hex::decode_to_slice(s, &mut out)
                    .map_err(|_| IdParseError { what: $what, bytes: $len })?;
                Ok(Self(out))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdParseError;
            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                <[u8; $len]>::try_from(bytes)
                    .map(Self)
                    .map_err(|_| IdParseError { what: $what, bytes: $len })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A channel's number as Lightning writes it (bLIP-52: `BLOCKxTRANSACTIONxOUTPUT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortChannelId(pub u64);

/// A text that is no [`ShortChannelId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected BLOCKxTRANSACTIONxOUTPUT")]
pub struct ShortChannelIdError;

impl fmt::Display for ShortChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, transaction) = (self.0 >> 40, (self.0 >> 16) & 0xff_ffff);
        write!(f, "{block}x{transaction}x{}", self.0 & 0xffff)
    }
}

impl FromStr for ShortChannelId {
    type Err = ShortChannelIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut parts = s.split('x').map(|part| part.parse::<u64>().ok());
        let mut below = |limit: u64| {
            let part = parts.next().flatten();
            part.filter(|part| *part < limit).ok_or(ShortChannelIdError)
        };
        let (block, transaction, output) = (below(1 << 24)?, below(1 << 24)?, below(1 << 16)?);
        match parts.next() {
            None => Ok(Self(block << 40 | transaction << 16 | output)),
            Some(_) => Err(ShortChannelIdError),
        }
    }
}

impl Serialize for ShortChannelId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ShortChannelId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

hex_id!(
    /// A factory: `SHA256("superscalar/factory" || txid || vout_le)` of its funding outpoint, so
    /// that both sides compute it and no two attempts share one.
    FactoryId, 32, "factory id"
);
hex_id!(
    /// One construction ceremony; its attempts share the pinned funding inputs.
    CeremonyId, 16, "ceremony id"
);
hex_id!(
    /// One sale from a stock, drawn by the LSP; its attempts share their terms.
    SaleId, 16, "sale id"
);
hex_id!(
    /// One channel's place: drawn from the client's join nonce, never reused (protocol section 2).
    LeafId, 16, "leaf id"
);
hex_id!(
    /// A client's account: its compressed node public key.
    ClientId, 33, "client id"
);

impl FactoryId {
    /// The id of the factory funded by `funding`.
    #[must_use]
    pub fn of(funding: OutPoint) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"superscalar/factory");
        hash.update(bitcoin::consensus::serialize(&funding));
        Self(hash.finalize().into())
    }
}

impl LeafId {
    /// `SHA256("leaf" || join_nonce || u32 index, big-endian)[..16]`, the index counted by the
    /// client per channel of that join.
    #[must_use]
    pub fn derive(join_nonce: &[u8; 16], index: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"leaf");
        hash.update(join_nonce);
        hash.update(index.to_be_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0u8; 16];
        for (to, from) in id.iter_mut().zip(digest) {
            *to = from;
        }
        Self(id)
    }

    /// As the `user_channel_id` LDK carries.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

/// The number of an attempt within its ceremony, counted from 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_as_hex() {
        let id = CeremonyId([7; 16]);
        assert_eq!(id.to_string().parse::<CeremonyId>().unwrap(), id);
        assert!("07".parse::<CeremonyId>().is_err());
        assert!(CeremonyId::try_from([0u8; 15].as_slice()).is_err());
    }

    #[test]
    fn leaf_ids_differ_by_nonce_and_index() {
        let a = LeafId::derive(&[1; 16], 0);
        assert_ne!(a, LeafId::derive(&[1; 16], 1));
        assert_ne!(a, LeafId::derive(&[2; 16], 0));
    }
}
