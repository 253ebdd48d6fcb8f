//! A wallet looks for the funding of a channel that is used before it confirms, before it gives away the preimage of what came over it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};
use chain::ChainError;
use lightning::ln::channel_state::ChannelDetails;
use lightning::types::payment::{PaymentHash as LdkHash, PaymentPreimage};
use tokio::time::timeout;

use super::Core;
use super::handle::Again;
use super::payments::{FAIL_BACK_BUFFER, Part};
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent, PaymentHash};
use crate::leaf::Side;
use crate::unseen::{Fate, Funding, Unseen, fate};

/// How often a funding is looked for while a payment waits for it. It goes out when the channel stands, as the payment does, so the first look may be
/// too early.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn parts_of(payment: &Unseen) -> Vec<Part> {
    let parts = payment.parts.iter();
    parts
        .map(|(channel, expiry)| (channel.map(u128::from_be_bytes), *expiry))
        .collect()
}

/// What the channel's funding must be; nothing pays a script that is not known.
fn funding_of(channel: &ChannelDetails) -> Funding {
    let script = channel.funding_redeem_script.clone().unwrap_or_default();
    let outpoint = channel.funding_txo;
    Funding {
        outpoint: outpoint.map_or(OutPoint::null(), |at| at.into_bitcoin_outpoint()),
        txout: TxOut {
            value: Amount::from_sat(channel.channel_value_satoshis),
            script_pubkey: script.to_p2wsh(),
        },
    }
}

/// No transaction has it.
fn never() -> Funding {
    Funding {
        outpoint: OutPoint::null(),
        txout: TxOut {
            value: Amount::ZERO,
            script_pubkey: ScriptBuf::new(),
        },
    }
}

impl Core {
    /// The fundings that these parts depend on and that are in no block: those of channels outside of factories that somebody opened to us.
    fn fundings(&self, parts: &[Part]) -> Vec<Funding> {
        // Only a wallet takes channels that are not confirmed.
        if self.config.side != Side::Client || self.config.allow_unfunded {
            return Vec::new();
        }
        let channels = self.manager.list_channels();
        let numbers = parts.iter().filter_map(|(number, _)| *number);
        let outside = numbers.filter(|number| !crate::is_leaf(*number));
        let fundings = outside.filter_map(|number| {
            let mut live = channels.iter();
            match live.find(|channel| channel.user_channel_id == number) {
                Some(channel) => {
                    let confirmed = channel.confirmations.unwrap_or(0) > 0;
                    (!channel.is_outbound && !confirmed).then(|| funding_of(channel))
                }
                // Closed in between, which proves nothing.
                None => self.awaited.by_channel(number).map(|_| never()),
            }
        });
        fundings.collect()
    }

    /// Whether part of a payment came over a channel whose funding was not seen.
    pub(super) fn is_unseen(&self, parts: &[Part]) -> bool {
        let fundings = self.fundings(parts);
        fundings.iter().any(|one| !self.unseen.has_seen(one))
    }

    /// Holds a payment until the funding is seen.
    pub(super) async fn hold_unseen(
        &self,
        (hash, amount): (LdkHash, Msat),
        preimage: Option<PaymentPreimage>,
        parts: &[Part],
    ) -> Result<(), Again> {
        let parts = parts.iter();
        let parts = parts.map(|(channel, expiry)| (channel.map(u128::to_be_bytes), *expiry));
        self.unseen.add(Unseen {
            hash: hash.0,
            amount_msat: amount.0,
            preimage: preimage.map(|preimage| preimage.0),
            parts: parts.collect(),
        })?;
        // As with every payment that is held: only a manager that knows it can claim it after a crash.
        self.save_all().map_err(NodeError::from)?;
        let hash = PaymentHash(hash.0);
        self.told(NodeEvent::FundingAwaited { hash, amount }).await
    }

    /// Claims the held payments whose funding was seen, and sends those back that cannot be held any longer.
    pub(super) async fn unseen_step(&self) -> Result<(), Again> {
        for payment in self.unseen.all() {
            let parts = parts_of(&payment);
            let expiry = parts.iter().map(|(_, expiry)| *expiry).min().unwrap_or(0);
            let last = expiry.saturating_sub(FAIL_BACK_BUFFER);
            let unseen = self.is_unseen(&parts);
            let hash = LdkHash(payment.hash);
            match fate(self.verdict(&parts), unseen, self.book.height(), last) {
                Fate::Wait => continue,
                Fate::Take => {
                    let preimage = payment.preimage.map(PaymentPreimage);
                    let amount = Msat(payment.amount_msat);
                    self.take_payment((hash, amount), preimage, &parts).await?;
                    // LDK's claim first: until then this is all that knows the preimage.
                    self.save_all().map_err(NodeError::from)?;
                }
                Fate::SendBack(reason) => self.refuse_payment(hash, reason).await?,
            }
            self.unseen.remove(&payment.hash)?;
            self.peers.process_events();
        }
        Ok(())
    }

    /// Looks at the chain for what payments wait for, beside everything else: the Bitcoin node may be slow to answer.
    pub(super) async fn look_for_fundings(self: Arc<Self>) {
        loop {
            let payments = self.unseen.all().into_iter();
            let wanted: HashSet<Funding> = payments
                .flat_map(|payment| self.fundings(&parts_of(&payment)))
                .collect();
            let waits = !wanted.is_empty();
            let mut seen = HashSet::new();
            for funding in wanted {
                match self.is_out(&funding).await {
                    Ok(true) => {
                        seen.insert(funding);
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "a channel's funding is looked for again"),
                }
            }
            self.unseen.found(seen);
            let news = self.unseen.wake.notified();
            if waits {
                // Late is no failure: it is looked for again.
                let _ = timeout(LOOK_EVERY, news).await;
            } else {
                news.await;
            }
        }
    }

    /// Whether it is in the mempool or a block. The mempool first: what is mined in between is found in the block.
    async fn is_out(&self, funding: &Funding) -> Result<bool, ChainError> {
        let chain = &self.config.chain;
        let waiting = chain.raw_mempool_transaction(funding.outpoint.txid).await?;
        if waiting.is_some_and(|transaction| funding.is_in(&transaction)) {
            return Ok(true);
        }
        let coin = chain.coin(funding.outpoint).await?;
        Ok(coin.is_some_and(|coin| coin.txout == funding.txout))
    }
}
