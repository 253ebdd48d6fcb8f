//! Sales from stocks (protocol.md section 6): quotes and orders are asked for by LSPS0, paid by hold invoices, signed over the clients' streams, and
//! end with a channel on the new leaf. One task drives each order that is paid, and is the only one to write about it.
//!
//! What is asked for is checked when it is quoted, when it is ordered, and when the payment is there: nothing is signed for who does not hold the
//! place. Until everything is signed and stored the payment can be sent back; from then on the sale is never undone.

mod attempt;
mod bonus;
mod channel;
mod config;
mod delivery;
mod driver;
mod effects;
mod error;
mod order;
mod others;
mod payment;
mod price;
mod quote;
mod records;
mod signer;
mod stocks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitcoin::OutPoint;
use channel_host::RpcError;
use factory_tree::ids::{ClientId, SaleId};
use factory_tree::sale::message::ToSeller;
use proto::session::ServiceError;
use proto::v1::ErrorCode;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::context::Context;
use crate::event::Event;
use crate::lsps::Refusal;
use crate::store;
use crate::store::sales as rows;

pub use bonus::bonus_place;
pub use config::SalesConfig;
pub use error::{NoSale, SalesError};
pub use order::{buy, cancel_purchase, get_purchase};
pub(crate) use others::{brings, ground};
pub use payment::{held, received};
pub(crate) use price::is_jit_ppm;
pub use price::{JitPrice, Price, PriceOverride};
pub use quote::get_quote;
pub(crate) use quote::price_for;
pub(crate) use stocks::{KnownStock, known, sells};

/// Messages that may wait for one sale; whoever sends more waits.
const MAILBOX: usize = 64;
/// Blocks between the last moment to claim a payment for sure and that at which it is sent back.
pub(crate) const MARGIN: u32 = 12;
/// Between two looks at orders that nobody pays.
const LOOK: Duration = Duration::from_secs(10);
/// How long nothing is quoted from a stock of which a client said that it signs for no sale.
const DECLINED_FOR: Duration = Duration::from_secs(3600);

/// What reaches a sale from outside.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A client's message.
    Client {
        /// Who.
        client: ClientId,
        /// What.
        message: ToSeller,
    },
    /// A client's stream came (back).
    Connected(ClientId),
    /// The buyer takes it back.
    Cancel,
    /// The order's row has changed.
    Look,
}

#[derive(Clone, Debug)]
struct Handle {
    mail: mpsc::Sender<Mail>,
    clients: Vec<ClientId>,
}

/// The sales under way.
#[derive(Debug)]
pub struct Sales {
    running: Mutex<BTreeMap<SaleId, Handle>>,
    /// Counts changes of `running`. Never touched while that is locked.
    changes: watch::Sender<u64>,
    /// Counts what may ask for a look at all orders.
    work: watch::Sender<u64>,
    /// Whether what can have a task has had one since the start.
    looked: AtomicBool,
    /// Stocks of which a client said that it signs for no sale, who, and when.
    declined: Mutex<HashMap<OutPoint, (ClientId, Instant)>>,
}

impl Default for Sales {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            changes: watch::Sender::new(0),
            work: watch::Sender::new(0),
            looked: AtomicBool::new(false),
            declined: Mutex::default(),
        }
    }
}

fn count(counter: &watch::Sender<u64>) {
    counter.send_modify(|count| *count = count.wrapping_add(1));
}

impl Sales {
    fn running(&self) -> MutexGuard<'_, BTreeMap<SaleId, Handle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declined(&self) -> MutexGuard<'_, HashMap<OutPoint, (ClientId, Instant)>> {
        self.declined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client will sign for nothing that is sold from a stock: nobody is to pay for the next one only to have it back.
    fn declines(&self, stock: OutPoint, client: ClientId) {
        self.declined().insert(stock, (client, Instant::now()));
    }

    /// Everybody did sign.
    fn signs(&self, stock: OutPoint) {
        self.declined().remove(&stock);
    }

    /// Who said so lately. That it still holds is found out by one more sale, not believed for ever.
    pub(crate) fn who_declines(&self, stock: OutPoint) -> Option<ClientId> {
        let mut declined = self.declined();
        declined.retain(|_, (_, at)| at.elapsed() < DECLINED_FOR);
        declined.get(&stock).map(|(client, _)| *client)
    }

    /// An order was paid.
    pub(crate) fn look_again(&self) {
        count(&self.work);
    }

    /// Whether what can have a task has had one since the start.
    fn has_looked(&self) -> bool {
        self.looked.load(Ordering::Acquire)
    }

    fn is_running(&self, sale: SaleId) -> bool {
        self.running().contains_key(&sale)
    }

    /// `None`: there is a task for it.
    fn register(&self, sale: SaleId) -> Option<mpsc::Receiver<Mail>> {
        let (mail, mailbox) = mpsc::channel(MAILBOX);
        {
            let mut running = self.running();
            if running.contains_key(&sale) {
                return None;
            }
            let clients = Vec::new();
            running.insert(sale, Handle { mail, clients });
        }
        count(&self.changes);
        Some(mailbox)
    }

    /// Who is to be heard of.
    fn concerns(&self, sale: SaleId, clients: &[ClientId]) {
        if let Some(handle) = self.running().get_mut(&sale) {
            handle.clients = clients.to_vec();
        }
    }

    fn unregister(&self, sale: SaleId) {
        self.running().remove(&sale);
        count(&self.changes);
    }

    /// Hands something to a sale's task, waiting while that is busy. False: there is none.
    pub(crate) async fn deliver(&self, sale: SaleId, mail: Mail) -> bool {
        let handle = self.running().get(&sale).cloned();
        match handle {
            Some(handle) => handle.mail.send(mail).await.is_ok(),
            None => false,
        }
    }

    /// A client's stream came (back).
    pub async fn connected(&self, client: ClientId) {
        let concerned: Vec<Handle> = {
            let running = self.running();
            let all = running.values();
            let all = all.filter(|handle| handle.clients.contains(&client));
            all.cloned().collect()
        };
        for handle in concerned {
            // A task that has ended needs not know.
            let _ = handle.mail.send(Mail::Connected(client)).await;
        }
    }

    /// Waits until a sale has a task.
    pub(crate) async fn begun(&self, sale: SaleId) {
        self.until(|running| running.contains_key(&sale)).await;
    }

    /// Waits until a sale has no task any more.
    pub(crate) async fn over(&self, sale: SaleId) {
        self.until(|running| !running.contains_key(&sale)).await;
    }

    /// Waits until none is under way.
    async fn idle(&self) {
        self.until(BTreeMap::is_empty).await;
    }

    async fn until(&self, condition: impl Fn(&BTreeMap<SaleId, Handle>) -> bool) {
        let mut changes = self.changes.subscribe();
        // The sender is `self`: it is there as long as we are.
        while !condition(&self.running()) && changes.changed().await.is_ok() {}
    }
}

/// A client's message about a sale.
///
/// # Errors
/// There is no such sale.
pub async fn deliver(
    ctx: &Context,
    client: ClientId,
    message: ToSeller,
) -> Result<(), ServiceError> {
    // The last of these ends the sale: the same again finds none, and is harmless.
    let repeatable = matches!(message, ToSeller::Ack(_) | ToSeller::Decline { .. });
    let sale = message.round().sale;
    if ctx
        .sales
        .deliver(sale, Mail::Client { client, message })
        .await
        || repeatable
    {
        return Ok(());
    }
    let text = "there is no such sale (any more); ask superscalar.get_purchase";
    Err(ServiceError::new(ErrorCode::NotFound, text))
}

/// Drives what is paid, and forgets what nobody pays, until `shutdown`.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let mut work = ctx.sales.work.subscribe();
    let mut chain = ctx.chain.subscribe();
    let ready = async {
        // The sender is in the context. How long a payment can be held is counted from the tip.
        let _ = chain.wait_for(|state| state.height().is_some()).await;
        ctx.lightning.runs().await
    };
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => return,
        _ = ready => {}
    }
    let mut is_new = true;
    loop {
        if let Err(error) = look(&ctx, is_new, &shutdown).await {
            ctx.events.emit(Event::StoreFailed {
                problem: error.to_string(),
            });
        } else {
            is_new = false;
            ctx.sales.looked.store(true, Ordering::Release);
        }
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => break,
            _ = work.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    ctx.sales.idle().await;
}

async fn look(
    ctx: &Arc<Context>,
    is_new: bool,
    shutdown: &watch::Receiver<bool>,
) -> store::Result<()> {
    if is_new {
        payment::send_back_again(ctx).await?;
    }
    payment::expire(ctx).await?;
    let height = ctx.height();
    let due = ctx
        .store
        .read(async |tx| rows::under_way(tx, height).await)
        .await?;
    for row in ctx.readable(due) {
        if !ctx.sales.is_running(row.order.sale) {
            driver::spawn(ctx, row.order.sale, shutdown.clone());
        }
    }
    Ok(())
}

fn to_json<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written; this is a defect");
        RpcError::internal().into()
    })
}
