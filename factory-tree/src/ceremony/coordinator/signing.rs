//! From the funding transaction to the last ack: the tree, nonces, signatures, blame.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::secp256k1::{self, PublicKey, Secp256k1, ecdsa, schnorr};
use bitcoin::{OutPoint, Transaction};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::types::{
    Blame, Effect, Event, Funding, LeftOut, ProposalFor, Propose, Record, RefuseReason,
};
use super::{Ceremony, Phase, State, refuse};
use crate::ceremony::message::{AbortReason, Finals, Partials, Round, ToClient};
use crate::factory::{FactorySpec, FactoryTx, Member};
use crate::ids::{ClientId, FactoryId};
use crate::musig::{AggregateNonce, PublicNonce};
use crate::output::channel_witness_script;
use crate::session::{
    Aggregation, Fault, NonceUse, SecretNonce, SessionError, Share, complete_all,
};
use crate::tree::{Draft, Tree};

/// A tree that waits for its funding transaction.
#[derive(Debug)]
pub(super) struct Drafted {
    pub(super) spec: FactorySpec,
    pub(super) draft: Draft,
}

/// A tree whose proposals are out.
#[derive(Debug)]
pub(super) struct Signing {
    tree: Arc<Tree>,
    funding_tx: Arc<Transaction>,
    sessions: Vec<OpenSession>,
    /// Each client's sessions: indices into `sessions`, in its session order, by place.
    of_client: Vec<Vec<usize>>,
}

/// The coordinator's side of one open session.
#[derive(Debug)]
struct OpenSession {
    sum: AggregateNonce,
    own: Option<SecretNonce>,
    /// For each signing client in leaf order, which of its nonces this session uses.
    nonce_index: Vec<usize>,
}

/// A tree whose final signatures are out.
#[derive(Debug)]
pub(super) struct Acking {
    pub(super) tree: Arc<Tree>,
    pub(super) funding_tx: Arc<Transaction>,
    signatures: Vec<schnorr::Signature>,
    channel_signatures: Vec<ecdsa::Signature>,
    of_client: Vec<Vec<usize>>,
}

impl Signing {
    pub(super) fn proposal_again(&self, round: Round, client: ClientId) -> Option<Effect> {
        let position = place(&self.tree, client)?;
        Some(Effect::Propose(Box::new(Propose {
            round,
            tree: Arc::clone(&self.tree),
            funding_tx: Arc::clone(&self.funding_tx),
            clients: vec![self.proposal_for(position, client)],
        })))
    }

    fn proposal_for(&self, position: u32, client: ClientId) -> ProposalFor {
        let sessions = self.of_client.get(position as usize);
        let sums = sessions
            .into_iter()
            .flatten()
            .filter_map(|s| self.sessions.get(*s));
        ProposalFor {
            client,
            position,
            sums: sums.map(|s| s.sum.clone()).collect(),
        }
    }
}

impl Acking {
    pub(super) fn finals_again(&self, round: Round, client: ClientId) -> Option<Effect> {
        let position = place(&self.tree, client)?;
        self.finals_for(round, position, client)
    }

    fn finals_for(&self, round: Round, position: u32, client: ClientId) -> Option<Effect> {
        let sessions = self.of_client.get(position as usize)?;
        let signatures = sessions
            .iter()
            .filter_map(|s| self.signatures.get(*s))
            .copied();
        let finals = Finals {
            round,
            signatures: signatures.collect(),
            channel_signature: *self.channel_signatures.get(position as usize)?,
        };
        Some(Effect::Send {
            client,
            message: ToClient::Finals(Box::new(finals)),
        })
    }
}

fn place(tree: &Tree, client: ClientId) -> Option<u32> {
    let members = &tree.spec().members;
    let index = members.iter().position(|member| member.client == client)?;
    u32::try_from(index).ok()
}

fn members(tree: &Tree) -> impl Iterator<Item = (u32, &Member)> {
    (0u32..).zip(&tree.spec().members)
}

impl Ceremony {
    /// The funding transaction is there: the tree is built and stored, proposals go out.
    pub(super) fn funding_ready(&mut self, funding: Funding, effects: &mut Vec<Effect>) {
        let drafted = match std::mem::replace(&mut self.state, State::Finished) {
            State::Funding(drafted) => drafted,
            // Made for an attempt that failed meanwhile: a client declined while the wallet worked.
            other => {
                self.state = other;
                return;
            }
        };
        let Drafted { spec, draft } = *drafted;
        let Funding { tx, vout, seed } = funding;
        let pays = tx.output.get(vout as usize) == Some(&draft.funding_output());
        let pinned = tx
            .input
            .iter()
            .any(|i| i.previous_output == self.terms.common_pin);
        if !pays || !pinned {
            let why = "the funding transaction is not the one asked for".to_owned();
            return self.give_up(AbortReason::NoFunds(why), effects);
        }
        let outpoint = OutPoint::new(tx.compute_txid(), vout);
        let tree = match draft.at(outpoint) {
            Ok(tree) => Arc::new(tree),
            Err(error) => return self.give_up(AbortReason::Tree(error.to_string()), effects),
        };
        let round = self.round();
        let factory = tree.id();
        let funding_tx = Arc::new(tx.clone());
        effects.push(Effect::Store(Box::new(Record::Proposed {
            round,
            factory,
            spec,
            funding_tx: tx,
            vout,
        })));
        let (sessions, of_client) = self.open_sessions(&tree, &seed);
        let signing = Signing {
            tree: Arc::clone(&tree),
            funding_tx,
            sessions,
            of_client,
        };
        let clients: Vec<ProposalFor> = members(&tree)
            .map(|(position, member)| signing.proposal_for(position, member.client))
            .collect();
        let count = u32::try_from(clients.len()).unwrap_or(u32::MAX);
        effects.push(Effect::Propose(Box::new(Propose {
            round,
            tree,
            funding_tx: Arc::clone(&signing.funding_tx),
            clients,
        })));
        effects.push(Effect::Emit(Event::ProposalSent {
            round,
            factory,
            clients: count,
        }));
        self.state = State::Signing(Box::new(signing));
        self.wake(Phase::Signing, self.terms.step_seconds, effects);
    }

    /// One nonce of the coordinator's own for every session it signs, and the sum of all nonces.
    fn open_sessions(
        &self,
        tree: &Tree,
        seed: &Zeroizing<[u8; 32]>,
    ) -> (Vec<OpenSession>, Vec<Vec<usize>>) {
        let secret = self.signer.factory_secret(self.round());
        let nonces = self.nonces_by_place(tree);
        let mut of_client: Vec<Vec<usize>> = vec![Vec::new(); tree.spec().members.len()];
        let mut indices: Vec<Vec<usize>> = Vec::with_capacity(tree.txs().len());
        for (session, tx) in tree.txs().iter().enumerate() {
            let signers = of_client
                .get_mut(tx.spends.clients.start as usize..tx.spends.clients.end as usize)
                .unwrap_or_default();
            let mut used = Vec::with_capacity(signers.len());
            for sessions in signers {
                used.push(sessions.len());
                sessions.push(session);
            }
            indices.push(used);
        }
        let jobs: Vec<_> = tree.txs().iter().zip(indices).enumerate().collect();
        let sessions = jobs
            .into_par_iter()
            .map(|(session, (tx, nonce_index))| {
                let own = signs(tx).then(|| {
                    let mut hash = Sha256::new();
                    hash.update(seed.as_slice());
                    hash.update((session as u64).to_be_bytes());
                    let made_for = self.nonce_use(session);
                    SecretNonce::generate(hash.finalize().into(), &secret, made_for)
                });
                let (own, own_public) = own.unzip();
                let theirs = client_nonces(tx, &nonces, &nonce_index);
                let sum = AggregateNonce::sum(own_public.as_ref().into_iter().chain(theirs));
                OpenSession {
                    sum,
                    own,
                    nonce_index,
                }
            })
            .collect();
        (sessions, of_client)
    }

    fn nonce_use(&self, session: usize) -> NonceUse {
        NonceUse {
            ceremony: self.id,
            attempt: self.attempt,
            session: u32::try_from(session).unwrap_or(u32::MAX),
        }
    }

    fn nonces_by_place(&self, tree: &Tree) -> Vec<&[PublicNonce]> {
        let joins: BTreeMap<ClientId, &[PublicNonce]> = self
            .seats
            .iter()
            .filter_map(|seat| Some((seat.client, seat.join()?.nonces.as_slice())))
            .collect();
        let nonces = members(tree).map(|(_, m)| joins.get(&m.client).copied().unwrap_or_default());
        nonces.collect()
    }

    pub(super) fn partials(
        &mut self,
        client: ClientId,
        partials: Partials,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        let State::Signing(signing) = &self.state else {
            let repeated = matches!(self.state, State::Acking(_))
                && self
                    .seats
                    .iter()
                    .any(|s| s.client == client && s.partials.as_ref() == Some(&partials));
            if !repeated {
                effects.push(refuse(client, round, RefuseReason::OutOfTurn));
            }
            return;
        };
        let place = place(&signing.tree, client);
        let due = place
            .and_then(|place| signing.of_client.get(place as usize))
            .map(Vec::len);
        if due != Some(partials.partials.len()) {
            let found = partials.partials.len();
            let text = format!("{found} partial signatures, not {}", due.unwrap_or(0));
            return effects.push(refuse(client, round, RefuseReason::Malformed(text)));
        }
        let Some(seat) = self.seat(client) else {
            return;
        };
        match &seat.partials {
            Some(held) if *held == partials => return,
            Some(_) => return effects.push(refuse(client, round, RefuseReason::OutOfTurn)),
            None => seat.partials = Some(partials),
        }
        effects.push(Effect::Emit(Event::PartialsReceived { round, client }));
        if !self
            .seats
            .iter()
            .any(|seat| seat.is_awaited(Phase::Signing))
        {
            self.complete(effects);
        }
    }

    /// All partials are there: the coordinator signs last, verifies, stores and sends the result.
    fn complete(&mut self, effects: &mut Vec<Effect>) {
        let State::Signing(signing) = std::mem::replace(&mut self.state, State::Finished) else {
            return;
        };
        let Signing {
            tree,
            funding_tx,
            sessions,
            of_client,
        } = *signing;
        let round = self.round();
        let faults = self.channel_faults(&tree);
        let sums: Vec<AggregateNonce> = sessions.iter().map(|s| s.sum.clone()).collect();
        let result = self.aggregate(&tree, &sums, sessions);
        let signatures = match (result, faults.is_empty()) {
            (Ok(signatures), true) => signatures,
            (Ok(_), false) => return self.blame(&tree, &sums, &of_client, faults, effects),
            (Err(SessionError::Guilty(mut more)), _) => {
                more.extend(faults);
                return self.blame(&tree, &sums, &of_client, more, effects);
            }
            (Err(error), _) => return self.give_up(AbortReason::Tree(error.to_string()), effects),
        };
        let Some(lsp_channel_signatures) = self.sign_channels(&tree) else {
            let why = "the coordinator's channel key is missing".to_owned();
            return self.give_up(AbortReason::Tree(why), effects);
        };
        let factory = tree.id();
        effects.push(Effect::Store(Box::new(Record::Completed {
            round,
            factory,
            signatures: signatures.clone(),
            client_channel_signatures: self.client_channel_signatures(&tree),
            lsp_channel_signatures: lsp_channel_signatures.clone(),
        })));
        let acking = Acking {
            tree,
            funding_tx,
            signatures,
            channel_signatures: lsp_channel_signatures,
            of_client,
        };
        let finals = members(&acking.tree)
            .filter_map(|(position, member)| acking.finals_for(round, position, member.client));
        effects.extend(finals);
        effects.push(Effect::Emit(Event::FinalsSent { round, factory }));
        self.state = State::Acking(Box::new(acking));
        self.wake(Phase::Acking, self.terms.step_seconds, effects);
    }

    fn aggregate(
        &self,
        tree: &Tree,
        sums: &[AggregateNonce],
        sessions: Vec<OpenSession>,
    ) -> Result<Vec<schnorr::Signature>, SessionError> {
        let secret = self.signer.factory_secret(self.round());
        let nonces = self.nonces_by_place(tree);
        let partials = self.partials_by_place(tree);
        let open = tree.txs().iter().zip(sums).zip(sessions).enumerate();
        let aggregations = open.map(|(session, ((tx, sum), open))| {
            let shares = tx.spends.clients.clone().zip(&open.nonce_index);
            let shares = shares.filter_map(|(client, index)| {
                Some(Share {
                    signer: tree.spec().members.get(client as usize)?.factory_key,
                    nonce: nonces.get(client as usize)?.get(*index)?,
                    partial: *partials
                        .get(client as usize)?
                        .as_ref()?
                        .partials
                        .get(*index)?,
                })
            });
            Aggregation {
                tx,
                shares: shares.collect(),
                sum,
                own: open.own,
                nonce_use: self.nonce_use(session),
            }
        });
        complete_all(&secret, aggregations.collect())
    }

    fn partials_by_place(&self, tree: &Tree) -> Vec<Option<&Partials>> {
        let sent: BTreeMap<ClientId, &Partials> = self
            .seats
            .iter()
            .filter_map(|seat| Some((seat.client, seat.partials.as_ref()?)))
            .collect();
        members(tree)
            .map(|(_, member)| sent.get(&member.client).copied())
            .collect()
    }

    fn client_channel_signatures(&self, tree: &Tree) -> Vec<ecdsa::Signature> {
        let partials = self.partials_by_place(tree);
        partials
            .into_iter()
            .flatten()
            .map(|p| p.channel_signature)
            .collect()
    }

    /// Clients whose signature on their channel's timeout is invalid.
    fn channel_faults(&self, tree: &Tree) -> Vec<Fault> {
        let partials = self.partials_by_place(tree);
        let jobs: Vec<_> = members(tree)
            .zip(tree.channel_timeouts())
            .zip(partials)
            .collect();
        let secp = Secp256k1::verification_only();
        jobs.into_par_iter()
            .filter_map(|(((_, member), timeout), partials)| {
                let script = channel_witness_script(&member.channel_key, &member.lsp_channel_key);
                let sighash = timeout.channel_sighash(&script);
                let message = secp256k1::Message::from_digest(sighash);
                let valid = partials.is_some_and(|partials| {
                    let signature = &partials.channel_signature;
                    secp.verify_ecdsa(&message, signature, &member.channel_key)
                        .is_ok()
                });
                let fault = Fault {
                    signer: member.factory_key,
                    txid: timeout.txid,
                };
                (!valid).then_some(fault)
            })
            .collect()
    }

    fn sign_channels(&self, tree: &Tree) -> Option<Vec<ecdsa::Signature>> {
        let jobs: Vec<_> = members(tree).zip(tree.channel_timeouts()).collect();
        jobs.into_par_iter()
            .map(|((_, member), timeout)| {
                let script = channel_witness_script(&member.channel_key, &member.lsp_channel_key);
                self.signer
                    .sign_channel_timeout(member.leaf_id, timeout, &script)
            })
            .collect()
    }

    /// Names the guilty, keeps the evidence, and goes on without them.
    fn blame(
        &mut self,
        tree: &Tree,
        sums: &[AggregateNonce],
        of_client: &[Vec<usize>],
        faults: Vec<Fault>,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        let mut first_faults: BTreeMap<PublicKey, Fault> = BTreeMap::new();
        for fault in faults {
            first_faults.entry(fault.signer).or_insert(fault);
        }
        let mut out = Vec::new();
        for (position, member) in members(tree) {
            let Some(fault) = first_faults.get(&member.factory_key) else {
                continue;
            };
            let sessions = of_client.get(position as usize);
            let blame = self.evidence(tree, sums, sessions, member, fault);
            out.push((member.client, LeftOut::Guilty));
            effects.push(Effect::Store(Box::new(Record::Blamed { round, blame })));
            effects.push(Effect::Emit(Event::Blamed {
                round,
                client: member.client,
            }));
        }
        self.fail_attempt(Phase::Signing, AbortReason::Guilty, out, effects);
    }

    fn evidence(
        &self,
        tree: &Tree,
        sums: &[AggregateNonce],
        sessions: Option<&Vec<usize>>,
        member: &Member,
        fault: &Fault,
    ) -> Blame {
        let seat = self.seats.iter().find(|seat| seat.client == member.client);
        let partials = seat.and_then(|seat| seat.partials.as_ref());
        let session = sessions
            .into_iter()
            .flatten()
            .enumerate()
            .find(|(_, session)| {
                tree.txs()
                    .get(**session)
                    .is_some_and(|tx| tx.txid == fault.txid)
            });
        let shared = session.and_then(|(index, session)| {
            let nonce = seat?.join()?.nonces.get(index)?;
            let partial = partials?.partials.get(index)?;
            Some((
                partial.to_bytes(),
                nonce.to_bytes(),
                sums.get(*session)?.to_bytes(),
            ))
        });
        let (sent, nonce, sum) = match shared {
            Some((partial, nonce, sum)) => {
                (hex::encode(partial), hex::encode(nonce), hex::encode(sum))
            }
            None => {
                let sent = partials.map(|p| hex::encode(p.channel_signature.serialize_compact()));
                (sent.unwrap_or_default(), String::new(), String::new())
            }
        };
        Blame {
            client: member.client,
            factory_key: member.factory_key,
            txid: fault.txid,
            sent,
            nonce,
            sum,
        }
    }

    pub(super) fn acked(
        &mut self,
        client: ClientId,
        factory: FactoryId,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        let acking = match &self.state {
            State::Acking(acking) | State::Opening(acking) => acking,
            _ => return effects.push(refuse(client, round, RefuseReason::OutOfTurn)),
        };
        if acking.tree.id() != factory {
            let text = format!("ack of factory {factory}, not {}", acking.tree.id());
            return effects.push(refuse(client, round, RefuseReason::Malformed(text)));
        }
        // Where channels are opened everybody has acked: the same again is harmless.
        let Some(seat) = self.seat(client).filter(|seat| !seat.acked) else {
            return;
        };
        seat.acked = true;
        effects.push(Effect::Emit(Event::Acked { round, client }));
        if self.seats.iter().any(|seat| seat.is_awaited(Phase::Acking)) {
            return;
        }
        let State::Acking(acking) = std::mem::replace(&mut self.state, State::Finished) else {
            return;
        };
        let tree = Arc::clone(&acking.tree);
        effects.push(Effect::Emit(Event::OpeningChannels { round, factory }));
        effects.push(Effect::OpenChannels { round, tree });
        self.state = State::Opening(acking);
        self.wake(Phase::Opening, self.terms.step_seconds, effects);
    }
}

/// Whether the coordinator is a signer: not of second stages, which are the clients' alone.
fn signs(tx: &FactoryTx) -> bool {
    tx.spends
        .key
        .as_ref()
        .is_some_and(|key| key.owners.with_lsp)
}

fn client_nonces<'a>(
    tx: &FactoryTx,
    nonces: &[&'a [PublicNonce]],
    index: &[usize],
) -> impl Iterator<Item = &'a PublicNonce> {
    let range = tx.spends.clients.start as usize..tx.spends.clients.end as usize;
    let signers = nonces.get(range).unwrap_or_default();
    signers
        .iter()
        .zip(index)
        .filter_map(|(nonces, index)| nonces.get(*index))
}
