//! The clients of the bench: some real, the others just quick.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, ecdsa};
use bitcoin::{Network, Script};
use factory_tree::ceremony::coordinator::{Input, Invitee};
use factory_tree::ceremony::message::{
    Invitation, Join, Partials, Proposal, ToClient, ToCoordinator,
};
use factory_tree::ceremony::signer::{
    ChannelSigner, JoinKeys, Signer, SignerEffect, SignerInput, SignerOutcome, SignerStep,
};
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{ClientId, FactoryId, LeafId};
use factory_tree::kit::ExitKit;
use factory_tree::output::{channel_witness_script, payout};
use factory_tree::session::{NonceUse, SecretNonce};
use factory_tree::tree::Tree;
use factory_tree::verify::Limits;

use super::{CAPACITY, TIP, random, secret, sign_channel};
use crate::cpu;

#[derive(Debug)]
struct ChannelKey(SecretKey);

impl ChannelSigner for ChannelKey {
    fn sign_channel_timeout(
        &self,
        _: LeafId,
        timeout: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        Some(sign_channel(&self.0, timeout, script))
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    id: ClientId,
    keys: JoinKeys,
    channel: Arc<ChannelKey>,
    /// The coordinator's key of this client's channel.
    lsp_channel_key: PublicKey,
    work: Work,
    spent: Duration,
}

/// How a client gets its part done.
#[derive(Debug)]
enum Work {
    /// As a wallet does, with every check. Nothing before it is invited.
    Real(Option<Box<Signer>>),
    /// By trusting the coordinator's tree.
    Quick {
        nonces: Vec<SecretNonce>,
        factory: Option<FactoryId>,
    },
}

impl Client {
    pub(super) fn new(real: bool, lsp_channel_key: PublicKey) -> Result<Self> {
        let secp = Secp256k1::new();
        let (channel, join_nonce) = (secret()?, random());
        let quick = Work::Quick {
            nonces: Vec::new(),
            factory: None,
        };
        Ok(Self {
            id: ClientId(secret()?.public_key(&secp).serialize()),
            keys: JoinKeys {
                join_nonce,
                leaf_id: LeafId::derive(&join_nonce, 0),
                factory_secret: secret()?,
                payout_script: payout(&secp, secret()?.x_only_public_key(&secp).0),
                channel_key: channel.public_key(&secp),
            },
            channel: Arc::new(ChannelKey(channel)),
            lsp_channel_key,
            work: if real { Work::Real(None) } else { quick },
            spent: Duration::ZERO,
        })
    }

    pub(super) const fn id(&self) -> ClientId {
        self.id
    }

    pub(super) const fn invitee(&self) -> Invitee {
        Invitee {
            client: self.id,
            capacity: CAPACITY,
        }
    }

    /// Processor time of the real work.
    pub(super) const fn spent(&self) -> Duration {
        self.spent
    }

    pub(super) fn receive(&mut self, message: ToClient) -> Result<Vec<Input>> {
        match message {
            ToClient::Invitation(invitation) => self.invited(*invitation),
            ToClient::ConfirmPing(round) => Ok(vec![self.say(ToCoordinator::Present(round))]),
            ToClient::Finals(finals) => match &self.work {
                Work::Real(_) => self.step(SignerInput::Finals(finals)),
                Work::Quick { factory, .. } => {
                    let factory = factory.context("finals before a proposal")?;
                    let round = finals.round;
                    Ok(vec![self.say(ToCoordinator::Ack { round, factory })])
                }
            },
            ToClient::Failed { reason, .. } => bail!("the attempt failed: {reason:?}"),
            ToClient::Proposal(_) | ToClient::Factory(_) => Ok(Vec::new()),
        }
    }

    pub(super) fn proposed(&mut self, proposal: Proposal, tree: &Tree) -> Result<Vec<Input>> {
        match self.work {
            Work::Real(_) => self.step(SignerInput::Proposal {
                proposal: Box::new(proposal),
                tip: TIP,
                known_factory: false,
            }),
            Work::Quick { .. } => self.sign_quickly(&proposal, tree),
        }
    }

    fn say(&self, message: ToCoordinator) -> Input {
        Input::Message {
            client: self.id,
            message,
        }
    }

    fn join(&self, join: Join) -> Input {
        Input::Joined {
            client: self.id,
            join: Box::new(join),
            lsp_channel_key: self.lsp_channel_key,
        }
    }

    // ---- real ---------------------------------------------------------------------------------------------------

    fn invited(&mut self, invitation: Invitation) -> Result<Vec<Input>> {
        if matches!(self.work, Work::Quick { .. }) {
            return Ok(self.join_quickly(&invitation));
        }
        let before = cpu::own()?;
        let step = Signer::invited(
            invitation,
            Limits::default_for(Network::Regtest),
            self.keys.clone(),
            None,
            &mut random,
            self.channel.clone(),
        );
        self.spent += cpu::own()?.saturating_sub(before);
        self.take(step)
    }

    fn step(&mut self, input: SignerInput) -> Result<Vec<Input>> {
        let Work::Real(signer) = &mut self.work else {
            bail!("a quick client has no machine");
        };
        let signer = signer.take().context("a step before the invitation")?;
        let before = cpu::own()?;
        let step = signer.step(input);
        self.spent += cpu::own()?.saturating_sub(before);
        self.take(step)
    }

    fn take(&mut self, step: SignerStep) -> Result<Vec<Input>> {
        self.work = Work::Real(Some(Box::new(step.state)));
        let (mut answers, mut kit) = (Vec::new(), None);
        for effect in step.effects {
            match effect {
                SignerEffect::Send(ToCoordinator::Join(join)) => answers.push(self.join(*join)),
                SignerEffect::Send(message) => answers.push(self.say(message)),
                SignerEffect::LoadSigned(_) => {
                    answers.extend(self.step(SignerInput::Signed(Vec::new()))?)
                }
                SignerEffect::StoreKit(made) => kit = Some(made),
                SignerEffect::Rehearse(_) => {
                    let kit = kit.take().context("a rehearsal without a kit")?;
                    let rehearsed = self.rehearse(&kit)?;
                    answers.extend(self.step(rehearsed)?);
                }
                SignerEffect::Finished(SignerOutcome::Opened { .. })
                | SignerEffect::ExpectChannel(_)
                | SignerEffect::StoreJoin(_)
                | SignerEffect::StoreSigned(_)
                | SignerEffect::Emit(_) => {}
                SignerEffect::Finished(outcome) => bail!("a client gave up: {outcome:?}"),
            }
        }
        Ok(answers)
    }

    /// What a wallet does with a kit, without the disk: write it, read it back, verify it.
    fn rehearse(&mut self, kit: &ExitKit) -> Result<SignerInput> {
        let before = cpu::own()?;
        let read = ExitKit::from_json(&kit.to_json()?)?;
        let verified = read.verify().map_err(|error| error.to_string());
        self.spent += cpu::own()?.saturating_sub(before);
        Ok(SignerInput::Rehearsed(verified))
    }

    // ---- quick --------------------------------------------------------------------------------------------------

    fn join_quickly(&mut self, invitation: &Invitation) -> Vec<Input> {
        let round = invitation.round;
        let secret = self.keys.factory_secret;
        let (secrets, publics) = (0..invitation.max_sessions)
            .map(|session| {
                let made_for = NonceUse {
                    ceremony: round.ceremony,
                    attempt: round.attempt,
                    session,
                };
                SecretNonce::generate(random(), &secret, made_for)
            })
            .unzip();
        self.work = Work::Quick {
            nonces: secrets,
            factory: None,
        };
        let join = Join {
            round,
            factory_key: secret.public_key(&Secp256k1::signing_only()),
            payout_script: self.keys.payout_script.clone(),
            leaf_id: self.keys.leaf_id,
            channel_key: self.keys.channel_key,
            capacity: invitation.capacity,
            nonces: publics,
        };
        vec![self.join(join)]
    }

    fn sign_quickly(&mut self, proposal: &Proposal, tree: &Tree) -> Result<Vec<Input>> {
        let Work::Quick { nonces, factory } = &mut self.work else {
            bail!("a real client does not sign unseen");
        };
        *factory = Some(tree.id());
        let round = proposal.round;
        let sessions = tree.sessions_of(proposal.path.position);
        ensure!(sessions.len() <= nonces.len(), "more sessions than nonces");
        let mut partials = Vec::with_capacity(sessions.len());
        for (((session, tx), nonce), sum) in (0..)
            .zip(&sessions)
            .zip(nonces.drain(..))
            .zip(&proposal.sums)
        {
            let asked = NonceUse {
                ceremony: round.ceremony,
                attempt: round.attempt,
                session,
            };
            let tx = tree.txs().get(*tx).context("a session has a transaction")?;
            partials.push(nonce.sign(asked, &self.keys.factory_secret, tx, sum)?);
        }
        let place = proposal.path.position as usize;
        let timeout = tree
            .channel_timeouts()
            .get(place)
            .context("a channel has a timeout")?;
        let script = channel_witness_script(&self.keys.channel_key, &self.lsp_channel_key);
        let channel_signature = sign_channel(&self.channel.0, timeout, &script);
        let partials = Partials {
            round,
            partials,
            channel_signature,
        };
        Ok(vec![self.say(ToCoordinator::Partials(Box::new(partials)))])
    }
}
