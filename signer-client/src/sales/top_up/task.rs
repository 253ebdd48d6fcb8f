//! Looks, asks and buys. One purchase at a time; what is bought goes on like every other (`desk`).

use std::sync::Arc;
use std::time::Duration;

use channel_host::Msat;
use tokio::time::MissedTickBehavior;

use super::super::UpgradeOptions;
use super::super::api::{buy_in_turn, quote_from};
use super::super::shop::Shop;
use super::decide::{Memory, Offer, Question, weigh};
use super::facts::facts;
use super::{Hold, TopUpState, tell};
use crate::client::{Inner, Shutdown, SignerClient};
use crate::config::TopUpConfig;
use crate::error::Result;
use crate::lightning::{ChannelView, LightningBalance};

/// How often to look: channels come and go without a word.
const LOOK: Duration = Duration::from_secs(2);

/// Buys what is to be bought until told to stop.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let client = SignerClient { inner: client };
    let mut buyer = Buyer::new(client.inner.config.top_up);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = look.tick() => {}
        }
        match look_at(&client, &mut buyer).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => tracing::debug!(%error, "what can be received is looked at again"),
            Ok(()) => {}
        }
    }
}

async fn look_at(client: &SignerClient, buyer: &mut Buyer) -> Result<()> {
    let (inner, channels) = (&client.inner, client.channels().await?);
    buyer.look(inner, client, &channels, inner.now().time).await
}

/// Who buys.
#[derive(Debug)]
pub(in crate::sales) struct Buyer {
    policy: TopUpConfig,
    memory: Memory,
}

impl Buyer {
    pub(in crate::sales) fn new(policy: TopUpConfig) -> Self {
        let memory = Memory::default();
        Self { policy, memory }
    }

    /// Does what is due. `channels`: as they are; `now`: Unix time.
    pub(in crate::sales) async fn look(
        &mut self,
        client: &Inner,
        shop: &dyn Shop,
        channels: &[ChannelView],
        now: u64,
    ) -> Result<()> {
        let facts = facts(client, &self.policy, channels, now).await?;
        let question = match self.memory.decide(&self.policy, &facts) {
            Ok(question) => question,
            Err(hold) => {
                tell(client, hold);
                return Ok(());
            }
        };
        let bought = self.buy(client, shop, channels, now, question).await;
        self.memory.asked(now);
        let hold = match bought {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(hold)) => hold,
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => Hold::new(TopUpState::Refused, error.to_string()),
        };
        self.memory.refused(now, hold.clone());
        tell(client, hold);
        Ok(())
    }

    /// Asks, and buys if nothing has changed meanwhile and the price is one to pay; why not, if it is not.
    async fn buy(
        &mut self,
        client: &Inner,
        shop: &dyn Shop,
        channels: &[ChannelView],
        now: u64,
        question: Question,
    ) -> Result<Result<(), Hold>> {
        let Question {
            factory, amount, ..
        } = question;
        let quoted = quote_from(client, shop, Some(factory), amount).await?;
        let offer = Offer {
            fee: Msat(quoted.quote.fee_msat),
            needs_consent: quoted.needs_consent,
            spendable: Msat(LightningBalance::of(channels).lightning_spendable_msat),
        };
        // Somebody else may have bought, or begun to leave, while the coordinator was asked.
        let _turn = client.sales.turn.lock().await;
        let facts = facts(client, &self.policy, channels, now).await?;
        let most = match self.memory.decide(&self.policy, &facts) {
            Ok(again) => again.most,
            Err(hold) => return Ok(Err(hold)),
        };
        if let Err(hold) = weigh(&self.policy, most, offer) {
            return Ok(Err(hold));
        }
        let options = UpgradeOptions {
            consent: false,
            max_fee: Some(most),
        };
        let signed = &quoted.signed;
        buy_in_turn(client, shop, signed, options, offer.spendable, true).await?;
        Ok(Ok(()))
    }
}
