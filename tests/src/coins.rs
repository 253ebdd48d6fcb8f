//! Coins of one taproot key each, for exits and ordinary channels of Lightning nodes in a test's own process.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bitcoin::hashes::Hash;
use bitcoin::key::{Keypair, TapTweak};
use bitcoin::secp256k1::{Message, Secp256k1, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{
    Address, Amount, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut,
    Witness, absolute, taproot, transaction,
};
use channel_host::{FeeCoin, FeeCoins, FeeCoinsError};

use crate::bitcoind::Bitcoind;

/// The `n`th key.
pub fn key(n: u8) -> Keypair {
    Keypair::from_secret_key(
        &Secp256k1::new(),
        &SecretKey::from_slice(&[n; 32]).expect("a valid key"),
    )
}

/// What [`key`] spends alone.
pub fn payout_script(n: u8) -> ScriptBuf {
    Address::p2tr(
        &Secp256k1::new(),
        key(n).x_only_public_key().0,
        None,
        Network::Regtest,
    )
    .script_pubkey()
}

/// Coins of `key(n)` on a node.
#[derive(Debug)]
pub struct Coins {
    /// The node they are on.
    pub node: Arc<Bitcoind>,
    /// Whose they are.
    pub n: u8,
    /// Spent, though maybe not in a block yet.
    pub spent: Mutex<HashSet<OutPoint>>,
}

fn failed(error: impl std::fmt::Display) -> FeeCoinsError {
    FeeCoinsError(error.to_string())
}

#[async_trait]
impl FeeCoins for Coins {
    async fn coins(&self) -> Result<Vec<FeeCoin>, FeeCoinsError> {
        let script = payout_script(self.n);
        let coins = self.node.coins_of(&script).map_err(failed)?;
        let spent = self.spent.lock().map_err(failed)?;
        let free = coins
            .into_iter()
            .filter(|coin| !spent.contains(&coin.outpoint));
        Ok(free
            .map(|coin| FeeCoin {
                outpoint: coin.outpoint,
                txout: TxOut {
                    value: coin.value,
                    script_pubkey: script.clone(),
                },
                height: coin.height,
            })
            .collect())
    }

    async fn change_script(&self) -> Result<ScriptBuf, FeeCoinsError> {
        Ok(payout_script(self.n))
    }

    async fn sign(
        &self,
        transaction: &mut Transaction,
        prevouts: &[TxOut],
    ) -> Result<(), FeeCoinsError> {
        let secp = Secp256k1::new();
        let signer = key(self.n).tap_tweak(&secp, None).to_keypair();
        for (index, prevout) in prevouts.iter().enumerate() {
            if prevout.script_pubkey != payout_script(self.n) {
                continue;
            }
            let sighash = SighashCache::new(&*transaction)
                .taproot_key_spend_signature_hash(
                    index,
                    &Prevouts::All(prevouts),
                    TapSighashType::Default,
                )
                .map_err(failed)?;
            let message = Message::from_digest(sighash.to_byte_array());
            let signature = taproot::Signature {
                signature: secp.sign_schnorr(&message, &signer),
                sighash_type: TapSighashType::Default,
            };
            transaction.input[index].witness = Witness::p2tr_key_spend(&signature);
        }
        Ok(())
    }

    async fn record(&self, transaction: &Transaction) -> Result<(), FeeCoinsError> {
        let inputs = transaction.input.iter().map(|input| input.previous_output);
        self.spent.lock().map_err(failed)?.extend(inputs);
        Ok(())
    }

    async fn pay(
        &self,
        script: &ScriptBuf,
        amount: Amount,
        _: FeeRate,
    ) -> Result<Transaction, FeeCoinsError> {
        let fee = Amount::from_sat(1_000);
        let coins = self.coins().await?;
        let coin = coins
            .into_iter()
            .find(|coin| coin.txout.value > amount + fee + Amount::from_sat(330))
            .ok_or_else(|| failed("no coin is large enough"))?;
        let mut transaction = Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn {
                previous_output: coin.outpoint,
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                ..TxIn::default()
            }],
            output: vec![
                TxOut {
                    value: amount,
                    script_pubkey: script.clone(),
                },
                TxOut {
                    value: coin.txout.value - amount - fee,
                    script_pubkey: payout_script(self.n),
                },
            ],
        };
        self.sign(&mut transaction, &[coin.txout]).await?;
        self.record(&transaction).await?;
        Ok(transaction)
    }
}
