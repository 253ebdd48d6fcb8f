//! What the two sides say to each other over a session stream.

use bitcoin::{Amount, Network};
use factory_tree::ceremony::message::{Round, ToClient, ToCoordinator};
use factory_tree::ids::FactoryId;
use factory_tree::sale::message::{ToCoSigner, ToSeller};

use super::WireError;
use super::ceremony::{abort_to_wire, decline_from_wire, decline_to_wire};
use super::fields::{amount, copied, fixed};
use super::ids::round;
use super::ladder::{Handover, MovePart, Notice, PartTerms, taken};
use super::sale;
use crate::session::{ServiceError, SessionToken};
use crate::v1::{self, client_message, server_message};

/// A client's wish to be in a next factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The capacity it asks for; `None`: the coordinator's default.
    pub capacity: Option<Amount>,
    /// Whether it has confirmed coins to pay fees with.
    pub has_fee_coins: bool,
    /// Whether one factory is enough; else every one to come.
    pub once: bool,
}

/// What a client is told when it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What its unary calls carry.
    pub token: SessionToken,
    /// Each side sends something at least this often.
    pub heartbeat_seconds: u32,
    /// The coordinator's best height.
    pub tip_height: u32,
}

/// How to reach the coordinator's Lightning node (whose id is the coordinator's), and others a client through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lightning {
    /// host:port (BOLT 8).
    pub address: String,
    /// The client's number at the coordinator, for life.
    pub intercept_scid: u64,
    /// Blocks the coordinator asks for.
    pub cltv_delta: u16,
    /// Its fee per payment.
    pub base_msat: u32,
    /// Its fee in millionths of the amount.
    pub proportional_millionths: u32,
}

/// From a client, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum FromClient {
    /// Handshake 1, for [`crate::auth`].
    Hello(v1::Hello),
    /// Handshake 3, for [`crate::auth`].
    Answer(v1::Answer),
    /// It is still there.
    Heartbeat,
    /// Something it was sent is wrong.
    Error(ServiceError),
    /// It wants to be in the next factory.
    Interest(Interest),
    /// It does not any more.
    InterestWithdrawn,
    /// A part of its balance is to move.
    MovePart(MovePart),
    /// The keys of a factory it has left.
    Handover(Handover),
    /// Part of a ceremony.
    Ceremony(ToCoordinator),
    /// Part of a sale.
    Sale(ToSeller),
}

/// To a client, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum FromServer {
    /// Handshake 2, for [`crate::auth`].
    Challenge(v1::Challenge),
    /// Handshake 4.
    Welcome(Welcome),
    /// It is still there.
    Heartbeat,
    /// Something it was sent is wrong.
    Error(ServiceError),
    /// The way to the coordinator's Lightning node, and through it.
    Lightning(Lightning),
    /// How to pay for a part that moves.
    PartTerms(PartTerms),
    /// The keys of this factory are stored.
    HandoverTaken(FactoryId),
    /// A factory ends.
    Notice(Notice),
    /// Part of a ceremony.
    Ceremony(ToClient),
    /// Part of a sale.
    Sale(ToCoSigner),
}

impl TryFrom<v1::Interest> for Interest {
    type Error = WireError;
    fn try_from(wire: v1::Interest) -> Result<Self, WireError> {
        let capacity = amount("interest.capacity_sat", wire.capacity_sat)?;
        Ok(Self {
            capacity: (capacity != Amount::ZERO).then_some(capacity),
            has_fee_coins: wire.has_fee_coins,
            once: wire.once,
        })
    }
}

impl From<Interest> for v1::Interest {
    fn from(interest: Interest) -> Self {
        Self {
            capacity_sat: interest.capacity.unwrap_or(Amount::ZERO).to_sat(),
            has_fee_coins: interest.has_fee_coins,
            once: interest.once,
        }
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = WireError;
    fn try_from(wire: v1::Welcome) -> Result<Self, WireError> {
        let token = fixed("welcome.session_token", &wire.session_token)?;
        Ok(Self {
            token: SessionToken::new(token),
            heartbeat_seconds: wire.heartbeat_seconds,
            tip_height: wire.tip_height,
        })
    }
}

impl From<Welcome> for v1::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self {
            session_token: copied(welcome.token.reveal()),
            heartbeat_seconds: welcome.heartbeat_seconds,
            tip_height: welcome.tip_height,
        }
    }
}

impl TryFrom<v1::Lightning> for Lightning {
    type Error = WireError;
    fn try_from(wire: v1::Lightning) -> Result<Self, WireError> {
        let field = "lightning.cltv_delta";
        let cltv_delta = u16::try_from(wire.cltv_delta).map_err(|_| WireError::TooMany {
            field,
            found: usize::try_from(wire.cltv_delta).unwrap_or(usize::MAX),
            max: u16::MAX.into(),
            unit: "blocks",
        })?;
        Ok(Self {
            address: wire.address,
            intercept_scid: wire.intercept_scid,
            cltv_delta,
            base_msat: wire.base_msat,
            proportional_millionths: wire.proportional_millionths,
        })
    }
}

impl From<Lightning> for v1::Lightning {
    fn from(lightning: Lightning) -> Self {
        Self {
            address: lightning.address,
            intercept_scid: lightning.intercept_scid,
            cltv_delta: lightning.cltv_delta.into(),
            base_msat: lightning.base_msat,
            proportional_millionths: lightning.proportional_millionths,
        }
    }
}

impl TryFrom<v1::ClientMessage> for FromClient {
    type Error = WireError;
    fn try_from(wire: v1::ClientMessage) -> Result<Self, WireError> {
        use client_message::Body;
        let field = "client_message.body";
        let ceremony = match wire.body.ok_or(WireError::Missing { field })? {
            Body::Hello(hello) => return Ok(Self::Hello(hello)),
            Body::Answer(answer) => return Ok(Self::Answer(answer)),
            Body::Heartbeat(_) => return Ok(Self::Heartbeat),
            Body::Error(error) => return error.try_into().map(Self::Error),
            Body::Interest(interest) => return interest.try_into().map(Self::Interest),
            Body::InterestWithdrawn(_) => return Ok(Self::InterestWithdrawn),
            Body::MovePart(part) => return part.try_into().map(Self::MovePart),
            Body::Handover(keys) => return keys.try_into().map(Self::Handover),
            Body::SaleJoin(join) => return sale::join(join).map(Self::Sale),
            Body::SalePartials(partials) => return sale::partials(partials).map(Self::Sale),
            Body::SaleAck(ack) => return sale::ack(ack).map(Self::Sale),
            Body::SaleDecline(decline) => return sale::decline(decline).map(Self::Sale),
            Body::Join(join) => ToCoordinator::Join(Box::new(join.try_into()?)),
            Body::Present(present) => ToCoordinator::Present(round(present.round)?),
            Body::Partials(partials) => ToCoordinator::Partials(Box::new(partials.try_into()?)),
            Body::Ack(ack) => ToCoordinator::Ack {
                round: round(ack.round)?,
                factory: FactoryId(fixed("ack.factory", &ack.factory)?),
            },
            Body::ChannelOpened(opened) => ToCoordinator::ChannelOpened {
                round: round(opened.round)?,
                factory: FactoryId(fixed("channel_opened.factory", &opened.factory)?),
            },
            Body::Decline(decline) => ToCoordinator::Decline {
                round: round(decline.round)?,
                reason: decline_from_wire(decline.kind, decline.rule, decline.text)?,
            },
        };
        Ok(Self::Ceremony(ceremony))
    }
}

impl FromServer {
    /// Parses what the coordinator sent to a client on `network`.
    ///
    /// # Errors
    /// [`WireError`], also when an invitation or a proposal is for another network.
    pub fn parse(wire: v1::ServerMessage, network: Network) -> Result<Self, WireError> {
        use server_message::Body;
        let field = "server_message.body";
        let ceremony = match wire.body.ok_or(WireError::Missing { field })? {
            Body::Challenge(challenge) => return Ok(Self::Challenge(challenge)),
            Body::Welcome(welcome) => return welcome.try_into().map(Self::Welcome),
            Body::Heartbeat(_) => return Ok(Self::Heartbeat),
            Body::Error(error) => return error.try_into().map(Self::Error),
            Body::Lightning(lightning) => return lightning.try_into().map(Self::Lightning),
            Body::PartTerms(terms) => return terms.try_into().map(Self::PartTerms),
            Body::HandoverTaken(factory) => return taken(&factory).map(Self::HandoverTaken),
            Body::Notice(notice) => return notice.try_into().map(Self::Notice),
            Body::SaleOffer(offer) => return sale::offer(offer).map(Self::Sale),
            Body::SaleSign(sign) => return sale::sign(sign).map(Self::Sale),
            Body::SaleFinals(finals) => return sale::finals(finals).map(Self::Sale),
            Body::SaleFailed(failed) => return sale::failed(failed).map(Self::Sale),
            Body::Invitation(invitation) => ToClient::Invitation(Box::new(invitation.try_into()?)),
            Body::ConfirmPing(ping) => ToClient::ConfirmPing(round(ping.round)?),
            Body::Proposal(proposal) => ToClient::Proposal(Box::new(proposal.try_into()?)),
            Body::Finals(finals) => ToClient::Finals(Box::new(finals.try_into()?)),
            Body::Failed(mut failed) => ToClient::Failed {
                round: round(failed.round.take())?,
                again: failed.again,
                reason: failed.try_into()?,
            },
            Body::FactoryUpdate(update) => ToClient::Factory(update.try_into()?),
        };
        same_network(&ceremony, network)?;
        Ok(Self::Ceremony(ceremony))
    }
}

fn same_network(message: &ToClient, expected: Network) -> Result<(), WireError> {
    let (field, found) = match message {
        ToClient::Invitation(invitation) => {
            ("invitation.params.network", invitation.params.network)
        }
        ToClient::Proposal(proposal) => ("proposal.params.network", proposal.path.params.network),
        _ => return Ok(()),
    };
    if found == expected {
        return Ok(());
    }
    Err(WireError::Network {
        field,
        found,
        expected,
    })
}

impl From<client_message::Body> for v1::ClientMessage {
    fn from(body: client_message::Body) -> Self {
        Self { body: Some(body) }
    }
}

impl From<server_message::Body> for v1::ServerMessage {
    fn from(body: server_message::Body) -> Self {
        Self { body: Some(body) }
    }
}

impl From<&ToCoordinator> for v1::ClientMessage {
    fn from(message: &ToCoordinator) -> Self {
        use client_message::Body;
        let wire_round = |round: &Round| Some((*round).into());
        let body = match message {
            ToCoordinator::Join(join) => Body::Join(join.as_ref().into()),
            ToCoordinator::Present(round) => Body::Present(v1::Present {
                round: wire_round(round),
            }),
            ToCoordinator::Partials(partials) => Body::Partials(partials.as_ref().into()),
            ToCoordinator::Ack { round, factory } => Body::Ack(v1::Ack {
                round: wire_round(round),
                factory: copied(factory.0),
            }),
            ToCoordinator::ChannelOpened { round, factory } => {
                Body::ChannelOpened(v1::ChannelOpened {
                    round: wire_round(round),
                    factory: copied(factory.0),
                })
            }
            ToCoordinator::Decline { round, reason } => {
                let (kind, rule, text) = decline_to_wire(reason);
                Body::Decline(v1::Decline {
                    round: wire_round(round),
                    kind: kind.into(),
                    rule,
                    text,
                })
            }
        };
        body.into()
    }
}

impl From<&ToClient> for v1::ServerMessage {
    fn from(message: &ToClient) -> Self {
        use server_message::Body;
        let body = match message {
            ToClient::Invitation(invitation) => Body::Invitation(invitation.as_ref().into()),
            ToClient::ConfirmPing(round) => Body::ConfirmPing(v1::ConfirmPing {
                round: Some((*round).into()),
            }),
            ToClient::Proposal(proposal) => Body::Proposal(proposal.as_ref().into()),
            ToClient::Finals(finals) => Body::Finals(finals.as_ref().into()),
            ToClient::Failed {
                round,
                reason,
                again,
            } => {
                let (kind, text, left) = abort_to_wire(reason);
                Body::Failed(v1::Failed {
                    round: Some((*round).into()),
                    kind: kind.into(),
                    text,
                    left,
                    again: *again,
                })
            }
            ToClient::Factory(update) => Body::FactoryUpdate(update.into()),
        };
        body.into()
    }
}

impl From<&FromClient> for v1::ClientMessage {
    fn from(message: &FromClient) -> Self {
        use client_message::Body;
        let body = match message {
            FromClient::Hello(hello) => Body::Hello(hello.clone()),
            FromClient::Answer(answer) => Body::Answer(answer.clone()),
            FromClient::Heartbeat => Body::Heartbeat(v1::Heartbeat {}),
            FromClient::Error(error) => Body::Error(error.into()),
            FromClient::Interest(interest) => Body::Interest((*interest).into()),
            FromClient::InterestWithdrawn => Body::InterestWithdrawn(v1::InterestWithdrawn {}),
            FromClient::MovePart(part) => Body::MovePart((*part).into()),
            FromClient::Handover(keys) => Body::Handover(keys.clone().into()),
            FromClient::Ceremony(message) => return message.into(),
            FromClient::Sale(message) => return message.into(),
        };
        body.into()
    }
}

impl From<&FromServer> for v1::ServerMessage {
    fn from(message: &FromServer) -> Self {
        use server_message::Body;
        let body = match message {
            FromServer::Challenge(challenge) => Body::Challenge(challenge.clone()),
            FromServer::Lightning(lightning) => Body::Lightning(lightning.clone().into()),
            FromServer::Welcome(welcome) => Body::Welcome((*welcome).into()),
            FromServer::Heartbeat => Body::Heartbeat(v1::Heartbeat {}),
            FromServer::Error(error) => Body::Error(error.into()),
            FromServer::PartTerms(terms) => Body::PartTerms((*terms).into()),
            FromServer::HandoverTaken(factory) => Body::HandoverTaken(v1::HandoverTaken {
                factory: copied(factory.0),
            }),
            FromServer::Notice(notice) => Body::Notice(notice.clone().into()),
            FromServer::Ceremony(message) => return message.into(),
            FromServer::Sale(message) => return message.into(),
        };
        body.into()
    }
}
