//! What parts of moves mean for leaves on their way to the chain, on the coordinator's side.

use bitcoin::hashes::{Hash, ripemd160};
use bitcoin::script::Instruction;
use bitcoin::{Script, Transaction, Witness};
use lightning::chain::channelmonitor::Balance;
use lightning::ln::types::ChannelId;

use super::Core;
use crate::event::PaymentHash;
use crate::leaf::{Closing, HtlcView, LeafId, Record, Side, exit_by, exit_due};
use crate::moves::{PartBook, PartRecord, PartState};

impl Core {
    /// Whether a payment that comes over a leaf is of a part that we paid on.
    pub(super) fn is_paid_on(&self, from: LeafId, hash: PaymentHash) -> bool {
        self.parts.get(hash).is_some_and(|part| {
            part.side == Side::Lsp && part.from == from && part.state() == Some(PartState::PaidOn)
        })
    }

    /// The part that a payment of ours over a leaf belongs to.
    pub(super) fn part_to(&self, to: LeafId, hash: PaymentHash) -> Option<PartRecord> {
        let part = self.parts.get(hash)?;
        (part.side == Side::Lsp && part.to == to).then_some(part)
    }

    /// Parts that we paid on over a leaf, and are unresolved. Those whose payment only the peer's commitment has count as well: it may claim from that.
    pub(super) fn paid_on_over(&self, to: LeafId) -> impl Iterator<Item = PartRecord> {
        let open = self.parts.open_ones().into_iter();
        open.filter(move |part| part.to == to && part.state() == Some(PartState::PaidOn))
    }

    /// What we paid on is resolved on the chain before the old leaf has to go there. What the client has revealed to us we never fetch: we have been
    /// paid for it.
    pub(super) fn part_pending(&self, part: &PartRecord) -> HtlcView {
        let unresolved = part.preimage.is_none() && part.state().is_some();
        let from = self.book.get(part.from).filter(|_| unresolved);
        HtlcView::Outbound {
            upstream: from.map(|from| exit_by(part.incoming_expiry, from.exit_delay)),
        }
    }

    /// Whether a closed channel has nothing at risk but parts that we paid on over it, none of them due. LDK closes a channel 3 blocks after a payment
    /// out expired, whether or not its preimage is known; that is no reason to bring the leaf to the chain (protocol.md 7.2).
    pub(super) fn only_parts_wait(&self, leaf: &Record, balances: &[Balance]) -> bool {
        let height = self.book.height();
        let mut paid_on = self.paid_on_over(leaf.id).peekable();
        let mut waits = leaf.closed == Some(Closing::PartExpired) || paid_on.peek().is_some();
        let due = |part| exit_due(height, leaf.exit_delay, self.part_pending(&part)).is_some();
        if leaf.at_risk_until > height || paid_on.any(due) {
            return false;
        }
        for balance in balances {
            match balance {
                Balance::MaybeTimeoutClaimableHTLC { payment_hash, .. } => {
                    if self.part_to(leaf.id, PaymentHash(payment_hash.0)).is_none() {
                        return false;
                    }
                    waits = true;
                }
                Balance::MaybePreimageClaimableHTLC { .. }
                | Balance::ContentiousClaimable { .. } => return false,
                _ => {}
            }
        }
        waits
    }

    /// Whether a part's payment, though over, is still in its new channel: the client was not seen since it revealed the preimage.
    pub(super) fn lingers(&self, part: &PartRecord) -> bool {
        let to = self.book.get(part.to).and_then(|to| to.ldk_id);
        let monitor = to.and_then(|id| self.monitors.get_monitor(ChannelId(id)).ok());
        monitor.is_some_and(|monitor| {
            let balances = monitor.get_claimable_balances();
            balances.iter().any(|balance| {
                matches!(
                    balance,
                    Balance::MaybeTimeoutClaimableHTLC { payment_hash, .. }
                        if payment_hash.0 == part.hash
                )
            })
        })
    }
}

/// Whether a transaction does nothing but time out payments whose preimage the client gave us: never ours to fetch.
pub(super) fn robs(parts: &PartBook, transaction: &Transaction) -> bool {
    let revealed = |witness: &Witness| {
        timed_out(witness).is_some_and(|name| {
            parts.any_revealed(|hash| ripemd160::Hash::hash(&hash.0).to_byte_array() == name)
        })
    };
    let mut inputs = transaction.input.iter();
    !transaction.input.is_empty() && inputs.all(|input| revealed(&input.witness))
}

/// The name of the payment in an HTLC output that is spent by its timeout (BOLT 3): no preimage, and the hash's RIPEMD-160 in the script.
fn timed_out(witness: &Witness) -> Option<[u8; 20]> {
    let script = Script::from_bytes(witness.last()?);
    if !witness.second_to_last()?.is_empty() {
        return None;
    }
    let pushes = script
        .instructions()
        .filter_map(|instruction| match instruction {
            Ok(Instruction::PushBytes(bytes)) => <[u8; 20]>::try_from(bytes.as_bytes()).ok(),
            _ => None,
        });
    // The revocation key's hash comes first.
    pushes.last()
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use lightning::ln::chan_utils::{
        HTLCOutputInCommitment, TxCreationKeys, get_htlc_redeemscript,
    };
    use lightning::ln::channel_keys::{
        DelayedPaymentBasepoint, DelayedPaymentKey, HtlcBasepoint, HtlcKey, RevocationBasepoint,
        RevocationKey,
    };
    use lightning::types::features::ChannelTypeFeatures;
    use lightning::types::payment::PaymentHash as LdkHash;

    use super::*;

    fn script(offered: bool) -> Vec<u8> {
        let secp = Secp256k1::new();
        let key = SecretKey::from_slice(&[5; 32]).unwrap();
        let key = PublicKey::from_secret_key(&secp, &key);
        let htlc = |base: &HtlcBasepoint| HtlcKey::from_basepoint(&secp, base, &key);
        let base = HtlcBasepoint::from(key);
        let delayed = DelayedPaymentBasepoint::from(key);
        let keys = TxCreationKeys {
            per_commitment_point: key,
            revocation_key: RevocationKey::from_basepoint(
                &secp,
                &RevocationBasepoint::from(key),
                &key,
            ),
            broadcaster_htlc_key: htlc(&base),
            countersignatory_htlc_key: htlc(&base),
            broadcaster_delayed_payment_key: DelayedPaymentKey::from_basepoint(
                &secp, &delayed, &key,
            ),
        };
        let output = HTLCOutputInCommitment {
            offered,
            amount_msat: 1_000_000,
            cltv_expiry: 1_000,
            payment_hash: LdkHash([8; 32]),
            transaction_output_index: None,
        };
        let kind = ChannelTypeFeatures::anchors_zero_htlc_fee_and_dependencies();
        get_htlc_redeemscript(&output, &kind, &keys).to_bytes()
    }

    #[test]
    fn a_timeout_is_told_by_its_missing_preimage() {
        let name = ripemd160::Hash::hash(&[8; 32]).to_byte_array();
        for offered in [true, false] {
            let script = script(offered);
            let spend = |middle: &[u8]| Witness::from_slice(&[&[1; 64][..], middle, &script]);
            assert_eq!(timed_out(&spend(&[])), Some(name));
            assert_eq!(timed_out(&spend(&[9; 32])), None, "a claim");
        }
        assert_eq!(timed_out(&Witness::new()), None);
        assert_eq!(timed_out(&Witness::from_slice(&[[1; 64]])), None);
    }
}
