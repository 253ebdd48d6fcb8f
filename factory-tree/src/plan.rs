//! Amounts, claims and timeouts, computed alike by the coordinator (for the whole tree) and by a
//! client (for its path).

use std::sync::Arc;

use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};

use crate::expiry::{self, Claim, ExpiryError, FLAT_LIMIT, even};
use crate::factory::{FactoryTx, Spent, SpentKind};
use crate::keys::OutputKey;
use crate::output::{OutputRole, ScriptLeaf};
use crate::params::{ExpiryPolicy, FactoryParams, Schedule};
use crate::shape::{ClientRange, NodeKind, Shape, ShapeNode, len};
use crate::tx::{Timelock, TxKind, checked_sum};
use crate::units::Blocks;

/// The stock of a sub-factory whose clients' capacities add up to `capacities`; nothing where it
/// would be too small to pay for its own timeout and poison.
#[must_use]
pub fn stock_amount(params: &FactoryParams, capacities: Amount, clients: u32) -> Option<Amount> {
    let share = u64::from(params.stock_share_ppm);
    let stock = u128::from(capacities.to_sat())
        .saturating_mul(u128::from(share))
        .checked_div(1_000_000)?;
    let stock = Amount::from_sat(u64::try_from(stock).ok()?);
    (stock >= expiry::least_stock(params, clients)).then_some(stock)
}

/// The script leaf of an output of `kind`.
#[must_use]
pub const fn script_leaf(
    params: &FactoryParams,
    schedule: &Schedule,
    kind: SpentKind,
) -> ScriptLeaf {
    match (kind, params.expiry_policy) {
        (SpentKind::Stock, _) => ScriptLeaf::LspDelayed(Blocks(params.q)),
        (SpentKind::Funding | SpentKind::Static | SpentKind::State, ExpiryPolicy::LspReclaim) => {
            ScriptLeaf::LspAfter(schedule.expiry)
        }
        _ => ScriptLeaf::None,
    }
}

/// nSequence of a node's input at birth: states start at their highest slot.
#[must_use]
pub const fn birth_timelock(params: &FactoryParams, kind: NodeKind) -> Timelock {
    match kind {
        NodeKind::Static | NodeKind::Kickoff => Timelock::NONE,
        NodeKind::State | NodeKind::Leaf => Timelock {
            height: None,
            delay: Some(params.max_slot()),
        },
    }
}

/// The locks of the timeout of an output of `kind`.
#[must_use]
pub const fn timeout_timelock(
    params: &FactoryParams,
    schedule: &Schedule,
    kind: SpentKind,
) -> Timelock {
    let delay = match kind {
        SpentKind::Kickoff => Some(params.kickoff_timeout_delay()),
        SpentKind::Stock => Some(Blocks(params.stock_timeout_delay)),
        _ => None,
    };
    match kind {
        // Second stages follow a first stage that has waited already.
        SpentKind::FirstStage => Timelock::NONE,
        _ => Timelock {
            height: Some(schedule.expiry),
            delay,
        },
    }
}

/// Whether outputs of this factory have timeouts.
#[must_use]
pub const fn has_timeouts(params: &FactoryParams) -> bool {
    matches!(params.expiry_policy, ExpiryPolicy::ClientRefund)
}

/// Capacity and payout script of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Channel capacity.
    pub capacity: Amount,
    /// Payout script.
    pub payout_script: ScriptBuf,
}

/// The claims of the clients `accounts`, which start at position `first`.
#[derive(Clone, Debug)]
pub struct ClaimBook {
    first: u32,
    claims: Vec<Claim>,
}

impl ClaimBook {
    /// Computes every client's share of its stock.
    ///
    /// # Errors
    /// [`ExpiryError::Overflow`] on absurd amounts.
    pub fn new(
        params: &FactoryParams,
        shape: &Shape,
        first: u32,
        accounts: &[Account],
    ) -> Result<Self, ExpiryError> {
        let mut claims: Vec<Claim> = (first..)
            .zip(accounts)
            .map(|(client, account)| Claim {
                capacity: account.capacity,
                share: Amount::ZERO,
                clients: client..client.saturating_add(1),
                script: account.payout_script.clone(),
                role: OutputRole::Payout,
            })
            .collect();
        checked_sum(claims.iter().map(|c| c.capacity)).ok_or(ExpiryError::Overflow)?;
        for sub in shape.nodes().iter().flat_map(|node| &node.subfactories) {
            let Some(members) = slice_mut(&mut claims, first, sub) else {
                continue;
            };
            let capacities =
                checked_sum(members.iter().map(|c| c.capacity)).ok_or(ExpiryError::Overflow)?;
            let stock = stock_amount(params, capacities, len(sub)).unwrap_or(Amount::ZERO);
            let parts = even(stock.to_sat(), members.len());
            for (member, part) in members.iter_mut().zip(parts) {
                member.share = Amount::from_sat(part);
            }
        }
        Ok(Self { first, claims })
    }

    /// The claims of `clients`, if all are in the book.
    #[must_use]
    pub fn of(&self, clients: &ClientRange) -> Option<&[Claim]> {
        let start = clients.start.checked_sub(self.first)?;
        let end = clients.end.checked_sub(self.first)?;
        self.claims.get(start as usize..end as usize)
    }

    /// Claims on the stock of `sub` alone, and the stock's amount.
    #[must_use]
    pub fn stock(&self, sub: &ClientRange) -> Option<(Amount, Vec<Claim>)> {
        let members = self.of(sub)?;
        let stock = checked_sum(members.iter().map(|c| c.share))?;
        let claims = members.iter().cloned().map(|claim| Claim {
            capacity: Amount::ZERO,
            ..claim
        });
        Some((stock, claims.collect()))
    }

    /// One claim for all of `clients`, paid to `script`.
    #[must_use]
    pub fn merged(&self, clients: &ClientRange, script: ScriptBuf) -> Option<Claim> {
        let members = self.of(clients)?;
        Some(Claim {
            capacity: checked_sum(members.iter().map(|c| c.capacity))?,
            share: checked_sum(members.iter().map(|c| c.share))?,
            clients: clients.clone(),
            script,
            role: OutputRole::Branch,
        })
    }
}

fn slice_mut<'a>(
    claims: &'a mut [Claim],
    first: u32,
    clients: &ClientRange,
) -> Option<&'a mut [Claim]> {
    let start = clients.start.checked_sub(first)?;
    let end = clients.end.checked_sub(first)?;
    claims.get_mut(start as usize..end as usize)
}

/// The largest subtrees of at most [`FLAT_LIMIT`] clients at or below `node`, in leaf order: the
/// branches of a first-stage timeout. A single group means that the timeout is flat.
#[must_use]
pub fn timeout_groups(shape: &Shape, node: usize) -> Vec<ClientRange> {
    let Some(top) = shape.nodes().get(node) else {
        return Vec::new();
    };
    if len(&top.clients) <= FLAT_LIMIT || top.children.is_empty() {
        return vec![top.clients.clone()];
    }
    top.children
        .iter()
        .flat_map(|child| timeout_groups(shape, *child))
        .collect()
}

/// The group of the funding output's timeout that `client` is in: whose claims it must know.
#[must_use]
pub fn claim_range(shape: &Shape, client: u32) -> ClientRange {
    timeout_groups(shape, 0)
        .into_iter()
        .find(|group| group.contains(&client))
        .unwrap_or(0..0)
}

/// A timeout of the output `spends`, paying `claims`.
///
/// # Errors
/// [`ExpiryError`] when the amounts do not work out.
pub fn timeout(
    params: &FactoryParams,
    schedule: &Schedule,
    spends: Spent,
    claims: &[Claim],
) -> Result<FactoryTx, ExpiryError> {
    let outputs = expiry::timeout_outputs(params, spends.txout.value, claims)?;
    let timelock = timeout_timelock(params, schedule, spends.kind);
    Ok(FactoryTx::new(TxKind::Timeout, timelock, spends, outputs))
}

/// A taproot output of the tree, as something to spend.
#[must_use]
pub fn spent(outpoint: OutPoint, kind: SpentKind, amount: Amount, key: Arc<OutputKey>) -> Spent {
    Spent {
        outpoint,
        kind,
        txout: TxOut {
            value: amount,
            script_pubkey: key.script(),
        },
        clients: key.owners.clients(),
        key: Some(key),
    }
}

/// What the outputs of `node` are for and whose they are, in order; `has_stock` says whether a
/// sub-factory has a stock.
pub fn output_roles(
    shape: &Shape,
    node: &ShapeNode,
    has_stock: impl Fn(&ClientRange) -> bool,
) -> Vec<(OutputRole, ClientRange)> {
    let children = node.children.iter().filter_map(|c| shape.nodes().get(*c));
    let mut roles: Vec<_> = children
        .map(|child| (OutputRole::Branch, child.clients.clone()))
        .collect();
    if node.kind == NodeKind::Leaf {
        let lone = |client: u32| client..client.saturating_add(1);
        roles.extend(node.clients.clone().map(|c| (OutputRole::Channel, lone(c))));
        let stocks = node.subfactories.iter().filter(|sub| has_stock(sub));
        roles.extend(stocks.map(|sub| (OutputRole::Stock, sub.clone())));
    }
    roles.push((OutputRole::Anchor, 0..0));
    roles
}

/// What `node` spends: the funding output, or a branch of its parent.
#[must_use]
pub fn spent_kind(shape: &Shape, node: &ShapeNode) -> SpentKind {
    let parent = node.parent.and_then(|(index, _)| shape.nodes().get(index));
    parent.map_or(SpentKind::Funding, |parent| {
        SpentKind::branch_of(parent.kind)
    })
}
