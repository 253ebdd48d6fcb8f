//! What a transaction is for, read from its locks and outputs alone (protocol.md section 5).

use core::fmt;
use core::str::FromStr;

use bitcoin::absolute::LockTime;
use bitcoin::{Sequence, TxOut};

use crate::factory::{FactoryTx, SpentKind};
use crate::output::{FUNDED_ANCHOR, anchor_script};
use crate::params::FactoryParams;
use crate::units::{Blocks, Height};

/// What an output is spent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The tree transaction below it, or a sale from a stock.
    Next,
    /// Pays the clients at `T`.
    Timeout,
    /// A cooperative end of everything below.
    Close,
    /// A Decker-Wattenhofer state with this nSequence, in blocks.
    State(u32),
    /// The poison of a stock's sale of this number, counted from 1.
    SalePoison(u8),
    /// The poison of an output of a superseded state.
    DwPoison,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next => f.write_str("next"),
            Self::Timeout => f.write_str("timeout"),
            Self::Close => f.write_str("close"),
            Self::State(slot) => write!(f, "state({slot})"),
            Self::SalePoison(sale) => write!(f, "sale_poison({sale})"),
            Self::DwPoison => f.write_str("dw_poison"),
        }
    }
}

/// A text that is no purpose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a purpose")]
pub struct PurposeParseError(String);

impl FromStr for Purpose {
    type Err = PurposeParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let number = |name: &str| s.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        let purpose = match s {
            "next" => Some(Self::Next),
            "timeout" => Some(Self::Timeout),
            "close" => Some(Self::Close),
            "dw_poison" => Some(Self::DwPoison),
            _ => {
                let slot = number("state").and_then(|slot| slot.parse().ok());
                let sale = number("sale_poison").and_then(|sale| sale.parse().ok());
                slot.map(Self::State).or(sale.map(Self::SalePoison))
            }
        };
        let purpose = purpose.filter(|purpose| purpose.to_string() == s);
        purpose.ok_or_else(|| PurposeParseError(s.chars().take(32).collect()))
    }
}

/// Why a transaction has no purpose anybody may sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// Not version 3.
    #[error("version {0}, a factory's transactions are version 3")]
    Version(i32),
    /// Not exactly the one input it is said to have.
    #[error("does not spend exactly the output {0}")]
    Input(bitcoin::OutPoint),
    /// No output.
    #[error("no outputs")]
    NoOutputs,
    /// Locks that no spend of such an output has.
    #[error(
        "nLockTime {lock_time} with nSequence {sequence:#x} fits no spend of an output of kind {kind:?}"
    )]
    Locks {
        /// What is spent.
        kind: SpentKind,
        /// nLockTime.
        lock_time: u32,
        /// nSequence.
        sequence: u32,
    },
    /// Outputs that no spend of such an output has.
    #[error("the outputs fit no spend of an output of kind {kind:?}")]
    Outputs {
        /// What is spent.
        kind: SpentKind,
    },
}

/// The locks of a transaction's one input.
#[derive(Clone, Copy)]
enum Lock {
    /// None.
    Free,
    /// Relative, in blocks, without nLockTime.
    Delay(Blocks),
    /// nLockTime = `T`, and the relative lock.
    Expiry(Option<Blocks>),
}

/// The purpose of `tx`, from its locks and outputs; its label ([`FactoryTx::kind`]) is not read.
///
/// # Errors
/// [`ClassifyError`] when no allowed spend of that output looks like this.
pub fn classify(
    tx: &FactoryTx,
    params: &FactoryParams,
    expiry: Height,
) -> Result<Purpose, ClassifyError> {
    let kind = tx.spends.kind;
    if tx.tx.version.0 != 3 {
        return Err(ClassifyError::Version(tx.tx.version.0));
    }
    let [input] = tx.tx.input.as_slice() else {
        return Err(ClassifyError::Input(tx.spends.outpoint));
    };
    if input.previous_output != tx.spends.outpoint {
        return Err(ClassifyError::Input(tx.spends.outpoint));
    }
    let lock = lock(tx.tx.lock_time, input.sequence, expiry);
    let outputs = Outputs::of(&tx.tx.output)?;
    let purpose = match (lock, kind) {
        (None, _) => Err(Misfit::Locks),
        (Some(lock), SpentKind::Funding | SpentKind::Static | SpentKind::State) => {
            on_branch(lock, outputs)
        }
        (Some(lock), SpentKind::Kickoff) => on_kickoff(lock, outputs, params),
        (Some(lock), SpentKind::Stock) => on_stock(lock, outputs, params),
        (Some(lock), SpentKind::Channel) => on_channel(lock, outputs),
        // A second stage follows a first stage that has waited already.
        (Some(Lock::Free), SpentKind::FirstStage) => outputs.paying(Purpose::Timeout),
        (Some(_), SpentKind::FirstStage) => Err(Misfit::Locks),
    };
    purpose.map_err(|misfit| match misfit {
        Misfit::Outputs => ClassifyError::Outputs { kind },
        Misfit::Locks => ClassifyError::Locks {
            kind,
            lock_time: tx.tx.lock_time.to_consensus_u32(),
            sequence: input.sequence.to_consensus_u32(),
        },
    })
}

/// What fits no allowed spend.
enum Misfit {
    Locks,
    Outputs,
}

/// Funding, static and inner state outputs.
fn on_branch(lock: Lock, outputs: Outputs) -> Result<Purpose, Misfit> {
    match lock {
        Lock::Expiry(None) => outputs.paying(Purpose::Timeout),
        // What leads on has an unpaid anchor for its child; a close pays its own fee.
        Lock::Free if outputs.unpaid_anchor => Ok(Purpose::Next),
        Lock::Free if outputs.anchors == 0 => Ok(Purpose::Close),
        Lock::Free => Err(Misfit::Outputs),
        Lock::Delay(_) | Lock::Expiry(Some(_)) => Err(Misfit::Locks),
    }
}

fn on_kickoff(lock: Lock, outputs: Outputs, params: &FactoryParams) -> Result<Purpose, Misfit> {
    match lock {
        Lock::Delay(slot) if slot <= params.max_slot() => {
            let fits = outputs.unpaid_anchor.then_some(Purpose::State(slot.0));
            fits.ok_or(Misfit::Outputs)
        }
        Lock::Expiry(Some(delay)) if delay == params.kickoff_timeout_delay() => {
            outputs.paying(Purpose::Timeout)
        }
        _ => Err(Misfit::Locks),
    }
}

fn on_stock(lock: Lock, outputs: Outputs, params: &FactoryParams) -> Result<Purpose, Misfit> {
    match lock {
        Lock::Expiry(Some(delay)) if delay == Blocks(params.stock_timeout_delay) => {
            outputs.paying(Purpose::Timeout)
        }
        Lock::Delay(delay) => {
            let sale = sale(params, delay).ok_or(Misfit::Locks)?;
            outputs.paying(Purpose::SalePoison(sale))
        }
        // A sale has a channel in it, a poison has none.
        Lock::Free if outputs.channels && outputs.unpaid_anchor => Ok(Purpose::Next),
        Lock::Free => outputs.paying(Purpose::DwPoison),
        Lock::Expiry(_) => Err(Misfit::Locks),
    }
}

fn on_channel(lock: Lock, outputs: Outputs) -> Result<Purpose, Misfit> {
    match lock {
        Lock::Expiry(None) => outputs.paying(Purpose::Timeout),
        Lock::Free => outputs.paying(Purpose::DwPoison),
        Lock::Delay(_) | Lock::Expiry(Some(_)) => Err(Misfit::Locks),
    }
}

/// Which sale's poison has this delay.
fn sale(params: &FactoryParams, delay: Blocks) -> Option<u8> {
    (1..=params.chain_depth_max).find(|sale| params.poison_delay(*sale) == delay)
}

fn lock(lock_time: LockTime, sequence: Sequence, expiry: Height) -> Option<Lock> {
    let delay = match sequence {
        Sequence::ENABLE_RBF_NO_LOCKTIME => None,
        _ if sequence.is_height_locked() => Some(Blocks(sequence.to_consensus_u32())),
        _ => return None,
    };
    // Only the 16 bits of BIP-68's value may be set.
    if delay.is_some_and(|delay| delay.0 > 0xffff) {
        return None;
    }
    match (lock_time.to_consensus_u32(), delay) {
        (0, None) => Some(Lock::Free),
        (0, Some(delay)) => Some(Lock::Delay(delay)),
        (height, delay) if height == expiry.0 => Some(Lock::Expiry(delay)),
        _ => None,
    }
}

/// What the outputs look like.
#[derive(Clone, Copy)]
struct Outputs {
    anchors: usize,
    /// The only anchor is the last output and holds nothing.
    unpaid_anchor: bool,
    /// The only anchor is the last output and is funded.
    paid_anchor: bool,
    /// There is a P2WSH output, which in a factory is a channel.
    channels: bool,
}

impl Outputs {
    fn of(outputs: &[TxOut]) -> Result<Self, ClassifyError> {
        let (last, others) = outputs.split_last().ok_or(ClassifyError::NoOutputs)?;
        let is_anchor = |output: &TxOut| output.script_pubkey == anchor_script();
        let anchors = outputs.iter().filter(|output| is_anchor(output)).count();
        let closing = anchors == 1 && is_anchor(last) && !others.is_empty();
        Ok(Self {
            anchors,
            unpaid_anchor: closing && last.value == bitcoin::Amount::ZERO,
            paid_anchor: closing && last.value == FUNDED_ANCHOR,
            channels: others.iter().any(|o| o.script_pubkey.is_p2wsh()),
        })
    }

    /// `purpose`, if these are payouts, or branches keyed to clients: no channel, and an anchor.
    const fn paying(self, purpose: Purpose) -> Result<Purpose, Misfit> {
        let anchored = self.unpaid_anchor || self.paid_anchor;
        if anchored && !self.channels {
            Ok(purpose)
        } else {
            Err(Misfit::Outputs)
        }
    }
}

#[cfg(test)]
mod tests;
