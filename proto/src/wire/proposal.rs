//! The proposal: the one large message, most of which is the same for every client.

use bitcoin::consensus::encode;
use bitcoin::{Transaction, TxOut};
use bytes::Bytes;
use factory_tree::ceremony::message::{Proposal, Round};
use factory_tree::factory::SpentKind;
use factory_tree::musig::AggregateNonce;
use factory_tree::params::FactoryParams;
use factory_tree::path::{Level, PathProposal, ProposedAccount, ProposedBranch, ProposedTimeout};
use factory_tree::plan;
use factory_tree::tree::Tree;
use factory_tree::units::Height;

use super::ceremony::capacities;
use super::fields::{self, P2TR, amount, at_most, copied, items, joined, public_key, required};
use super::ids::round;
use super::{MAX_CLIENTS, MAX_FUNDING_BYTES, MAX_LEVELS, MAX_OUTPUTS, MAX_SESSIONS, WireError};
use crate::v1;

/// What all proposals of one attempt share, encoded once. A client's proposal takes a reference to
/// it, so that a factory of 1024 clients has one list of 1024 keys and not a million of them.
#[derive(Clone, Debug)]
pub struct ProposalParts<'a> {
    tree: &'a Tree,
    round: Round,
    shared: v1::Proposal,
    capacities: Vec<u64>,
    payout_scripts: Bytes,
}

impl<'a> ProposalParts<'a> {
    /// Encodes what the proposals of `tree` share.
    ///
    /// # Errors
    /// [`WireError::Script`] when a payout script is not P2TR.
    pub fn new(round: Round, tree: &'a Tree, funding_tx: &Transaction) -> Result<Self, WireError> {
        let spec = tree.spec();
        let scripts = (0..).zip(&spec.members).map(|(index, member)| {
            fields::fixed::<P2TR>("payout_scripts", member.payout_script.as_bytes()).map_err(|_| {
                WireError::Script {
                    field: "payout_scripts",
                    index,
                }
            })
        });
        let scripts = scripts.collect::<Result<Vec<[u8; P2TR]>, _>>()?;
        Ok(Self {
            tree,
            round,
            shared: v1::Proposal {
                round: Some(round.into()),
                params: Some((&spec.params).into()),
                birth_height: spec.birth.0,
                expiry_height: tree.schedule().expiry.0,
                lsp_key: copied(spec.lsp_key.serialize()),
                keys: joined(spec.members.iter().map(|m| m.factory_key.serialize())),
                funding_tx: encode::serialize(funding_tx).into(),
                funding_vout: tree.funding().vout,
                ..v1::Proposal::default()
            },
            capacities: spec.members.iter().map(|m| m.capacity.to_sat()).collect(),
            payout_scripts: joined(scripts.into_iter()),
        })
    }

    /// The attempt these proposals belong to.
    #[must_use]
    pub const fn round(&self) -> Round {
        self.round
    }

    /// The proposal of the client at `position`; `sums` in its session order.
    ///
    /// # Errors
    /// [`WireError::Position`] when there is no such client.
    pub fn for_client<'s>(
        &self,
        position: u32,
        sums: impl ExactSizeIterator<Item = &'s AggregateNonce>,
    ) -> Result<v1::Proposal, WireError> {
        let missing = WireError::Position { position };
        let index = position as usize;
        let member = self.tree.spec().members.get(index);
        let member = member.ok_or_else(|| missing.clone())?;
        let channel_timeout = self.tree.channel_timeouts().get(index);
        let channel_timeout = channel_timeout.ok_or_else(|| missing.clone())?.txid;
        let claimants = plan::claim_range(self.tree.shape(), position);
        let accounts = claimants.start as usize..claimants.end as usize;
        let capacities = self.capacities.get(accounts.clone()).ok_or(missing)?;
        let scripts = accounts.start.saturating_mul(P2TR)..accounts.end.saturating_mul(P2TR);
        let path = self.tree.path(position).into_iter();
        let stock = self.tree.timeout_of(position, SpentKind::Stock);
        let timeouts = self.tree.proposed_timeouts(position);
        Ok(v1::Proposal {
            position,
            accounts_from: claimants.start,
            capacities_sat: capacities.to_vec(),
            payout_scripts: self.payout_scripts.slice(scripts),
            lsp_channel_key: copied(member.lsp_channel_key.serialize()),
            levels: path
                .map(|tx| v1::Level {
                    sequence: tx.timelock.sequence().to_consensus_u32(),
                    outputs: tx.outputs.iter().map(|o| (&o.txout).into()).collect(),
                    txid: fields::txid_bytes(tx.txid),
                })
                .collect(),
            timeouts: timeouts.iter().map(v1::Timeout::from).collect(),
            stock_timeout: stock.map(|tx| fields::txid_bytes(tx.txid)),
            channel_timeout: fields::txid_bytes(channel_timeout),
            sums: joined(sums.map(AggregateNonce::to_bytes)),
            ..self.shared.clone()
        })
    }
}

impl From<&Proposal> for v1::Proposal {
    /// A payout script that is not P2TR makes a message that the receiver refuses.
    fn from(proposal: &Proposal) -> Self {
        let path = &proposal.path;
        let accounts = path.accounts.iter();
        let scripts: Vec<u8> = path
            .accounts
            .iter()
            .flat_map(|account| account.payout_script.as_bytes())
            .copied()
            .collect();
        Self {
            round: Some(proposal.round.into()),
            params: Some((&path.params).into()),
            birth_height: path.birth.0,
            expiry_height: path.expiry.0,
            lsp_key: copied(path.lsp_key.serialize()),
            keys: joined(path.keys.iter().map(|key| key.serialize())),
            position: path.position,
            accounts_from: path.accounts_from,
            capacities_sat: accounts.map(|account| account.capacity.to_sat()).collect(),
            payout_scripts: scripts.into(),
            lsp_channel_key: copied(path.lsp_channel_key.serialize()),
            funding_tx: encode::serialize(&path.funding_tx).into(),
            funding_vout: path.funding_vout,
            levels: path.levels.iter().map(v1::Level::from).collect(),
            timeouts: path.timeouts.iter().map(v1::Timeout::from).collect(),
            stock_timeout: path.stock_timeout.map(fields::txid_bytes),
            channel_timeout: fields::txid_bytes(path.channel_timeout),
            sums: joined(proposal.sums.iter().map(AggregateNonce::to_bytes)),
        }
    }
}

impl TryFrom<v1::Proposal> for Proposal {
    type Error = WireError;
    fn try_from(wire: v1::Proposal) -> Result<Self, WireError> {
        let round = round(wire.round)?;
        let params: FactoryParams = required("proposal.params", wire.params)?.try_into()?;
        // Cheap refusals first: nothing below is worked on before every list has a bearable length.
        at_most("proposal.levels", wire.levels.len(), MAX_LEVELS, "entries")?;
        at_most(
            "proposal.timeouts",
            wire.timeouts.len(),
            MAX_LEVELS,
            "entries",
        )?;
        let accounts = accounts(&wire.capacities_sat, &wire.payout_scripts)?;
        let stock = wire.stock_timeout.as_deref();
        let stock = stock.map(|id| fields::txid("proposal.stock_timeout", id));
        let path = PathProposal {
            params,
            birth: Height(wire.birth_height),
            expiry: Height(wire.expiry_height),
            lsp_key: public_key("proposal.lsp_key", &wire.lsp_key)?,
            position: wire.position,
            accounts_from: wire.accounts_from,
            accounts,
            lsp_channel_key: public_key("proposal.lsp_channel_key", &wire.lsp_channel_key)?,
            funding_tx: funding_tx("proposal.funding_tx", &wire.funding_tx)?,
            funding_vout: wire.funding_vout,
            levels: all(wire.levels)?,
            timeouts: all(wire.timeouts)?,
            stock_timeout: stock.transpose()?,
            channel_timeout: fields::txid("proposal.channel_timeout", &wire.channel_timeout)?,
            keys: fields::public_keys("proposal.keys", &wire.keys, MAX_CLIENTS)?,
        };
        Ok(Self {
            round,
            path,
            sums: fields::aggregate_nonces("proposal.sums", &wire.sums, MAX_SESSIONS)?,
        })
    }
}

fn all<W, T: TryFrom<W, Error = WireError>>(list: Vec<W>) -> Result<Vec<T>, WireError> {
    list.into_iter().map(T::try_from).collect()
}

fn accounts(sats: &[u64], scripts: &[u8]) -> Result<Vec<ProposedAccount>, WireError> {
    let field = "proposal.payout_scripts";
    let scripts = items::<P2TR>(field, scripts, MAX_CLIENTS)?;
    if scripts.len() != sats.len() {
        return Err(WireError::Count {
            field,
            found: scripts.len(),
            expected: sats.len(),
        });
    }
    let capacities = capacities("proposal.capacities_sat", sats)?;
    let pairs = capacities.into_iter().zip(scripts).enumerate();
    pairs
        .map(|(index, (capacity, script))| {
            Ok(ProposedAccount {
                capacity,
                payout_script: fields::payout_script(field, index, script)?,
            })
        })
        .collect()
}

fn funding_tx(field: &'static str, bytes: &[u8]) -> Result<Transaction, WireError> {
    at_most(field, bytes.len(), MAX_FUNDING_BYTES, "bytes")?;
    let tx: Transaction = encode::deserialize(bytes).map_err(|error| WireError::Transaction {
        field,
        reason: error.to_string(),
    })?;
    for output in &tx.output {
        amount("proposal.funding_tx.outputs", output.value.to_sat())?;
    }
    Ok(tx)
}

impl From<&TxOut> for v1::Output {
    fn from(output: &TxOut) -> Self {
        Self {
            amount_sat: output.value.to_sat(),
            script: copied(output.script_pubkey.as_bytes()),
        }
    }
}

impl TryFrom<v1::Output> for TxOut {
    type Error = WireError;
    fn try_from(wire: v1::Output) -> Result<Self, WireError> {
        Ok(Self {
            value: amount("output.amount_sat", wire.amount_sat)?,
            script_pubkey: fields::script("output.script", &wire.script)?,
        })
    }
}

impl From<&Level> for v1::Level {
    fn from(level: &Level) -> Self {
        Self {
            sequence: level.sequence,
            outputs: level.outputs.iter().map(v1::Output::from).collect(),
            txid: fields::txid_bytes(level.txid),
        }
    }
}

impl TryFrom<v1::Level> for Level {
    type Error = WireError;
    fn try_from(wire: v1::Level) -> Result<Self, WireError> {
        at_most("level.outputs", wire.outputs.len(), MAX_OUTPUTS, "entries")?;
        Ok(Self {
            sequence: wire.sequence,
            outputs: all(wire.outputs)?,
            txid: fields::txid("level.txid", &wire.txid)?,
        })
    }
}

impl From<&ProposedTimeout> for v1::Timeout {
    fn from(timeout: &ProposedTimeout) -> Self {
        Self {
            txid: fields::txid_bytes(timeout.txid),
            branches: timeout.branches.iter().map(v1::Branch::from).collect(),
            second_stage: timeout.second_stage.map(fields::txid_bytes),
        }
    }
}

impl TryFrom<v1::Timeout> for ProposedTimeout {
    type Error = WireError;
    fn try_from(wire: v1::Timeout) -> Result<Self, WireError> {
        at_most(
            "timeout.branches",
            wire.branches.len(),
            MAX_OUTPUTS,
            "entries",
        )?;
        let second = wire.second_stage.as_deref();
        let second = second.map(|id| fields::txid("timeout.second_stage", id));
        Ok(Self {
            txid: fields::txid("timeout.txid", &wire.txid)?,
            branches: all(wire.branches)?,
            second_stage: second.transpose()?,
        })
    }
}

impl From<&ProposedBranch> for v1::Branch {
    fn from(branch: &ProposedBranch) -> Self {
        Self {
            capacity_sat: branch.capacity.to_sat(),
            share_sat: branch.share.to_sat(),
            script: copied(branch.script.as_bytes()),
        }
    }
}

impl TryFrom<v1::Branch> for ProposedBranch {
    type Error = WireError;
    fn try_from(wire: v1::Branch) -> Result<Self, WireError> {
        Ok(Self {
            capacity: amount("branch.capacity_sat", wire.capacity_sat)?,
            share: amount("branch.share_sat", wire.share_sat)?,
            script: fields::script("branch.script", &wire.script)?,
        })
    }
}
