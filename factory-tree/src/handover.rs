//! What a client hands over when it has left a factory, opened and checked (protocol.md section 7.3).
//!
//! Each secret is masked for the coordinator's factory key ([`crate::keys::mask_secret`]), so the masked form may be stored and sent as it
//! is: only the holder of that key's secret reads it.

use bitcoin::ScriptBuf;
use bitcoin::secp256k1::{Parity, PublicKey, SecretKey, XOnlyPublicKey};

use crate::factory::Member;
use crate::keys::{HandoverError, mask_secret, unmask_secret};

/// A client's secret keys in one factory, each masked for the coordinator's factory key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedKeys {
    /// Of its factory key.
    pub factory: [u8; 32],
    /// Of the output key of its payout script, even.
    pub payout: [u8; 32],
    /// Of the funding key of the channel it was born with.
    pub channel: [u8; 32],
    /// Of those of the channels it bought, in the order of the sales.
    pub sold: Vec<[u8; 32]>,
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
    /// The key of a channel it bought.
    #[error("the key of the channel bought as number {number}: {error}")]
    Sold {
        /// Which of its channels, counted from 1.
        number: usize,
        /// Why.
        error: HandoverError,
    },
    /// Not one key per channel it bought.
    #[error("{found} keys of channels that were bought, not {expected}")]
    Count {
        /// How many keys.
        found: usize,
        /// How many channels.
        expected: usize,
    },
    /// The payout script is not one output key's.
    #[error("the payout script is not a P2TR output")]
    PayoutScript,
}

/// A client's secret keys in one factory. Wiped when dropped.
pub struct ClientKeys {
    /// Of its factory key.
    pub factory: SecretKey,
    /// Of the funding key of the channel it was born with.
    pub channel: SecretKey,
    /// Of those of the channels it bought, in the order of the sales.
    pub sold: Vec<SecretKey>,
}

impl Drop for ClientKeys {
    fn drop(&mut self) {
        self.factory.non_secure_erase();
        self.channel.non_secure_erase();
        self.sold.iter_mut().for_each(SecretKey::non_secure_erase);
    }
}

impl core::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ClientKeys(..)")
    }
}

impl MaskedKeys {
    /// Masks a client's secrets for the coordinator's factory key: factory, payout (of the output key, even) and channels, the one it was born
    /// with first.
    ///
    /// # Errors
    /// [`KeysError`], never for valid keys.
    pub fn new(
        factory: &SecretKey,
        payout: &SecretKey,
        (channel, sold): (&SecretKey, &[SecretKey]),
        lsp_key: &PublicKey,
    ) -> Result<Self, KeysError> {
        Ok(Self {
            factory: mask_secret(factory, lsp_key).map_err(KeysError::Factory)?,
            payout: mask_secret(payout, lsp_key).map_err(KeysError::Payout)?,
            channel: mask_secret(channel, lsp_key).map_err(KeysError::Channel)?,
            sold: (1..)
                .zip(sold)
                .map(|(number, secret)| {
                    mask_secret(secret, lsp_key).map_err(|error| KeysError::Sold { number, error })
                })
                .collect::<Result<_, _>>()?,
        })
    }

    /// Opens them with the coordinator's factory secret, and checks every one against the member's public keys; `sold`: those of the channels
    /// it bought, in the order of the sales.
    ///
    /// # Errors
    /// [`KeysError`] names the first that is another secret, or none.
    pub fn open(
        &self,
        member: &Member,
        sold: &[PublicKey],
        lsp: &SecretKey,
    ) -> Result<ClientKeys, KeysError> {
        let (found, expected) = (self.sold.len(), sold.len());
        if found != expected {
            return Err(KeysError::Count { found, expected });
        }
        let payout = output_key(&member.payout_script).ok_or(KeysError::PayoutScript)?;
        let payout = payout.public_key(Parity::Even);
        let mut checked = unmask_secret(&self.payout, &payout, lsp).map_err(KeysError::Payout)?;
        checked.non_secure_erase();
        let mut keys = ClientKeys {
            factory: unmask_secret(&self.factory, &member.factory_key, lsp)
                .map_err(KeysError::Factory)?,
            channel: unmask_secret(&self.channel, &member.channel_key, lsp)
                .map_err(KeysError::Channel)?,
            sold: Vec::with_capacity(expected),
        };
        for ((number, masked), public) in (1..).zip(&self.sold).zip(sold) {
            let secret = unmask_secret(masked, public, lsp);
            keys.sold
                .push(secret.map_err(|error| KeysError::Sold { number, error })?);
        }
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
            let opened = masked.open(&client.member(), &[], &lsp).unwrap();
            assert_eq!(opened.factory, client.factory);
            assert_eq!(opened.channel, client.channel);
            assert_ne!(masked.factory, client.factory.secret_bytes());
            let other = secret(2, "lsp", 0);
            assert!(masked.open(&client.member(), &[], &other).is_err());
        }
    }

    #[test]
    fn each_wrong_key_is_named() {
        let lsp = secret(1, "lsp", 0);
        let client = TestClient::new(1, 3, Amount::from_sat(50_000));
        let stranger = TestClient::new(1, 4, Amount::from_sat(50_000)).masked_keys(&public(&lsp));
        let own = client.masked_keys(&public(&lsp));
        let open = |masked: MaskedKeys| {
            let opened = masked.open(&client.member(), &[], &lsp);
            opened.map(|_| ()).unwrap_err()
        };
        let factory = MaskedKeys {
            factory: stranger.factory,
            ..own.clone()
        };
        assert!(matches!(open(factory), KeysError::Factory(_)));
        let payout = MaskedKeys {
            payout: stranger.payout,
            ..own.clone()
        };
        assert!(matches!(open(payout), KeysError::Payout(_)));
        let channel = MaskedKeys {
            channel: stranger.channel,
            ..own.clone()
        };
        assert!(matches!(open(channel), KeysError::Channel(_)));
        let member = Member {
            payout_script: ScriptBuf::new(),
            ..client.member()
        };
        assert!(matches!(
            own.open(&member, &[], &lsp),
            Err(KeysError::PayoutScript)
        ));
    }

    #[test]
    fn the_keys_of_every_bought_channel_are_handed_over() {
        let lsp = secret(1, "lsp", 0);
        let client = TestClient::new(1, 3, Amount::from_sat(50_000));
        let bought = [secret(1, "bought", 1), secret(1, "bought", 2)];
        let publics = bought.each_ref().map(public);
        let mut masked = client.masked_keys(&public(&lsp));
        masked.sold = bought
            .iter()
            .map(|key| mask_secret(key, &public(&lsp)).unwrap())
            .collect();
        let open = |sold: &[PublicKey]| masked.open(&client.member(), sold, &lsp);
        assert_eq!(open(&publics).unwrap().sold, bought);
        let [one, two] = publics;
        let (found, expected) = (2, 1);
        assert!(
            matches!(open(&[one]), Err(KeysError::Count { found: f, expected: e }) if (f, e) == (found, expected))
        );
        assert!(matches!(
            open(&[one, one]),
            Err(KeysError::Sold { number: 2, .. })
        ));
        assert!(matches!(
            open(&[two, one]),
            Err(KeysError::Sold { number: 1, .. })
        ));
    }
}
