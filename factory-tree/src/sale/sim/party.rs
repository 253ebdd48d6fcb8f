//! The parties of a simulated sale: their keys, their disks, and how a client misbehaves.

use bitcoin::Script;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, ecdsa};

use super::super::cosigner::{CoSigner, PendingSale};
use super::super::message::ToSeller;
use crate::ceremony::coordinator::LspSigner;
use crate::ceremony::message::{DeclineReason, Round};
use crate::ceremony::signer::ChannelSigner;
use crate::factory::FactoryTx;
use crate::guard::SignedRecord;
use crate::ids::LeafId;
use crate::kit::ExitKit;
use crate::musig::PartialSignature;

/// How a client misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not.
    Honest,
    /// Its partial signature of this session is wrong.
    BadPartial(usize),
    /// Its signature on its channel's timeout is.
    BadChannelSignature,
    /// It does not answer an offer.
    NeverJoins,
    /// It joins and then does not sign.
    NeverSigns,
    /// It says no.
    Declines,
}

fn sign_with(key: &SecretKey, tx: &FactoryTx, script: &Script) -> ecdsa::Signature {
    let message = bitcoin::secp256k1::Message::from_digest(tx.channel_sighash(script));
    Secp256k1::new().sign_ecdsa(&message, key)
}

/// Signs with whichever of these keys the script has.
#[derive(Debug)]
pub(super) struct Channels(pub Vec<SecretKey>);

impl Channels {
    fn sign(&self, tx: &FactoryTx, script: &Script) -> Option<ecdsa::Signature> {
        let has = |key: &&SecretKey| {
            let public = PublicKey::from_secret_key(&Secp256k1::new(), key).serialize();
            script.as_bytes().windows(33).any(|bytes| bytes == public)
        };
        self.0
            .iter()
            .find(has)
            .map(|key| sign_with(key, tx, script))
    }
}

impl ChannelSigner for Channels {
    fn sign_channel_timeout(
        &self,
        _leaf: LeafId,
        tx: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        self.sign(tx, script)
    }
}

#[derive(Debug)]
pub(super) struct Lsp {
    pub factory: SecretKey,
    pub channels: Channels,
}

impl LspSigner for Lsp {
    fn factory_secret(&self, _round: Round) -> SecretKey {
        self.factory
    }
    fn sign_channel_timeout(
        &self,
        _leaf: LeafId,
        tx: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        self.channels.sign(tx, script)
    }
}

/// One client: its disk, and its machine, which a crash takes.
#[derive(Debug)]
pub(super) struct Wallet {
    pub kit: String,
    pub signed: Vec<SignedRecord>,
    pub pending: Option<PendingSale>,
    pub machine: Option<CoSigner>,
    pub fault: Fault,
    pub refused: Vec<DeclineReason>,
}

impl Wallet {
    pub(super) fn kit(&self) -> ExitKit {
        ExitKit::from_json(&self.kit).unwrap()
    }
}

impl Wallet {
    /// I10: what is recorded for an outpoint and a purpose stays.
    pub(super) fn store(&mut self, record: SignedRecord) {
        let of = |r: &SignedRecord| (r.outpoint, r.purpose) == (record.outpoint, record.purpose);
        if let Some(held) = self.signed.iter_mut().find(|r| of(r)) {
            assert_eq!(held.sighash, record.sighash, "I10");
            *held = record;
        } else {
            self.signed.push(record);
        }
    }

    pub(super) fn distort(&self, mut message: ToSeller) -> ToSeller {
        let round = message.round();
        if let ToSeller::Partials(partials) = &mut message {
            match self.fault {
                Fault::BadPartial(session) => {
                    let at = session % partials.partials.len();
                    partials.partials[at] = PartialSignature::from_bytes(&[5; 32]).unwrap();
                }
                Fault::BadChannelSignature => {
                    let wrong = ecdsa::Signature::from_compact(&[5; 64]).unwrap();
                    partials.channel_signature = partials.channel_signature.map(|_| wrong);
                }
                _ => {}
            }
        }
        if self.fault == Fault::Declines && matches!(message, ToSeller::Join(_)) {
            let reason = DeclineReason::Unable("disk full".into());
            return ToSeller::Decline { round, reason };
        }
        message
    }
}
