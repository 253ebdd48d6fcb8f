//! What a client hands over when it has left a factory, opened and checked (protocol.md section 7.3).
//!
//! Each secret is masked for the coordinator's factory key ([`crate::keys::mask_secret`]), so the masked form may be stored and sent as it
//! is: only the holder of that key's secret reads it.

use bitcoin::ScriptBuf;
use bitcoin::secp256k1::{Parity, PublicKey, SecretKey, XOnlyPublicKey};

use crate::factory::Member;
use crate::keys::{HandoverError, mask_secret, unmask_secret};

/// A client's secret keys in one factory, each masked for the coordinator's factory key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedKeys {
    /// Of its factory key.
    pub factory: [u8; 32],
    /// Of the output key of its payout script, even.
    pub payout: [u8; 32],
    /// Of its channel funding key.
    pub channel: [u8; 32],
}

/// Why handed-over keys are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// The factory key.
    #[error("the factory key: {0}")]
    Factory(HandoverError),
    /// The payout key.
    #[error("the payout key: {0}")]
    Payout(HandoverError),
    /// The channel key.
    #[error("the channel key: {0}")]
    Channel(HandoverError),
    /// The payout script is not one output key's.
    #[error("the payout script is not a P2TR output")]
    PayoutScript,
}

/// A client's secret keys in one factory. Wiped when dropped.
pub struct ClientKeys {
    /// Of its factory key.
    pub factory: SecretKey,
    /// Of its channel funding key.
    pub channel: SecretKey,
}

impl Drop for ClientKeys {
    fn drop(&mut self) {
        self.factory.non_secure_erase();
        self.channel.non_secure_erase();
    }
}

impl core::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ClientKeys(..)")
    }
}

impl MaskedKeys {
    /// Masks a client's secrets for the coordinator's factory key: factory, payout (of the output key, even) and channel.
    ///
    /// # Errors
    /// [`KeysError`], never for valid keys.
    pub fn new(
        factory: &SecretKey,
        payout: &SecretKey,
        channel: &SecretKey,
        lsp_key: &PublicKey,
    ) -> Result<Self, KeysError> {
        Ok(Self {
            factory: mask_secret(factory, lsp_key).map_err(KeysError::Factory)?,
            payout: mask_secret(payout, lsp_key).map_err(KeysError::Payout)?,
            channel: mask_secret(channel, lsp_key).map_err(KeysError::Channel)?,
        })
    }

    /// Opens them with the coordinator's factory secret, and checks every one against the member's public keys.
    ///
    /// # Errors
    /// [`KeysError`] names the first that is another secret, or none.
    pub fn open(&self, member: &Member, lsp: &SecretKey) -> Result<ClientKeys, KeysError> {
        let payout = output_key(&member.payout_script).ok_or(KeysError::PayoutScript)?;
        let payout = payout.public_key(Parity::Even);
        let mut checked = unmask_secret(&self.payout, &payout, lsp).map_err(KeysError::Payout)?;
        checked.non_secure_erase();
        let keys = ClientKeys {
            factory: unmask_secret(&self.factory, &member.factory_key, lsp)
                .map_err(KeysError::Factory)?,
            channel: unmask_secret(&self.channel, &member.channel_key, lsp)
                .map_err(KeysError::Channel)?,
        };
        Ok(keys)
    }
}

/// The output key of a P2TR script (BIP-341).
fn output_key(script: &ScriptBuf) -> Option<XOnlyPublicKey> {
    let program = script.is_p2tr().then(|| script.as_bytes().get(2..))??;
    XOnlyPublicKey::from_slice(program).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestClient, public, secret};
    use bitcoin::Amount;

    /// Whatever the parity of the payout's output key: both occur among eight.
    #[test]
    fn masked_keys_open_for_the_coordinator_alone() {
        let lsp = secret(1, "lsp", 0);
        for number in 0..8 {
            let client = TestClient::new(1, number, Amount::from_sat(50_000));
            let masked = client.masked_keys(&public(&lsp));
            let opened = masked.open(&client.member(), &lsp).unwrap();
            assert_eq!(opened.factory, client.factory);
            assert_eq!(opened.channel, client.channel);
            assert_ne!(masked.factory, client.factory.secret_bytes());
            let other = secret(2, "lsp", 0);
            assert!(masked.open(&client.member(), &other).is_err());
        }
    }

    #[test]
    fn each_wrong_key_is_named() {
        let lsp = secret(1, "lsp", 0);
        let client = TestClient::new(1, 3, Amount::from_sat(50_000));
        let stranger = TestClient::new(1, 4, Amount::from_sat(50_000)).masked_keys(&public(&lsp));
        let own = client.masked_keys(&public(&lsp));
        let open = |masked: MaskedKeys| {
            let opened = masked.open(&client.member(), &lsp);
            opened.map(|_| ()).unwrap_err()
        };
        let factory = MaskedKeys {
            factory: stranger.factory,
            ..own
        };
        assert!(matches!(open(factory), KeysError::Factory(_)));
        let payout = MaskedKeys {
            payout: stranger.payout,
            ..own
        };
        assert!(matches!(open(payout), KeysError::Payout(_)));
        let channel = MaskedKeys {
            channel: stranger.channel,
            ..own
        };
        assert!(matches!(open(channel), KeysError::Channel(_)));
        let member = Member {
            payout_script: ScriptBuf::new(),
            ..client.member()
        };
        assert!(matches!(
            own.open(&member, &lsp),
            Err(KeysError::PayoutScript)
        ));
    }
}
