//! The harness's own coins: the node has no wallet, so we hold a key, mine to it, and sign.

use std::collections::VecDeque;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash;
use bitcoin::key::{Keypair, TapTweak};
use bitcoin::secp256k1::{All, Message, Secp256k1, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{
    Address, Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, WScriptHash,
    Witness, absolute, taproot, transaction,
};
use serde_json::json;

use super::Bitcoind;

/// Feerate of the harness's own payments, in sat/vB.
const FEE_RATE: u64 = 2;

/// Confirmations before a block reward may be spent in the next block.
const MATURITY: u32 = 99;

static SECP: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

fn key() -> Keypair {
    Keypair::from_secret_key(
        &SECP,
        &SecretKey::from_slice(&[0x51; 32]).expect("a constant below the group order"),
    )
}

/// The address that the harness mines to.
pub(super) fn address() -> Address {
    Address::p2tr(&SECP, key().x_only_public_key().0, None, Network::Regtest)
}

/// An address that nobody has a key for, another one for each node and number.
pub(super) fn nobody(node: u16, number: u32) -> Address {
    let script =
        WScriptHash::hash(&[node.to_be_bytes().as_slice(), &number.to_be_bytes()].concat());
    let script = ScriptBuf::new_p2wsh(&script);
    Address::from_script(&script, Network::Regtest).expect("P2WSH has an address")
}

/// Coins to pay from, oldest use first.
#[derive(Debug, Default)]
pub(super) struct Miner {
    coins: VecDeque<(OutPoint, TxOut)>,
}

impl Miner {
    /// Pays these outputs, first in the transaction and in this order; the change comes last and back to us.
    pub(super) fn send(&mut self, node: &Bitcoind, outputs: &[TxOut]) -> Result<Vec<OutPoint>> {
        // What we remember may be spent or reorged out since: look again, once.
        let (transaction, change) = match self.pay(node, outputs) {
            Ok(paid) => paid,
            Err(_) => {
                self.look(node)?;
                self.pay(node, outputs)?
            }
        };
        let txid = transaction.compute_txid();
        let mut outpoints: Vec<_> = (0u32..)
            .take(transaction.output.len())
            .map(|vout| OutPoint { txid, vout })
            .collect();
        self.coins
            .push_back((outpoints.pop().context("the change")?, change));
        Ok(outpoints)
    }

    fn pay(&mut self, node: &Bitcoind, outputs: &[TxOut]) -> Result<(Transaction, TxOut)> {
        let wanted: Amount = outputs.iter().map(|output| output.value).sum();
        let mut inputs = Vec::new();
        let (fee, total) = loop {
            let coin = self
                .coins
                .pop_front()
                .context("the harness has no coins left")?;
            inputs.push(coin);
            // Overhead 11 vB, key-path input 58, P2TR output 43, all rounded up.
            let vsize = 11 + 58 * inputs.len() + 43 * (outputs.len() + 1);
            let fee = Amount::from_sat(FEE_RATE * u64::try_from(vsize)?);
            let total: Amount = inputs.iter().map(|(_, txout)| txout.value).sum();
            if total >= wanted + fee + Amount::from_sat(1_000) {
                break (fee, total);
            }
        };
        let change = TxOut {
            value: total - wanted - fee,
            script_pubkey: address().script_pubkey(),
        };
        let mut transaction = Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: inputs
                .iter()
                .map(|(outpoint, _)| input(*outpoint))
                .collect(),
            output: outputs.iter().cloned().chain([change.clone()]).collect(),
        };
        sign(
            &mut transaction,
            &inputs
                .into_iter()
                .map(|(_, txout)| txout)
                .collect::<Vec<_>>(),
        )?;
        node.rpc(
            "sendrawtransaction",
            json!([serialize_hex(&transaction), 0]),
        )?;
        Ok((transaction, change))
    }

    /// Finds our coins in the chain, without those that the mempool spends.
    fn look(&mut self, node: &Bitcoind) -> Result<()> {
        let script = address().script_pubkey();
        let tip = node.height()?;
        self.coins.clear();
        for coin in node.coins_of(&script)? {
            let spent = node.rpc(
                "gettxspendingprevout",
                json!([[{"txid": coin.outpoint.txid, "vout": coin.outpoint.vout}]]),
            )?;
            let mature = !coin.coinbase || coin.height + MATURITY <= tip;
            if mature && spent[0].get("spendingtxid").is_none() {
                self.coins.push_back((
                    coin.outpoint,
                    TxOut {
                        value: coin.value,
                        script_pubkey: script.clone(),
                    },
                ));
            }
        }
        // The largest first: rewards shrink fast on regtest.
        self.coins
            .make_contiguous()
            .sort_by_key(|(_, txout)| std::cmp::Reverse(txout.value));
        Ok(())
    }
}

fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    }
}

fn sign(transaction: &mut Transaction, prevouts: &[TxOut]) -> Result<()> {
    let tweaked = key().tap_tweak(&SECP, None).to_keypair();
    for index in 0..prevouts.len() {
        let mut cache = SighashCache::new(&*transaction);
        let sighash = cache.taproot_key_spend_signature_hash(
            index,
            &Prevouts::All(prevouts),
            TapSighashType::Default,
        )?;
        let signature =
            SECP.sign_schnorr_no_aux_rand(&Message::from_digest(sighash.to_byte_array()), &tweaked);
        let signature = taproot::Signature {
            signature,
            sighash_type: TapSighashType::Default,
        };
        transaction.input[index].witness = Witness::p2tr_key_spend(&signature);
    }
    Ok(())
}
