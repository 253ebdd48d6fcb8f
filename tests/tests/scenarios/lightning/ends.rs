//! Leaves that go to the chain.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::secp256k1::PublicKey;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use channel_host::{
    CLAIM_BUFFER, ExitReason, FeeCoins, KnownSpend, LeafId, NodeError, NodeEvent, Side, SpendKind,
    Stage,
};
use scenarios::bitcoind::Bitcoind;
use scenarios::coins::Coins;

use super::harness::{
    CAPACITY, EXIT_DELAY, Member, PREIMAGE, Unborn, child_in_mempool, fee_coins, held, held_for,
    holds, outside, paid_pair, pair, settled, spent_by, until,
};
use crate::chain::support::{payout_script, sat};

/// What the client had at the end of [`paid_pair`].
const CLIENTS: Amount = Amount::from_sat(200_000);

async fn asked_to_exit(member: &mut Member) -> Result<ExitReason> {
    member
        .event(|event| match event {
            NodeEvent::ExitNeeded { reason, .. } => Some(*reason),
            _ => None,
        })
        .await
}

/// Lets the commitment in the mempool confirm and the money come home; returns how much more it is.
async fn come_home(node: &Bitcoind, member: &mut Member, leaf: &Unborn) -> Result<Amount> {
    let before = holds(node, member)?;
    child_in_mempool(node, leaf.transaction.compute_txid()).await?;
    node.mine(1)?;
    assert_eq!(spent_by(member).await?, SpendKind::Commitment);
    node.mine(144)?;
    member.synced().await?;
    until("a sweep", || {
        node.mine(1)?;
        Ok(holds(node, member)? > before)
    })
    .await?;
    Ok(holds(node, member)? - before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_exits_with_its_balance() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    fee_coins(&node, &client)?;
    lsp.abort().await;
    client.node().force_close(leaf.id).await?;
    assert_eq!(asked_to_exit(&mut client).await?, ExitReason::Asked);
    node.mine(5)?;
    client.synced().await?;
    // The channel lives and nothing is broadcast while the leaf is not there.
    assert!(node.mempool()?.is_empty());
    assert_eq!(client.node().channels().len(), 1);
    client.crash().await?;

    leaf.publish(&node)?;
    let home = come_home(&node, &mut client, &leaf).await?;
    assert!(home > CLIENTS - sat(10_000), "{home}");
    let view = client.node().leaf(leaf.id).expect("known");
    assert_eq!(view.stage, Stage::Closed);
    Ok(())
}

/// Its anchor has no key: a friend with a coin will do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_can_pay_for_the_commitment_of_a_wallet_without_coins() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    // A payment that is claimed and not yet settled would take a coin of the wallet's own.
    until("a settled payment", || {
        let sides = [&lsp, &client].map(|side| side.node().channels());
        Ok(sides.iter().flatten().all(|channel| channel.pending == 0))
    })
    .await?;
    lsp.abort().await;
    client.node().force_close(leaf.id).await?;
    leaf.publish(&node)?;
    let commitment = client
        .event(|event| match event {
            NodeEvent::CommitmentReady { transaction, .. } => Some(transaction.as_ref().clone()),
            _ => None,
        })
        .await?;
    client.synced().await?;
    assert!(node.mempool()?.is_empty());

    let friend = Coins {
        node: Arc::clone(&node),
        n: 99,
        spent: Mutex::default(),
    };
    node.send_to(&payout_script(99), sat(50_000))?;
    node.mine(1)?;
    let coin = friend.coins().await?.remove(0);
    let outputs = (0..).zip(&commitment.output);
    let mut anchors = outputs.filter(|(_, output)| output.script_pubkey == ScriptBuf::new_p2a());
    let (vout, anchor) = anchors.next().expect("it has an anchor");
    let input = |previous_output| TxIn {
        previous_output,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    let mut child = Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![
            input(OutPoint::new(commitment.compute_txid(), vout)),
            input(coin.outpoint),
        ],
        output: vec![TxOut {
            value: anchor.value + coin.txout.value - sat(5_000),
            script_pubkey: payout_script(99),
        }],
    };
    friend
        .sign(&mut child, &[anchor.clone(), coin.txout.clone()])
        .await?;
    let package = [serialize_hex(&commitment), serialize_hex(&child)];
    let answer = node.rpc("submitpackage", serde_json::json!([package]))?;
    assert_eq!(answer["package_msg"], "success", "{answer}");
    let home = come_home(&node, &mut client, &leaf).await?;
    assert!(home > CLIENTS - sat(1_000), "{home}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_exits_with_its_balance() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    fee_coins(&node, &lsp)?;
    client.abort().await;
    lsp.node().force_close(leaf.id).await?;
    lsp.restart().await?;
    leaf.publish(&node)?;
    let home = come_home(&node, &mut lsp, &leaf).await?;
    assert!(home > CAPACITY - CLIENTS - sat(10_000), "{home}");

    // The client comes back, and finds its own on the chain.
    client.launch().await?;
    let before = holds(&node, &client)?;
    until("a sweep", || {
        node.mine(1)?;
        Ok(holds(&node, &client)? > before)
    })
    .await?;
    assert!(holds(&node, &client)? > CLIENTS - sat(10_000));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commitment_is_published_again_after_a_reorg() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    fee_coins(&node, &lsp)?;
    client.abort().await;
    lsp.node().force_close(leaf.id).await?;
    leaf.publish(&node)?;
    let leaf_txid = leaf.transaction.compute_txid();
    child_in_mempool(&node, leaf_txid).await?;
    node.mine(1)?;
    assert_eq!(spent_by(&mut lsp).await?, SpendKind::Commitment);

    // Leaf and commitment leave the chain, and the node forgets both.
    node.invalidate(node.block_hash(node.height()? - 1)?)?;
    node.restart_with(scenarios::bitcoind::Options {
        arguments: vec!["-persistmempool=0".into()],
        ..Default::default()
    })?;
    node.mine_empty(3)?;
    lsp.event(|event| matches!(event, NodeEvent::LeafUnconfirmed { .. }).then_some(()))
        .await?;
    lsp.synced().await?;
    leaf.publish(&node)?;
    child_in_mempool(&node, leaf_txid).await?;
    node.mine(1)?;
    assert_eq!(spent_by(&mut lsp).await?, SpendKind::Commitment);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_channel_outlives_the_confirmation_of_its_leaf() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    leaf.publish(&node)?;
    let confirmed = |event: &NodeEvent| match event {
        NodeEvent::LeafConfirmed { height, .. } => Some(*height),
        _ => None,
    };
    lsp.event(confirmed).await?;
    client.event(confirmed).await?;
    node.mine(7)?;
    lsp.synced().await?;
    client.synced().await?;
    super::harness::pay_client(&mut lsp, &mut client, 5_000_000).await?;

    // Closed together, it is paid out at once.
    let channel = client.node().channels().remove(0).channel;
    client.node().close_channel(channel, false).await?;
    child_in_mempool(&node, leaf.transaction.compute_txid()).await?;
    node.mine(1)?;
    assert_eq!(spent_by(&mut client).await?, SpendKind::Cooperative);
    assert_eq!(spent_by(&mut lsp).await?, SpendKind::Cooperative);
    Ok(())
}

/// Both sides' spend of the channel output, valid from a height on.
fn timeout(leaf: &Unborn, lsp: &Member, client: &Member, height: u32) -> Result<Transaction> {
    let mut tx = Transaction {
        version: Version(3),
        lock_time: LockTime::from_height(height)?,
        input: vec![TxIn {
            previous_output: OutPoint::new(leaf.transaction.compute_txid(), 1),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            ..TxIn::default()
        }],
        output: vec![TxOut {
            value: CAPACITY - sat(1_000),
            script_pubkey: payout_script(60),
        }],
    };
    let script = &leaf.lsp.redeem_script;
    let mut halves = [(lsp, leaf.lsp.channel_id), (client, leaf.client.channel_id)]
        .map(|(member, id)| {
            let keys = member.keys();
            let signature = keys.sign_timeout(id, &tx, 0, script, CAPACITY);
            signature.map(|signature| (keys.funding_pubkey(id), signature))
        })
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    halves.sort_by_key(|(key, _)| key.serialize());
    let mut witness = Witness::new();
    witness.push([]);
    for (_, signature) in halves {
        witness.push_ecdsa_signature(&bitcoin::ecdsa::Signature::sighash_all(signature));
    }
    witness.push(script);
    tx.input[0].witness = witness;
    Ok(tx)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_is_told_from_a_commitment() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    let spend = timeout(&leaf, &lsp, &client, node.height()?)?;
    let known = KnownSpend {
        txid: spend.compute_txid(),
        kind: SpendKind::Timeout,
    };
    lsp.node().add_known_spends(leaf.id, &[known])?;
    client.node().add_known_spends(leaf.id, &[known])?;
    leaf.publish(&node)?;
    node.mine_with(&[spend])?;
    assert_eq!(spent_by(&mut lsp).await?, SpendKind::Timeout);
    assert_eq!(spent_by(&mut client).await?, SpendKind::Timeout);
    node.mine(10)?;
    until("closed channels", || {
        Ok(lsp.node().channels().is_empty() && client.node().channels().is_empty())
    })
    .await?;
    // Nobody tries to publish anything any more.
    client.restart().await?;
    node.mine(2)?;
    client.synced().await?;
    assert!(node.mempool()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_received_is_fetched_in_time_when_the_coordinator_vanishes() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    fee_coins(&node, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    let expiry = held(&mut lsp, &mut client).await?;
    lsp.abort().await;
    client.node().claim(PREIMAGE)?;
    let exit = super::harness::EXIT_DELAY + 36 + 1;
    node.mine_until(expiry - exit - 1)?;
    client.synced().await?;
    let view = client.node().leaf(leaf.id).expect("known");
    assert!(!view.exiting);
    node.mine(1)?;
    let reason = asked_to_exit(&mut client).await?;
    assert_eq!(reason, ExitReason::ReceivedUnsettled { expiry });

    leaf.publish(&node)?;
    let home = come_home(&node, &mut client, &leaf).await?;
    let mut total = home;
    // Two outputs come home: the balance, and what the preimage fetched.
    let before = holds(&node, &client)?;
    if total < CLIENTS + sat(80_000) {
        until("the payment", || {
            node.mine(1)?;
            Ok(holds(&node, &client)? > before + sat(50_000))
        })
        .await?;
        total += holds(&node, &client)? - before;
    }
    assert!(total > CLIENTS + sat(80_000), "{total}");
    Ok(())
}

/// Whether a node was asked to exit by the time it has seen the chain's tip.
async fn stays(member: &mut Member, leaf: LeafId) -> Result<bool> {
    settled(member, leaf).await?;
    while let Some(event) = member.heard() {
        if matches!(event, NodeEvent::ExitNeeded { .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Blocks more than usual for a payment, so that nobody is to be woken for it yet.
const LATER: u32 = 40;

/// Returns who it was.
async fn goes_away(lsp: &Member, client: &mut Member) -> Result<PublicKey> {
    let id = client.node().id();
    client.abort().await;
    until("a client that is away", || {
        Ok(!lsp.node().peers().contains(&id))
    })
    .await?;
    Ok(id)
}

/// Whoever is away is to be woken in the 23 blocks before its channel goes to the chain, and not earlier.
async fn is_to_be_woken(lsp: &mut Member, id: PublicKey, exits_at: u32) -> Result<()> {
    let node = Arc::clone(&lsp.bitcoind);
    assert!(node.height()? < exits_at - 24);
    node.mine_until(exits_at - 24)?;
    lsp.synced().await?;
    while let Some(event) = lsp.heard() {
        let soon = matches!(event, NodeEvent::ExpirySoon { .. });
        assert!(!soon, "{event:?}");
    }
    node.mine(1)?;
    let told = lsp
        .event(|event| match event {
            NodeEvent::ExpirySoon { client, exits_at } => Some((*client, *exits_at)),
            _ => None,
        })
        .await?;
    assert_eq!(told, (id, exits_at));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_is_to_be_woken_before_a_payment_forces_its_leaf_to_the_chain() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    let expiry = held_for(&mut client, &mut lsp, LATER).await?;
    let id = goes_away(&lsp, &mut client).await?;
    lsp.node().claim(PREIMAGE)?;
    let exits_at = expiry - EXIT_DELAY - CLAIM_BUFFER - 1;
    is_to_be_woken(&mut lsp, id, exits_at).await?;

    // It comes and settles it: nothing is forced.
    client.launch().await?;
    client.connect(&lsp).await?;
    client.sent().await?;
    until("a settled payment", || {
        let channels = lsp.node().channels();
        Ok(channels.iter().all(|channel| channel.pending == 0))
    })
    .await?;
    node.mine_until(exits_at)?;
    assert!(stays(&mut lsp, leaf.id).await?);
    Ok(())
}

/// The coordinator, and somebody with an ordinary channel of which both have something.
async fn ordinary_pair() -> Result<(Member, Member)> {
    let node = Arc::new(Bitcoind::start()?);
    let mut lsp = Member::start(&node, Side::Lsp, 11).await?;
    lsp.synced().await?;
    let mut client = outside(&mut lsp).await?;
    for member in [&lsp, &client] {
        member.synced().await?;
        member.usable(1).await?;
    }
    let invoice = lsp.plain_invoice(300_000_000)?;
    client.node().pay(&invoice, None)?;
    client.sent().await?;
    until("a settled payment", || {
        let sides = [&lsp, &client].map(|side| side.node().channels());
        Ok(sides.iter().flatten().all(|channel| channel.pending == 0))
    })
    .await?;
    Ok((lsp, client))
}

/// Lightning closes an ordinary channel by itself, at that height.
async fn is_closed_at(lsp: &mut Member, height: u32) -> Result<()> {
    let node = Arc::clone(&lsp.bitcoind);
    node.mine_until(height - 1)?;
    lsp.synced().await?;
    assert_eq!(lsp.node().channels().len(), 1);
    node.mine(1)?;
    lsp.event(|event| matches!(event, NodeEvent::ChannelClosed { .. }).then_some(()))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_is_to_be_woken_before_what_it_pays_closes_its_ordinary_channel() -> Result<()>
{
    let (mut lsp, mut client) = ordinary_pair().await?;
    let expiry = held_for(&mut client, &mut lsp, LATER).await?;
    let id = goes_away(&lsp, &mut client).await?;
    lsp.node().claim(PREIMAGE)?;
    is_to_be_woken(&mut lsp, id, expiry - CLAIM_BUFFER).await?;
    is_closed_at(&mut lsp, expiry - CLAIM_BUFFER).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_is_to_be_woken_before_what_it_is_paid_closes_its_ordinary_channel()
-> Result<()> {
    let (mut lsp, mut client) = ordinary_pair().await?;
    let expiry = held(&mut lsp, &mut client).await?;
    let id = goes_away(&lsp, &mut client).await?;
    is_to_be_woken(&mut lsp, id, expiry + 3).await?;
    is_closed_at(&mut lsp, expiry + 3).await
}

async fn closed(member: &mut Member) -> Result<()> {
    member
        .event(|event| matches!(event, NodeEvent::LeafClosed { .. }).then_some(()))
        .await
}

/// LDK does not count a payment as pending whose preimage it gave away, though it may not be settled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_the_peer_ends_is_fetched_while_something_may_be_owed() -> Result<()> {
    let (node, lsp, mut client, leaf) = paid_pair().await?;
    // A reorg has shut the gate, for the moment.
    client.node().set_factory_confirmed(leaf.id, false)?;
    lsp.node().abandon_leaf(leaf.id)?;
    closed(&mut client).await?;
    assert!(stays(&mut client, leaf.id).await?);
    client.crash().await?;
    client.node().set_factory_confirmed(leaf.id, true)?;
    node.mine(1)?;
    assert_eq!(asked_to_exit(&mut client).await?, ExitReason::Closed);
    Ok(())
}

/// Else it would be open again, and nobody fetch what is owed, until the coordinator is back and ends it once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_was_told_to_be_closed_is_closed_after_a_crash() -> Result<()> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    client.abort().await;
    client.fail_after_close().await?;
    client.launch().await?;
    client.usable(1).await?;
    lsp.usable(1).await?;
    client.node().set_factory_confirmed(leaf.id, false)?;
    lsp.node().abandon_leaf(leaf.id)?;
    closed(&mut client).await?;
    lsp.abort().await;
    client.abort().await;
    // Else the fuse never blew.
    assert!(client.stores_a_close().await?);
    client.fail_after(None).await?;
    client.launch().await?;
    assert!(client.node().channels().is_empty());
    client.node().set_factory_confirmed(leaf.id, true)?;
    node.mine(1)?;
    assert_eq!(asked_to_exit(&mut client).await?, ExitReason::Closed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_the_peer_ends_waits_if_nothing_ever_came_over_it() -> Result<()> {
    let (node, mut lsp, mut client) = pair().await?;
    let leaf = Unborn::new(&lsp, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    leaf.open(&mut lsp, &mut client).await?;
    leaf.ungate([&lsp, &client])?;
    lsp.node().abandon_leaf(leaf.id)?;
    closed(&mut client).await?;
    node.mine(1)?;
    assert!(stays(&mut client, leaf.id).await?);
    // Unless its user wants to.
    client.node().force_close(leaf.id).await?;
    assert_eq!(asked_to_exit(&mut client).await?, ExitReason::Asked);
    Ok(())
}

/// Else it would be paid over, before all others, and each payment cost its owner a commitment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_worth_nothing_is_closed_at_once_and_left_to_the_coordinator() -> Result<()> {
    let (node, mut lsp, mut client) = pair().await?;
    fee_coins(&node, &lsp)?;
    let leaf = Unborn::new(&lsp, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    leaf.open(&mut lsp, &mut client).await?;
    leaf.ungate([&lsp, &client])?;
    client.node().close_worthless(leaf.id)?;
    closed(&mut client).await?;
    closed(&mut lsp).await?;
    assert!(node.mempool()?.is_empty());
    leaf.publish(&node)?;
    child_in_mempool(&node, leaf.transaction.compute_txid()).await?;
    node.mine(1)?;
    // Only the coordinator had coins to pay for a commitment.
    assert_eq!(spent_by(&mut client).await?, SpendKind::Commitment);
    assert!(stays(&mut client, leaf.id).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_something_is_not_closed_for_nothing() -> Result<()> {
    let (_node, _lsp, client, leaf) = paid_pair().await?;
    let refused = client.node().close_worthless(leaf.id);
    assert!(matches!(refused, Err(NodeError::NotOver { .. })));
    assert_eq!(client.node().channels().len(), 1);
    Ok(())
}

/// A pair with a payment pending, and what will end its leaf without Lightning's doing.
async fn ending_pair() -> Result<(Arc<Bitcoind>, Member, Member, Unborn, Transaction)> {
    let (node, mut lsp, mut client, leaf) = paid_pair().await?;
    held(&mut lsp, &mut client).await?;
    let spend = timeout(&leaf, &lsp, &client, node.height()?)?;
    let known = KnownSpend {
        txid: spend.compute_txid(),
        kind: SpendKind::Timeout,
    };
    lsp.node().add_known_spends(leaf.id, &[known])?;
    Ok((node, lsp, client, leaf, spend))
}

async fn asked_to_restart(member: &mut Member) -> Result<()> {
    member
        .event(|event| matches!(event, NodeEvent::RestartNeeded { .. }).then_some(()))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_of_a_channel_that_a_timeout_ended_are_failed_back() -> Result<()> {
    let (node, mut lsp, _client, leaf, spend) = ending_pair().await?;
    leaf.publish(&node)?;
    node.mine_with(&[spend])?;
    assert_eq!(spent_by(&mut lsp).await?, SpendKind::Timeout);
    node.mine(5)?;
    asked_to_restart(&mut lsp).await?;
    lsp.restart().await?;
    lsp.failed().await?;
    // Once is enough.
    node.mine(1)?;
    lsp.synced().await?;
    while let Some(event) = lsp.heard() {
        assert!(
            !matches!(event, NodeEvent::RestartNeeded { .. }),
            "{event:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_of_a_channel_that_ended_while_we_were_away_are_failed_back() -> Result<()> {
    let (node, mut lsp, _client, leaf, spend) = ending_pair().await?;
    lsp.abort().await;
    leaf.publish(&node)?;
    node.mine_with(&[spend])?;
    node.mine(30)?;
    lsp.launch().await?;
    asked_to_restart(&mut lsp).await?;
    lsp.restart().await?;
    lsp.failed().await?;
    Ok(())
}
