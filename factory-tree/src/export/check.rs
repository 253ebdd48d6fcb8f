//! Whether an export is consistent in itself: a test of the document for whoever relies on it.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::key::TapTweak;
use bitcoin::secp256k1::{PublicKey, Secp256k1, VerifyOnly};
use bitcoin::{Amount, OutPoint, ScriptBuf, Txid};

use super::{EXPORT_VERSION, Export, ExportInput, ExportTx, ParticipantRole};
use crate::ids::{ClientId, FactoryId};
use crate::musig::{Bip327, Group};
use crate::output::{self, OutputRole};

/// What is inconsistent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Another version of the document.
    #[error("export of version {0}, this software knows version {EXPORT_VERSION}")]
    Version(u32),
    /// A field contradicts the rest.
    #[error("{0} contradicts the rest of the export")]
    Field(&'static str),
    /// Not exactly one LSP and two or more clients, each once.
    #[error("the participants are not one LSP and at least two different clients")]
    Participants,
    /// A path that is not a chain of the document's transactions from the root.
    #[error("the path of {0} is not a chain of transactions from the root")]
    Path(ClientId),
    /// A transaction contradicts its own bytes or what it spends.
    #[error("{txid}: {what}")]
    Transaction {
        /// Which.
        txid: Txid,
        /// What is wrong.
        what: &'static str,
    },
}

/// Checks that every field agrees with the transactions' bytes, every input with the output it
/// spends and with its signers' aggregate, that no transaction creates money, and that paths and
/// clients refer to what is there. Signatures are not verified.
///
/// # Errors
/// The first inconsistency.
pub fn check(export: &Export) -> Result<(), CheckError> {
    if export.version != EXPORT_VERSION {
        return Err(CheckError::Version(export.version));
    }
    let funding = OutPoint::new(export.funding.txid, export.funding.vout);
    let params = &export.params;
    let agree = [
        ("factory_id", export.factory_id == FactoryId::of(funding)),
        ("network", export.network == params.network),
        (
            "expiry_policy",
            export.expiry_policy == params.expiry_policy,
        ),
        ("expiry_height", export.expiry_height > export.birth_height),
    ];
    if let Some((field, _)) = agree.into_iter().find(|(_, agrees)| !agrees) {
        return Err(CheckError::Field(field));
    }
    let clients = check_participants(export)?;
    let mut checker = Checker {
        known: BTreeMap::from([(
            funding,
            (
                export.funding.amount_sat,
                export.funding.script_pubkey.clone(),
            ),
        )]),
        clients,
        keys: BTreeMap::new(),
        secp: Secp256k1::verification_only(),
    };
    for tx in &export.transactions {
        checker.check(tx).map_err(|what| CheckError::Transaction {
            txid: tx.txid,
            what,
        })?;
    }
    check_paths(export, funding)
}

fn check_participants(export: &Export) -> Result<BTreeSet<ClientId>, CheckError> {
    let (lsps, clients): (Vec<_>, Vec<_>) = export
        .participants
        .iter()
        .partition(|p| p.role == ParticipantRole::Lsp);
    let ids: BTreeSet<ClientId> = clients.iter().map(|p| p.id).collect();
    let keys: BTreeSet<[u8; 33]> = export
        .participants
        .iter()
        .map(|p| p.factory_pubkey.serialize())
        .collect();
    let distinct = ids.len() == clients.len() && keys.len() == export.participants.len();
    if lsps.len() == 1 && clients.len() >= 2 && distinct {
        Ok(ids)
    } else {
        Err(CheckError::Participants)
    }
}

fn check_paths(export: &Export, funding: OutPoint) -> Result<(), CheckError> {
    let parents: BTreeMap<Txid, Txid> = export
        .transactions
        .iter()
        .flat_map(|tx| tx.inputs.iter().map(|input| (tx.txid, input.txid)))
        .collect();
    for participant in &export.participants {
        let mut above = funding.txid;
        for txid in &participant.path {
            if parents.get(txid) != Some(&above) {
                return Err(CheckError::Path(participant.id));
            }
            above = *txid;
        }
    }
    Ok(())
}

struct Checker {
    /// Outputs known so far.
    known: BTreeMap<OutPoint, (Amount, ScriptBuf)>,
    clients: BTreeSet<ClientId>,
    /// Aggregates made so far.
    keys: BTreeMap<Vec<[u8; 33]>, Option<bitcoin::XOnlyPublicKey>>,
    secp: Secp256k1<VerifyOnly>,
}

impl Checker {
    fn check(&mut self, tx: &ExportTx) -> Result<(), &'static str> {
        if tx.raw.compute_txid() != tx.txid {
            return Err("txid is not that of raw");
        }
        if tx.raw.lock_time.to_consensus_u32() != tx.locktime {
            return Err("locktime is not that of raw");
        }
        let ([input], [raw]) = (tx.inputs.as_slice(), tx.raw.input.as_slice()) else {
            return Err("not exactly one input");
        };
        let outpoint = OutPoint::new(input.txid, input.vout);
        if raw.previous_output != outpoint || raw.sequence.to_consensus_u32() != input.sequence {
            return Err("the input is not that of raw");
        }
        if raw.witness.is_empty() {
            return Err("not signed");
        }
        let known = self.known.get(&outpoint);
        if known != Some(&(input.amount_sat, input.script_pubkey.clone())) {
            return Err("spends no output before it with that amount and script");
        }
        self.check_signers(input)?;
        self.check_outputs(tx, input.amount_sat)
    }

    fn check_signers(&mut self, input: &ExportInput) -> Result<(), &'static str> {
        let Some(internal) = input.internal_key else {
            let [a, b] = input.signers.as_slice() else {
                return Err("a channel has two signers");
            };
            let fits = output::channel(a, b) == input.script_pubkey;
            return fits
                .then_some(())
                .ok_or("the script is not that of the signers");
        };
        if self.aggregate(&input.signers) != Some(internal) {
            return Err("internal_key is not the aggregate of signers");
        }
        let (tweaked, _) = internal.tap_tweak(&self.secp, input.merkle_root);
        let script = output::taproot(tweaked.to_x_only_public_key());
        let fits = script == input.script_pubkey;
        fits.then_some(())
            .ok_or("the script is not that of internal_key and merkle_root")
    }

    fn aggregate(&mut self, signers: &[PublicKey]) -> Option<bitcoin::XOnlyPublicKey> {
        let name: Vec<[u8; 33]> = signers.iter().map(PublicKey::serialize).collect();
        let made = || Group::aggregate(signers).ok().map(|group| group.key());
        *self.keys.entry(name).or_insert_with(made)
    }

    fn check_outputs(&mut self, tx: &ExportTx, input: Amount) -> Result<(), &'static str> {
        if tx.outputs.len() != tx.raw.output.len() {
            return Err("the outputs are not those of raw");
        }
        let mut sum = Amount::ZERO;
        for ((vout, output), raw) in (0u32..).zip(&tx.outputs).zip(&tx.raw.output) {
            let same = (output.vout, output.amount_sat, &output.script_pubkey);
            if same != (vout, raw.value, &raw.script_pubkey) {
                return Err("the outputs are not those of raw");
            }
            let anchor = output.script_pubkey == output::anchor_script();
            if anchor != (output.role == OutputRole::Anchor) || anchor != output.clients.is_empty()
            {
                return Err("an output's role does not fit its script and clients");
            }
            if output.clients.iter().any(|id| !self.clients.contains(id)) {
                return Err("an output belongs to somebody who is no participant");
            }
            sum = sum.checked_add(raw.value).ok_or("the outputs overflow")?;
            let outpoint = OutPoint::new(tx.txid, vout);
            self.known
                .insert(outpoint, (raw.value, raw.script_pubkey.clone()));
        }
        (sum <= input)
            .then_some(())
            .ok_or("pays more than it spends")
    }
}
