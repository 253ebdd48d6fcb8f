//! Payments of the coordinator's own.

use std::sync::Arc;
use std::time::Duration;

use channel_host::{Msat, NodeError, PaymentHash, read_invoice};
use tokio::sync::broadcast::error::RecvError;

use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::store::payments::{self, PaymentRow, PaymentState};
use crate::store::{self, StoreError};

/// Why nothing was paid.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// There is no node now.
    #[error("the Lightning node does not run: {0}")]
    Down(String),
    /// No invoice, or one of another network.
    #[error(
        "{0}; give a whole BOLT 11 invoice of this coordinator's network, as its payee shows it"
    )]
    Unreadable(NodeError),
    /// The node's refusal.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An invoice that leaves the amount open.
    #[error("this invoice leaves the amount open; say how much (--amount)")]
    NoAmount,
    /// An amount where there is one.
    #[error("this invoice asks for {0}; do not say another amount")]
    OtherAmount(Msat),
    /// It was written down and cannot be found.
    #[error("the payment is gone from the database; see `coordinator node channels`")]
    Lost,
}

fn refused(why: &str) -> PayError {
    NodeError::Refused(why.to_owned()).into()
}

/// Pays an invoice and waits for the end of that, at most `patience`: the payment goes on.
///
/// # Errors
/// [`PayError`]; then nothing was paid.
pub async fn pay(
    ctx: &Arc<Context>,
    invoice: String,
    amount: Option<Msat>,
    patience: Duration,
) -> Result<PaymentRow, PayError> {
    // What is no invoice of this network is that whether or not the node runs.
    let view = read_invoice(&invoice, ctx.config.network).map_err(PayError::Unreadable)?;
    let down = || PayError::Down(ctx.lightning.problem().unwrap_or_default());
    let node = ctx.lightning.node().ok_or_else(down)?;
    let msat = match (view.amount, amount) {
        (None, None) => return Err(PayError::NoAmount),
        (Some(asked), Some(said)) if asked != said => {
            return Err(PayError::OtherAmount(asked));
        }
        (Some(asked), _) => asked,
        (None, Some(said)) => said,
    };
    // From before it begins, so that its end is not missed.
    let mut events = ctx.events.subscribe();
    let (height, hash) = (ctx.height(), view.hash);
    let begun = ctx.lightning.paying.lock().await;
    let known = ctx
        .store
        .write(async |tx| payments::begun(tx, hash.0, msat.0, height).await)
        .await?;
    match known {
        None | Some(PaymentState::Failed) => {}
        Some(PaymentState::Succeeded) => return Err(refused("it is paid already")),
        Some(PaymentState::Pending) => return Err(refused("it is under way already")),
    }
    fault::point("payment_begun");
    let open = view.amount.is_none().then_some(msat);
    let paid = tokio::task::spawn_blocking(move || node.pay(&invoice, open));
    if let Err(error) = paid.await.map_err(|_| down())? {
        let why = error.to_string();
        ctx.store
            .write(async |tx| payments::ended(tx, hash.0, Err(&why), height).await)
            .await?;
        return Err(error.into());
    }
    drop(begun);
    let name = hash.to_string();
    let ended = async {
        loop {
            match events.recv().await {
                Ok(Event::PaymentSent { hash, .. } | Event::PaymentFailed { hash, .. })
                    if hash == name =>
                {
                    return;
                }
                Ok(_) => {}
                // It may be among those that were missed.
                Err(RecvError::Lagged(_)) if !is_pending(ctx, hash.0).await => return,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    };
    // Out of patience is an answer, too.
    let _ = tokio::time::timeout(patience, ended).await;
    read(ctx, hash.0).await?.ok_or(PayError::Lost)
}

async fn read(ctx: &Context, hash: [u8; 32]) -> store::Result<Option<PaymentRow>> {
    ctx.store
        .read(async |tx| payments::get(tx, hash).await)
        .await
}

async fn is_pending(ctx: &Context, hash: [u8; 32]) -> bool {
    let row = read(ctx, hash).await;
    matches!(row, Ok(Some(row)) if row.state == PaymentState::Pending)
}

/// After the node's start: payments that were written down, but that the node has never heard of, were never sent.
pub(super) async fn settle(ctx: &Context) -> store::Result<()> {
    let Some(node) = ctx.lightning.node() else {
        return Ok(());
    };
    let _begun = ctx.lightning.paying.lock().await;
    let pending = ctx
        .store
        .read(async |tx| payments::pending(tx).await)
        .await?;
    if pending.is_empty() {
        return Ok(());
    }
    let known = node.payments();
    let never_sent = pending
        .into_iter()
        .filter(|hash| known.iter().all(|view| view.hash.0 != *hash));
    for hash in never_sent {
        let reason = "the coordinator ended before it was sent";
        let height = ctx.height();
        let is_new = ctx
            .store
            .write(async |tx| payments::ended(tx, hash, Err(reason), height).await)
            .await?;
        if is_new {
            ctx.events.emit(Event::PaymentFailed {
                hash: PaymentHash(hash).to_string(),
                reason: reason.to_owned(),
            });
        }
    }
    Ok(())
}
