//! The child that pays for a zero-fee parent (CPFP through its P2A anchor; BIP-431, BIP-433).

use std::collections::HashSet;
use std::fmt;

use bitcoin::key::{Keypair, TapTweak};
use bitcoin::{
    Address, Amount, FeeRate, Network, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn,
    TxOut, absolute, transaction,
};

use super::coins::sum;
use super::keys::{SECP, sign_key_path};
use super::select::fee_at;
use super::size::signed_vsize;
use super::{OnchainWallet, Result, WalletCoin, WalletError};

/// A TRUC child of an unconfirmed parent may not be larger (BIP-431).
const CHILD_LIMIT: u64 = 1_000;

/// What a replacement pays for its own relay on top of what it replaces: 1 sat/vB, the most that any node asks by default.
pub(super) const INCREMENTAL: FeeRate = FeeRate::BROADCAST_MIN;

/// An output of the parent that is ours by a key the wallet does not have: a payout, which can pay for its own parent.
#[derive(Clone)]
pub struct OwnPayout {
    /// Index in the parent.
    pub vout: u32,
    /// The internal key of a BIP-86 output, or its output key.
    pub key: Keypair,
}

impl fmt::Debug for OwnPayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnPayout")
            .field("vout", &self.vout)
            .finish_non_exhaustive()
    }
}

/// What a child is asked for.
#[derive(Clone, Debug)]
pub struct FeeChildRequest<'a> {
    /// The parent: version 3, unconfirmed.
    pub parent: &'a Transaction,
    /// Index of its P2A output.
    pub anchor: u32,
    /// The fee the parent pays itself.
    pub parent_fee: Amount,
    /// What parent and child together shall pay per virtual byte.
    pub feerate: FeeRate,
    /// Outputs of the parent to pay from, before any coin of the wallet is touched.
    pub payouts: &'a [OwnPayout],
    /// Where the rest goes; `None`: to the wallet.
    pub change: Option<ScriptBuf>,
    /// Coins of the wallet to leave alone, besides the reserved ones.
    pub avoid: &'a HashSet<OutPoint>,
    /// The fees of what the child replaces in the mempool, above all of another child at the anchor: they must be outbid (BIP-125
    /// rules 3 and 4). [`OnchainWallet::publish`] finds this out.
    pub outbid: Option<Amount>,
    /// The most the child may pay.
    pub budget: Amount,
}

/// A signed child. It is not recorded: see [`OnchainWallet::record_unconfirmed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeeChild {
    /// Version 3, signed.
    pub transaction: Transaction,
    /// Its own fee.
    pub fee: Amount,
    /// The coin of the wallet that it spends, if it needs one.
    pub coin: Option<OutPoint>,
}

/// Virtual bytes of a child that spends an anchor and this many taproot key-path inputs into one output.
#[must_use]
pub fn child_vsize(signed_inputs: usize, change: &Script) -> u64 {
    let inputs = (0..=signed_inputs).map(|n| OutPoint {
        vout: u32::from(n > 0),
        ..OutPoint::null()
    });
    signed_vsize(
        &draft(
            inputs,
            TxOut {
                value: Amount::ZERO,
                script_pubkey: change.to_owned(),
            },
        ),
        |input| input.previous_output.vout > 0,
    )
}

fn draft(inputs: impl Iterator<Item = OutPoint>, output: TxOut) -> Transaction {
    let input = |previous_output| TxIn {
        previous_output,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    Transaction {
        version: transaction::Version(3),
        lock_time: absolute::LockTime::ZERO,
        input: inputs.map(input).collect(),
        output: vec![output],
    }
}

/// An input with what it spends and, but for the anchor, the key that signs it.
struct Spend {
    outpoint: OutPoint,
    prevout: TxOut,
    signer: Option<Keypair>,
}

impl OnchainWallet {
    /// Builds and signs a child that brings the parent to a feerate, from the parent's own payouts if they suffice, else with one
    /// confirmed coin: first one that a child to be replaced spends already, else the smallest that suffices.
    ///
    /// # Errors
    /// [`WalletError::NoConfirmedCoin`], [`WalletError::FeeOverBudget`], [`WalletError::ChildTooLarge`], [`WalletError::UnfitParent`],
    /// [`WalletError::WrongPayoutKey`].
    pub async fn fee_child(&self, request: &FeeChildRequest<'_>) -> Result<FeeChild> {
        let mut inputs = request.parent_inputs()?;
        let mut state = self.state.lock().await;
        let change = match &request.change {
            Some(script) => script.clone(),
            None => state.change_script().await?,
        };
        let brought = sum(inputs.iter().map(|input| &input.prevout.value))?;
        let dust = change.minimal_non_dust();

        let payouts = request.payouts.len();
        if payouts > 0 {
            let fee = request.child_fee(payouts, &change)?;
            if let Some(rest) = brought.checked_sub(fee).filter(|rest| *rest >= dust) {
                return request.finish(
                    inputs,
                    TxOut {
                        value: rest,
                        script_pubkey: change,
                    },
                    fee,
                    None,
                );
            }
        }

        let fee = request.child_fee(payouts.saturating_add(1), &change)?;
        let needed = fee.checked_add(dust).ok_or(WalletError::Overflow)?;
        let needed = needed.checked_sub(brought).unwrap_or(Amount::ZERO);
        let rivals = state.coins_of_rivals(request.anchor_outpoint(), request.avoid);
        let coin = choose(rivals, state.free_coins(request.avoid), needed)
            .ok_or(WalletError::NoConfirmedCoin { needed })?;
        let rest = brought
            .checked_add(coin.txout.value)
            .and_then(|sum| sum.checked_sub(fee))
            .ok_or(WalletError::Overflow)?;
        let signer = Some(state.keypair_of(&coin.txout, coin.outpoint)?);
        inputs.push(Spend {
            outpoint: coin.outpoint,
            prevout: coin.txout,
            signer,
        });
        request.finish(
            inputs,
            TxOut {
                value: rest,
                script_pubkey: change,
            },
            fee,
            Some(coin.outpoint),
        )
    }
}

/// A coin that the replaced child spends costs nothing more; of the others the smallest, so that large ones stay for worse days.
fn choose(rivals: Vec<WalletCoin>, free: Vec<WalletCoin>, needed: Amount) -> Option<WalletCoin> {
    let smallest = |coins: Vec<WalletCoin>| {
        coins
            .into_iter()
            .filter(|coin| coin.txout.value >= needed)
            .min_by_key(|coin| (coin.txout.value, coin.outpoint))
    };
    smallest(rivals).or_else(|| smallest(free))
}

impl FeeChildRequest<'_> {
    fn anchor_outpoint(&self) -> OutPoint {
        OutPoint {
            txid: self.parent.compute_txid(),
            vout: self.anchor,
        }
    }

    fn parent_output(&self, vout: u32) -> Option<&TxOut> {
        self.parent.output.get(usize::try_from(vout).ok()?)
    }

    /// The anchor, then the payouts.
    fn parent_inputs(&self) -> Result<Vec<Spend>> {
        if self.parent.version != transaction::Version(3) {
            return Err(WalletError::UnfitParent {
                what: "it is not version 3",
            });
        }
        let anchor = self
            .parent_output(self.anchor)
            .filter(|output| output.script_pubkey == ScriptBuf::new_p2a());
        let anchor = anchor.ok_or(WalletError::UnfitParent {
            what: "the output named as its anchor is not P2A",
        })?;
        let outpoint = self.anchor_outpoint();
        let mut inputs = vec![Spend {
            outpoint,
            prevout: anchor.clone(),
            signer: None,
        }];
        for payout in self.payouts {
            let prevout = self
                .parent_output(payout.vout)
                .ok_or(WalletError::WrongPayoutKey { vout: payout.vout })?
                .clone();
            let signer = payout
                .signer_of(&prevout)
                .ok_or(WalletError::WrongPayoutKey { vout: payout.vout })?;
            inputs.push(Spend {
                outpoint: OutPoint {
                    vout: payout.vout,
                    ..outpoint
                },
                prevout,
                signer: Some(signer),
            });
        }
        Ok(inputs)
    }

    /// What the child must pay: for both at the feerate, for itself alone what any node asks, and more than what it replaces.
    fn child_fee(&self, signed_inputs: usize, change: &Script) -> Result<Amount> {
        let vsize = child_vsize(signed_inputs, change);
        if vsize > CHILD_LIMIT {
            return Err(WalletError::ChildTooLarge {
                vsize,
                limit: CHILD_LIMIT,
            });
        }
        let parent = u64::try_from(self.parent.vsize()).map_err(|_| WalletError::Overflow)?;
        let both = fee_at(
            self.feerate,
            parent.checked_add(vsize).ok_or(WalletError::Overflow)?,
        )?;
        let alone = fee_at(FeeRate::BROADCAST_MIN, vsize)?;
        let outbid = match self.outbid {
            Some(fee) => fee
                .checked_add(fee_at(INCREMENTAL, vsize)?)
                .ok_or(WalletError::Overflow)?,
            None => Amount::ZERO,
        };
        let needed = both
            .checked_sub(self.parent_fee)
            .unwrap_or(Amount::ZERO)
            .max(alone)
            .max(outbid);
        if needed > self.budget {
            return Err(WalletError::FeeOverBudget {
                needed,
                budget: self.budget,
            });
        }
        Ok(needed)
    }

    fn finish(
        &self,
        inputs: Vec<Spend>,
        output: TxOut,
        fee: Amount,
        coin: Option<OutPoint>,
    ) -> Result<FeeChild> {
        let mut transaction = draft(inputs.iter().map(|input| input.outpoint), output);
        let signers: Vec<Option<Keypair>> = inputs.iter().map(|input| input.signer).collect();
        let prevouts: Vec<TxOut> = inputs.into_iter().map(|input| input.prevout).collect();
        sign_key_path(&mut transaction, &prevouts, &signers)?;
        Ok(FeeChild {
            transaction,
            fee,
            coin,
        })
    }
}

impl OwnPayout {
    /// The key that signs for this output: the given one, tweaked as BIP-86 says or as it is.
    fn signer_of(&self, output: &TxOut) -> Option<Keypair> {
        // The script does not depend on the network.
        let script = |key: Keypair| {
            let key =
                bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(key.x_only_public_key().0);
            Address::p2tr_tweaked(key, Network::Bitcoin).script_pubkey()
        };
        let tweaked = self.key.tap_tweak(&SECP, None).to_keypair();
        [tweaked, self.key]
            .into_iter()
            .find(|key| script(*key) == output.script_pubkey)
    }
}

#[cfg(test)]
#[path = "fee_child_tests.rs"]
mod tests;
