//! A wallet's side of channels just in time: what was promised is taken, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoin::Amount;
use channel_host::{
    ClaimRefusal, InterceptHint, InvoiceRequest, JitOrder, JitPromise, JitRefusal, Msat, NodeEvent,
};
use scenarios::bitcoind::Bitcoind;

use super::harness::{Member, outside, pair, until};
use crate::chain::support::{payout_script, sat};

const PAYMENT: u64 = 500_000_000;
const FEE: u64 = 5_000_000;

/// A coordinator with coins, a wallet with nothing, and somebody who pays.
async fn town() -> Result<(Arc<Bitcoind>, Member, Member, Member)> {
    let (bitcoind, mut lsp, client) = pair().await?;
    for _ in 0..2 {
        bitcoind.send_to(&payout_script(lsp.number), sat(2_000_000))?;
    }
    let outside = outside(&mut lsp).await?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    Ok((bitcoind, lsp, client, outside))
}

/// The coordinator's own idea of what it sold, for a fee of its own; what the wallet remembers is for this one.
fn ordered(lsp: &Member, client: &Member, fee: u64) -> Result<JitPromise> {
    let order = JitOrder {
        client: client.node().id(),
        payment_msat: Some(PAYMENT),
        min_fee_msat: fee,
        proportional: 0,
        min_payment_msat: 1,
        max_payment_msat: PAYMENT,
        valid_until: u64::from(u32::MAX),
        max_to_self_delay: 2016,
        margin_sat: 100_000,
        client_trusts_lsp: false,
    };
    let (scid, cltv_delta) = lsp.node().add_jit_order(order)?;
    Ok(JitPromise {
        lsp: lsp.node().id(),
        scid,
        cltv_delta,
        payment_msat: PAYMENT,
        fee_msat: FEE,
        valid_until: u64::from(u32::MAX),
    })
}

fn request() -> InvoiceRequest {
    InvoiceRequest {
        amount: Some(Msat(PAYMENT)),
        description: "just in time".into(),
        expiry: Duration::from_secs(600),
        hints: vec![],
    }
}

fn invoice(client: &Member, promise: JitPromise) -> Result<String> {
    Ok(client.node().jit_invoice(&request(), promise)?)
}

async fn received(client: &mut Member) -> Result<(Msat, Msat)> {
    client
        .event(|event| match event {
            NodeEvent::PaymentReceived { amount, fee, .. } => Some((*amount, *fee)),
            _ => None,
        })
        .await
}

async fn refusal(client: &mut Member) -> Result<ClaimRefusal> {
    client
        .event(|event| match event {
            NodeEvent::PaymentRefused { reason, .. } => Some(*reason),
            _ => None,
        })
        .await
}

async fn closed(member: &mut Member) -> Result<String> {
    member
        .event(|event| match event {
            NodeEvent::ChannelClosed { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await
}

/// The wallet crashes when it has the invoice, and again when it has the channel: it is paid less exactly the fee, pays from it, and has all that is
/// left of it on the chain in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_promised_survives_and_is_paid() -> Result<()> {
    let (bitcoind, mut lsp, mut client, mut outside) = town().await?;
    let paid = invoice(&client, ordered(&lsp, &client, FEE)?)?;
    client.crash().await?;
    outside.node().pay(&paid, None)?;
    assert_eq!(
        received(&mut client).await?,
        (Msat(PAYMENT - FEE), Msat(FEE))
    );
    outside.sent().await?;
    client.crash().await?;
    client.usable(1).await?;
    let [channel] = client.node().channels().try_into().expect("one channel");
    assert_eq!(channel.balance, Msat(PAYMENT - FEE));
    assert_eq!(channel.confirmations, 0);

    // A promise is for one channel, and for one payment.
    lsp.node()
        .open_channel(client.node().id(), sat(400_000), false)?;
    closed(&mut lsp).await?;
    assert_eq!(client.node().channels().len(), 1);

    let back = outside.invoice(&lsp, 100_000_000)?;
    client.node().pay(&back, None)?;
    assert_eq!(outside.paid().await?, Msat(100_000_000));
    client.sent().await?;
    bitcoind.mine(6)?;
    client.synced().await?;
    let left = client.node().channels()[0].balance;
    assert!(client.node().channels()[0].confirmations > 0);
    // A step of the payment may still be being written down: that is waited for.
    client.node().close_channel(channel.channel, false).await?;
    closed(&mut client).await?;
    let [order] = client.node().jit_awaited().try_into().expect("one order");
    let was = order.channel.context("a channel")?;
    assert_eq!(
        (was.channel, order.taken),
        (channel.channel, Some(Msat(FEE)))
    );
    let on_its_way = || {
        let settlement = client.node().channel_settlement(was.channel);
        let amounts = settlement.map(|left| [left.locked, left.free].concat());
        amounts.map(|amounts| amounts.into_iter().sum::<Amount>())
    };
    until("a settlement", || {
        Ok(on_its_way() == Some(Amount::from_sat(left.0 / 1000)))
    })
    .await?;
    until("its money in the wallet", || {
        bitcoind.mine(1)?;
        Ok(on_its_way() == Some(Amount::ZERO))
    })
    .await?;
    let has = bitcoind.balance_of(&payout_script(client.number))?;
    assert!(has > Amount::from_sat(left.0 / 1000) - sat(1_000), "{has}");
    Ok(())
}

/// LDK would send the smaller part over the channel there is, where nothing may be kept of it: all goes back before anything was opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_fits_into_an_old_channel_opens_none() -> Result<()> {
    let (bitcoind, mut lsp, mut client, mut outside) = town().await?;
    let first = invoice(&client, ordered(&lsp, &client, FEE)?)?;
    outside.node().pay(&first, None)?;
    received(&mut client).await?;
    outside.sent().await?;
    // What is left of its channel is too little now, and this one is smaller than what the client can be paid.
    bitcoind.send_to(&payout_script(outside.number), sat(100_000))?;
    bitcoind.mine(1)?;
    outside.synced().await?;
    outside
        .node()
        .open_channel(lsp.node().id(), sat(60_000), false)?;
    until("a second funding", || Ok(!bitcoind.mempool()?.is_empty())).await?;
    bitcoind.mine(8)?;
    outside.usable(2).await?;
    lsp.synced().await?;
    let second = invoice(&client, ordered(&lsp, &client, FEE)?)?;
    outside.node().pay(&second, None)?;
    let why = lsp
        .event(|event| match event {
            NodeEvent::JitRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await?;
    assert_eq!(why, JitRefusal::PartHasRoom);
    outside.failed().await?;
    assert_eq!(client.node().channels().len(), 1);
    assert!(bitcoind.mempool()?.is_empty());
    Ok(())
}

/// The coordinator keeps a thousandth of a satoshi more than it promised: the wallet sends the payment back, and nobody has lost anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_was_promised_is_not_taken() -> Result<()> {
    let (_node, lsp, mut client, mut outside) = town().await?;
    let paid = invoice(&client, ordered(&lsp, &client, FEE + 1)?)?;
    outside.node().pay(&paid, None)?;
    let dear = ClaimRefusal::FeeTooHigh {
        kept: FEE + 1,
        promised: FEE,
    };
    assert_eq!(refusal(&mut client).await?, dear);
    outside.failed().await?;
    assert_eq!(client.node().jit_awaited()[0].taken, None);
    assert_eq!(client.node().channels()[0].balance, Msat(0));
    Ok(())
}

/// Who promised nothing opens nothing: neither the coordinator without an order of the wallet's, nor a stranger while there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_nobody_promised_is_not_accepted() -> Result<()> {
    let (bitcoind, mut lsp, client, mut outside) = town().await?;
    let order = ordered(&lsp, &client, FEE)?;
    let unknown = client.node().invoice(&InvoiceRequest {
        hints: vec![InterceptHint {
            lsp: order.lsp,
            scid: order.scid,
            cltv_delta: order.cltv_delta,
            base_msat: 0,
            proportional_millionths: 0,
        }],
        ..request()
    })?;
    outside.node().pay(&unknown, None)?;
    let why = lsp
        .event(|event| match event {
            NodeEvent::JitRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await?;
    assert!(matches!(why, JitRefusal::NoChannel(_)), "{why}");
    outside.failed().await?;

    invoice(&client, ordered(&lsp, &client, FEE)?)?;
    // The stranger has the coins for it.
    bitcoind.send_to(&payout_script(outside.number), sat(1_000_000))?;
    bitcoind.mine(1)?;
    outside.synced().await?;
    client.connect(&outside).await?;
    outside
        .node()
        .open_channel(client.node().id(), sat(500_000), false)?;
    closed(&mut outside).await?;
    // Too small for what is to arrive.
    lsp.node()
        .open_channel(client.node().id(), sat(494_999), false)?;
    closed(&mut lsp).await?;
    assert!(client.node().channels().is_empty());
    Ok(())
}
