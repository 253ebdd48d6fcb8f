//! What a client signs of a sale: every session and its new channel's timeout, or nothing.

use bitcoin::OutPoint;
use bitcoin::secp256k1::ecdsa;

use super::{Checked, CoSigner, CoSignerEffect, CoSignerEvent, Joined, PendingSale, Signed, State};
use crate::ceremony::message::DeclineReason;
use crate::factory::FactoryTx;
use crate::guard::{Decision, Request, SignedRecord, decide};
use crate::musig::{AggregateNonce, PartialSignature, PublicNonce};
use crate::output::channel_witness_script;
use crate::sale::message::{Partials, ToSeller};
use crate::sale::{SaleTxs, SoldChannel};
use crate::session::SecretNonce;

/// One session as it is about to be signed.
struct Session<'a> {
    number: u32,
    tx: &'a FactoryTx,
    sum: &'a AggregateNonce,
    secret: SecretNonce,
    public: &'a PublicNonce,
}

/// What the guard has to look at.
pub(super) fn outpoints(txs: &SaleTxs, position: u32) -> Vec<OutPoint> {
    let own = txs.channel_of(position).map(|(_, timeout)| timeout);
    let signed = txs.sessions().chain(own);
    signed.map(|tx| tx.spends.outpoint).collect()
}

impl CoSigner {
    /// Signs everything, if the guard allows all of it; else nothing is sent.
    pub(super) fn sign(&mut self, existing: &[SignedRecord], effects: &mut Vec<CoSignerEffect>) {
        let state = core::mem::replace(&mut self.state, State::Finished);
        let State::Checked(joined, secret, checked) = state else {
            self.state = state;
            return;
        };
        match self.sign_all(&joined, secret, &checked, existing) {
            Err(found) => {
                let rule = "double_sign".to_owned();
                self.decline(DeclineReason::Refused { rule, found }, effects);
            }
            Ok((partials, records)) => {
                let round = self.round;
                let pending = PendingSale {
                    round,
                    sale: joined.sale().clone(),
                    channel_signature: partials.channel_signature,
                };
                effects.push(CoSignerEffect::StoreSigned {
                    records,
                    pending: Box::new(pending.clone()),
                });
                let message = ToSeller::Partials(Box::new(partials.clone()));
                effects.push(CoSignerEffect::Send(message));
                effects.push(CoSignerEffect::Emit(CoSignerEvent::Signed { round }));
                self.state = State::Signed(Box::new(Signed {
                    pending,
                    txs: joined.txs,
                    sent: Some((checked.sign, partials)),
                }));
            }
        }
    }

    fn sign_all(
        &self,
        joined: &Joined,
        secret: Vec<SecretNonce>,
        checked: &Checked,
        existing: &[SignedRecord],
    ) -> Result<(Partials, Vec<SignedRecord>), String> {
        // The guard allows a poison only once the sale is recorded, so each decision sees the
        // records of those before it.
        let mut known = existing.to_vec();
        let mut records = Vec::new();
        let mut partials = Vec::new();
        let sessions = joined.txs.sessions().zip(&checked.sums);
        let all = (0u32..).zip(sessions).zip(secret).zip(&joined.nonces);
        for (((number, (tx, sum)), secret), public) in all {
            let session = Session {
                number,
                tx,
                sum,
                secret,
                public,
            };
            let (partial, record) = self.sign_one(joined, session, &known)?;
            partials.push(partial);
            records.push(record);
            known.retain(|r| (r.outpoint, r.purpose) != (record.outpoint, record.purpose));
            known.push(record);
        }
        let channel = joined.txs.channel_of(self.kit.position);
        let channel =
            channel.map(|(sold, timeout)| self.sign_channel(joined, sold, timeout, &known));
        let (channel_signature, record) = channel.transpose()?.unzip();
        records.extend(record);
        let partials = Partials {
            round: self.round,
            partials,
            channel_signature,
        };
        Ok((partials, records))
    }

    fn sign_one(
        &self,
        joined: &Joined,
        session: Session<'_>,
        known: &[SignedRecord],
    ) -> Result<(PartialSignature, SignedRecord), String> {
        let Session {
            number,
            tx,
            sum,
            secret,
            public,
        } = session;
        let (params, expiry) = (joined.stock.params(), joined.stock.expiry());
        let request = Request::musig(tx, params, expiry, public, sum).map_err(|e| e.to_string())?;
        match decide(known, &request) {
            Decision::Refuse(error) => Err(error.to_string()),
            Decision::Stored(partial) => {
                let stored = PartialSignature::from_bytes(&partial).map_err(|e| e.to_string())?;
                Ok((stored, request.record(partial)))
            }
            Decision::Record | Decision::FreshSession => {
                let asked = self.round.nonce_use(number);
                let partial = secret
                    .sign(asked, &self.secrets.factory_secret, tx, sum)
                    .map_err(|e| e.to_string())?;
                Ok((partial, request.record(partial.to_bytes())))
            }
        }
    }

    fn sign_channel(
        &self,
        joined: &Joined,
        sold: &SoldChannel,
        timeout: &FactoryTx,
        known: &[SignedRecord],
    ) -> Result<(ecdsa::Signature, SignedRecord), String> {
        let (params, expiry) = (joined.stock.params(), joined.stock.expiry());
        let script = channel_witness_script(&sold.channel_key, &sold.lsp_channel_key);
        let request =
            Request::channel(timeout, params, expiry, &script).map_err(|e| e.to_string())?;
        if let Decision::Refuse(error) = decide(known, &request) {
            return Err(error.to_string());
        }
        let signer = &self.secrets.channel_signer;
        let signature = signer.sign_channel_timeout(sold.leaf_id, timeout, &script);
        let signature = signature.ok_or("no channel key for this leaf")?;
        Ok((signature, request.record([0; 32])))
    }
}
