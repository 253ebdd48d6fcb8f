//! Parts that are not what was agreed to, or could cost the coordinator something.

use anyhow::Result;
use channel_host::{
    ForwardRefusal, InvoiceRequest, LeafId, MovePart, Msat, NodeError, NodeEvent, PartState, Side,
};

use super::harness::{BALANCE, Move, end, moving, state};
use crate::lightning::harness::{Member, Unborn, outside, paid_leaf};

const AMOUNT: Msat = Msat(10_000_000);
const FEE: Msat = Msat(5_000);

fn refused(all: &Move, part: &MovePart, change: impl FnOnce(&mut MovePart)) {
    let mut part = part.clone();
    change(&mut part);
    let answer = all.lsp.node().take_part(part);
    assert!(
        matches!(
            answer,
            Err(NodeError::Refused(_) | NodeError::UnknownLeaf { .. })
        ),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_cost_the_coordinator_is_not_agreed_to() -> Result<()> {
    let all = moving().await?;
    let part = all.terms(AMOUNT, FEE)?;
    refused(&all, &part, |part| part.outgoing.0 = part.incoming.0 + 1);
    refused(&all, &part, |part| part.outgoing = Msat(0));
    refused(&all, &part, |part| part.incoming_expiry -= 1);
    refused(&all, &part, |part| part.from = LeafId([1; 16]));
    refused(&all, &part, |part| part.to = part.from);
    refused(&all, &part, |part| {
        part.outgoing_expiry = 100_000;
        part.incoming_expiry = 101_000;
    });
    all.lsp.node().take_part(part.clone())?;
    // One hash, one part.
    refused(&all, &part, |part| part.incoming.0 += 1);
    refused(&all, &part, |part| part.to_secret = [7; 32]);
    refused(&all, &part, |part| part.incoming_expiry += 1);
    // One that was not paid makes room for another.
    let part = all.terms(AMOUNT, FEE)?;
    all.lsp.node().take_part(part.clone())?;
    assert_eq!(all.lsp.node().parts().len(), 1);
    // An unconfirmed factory takes none.
    all.lsp.node().set_factory_confirmed(all.new.id, false)?;
    let next = all.terms(Msat(AMOUNT.0 + 1), FEE)?;
    refused(&all, &next, |_| {});
    Ok(())
}

/// The client pays something else than what was agreed to; both hear that it came back, and nothing has moved.
async fn comes_back(change: impl FnOnce(&mut MovePart)) -> Result<()> {
    let mut all = moving().await?;
    let agreed = all.terms(AMOUNT, FEE)?;
    let secret = all.lsp.node().take_part(agreed.clone())?;
    let mut paid = agreed.clone();
    change(&mut paid);
    let client = all.client.node();
    client.send_part(paid.hash, paid.incoming, secret, paid.incoming_expiry)?;
    assert!(end(&mut all.client, &agreed).await?.is_err());
    // What LDK itself refuses never gets as far as the part.
    if state(&all.lsp, &agreed).is_none() {
        assert!(end(&mut all.lsp, &agreed).await?.is_err());
    }
    all.idle().await?;
    assert_eq!(all.balance(&all.old)?, BALANCE);
    assert_eq!(all.balance(&all.new)?, Msat(0));
    // The next one is as good as ever.
    all.move_part(AMOUNT, FEE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_without_its_fee_comes_back() -> Result<()> {
    comes_back(|part| part.incoming.0 -= 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_expires_too_early_comes_back() -> Result<()> {
    comes_back(|part| part.incoming_expiry -= 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_can_pay_for_a_part() -> Result<()> {
    let mut all = moving().await?;
    let mut stranger = Member::start(&all.node, Side::Client, 14).await?;
    stranger.connect(&all.lsp).await?;
    paid_leaf(&mut all.lsp, &mut stranger).await?;
    all.client.synced().await?;
    let part = all.terms(AMOUNT, FEE)?;
    all.lsp.node().take_part(part.clone())?;
    // Whoever has the hash and a secret of the coordinator's for it: its own hold invoice.
    let request = InvoiceRequest {
        amount: Some(part.incoming),
        description: "a test".into(),
        expiry: std::time::Duration::from_secs(600),
        hints: vec![],
    };
    let invoice = all.lsp.node().hold_invoice(&request, part.hash, 0)?;
    stranger.node().pay(&invoice, None)?;
    stranger.failed().await?;
    assert_eq!(state(&all.lsp, &part), Some(PartState::Agreed));
    assert_eq!(all.balance(&all.new)?, Msat(0));
    // Nor are two clients' leaves the ends of one move.
    let theirs = stranger.node().leaves().remove(0).id;
    refused(&all, &part, |part| {
        part.hash = channel_host::PaymentHash([4; 32]);
        part.from = theirs;
    });
    // The part itself is none the worse for it.
    all.send(&part)?;
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    Ok(())
}

/// What a client revealed for its part is never timed out: with another payment under that hash it could claim both after all, and an
/// accomplice have its money back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_of_a_part_serves_nothing_else() -> Result<()> {
    let mut all = moving().await?;
    let mut payer = outside(&mut all.lsp).await?;
    let part = all.terms(AMOUNT, FEE)?;
    all.send(&part)?;
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    let client = all.client.node().id();
    let request = |hints| InvoiceRequest {
        amount: Some(AMOUNT),
        description: "a test".into(),
        expiry: std::time::Duration::from_secs(600),
        hints,
    };
    let hint = all.lsp.node().client_route(client)?;
    let hold = |hash| {
        all.client
            .node()
            .hold_invoice(&request(vec![hint]), hash, 0)
    };
    payer.node().pay(&hold(part.hash)?, None)?;
    payer.failed().await?;
    let reason = all
        .lsp
        .event(|event| match event {
            NodeEvent::ForwardRefused { reason, .. } => Some(*reason),
            _ => None,
        })
        .await?;
    assert_eq!(reason, ForwardRefusal::PartOfMove);
    // Nor is a payment that is under way made a part.
    let other = channel_host::PaymentHash([6; 32]);
    payer.node().pay(&hold(other)?, None)?;
    all.client
        .event(|event| matches!(event, NodeEvent::PaymentHeld { .. }).then_some(()))
        .await?;
    let next = all.terms(AMOUNT, FEE)?;
    refused(&all, &next, |part| part.hash = other);
    all.client.node().fail(other);
    payer.failed().await?;
    all.idle().await?;
    all.move_part(AMOUNT, FEE).await
}

/// Else it would count as moved what is where nobody agreed to have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_takes_a_part_over_its_new_leaf_only() -> Result<()> {
    let mut all = moving().await?;
    let third = Unborn::new(&all.lsp, &all.client)?;
    all.lsp.synced().await?;
    all.client.synced().await?;
    third.open(&mut all.lsp, &mut all.client).await?;
    third.ungate([&all.lsp, &all.client])?;
    let mut part = all.terms(AMOUNT, FEE)?;
    part.to = third.id;
    all.send(&part)?;
    for side in [&mut all.client, &mut all.lsp] {
        assert!(end(side, &part).await?.is_err());
    }
    all.idle().await?;
    assert_eq!(all.balance(&third)?, Msat(0));
    assert_eq!(all.balance(&all.old)?, BALANCE);
    all.move_part(AMOUNT, FEE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_does_not_pay_twice_or_into_nothing() -> Result<()> {
    let all = moving().await?;
    let part = all.terms(AMOUNT, FEE)?;
    let client = all.client.node();
    let send = |amount| client.send_part(part.hash, amount, [1; 32], part.incoming_expiry);
    // More than it has, and less than what it is to get.
    assert!(send(Msat(BALANCE.0 + 1)).is_err());
    assert!(send(Msat(AMOUNT.0 - 1)).is_err());
    let unknown = channel_host::PaymentHash([3; 32]);
    assert!(client.send_part(unknown, AMOUNT, [1; 32], 1_000).is_err());
    assert_eq!(state(&all.client, &part), Some(PartState::Agreed));
    assert_eq!(all.balance(&all.old)?, BALANCE);
    Ok(())
}
