//! Payments from outside through the coordinator to a wallet and back, and between wallets.

use anyhow::Result;
use channel_host::{ExitReason, ForwardRefusal, LeafId, Msat, NodeEvent, Side};

use super::harness::{CAPACITY, EXIT_DELAY, Member, Unborn, outside, paid_pair, pay_client, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_from_outside_reach_a_wallet_and_come_back() -> Result<()> {
    let (_node, mut lsp, mut client, leaf) = paid_pair().await?;
    let mut outside = outside(&mut lsp).await?;
    lsp.synced().await?;
    client.synced().await?;
    outside.synced().await?;

    let invoice = client.invoice(&lsp, 100_000_000)?;
    outside.node().pay(&invoice, None)?;
    assert_eq!(client.paid().await?, Msat(100_000_000));
    outside.sent().await?;
    let fee = lsp
        .event(|event| match event {
            NodeEvent::PaymentForwarded { fee, .. } => Some(*fee),
            _ => None,
        })
        .await?;
    assert_eq!(fee, Msat(1_000 + 10_000));

    let invoice = outside.invoice(&lsp, 30_000_000)?;
    client.node().pay(&invoice, None)?;
    assert_eq!(outside.paid().await?, Msat(30_000_000));
    client.sent().await?;

    // The wallet's number survives the coordinator's restart; a shut gate stops both ways.
    lsp.crash().await?;
    lsp.usable(2).await?;
    client.usable(1).await?;
    outside.usable(1).await?;
    let invoice = client.invoice(&lsp, 5_000_000)?;
    outside.node().pay(&invoice, None)?;
    assert_eq!(client.paid().await?, Msat(5_000_000));
    outside.sent().await?;

    lsp.node().set_factory_confirmed(leaf.id, false)?;
    let invoice = client.invoice(&lsp, 5_000_000)?;
    outside.node().pay(&invoice, None)?;
    outside.failed().await?;
    assert_eq!(refused(&mut lsp).await?, ForwardRefusal::Gated);
    let invoice = outside.invoice(&lsp, 5_000_000)?;
    client.node().pay(&invoice, None)?;
    client.failed().await?;
    assert_eq!(refused(&mut lsp).await?, ForwardRefusal::Gated);
    Ok(())
}

async fn refused(lsp: &mut Member) -> Result<ForwardRefusal> {
    lsp.event(|event| match event {
        NodeEvent::ForwardRefused { reason, .. } => Some(*reason),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wallets_pay_each_other_through_the_coordinator() -> Result<()> {
    let (node, mut lsp, mut alice, alices) = paid_pair().await?;
    let mut bob = Member::start(&node, Side::Client, 14).await?;
    bob.connect(&lsp).await?;
    let leaf = Unborn::new(&lsp, &bob)?;
    for member in [&lsp, &alice, &bob] {
        member.synced().await?;
    }
    leaf.open(&mut lsp, &mut bob).await?;
    leaf.ungate([&lsp, &bob])?;
    let invoice = bob.invoice(&lsp, 70_000_000)?;
    alice.node().pay(&invoice, None)?;
    assert_eq!(bob.paid().await?, Msat(70_000_000));
    alice.sent().await?;
    let invoice = alice.invoice(&lsp, 20_000_000)?;
    bob.node().pay(&invoice, None)?;
    assert_eq!(alice.paid().await?, Msat(20_000_000));
    bob.sent().await?;
    pay_client(&mut lsp, &mut bob, 1_000_000).await?;
    // For what it forwarded the coordinator may still be owed, or pay: it does not wait if one of the two ends its channel.
    alice.node().abandon_leaf(alices.id)?;
    assert_eq!(
        exit_needed(&mut lsp).await?,
        (alices.id, ExitReason::Closed)
    );
    bob.node().abandon_leaf(leaf.id)?;
    assert_eq!(exit_needed(&mut lsp).await?, (leaf.id, ExitReason::Closed));
    Ok(())
}

async fn exit_needed(lsp: &mut Member) -> Result<(LeafId, ExitReason)> {
    lsp.event(|event| match event {
        NodeEvent::ExitNeeded { leaf, reason } => Some((*leaf, *reason)),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_too_little_time_is_not_served() -> Result<()> {
    let (_node, mut lsp, mut client, leaf) = paid_pair().await?;
    let mut outside = outside(&mut lsp).await?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    // An invoice that names less than what the coordinator asks for.
    let mut hint = lsp.node().client_route(client.node().id())?;
    hint.cltv_delta = 100;
    let invoice = client.node().invoice(&channel_host::InvoiceRequest {
        amount: Some(Msat(5_000_000)),
        description: "a test".into(),
        expiry: std::time::Duration::from_secs(600),
        hints: vec![hint],
    })?;
    outside.node().pay(&invoice, None)?;
    outside.failed().await?;
    let reason = refused(&mut lsp).await?;
    assert!(
        matches!(reason, ForwardRefusal::TooTight { .. }),
        "{reason}"
    );
    assert!(client.node().leaf(leaf.id).is_some());
    // Nor is what LDK would have to refuse for its size, as room may come free meanwhile.
    let invoice = client.node().invoice(&channel_host::InvoiceRequest {
        amount: Some(Msat(CAPACITY.to_sat() * 1_000)),
        description: "a test".into(),
        expiry: std::time::Duration::from_secs(600),
        hints: vec![hint],
    })?;
    outside.node().pay(&invoice, None)?;
    let reason = refused(&mut lsp).await?;
    assert!(
        matches!(reason, ForwardRefusal::TooTight { .. }),
        "{reason}"
    );
    outside.failed().await?;
    // Money moves on as asked.
    let invoice = client.invoice(&lsp, 5_000_000)?;
    outside.node().pay(&invoice, None)?;
    client.paid().await?;
    Ok(())
}

/// LDK takes whichever channel of the client has room when it comes to that, so the slower leaf binds what may go over either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_go_over_two_leaves_is_in_order_for_both() -> Result<()> {
    let (_node, mut lsp, mut client, _fast) = paid_pair().await?;
    let mut outside = outside(&mut lsp).await?;
    let slow = Unborn::with_delay(&lsp, &client, EXIT_DELAY + 60)?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    slow.open(&mut lsp, &mut client).await?;
    slow.ungate([&lsp, &client])?;
    let mut hint = lsp.node().client_route(client.node().id())?;
    let enough = hint.cltv_delta;
    // The faster leaf has less room, so LDK would take it; unless something fills it first.
    hint.cltv_delta = enough - 60;
    let invoice = |hint| {
        client.node().invoice(&channel_host::InvoiceRequest {
            amount: Some(Msat(5_000_000)),
            description: "a test".into(),
            expiry: std::time::Duration::from_secs(600),
            hints: vec![hint],
        })
    };
    outside.node().pay(&invoice(hint)?, None)?;
    let reason = refused(&mut lsp).await?;
    let needed = u32::from(enough);
    assert!(
        matches!(reason, ForwardRefusal::TooTight { needed: asked, .. } if asked == needed),
        "{reason}"
    );
    outside.failed().await?;
    hint.cltv_delta = enough;
    outside.node().pay(&invoice(hint)?, None)?;
    assert_eq!(client.paid().await?, Msat(5_000_000));
    outside.sent().await
}

/// A payment from outside to a client that is away, as far as the coordinator.
async fn to_one_who_is_away() -> Result<(Member, Member, Member)> {
    let (_node, mut lsp, mut client, _leaf) = paid_pair().await?;
    let outside = outside(&mut lsp).await?;
    for member in [&lsp, &client, &outside] {
        member.synced().await?;
    }
    let invoice = client.invoice(&lsp, 5_000_000)?;
    client.abort().await;
    until("the client's absence", || Ok(lsp.node().peers().len() == 1)).await?;
    outside.node().pay(&invoice, None)?;
    until("a payment", || {
        let channels = lsp.node().channels();
        Ok(channels.iter().any(|channel| channel.pending > 0))
    })
    .await?;
    Ok((lsp, client, outside))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_waits_for_a_client_that_comes_back() -> Result<()> {
    let (mut lsp, mut client, mut outside) = to_one_who_is_away().await?;
    // Forgetting the payment with the rest of its memory, the coordinator is asked about it again.
    lsp.crash().await?;
    client.launch().await?;
    // Older ones may be told again.
    client
        .event(|event| match event {
            NodeEvent::PaymentReceived { amount, .. } => (*amount == Msat(5_000_000)).then_some(()),
            _ => None,
        })
        .await?;
    outside.sent().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_does_not_wait_for_ever() -> Result<()> {
    let (mut lsp, _client, mut outside) = to_one_who_is_away().await?;
    assert_eq!(refused(&mut lsp).await?, ForwardRefusal::Away);
    outside.failed().await?;
    Ok(())
}
