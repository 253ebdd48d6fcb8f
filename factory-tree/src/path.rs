//! What one client gets of a factory: its own path, never the whole tree; and how it rebuilds
//! every transaction of that path from it.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use serde::{Deserialize, Serialize};

use crate::expiry::Claim;
use crate::factory::{FactoryTx, Spent, SpentKind};
use crate::keys::{KeyRing, OutputKey, Owners};
use crate::output::{OutputRole, RoledOutput};
use crate::params::{FactoryParams, Schedule};
use crate::plan::{self, Account, ClaimBook};
use crate::shape::{ClientRange, NodeKind, Shape, ShapeNode};
use crate::tree::{Tree, TreeError, channel_timeout, first_stage_claim, tx_kind};
use crate::tx::{Timelock, TxKind};
use crate::units::Height;

/// One client's view of a proposed factory (ceremony step 3). Everything a client cannot compute
/// by itself, and what the coordinator says of the rest, so that a difference is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathProposal {
    /// Parameters of the factory.
    pub params: FactoryParams,
    /// The height it was proposed at.
    pub birth: Height,
    /// `T`.
    pub expiry: Height,
    /// The LSP's factory key.
    pub lsp_key: PublicKey,
    /// All clients' factory keys in leaf order.
    pub keys: Vec<PublicKey>,
    /// The receiver's place in leaf order.
    pub position: u32,
    /// First client of `accounts`.
    pub accounts_from: u32,
    /// Capacities and payout scripts of the clients that share the receiver's timeouts.
    pub accounts: Vec<ProposedAccount>,
    /// The LSP's funding key of the receiver's channel.
    pub lsp_channel_key: PublicKey,
    /// The funding transaction, unsigned.
    pub funding_tx: Transaction,
    /// Which of its outputs is the factory.
    pub funding_vout: u32,
    /// One per transaction from the root to the leaf.
    pub levels: Vec<Level>,
    /// Timeout of the output each level spends, where there are timeouts.
    pub timeouts: Vec<ProposedTimeout>,
    /// Timeout of the receiver's stock, if it has a stock and timeouts.
    pub stock_timeout: Option<Txid>,
    /// Timeout of the receiver's channel.
    pub channel_timeout: Txid,
}

/// Capacity and payout script of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposedAccount {
    /// Channel capacity.
    pub capacity: Amount,
    /// Payout script.
    pub payout_script: ScriptBuf,
}

/// One transaction of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// nSequence of its input.
    pub sequence: u32,
    /// Its outputs, anchor last.
    pub outputs: Vec<TxOut>,
    /// Its id.
    pub txid: Txid,
}

/// The timeout of one path output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposedTimeout {
    /// Its id.
    pub txid: Txid,
    /// The branches of a first stage; empty for a flat timeout.
    pub branches: Vec<ProposedBranch>,
    /// The receiver's second stage, if this is a first stage.
    pub second_stage: Option<Txid>,
}

/// A branch of a first-stage timeout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposedBranch {
    /// Sum of its clients' capacities.
    pub capacity: Amount,
    /// Sum of their stock shares.
    pub share: Amount,
    /// Its script.
    pub script: ScriptBuf,
}

impl Tree {
    /// What the client at `position` is to be sent; `None` if there is none.
    #[must_use]
    pub fn proposal_for(&self, position: u32, funding_tx: &Transaction) -> Option<PathProposal> {
        let spec = self.spec();
        let member = spec.members.get(position as usize)?;
        let claimants = plan::claim_range(self.shape(), position);
        let members = spec
            .members
            .get(claimants.start as usize..claimants.end as usize)?;
        let levels = self.path(position).into_iter().map(|tx| Level {
            sequence: tx.timelock.sequence().to_consensus_u32(),
            outputs: tx.outputs.iter().map(|o| o.txout.clone()).collect(),
            txid: tx.txid,
        });
        let stock = self.timeout_of(position, SpentKind::Stock);
        Some(PathProposal {
            params: spec.params.clone(),
            birth: spec.birth,
            expiry: self.schedule().expiry,
            lsp_key: spec.lsp_key,
            keys: self.keys().clients().to_vec(),
            position,
            accounts_from: claimants.start,
            accounts: members
                .iter()
                .map(|m| ProposedAccount {
                    capacity: m.capacity,
                    payout_script: m.payout_script.clone(),
                })
                .collect(),
            lsp_channel_key: member.lsp_channel_key,
            funding_tx: funding_tx.clone(),
            funding_vout: self.funding().vout,
            levels: levels.collect(),
            timeouts: self.proposed_timeouts(position),
            stock_timeout: stock.map(|tx| tx.txid),
            channel_timeout: self.channel_timeouts().get(position as usize)?.txid,
        })
    }

    /// The timeout of the output of `kind` that the client at `position` shares, if there is one.
    #[must_use]
    pub fn timeout_of(&self, position: u32, kind: SpentKind) -> Option<&FactoryTx> {
        self.txs().iter().find(|tx| {
            let spends = &tx.spends;
            tx.kind == TxKind::Timeout && spends.kind == kind && spends.clients.contains(&position)
        })
    }

    /// The timeouts of the outputs on the path of the client at `position`, root first.
    // In session order each is followed by its second stage.
    #[must_use]
    pub fn proposed_timeouts(&self, position: u32) -> Vec<ProposedTimeout> {
        let sessions = self.sessions_of(position);
        let mut timeouts: Vec<ProposedTimeout> = Vec::new();
        for tx in sessions.iter().filter_map(|index| self.txs().get(*index)) {
            match (tx.kind, tx.spends.kind) {
                (TxKind::Timeout, SpentKind::FirstStage) => {
                    if let Some(first) = timeouts.last_mut() {
                        first.second_stage = Some(tx.txid);
                    }
                }
                (TxKind::Timeout, kind) if kind != SpentKind::Stock => {
                    timeouts.push(ProposedTimeout {
                        txid: tx.txid,
                        branches: self.proposed_branches(tx),
                        second_stage: None,
                    });
                }
                _ => {}
            }
        }
        timeouts
    }

    fn proposed_branches(&self, timeout: &FactoryTx) -> Vec<ProposedBranch> {
        let payouts = timeout
            .outputs
            .iter()
            .filter(|o| o.role != OutputRole::Anchor);
        if timeout.outputs.iter().all(|o| o.role != OutputRole::Branch) {
            return Vec::new();
        }
        payouts
            .filter_map(|output| {
                let script = output.txout.script_pubkey.clone();
                let merged = self.book().merged(&output.clients, script)?;
                Some(ProposedBranch {
                    capacity: merged.capacity,
                    share: merged.share,
                    script: merged.script,
                })
            })
            .collect()
    }
}

/// A client's rebuilt path. The outputs of `levels` are the proposal's; everything else is the
/// client's own work.
#[derive(Clone, Debug)]
pub struct Path {
    /// The whole factory's shape.
    pub shape: Shape,
    /// Its calendar.
    pub schedule: Schedule,
    /// Keys.
    pub keys: KeyRing,
    /// Claims of the clients that share the timeouts.
    pub book: ClaimBook,
    /// The receiver's place.
    pub position: u32,
    /// Its funding outpoint.
    pub funding: OutPoint,
    /// The key of the funding output.
    pub funding_key: Arc<OutputKey>,
    /// Every transaction the client signs by MuSig2, in its session order.
    pub sessions: Vec<FactoryTx>,
    /// Indices in `sessions` of the path from the root to the leaf.
    pub nodes: Vec<usize>,
    /// Indices in `sessions` of the timeouts of the path's outputs, root first.
    pub timeouts: Vec<usize>,
    /// Everything in the channel to the client at `T`.
    pub channel_timeout: FactoryTx,
    /// The key that the receiver's stock must have, if it has a stock (with or without timeouts).
    pub stock_key: Option<Arc<OutputKey>>,
    /// The branch of each node that leads on, or the channel in the leaf.
    pub own_outputs: Vec<u32>,
}

/// Why a proposal cannot be turned into transactions at all (before any rule is judged).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The tree rules.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The receiver's place is not among the keys.
    #[error("position {0} is not in the key list")]
    Position(u32),
    /// A list is too short or too long for the shape.
    #[error("{what}: {found}, the shape has {expected}")]
    Count {
        /// Which list.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries expected.
        expected: usize,
    },
}

impl Path {
    /// Rebuilds the path from a proposal. Keys, claims, locks and timeouts are computed; only
    /// what belongs to others (their amounts and scripts) is taken from the proposal.
    ///
    /// # Errors
    /// [`PathError`] when the proposal does not have the form of a path.
    pub fn rebuild(proposal: &PathProposal) -> Result<Self, PathError> {
        let params = &proposal.params;
        let clients = u32::try_from(proposal.keys.len()).unwrap_or(u32::MAX);
        let shape = Shape::new(params, clients).map_err(TreeError::from)?;
        let schedule = params
            .schedule(proposal.birth, shape.levels())
            .map_err(TreeError::from)?;
        let path = shape.path(proposal.position);
        if path.is_empty() {
            return Err(PathError::Position(proposal.position));
        }
        count("levels", proposal.levels.len(), path.len())?;
        let timeouts = if plan::has_timeouts(params) {
            path.len()
        } else {
            0
        };
        count("timeouts", proposal.timeouts.len(), timeouts)?;
        let claimants = plan::claim_range(&shape, proposal.position);
        let expected = crate::shape::len(&claimants) as usize;
        count("accounts", proposal.accounts.len(), expected)?;
        let accounts: Vec<Account> = proposal
            .accounts
            .iter()
            .map(|a| Account {
                capacity: a.capacity,
                payout_script: a.payout_script.clone(),
            })
            .collect();
        let book =
            ClaimBook::new(params, &shape, claimants.start, &accounts).map_err(TreeError::from)?;
        let mut keys = KeyRing::new(proposal.lsp_key, proposal.keys.clone());
        let builder = Builder {
            proposal,
            shape: &shape,
            schedule: &schedule,
            book: &book,
        };
        let built = builder.build(&path, &mut keys)?;
        Ok(Self {
            position: proposal.position,
            funding: built.funding,
            funding_key: built.funding_key,
            sessions: built.sessions,
            nodes: built.nodes,
            timeouts: built.timeouts,
            channel_timeout: built.channel_timeout,
            stock_key: built.stock_key,
            own_outputs: built.own_outputs,
            shape,
            schedule,
            keys,
            book,
        })
    }

    /// The path's transactions from the root to the leaf.
    pub fn node_txs(&self) -> impl Iterator<Item = &FactoryTx> {
        self.nodes
            .iter()
            .filter_map(|index| self.sessions.get(*index))
    }

    /// The timeouts of the path's outputs, root first (first stages where there are two).
    pub fn timeout_txs(&self) -> impl Iterator<Item = &FactoryTx> {
        self.timeouts
            .iter()
            .filter_map(|index| self.sessions.get(*index))
    }

    /// The receiver's leaf.
    #[must_use]
    pub fn leaf(&self) -> Option<&FactoryTx> {
        self.node_txs().last()
    }
}

#[derive(Clone, Copy)]
struct Builder<'a> {
    proposal: &'a PathProposal,
    shape: &'a Shape,
    schedule: &'a Schedule,
    book: &'a ClaimBook,
}

struct Built {
    funding: OutPoint,
    funding_key: Arc<OutputKey>,
    sessions: Vec<FactoryTx>,
    nodes: Vec<usize>,
    timeouts: Vec<usize>,
    channel_timeout: FactoryTx,
    stock_key: Option<Arc<OutputKey>>,
    own_outputs: Vec<u32>,
}

impl Builder<'_> {
    fn build(self, path: &[usize], keys: &mut KeyRing) -> Result<Built, PathError> {
        let proposal = self.proposal;
        let funding = OutPoint::new(proposal.funding_tx.compute_txid(), proposal.funding_vout);
        let mut funding_key = None;
        let mut outpoint = funding;
        let mut amount = proposal
            .funding_tx
            .output
            .get(proposal.funding_vout as usize)
            .map_or(Amount::ZERO, |output| output.value);
        let (mut sessions, mut nodes, mut timeouts) = (Vec::new(), Vec::new(), Vec::new());
        let mut own_outputs = Vec::new();
        let (mut channel, mut stock_key) = (None, None);
        for (depth, (index, level)) in path.iter().zip(&proposal.levels).enumerate() {
            let node = self.shape.nodes().get(*index);
            let node = node.ok_or(PathError::Position(proposal.position))?;
            let kind = plan::spent_kind(self.shape, node);
            let key = self.key(keys, &Owners::with_lsp(&node.clients), kind)?;
            funding_key.get_or_insert_with(|| Arc::clone(&key));
            let spends = plan::spent(outpoint, kind, amount, key);
            let outputs = self.roled(node, level)?;
            let timelock = timelock(level.sequence);
            let tx = FactoryTx::new(tx_kind(node.kind), timelock, spends.clone(), outputs);
            let own = self.own_output(node, path.get(depth.saturating_add(1)))?;
            own_outputs.push(own);
            let (next, output) = tx
                .output(own)
                .ok_or(PathError::Position(proposal.position))?;
            (outpoint, amount) = (next, output.txout.value);
            if node.kind == NodeKind::Leaf {
                channel = Some((next, output.clone()));
            }
            let stock = self.own_stock(&tx, keys)?;
            nodes.push(sessions.len());
            sessions.push(tx);
            if let Some(proposed) = proposal.timeouts.get(depth) {
                timeouts.push(sessions.len());
                self.push_timeouts(*index, spends, proposed, keys, &mut sessions)?;
                if let Some(stock) = &stock {
                    self.push_stock_timeout(stock.clone(), &mut sessions)?;
                }
            }
            stock_key = stock.and_then(|stock| stock.key);
        }
        let missing = PathError::Position(proposal.position);
        let (outpoint, output) = channel.ok_or_else(|| missing.clone())?;
        let (params, schedule) = (&proposal.params, self.schedule);
        let channel_timeout = channel_timeout(params, schedule, self.book, outpoint, &output)?;
        Ok(Built {
            funding,
            funding_key: funding_key.ok_or(missing)?,
            sessions,
            nodes,
            timeouts,
            channel_timeout,
            stock_key,
            own_outputs,
        })
    }

    fn key(
        self,
        keys: &mut KeyRing,
        owners: &Owners,
        kind: SpentKind,
    ) -> Result<Arc<OutputKey>, PathError> {
        let leaf = plan::script_leaf(&self.proposal.params, self.schedule, kind);
        let root = leaf.merkle_root(keys.lsp_x_only());
        Ok(keys.output(owners, root).map_err(TreeError::from)?)
    }

    /// The proposal's outputs with the roles the shape gives them.
    fn roled(self, node: &ShapeNode, level: &Level) -> Result<Vec<RoledOutput>, PathError> {
        let roles = plan::output_roles(self.shape, node, |sub| {
            let stock = self.book.stock(sub);
            stock.is_some_and(|(amount, _)| amount > Amount::ZERO)
        });
        count("outputs", level.outputs.len(), roles.len())?;
        let outputs = roles.into_iter().zip(&level.outputs);
        Ok(outputs
            .map(|((role, clients), txout)| RoledOutput {
                role,
                clients,
                txout: txout.clone(),
            })
            .collect())
    }

    /// Which output of `node` leads to the receiver.
    fn own_output(self, node: &ShapeNode, next: Option<&usize>) -> Result<u32, PathError> {
        let position = self.proposal.position;
        let found = match next {
            Some(next) => node.children.iter().position(|child| child == next),
            None => node.clients.clone().position(|client| client == position),
        };
        found
            .and_then(|index| u32::try_from(index).ok())
            .ok_or(PathError::Position(position))
    }

    /// The receiver's stock in `tx`, under the key it must have.
    fn own_stock(self, tx: &FactoryTx, keys: &mut KeyRing) -> Result<Option<Spent>, PathError> {
        let stock = tx
            .outputs_of(OutputRole::Stock)
            .find(|(_, output)| output.clients.contains(&self.proposal.position));
        let Some((outpoint, output)) = stock else {
            return Ok(None);
        };
        let owners = Owners::with_lsp(&output.clients);
        let key = self.key(keys, &owners, SpentKind::Stock)?;
        let amount = output.txout.value;
        Ok(Some(plan::spent(outpoint, SpentKind::Stock, amount, key)))
    }

    fn push_timeouts(
        self,
        node: usize,
        spends: Spent,
        proposed: &ProposedTimeout,
        keys: &mut KeyRing,
        sessions: &mut Vec<FactoryTx>,
    ) -> Result<(), PathError> {
        let (params, schedule) = (&self.proposal.params, self.schedule);
        let position = self.proposal.position;
        let groups = plan::timeout_groups(self.shape, node);
        if let [all] = groups.as_slice() {
            count("first-stage branches", proposed.branches.len(), 0)?;
            let claims = self.book.of(all).ok_or(PathError::Position(position))?;
            let flat = plan::timeout(params, schedule, spends, claims);
            sessions.push(flat.map_err(TreeError::from)?);
            return Ok(());
        }
        count(
            "first-stage branches",
            proposed.branches.len(),
            groups.len(),
        )?;
        let mut own = None;
        let mut claims = Vec::new();
        for ((vout, group), branch) in (0u32..).zip(&groups).zip(&proposed.branches) {
            if group.contains(&position) {
                let (claim, key) = first_stage_claim(keys, self.book, group)?;
                claims.push(claim);
                own = key.map(|key| (vout, group, key));
            } else {
                claims.push(branch_claim(branch, group));
            }
        }
        let first = plan::timeout(params, schedule, spends, &claims).map_err(TreeError::from)?;
        let second = own.and_then(|(vout, group, key)| Some((first.output(vout)?, group, key)));
        let second = second.map(|((outpoint, output), group, key)| {
            let spends = plan::spent(outpoint, SpentKind::FirstStage, output.txout.value, key);
            let claims = self.book.of(group).ok_or(PathError::Position(position))?;
            let second = plan::timeout(params, schedule, spends, claims);
            second.map_err(|e| PathError::from(TreeError::from(e)))
        });
        let second = second.transpose()?;
        sessions.push(first);
        sessions.extend(second);
        Ok(())
    }

    fn push_stock_timeout(
        self,
        spends: Spent,
        sessions: &mut Vec<FactoryTx>,
    ) -> Result<(), PathError> {
        let stock = self.book.stock(&spends.clients);
        let (_, claims) = stock.ok_or(PathError::Position(self.proposal.position))?;
        let timeout = plan::timeout(&self.proposal.params, self.schedule, spends, &claims);
        sessions.push(timeout.map_err(TreeError::from)?);
        Ok(())
    }
}

fn branch_claim(branch: &ProposedBranch, group: &ClientRange) -> Claim {
    let lone = crate::shape::len(group) == 1;
    Claim {
        capacity: branch.capacity,
        share: branch.share,
        clients: group.clone(),
        script: branch.script.clone(),
        role: if lone {
            OutputRole::Payout
        } else {
            OutputRole::Branch
        },
    }
}

/// A level's nSequence as a relative lock; anything that is not one in blocks counts as disabled
/// here, and is refused by the client's timelock rule, which compares the number itself.
fn timelock(sequence: u32) -> Timelock {
    let delay = u16::try_from(sequence).ok();
    Timelock {
        height: None,
        delay: delay.map(|d| crate::units::Blocks(d.into())),
    }
}

const fn count(what: &'static str, found: usize, expected: usize) -> Result<(), PathError> {
    if found == expected {
        return Ok(());
    }
    Err(PathError::Count {
        what,
        found,
        expected,
    })
}
