//! A member's leaf, as the Lightning node wants to know it.

use bitcoin::secp256k1::PublicKey;
use channel_host::{KnownSpend, Leaf, LeafId, SpendKind, funding_redeem_script, lsp_channel_id};
use factory_tree::factory::FactoryTx;
use factory_tree::output::OutputRole;
use factory_tree::params::Schedule;
use factory_tree::sale::SaleTxs;
use factory_tree::tree::Tree;

use crate::keys::FreshSeed;

/// The leaf of the member at `position`, and the member's Lightning node id; `fresh` is the randomness of the tree's attempt.
#[must_use]
pub fn leaf_of(tree: &Tree, position: u32, fresh: FreshSeed) -> Option<(Leaf, PublicKey)> {
    let member = tree.spec().members.get(usize::try_from(position).ok()?)?;
    let path = tree.path(position);
    let transaction = path.last()?;
    let (outpoint, _) = transaction
        .outputs_of(OutputRole::Channel)
        .find(|(_, output)| output.clients.contains(&position))?;
    let mut timeouts = tree.channel_timeouts().iter();
    let timeout = timeouts.find(|timeout| timeout.spends.outpoint == outpoint);
    let schedule = tree.schedule();
    let leaf = Leaf {
        id: LeafId(member.leaf_id.0),
        channel_id: lsp_channel_id(member.leaf_id.0, fresh),
        transaction: transaction.tx.clone(),
        vout: outpoint.vout,
        redeem_script: funding_redeem_script(&member.channel_key, &member.lsp_channel_key),
        exit_delay: schedule.exit_delay.0,
        last_expiry: schedule.last_spend.0,
        spends: timeout_of(timeout),
    };
    // The account is the Lightning node.
    let client = PublicKey::from_slice(&member.client.0).ok()?;
    Some((leaf, client))
}

/// The leaf that a sale makes for the client at `position`; `fresh` is the randomness of the order.
#[must_use]
pub fn sold_leaf_of(
    txs: &SaleTxs,
    position: u32,
    schedule: &Schedule,
    fresh: FreshSeed,
) -> Option<Leaf> {
    let (bought, timeout) = txs.channel_of(position)?;
    let (outpoint, _) = txs
        .chain
        .outputs_of(OutputRole::Channel)
        .find(|(_, output)| output.clients.contains(&position))?;
    Some(Leaf {
        id: LeafId(bought.leaf_id.0),
        channel_id: lsp_channel_id(bought.leaf_id.0, fresh),
        transaction: txs.chain.tx.clone(),
        vout: outpoint.vout,
        redeem_script: funding_redeem_script(&bought.channel_key, &bought.lsp_channel_key),
        exit_delay: schedule.exit_delay.0,
        last_expiry: schedule.last_spend.0,
        // Poisons spend the stock: where one is in the chain, this leaf never comes.
        spends: timeout_of(Some(timeout)),
    })
}

/// What may spend a leaf's channel and is no commitment.
fn timeout_of(timeout: Option<&FactoryTx>) -> Vec<KnownSpend> {
    let known = timeout.map(|timeout| KnownSpend {
        txid: timeout.txid,
        kind: SpendKind::Timeout,
    });
    known.into_iter().collect()
}
