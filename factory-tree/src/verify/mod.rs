//! What a client checks before it signs, and before it accepts a finished factory.
//!
//! Each check is a named [`Rule`] with the number it has in facts.md 3.4. The order is from the
//! particular to the general, so that a proposal that breaks one thing is refused for that thing;
//! the byte-for-byte comparison of the rebuilt transactions comes last.

mod rules;

use core::fmt;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network, ScriptBuf};
use serde::{Deserialize, Serialize};

use crate::ceremony::message::{DeclineReason, Invitation};
use crate::params::ExpiryPolicy;
use crate::path::{Path, PathProposal};
use crate::units::{Blocks, Height};

pub use rules::{check_signatures, coverage};

/// A named check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// 1: the factory is new, and the keys are this attempt's own.
    Fresh,
    /// 2: the own key is at its place exactly once; no key is there twice.
    Membership,
    /// 3: every own output is keyed to exactly the agreed parties and script leaf.
    OutputKeys,
    /// 4: every transaction, rebuilt here, is the one the coordinator means.
    Rebuild,
    /// 5: relative locks are the agreed slots.
    Timelocks,
    /// 6: amounts add up, and the channel is the agreed one.
    Amounts,
    /// 7: parameters, depth and exit are those of the invitation and within the user's limits.
    Shape,
    /// 8: every transaction relays.
    Relay,
    /// 9: the factory expires when the schedule says.
    Expiry,
    /// 10: every output that needs a timeout has one, and it pays this client its due.
    Timeouts,
    /// 11: the LSP's own branch on the stock is late enough.
    StockDelay,
    /// 12: the timeouts cover the account limit.
    Coverage,
    /// 13: the Lightning channel stands on exactly the verified leaf.
    Channel,
    /// 14: the funding transaction pays the factory from segwit coins and the common pin.
    Funding,
    /// 15: every signature verifies against its output key.
    Signatures,
    /// 16: the exit can be rehearsed from disk.
    Rehearsal,
}

impl Rule {
    /// The rule's name, as logs, messages and documents have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Membership => "membership",
            Self::OutputKeys => "output_keys",
            Self::Rebuild => "rebuild",
            Self::Timelocks => "timelocks",
            Self::Amounts => "amounts",
            Self::Shape => "shape",
            Self::Relay => "relay",
            Self::Expiry => "expiry",
            Self::Timeouts => "timeouts",
            Self::StockDelay => "stock_delay",
            Self::Coverage => "coverage",
            Self::Channel => "channel",
            Self::Funding => "funding",
            Self::Signatures => "signatures",
            Self::Rehearsal => "rehearsal",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule that is broken, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule}: {found}")]
pub struct Refusal {
    /// Which rule.
    pub rule: Rule,
    /// What was found, in words.
    pub found: String,
}

impl Refusal {
    pub(crate) fn new(rule: Rule, found: impl Into<String>) -> Self {
        Self {
            rule,
            found: found.into(),
        }
    }
}

impl From<Refusal> for DeclineReason {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            rule: refusal.rule.name().to_owned(),
            found: refusal.found,
        }
    }
}

/// What the user allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The chain.
    pub network: Network,
    /// The least capacity worth having.
    pub min_capacity: Amount,
    /// The largest capacity accepted.
    pub max_capacity: Amount,
    /// The most a factory may cost.
    pub max_fee: Amount,
    /// Whether a factory without timeouts is accepted (it needs fee coins to leave in time).
    pub allow_lsp_reclaim: bool,
    /// The most clients: bounds the memory a proposal takes.
    pub max_clients: u32,
    /// The longest exit delay.
    pub max_exit_delay: Blocks,
    /// The largest path, fee children included.
    pub max_path_vbytes: u64,
    /// The longest time from birth to `T`.
    pub max_lifetime: Blocks,
    /// How far the proposed birth may be from the own tip.
    pub max_birth_drift: Blocks,
    /// The least relative lock of the LSP's branch on a stock.
    pub min_stock_delay: Blocks,
    /// The least coverage, in parts per million of the capacity.
    pub min_coverage_ppm: u32,
}

impl Limits {
    /// Sensible limits. On regtest the delays may be short, so that tests can compress time.
    #[must_use]
    pub const fn default_for(network: Network) -> Self {
        let compressed = matches!(network, Network::Regtest);
        Self {
            network,
            min_capacity: Amount::from_sat(10_000),
            max_capacity: Amount::from_sat(1_000_000_000),
            max_fee: Amount::from_sat(20_000),
            allow_lsp_reclaim: false,
            max_clients: 4096,
            max_exit_delay: Blocks(450),
            max_path_vbytes: 10_000,
            max_lifetime: Blocks(8064),
            max_birth_drift: Blocks(6),
            min_stock_delay: Blocks(if compressed { 2 } else { 504 }),
            min_coverage_ppm: 980_000,
        }
    }
}

/// The client's own side of a join: what it knows without asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Factory key of this attempt.
    pub factory_key: PublicKey,
    /// Payout script of this attempt.
    pub payout_script: ScriptBuf,
    /// Channel funding key of this attempt.
    pub channel_key: PublicKey,
}

/// Everything a proposal is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Agreed<'a> {
    /// The invitation that was accepted.
    pub invitation: &'a Invitation,
    /// The own keys.
    pub own: &'a Own,
    /// The user's limits.
    pub limits: &'a Limits,
    /// The own chain's tip.
    pub tip: Height,
    /// Whether this factory is in the store already.
    pub known_factory: bool,
}

/// Judges an invitation by the user's limits, before anything is joined.
///
/// # Errors
/// What is outside them.
pub fn check_invitation(invitation: &Invitation, limits: &Limits) -> Result<(), DeclineReason> {
    let params = &invitation.params;
    let terms = |text: String| Err(DeclineReason::Terms(text));
    if params.network != limits.network {
        return terms(format!(
            "network {}, not {}",
            params.network, limits.network
        ));
    }
    if !(limits.min_capacity..=limits.max_capacity).contains(&invitation.capacity) {
        return terms(format!("capacity {}", invitation.capacity));
    }
    if invitation.fee > limits.max_fee {
        return terms(format!("fee {} over {}", invitation.fee, limits.max_fee));
    }
    if params.expiry_policy == ExpiryPolicy::LspReclaim && !limits.allow_lsp_reclaim {
        return terms("expiry policy lsp_reclaim needs fee coins and the user's consent".into());
    }
    if invitation.confirmations == 0 {
        return terms("a factory that is used before its funding is confirmed".into());
    }
    if invitation.max_clients > limits.max_clients {
        return terms(format!("up to {} clients", invitation.max_clients));
    }
    if let Err(error) = params.validate() {
        return terms(error.to_string());
    }
    match crate::tree::max_sessions(params, invitation.max_clients) {
        Ok(sessions) if sessions == invitation.max_sessions => Ok(()),
        Ok(sessions) => terms(format!(
            "{} sessions, not {sessions}",
            invitation.max_sessions
        )),
        Err(error) => terms(error.to_string()),
    }
}

/// Judges a proposal by rules 1 to 12 and 14, and returns the rebuilt path.
///
/// # Errors
/// The first rule broken.
pub fn check_proposal(proposal: &PathProposal, agreed: Agreed<'_>) -> Result<Path, Refusal> {
    rules::fresh(proposal, agreed)?;
    rules::membership(proposal, agreed)?;
    rules::terms(proposal, agreed)?;
    rules::stock_delay(proposal, agreed)?;
    rules::funding(proposal, agreed)?;
    let path = Path::rebuild(proposal).map_err(|error| rules::classify(&error))?;
    rules::shape(&path, proposal, agreed)?;
    rules::expiry(&path, proposal, agreed)?;
    rules::funding_key(&path, proposal)?;
    rules::output_keys(&path, proposal)?;
    rules::timelocks(&path, proposal)?;
    rules::amounts(&path, proposal, agreed)?;
    rules::relay(&path)?;
    rules::timeouts(&path, proposal)?;
    rules::coverage_rule(&path, agreed)?;
    rules::rebuild(&path, proposal)?;
    Ok(path)
}

#[cfg(test)]
mod tests;
