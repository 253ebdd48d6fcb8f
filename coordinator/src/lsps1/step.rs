//! What is due for an order.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use channel_host::{BoughtChannel, BoughtView, PaymentHash};
use tokio::sync::watch;

use super::birth::{self, Place};
use super::limits::{self, Obstacle};
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::keys::random;
use crate::sales::{self, MARGIN};
use crate::store::Result;
use crate::store::lsps1::{self as rows, OrderRow, State};
use crate::webhooks::Why;

/// Between two looks at orders, while something is under way, and while nothing is.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(10);

const TOO_LONG: &str = "the payment could not be held any longer";

/// Does for all orders what is due, until `shutdown`.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let mut work = ctx.lsps1.work.subscribe();
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
        let looked = async {
            if is_new {
                send_back_again(&ctx).await?;
            }
            look(&ctx).await
        };
        let pause = match looked.await {
            Ok(busy) => {
                is_new = false;
                if busy { SOON } else { LATER }
            }
            Err(error) => {
                ctx.events.emit(Event::StoreFailed {
                    problem: error.to_string(),
                });
                LATER
            }
        };
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = work.changed() => {}
            // What waits for a birth.
            _ = chain.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether something is under way.
pub(crate) async fn look(ctx: &Context) -> Result<bool> {
    let now = now();
    let due = ctx.store.read(async |tx| rows::due(tx, now).await).await?;
    let due = ctx.readable(due);
    for row in &due {
        match step(ctx, &row.order.id).await {
            // Of this order alone: the others go on.
            Err(error) if error.is_lasting() => ctx.alarm(&error),
            done => done?,
        }
    }
    // What waits for a birth waits for hours.
    Ok(due.iter().any(|row| !row.order.at_birth))
}

/// Sends back, once more, what was to be sent back when we ended.
pub(super) async fn send_back_again(ctx: &Context) -> Result<()> {
    let height = ctx.height();
    let hashes = ctx
        .store
        .read(async |tx| rows::to_send_back(tx, height).await)
        .await?;
    for hash in ctx.readable(hashes) {
        ctx.lightning.send_back(hash);
    }
    Ok(())
}

// ---- what the node has to say ----------------------------------------------------------------------------------------

/// A payment for a hold invoice is here; `false`: it is for no order. Only stored: the node waits for this with all it has to say, and a step asks the
/// Bitcoin node.
///
/// # Errors
/// Those of the database; then it is told again.
pub async fn held(ctx: &Context, hash: PaymentHash, amount_msat: u64, until: u32) -> Result<bool> {
    let read = ctx.store.read(async |tx| rows::by_hash(tx, hash).await);
    let Some(row) = read.await? else {
        return Ok(false);
    };
    match row.state {
        State::Ordered => take_in(ctx, &row, amount_msat, until).await?,
        // Told again, after a crash.
        State::Held | State::Open => {}
        State::Paid | State::Failed => ctx.lightning.send_back(hash),
    }
    ctx.lsps1.look_again();
    Ok(true)
}

async fn take_in(ctx: &Context, row: &OrderRow, amount_msat: u64, until: u32) -> Result<()> {
    let id = &row.order.id;
    // Lightning refuses such a payment; this is the second look.
    if amount_msat < row.order.fee_sat.saturating_mul(1000) {
        return fail(ctx, row, "its payment was too small").await;
    }
    // It would wait for days for what others have paid for.
    if row.order.at_birth && !limits::fits_birth(ctx, &row.order).await? {
        let why = "others have paid for the coins of the next factory";
        return fail(ctx, row, why).await;
    }
    let now = now();
    let is_new = ctx
        .store
        .write(async |tx| rows::held(tx, id, until, now).await)
        .await?;
    if !is_new {
        // A step gave it up this moment.
        ctx.lightning.send_back(row.order.hash);
        return Ok(());
    }
    fault::point("lsps1_held");
    ctx.events.emit(Event::Lsps1Held {
        order: id.clone(),
        amount_msat,
        held_until: until,
    });
    Ok(())
}

/// A channel stands: perhaps that of an order. Decided before this returns, though the Bitcoin node may be asked: as soon as Lightning goes on, payments
/// can go over the channel, and if it were given up then, they would be lost.
///
/// # Errors
/// Those of the database.
pub async fn stands(ctx: &Context, number: u64) -> Result<()> {
    match of_channel(ctx, number).await? {
        Some(row) => step(ctx, &row.order.id).await,
        None => Ok(()),
    }
}

/// A channel is closed: perhaps that of an order. Only why is stored: nothing can go over it any more, and a step does what comes next.
///
/// # Errors
/// Those of the database.
pub async fn closed(ctx: &Context, number: u64, why: &str) -> Result<()> {
    if let Some(row) = of_channel(ctx, number).await? {
        note(ctx, &row, why).await?;
        ctx.lsps1.look_again();
    }
    Ok(())
}

/// The order whose payment is held for this channel.
async fn of_channel(ctx: &Context, number: u64) -> Result<Option<OrderRow>> {
    let read = ctx
        .store
        .read(async |tx| rows::by_channel(tx, number).await);
    Ok(read.await?.filter(|row| row.state == State::Held))
}

/// A payment was taken: perhaps that of an order.
///
/// # Errors
/// Those of the database.
pub async fn received(ctx: &Context, hash: PaymentHash, amount_msat: u64) -> Result<()> {
    let read = ctx.store.read(async |tx| rows::by_hash(tx, hash).await);
    match read.await? {
        Some(row) => settle(ctx, &row, (amount_msat, "")).await,
        None => Ok(()),
    }
}

// ---- the step --------------------------------------------------------------------------------------------------------

/// Does for one order what is due.
pub(super) async fn step(ctx: &Context, id: &str) -> Result<()> {
    let _one = ctx.lsps1.stepping.lock().await;
    let read = ctx.store.read(async |tx| rows::get(tx, id).await);
    let Some(row) = read.await? else {
        return Ok(());
    };
    match row.state {
        State::Ordered if now() > row.order.valid_until => {
            fail(ctx, &row, "it was not paid in time").await
        }
        State::Held => deliver(ctx, &row).await,
        State::Open => take(ctx, &row).await,
        State::Ordered | State::Paid | State::Failed => Ok(()),
    }
}

/// The height from which nothing goes out for a payment any more: it could not be claimed for sure.
#[must_use]
pub fn release_at(ctx: &Context, row: &OrderRow) -> u32 {
    let needed = ctx.lightning.claim_time().saturating_add(MARGIN);
    row.held_until.unwrap_or(0).saturating_sub(needed)
}

fn client(row: &OrderRow) -> Option<PublicKey> {
    PublicKey::from_slice(&row.order.client.0).ok()
}

/// Its payment is held: waits for the channel from a stock, or opens one, and lets its funding out when it stands.
async fn deliver(ctx: &Context, row: &OrderRow) -> Result<()> {
    // What is due then, the sale does; once it is cancelled nothing comes from a stock any more.
    if sales::brings(ctx, row).await? {
        return Ok(());
    }
    if row.order.at_birth {
        return wait_for_birth(ctx, row).await;
    }
    // Without a node nothing can be said; a channel that is not there now may be after its start.
    let Some(views) = ctx.lightning.bought() else {
        return Ok(());
    };
    let view = views.into_iter().find(|view| Some(view.id) == row.channel);
    // Decided, before we ended.
    let released = view.is_some_and(|view| view.released);
    if !released && let Some(why) = overdue(ctx, row) {
        return give_up(ctx, row, view, &why).await;
    }
    match view {
        None => open(ctx, row).await,
        Some(view) => match view.outpoint {
            Some(outpoint) if released || ctx.lightning.holds(row.order.hash) => {
                release(ctx, row, view, outpoint).await
            }
            // Nothing goes out for it; it is given up in time.
            Some(_) => note(ctx, row, "its payment is not here any more").await,
            None => note(ctx, row, "the client has not accepted its channel").await,
        },
    }
}

/// Its payment is held: takes it when the client's channel in the new factory stands, and sends it back if there is none in time.
async fn wait_for_birth(ctx: &Context, row: &OrderRow) -> Result<()> {
    let (waits, seat) = match birth::place(ctx, row).await? {
        Place::Usable(outpoint) => {
            let (id, now) = (&row.order.id, now());
            let is_new = ctx
                .store
                .write(async |tx| rows::funded(tx, id, outpoint, None, now).await)
                .await?;
            fault::point("lsps1_born");
            if is_new {
                ctx.events.emit(Event::Lsps1Funded {
                    order: id.clone(),
                    funding: outpoint,
                    onchain_sat: 0,
                });
            }
            return take(ctx, row).await;
        }
        Place::Born(ceremony) => ("its factory is not usable yet", Some(ceremony)),
        Place::None => ("it waits for the next factory", None),
    };
    if ctx.height() < release_at(ctx, row) {
        return note(ctx, row, waits).await;
    }
    if let Some(ceremony) = seat {
        let order = &row.order;
        // It cannot be taken back from its client any more: the operator should know. Told first: after a crash in between it is told again.
        ctx.events.emit(Event::Lsps1SeatUnpaid {
            client: order.client,
            order: order.id.clone(),
            ceremony,
            lsp_balance_sat: order.lsp_balance_sat,
            fee_sat: order.fee_sat,
        });
    }
    fail(ctx, row, &format!("{TOO_LONG}: {waits}")).await
}

/// Why it waits no longer, if so.
fn overdue(ctx: &Context, row: &OrderRow) -> Option<String> {
    if ctx.height() >= release_at(ctx, row) {
        return Some(TOO_LONG.to_owned());
    }
    let waited = now().saturating_sub(row.held_at.unwrap_or(0));
    (waited > ctx.config.lsps1.wait_seconds).then(|| match row.note.as_str() {
        "" => "the client did not come for its channel in time".to_owned(),
        note => note.to_owned(),
    })
}

/// No channel is on its way: opens one, if the client is here.
async fn open(ctx: &Context, row: &OrderRow) -> Result<()> {
    let order = &row.order;
    let Some(peer) = client(row).filter(|_| ctx.lightning.is_here(order.client)) else {
        ctx.webhooks.wake(order.client, Why::Sale);
        return Ok(());
    };
    // Never 0, which is a channel the peer opened.
    let id = u64::from_be_bytes(random()).max(1);
    match limits::may_open(ctx, row, id, now()).await? {
        Ok(()) => {}
        Err(Obstacle::Final(why)) => return fail(ctx, row, &why).await,
        // Until it has waited too long, and this is why.
        Err(Obstacle::ForNow(why)) => return note(ctx, row, &why).await,
    }
    fault::point("lsps1_opening");
    ctx.events.emit(Event::Lsps1Opening {
        order: order.id.clone(),
        channel: id.to_string(),
    });
    let channel = BoughtChannel {
        id,
        peer,
        capacity: Amount::from_sat(order.lsp_balance_sat),
        announce: order.announce,
        confirm_within: order.confirm_within,
    };
    match ctx.lightning.open_bought(channel).await {
        Ok(()) => Ok(()),
        // It is not there: the next step opens another one, or gives up.
        Err(error) => note(ctx, row, &error.to_string()).await,
    }
}

/// The channel stands, and the payment can be claimed: its funding goes out, once and for all.
async fn release(ctx: &Context, row: &OrderRow, view: BoughtView, funding: OutPoint) -> Result<()> {
    fault::point("lsps1_stands");
    match ctx.lightning.release_bought(view.id).await {
        Ok(true) => {}
        // Closed this moment.
        Ok(false) => return Ok(()),
        // Its channel stays, and is for nothing should it come about all the same.
        Err(_) if ctx.height() >= release_at(ctx, row) => {
            return give_up(ctx, row, Some(view), TOO_LONG).await;
        }
        Err(error) => {
            tracing::warn!(%error, order = %row.order.id, "a channel's funding is sent out again");
            return Ok(());
        }
    }
    fault::point("lsps1_released");
    let (id, now, cost) = (&row.order.id, now(), view.fee.map(Amount::to_sat));
    let is_new = ctx
        .store
        .write(async |tx| rows::funded(tx, id, funding, cost, now).await)
        .await?;
    fault::point("lsps1_funded");
    if is_new {
        ctx.events.emit(Event::Lsps1Funded {
            order: id.clone(),
            funding,
            onchain_sat: cost.unwrap_or(row.onchain_sat),
        });
    }
    take(ctx, row).await
}

/// The funding is out, or the channel stands on a leaf: takes the payment. That it was taken is told by the node, and stored then.
async fn take(ctx: &Context, row: &OrderRow) -> Result<()> {
    let preimage = ctx.keys.lsps1_preimage(&row.order.id);
    let Err(error) = ctx.lightning.claim(preimage).await else {
        return Ok(());
    };
    tracing::info!(%error, order = %row.order.id, "the payment of a channel is not taken yet");
    if ctx.height() >= row.held_until.unwrap_or(0) {
        let lost = (0, "its payment could not be taken in time");
        return settle(ctx, row, lost).await;
    }
    Ok(())
}

async fn settle(ctx: &Context, row: &OrderRow, (taken_msat, note): (u64, &str)) -> Result<()> {
    let (id, now) = (&row.order.id, now());
    let is_new = ctx
        .store
        .write(async |tx| rows::paid(tx, id, (taken_msat, note), now).await)
        .await?;
    if is_new {
        ctx.events.emit(Event::Lsps1Paid {
            order: id.clone(),
            taken_msat,
        });
    }
    Ok(())
}

/// The channel first: while it might still be let out, the payment is not sent back. One that is out already stays, for nothing.
async fn give_up(ctx: &Context, row: &OrderRow, view: Option<BoughtView>, why: &str) -> Result<()> {
    if let Some(view) = view {
        match ctx.lightning.drop_bought(view.id).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(order = %row.order.id, "a channel is out that nobody has paid for");
            }
            Err(error) => {
                tracing::warn!(%error, order = %row.order.id, "a channel is given up at the next look");
                return Ok(());
            }
        }
    }
    fail(ctx, row, why).await
}

/// Nothing comes of it: stored, then what was paid goes back.
async fn fail(ctx: &Context, row: &OrderRow, why: &str) -> Result<()> {
    let (id, now) = (&row.order.id, now());
    let is_new = ctx
        .store
        .write(async |tx| rows::failed(tx, id, why, now).await)
        .await?;
    fault::point("lsps1_failed");
    ctx.lightning.send_back(row.order.hash);
    if is_new {
        ctx.events.emit(Event::Lsps1Failed {
            order: id.clone(),
            reason: why.to_owned(),
        });
    }
    Ok(())
}

async fn note(ctx: &Context, row: &OrderRow, text: &str) -> Result<()> {
    if row.note == text {
        return Ok(());
    }
    let id = &row.order.id;
    ctx.store
        .write(async |tx| rows::note(tx, id, text).await)
        .await
}
