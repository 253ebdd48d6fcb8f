//! Payments pending when a leaf goes to the chain, from either side, to either side, settled there by preimage or by timeout.

use anyhow::Result;
use bitcoin::Amount;
use channel_host::{CLAIM_BUFFER, NodeEvent, SpendKind};
use scenarios::bitcoind::Bitcoind;

use super::harness::{
    CAPACITY, EXIT_DELAY, Member, PREIMAGE, child_in_mempool, fee_coins, held, holds, paid_pair,
    spent_by, until,
};
use crate::chain::support::sat;

const LSP: usize = 0;
const CLIENT: usize = 1;
/// What is pending ([`held`]).
const PENDING: Amount = Amount::from_sat(100_000);
/// What an exit may cost one side at most, in this test.
const COST: Amount = Amount::from_sat(20_000);

enum By {
    Preimage,
    Timeout,
}

/// The end of the payment, as the payer hears of it.
async fn settled(payer: &mut Member, by: &By) -> Result<()> {
    match by {
        By::Preimage => {
            payer
                .event(|event| match event {
                    NodeEvent::PaymentSent { preimage, .. } if *preimage == PREIMAGE => Some(()),
                    _ => None,
                })
                .await
        }
        By::Timeout => payer.failed().await.map(|_| ()),
    }
}

/// Mines until both sides have on the chain what is theirs.
async fn come_home(node: &Bitcoind, sides: &[Member; 2], due: [Amount; 2]) -> Result<()> {
    until("everybody's money", || {
        node.mine(1)?;
        let home = [holds(node, &sides[LSP])?, holds(node, &sides[CLIENT])?];
        Ok(home.iter().zip(due).all(|(home, due)| *home + COST > due))
    })
    .await
}

async fn pending_at_exit(publisher: usize, payer: usize, by: By) -> Result<()> {
    let payee = 1 - payer;
    let other = 1 - publisher;
    let (node, lsp, client, leaf) = paid_pair().await?;
    let mut sides = [lsp, client];
    for side in &sides {
        fee_coins(&node, side)?;
    }
    for side in &sides {
        side.synced().await?;
    }
    let mut due = [CAPACITY - sat(200_000), sat(200_000)];
    for (due, side) in due.iter_mut().zip(&sides) {
        *due += holds(&node, side)?;
    }
    let [lsp, client] = &mut sides;
    let expiry = if payer == LSP {
        held(lsp, client).await?
    } else {
        held(client, lsp).await?
    };

    // The other side is away, so that nothing is settled between the two.
    sides[other].abort().await;
    if matches!(by, By::Preimage) {
        due[payer] -= PENDING;
        due[payee] += PENDING;
        if publisher == payee {
            sides[payee].node().claim(PREIMAGE)?;
        }
    }
    sides[publisher].node().force_close(leaf.id).await?;
    leaf.publish(&node)?;
    let commitment = child_in_mempool(&node, leaf.transaction.compute_txid()).await?;
    node.mine(1)?;
    let kind = spent_by(&mut sides[publisher]).await?;
    assert_eq!(kind, SpendKind::Commitment);

    match by {
        By::Preimage if publisher != payee => {
            sides[payee].launch().await?;
            sides[payee].node().claim(PREIMAGE)?;
        }
        By::Preimage => {}
        By::Timeout => {
            if publisher == payee {
                sides[payee].abort().await;
                sides[payer].launch().await?;
            }
            node.mine_until(expiry)?;
        }
    }
    // What spends the commitment by now takes the payment; its owner's balance waits for 144 blocks more.
    child_in_mempool(&node, commitment.compute_txid()).await?;
    node.mine(8)?;
    if publisher == payee && matches!(by, By::Preimage) {
        sides[payer].launch().await?;
    }
    settled(&mut sides[payer], &by).await?;
    if publisher == payee && matches!(by, By::Timeout) {
        sides[payee].launch().await?;
    }
    if publisher == payer && matches!(by, By::Timeout) {
        sides[other].launch().await?;
    }
    node.mine(144)?;
    come_home(&node, &sides, due).await
}

macro_rules! cases {
    ($($name:ident: $publisher:expr, $payer:expr, $by:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            pending_at_exit($publisher, $payer, $by).await
        }
    )*};
}

cases! {
    the_coordinator_exits_and_its_payment_is_claimed: LSP, LSP, By::Preimage;
    the_coordinator_exits_and_its_payment_times_out: LSP, LSP, By::Timeout;
    the_coordinator_exits_and_claims_what_it_was_paid: LSP, CLIENT, By::Preimage;
    the_coordinator_exits_and_what_it_was_paid_times_out: LSP, CLIENT, By::Timeout;
    a_client_exits_and_its_payment_is_claimed: CLIENT, CLIENT, By::Preimage;
    a_client_exits_and_its_payment_times_out: CLIENT, CLIENT, By::Timeout;
    a_client_exits_and_claims_what_it_was_paid: CLIENT, LSP, By::Preimage;
    a_client_exits_and_what_it_was_paid_times_out: CLIENT, LSP, By::Timeout;
}

/// What it pays for may have been given meanwhile: it is judged when it comes, and taken when the host says so, as long as there is anything to take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_taken_however_late() -> Result<()> {
    let (node, mut lsp, mut client, _) = paid_pair().await?;
    let expiry = held(&mut client, &mut lsp).await?;
    // One that came now would be sent back.
    node.mine_until(expiry - EXIT_DELAY - CLAIM_BUFFER)?;
    lsp.synced().await?;
    client.synced().await?;
    lsp.node().claim(PREIMAGE)?;
    settled(&mut client, &By::Preimage).await
}
