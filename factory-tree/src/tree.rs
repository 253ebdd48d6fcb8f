//! The whole tree, as the coordinator builds it: amounts from the leaves up, transactions from
//! the funding outpoint down, sessions in a fixed order.
//!
//! Session order: for each node in preorder its own transaction, then the timeout of the output
//! it spends, then that timeout's second stages; after a leaf's, the timeouts of its stocks. A
//! client's sessions are those it signs, in this order.

use std::collections::BTreeSet;
use std::sync::Arc;

use bitcoin::{Amount, OutPoint, TxOut};

use crate::expiry::{Claim, ExpiryError};
use crate::factory::{FactorySpec, FactoryTx, Spent, SpentKind, channel_output};
use crate::ids::FactoryId;
use crate::keys::{KeyRing, OutputKey, Owners};
use crate::musig::MusigError;
use crate::output::{OutputRole, RoledOutput, anchor};
use crate::params::{ParamsError, Schedule};
use crate::plan::{self, Account, ClaimBook};
use crate::shape::{ClientRange, NodeKind, Shape, ShapeNode};
use crate::tx::{RelayError, TxKind, check_relay, checked_sum};

/// Why a tree cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The parameters or the number of clients.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The members' keys.
    #[error(transparent)]
    Keys(#[from] MusigError),
    /// Two members, or a member and the LSP, have the same factory key.
    #[error("factory key of member {0} is used twice")]
    DuplicateKey(u32),
    /// The amounts.
    #[error(transparent)]
    Expiry(#[from] ExpiryError),
    /// A transaction that would not relay.
    #[error("{kind:?} transaction: {error}")]
    Relay {
        /// Which kind.
        kind: TxKind,
        /// The rule broken.
        error: RelayError,
    },
    /// More than 21 million bitcoin.
    #[error("capacities add up to more than 21 million bitcoin")]
    Overflow,
}

/// A tree whose funding transaction is not known yet.
#[derive(Clone, Debug)]
pub struct Draft {
    spec: FactorySpec,
    schedule: Schedule,
    shape: Shape,
    keys: KeyRing,
    book: ClaimBook,
    /// The outputs of each node.
    outputs: Vec<Vec<RoledOutput>>,
    /// The key of the output each node spends.
    inputs: Vec<Arc<OutputKey>>,
    amounts: Vec<Amount>,
}

impl Draft {
    /// Computes every output of the tree.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn new(spec: FactorySpec) -> Result<Self, TreeError> {
        let clients = u32::try_from(spec.members.len()).unwrap_or(u32::MAX);
        let shape = Shape::new(&spec.params, clients)?;
        let schedule = spec.params.schedule(spec.birth, shape.levels())?;
        check_distinct(&spec)?;
        let members: Vec<_> = spec.members.iter().map(|m| m.factory_key).collect();
        let mut keys = KeyRing::new(spec.lsp_key, members);
        keys.aggregate(&groups(&spec, &shape))?;
        let accounts: Vec<Account> = spec
            .members
            .iter()
            .map(|m| Account {
                capacity: m.capacity,
                payout_script: m.payout_script.clone(),
            })
            .collect();
        let book = ClaimBook::new(&spec.params, &shape, 0, &accounts)?;
        let mut draft = Self {
            outputs: vec![Vec::new(); shape.nodes().len()],
            inputs: Vec::with_capacity(shape.nodes().len()),
            amounts: vec![Amount::ZERO; shape.nodes().len()],
            spec,
            schedule,
            shape,
            keys,
            book,
        };
        draft.fill_inputs()?;
        draft.fill_outputs()?;
        Ok(draft)
    }

    fn fill_inputs(&mut self) -> Result<(), TreeError> {
        for node in self.shape.nodes() {
            let kind = plan::spent_kind(&self.shape, node);
            let leaf = plan::script_leaf(&self.spec.params, &self.schedule, kind);
            let root = leaf.merkle_root(self.keys.lsp_x_only());
            let key = self.keys.output(&Owners::with_lsp(&node.clients), root)?;
            self.inputs.push(key);
        }
        Ok(())
    }

    /// Children come after their parents, so amounts are known going backwards.
    fn fill_outputs(&mut self) -> Result<(), TreeError> {
        for index in (0..self.shape.nodes().len()).rev() {
            let Some(node) = self.shape.nodes().get(index).cloned() else {
                continue;
            };
            let mut outputs = match node.kind {
                NodeKind::Leaf => self.leaf_outputs(&node)?,
                _ => self.branch_outputs(&node),
            };
            outputs.push(anchor(Amount::ZERO));
            let sum = checked_sum(outputs.iter().map(|o| o.txout.value));
            set(&mut self.amounts, index, sum.ok_or(TreeError::Overflow)?);
            set(&mut self.outputs, index, outputs);
        }
        Ok(())
    }

    fn branch_outputs(&self, node: &ShapeNode) -> Vec<RoledOutput> {
        let children = node.children.iter().filter_map(|child| {
            let key = self.inputs.get(*child)?;
            let value = *self.amounts.get(*child)?;
            Some(RoledOutput {
                role: OutputRole::Branch,
                clients: key.owners.clients(),
                txout: TxOut {
                    value,
                    script_pubkey: key.script(),
                },
            })
        });
        children.collect()
    }

    fn leaf_outputs(&mut self, node: &ShapeNode) -> Result<Vec<RoledOutput>, TreeError> {
        let mut outputs = Vec::new();
        for client in node.clients.clone() {
            if let Some(member) = self.spec.members.get(client as usize) {
                outputs.push(RoledOutput {
                    role: OutputRole::Channel,
                    clients: client..client.saturating_add(1),
                    txout: channel_output(
                        &member.channel_key,
                        &member.lsp_channel_key,
                        member.capacity,
                    ),
                });
            }
        }
        for sub in &node.subfactories {
            let stock = self.book.stock(sub).ok_or(TreeError::Overflow)?.0;
            if stock > Amount::ZERO {
                let key = self.stock_key(sub)?;
                outputs.push(RoledOutput {
                    role: OutputRole::Stock,
                    clients: sub.clone(),
                    txout: TxOut {
                        value: stock,
                        script_pubkey: key.script(),
                    },
                });
            }
        }
        Ok(outputs)
    }

    fn stock_key(&mut self, sub: &ClientRange) -> Result<Arc<OutputKey>, TreeError> {
        let leaf = plan::script_leaf(&self.spec.params, &self.schedule, SpentKind::Stock);
        let root = leaf.merkle_root(self.keys.lsp_x_only());
        Ok(self.keys.output(&Owners::with_lsp(sub), root)?)
    }

    /// The output the funding transaction must have.
    #[must_use]
    pub fn funding_output(&self) -> TxOut {
        let value = self.amounts.first().copied().unwrap_or(Amount::ZERO);
        let script_pubkey = self.inputs.first().map(|key| key.script());
        TxOut {
            value,
            script_pubkey: script_pubkey.unwrap_or_default(),
        }
    }

    /// The shape.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The calendar.
    #[must_use]
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The tree on a funding outpoint.
    ///
    /// # Errors
    /// [`TreeError`] when a timeout cannot be made or a transaction would not relay.
    pub fn at(mut self, funding: OutPoint) -> Result<Tree, TreeError> {
        let mut txs = Vec::new();
        let mut nodes: Vec<usize> = Vec::new();
        for index in 0..self.shape.nodes().len() {
            let (Some(node), Some(key), Some(amount)) = (
                self.shape.nodes().get(index).cloned(),
                self.inputs.get(index).cloned(),
                self.amounts.get(index).copied(),
            ) else {
                continue;
            };
            let outpoint = match node.parent {
                None => funding,
                Some((parent, branch)) => {
                    let parent = nodes.get(parent).and_then(|tx| txs.get(*tx));
                    let parent: &FactoryTx = parent.ok_or(TreeError::Overflow)?;
                    OutPoint::new(parent.txid, branch)
                }
            };
            let kind = plan::spent_kind(&self.shape, &node);
            let spends = plan::spent(outpoint, kind, amount, key);
            let timelock = plan::birth_timelock(&self.spec.params, node.kind);
            let outputs = self.outputs.get(index).cloned().unwrap_or_default();
            nodes.push(txs.len());
            let next = FactoryTx::new(node_tx_kind(node.kind), timelock, spends.clone(), outputs);
            txs.push(next);
            if plan::has_timeouts(&self.spec.params) {
                self.push_timeouts(index, spends, &mut txs)?;
                self.push_stock_timeouts(&node, nodes.last().copied(), &mut txs)?;
            }
        }
        let channel_timeouts = self.channel_timeouts(&nodes, &txs)?;
        for tx in txs.iter().chain(&channel_timeouts) {
            let input = tx.spends.txout.value;
            check_relay(input, &tx.outputs, tx.vbytes()).map_err(|error| TreeError::Relay {
                kind: tx.kind,
                error,
            })?;
        }
        Ok(Tree {
            id: FactoryId::of(funding),
            spec: self.spec,
            schedule: self.schedule,
            shape: self.shape,
            keys: self.keys,
            book: self.book,
            funding,
            nodes,
            txs,
            channel_timeouts,
        })
    }

    /// The timeout of the output that node `index` spends, and its second stages.
    fn push_timeouts(
        &mut self,
        index: usize,
        spends: Spent,
        txs: &mut Vec<FactoryTx>,
    ) -> Result<(), TreeError> {
        let groups = plan::timeout_groups(&self.shape, index);
        let params = &self.spec.params;
        if let [all] = groups.as_slice() {
            let claims = self.book.of(all).ok_or(TreeError::Overflow)?;
            txs.push(plan::timeout(params, &self.schedule, spends, claims)?);
            return Ok(());
        }
        let mut claims = Vec::new();
        let mut keys = Vec::new();
        for group in &groups {
            let (claim, key) = first_stage_claim(&mut self.keys, &self.book, group)?;
            claims.push(claim);
            keys.push(key);
        }
        let first = plan::timeout(params, &self.schedule, spends, &claims)?;
        let mut second = Vec::new();
        for ((vout, group), key) in (0u32..).zip(&groups).zip(keys) {
            let (Some(key), Some((outpoint, output))) = (key, first.output(vout)) else {
                continue;
            };
            let spends = plan::spent(outpoint, SpentKind::FirstStage, output.txout.value, key);
            let claims = self.book.of(group).ok_or(TreeError::Overflow)?;
            second.push(plan::timeout(params, &self.schedule, spends, claims)?);
        }
        txs.push(first);
        txs.extend(second);
        Ok(())
    }

    fn push_stock_timeouts(
        &mut self,
        node: &ShapeNode,
        leaf: Option<usize>,
        txs: &mut Vec<FactoryTx>,
    ) -> Result<(), TreeError> {
        let stocks: Vec<(OutPoint, RoledOutput)> = leaf
            .and_then(|leaf| txs.get(leaf))
            .filter(|_| node.kind == NodeKind::Leaf)
            .into_iter()
            .flat_map(|leaf| leaf.outputs_of(OutputRole::Stock))
            .map(|(outpoint, output)| (outpoint, output.clone()))
            .collect();
        for (outpoint, output) in stocks {
            let key = self.stock_key(&output.clients)?;
            let spends = plan::spent(outpoint, SpentKind::Stock, output.txout.value, key);
            let (_, claims) = self
                .book
                .stock(&output.clients)
                .ok_or(TreeError::Overflow)?;
            txs.push(plan::timeout(
                &self.spec.params,
                &self.schedule,
                spends,
                &claims,
            )?);
        }
        Ok(())
    }

    /// For every channel: everything to its client at `T`, signed by the channel's two keys.
    fn channel_timeouts(
        &self,
        nodes: &[usize],
        txs: &[FactoryTx],
    ) -> Result<Vec<FactoryTx>, TreeError> {
        let leaves = nodes.iter().filter_map(|tx| txs.get(*tx));
        let channels = leaves.flat_map(|leaf| leaf.outputs_of(OutputRole::Channel));
        channels
            .map(|(outpoint, output)| {
                channel_timeout(
                    &self.spec.params,
                    &self.schedule,
                    &self.book,
                    outpoint,
                    output,
                )
            })
            .collect()
    }
}

/// A channel's timeout: one payout of the whole capacity, no fee.
pub(crate) fn channel_timeout(
    params: &crate::params::FactoryParams,
    schedule: &Schedule,
    book: &ClaimBook,
    outpoint: OutPoint,
    output: &RoledOutput,
) -> Result<FactoryTx, TreeError> {
    let claim = book.of(&output.clients).and_then(|claims| claims.first());
    let claim = Claim {
        share: Amount::ZERO,
        ..claim.ok_or(TreeError::Overflow)?.clone()
    };
    let spends = Spent {
        outpoint,
        kind: SpentKind::Channel,
        txout: output.txout.clone(),
        key: None,
        clients: output.clients.clone(),
    };
    Ok(plan::timeout(params, schedule, spends, &[claim])?)
}

/// The claim of a group in a first stage, and the key of its branch (`None`: a lone client is
/// paid directly).
pub(crate) fn first_stage_claim(
    keys: &mut KeyRing,
    book: &ClaimBook,
    group: &ClientRange,
) -> Result<(Claim, Option<Arc<OutputKey>>), TreeError> {
    if let Some([lone]) = book.of(group) {
        return Ok((lone.clone(), None));
    }
    let key = keys.output(&Owners::clients_only(group), None)?;
    let claim = book
        .merged(group, key.script())
        .ok_or(TreeError::Overflow)?;
    Ok((claim, Some(key)))
}

/// A built tree: every transaction, unsigned.
#[derive(Clone, Debug)]
pub struct Tree {
    id: FactoryId,
    spec: FactorySpec,
    schedule: Schedule,
    shape: Shape,
    keys: KeyRing,
    book: ClaimBook,
    funding: OutPoint,
    nodes: Vec<usize>,
    txs: Vec<FactoryTx>,
    channel_timeouts: Vec<FactoryTx>,
}

impl Tree {
    /// Builds the tree of `spec` on `funding`.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn new(spec: FactorySpec, funding: OutPoint) -> Result<Self, TreeError> {
        Draft::new(spec)?.at(funding)
    }

    /// The factory's id.
    #[must_use]
    pub const fn id(&self) -> FactoryId {
        self.id
    }

    /// What it was made from.
    #[must_use]
    pub const fn spec(&self) -> &FactorySpec {
        &self.spec
    }

    /// Its calendar.
    #[must_use]
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Its skeleton.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Its keys.
    #[must_use]
    pub const fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// What each client is owed by its timeouts.
    #[must_use]
    pub const fn book(&self) -> &ClaimBook {
        &self.book
    }

    /// Its funding outpoint.
    #[must_use]
    pub const fn funding(&self) -> OutPoint {
        self.funding
    }

    /// Every transaction that is signed by MuSig2, in session order.
    #[must_use]
    pub fn txs(&self) -> &[FactoryTx] {
        &self.txs
    }

    /// The channels' timeouts in leaf order (under both expiry policies).
    #[must_use]
    pub fn channel_timeouts(&self) -> &[FactoryTx] {
        &self.channel_timeouts
    }

    /// Index in [`Self::txs`] of a shape node's own transaction.
    #[must_use]
    pub fn node_tx(&self, node: usize) -> Option<usize> {
        self.nodes.get(node).copied()
    }

    /// Indices in [`Self::txs`] of the sessions `client` signs, in its session order.
    #[must_use]
    pub fn sessions_of(&self, client: u32) -> Vec<usize> {
        let signed = self.txs.iter().enumerate();
        signed
            .filter(|(_, tx)| tx.spends.clients.contains(&client))
            .map(|(index, _)| index)
            .collect()
    }

    /// Transactions `client` publishes to reach its leaf, from the root down.
    #[must_use]
    pub fn path(&self, client: u32) -> Vec<&FactoryTx> {
        let nodes = self.shape.path(client);
        let txs = nodes.iter().filter_map(|node| self.nodes.get(*node));
        txs.filter_map(|tx| self.txs.get(*tx)).collect()
    }
}

/// The most sessions a client of a factory of up to `clients` clients can have.
///
/// # Errors
/// [`ParamsError`] when not even two clients fit.
pub fn max_sessions(
    params: &crate::params::FactoryParams,
    clients: u32,
) -> Result<u32, ParamsError> {
    let levels = crate::shape::most_levels(params, clients)?;
    let per_level = if plan::has_timeouts(params) { 3 } else { 1 };
    Ok(levels.saturating_mul(per_level).saturating_add(1))
}

const fn node_tx_kind(kind: NodeKind) -> TxKind {
    match kind {
        NodeKind::Static => TxKind::Static,
        NodeKind::Kickoff => TxKind::Kickoff,
        NodeKind::State => TxKind::State,
        NodeKind::Leaf => TxKind::Leaf,
    }
}

pub(crate) const fn tx_kind(kind: NodeKind) -> TxKind {
    node_tx_kind(kind)
}

/// Every group of owners in the tree, so that they are aggregated in parallel.
fn groups(spec: &FactorySpec, shape: &Shape) -> BTreeSet<Owners> {
    let mut groups = BTreeSet::new();
    for (index, node) in shape.nodes().iter().enumerate() {
        groups.insert(Owners::with_lsp(&node.clients));
        groups.extend(node.subfactories.iter().map(Owners::with_lsp));
        let stages = plan::timeout_groups(shape, index);
        if plan::has_timeouts(&spec.params) && stages.len() > 1 {
            groups.extend(stages.iter().map(Owners::clients_only));
        }
    }
    groups
}

fn check_distinct(spec: &FactorySpec) -> Result<(), TreeError> {
    let mut seen = BTreeSet::from([spec.lsp_key.serialize()]);
    for (position, member) in (0u32..).zip(&spec.members) {
        if !seen.insert(member.factory_key.serialize()) {
            return Err(TreeError::DuplicateKey(position));
        }
    }
    Ok(())
}

fn set<T>(list: &mut [T], index: usize, value: T) {
    if let Some(slot) = list.get_mut(index) {
        *slot = value;
    }
}

#[cfg(test)]
mod tests;
