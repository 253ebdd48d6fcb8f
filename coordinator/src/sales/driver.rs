//! Drives one paid order: waits for the stock's clients, and signs with them, attempt after attempt (`attempt`). What is complete is
//! delivered (`delivery`).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use channel_host::LeafId;
use factory_tree::ids::{ClientId, LeafId as OurLeafId, SaleId};
use factory_tree::sale::message::SaleRound;
use factory_tree::sale::order::{PaidBy, PurchaseState, Quote};
use factory_tree::sale::seller::{Phase, Seller, SellerInput};
use factory_tree::sale::{Sale, Stock};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::attempt::Attempted;
use super::channel;
use super::error::SalesError;
use super::records::Entry;
use super::stocks::{self, KnownStock};
use super::{Mail, order, payment};
use crate::context::Context;
use crate::fault;
use crate::keys::FreshSeed;
use crate::store::sales::{self as rows, ClientChannel, SaleRow};
use crate::store::{attempts, bonus};
use crate::webhooks::Why;

/// Attempts in one run: who fails so often will not succeed.
const MOST_ATTEMPTS: u32 = 8;
/// Before the second attempt; doubled for each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at a channel that does not stand yet.
pub(super) const CHANNEL_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries to take the payment, and two wakings of clients who are away.
pub(super) const CALM_PAUSE: Duration = Duration::from_secs(30);

/// Why a driver ends before its sale does.
#[derive(Debug)]
pub(super) enum Stop {
    /// The coordinator goes down; the sale goes on after the restart.
    Shutdown,
    /// Nothing more can be done.
    Over,
}

/// One sale's driver.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) ctx: Arc<Context>,
    pub(super) row: SaleRow,
    /// What it makes for those who sign with the buyer.
    pub(super) bonus: Vec<ClientChannel>,
    pub(super) inputs: VecDeque<SellerInput>,
    pub(super) wakes: Vec<(Instant, SaleRound, Phase)>,
    /// Who has it in its exit kit, as far as we were told since the start.
    pub(super) acked: HashSet<ClientId>,
    /// Whether all have.
    pub(super) delivered: bool,
    pub(super) known: KnownStock,
    /// When the node was asked to take the payment.
    pub(super) claimed: Option<Instant>,
    /// The chain transaction is complete: next is the channel.
    pub(super) must_open: bool,
    /// Why somebody does not take part, whatever is tried again; one that only could not go on is asked again.
    pub(super) declined: Option<String>,
    /// Changes with the node's channels.
    pub(super) news: watch::Receiver<u64>,
    /// Whose faults were counted: a client is silent once in a sale, however often it is asked.
    pub(super) counted: HashSet<ClientId>,
    pub(super) factory_fresh: FreshSeed,
    pub(super) mailbox: mpsc::Receiver<Mail>,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) chain: watch::Receiver<crate::context::ChainState>,
}

/// Starts the task of a sale.
pub(super) fn spawn(ctx: &Arc<Context>, sale: SaleId, shutdown: watch::Receiver<bool>) {
    let Some(mailbox) = ctx.sales.register(sale) else {
        return;
    };
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let begun = Driver::begin(&ctx, sale, mailbox, shutdown).await;
        if let Some(driver) = begun {
            // Why it ended is written down already.
            let _ = driver.run().await;
        }
        ctx.sales.unregister(sale);
    });
}

impl Driver {
    /// `None`: there is nothing to be done about it, or nothing can be done now.
    async fn begin(
        ctx: &Arc<Context>,
        sale: SaleId,
        mailbox: mpsc::Receiver<Mail>,
        shutdown: watch::Receiver<bool>,
    ) -> Option<Self> {
        let found = async {
            let read = ctx
                .store
                .read(async |tx| Ok((rows::get(tx, sale).await?, bonus::of_sale(tx, sale).await?)));
            let (Some(row), given) = read.await? else {
                return Ok(None);
            };
            let (factory, position) = (row.order.factory, row.order.position);
            let known = stocks::known(ctx, factory, position).await?;
            let Some(known) = known else { return Ok(None) };
            let round = known.factory.round;
            let fresh = ctx
                .store
                .read(async |tx| attempts::fresh(tx, round).await)
                .await?;
            Ok::<_, SalesError>(Some((row, given, known, fresh)))
        };
        let (row, bonus, known, factory_fresh) = match found.await {
            Ok(found) => found?,
            Err(error) => {
                // Tried again at the next look.
                tracing::error!(%error, %sale, "a sale cannot go on now");
                return None;
            }
        };
        ctx.sales.concerns(sale, &known.clients);
        Some(Self {
            chain: ctx.chain.subscribe(),
            ctx: Arc::clone(ctx),
            inputs: VecDeque::new(),
            wakes: Vec::new(),
            acked: HashSet::new(),
            delivered: row.delivered,
            claimed: None,
            must_open: false,
            declined: None,
            news: ctx.lightning.changes(),
            counted: HashSet::new(),
            row,
            bonus,
            known,
            factory_fresh,
            mailbox,
            shutdown,
        })
    }

    async fn run(mut self) -> Result<(), Stop> {
        let machine = match (&self.row.sold, self.row.state) {
            (None, PurchaseState::Paid) => Some(self.sell().await?),
            (Some(_), _) if self.delivered => None,
            (Some(sold), _) => {
                let sold = sold.clone();
                let setup = self.setup(sold.sale.clone())?;
                Some(Seller::resume(setup, sold).map_err(|error| self.damaged(&error))?)
            }
            (None, _) => return Ok(()),
        };
        self.deliver(machine).await
    }

    pub(super) fn damaged(&self, error: &dyn std::fmt::Display) -> Stop {
        tracing::error!(%error, sale = %self.row.order.sale, "a stored sale does not fit its stock");
        Stop::Over
    }

    pub(super) fn id(&self) -> SaleId {
        self.row.order.sale
    }

    pub(super) fn buyer(&self) -> ClientId {
        self.row.order.client
    }

    // ---- until it is complete ------------------------------------------------------------------------------------

    /// Attempts until one is complete; or the payment goes back.
    async fn sell(&mut self) -> Result<Seller, Stop> {
        let patience = Duration::from_secs(match self.row.order.paid_by.jit() {
            // A payer waits.
            Some(_) => self.ctx.config.jit.stock_patience(),
            None => self.ctx.config.sales.wake_seconds,
        });
        let until = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        for _ in 0..MOST_ATTEMPTS {
            if let Err(reason) = self.gather(until).await? {
                return Err(self.give_up(&reason).await?);
            }
            match self.attempt().await? {
                Attempted::Sold(machine) => return Ok(*machine),
                Attempted::Failed { again, reason }
                    if !again
                        || (self.row.order.paid_by.jit().is_some() && Instant::now() >= until) =>
                {
                    return Err(self.give_up(&reason).await?);
                }
                Attempted::Failed { reason, .. } => {
                    let note = format!("{reason}; another attempt follows");
                    self.write(&Entry::Note(note)).await?;
                }
            }
            if let Some(reason) = self.rest(pause).await? {
                return Err(self.give_up(&reason).await?);
            }
            pause = pause.saturating_mul(2);
        }
        Err(self.give_up("too many attempts failed").await?)
    }

    /// Waits until every client of the stock is there, and the payment; or why that is no use.
    async fn gather(&mut self, until: Instant) -> Result<Result<(), String>, Stop> {
        let mut sessions = self.ctx.sessions.changes();
        loop {
            if let Some(reason) = self.obstacle().await? {
                return Ok(Err(reason));
            }
            let away = self.known.clients.iter();
            let mut away = away.filter(|client| !self.ctx.sessions.is_connected(client));
            let first = away.next();
            let is_paid = self.is_paid();
            if first.is_none() && is_paid {
                return Ok(Ok(()));
            }
            for client in first.into_iter().chain(away) {
                self.ctx.webhooks.wake(*client, Why::Sale);
            }
            if Instant::now() >= until {
                return Ok(Err(if is_paid { NOBODY_CAME } else { GONE }.to_owned()));
            }
            let pause = if is_paid { CALM_PAUSE } else { FIRST_PAUSE };
            let step = tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return Err(Stop::Shutdown),
                mail = self.mailbox.recv() => mail,
                _ = sessions.changed() => continue,
                _ = self.chain.changed() => continue,
                () = tokio::time::sleep_until(until.min(Instant::now() + pause)) => continue,
            };
            match step {
                Some(Mail::Cancel) => return Ok(Err(BUYER_CANCELLED.to_owned())),
                // Of an attempt that is over.
                Some(Mail::Client { .. } | Mail::Connected(_) | Mail::Look) => {}
                None => return Err(Stop::Shutdown),
            }
        }
    }

    /// A pause between two attempts; `Some`: nothing more is tried.
    async fn rest(&mut self, pause: Duration) -> Result<Option<String>, Stop> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return Err(Stop::Shutdown),
                mail = self.mailbox.recv() => match mail {
                    Some(Mail::Cancel) => return Ok(Some(BUYER_CANCELLED.to_owned())),
                    Some(_) => {}
                    None => return Err(Stop::Shutdown),
                },
                () = tokio::time::sleep_until(until) => return Ok(None),
            }
        }
    }

    /// Why nothing can be signed now, nor later: the factory as it is now, the time, and the payment.
    async fn obstacle(&mut self) -> Result<Option<String>, Stop> {
        let (factory, position) = (self.row.order.factory, self.row.order.position);
        loop {
            match stocks::known(&self.ctx, factory, position).await {
                Ok(Some(known)) => break self.known = known,
                Ok(None) => return Ok(Some("the stock is gone".to_owned())),
                Err(SalesError::Store(error)) => self.pause(error).await?,
                Err(error) => return Err(self.damaged(&error)),
            }
        }
        let height = self.ctx.height();
        if let Err(why) = self.known.is_open(height) {
            return Ok(Some(why.to_string()));
        }
        if height > self.row.order.sign_until.0 {
            return Ok(Some("the quote does not hold any more".to_owned()));
        }
        // Perhaps it was given up, and we died before that was stored.
        let mut leaves = self.leaf_ids().into_iter();
        if leaves.any(|leaf| self.ctx.lightning.is_over(LeafId(leaf.0))) {
            return Ok(Some(channel::OVER.to_owned()));
        }
        let due = self.row.order.paid_by.jit().is_none() && self.is_due(height);
        Ok(due.then(|| TOO_LONG.to_owned()))
    }

    /// Whether what pays for it is here. After a start Lightning may have to tell of it anew.
    pub(super) fn is_paid(&self) -> bool {
        let (order, lightning) = (&self.row.order, &self.ctx.lightning);
        match &order.paid_by {
            PaidBy::Invoice => lightning.holds(order.hash),
            PaidBy::Lsps1(id) => lightning.holds(self.ctx.keys.lsps1_hash(id)),
            PaidBy::Jit(scid) => lightning.jit_waits(scid.0),
        }
    }

    /// Whether the payment has to go back now; that of a just-in-time order, whether it has.
    pub(super) fn is_due(&self, height: u32) -> bool {
        if let Some(scid) = self.row.order.paid_by.jit() {
            return !self.ctx.lightning.jit_waits(scid.0);
        }
        let until = self.row.held_until.unwrap_or(0);
        height >= payment::release_at(&self.ctx, until, &self.known)
    }

    pub(super) fn terms(&self) -> Result<Sale, Stop> {
        let order = &self.row.order;
        let quote = Quote::parse(&order.quote).map_err(|error| self.damaged(&error))?;
        let (keys, bought) = (&self.ctx.keys, order.bought());
        Ok(order::terms(
            keys,
            &quote,
            order.fresh,
            &bought,
            &self.bonus,
        ))
    }

    /// Of every channel it makes, the buyer's first.
    pub(super) fn leaf_ids(&self) -> Vec<OurLeafId> {
        let bonus = self.bonus.iter().map(|bonus| bonus.leaf_id);
        std::iter::once(self.row.order.leaf_id)
            .chain(bonus)
            .collect()
    }

    pub(super) fn stock(&self) -> Result<Stock, Stop> {
        let before = self.known.before(self.row.order.place);
        before.map_err(|error| self.damaged(&error))
    }

    /// Nothing comes of it: stored, then the payment goes back. The channel first, which must carry nothing and would be in the way of its client's
    /// payments, even where the terms are bound, and nothing else can be sold: a restart in between finds the sale still there, and comes here again.
    async fn give_up(&mut self, reason: &str) -> Result<Stop, Stop> {
        for leaf in self.leaf_ids() {
            channel::abandon(&self.ctx, LeafId(leaf.0)).await;
        }
        loop {
            let cancelled =
                payment::cancel(&self.ctx, &self.row, PurchaseState::Paid, reason).await;
            match cancelled {
                Ok(_) => break,
                Err(error) => self.pause(error).await?,
            }
        }
        fault::point("sale_cancelled");
        // Another channel is found for another order.
        if self.row.order.paid_by.is_invoice() {
            self.ctx.lightning.send_back(self.row.order.hash);
        }
        Ok(Stop::Over)
    }
}

pub(super) const BUYER_CANCELLED: &str = "the buyer took it back";
const NOBODY_CAME: &str = "not every client of the stock came in time";
pub(super) const GONE: &str = "the payment it was for is not here any more";
pub(super) const TOO_LONG: &str = "the payment could not be held any longer";
