//! A complete sale: it is given to every client of the stock, its channel opened, and the payment taken.

use std::time::Duration;

use bitcoin::OutPoint;
use bitcoin::secp256k1::PublicKey;
use channel_host::Leaf;
use factory_tree::ids::ClientId;
use factory_tree::sale::order::PurchaseState;
use factory_tree::sale::seller::{Seller, SellerInput, SellerStep};
use tokio::time::Instant;

use super::channel::{self, Look};
use super::driver::{CALM_PAUSE, CHANNEL_PAUSE, Driver, Stop};
use super::records::Entry;
use super::{Mail, payment};
use crate::webhooks::Why;
use crate::{fault, lightning};

const NO_CHANNEL: &str = "it makes no channel";

impl Driver {
    /// Until every client has it, and its channel stands or never will. Who is away may come in days.
    pub(super) async fn deliver(&mut self, mut machine: Option<Seller>) -> Result<(), Stop> {
        let bought = self.leaves()?.into_iter().next();
        let (leaf, peer) = bought.ok_or_else(|| self.damaged(&NO_CHANNEL))?;
        // Who is here already was not announced.
        let here = self.known.clients.iter();
        let here = here.filter(|client| self.ctx.sessions.is_connected(client));
        self.inputs
            .extend(here.map(|client| SellerInput::Connected(*client)));
        loop {
            while let Some(input) = self.inputs.pop_front() {
                let Some(state) = machine.take() else {
                    continue;
                };
                let SellerStep { state, effects } = state.step(input);
                machine = Some(state);
                self.execute_all(effects).await?;
            }
            let pause = self.channel(&leaf, peer).await?;
            if (self.delivered && pause.is_none()) || self.is_expired() {
                return Ok(());
            }
            self.wake_away();
            tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return Err(Stop::Shutdown),
                mail = self.mailbox.recv() => match mail {
                    Some(Mail::Client { client, message }) => {
                        self.inputs.push_back(SellerInput::Message { client, message });
                    }
                    Some(Mail::Connected(client)) => self.inputs.push_back(SellerInput::Connected(client)),
                    // Too late.
                    Some(Mail::Cancel | Mail::Look) => {}
                    None => return Err(Stop::Shutdown),
                },
                _ = self.news.changed() => {}
                _ = self.chain.changed() => {}
                () = tokio::time::sleep(pause.unwrap_or(CALM_PAUSE)) => {}
            }
        }
    }

    /// A client has it in its exit kit. A bonus of its own may be used from now on: nothing undoes a complete sale, and nobody pays for it. Would it
    /// wait for the buyer, that could keep its mates from being paid: LDK chooses the channel with the least room, gate or not.
    pub(super) async fn take_ack(&mut self, client: ClientId) -> Result<(), Stop> {
        self.acked.insert(client);
        tracing::debug!(%client, sale = %self.id(), "a client has a sale in its exit kit");
        if self.bonus.iter().any(|bonus| bonus.client == client) {
            self.write(&Entry::BonusAcked(client)).await?;
            self.ctx.lightning.look_again();
            lightning::greet(&self.ctx, client).await;
        }
        Ok(())
    }

    /// The channels it makes, and whose they are: the buyer's first.
    pub(super) fn leaves(&self) -> Result<Vec<(Leaf, PublicKey)>, Stop> {
        let stock = self.stock()?;
        let drafted = stock.draft(&self.terms()?);
        let txs = drafted.map_err(|error| self.damaged(&error))?;
        let all = std::iter::once(self.row.order.bought()).chain(self.bonus.iter().copied());
        let leaves = all.map(|channel| {
            let fresh = self.row.order.fresh;
            let leaf = lightning::sold_leaf_of(&txs, channel.position, stock.schedule(), fresh)?;
            Some((leaf, PublicKey::from_slice(&channel.client.0).ok()?))
        });
        let leaves: Option<Vec<_>> = leaves.collect();
        leaves.ok_or_else(|| self.damaged(&NO_CHANNEL))
    }

    fn is_expired(&self) -> bool {
        self.ctx.height() >= self.known.stock.expiry().0
    }

    fn wake_away(&self) {
        if self.delivered {
            return;
        }
        let away = self.known.clients.iter();
        let away = away.filter(|client| !self.acked.contains(client));
        for client in away.filter(|client| !self.ctx.sessions.is_connected(client)) {
            self.ctx.webhooks.wake(*client, Why::Sale);
        }
    }

    /// Looks after the channel and the payment; `Some`: there is more to be done, in so long at the latest.
    async fn channel(&mut self, leaf: &Leaf, peer: PublicKey) -> Result<Option<Duration>, Stop> {
        self.row = self.read().await?;
        if self.row.state != PurchaseState::Sold || self.row.ended_at.is_some() {
            return Ok(None);
        }
        let is_held = self.row.held_until.is_some();
        let look = channel::look(&self.ctx, leaf, peer).await;
        let due = is_held && (self.is_due(self.ctx.height()) || self.is_expired());
        match look {
            // Until the buyer has it in its exit kit, it is not served; one that does not come for it is not served for nothing.
            Look::Stands if due || self.delivered || self.acked.contains(&self.buyer()) => {
                self.stands(is_held, due).await
            }
            Look::Stands => Ok(Some(CHANNEL_PAUSE)),
            // It stood: whatever its client did to it since, its timeout pays the client.
            Look::Never(_) if is_held => self.take(due).await,
            Look::Never(why) => {
                self.write(&Entry::Ended(why)).await?;
                Ok(None)
            }
            Look::Waits if due => self.take(due).await,
            Look::Waits => Ok(Some(CHANNEL_PAUSE)),
        }
    }

    /// The channel stands: the payment is taken, if it is still there. That it was is told by the node, and stored then.
    async fn stands(&mut self, is_held: bool, due: bool) -> Result<Option<Duration>, Stop> {
        if self.claimed.is_none() {
            // What its client's invoices say of the way to it, and whether it may be paid over.
            self.ctx.lightning.look_again();
            let bonus = self.bonus.iter().map(|bonus| bonus.client);
            for client in bonus.chain([self.buyer()]) {
                lightning::greet(&self.ctx, client).await;
            }
        }
        if !is_held {
            let note = match self.row.order.paid_by.jit() {
                Some(_) => "paid for by a just-in-time order",
                None => "its payment had been sent back before the channel stood",
            };
            return self.settle(note).await;
        }
        self.take(due).await
    }

    /// Nothing is taken for this sale itself.
    async fn settle(&mut self, note: &str) -> Result<Option<Duration>, Stop> {
        let leaf = self.leaves()?.into_iter().next();
        let (leaf, _) = leaf.ok_or_else(|| self.damaged(&NO_CHANNEL))?;
        let outpoint = OutPoint::new(leaf.transaction.compute_txid(), leaf.vout);
        loop {
            match payment::settle(&self.ctx, &self.row, (0, note), Some(outpoint)).await {
                Ok(()) => return Ok(None),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// Takes the payment. What cannot be taken when it is due never can.
    async fn take(&mut self, due: bool) -> Result<Option<Duration>, Stop> {
        // Its own order takes that, which has its channel now.
        if self.row.order.paid_by.lsps1().is_some() {
            return self.settle("paid for by the order of a channel").await;
        }
        if self.claimed.is_some_and(|at| at.elapsed() < CALM_PAUSE) {
            return Ok(Some(CALM_PAUSE));
        }
        let preimage = self
            .ctx
            .keys
            .sale_preimage(self.id(), &self.row.order.quote);
        match self.ctx.lightning.claim(preimage).await {
            Ok(()) => {
                self.claimed = Some(Instant::now());
                fault::point("sale_claimed");
            }
            Err(error) if due => {
                tracing::warn!(%error, sale = %self.id(), "the payment of a sale cannot be taken any more");
                self.send_back("the payment could not be taken in time")
                    .await?;
            }
            Err(error) => {
                tracing::warn!(%error, sale = %self.id(), "the payment of a sale is not taken yet");
            }
        }
        Ok(Some(CALM_PAUSE))
    }

    /// Done before it is written down: after a crash in between it is done again, which changes nothing.
    async fn send_back(&mut self, note: &str) -> Result<(), Stop> {
        self.ctx.lightning.send_back(self.row.order.hash);
        self.write(&Entry::SentBack(note.to_owned())).await?;
        tracing::warn!(sale = %self.id(), note, "a channel is owed that nobody has paid for");
        Ok(())
    }
}
