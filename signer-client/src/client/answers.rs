//! What other processes ask of the running one, through the store; and sweeping.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Message, Secp256k1};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    taproot,
};
use channel_host::Msat;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Inner, Shutdown, SignerClient};
use crate::error::{Error, Result};
use crate::jit::JitOptions;
use crate::lightning::InvoiceOptions;
use crate::sales::UpgradeOptions;
use crate::store::{Answer, Payout, Request};

/// How often to look for questions.
const LOOK: Duration = Duration::from_millis(150);
/// Least output worth making (P2TR dust limit).
const DUST: Amount = Amount::from_sat(330);
/// Witness bytes of a key-path input: count, length, signature.
const KEY_PATH_WITNESS: [u8; 64] = [0; 64];

/// Size of a key-path input, rounded up.
const INPUT_VBYTES: u64 = 58;
/// Inputs of one sweep: a larger transaction would not relay. The rest is for the next.
const MOST_INPUTS: usize = 1000;

/// A sweep of payouts into the wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// The transaction.
    pub txid: Txid,
    /// Payouts it spends.
    pub payouts: usize,
    /// What arrives in the wallet.
    pub sat: u64,
    /// What it costs.
    pub fee_sat: u64,
}

pub(super) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let client = SignerClient { inner: client };
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.wait() => return Ok(()),
        }
        match answer_all(&client).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            // A full disk, for example: those who asked find nothing, and say so.
            Err(error) => tracing::warn!(%error, "questions stay unanswered"),
            Ok(()) => {}
        }
    }
}

async fn answer_all(client: &SignerClient) -> Result<()> {
    for (id, request) in client.inner.store.asked().await? {
        let answer = match answer(client, request).await {
            Ok(value) => Answer::Done(value),
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => Answer::Failed {
                why: error.to_string(),
                exit_code: error.exit_code(),
            },
        };
        client.inner.store.answer(id, &answer).await?;
    }
    Ok(())
}

async fn answer(client: &SignerClient, request: Request) -> Result<serde_json::Value> {
    Ok(match request {
        Request::Address => json!(client.new_address().await?.to_string()),
        Request::Balance => json!(client.counted().await?),
        Request::Coins => {
            let coins = client.coins().await;
            json!(coins.iter().map(|coin| coin.to_sat()).collect::<Vec<_>>())
        }
        Request::Sweep { sat_per_kwu } => {
            let feerate = sat_per_kwu.map(FeeRate::from_sat_per_kwu);
            json!(sweep(client, feerate).await?)
        }
        Request::Invoice {
            amount_msat,
            description,
            expiry,
        } => {
            let options = InvoiceOptions {
                amount: amount_msat.map(Msat),
                description,
                expiry: Duration::from_secs(expiry),
            };
            json!(client.invoice(&options).await?)
        }
        Request::QuoteJit { amount_msat } => json!(client.quote_jit(Msat(amount_msat)).await?),
        Request::JitInvoice {
            quote,
            description,
            expiry,
            max_fee_msat,
            consent,
        } => {
            let options = JitOptions {
                consent,
                description,
                expiry: Duration::from_secs(expiry),
                max_fee: max_fee_msat.map(Msat),
            };
            json!(client.jit_invoice(&quote, &options).await?)
        }
        Request::CloseChannel { channel, force } => {
            json!(client.close_channel(&channel, force).await?)
        }
        Request::Pay {
            invoice,
            amount_msat,
        } => json!(client.pay(&invoice, amount_msat.map(Msat)).await?),
        Request::Keysend { to, amount_msat } => {
            json!(client.keysend(to, Msat(amount_msat)).await?)
        }
        Request::Channels => json!(client.channels().await?),
        Request::Limit => json!(client.limit().await?),
        Request::QuoteLimit {
            factory,
            amount_sat,
        } => {
            let amount = Amount::from_sat(amount_sat);
            json!(client.quote_limit(factory, amount).await?)
        }
        Request::UpgradeLimit {
            quote,
            consent,
            max_fee_msat,
        } => {
            let options = agreed(consent, max_fee_msat);
            json!(client.upgrade_limit(&quote, options).await?)
        }
        Request::QuoteChannel {
            amount_sat,
            at_birth,
        } => {
            let amount = Amount::from_sat(amount_sat);
            json!(client.quote_channel(amount, at_birth).await?)
        }
        Request::OrderChannel {
            quote,
            consent,
            max_fee_msat,
        } => {
            let options = agreed(consent, max_fee_msat);
            json!(client.order_channel(&quote, options).await?)
        }
        Request::CancelPurchase { sale } => json!(client.cancel_purchase(sale).await?),
        Request::SetWebhook { app_name, url } => {
            json!(client.set_webhook(&app_name, &url).await?)
        }
        Request::Webhooks => json!(client.webhooks().await?),
        Request::RemoveWebhook { app_name } => {
            client.remove_webhook(&app_name).await?;
            json!(null)
        }
        Request::Wake => {
            client.inner.wake_chain.notify_one();
            client.inner.wake_connection.notify_one();
            json!(null)
        }
    })
}

/// Moves every confirmed payout that is worth it into the on-chain wallet, in one transaction.
///
/// # Errors
/// [`Error::NothingToSweep`]; the node's refusal.
pub async fn sweep(client: &SignerClient, feerate: Option<FeeRate>) -> Result<Swept> {
    let inner = &client.inner;
    let feerate = match feerate {
        Some(feerate) => feerate,
        None => inner.chain.fee_rate(6).await?,
    };
    // Anybody can pay dust to a script that was seen: what costs more than it brings is left.
    let cost = feerate.fee_vb(INPUT_VBYTES).unwrap_or(Amount::MAX);
    let known = inner.store.payouts().await?;
    let known = known
        .into_iter()
        .filter(|payout| payout.spent_by.is_none() && payout.amount > cost);
    let mut payouts = Vec::new();
    for payout in known.take(MOST_INPUTS) {
        // One that a fee child of ours spends is on its way already.
        let taken = inner
            .chain
            .mempool_spender(payout.outpoint)
            .await?
            .is_some();
        if !taken {
            payouts.push(payout);
        }
    }
    if payouts.is_empty() {
        return Err(Error::NothingToSweep);
    }
    let script = inner.wallet.new_address().await?.script_pubkey();
    let (transaction, fee) = build(inner, &payouts, script, feerate)?;
    let sat = transaction.output.iter().map(|o| o.value.to_sat()).sum();
    inner.wallet.record_unconfirmed(&transaction).await?;
    let txid = transaction.compute_txid();
    if let Err(error) = inner.chain.broadcast(&transaction).await {
        inner.wallet.forget_unconfirmed([txid]).await?;
        return Err(error.into());
    }
    Ok(Swept {
        txid,
        payouts: payouts.len(),
        sat,
        fee_sat: fee.to_sat(),
    })
}

fn build(
    client: &Inner,
    payouts: &[Payout],
    to: ScriptBuf,
    feerate: FeeRate,
) -> Result<(Transaction, Amount)> {
    let amounts = payouts.iter().map(|payout| payout.amount);
    let total = amounts.fold(Amount::ZERO, |sum, amount| {
        sum.checked_add(amount).unwrap_or(Amount::MAX_MONEY)
    });
    let mut transaction = draft(payouts.iter().map(|payout| payout.outpoint), to, total);
    let fee = feerate
        .fee_vb(transaction.vsize() as u64)
        .ok_or(Error::NothingToSweep)?;
    let rest = total.checked_sub(fee).filter(|rest| *rest >= DUST);
    let rest = rest.ok_or(Error::NothingToSweep)?;
    if let Some(output) = transaction.output.first_mut() {
        output.value = rest;
    }
    sign(client, &mut transaction, payouts)?;
    Ok((transaction, fee))
}

/// With witnesses of the final size.
fn draft(inputs: impl Iterator<Item = OutPoint>, to: ScriptBuf, total: Amount) -> Transaction {
    let input = |previous_output| TxIn {
        previous_output,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::from_slice(&[KEY_PATH_WITNESS]),
        ..TxIn::default()
    };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: inputs.map(input).collect(),
        output: vec![TxOut {
            value: total,
            script_pubkey: to,
        }],
    }
}

fn sign(client: &Inner, transaction: &mut Transaction, payouts: &[Payout]) -> Result<()> {
    let prevouts: Vec<TxOut> = payouts
        .iter()
        .map(|payout| TxOut {
            value: payout.amount,
            script_pubkey: client.keys.payout_script(payout.join_nonce),
        })
        .collect();
    let secp = Secp256k1::signing_only();
    let mut cache = SighashCache::new(&*transaction);
    let mut witnesses = Vec::with_capacity(payouts.len());
    for (index, payout) in payouts.iter().enumerate() {
        let sighash = cache
            .taproot_key_spend_signature_hash(
                index,
                &Prevouts::All(&prevouts),
                TapSighashType::Default,
            )
            .map_err(|error| Error::Task(error.to_string()))?;
        let mut signer = client.keys.payout_signer(payout.join_nonce);
        let message = Message::from_digest(sighash.to_byte_array());
        let signature = secp.sign_schnorr(&message, &signer);
        signer.non_secure_erase();
        witnesses.push(Witness::p2tr_key_spend(&taproot::Signature {
            signature,
            sighash_type: TapSighashType::Default,
        }));
    }
    for (input, witness) in transaction.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    Ok(())
}

/// What the user agreed to, as it is asked over the store.
fn agreed(consent: bool, max_fee_msat: Option<u64>) -> UpgradeOptions {
    UpgradeOptions {
        consent,
        max_fee: max_fee_msat.map(Msat),
    }
}
