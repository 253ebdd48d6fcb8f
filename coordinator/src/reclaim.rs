//! Takes back what is the coordinator's alone: whatever all its other owners have handed over their keys of, at once; unsold stocks, and what
//! sales left of others, `q` blocks after they confirmed; under `LspReclaim` what nobody published by `T`. Derived anew at every tip from what is on the chain.

use std::collections::{BTreeMap, HashMap, HashSet};

use bitcoin::key::Keypair;
use bitcoin::secp256k1::{All, Secp256k1, SecretKey};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use chain::ChainError;
use channel_host::{KnownSpend, LeafId, SpendKind, lsp_channel_id};
use factory_tree::factory::SpentKind;
use factory_tree::handover::ClientKeys;
use factory_tree::ids::FactoryId;
use factory_tree::keys::Owners;
use factory_tree::output::{self, ScriptLeaf};
use factory_tree::plan;
use factory_tree::shape::ClientRange;
use factory_tree::sweep::{self, SweepError, SweepInput, Unlock};
use factory_tree::tx::checked_sum;

use crate::chain_task::ChainTaskError;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::keys::FreshSeed;
use crate::store::factories::FactoryRow;
use crate::store::ladder;
use crate::store::ladder::HandoverRow;
use crate::store::outputs::{self, OutputRow};
use crate::store::sweeps::{self, SweepRow};
use crate::store::{attempts, factories};
use crate::trees::{KnownChannel, KnownTree};

/// Blocks after which a sweep that pays too little is replaced.
const PATIENCE: u32 = 12;
/// Blocks between two tries after the node refused one.
const PAUSE: u32 = 6;
/// Inputs of one sweep: a script-path input is about 60 vB, so this stays well under what nodes relay.
const MOST_INPUTS: usize = 500;

/// Broadcasts pending sweeps again, and makes new ones for what has come due.
///
/// # Errors
/// [`ChainTaskError`]; what was not done is done at the next block.
pub async fn run(ctx: &Context) -> Result<(), ChainTaskError> {
    let (unspent, pending, handed_over) = ctx
        .store
        .read(async |tx| {
            Ok((
                outputs::unspent(tx).await?,
                sweeps::pending(tx).await?,
                ladder::handed_over(tx).await?,
            ))
        })
        .await?;
    let handed_over: HashMap<FactoryId, u32> = handed_over.into_iter().collect();
    if unspent.is_empty() && pending.is_empty() {
        return Ok(());
    }
    let mut swept = HashSet::new();
    let feerate = ctx.feerate().await;
    for row in pending {
        if is_stuck(&row, &unspent, ctx.height(), feerate) {
            give_up(ctx, row.tx.compute_txid()).await?;
        } else if again(ctx, &row).await? {
            swept.extend(row.tx.input.iter().map(|input| input.previous_output));
        }
    }
    let mut by_factory: BTreeMap<FactoryId, Vec<OutputRow>> = BTreeMap::new();
    for output in unspent
        .into_iter()
        .filter(|output| !swept.contains(&output.outpoint))
    {
        let has_leaf = matches!(
            output.kind,
            SpentKind::Stock | SpentKind::Funding | SpentKind::Static | SpentKind::State
        );
        if has_leaf || handed_over.contains_key(&output.factory) {
            by_factory.entry(output.factory).or_default().push(output);
        }
    }
    for (factory, outputs) in by_factory {
        let left = handed_over.get(&factory).copied().unwrap_or(0);
        if let Err(error) = sweep_factory(ctx, factory, left, outputs).await {
            match error {
                // One factory that cannot be rebuilt does not keep the others.
                ChainTaskError::Trees(error) => {
                    tracing::error!(%error, %factory, "what is due cannot be swept")
                }
                error => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether a pending sweep is still on its way.
async fn again(ctx: &Context, row: &SweepRow) -> Result<bool, ChainTaskError> {
    match ctx.source.broadcast(&row.tx).await {
        Ok(_) => {
            ctx.wallet.record_unconfirmed(&row.tx).await?;
            Ok(true)
        }
        Err(error @ ChainError::Rejected { txid, .. }) => {
            // Something else spent an input, or the lock counts again after a reorg: what is left is swept anew when due.
            tracing::warn!(%error, "a sweep was not accepted");
            give_up(ctx, txid).await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

async fn give_up(ctx: &Context, txid: Txid) -> Result<(), ChainTaskError> {
    ctx.store
        .write(async |tx| sweeps::give_up(tx, &txid).await)
        .await?;
    Ok(ctx.wallet.forget_unconfirmed([txid]).await?)
}

/// Whether a sweep waits for long and pays clearly less than it should now: then another one replaces it.
fn is_stuck(row: &SweepRow, unspent: &[OutputRow], height: u32, feerate: FeeRate) -> bool {
    if height < row.created_height.saturating_add(PATIENCE) {
        return false;
    }
    let amount_of = |outpoint: OutPoint| {
        let found = unspent.iter().find(|output| output.outpoint == outpoint);
        found.map(|output| output.amount)
    };
    let inputs = row
        .tx
        .input
        .iter()
        .map(|input| amount_of(input.previous_output));
    let Some(inputs) = inputs.collect::<Option<Vec<_>>>().and_then(checked_sum) else {
        return false;
    };
    let paid = inputs.checked_sub(row.amount).unwrap_or_default();
    let due = feerate.fee_vb(row.tx.vsize() as u64).unwrap_or(Amount::MAX);
    // A quarter more is enough to replace it (BIP-125 asks for 1 sat/vB more).
    due.to_sat() > paid.to_sat().saturating_add(paid.to_sat() / 4)
}

/// How an output is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// By the script leaf, whose lock has ended.
    Leaf(ScriptLeaf),
    /// All its other owners have handed over their keys.
    Keys,
}

/// Whether anything of a factory may be ours now, before its tree is built: `left` clients of it have handed over.
fn may_be_due(row: &FactoryRow, left: u32, outputs: &[OutputRow], height: u32) -> bool {
    let stands = outputs.iter().all(|output| output.outpoint == row.funding);
    let by_keys = match stands {
        true => left >= row.clients,
        false => left > 0,
    };
    let stock = outputs.iter().any(|output| output.kind == SpentKind::Stock);
    by_keys || stock || height >= row.expiry_height
}

async fn sweep_factory(
    ctx: &Context,
    factory: FactoryId,
    left: u32,
    outputs: Vec<OutputRow>,
) -> Result<(), ChainTaskError> {
    let height = ctx.height();
    let row = ctx
        .store
        .read(async |tx| factories::get(tx, factory).await)
        .await?;
    // Cheap first: a factory's tree is built only when something of it may be due.
    let Some(row) = row.filter(|row| may_be_due(row, left, &outputs, height)) else {
        return Ok(());
    };
    let last = ctx
        .store
        .read(async |tx| sweeps::last_refused(tx, factory).await)
        .await?;
    if last.is_some_and(|last| height < last.saturating_add(PAUSE)) {
        return Ok(());
    }
    let known = ctx.trees.get(&ctx.store, factory).await?;
    let (fresh, handed_over) = ctx
        .store
        .read(async |tx| {
            Ok((
                attempts::fresh(tx, row.round).await?,
                ladder::keys(tx, factory).await?,
            ))
        })
        .await?;
    let keys = Keys::open(ctx, &known, &row, fresh, &handed_over);
    let due: Vec<(OutputRow, Means)> = outputs
        .into_iter()
        .filter_map(|output| {
            let params = &known.tree.spec().params;
            let leaf = plan::script_leaf(params, known.tree.schedule(), output.kind);
            // What was sold from is not unsold: its chain is published, or it is ours by keys (protocol.md section 6).
            let consumed = known.consumer(output.outpoint).is_some();
            let means = if !consumed && is_due(leaf, output.confirmed_height, height) {
                Means::Leaf(leaf)
            } else if keys.own(&owners(&known, output.outpoint)?) {
                Means::Keys
            } else {
                return None;
            };
            Some((output, means))
        })
        .take(MOST_INPUTS)
        .collect();
    if due.is_empty() {
        return Ok(());
    }
    let feerate = ctx.feerate().await;
    // First to a script of the same length: what is not worth it, block after block, takes no address of the wallet's.
    let trial = output::taproot(keys.lsp.x_only_public_key().0);
    let made = match make(&known, &due, &keys, trial, feerate) {
        Ok(_) => {
            let destination = ctx.wallet.new_address().await?.script_pubkey();
            make(&known, &due, &keys, destination, feerate)
        }
        error => error,
    };
    let tx = match made {
        Ok(tx) => tx,
        Err(error @ SweepError::TooLittle { .. }) => {
            tracing::info!(%error, %factory, "not worth sweeping at this feerate");
            return Ok(());
        }
        Err(error) => {
            tracing::error!(%error, %factory, "what is due cannot be swept");
            return Ok(());
        }
    };
    tell_node(ctx, &known, &due, &tx).await;
    publish(ctx, factory, tx).await
}

/// A channel that we take by keys is no commitment: the node has to know before it sees it.
async fn tell_node(ctx: &Context, known: &KnownTree, due: &[(OutputRow, Means)], tx: &Transaction) {
    let Some(node) = ctx.lightning.node() else {
        return;
    };
    let spend = KnownSpend {
        txid: tx.compute_txid(),
        kind: SpendKind::Reap,
    };
    let channels = due
        .iter()
        .filter(|(output, _)| output.kind == SpentKind::Channel);
    let leaves: Vec<LeafId> = channels
        .filter_map(|(output, _)| {
            let channel = known.channel(output.outpoint)?;
            Some(LeafId(channel.leaf.0))
        })
        .collect();
    // A write of the node's, which waits for the disk.
    let told = tokio::task::spawn_blocking(move || {
        let mut leaves = leaves.into_iter();
        leaves.try_for_each(|leaf| node.add_known_spends(leaf, &[spend]))
    });
    if let Ok(Err(error)) = told.await {
        tracing::warn!(%error, "the Lightning node takes a reap for a closing");
    }
}

async fn publish(ctx: &Context, factory: FactoryId, tx: Transaction) -> Result<(), ChainTaskError> {
    let txid = tx.compute_txid();
    let amount = tx
        .output
        .first()
        .map(|output| output.value)
        .unwrap_or_default();
    let row = SweepRow {
        factory,
        tx,
        amount,
        created_height: ctx.height(),
        dead: false,
    };
    ctx.store
        .write(async |conn| sweeps::insert(conn, &row).await)
        .await?;
    fault::point("reap_stored");
    if again(ctx, &row).await? {
        ctx.events.emit(Event::SweepBroadcast {
            factory,
            txid,
            sat: amount.to_sat(),
            outputs: row.tx.input.len(),
        });
    }
    Ok(())
}

/// Whether the next block may contain the spend.
fn is_due(leaf: ScriptLeaf, confirmed: u32, tip: u32) -> bool {
    match leaf {
        ScriptLeaf::None => false,
        // BIP-65: a transaction with nLockTime T is final in block T + 1.
        ScriptLeaf::LspAfter(height) => tip >= height.0,
        // BIP-68: the spend's block is at least `delay` above the output's.
        ScriptLeaf::LspDelayed(delay) => tip.saturating_add(1) >= confirmed.saturating_add(delay.0),
    }
}

/// What opens the outputs of one factory.
struct Keys {
    secp: Secp256k1<All>,
    lsp: Keypair,
    /// Of clients that have handed over, by their place.
    clients: HashMap<u32, ClientKeys>,
    /// Our keys of their channels.
    channels: HashMap<factory_tree::ids::LeafId, Keypair>,
}

impl Keys {
    fn open(
        ctx: &Context,
        known: &KnownTree,
        row: &FactoryRow,
        fresh: FreshSeed,
        handed_over: &[HandoverRow],
    ) -> Self {
        let secp = Secp256k1::new();
        let mut secret = ctx.keys.factory_secret(row.round, fresh);
        let members = &known.tree.spec().members;
        let (mut clients, mut channels) = (HashMap::new(), HashMap::new());
        for one in handed_over {
            let Some(member) = members.get(one.position as usize) else {
                continue;
            };
            match one
                .keys
                .open(member, &known.bought_keys(one.position), &secret)
            {
                Ok(keys) => {
                    let bought = known.bought(one.position);
                    let bought = bought.map(|(sale, sold)| (sold.leaf_id, sale.sold.fresh));
                    for (leaf, fresh) in bought.chain([(member.leaf_id, fresh)]) {
                        let id = lsp_channel_id(leaf.0, fresh);
                        let mut own = ctx.keys.leaf_keys().funding_secret(id);
                        channels.insert(leaf, Keypair::from_secret_key(&secp, &own));
                        own.non_secure_erase();
                    }
                    clients.insert(one.position, keys);
                }
                // They were checked before they were stored.
                Err(error) => tracing::error!(%error, "stored keys of a client are damaged"),
            }
        }
        let lsp = Keypair::from_secret_key(&secp, &secret);
        secret.non_secure_erase();
        Self {
            secp,
            lsp,
            clients,
            channels,
        }
    }

    /// Whether these clients' keys are all ours.
    fn own(&self, clients: &ClientRange) -> bool {
        clients
            .clone()
            .all(|client| self.clients.contains_key(&client))
    }

    /// Every owner's secret, in key-aggregation order.
    fn secrets(&self, clients: &ClientRange) -> Option<Vec<SecretKey>> {
        let mut all = vec![self.lsp.secret_key()];
        for client in clients.clone() {
            all.push(self.clients.get(&client)?.factory);
        }
        Some(all)
    }

    /// The key pair and the way by which a channel of a client that has left is ours.
    fn channel(&self, channel: &KnownChannel) -> Option<(Keypair, Unlock)> {
        let keys = self.clients.get(&channel.position)?;
        let theirs = match channel.bought {
            None => &keys.channel,
            Some(number) => keys.sold.get(number)?,
        };
        let other = Keypair::from_secret_key(&self.secp, theirs);
        Some((
            *self.channels.get(&channel.leaf)?,
            Unlock::Channel { other },
        ))
    }
}

fn make(
    known: &KnownTree,
    due: &[(OutputRow, Means)],
    keys: &Keys,
    destination: ScriptBuf,
    feerate: FeeRate,
) -> Result<Transaction, SweepError> {
    let mut spends = Vec::with_capacity(due.len());
    for (output, means) in due {
        let spend = spend(known, output, *means, keys);
        spends.push(spend.ok_or(SweepError::NotOurs {
            outpoint: output.outpoint,
        })?);
    }
    let inputs: Vec<SweepInput<'_>> = due
        .iter()
        .zip(&spends)
        .map(|((output, _), spend)| SweepInput {
            outpoint: output.outpoint,
            txout: bitcoin::TxOut {
                value: output.amount,
                script_pubkey: spend.script.clone(),
            },
            keypair: &spend.pair,
            unlock: spend.unlock,
        })
        .collect();
    sweep::sweep(
        &keys.secp,
        &inputs,
        destination,
        feerate.to_sat_per_vb_ceil(),
    )
}

/// How one output is spent.
struct Spend {
    script: ScriptBuf,
    pair: Keypair,
    unlock: Unlock,
}

fn spend(known: &KnownTree, output: &OutputRow, means: Means, keys: &Keys) -> Option<Spend> {
    let clients = owners(known, output.outpoint)?;
    if output.kind == SpentKind::Channel {
        let channel = known.channel(output.outpoint)?;
        let (pair, unlock) = keys.channel(&channel)?;
        let script = output::channel(&channel.channel_key, &channel.lsp_channel_key);
        return Some(Spend {
            script,
            pair,
            unlock,
        });
    }
    let mut ring = known.tree.keys().clone();
    let spec = known.tree.spec();
    let leaf = plan::script_leaf(&spec.params, known.tree.schedule(), output.kind);
    let root = leaf.merkle_root(ring.lsp_x_only());
    let key = ring.output(&Owners::with_lsp(&clients), root).ok()?;
    let (pair, unlock) = match means {
        Means::Leaf(leaf) => (
            keys.lsp,
            Unlock::Leaf {
                leaf,
                internal_key: key.internal,
            },
        ),
        Means::Keys => {
            let mut secrets = keys.secrets(&clients)?;
            let pair = key.keypair(&keys.secp, &secrets);
            secrets.iter_mut().for_each(SecretKey::non_secure_erase);
            (pair.ok()?, Unlock::Output)
        }
    };
    Some(Spend {
        script: key.script(),
        pair,
        unlock,
    })
}

/// The clients an output belongs to.
fn owners(known: &KnownTree, outpoint: OutPoint) -> Option<ClientRange> {
    if outpoint == known.tree.funding() {
        return Some(0..u32::try_from(known.tree.spec().members.len()).ok()?);
    }
    let (_, output) = known.tx(&outpoint.txid)?.output(outpoint.vout)?;
    Some(output.clients.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use factory_tree::units::{Blocks, Height};

    #[test]
    fn locks_end_with_the_block_that_may_hold_the_spend() {
        let stock = ScriptLeaf::LspDelayed(Blocks(504));
        assert!(!is_due(stock, 100, 602));
        assert!(is_due(stock, 100, 603));
        let unpublished = ScriptLeaf::LspAfter(Height(700));
        assert!(!is_due(unpublished, 100, 699));
        assert!(is_due(unpublished, 100, 700));
        assert!(!is_due(ScriptLeaf::None, 1, 1_000_000));
    }

    #[test]
    fn a_sweep_that_pays_too_little_is_replaced_in_time() {
        use bitcoin::{Sequence, TxIn, TxOut, absolute, hashes::Hash, transaction};
        let outpoint = OutPoint::new(Txid::from_byte_array([1; 32]), 0);
        let factory = FactoryId([2; 32]);
        let output = OutputRow {
            outpoint,
            factory,
            kind: SpentKind::Stock,
            amount: Amount::from_sat(100_000),
            confirmed_height: 10,
            spent_height: None,
            spent_by: None,
        };
        let tx = Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn {
                previous_output: outpoint,
                sequence: Sequence::from_height(504),
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: Amount::from_sat(99_000),
                script_pubkey: ScriptBuf::new(),
            }],
        };
        let (size, amount) = (tx.vsize() as u64, Amount::from_sat(99_000));
        let row = SweepRow {
            factory,
            tx,
            amount,
            created_height: 600,
            dead: false,
        };
        let rate = |fee: u64| FeeRate::from_sat_per_vb(fee / size).unwrap();
        let stuck = |height, fee| is_stuck(&row, std::slice::from_ref(&output), height, rate(fee));
        assert!(stuck(612, 2_000));
        assert!(!stuck(611, 2_000), "not yet");
        assert!(!stuck(612, 1_000), "it pays enough");
        assert!(!is_stuck(&row, &[], 612, rate(2_000)), "its input is spent");
    }
}
