//! The bearer secret that ties unary calls to a session.

use core::fmt;

use tonic::metadata::{BinaryMetadataKey, MetadataMap, MetadataValue};

/// The metadata key of the token.
pub const SESSION_KEY: &str = "superscalar-session-bin";

/// 32 secret bytes, made by the coordinator for one session and worthless after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionToken([u8; 32]);

impl SessionToken {
    /// From fresh random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret.
    #[must_use]
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// Adds it to the metadata of a call.
    pub fn attach(&self, metadata: &mut MetadataMap) {
        let mut value = MetadataValue::from_bytes(&self.0);
        value.set_sensitive(true);
        metadata.insert_bin(BinaryMetadataKey::from_static(SESSION_KEY), value);
    }

    /// Finds it in the metadata of a call.
    #[must_use]
    pub fn find(metadata: &MetadataMap) -> Option<Self> {
        let bytes = metadata.get_bin(SESSION_KEY)?.to_bytes().ok()?;
        <[u8; 32]>::try_from(bytes.as_ref()).ok().map(Self)
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn tokens_travel_in_metadata() {
        let token = SessionToken::new([9; 32]);
        let mut metadata = MetadataMap::new();
        assert_eq!(SessionToken::find(&metadata), None);
        token.attach(&mut metadata);
        assert_eq!(SessionToken::find(&metadata), Some(token));
        let short = MetadataValue::from_bytes(&[9; 31]);
        metadata.insert_bin(SESSION_KEY, short);
        assert_eq!(SessionToken::find(&metadata), None);
    }

    #[test]
    fn debug_never_shows_a_token() {
        let token = SessionToken::new([0xab; 32]);
        let welcome = crate::wire::Welcome {
            token,
            heartbeat_seconds: 30,
            tip_height: 1,
        };
        let wire = v1::Welcome::from(welcome);
        let message = v1::ServerMessage::from(&crate::wire::FromServer::Welcome(welcome));
        let mut metadata = MetadataMap::new();
        token.attach(&mut metadata);
        for text in [
            format!("{token:?}"),
            format!("{welcome:?}"),
            format!("{wire:?}"),
            format!("{message:?}"),
            format!("{metadata:?}"),
        ] {
            assert!(!text.to_lowercase().contains("abab"), "{text}");
            assert!(!text.contains("171"), "{text}");
            assert!(!text.contains("q6ur"), "{text}");
        }
    }
}
