//! How the LSP signs: its nonces, the order of the others, completing, and blame.

use bitcoin::Txid;
use bitcoin::secp256k1::{self, PublicKey, Secp256k1, ecdsa, schnorr};
use sha2::{Digest, Sha256};

use super::{Phase, SaleRecord, Seat, Seller, SellerEffect, SellerEvent, SoldRecord, State};
use crate::ceremony::coordinator::{Blame, RefuseReason};
use crate::factory::FactoryTx;
use crate::ids::ClientId;
use crate::kit::ChannelSignatures;
use crate::musig::AggregateNonce;
use crate::output::channel_witness_script;
use crate::sale::SoldChannel;
use crate::sale::message::{FailReason, Partials};
use crate::sale::rules::{Nonces, invalid_partial, sums};
use crate::session::{Aggregation, SecretNonce, SessionError, Share, complete_all};

/// What is known once all nonces are.
pub(super) struct Signing {
    /// Every signer's, the LSP's first.
    pub(super) nonces: Vec<Nonces>,
    sums: Vec<AggregateNonce>,
    /// The LSP's, of the sessions it has not signed yet.
    own: Vec<SecretNonce>,
    /// Of the sessions it has, in order.
    complete: Vec<schnorr::Signature>,
}

impl Seller {
    /// All nonces are there. From now on the buyer may have signed, so the terms are stored first.
    pub(super) fn ask_buyer(&mut self, effects: &mut Vec<SellerEffect>) {
        let State::Joining(seed) = &self.state else {
            return;
        };
        let mut secret = self.signer.factory_secret(self.factory);
        let sessions = (0u32..).zip(self.txs.sessions());
        let (own, publics): (Vec<_>, Nonces) = sessions
            .map(|(session, _)| {
                let mut hash = Sha256::new();
                hash.update(seed.as_slice());
                hash.update(session.to_be_bytes());
                let made_for = self.round.nonce_use(session);
                SecretNonce::generate(hash.finalize().into(), &secret, made_for)
            })
            .unzip();
        secret.non_secure_erase();
        let theirs = self.seats.iter().filter_map(|seat| seat.nonces.clone());
        let nonces: Vec<Nonces> = core::iter::once(publics).chain(theirs).collect();
        self.state = State::BuyerSigning(Box::new(Signing {
            sums: sums(&nonces, own.len()),
            nonces,
            own,
            complete: Vec::new(),
        }));
        effects.push(SellerEffect::Store(Box::new(SaleRecord::Bound {
            round: self.round,
            sale: self.txs.sale.clone(),
        })));
        self.ask(effects);
    }

    pub(super) fn partials(
        &mut self,
        client: ClientId,
        partials: Partials,
        effects: &mut Vec<SellerEffect>,
    ) {
        let round = self.round;
        let Some(seat) = self.seats.iter().find(|seat| seat.client == client) else {
            return;
        };
        if !matches!(self.phase(), Phase::BuyerSigning | Phase::MatesSigning) || !self.awaits(seat)
        {
            if seat.partials.as_ref() != Some(&partials) {
                effects.push(self.refuse(client, RefuseReason::OutOfTurn));
            }
            return;
        }
        if let Some(text) = self.malformed(seat, &partials) {
            return effects.push(self.refuse(client, RefuseReason::Malformed(text)));
        }
        let fault = self.fault(seat, &partials);
        if let Some(seat) = self.seat(client) {
            seat.partials = Some(partials);
        }
        effects.push(SellerEffect::Emit(SellerEvent::PartialsReceived {
            round,
            client,
        }));
        match fault {
            Some(fault) => self.blame(&[(client, fault)], effects),
            None if self.seats.iter().any(|seat| self.awaits(seat)) => {}
            None => self.all_signed(effects),
        }
    }

    fn malformed(&self, seat: &Seat, partials: &Partials) -> Option<String> {
        let (found, sessions) = (partials.partials.len(), self.txs.sessions().count());
        if found != sessions {
            return Some(format!("{found} partial signatures, not {sessions}"));
        }
        let due = self.txs.channel_of(seat.position).is_some();
        let given = partials.channel_signature.is_some();
        (due != given).then(|| format!("signature of a channel's timeout: {given}, not {due}"))
    }

    /// What is invalid of what a client sent and is not found by aggregating: the signature of its
    /// channel's timeout; and all of the buyer's, which others are to rely on.
    fn fault(&self, seat: &Seat, partials: &Partials) -> Option<Txid> {
        let (State::BuyerSigning(signing) | State::MatesSigning(signing)) = &self.state else {
            return None;
        };
        let channel = self.txs.channel_of(seat.position);
        let channel = channel.zip(partials.channel_signature);
        let bad = channel.filter(|((sold, timeout), sig)| !is_signed(sold, timeout, sig));
        let first = self.buys(seat).then(|| {
            let nonces = seat.nonces.as_deref().unwrap_or_default();
            let (key, sent) = (&seat.factory_key, &partials.partials);
            invalid_partial(&self.txs, key, nonces, &signing.sums, sent)
        });
        let first = first.flatten().map(|tx| tx.txid);
        first.or(bad.map(|((_, timeout), _)| timeout.txid))
    }

    /// Everybody whose turn it was has signed.
    fn all_signed(&mut self, effects: &mut Vec<SellerEffect>) {
        let mates = self.seats.iter().any(|seat| seat.partials.is_none());
        match core::mem::replace(&mut self.state, State::Finished) {
            State::BuyerSigning(signing) if mates => {
                self.state = State::MatesSigning(signing);
                self.ask(effects);
            }
            State::BuyerSigning(signing) | State::MatesSigning(signing) => {
                self.state = State::Completing(signing);
                self.complete_chain(effects);
            }
            other => self.state = other,
        }
    }

    /// The LSP signs the chain transaction, and stores it before it signs any poison of what that
    /// consumes.
    fn complete_chain(&mut self, effects: &mut Vec<SellerEffect>) {
        if !self.complete(1, effects) {
            return;
        }
        let State::Completing(signing) = &self.state else {
            return;
        };
        if let Some(signature) = signing.complete.first() {
            effects.push(SellerEffect::Store(Box::new(SaleRecord::Chain {
                round: self.round,
                signature: *signature,
            })));
        }
    }

    pub(super) fn chain_stored(&mut self, effects: &mut Vec<SellerEffect>) {
        let rest = match &self.state {
            State::Completing(signing) => signing.own.len(),
            _ => return,
        };
        if !self.complete(rest, effects) {
            return;
        }
        let State::Completing(signing) = core::mem::replace(&mut self.state, State::Finished)
        else {
            return;
        };
        let round = self.round;
        let Some(channels) = self.sign_channels() else {
            let why = "a channel key is missing".to_owned();
            return self.fail(FailReason::Unable(why), Vec::new(), effects);
        };
        let sold = SoldRecord {
            round,
            sale: self.txs.sale.clone(),
            signatures: signing.complete,
            channels,
        };
        let record = SaleRecord::Sold(Box::new(sold.clone()));
        effects.push(SellerEffect::Store(Box::new(record)));
        self.state = State::Delivering(Box::new(sold));
        effects.extend(self.seats.iter().filter_map(|seat| self.due(seat)));
        effects.push(SellerEffect::Emit(SellerEvent::Completed { round }));
    }

    /// Completes the next `count` sessions; or names who prevents it.
    fn complete(&mut self, count: usize, effects: &mut Vec<SellerEffect>) -> bool {
        let State::Completing(signing) = &mut self.state else {
            return false;
        };
        let from = signing.complete.len();
        let own: Vec<SecretNonce> = signing.own.drain(..count.min(signing.own.len())).collect();
        let sums = signing.sums.iter().skip(from);
        let sessions = self
            .txs
            .sessions()
            .enumerate()
            .skip(from)
            .zip(sums)
            .zip(own);
        let seats = &self.seats;
        let aggregations = sessions.map(|(((session, tx), sum), own)| Aggregation {
            tx,
            shares: seats
                .iter()
                .filter_map(|seat| seat.share(session))
                .collect(),
            sum,
            own: Some(own),
            nonce_use: self
                .round
                .nonce_use(u32::try_from(session).unwrap_or(u32::MAX)),
        });
        let aggregations = aggregations.collect();
        let mut secret = self.signer.factory_secret(self.factory);
        let result = complete_all(&secret, aggregations);
        secret.non_secure_erase();
        match result {
            Ok(signatures) => {
                if let State::Completing(signing) = &mut self.state {
                    signing.complete.extend(signatures);
                }
                return true;
            }
            Err(SessionError::Guilty(faults)) => {
                let guilty = faults.iter().filter_map(|fault| {
                    let seat = seats.iter().find(|s| s.factory_key == fault.signer)?;
                    Some((seat.client, fault.txid))
                });
                let guilty: Vec<_> = guilty.collect();
                self.blame(&guilty, effects);
            }
            Err(error) => {
                let why = FailReason::Unable(error.to_string());
                self.fail(why, Vec::new(), effects);
            }
        }
        false
    }

    fn sign_channels(&self) -> Option<Vec<ChannelSignatures>> {
        let made = self.txs.sale.channels().zip(&self.txs.channel_timeouts);
        made.map(|(sold, timeout)| {
            let mut seats = self.seats.iter();
            let seat = seats.find(|seat| seat.position == sold.position)?;
            let client = seat.partials.as_ref()?.channel_signature?;
            let script = channel_witness_script(&sold.channel_key, &sold.lsp_channel_key);
            let lsp = self
                .signer
                .sign_channel_timeout(sold.leaf_id, timeout, &script)?;
            is_signed_by(&sold.lsp_channel_key, sold, timeout, &lsp)
                .then_some(ChannelSignatures { client, lsp })
        })
        .collect()
    }

    /// Names the guilty and keeps the evidence.
    fn blame(&mut self, faults: &[(ClientId, Txid)], effects: &mut Vec<SellerEffect>) {
        let round = self.round;
        let mut guilty: Vec<ClientId> = Vec::new();
        for (client, txid) in faults {
            if guilty.contains(client) {
                continue;
            }
            guilty.push(*client);
            let seat = self.seats.iter().find(|seat| seat.client == *client);
            if let Some(blame) = seat.map(|seat| self.evidence(seat, *txid)) {
                let record = SaleRecord::Blamed { round, blame };
                effects.push(SellerEffect::Store(Box::new(record)));
            }
            let client = *client;
            effects.push(SellerEffect::Emit(SellerEvent::Blamed { round, client }));
        }
        self.fail(FailReason::Guilty, guilty, effects);
    }

    fn evidence(&self, seat: &Seat, txid: Txid) -> Blame {
        let session = self.txs.sessions().position(|tx| tx.txid == txid);
        let shared = session.and_then(|session| {
            let share = seat.share(session)?;
            let sum = self.sums()?.get(session)?.to_bytes();
            Some((share.partial.to_bytes(), share.nonce.to_bytes(), sum))
        });
        let (sent, nonce, sum) = match shared {
            Some((partial, nonce, sum)) => {
                (hex::encode(partial), hex::encode(nonce), hex::encode(sum))
            }
            None => {
                let sent = seat.partials.as_ref().and_then(|p| p.channel_signature);
                let sent = sent.map(|sent| hex::encode(sent.serialize_compact()));
                (sent.unwrap_or_default(), String::new(), String::new())
            }
        };
        Blame {
            client: seat.client,
            factory_key: seat.factory_key,
            txid,
            sent,
            nonce,
            sum,
        }
    }

    fn sums(&self) -> Option<&[AggregateNonce]> {
        match &self.state {
            State::BuyerSigning(signing)
            | State::MatesSigning(signing)
            | State::Completing(signing) => Some(&signing.sums),
            _ => None,
        }
    }
}

impl Seat {
    fn share(&self, session: usize) -> Option<Share<'_>> {
        Some(Share {
            signer: self.factory_key,
            nonce: self.nonces.as_ref()?.get(session)?,
            partial: *self.partials.as_ref()?.partials.get(session)?,
        })
    }
}

/// Whether the client's signature on the timeout of its new channel is valid.
fn is_signed(sold: &SoldChannel, timeout: &FactoryTx, signature: &ecdsa::Signature) -> bool {
    is_signed_by(&sold.channel_key, sold, timeout, signature)
}

fn is_signed_by(
    key: &PublicKey,
    sold: &SoldChannel,
    timeout: &FactoryTx,
    signature: &ecdsa::Signature,
) -> bool {
    let script = channel_witness_script(&sold.channel_key, &sold.lsp_channel_key);
    let message = secp256k1::Message::from_digest(timeout.channel_sighash(&script));
    let secp = Secp256k1::verification_only();
    secp.verify_ecdsa(&message, signature, key).is_ok()
}
