//! The account of a coordinator or a client.

use core::fmt;
use core::str::FromStr;

use bitcoin::secp256k1::{PublicKey, SecretKey};
use factory_tree::ids::ClientId;

use crate::wire::WireError;

/// A node's public key: a valid point, unlike the 33 plain bytes of a [`ClientId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(PublicKey);

/// A text that is not a compressed public key in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 66 hex digits, a compressed public key")]
pub struct NodeIdError;

impl NodeId {
    /// Parses 33 bytes.
    ///
    /// # Errors
    /// [`WireError`] naming `field`, when they are not a compressed point.
    pub fn from_bytes(field: &'static str, bytes: &[u8]) -> Result<Self, WireError> {
        crate::wire::fields::public_key(field, bytes).map(Self)
    }

    /// The id of the holder of `secret`.
    #[must_use]
    pub fn of(secret: &SecretKey) -> Self {
        Self(secret.public_key(&crate::auth::SECP))
    }

    /// The 33 bytes of the compressed key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 33] {
        self.0.serialize()
    }

    /// The key.
    #[must_use]
    pub const fn public_key(&self) -> PublicKey {
        self.0
    }
}

impl From<PublicKey> for NodeId {
    fn from(key: PublicKey) -> Self {
        Self(key)
    }
}

impl From<NodeId> for ClientId {
    fn from(id: NodeId) -> Self {
        Self(id.to_bytes())
    }
}

impl TryFrom<ClientId> for NodeId {
    type Error = NodeIdError;
    fn try_from(id: ClientId) -> Result<Self, Self::Error> {
        PublicKey::from_slice(&id.0)
            .map(Self)
            .map_err(|_| NodeIdError)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0u8; 33];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NodeIdError)?;
        Self::try_from(ClientId(bytes))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_points() {
        let id = NodeId::of(&SecretKey::from_slice(&[7; 32]).unwrap());
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(NodeId::try_from(ClientId::from(id)), Ok(id));
        assert!("02".parse::<NodeId>().is_err());
        assert!("ff".repeat(33).parse::<NodeId>().is_err());
        assert!(NodeId::try_from(ClientId([9; 33])).is_err());
        let uncompressed = id.public_key().serialize_uncompressed();
        assert!(NodeId::from_bytes("id", &uncompressed).is_err());
    }
}
