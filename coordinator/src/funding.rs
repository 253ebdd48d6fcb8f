//! The coins of a ceremony: pinned before anybody is invited, drafted into a funding that nobody signs, signed when every client
//! holds its exit, and broadcast until it is in the chain.

use std::collections::HashSet;

use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut};
use chain::ChainError;
use chain::wallet::WalletError;
use factory_tree::ids::{CeremonyId, FactoryId};
use factory_tree::output;
use factory_tree::params::FactoryParams;
use factory_tree::tx::checked_sum;

use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::store::ceremonies::{self, Pin};
use crate::store::{self, StoreError, factories, sweeps};

/// Why a funding cannot be made or broadcast.
#[derive(Debug, thiserror::Error)]
pub enum FundingError {
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The amounts are absurd.
    #[error("the capacities add up to more than 21 million bitcoin")]
    Overflow,
    /// A stored funding cannot be signed.
    #[error(
        "the funding of factory {0} spends a coin that is not pinned for it; the database was damaged"
    )]
    NotPinned(FactoryId),
}

/// What a factory of these capacities takes at most.
#[must_use]
pub fn estimate(params: &FactoryParams, capacities: &[Amount]) -> Option<Amount> {
    let sum = checked_sum(capacities.iter().copied())?;
    let share = u128::from(sum.to_sat())
        .saturating_mul(params.stock_share_ppm.into())
        .checked_div(1_000_000)?;
    sum.checked_add(Amount::from_sat(u64::try_from(share).ok()?))
}

/// Coins that came back a short while ago: an ex-client still holds a signed spend of what they were, so they fund nothing before that is
/// buried (attacks.md A7).
pub(crate) async fn shallow(ctx: &Context) -> store::Result<HashSet<OutPoint>> {
    let coins = ctx
        .store
        .read(async |tx| sweeps::coins_since(tx, shallow_since(ctx)).await)
        .await?;
    Ok(coins.into_iter().map(|(coin, _)| coin).collect())
}

/// What they are worth.
pub(crate) async fn shallow_amount(ctx: &Context) -> store::Result<Amount> {
    let coins = ctx
        .store
        .read(async |tx| sweeps::coins_since(tx, shallow_since(ctx)).await)
        .await?;
    let sum = checked_sum(coins.into_iter().map(|(_, amount)| amount));
    Ok(sum.unwrap_or(Amount::MAX_MONEY))
}

fn shallow_since(ctx: &Context) -> u32 {
    let depth = ctx.config.ladder.reap_depth;
    ctx.height().saturating_add(2).saturating_sub(depth)
}

/// Reserves coins for a ceremony: the first of them is common to all its attempts. They are not stored yet.
///
/// # Errors
/// [`FundingError`]: not enough coins.
pub async fn pin(
    ctx: &Context,
    amount: Amount,
    feerate: FeeRate,
) -> Result<Vec<Pin>, FundingError> {
    // Any script of the right size does: only its length counts in the fee.
    let key = ctx.keys.node_id().to_bytes();
    let x_only = bitcoin::XOnlyPublicKey::from_slice(key.get(1..).unwrap_or_default());
    let script_pubkey = x_only.map(output::taproot).unwrap_or_default();
    let placeholder = TxOut {
        value: amount,
        script_pubkey,
    };
    let shallow = shallow(ctx).await?;
    let draft = ctx
        .wallet
        .build_funding(&[placeholder], &[], &shallow, feerate)
        .await?;
    let pins = draft.inputs().zip(draft.prevouts.iter().cloned());
    Ok(pins
        .map(|(outpoint, txout)| Pin { outpoint, txout })
        .collect())
}

/// Drafts the funding of an attempt from its ceremony's pins, and pins what it takes beyond them. Output 0 is `output`.
///
/// # Errors
/// [`FundingError`]: not enough coins, or a pinned one is gone.
pub async fn draft(
    ctx: &Context,
    ceremony: CeremonyId,
    output: TxOut,
    feerate: FeeRate,
) -> Result<Transaction, FundingError> {
    let pins = ctx
        .store
        .read(async |tx| ceremonies::pins(tx, ceremony).await)
        .await?;
    let pinned: Vec<OutPoint> = pins.iter().map(|pin| pin.outpoint).collect();
    let shallow = shallow(ctx).await?;
    let draft = ctx
        .wallet
        .build_funding(&[output], &pinned, &shallow, feerate)
        .await?;
    let inputs = draft.inputs().zip(draft.prevouts.iter().cloned());
    let more: Vec<Pin> = inputs
        .filter(|(outpoint, _)| !pinned.contains(outpoint))
        .map(|(outpoint, txout)| Pin { outpoint, txout })
        .collect();
    if !more.is_empty() {
        let stored = ctx
            .store
            .write(async |tx| ceremonies::add_pins(tx, ceremony, pins.len(), &more).await)
            .await;
        if let Err(error) = stored {
            ctx.wallet
                .release(more.iter().map(|pin| pin.outpoint))
                .await;
            return Err(error.into());
        }
    }
    Ok(draft.transaction)
}

/// Frees the coins of a ceremony that came to nothing, and returns them.
///
/// # Errors
/// Those of the database.
pub async fn release(ctx: &Context, ceremony: CeremonyId) -> store::Result<Vec<OutPoint>> {
    let pins = ctx
        .store
        .write(async |tx| {
            let pins = ceremonies::pins(tx, ceremony).await?;
            ceremonies::release(tx, ceremony).await?;
            Ok(pins)
        })
        .await?;
    let outpoints: Vec<OutPoint> = pins.into_iter().map(|pin| pin.outpoint).collect();
    ctx.wallet.release(outpoints.iter().copied()).await;
    Ok(outpoints)
}

/// Signs and broadcasts the funding of a factory, which is stored as `funding_signed` already.
///
/// # Errors
/// [`FundingError`]. A node that is away is none: the funding is broadcast again at the next block.
pub async fn broadcast(ctx: &Context, factory: FactoryId) -> Result<(), FundingError> {
    let tx = signed(ctx, factory).await?;
    let txid = tx.compute_txid();
    let result = ctx.source.broadcast(&tx).await;
    match result {
        Ok(_) => {
            ctx.wallet.record_unconfirmed(&tx).await?;
            fault::point("funding_broadcast");
            ctx.events.emit(Event::FundingBroadcast { factory, txid });
        }
        Err(error) => refused(factory, &error),
    }
    Ok(())
}

/// At the tip: fundings that are not in the chain are broadcast again; the pins of those that are deep enough are done with.
///
/// # Errors
/// [`StoreError`], [`WalletError`].
pub async fn rebroadcast(ctx: &Context) -> Result<(), crate::chain_task::ChainTaskError> {
    let (funded, pinned) = ctx
        .store
        .read(async |tx| Ok((factories::funded(tx).await?, ceremonies::pinned(tx).await?)))
        .await?;
    for row in funded {
        if row.confirmed_height.is_none() {
            let tx = match signed(ctx, row.id).await {
                Ok(tx) => tx,
                Err(FundingError::Store(error)) => return Err(error.into()),
                Err(FundingError::Wallet(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, factory = %row.id, "the funding cannot be broadcast");
                    continue;
                }
            };
            let txid = tx.compute_txid();
            let waits = ctx.source.mempool_entry(txid).await?.is_some();
            match ctx.source.broadcast(&tx).await {
                Ok(_) => {
                    ctx.wallet.record_unconfirmed(&tx).await?;
                    if !waits {
                        ctx.events.emit(Event::FundingBroadcast {
                            factory: row.id,
                            txid,
                        });
                    }
                }
                Err(error @ ChainError::Rejected { .. }) => refused(row.id, &error),
                Err(error) => return Err(error.into()),
            }
        } else if row.usable && pinned.contains(&row.round.ceremony) {
            release(ctx, row.round.ceremony).await?;
        }
    }
    Ok(())
}

fn refused(factory: FactoryId, error: &ChainError) {
    tracing::error!(%error, %factory, "the funding was not accepted; it is broadcast again at the next block");
}

/// The signed funding: the stored one, or signed now from the pins.
async fn signed(ctx: &Context, factory: FactoryId) -> Result<Transaction, FundingError> {
    let (stored, pins) = ctx
        .store
        .read(async |tx| {
            let stored = factories::funding_tx(tx, factory).await?;
            let row = factories::get(tx, factory).await?;
            let pins = match row {
                Some(row) => ceremonies::pins(tx, row.round.ceremony).await?,
                None => Vec::new(),
            };
            Ok((stored, pins))
        })
        .await?;
    let (mut tx, is_signed) = stored.ok_or(FundingError::NotPinned(factory))?;
    if is_signed {
        return Ok(tx);
    }
    let pin_of = |outpoint: OutPoint| pins.iter().find(|pin| pin.outpoint == outpoint);
    let prevouts = tx
        .input
        .iter()
        .map(|input| pin_of(input.previous_output).map(|pin| pin.txout.clone()));
    let prevouts = prevouts
        .collect::<Option<Vec<TxOut>>>()
        .ok_or(FundingError::NotPinned(factory))?;
    ctx.wallet.sign(&mut tx, &prevouts).await?;
    ctx.store
        .write(async |conn| factories::set_signed_tx(conn, factory, &tx).await)
        .await?;
    Ok(tx)
}
