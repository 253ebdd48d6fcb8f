//! Signs sales, as buyer and as mate. Lives as long as the process: secret nonces are nowhere but in its machines.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ids::{FactoryId, SaleId};
use factory_tree::kit::ExitKit;
use factory_tree::sale::CoSigner;
use factory_tree::sale::cosigner::{
    CoSignerEffect, CoSignerEvent, CoSignerInput, CoSignerPhase, CoSignerStep, Secrets,
};
use factory_tree::sale::message::{Finals, Offer, SaleRound, Sign, ToCoSigner, ToSeller};
use factory_tree::sale::order::PurchaseState;
use factory_tree::sale::rules::SaleRule;
use factory_tree::units::Height;
use rand::RngCore;
use rand::rngs::OsRng;

use super::ground::{Ground, OwnNode};
use super::offers;
use crate::ceremony::{LeafSigner, blocking, refused};
use crate::client::Inner;
use crate::connection::Outgoing;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::{gate, leaf_at, leaf_to_be};
use crate::store::RefusedSale;

/// One machine for each stock this wallet shares: a newer offer takes the place of an older one.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) client: Arc<Inner>,
    ground: Arc<dyn Ground>,
    machines: HashMap<FactoryId, CoSigner>,
    /// Sales in the kit that wait for the Lightning node before they are acknowledged.
    owed: HashMap<FactoryId, SaleRound>,
}

/// Which attempt of which sale, for people.
fn name(round: SaleRound) -> String {
    format!("{}/{}", round.sale, round.attempt)
}

impl Driver {
    pub(crate) fn new(client: Arc<Inner>) -> Self {
        Self::on(client, Arc::new(OwnNode))
    }

    pub(super) fn on(client: Arc<Inner>, ground: Arc<dyn Ground>) -> Self {
        Self {
            client,
            ground,
            machines: HashMap::new(),
            owed: HashMap::new(),
        }
    }

    /// A message of a sale came.
    pub(crate) async fn received(&mut self, message: ToCoSigner, out: &Outgoing) -> Result<()> {
        match message {
            ToCoSigner::Offer(offer) => self.offered(*offer, out).await,
            ToCoSigner::Sign(sign) => self.asked(sign, out).await,
            ToCoSigner::Finals(finals) => self.completed(finals, out).await,
            ToCoSigner::Failed { round, reason } => match self.of_round(round) {
                Some(factory) => {
                    let input = CoSignerInput::Failed { round, reason };
                    self.input(factory, input, out).await
                }
                None => Ok(()),
            },
        }
    }

    /// The Lightning node came or went, or a session began: what waited for it is acknowledged.
    pub(crate) async fn look(&mut self, out: &Outgoing) -> Result<()> {
        let owed: Vec<(FactoryId, SaleRound)> = self.owed.drain().collect();
        for (factory, round) in owed {
            self.acknowledge(factory, round, out).await?;
        }
        Ok(())
    }

    fn of_round(&self, round: SaleRound) -> Option<FactoryId> {
        let mut machines = self.machines.iter();
        let found = machines.find(|(_, machine)| machine.round() == round);
        found.map(|(factory, _)| *factory)
    }

    async fn offered(&mut self, offer: Offer, out: &Outgoing) -> Result<()> {
        let round = offer.round;
        if let Some(factory) = self.of_round(round) {
            let again = CoSignerInput::Offer(Box::new(offer));
            return self.input(factory, again, out).await;
        }
        let Some((row, kit)) = offers::find(&self.client, offer.sale.stock).await? else {
            let reason = DeclineReason::Refused {
                rule: SaleRule::Stock.name().to_owned(),
                found: format!("no stock {} in this wallet", offer.sale.stock),
            };
            return self.decline(round, reason, out).await;
        };
        // Refused like anything out of order, but nobody honest makes it: the user is to know, whenever they look.
        if let Some(found) = offers::sold_before(&self.client, &kit, &offer.sale).await? {
            // Only the first one is kept: at the node's height, if the chain is not followed yet.
            let refused = RefusedSale {
                factory: row.factory,
                found,
                height: Height(self.client.tip_height().await.unwrap_or(0)),
            };
            self.client.store.add_refused_sale(&refused).await?;
        }
        if let Some(unfit) = offers::unfit(&self.client, &row).await? {
            return self.decline(round, unfit.reason(row.factory), out).await;
        }
        let agreed = match offers::agreed(&self.client, row.factory, &kit, &offer).await? {
            Ok(agreed) => agreed,
            Err(reason) => return self.decline(round, reason, out).await,
        };
        self.client.events.emit(Event::SaleOffered {
            round: name(round),
            factory: row.factory,
        });
        let secrets = self.secrets(&kit);
        let kit = ExitKit::clone(&kit);
        let step = blocking(move || {
            let mut seed = || {
                let mut bytes = [0; 32];
                OsRng.fill_bytes(&mut bytes);
                bytes
            };
            CoSigner::offered(offer, kit, agreed, secrets, &mut seed)
        })
        .await?;
        self.go(row.factory, step, out).await
    }

    /// Before anything is signed the factory is looked at again: much may have happened since the offer.
    async fn asked(&mut self, sign: Box<Sign>, out: &Outgoing) -> Result<()> {
        let round = sign.round;
        let Some(factory) = self.of_round(round) else {
            let text = "restarted since the join: the secret nonces are gone";
            let reason = DeclineReason::Unable(text.to_owned());
            return self.decline(round, reason, out).await;
        };
        let row = self.client.store.factory(factory).await?;
        if let Some(unfit) = offers::unfit(&self.client, &row).await? {
            self.machines.remove(&factory);
            return self.decline(round, unfit.reason(factory), out).await;
        }
        self.input(factory, CoSignerInput::Sign(sign), out).await
    }

    /// A complete sale is taken into the kit whatever became of the factory since it was signed, as long as that is ours.
    async fn completed(&mut self, finals: Box<Finals>, out: &Outgoing) -> Result<()> {
        let round = finals.round;
        let factory = match self.of_round(round) {
            Some(factory) => factory,
            None => match self.resumed(round).await? {
                Some((factory, machine)) => {
                    self.machines.insert(factory, machine);
                    factory
                }
                None => return Ok(()),
            },
        };
        if self.sound(factory).await?.is_none() {
            return Ok(());
        }
        self.input(factory, CoSignerInput::Finals(finals), out)
            .await
    }

    pub(super) fn secrets(&self, kit: &ExitKit) -> Secrets {
        let keys = &self.client.keys;
        Secrets {
            factory_secret: keys.factory_secret(kit.join_nonce),
            channel_signer: Arc::new(LeafSigner(Arc::clone(keys))),
        }
    }

    async fn decline(&self, round: SaleRound, reason: DeclineReason, out: &Outgoing) -> Result<()> {
        self.client.events.emit(refused(&reason));
        out.sale(&ToSeller::Decline { round, reason }).await
    }

    async fn input(
        &mut self,
        factory: FactoryId,
        input: CoSignerInput,
        out: &Outgoing,
    ) -> Result<()> {
        let Some(machine) = self.machines.remove(&factory) else {
            return Ok(());
        };
        let step = blocking(move || machine.step(input)).await?;
        self.go(factory, step, out).await
    }

    /// Does what a step asks for, in order.
    async fn go(&mut self, factory: FactoryId, step: CoSignerStep, out: &Outgoing) -> Result<()> {
        let round = step.state.round();
        self.machines.insert(factory, step.state);
        let mut queue = VecDeque::from(step.effects);
        while let Some(effect) = queue.pop_front() {
            match self.effect(factory, effect, out).await {
                Ok(more) => queue.extend(more),
                Err(error) if Inner::is_fatal(&error) => return Err(error),
                // What could not be stored is not sent: this attempt goes on without us.
                Err(
                    error @ (Error::Store(_)
                    | Error::Kit { .. }
                    | Error::Lightning(_)
                    | Error::NoLightning(_)),
                ) => {
                    tracing::error!(%error, "leaving the sale");
                    self.machines.remove(&factory);
                    let reason = DeclineReason::Unable(error.to_string());
                    return self.decline(round, reason, out).await;
                }
                Err(error) => return Err(error),
            }
        }
        // Finals that come once more are answered from the kit.
        let over = |machine: &CoSigner| machine.phase() >= CoSignerPhase::Acked;
        if self.machines.get(&factory).is_some_and(over) {
            self.machines.remove(&factory);
        }
        Ok(())
    }

    async fn effect(
        &mut self,
        factory: FactoryId,
        effect: CoSignerEffect,
        out: &Outgoing,
    ) -> Result<Vec<CoSignerEffect>> {
        let store = &self.client.store;
        match effect {
            CoSignerEffect::LoadSigned(outpoints) => {
                let records = store.signed(&outpoints).await?;
                return self.answer(factory, CoSignerInput::Signed(records)).await;
            }
            CoSignerEffect::StoreSigned { records, pending } => {
                store.record_sale(&records, factory, &pending).await?;
                fault::point("sale_guard_stored");
            }
            CoSignerEffect::StoreKit(kit) => self.store_kit(&kit).await?,
            CoSignerEffect::Rehearse(factory) => {
                let read = self.client.kits.read(factory).await;
                let result = read.map(drop).map_err(|error| error.to_string());
                return self.answer(factory, CoSignerInput::Rehearsed(result)).await;
            }
            CoSignerEffect::Send(message @ ToSeller::Join(_)) => {
                self.expect_bought(factory).await?;
                out.sale(&message).await?;
            }
            CoSignerEffect::Send(ToSeller::Ack(round)) => {
                self.acknowledge(factory, round, out).await?;
            }
            CoSignerEffect::Send(message) => out.sale(&message).await?,
            CoSignerEffect::Emit(event) => self.emit(factory, event),
            // The machine's phase says the same.
            CoSignerEffect::Finished(_) => {}
        }
        Ok(Vec::new())
    }

    /// Gives the machine what it asked for.
    async fn answer(
        &mut self,
        factory: FactoryId,
        input: CoSignerInput,
    ) -> Result<Vec<CoSignerEffect>> {
        let Some(machine) = self.machines.remove(&factory) else {
            return Ok(Vec::new());
        };
        let CoSignerStep { state, effects } = blocking(move || machine.step(input)).await?;
        self.machines.insert(factory, state);
        Ok(effects)
    }

    async fn store_kit(&self, kit: &ExitKit) -> Result<()> {
        let (client, factory) = (&self.client, kit.factory_id);
        let text = kit
            .to_json()
            .map_err(|cause| Error::Kit { factory, cause })?;
        client.store.replace_kit(factory, text.as_bytes()).await?;
        client.kits.replaced(factory).await;
        fault::point("sale_kit_stored");
        let bought = kit.sales.last().map(|sale| sale.id);
        if let Some(sale) = bought
            && client.store.purchase(sale).await?.is_some()
        {
            // Even one that was given up: the coordinator has completed it all the same.
            let note = "the coordinator opens the channel";
            let sold = PurchaseState::Sold;
            client.store.set_purchase(sale, sold, note, None).await?;
        }
        Ok(())
    }

    /// What we buy, or get for signing, is opened before the sale is complete: the Lightning node is told of it before we join.
    async fn expect_bought(&self, factory: FactoryId) -> Result<()> {
        let client = &self.client;
        let kit = client.kits.get(factory).await?;
        let txs = self.machines.get(&factory).and_then(CoSigner::txs);
        match txs.and_then(|txs| leaf_to_be(&kit, txs)) {
            #[cfg(feature = "fault-points")]
            Some(_) if crate::misbehave::refuses_sold_channel() => Ok(()),
            Some(leaf) => self.ground.expect(client, leaf).await,
            // We sign with the buyer, for nothing.
            None => Ok(()),
        }
    }

    /// The Lightning node knows of our new channel, perhaps by a store that was lost since: from the acknowledgement on it is paid for.
    async fn acknowledge(
        &mut self,
        factory: FactoryId,
        round: SaleRound,
        out: &Outgoing,
    ) -> Result<()> {
        match self.expect(factory, round.sale).await {
            Ok(()) => {}
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a bought channel cannot be expected yet");
                self.owed.insert(factory, round);
                return Ok(());
            }
        }
        // What the channel is for may come over it as soon as this is told.
        if self.client.store.factory(factory).await?.stands() {
            gate(&self.client, factory, true).await?;
        }
        out.sale(&ToSeller::Ack(round)).await?;
        fault::point("sale_acked");
        // The exits go by the new kit.
        self.client.wake_chain.notify_one();
        self.client.sales.wake();
        Ok(())
    }

    async fn expect(&self, factory: FactoryId, sale: SaleId) -> Result<()> {
        let client = &self.client;
        let kit = client.kits.get(factory).await?;
        let sold = kit.sales.iter().find(|held| held.id == sale);
        let number = sold.map(|held| held.number);
        let channels = kit.channels();
        let own = channels
            .iter()
            .find(|own| own.sale.is_some() && own.sale == number);
        match own.and_then(|own| leaf_at(&kit, own)) {
            Some(leaf) => self.ground.expect(client, leaf).await,
            // We only signed with the buyer, for nothing.
            None => Ok(()),
        }
    }

    fn emit(&self, factory: FactoryId, event: CoSignerEvent) {
        let events = &self.client.events;
        match event {
            CoSignerEvent::OfferChecked { round } => {
                tracing::debug!(round = %name(round), "the offer passed every check");
            }
            CoSignerEvent::Refused { reason, .. } => events.emit(refused(&reason)),
            CoSignerEvent::Signed { round } => events.emit(Event::SaleSigned {
                round: name(round),
                factory,
            }),
            CoSignerEvent::KitStored { round } => events.emit(Event::SaleStored {
                round: name(round),
                factory,
            }),
            CoSignerEvent::AttemptFailed { round, reason } => events.emit(Event::SaleFailed {
                round: name(round),
                factory,
                reason: fail_text(&reason),
            }),
        }
    }
}

/// Why an attempt failed, for people.
fn fail_text(reason: &factory_tree::sale::message::FailReason) -> String {
    use factory_tree::sale::message::FailReason;
    match reason {
        FailReason::Silent => "some did not answer in time".to_owned(),
        FailReason::Guilty => "some sent invalid signatures".to_owned(),
        FailReason::Declined => "some declined".to_owned(),
        FailReason::Restarted => "the coordinator was restarted".to_owned(),
        FailReason::Cancelled => "it was taken back".to_owned(),
        FailReason::Unable(why) => format!("the coordinator cannot go on: {why}"),
    }
}
