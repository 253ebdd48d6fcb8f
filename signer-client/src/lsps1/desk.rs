//! Brings orders forward. What is due follows from the store alone, so that it goes on after every crash:
//!
//! | an order is | its payment | next |
//! |---|---|---|
//! | ordered | is not begun | order from the stock, if that was not done yet; have the node accept its channel; pay |
//! | paid | is not begun | the same |
//! | paid | is under way | wait |
//! | paid | came back | failed |
//! | paid | arrived | the coordinator says which channel it is: done |

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::OutPoint;
use channel_host::AskError;
use factory_tree::sale::order::{PaidBy, PurchaseState};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::OrderError;
use super::terms::{Answer, State};
use crate::client::{Inner, Shutdown, SignerClient};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::{coordinator_of, on_node};
use crate::sales::ordered_for;
use crate::store::{Direction, OrderRow, OrderState, Payment, PaymentState};

/// What JSON-RPC says of a method that nobody serves (JSON-RPC 2.0, section 5.1).
pub(super) const UNKNOWN_METHOD: i32 = -32_601;

/// What bLIP-51 says of an order that is not there.
const NOT_FOUND: i32 = 101;
/// How often to look at open orders.
const LOOK: Duration = Duration::from_secs(1);
/// How often to begin what did not work.
const AGAIN: Duration = Duration::from_secs(10);

/// Brings orders forward until told to stop.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let client = SignerClient { inner: client };
    let mut tried: HashMap<String, Instant> = HashMap::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = look.tick() => {}
        }
        // Nothing is asked or paid without a node.
        if client.inner.lightning.node().is_none() {
            continue;
        }
        match look_at_all(&client, &mut tried).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => tracing::debug!(%error, "orders go on at the next look"),
            Ok(()) => {}
        }
    }
}

async fn look_at_all(client: &SignerClient, tried: &mut HashMap<String, Instant>) -> Result<()> {
    let mut rows = client.inner.store.orders().await?;
    rows.retain(|row| !row.is_over());
    tried.retain(|id, _| rows.iter().any(|row| row.id == *id));
    let mut outcome = Ok(());
    for row in rows {
        let last = tried.get(&row.id);
        let may_try = last.is_none_or(|last| last.elapsed() >= AGAIN);
        if may_try {
            tried.insert(row.id.clone(), Instant::now());
        }
        let _turn = client.inner.orders.lock().await;
        // One that cannot go on must not keep the others from it.
        match bring(client, &row.id, may_try).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => outcome = Err(error),
            Ok(()) => {}
        }
    }
    outcome
}

/// Does what is due; the caller has the turn. What did not work is tried again only if it is time to.
pub(super) async fn bring(client: &SignerClient, id: &str, may_try: bool) -> Result<()> {
    let store = &client.inner.store;
    let rows = store.orders().await?;
    let Some(row) = rows.into_iter().find(|row| row.id == id && !row.is_over()) else {
        return Ok(());
    };
    let payment = match row.state {
        OrderState::Ordered => None,
        _ => store.payment(row.hash, Direction::Out).await?,
    };
    match payment {
        None if may_try => pay(client, &row).await,
        None => Ok(()),
        Some(payment) => match payment.state {
            PaymentState::Pending => {
                let note = match row.at_birth {
                    true => {
                        "paid; it comes with the next factory, keep the wallet running until then"
                    }
                    false => "paid; the coordinator brings the channel",
                };
                note_it(client, &row, note).await
            }
            PaymentState::Failed => fail(client, &row, &came_back(&payment)).await,
            PaymentState::Succeeded => hear(client, &row).await,
        },
    }
}

fn came_back(payment: &Payment) -> String {
    match &payment.failure {
        Some(why) => format!("the payment came back: {why}"),
        None => "the payment came back".to_owned(),
    }
}

async fn note_it(client: &SignerClient, row: &OrderRow, note: &str) -> Result<()> {
    if row.note != note {
        client
            .inner
            .store
            .set_order(&row.id, row.state, note)
            .await?;
    }
    Ok(())
}

/// Orders from the stock first, and expects the channel that comes otherwise: both may begin as soon as it is paid.
async fn pay(client: &SignerClient, row: &OrderRow) -> Result<()> {
    let inner = &client.inner;
    ordered_for(client, &PaidBy::Lsps1(row.id.clone())).await?;
    let lsp = coordinator_of(inner).ok_or(OrderError::NotOffered)?;
    let (node, hash, capacity) = (inner.lightning.running()?, row.hash, row.capacity);
    on_node(node, move |node| node.await_order(hash, lsp, capacity)).await??;
    let state = OrderState::Paid;
    let note = "the payment is on its way";
    inner.store.set_order(&row.id, state, note).await?;
    fault::point("order_paying");
    match client.pay(&row.invoice, None).await {
        Ok(_) => {
            fault::point("order_paid");
            let order = row.id.clone();
            inner.events.emit(Event::ChannelOrderPaid { order });
            Ok(())
        }
        Err(Error::PaymentRefused(why)) => {
            // Perhaps it is under way, begun by hand.
            let payment = inner.store.payment(hash, Direction::Out).await?;
            match payment.map(|payment| payment.state) {
                None | Some(PaymentState::Failed) => {
                    fail(client, row, &why).await?;
                    Err(Error::PaymentRefused(why))
                }
                Some(_) => Ok(()),
            }
        }
        Err(error) => {
            let note = error.to_string();
            inner.store.set_order(&row.id, state, &note).await?;
            Err(error)
        }
    }
}

/// It is paid for: the coordinator says with which channel.
async fn hear(client: &SignerClient, row: &OrderRow) -> Result<()> {
    let params = json!({ "order_id": row.id });
    let answer: Answer = match client.ask_order("lsps1.get_order", &params).await {
        Err(Error::Asked(AskError::Refused(error))) if error.code == NOT_FOUND => {
            let why = "it is paid, and the coordinator knows nothing of it";
            return fail(client, row, why).await;
        }
        answer => answer?,
    };
    match (answer.order_state, answer.channel) {
        (State::Completed, Some(channel)) => done(client, row, channel.funding_outpoint).await,
        (State::Failed, _) => {
            let why = "it is paid, and the coordinator says that nothing came of it";
            fail(client, row, why).await
        }
        _ => note_it(client, row, "paid; the channel is not there yet").await,
    }
}

/// Whether its channel came from the stock: one was ordered there, and no ordinary one with this funding is known.
async fn is_from_stock(client: &SignerClient, row: &OrderRow, funding: OutPoint) -> Result<bool> {
    let inner = &client.inner;
    let awaited = inner.lightning.running()?.jit_awaited();
    let mut ordinary = awaited.iter().filter(|order| order.hash == row.hash);
    let is_ordinary = ordinary.any(|order| {
        let channel = order.channel.as_ref();
        channel.is_some_and(|channel| channel.outpoint == funding)
    });
    if is_ordinary {
        return Ok(false);
    }
    let paid_by = PaidBy::Lsps1(row.id.clone());
    let purchases = inner.store.purchases().await?;
    let mut ordered = purchases.iter().filter(|sale| sale.paid_by() == paid_by);
    Ok(ordered.any(|sale| sale.state != PurchaseState::Cancelled))
}

async fn done(client: &SignerClient, row: &OrderRow, funding: OutPoint) -> Result<()> {
    let from_stock = is_from_stock(client, row, funding).await?;
    let mut leaves = client.channels().await?.into_iter();
    let in_factory = leaves.any(|view| view.outpoint == funding && view.factory.is_some());
    let (state, note) = match from_stock {
        true => (OrderState::FromStock, "from the stock of a factory"),
        false if in_factory => (OrderState::FromBirth, "with a new factory"),
        false => (OrderState::Onchain, "from the chain"),
    };
    over(client, row).await?;
    let (inner, order) = (&client.inner, row.id.clone());
    let time = inner.now().time;
    inner
        .store
        .end_order(&order, state, Some(funding), note, time)
        .await?;
    inner.events.emit(Event::ChannelOrderDone {
        order,
        from_stock,
        funding,
    });
    Ok(())
}

async fn fail(client: &SignerClient, row: &OrderRow, why: &str) -> Result<()> {
    over(client, row).await?;
    let (inner, order) = (&client.inner, row.id.clone());
    let (state, time) = (OrderState::Failed, inner.now().time);
    inner
        .store
        .end_order(&order, state, None, why, time)
        .await?;
    let why = why.to_owned();
    inner.events.emit(Event::ChannelOrderFailed { order, why });
    Ok(())
}

/// No other channel is accepted for it.
async fn over(client: &SignerClient, row: &OrderRow) -> Result<()> {
    let (node, hash) = (client.inner.lightning.running()?, row.hash);
    Ok(on_node(node, move |node| node.order_over(hash)).await??)
}
