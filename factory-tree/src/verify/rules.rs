//! The rules, one function each.

use std::collections::BTreeSet;

use bitcoin::secp256k1::{self, Secp256k1, ecdsa, schnorr};
use bitcoin::{Amount, OutPoint, TxOut, Txid};

use super::{Agreed, Refusal, Rule};
use crate::factory::{FactoryTx, SpentKind, channel_output};
use crate::ids::FactoryId;
use crate::output::{OutputRole, RoledOutput, anchor, channel_witness_script, is_tree_script};
use crate::params::ParamsError;
use crate::path::{Path, PathError, PathProposal};
use crate::plan;
use crate::session;
use crate::tree::TreeError;
use crate::tx::{CHILD_VBYTES, check_relay, checked_sum};

/// The LSP's change, from which it can fee-bump the funding.
const MIN_CHANGE: Amount = Amount::from_sat(10_000);

fn require(holds: bool, rule: Rule, found: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds {
        return Ok(());
    }
    Err(Refusal::new(rule, found()))
}

/// Rule 1.
pub(super) fn fresh(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<(), Refusal> {
    let txid = proposal.funding_tx.compute_txid();
    let factory = FactoryId::of(OutPoint::new(txid, proposal.funding_vout));
    require(!agreed.known_factory, Rule::Fresh, || {
        format!("factory {factory} is known already")
    })
}

/// Rule 2.
pub(super) fn membership(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<(), Refusal> {
    let own = agreed.own.factory_key;
    let place = proposal.keys.get(proposal.position as usize);
    require(place == Some(&own), Rule::Membership, || {
        format!("the key at position {} is not ours", proposal.position)
    })?;
    let mut seen = BTreeSet::from([proposal.lsp_key.serialize()]);
    for key in &proposal.keys {
        require(seen.insert(key.serialize()), Rule::Membership, || {
            format!("key {key} is there twice")
        })?;
    }
    Ok(())
}

/// Rule 7, what can be said before the path is rebuilt.
pub(super) fn terms(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<(), Refusal> {
    require(
        proposal.params == agreed.invitation.params,
        Rule::Shape,
        || "parameters differ from the invitation's".into(),
    )?;
    let clients = proposal.keys.len();
    let most = agreed.invitation.max_clients as usize;
    require(clients <= most, Rule::Shape, || {
        format!("{clients} clients, the invitation said at most {most}")
    })
}

/// Rule 11. The order poison < LSP's branch < timeout is part of the parameters' validation.
pub(super) fn stock_delay(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<(), Refusal> {
    let (q, least) = (proposal.params.q, agreed.limits.min_stock_delay.0);
    require(q >= least, Rule::StockDelay, || {
        format!("q is {q}, we need {least}")
    })
}

/// Which rule a proposal that has not the form of a path breaks.
pub(super) fn classify(error: &PathError) -> Refusal {
    let rule = match error {
        PathError::Tree(TreeError::Params(ParamsError::Schedule { .. })) => Rule::Expiry,
        PathError::Tree(TreeError::Params(_)) => Rule::Shape,
        PathError::Tree(TreeError::Keys(_) | TreeError::DuplicateKey(_)) => Rule::Membership,
        PathError::Tree(TreeError::Expiry(_)) => Rule::Timeouts,
        PathError::Tree(TreeError::Relay { .. }) => Rule::Relay,
        PathError::Tree(TreeError::Overflow) => Rule::Amounts,
        PathError::Position(_) => Rule::Membership,
        PathError::Count { what, .. } => match *what {
            "timeouts" | "first-stage branches" => Rule::Timeouts,
            "accounts" => Rule::Amounts,
            _ => Rule::Shape,
        },
    };
    Refusal::new(rule, error.to_string())
}

/// Rule 7: what the user allows of depth and size.
pub(super) fn shape(
    path: &Path,
    proposal: &PathProposal,
    agreed: Agreed<'_>,
) -> Result<(), Refusal> {
    let exit_delay = path.shape.exit_delay(&proposal.params);
    let limit = agreed.limits.max_exit_delay;
    require(exit_delay <= limit, Rule::Shape, || {
        format!("exit delay of {exit_delay}, we allow {limit}")
    })?;
    let vbytes = path_vbytes(path);
    let limit = agreed.limits.max_path_vbytes;
    require(vbytes <= limit, Rule::Shape, || {
        format!("a path of {vbytes} vB, we allow {limit}")
    })
}

fn path_vbytes(path: &Path) -> u64 {
    path.node_txs()
        .map(|tx| tx.vbytes().saturating_add(CHILD_VBYTES))
        .fold(0, u64::saturating_add)
}

/// Rule 9.
pub(super) fn expiry(
    path: &Path,
    proposal: &PathProposal,
    agreed: Agreed<'_>,
) -> Result<(), Refusal> {
    let (birth, tip) = (proposal.birth, agreed.tip);
    let drift = birth.since(tip).max(tip.since(birth));
    require(drift <= agreed.limits.max_birth_drift, Rule::Expiry, || {
        format!("born at {birth}, our tip is {tip}")
    })?;
    let due = path.schedule.expiry;
    require(proposal.expiry == due, Rule::Expiry, || {
        format!("expires at {}, the schedule says {due}", proposal.expiry)
    })?;
    let lifetime = due.since(birth);
    require(lifetime <= agreed.limits.max_lifetime, Rule::Expiry, || {
        format!(
            "a life of {lifetime}, we allow {}",
            agreed.limits.max_lifetime
        )
    })
}

/// Rule 14, what can be said before the path is rebuilt.
pub(super) fn funding(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<(), Refusal> {
    let broken = |found: String| Err(Refusal::new(Rule::Funding, found));
    let tx = &proposal.funding_tx;
    if tx.output.get(proposal.funding_vout as usize).is_none() {
        return broken(format!("there is no output {}", proposal.funding_vout));
    }
    if tx.input.is_empty() || tx.input.iter().any(|input| !input.script_sig.is_empty()) {
        return broken("an input is not segwit, so the txid could change".into());
    }
    let pin = agreed.invitation.common_pin;
    if !tx.input.iter().any(|input| input.previous_output == pin) {
        return broken(format!("the common pin {pin} is not spent"));
    }
    let mut others = (0u32..)
        .zip(&tx.output)
        .filter(|(v, _)| *v != proposal.funding_vout);
    match (others.next(), others.next()) {
        (Some((_, change)), None) if change.value >= MIN_CHANGE => Ok(()),
        _ => broken(format!(
            "not exactly one change output of at least {} sat",
            MIN_CHANGE.to_sat()
        )),
    }
}

/// Rule 14: the output is the n-of-n of all members.
pub(super) fn funding_key(path: &Path, proposal: &PathProposal) -> Result<(), Refusal> {
    let output = proposal
        .funding_tx
        .output
        .get(proposal.funding_vout as usize);
    let found = output.map(|output| &output.script_pubkey);
    require(
        found == Some(&path.funding_key.script()),
        Rule::Funding,
        || "the output is not the n-of-n of all members".into(),
    )
}

/// Rule 3: every output on the own path is the key path (and script leaf) of exactly its owners.
pub(super) fn output_keys(path: &Path, proposal: &PathProposal) -> Result<(), Refusal> {
    let nodes: Vec<&FactoryTx> = path.node_txs().collect();
    let below = nodes
        .iter()
        .skip(1)
        .map(|tx| &tx.spends.txout.script_pubkey);
    for ((level, own), script) in proposal.levels.iter().zip(&path.own_outputs).zip(below) {
        let found = level
            .outputs
            .get(*own as usize)
            .map(|output| &output.script_pubkey);
        require(found == Some(script), Rule::OutputKeys, || {
            format!("output {own} of {} is not keyed to its owners", level.txid)
        })?;
    }
    for stock in own_stock(path) {
        let due = path.stock_key.as_ref().map(|key| key.script());
        require(
            due.as_ref() == Some(&stock.txout.script_pubkey),
            Rule::OutputKeys,
            || "the stock is not keyed to its owners".into(),
        )?;
    }
    Ok(())
}

fn own_stock(path: &Path) -> impl Iterator<Item = &RoledOutput> {
    let outputs = path.leaf().into_iter().flat_map(|leaf| &leaf.outputs);
    let stocks = outputs.filter(|output| output.role == OutputRole::Stock);
    stocks.filter(|output| output.clients.contains(&path.position))
}

/// Rule 5.
pub(super) fn timelocks(path: &Path, proposal: &PathProposal) -> Result<(), Refusal> {
    let nodes = path.shape.path(path.position);
    for (index, level) in nodes.iter().zip(&proposal.levels) {
        let Some(node) = path.shape.nodes().get(*index) else {
            continue;
        };
        let due = plan::birth_timelock(&proposal.params, node.kind).sequence();
        require(
            level.sequence == due.to_consensus_u32(),
            Rule::Timelocks,
            || {
                format!(
                    "{:?} with nSequence {:#x}, not {due}",
                    node.kind, level.sequence
                )
            },
        )?;
    }
    Ok(())
}

/// Rule 6.
pub(super) fn amounts(
    path: &Path,
    proposal: &PathProposal,
    agreed: Agreed<'_>,
) -> Result<(), Refusal> {
    let broken = |found: String| Err(Refusal::new(Rule::Amounts, found));
    for tx in path.node_txs() {
        let sum = checked_sum(tx.outputs.iter().map(|o| o.txout.value));
        if sum != Some(tx.spends.txout.value) {
            return broken(format!("outputs of {} are not its input", tx.txid));
        }
    }
    let first = plan::claim_range(&path.shape, path.position).start;
    if proposal.accounts_from != first {
        let from = proposal.accounts_from;
        return broken(format!("accounts from {from}, the shape says {first}"));
    }
    // What the timeouts were rebuilt from, not what the proposal says beside it.
    let own = path.position..path.position.saturating_add(1);
    let claim = path.book.of(&own).and_then(|claims| claims.first());
    let due = (agreed.invitation.capacity, &agreed.own.payout_script);
    if claim.map(|claim| (claim.capacity, &claim.script)) != Some(due) {
        return broken("our account is not the one we joined with".into());
    }
    let Some(leaf) = path.leaf() else {
        return broken("there is no leaf".into());
    };
    let own = &agreed.own.channel_key;
    let channel = channel_output(own, &proposal.lsp_channel_key, agreed.invitation.capacity);
    for output in &leaf.outputs {
        let due = match output.role {
            OutputRole::Channel => path
                .book
                .of(&output.clients)
                .map(|claims| checked_sum(claims.iter().map(|claim| claim.capacity))),
            OutputRole::Stock => path.book.stock(&output.clients).map(|(sum, _)| Some(sum)),
            _ => continue,
        };
        if due.flatten() != Some(output.txout.value) {
            return broken(format!(
                "{:?} output of {}",
                output.role, output.txout.value
            ));
        }
        let ours = output.role == OutputRole::Channel && output.clients.start == path.position;
        if ours && output.txout != channel {
            return broken("our channel is not the agreed 2-of-2".into());
        }
    }
    Ok(())
}

/// Rule 8.
pub(super) fn relay(path: &Path) -> Result<(), Refusal> {
    for tx in path.sessions.iter().chain([&path.channel_timeout]) {
        check_relay(tx.spends.txout.value, &tx.outputs, tx.vbytes())
            .map_err(|error| Refusal::new(Rule::Relay, format!("{}: {error}", tx.txid)))?;
        for output in &tx.outputs {
            let script = &output.txout.script_pubkey;
            let known = output.role == OutputRole::Anchor || is_tree_script(script);
            require(known, Rule::Relay, || {
                format!("{}: a script of another kind", tx.txid)
            })?;
        }
    }
    Ok(())
}

/// Rule 10. Locks and payouts are computed here, so what remains is that none is missing, that
/// the claims add up to the output, and that the coordinator means the same transactions.
pub(super) fn timeouts(path: &Path, proposal: &PathProposal) -> Result<(), Refusal> {
    let broken = |found: String| Err(Refusal::new(Rule::Timeouts, found));
    for (tx, proposed) in path.timeout_txs().zip(&proposal.timeouts) {
        let mut claimed = vec![];
        for (output, branch) in tx.outputs.iter().zip(&proposed.branches) {
            let own = path.book.merged(&output.clients, branch.script.clone());
            let (capacity, share) = own.map_or((branch.capacity, branch.share), |own| {
                (own.capacity, own.share)
            });
            claimed.extend([capacity, share]);
        }
        if proposed.branches.is_empty() {
            let claims = path.book.of(&tx.spends.clients).unwrap_or_default();
            claimed.extend(
                claims
                    .iter()
                    .flat_map(|claim| [claim.capacity, claim.share]),
            );
        }
        if checked_sum(claimed) != Some(tx.spends.txout.value) {
            return broken(format!("claims of timeout {} are not its input", tx.txid));
        }
        if tx.txid != proposed.txid {
            return broken(format!("timeout {} is {} here", proposed.txid, tx.txid));
        }
        if second_stage_of(path, tx) != proposed.second_stage {
            return broken(format!("second stage of {} differs", tx.txid));
        }
    }
    let stock = path
        .sessions
        .iter()
        .find(|tx| tx.spends.kind == SpentKind::Stock);
    if stock.map(|tx| tx.txid) != proposal.stock_timeout {
        return broken("the stock's timeout differs".into());
    }
    if path.channel_timeout.txid != proposal.channel_timeout {
        return broken("the channel's timeout differs".into());
    }
    Ok(())
}

fn second_stage_of(path: &Path, first: &FactoryTx) -> Option<Txid> {
    let of_first = |tx: &&FactoryTx| tx.spends.outpoint.txid == first.txid;
    path.sessions.iter().find(of_first).map(|tx| tx.txid)
}

/// What this client gets by timeouts at least, after their fees, whatever was published. Below the
/// leaf that is the channel alone: the LSP may take back its unsold stock after `q`.
#[must_use]
pub fn coverage(path: &Path) -> Amount {
    let pays = |tx: &FactoryTx| -> Amount {
        let own = tx.outputs.iter().filter(|output| {
            output.role == OutputRole::Payout && output.clients.start == path.position
        });
        checked_sum(own.map(|output| output.txout.value)).unwrap_or(Amount::ZERO)
    };
    let at_leaf = pays(&path.channel_timeout);
    let above = path.timeout_txs().map(|tx| {
        let second = second_stage_of(path, tx);
        let second = path.sessions.iter().find(|tx| Some(tx.txid) == second);
        pays(second.unwrap_or(tx))
    });
    above.chain([at_leaf]).min().unwrap_or(Amount::ZERO)
}

/// Rule 12. Without timeouts there is nothing to cover; the user has consented to that.
pub(super) fn coverage_rule(path: &Path, agreed: Agreed<'_>) -> Result<(), Refusal> {
    if !plan::has_timeouts(&agreed.invitation.params) {
        return Ok(());
    }
    let capacity = agreed.invitation.capacity;
    let least = u128::from(capacity.to_sat())
        .saturating_mul(agreed.limits.min_coverage_ppm.into())
        .checked_div(1_000_000)
        .unwrap_or(0);
    let covered = coverage(path);
    require(
        u128::from(covered.to_sat()) >= least,
        Rule::Coverage,
        || {
            let (covered, capacity) = (covered.to_sat(), capacity.to_sat());
            format!("coverage of {covered} sat for a capacity of {capacity} sat")
        },
    )
}

/// Rule 4.
pub(super) fn rebuild(path: &Path, proposal: &PathProposal) -> Result<(), Refusal> {
    let zero_anchor: TxOut = anchor(Amount::ZERO).txout;
    for (tx, level) in path.node_txs().zip(&proposal.levels) {
        let anchored = level.outputs.last() == Some(&zero_anchor);
        require(anchored, Rule::Rebuild, || {
            format!("{} has no anchor", level.txid)
        })?;
        require(tx.txid == level.txid, Rule::Rebuild, || {
            format!("transaction {} is {} here", level.txid, tx.txid)
        })?;
    }
    Ok(())
}

/// Rule 15: every signature verifies against the output key it spends; the channel's timeout
/// against the LSP's channel key.
///
/// # Errors
/// [`Rule::Signatures`], naming the transaction.
pub fn check_signatures(
    path: &Path,
    lsp_channel_key: &secp256k1::PublicKey,
    own_channel_key: &secp256k1::PublicKey,
    signatures: &[schnorr::Signature],
    channel_signature: &ecdsa::Signature,
) -> Result<(), Refusal> {
    let secp = Secp256k1::verification_only();
    require(
        signatures.len() == path.sessions.len(),
        Rule::Signatures,
        || {
            format!(
                "{} signatures for {} sessions",
                signatures.len(),
                path.sessions.len()
            )
        },
    )?;
    for (tx, signature) in path.sessions.iter().zip(signatures) {
        let key = tx.spends.key.as_deref();
        let valid =
            key.is_some_and(|key| session::verify(&secp, key, &tx.taproot_sighash(), signature));
        require(valid, Rule::Signatures, || {
            format!("signature of {}", tx.txid)
        })?;
    }
    let script = channel_witness_script(own_channel_key, lsp_channel_key);
    let sighash = path.channel_timeout.channel_sighash(&script);
    let message = secp256k1::Message::from_digest(sighash);
    let valid = secp
        .verify_ecdsa(&message, channel_signature, lsp_channel_key)
        .is_ok();
    require(valid, Rule::Signatures, || {
        "signature of the channel's timeout".into()
    })
}
