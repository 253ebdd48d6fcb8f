//! The messages of a sale (`factory_tree::sale::message`).

use bitcoin::secp256k1::ecdsa;
use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ids::{Attempt, LeafId, SaleId};
use factory_tree::musig::PublicNonce;
use factory_tree::sale::message::{
    FailReason, Finals, Join, Offer, Partials, SaleRound, Sign, ToCoSigner, ToSeller,
};
use factory_tree::sale::{Sale, SoldChannel};
use factory_tree::units::Height;

use super::ceremony::{decline_from_wire, decline_to_wire};
use super::fields::{
    at_most, capacity, copied, ecdsa_signature, fixed, joined, narrow, partial_signatures,
    public_key, public_nonces, required, schnorr_signatures, short, text,
};
use super::{MAX_SESSIONS, WireError};
use crate::v1::{self, client_message, server_message};

/// Signers of one sale: the clients of a stock (`k` is a byte) and the LSP.
const MAX_SIGNERS: usize = 256;

impl From<SaleRound> for v1::SaleRound {
    fn from(round: SaleRound) -> Self {
        Self {
            sale: copied(round.sale.0),
            attempt: round.attempt.0,
        }
    }
}

fn round(wire: Option<v1::SaleRound>) -> Result<SaleRound, WireError> {
    let wire = required("sale_round", wire)?;
    Ok(SaleRound {
        sale: SaleId(fixed("sale_round.sale", &wire.sale)?),
        attempt: Attempt(wire.attempt),
    })
}

impl From<&SoldChannel> for v1::SoldChannel {
    fn from(channel: &SoldChannel) -> Self {
        Self {
            position: channel.position,
            leaf_id: copied(channel.leaf_id.0),
            channel_key: copied(channel.channel_key.serialize()),
            lsp_channel_key: copied(channel.lsp_channel_key.serialize()),
            capacity_sat: channel.capacity.to_sat(),
        }
    }
}

impl TryFrom<v1::SoldChannel> for SoldChannel {
    type Error = WireError;
    fn try_from(wire: v1::SoldChannel) -> Result<Self, WireError> {
        let lsp = "sold_channel.lsp_channel_key";
        Ok(Self {
            position: wire.position,
            leaf_id: LeafId(fixed("sold_channel.leaf_id", &wire.leaf_id)?),
            channel_key: public_key("sold_channel.channel_key", &wire.channel_key)?,
            lsp_channel_key: public_key(lsp, &wire.lsp_channel_key)?,
            capacity: capacity("sold_channel.capacity_sat", wire.capacity_sat)?,
        })
    }
}

fn nonces<'a>(nonces: impl IntoIterator<Item = &'a PublicNonce>) -> bytes::Bytes {
    let all: Vec<[u8; 66]> = nonces.into_iter().map(PublicNonce::to_bytes).collect();
    joined(all.into_iter())
}

fn signature(
    field: &'static str,
    bytes: Option<bytes::Bytes>,
) -> Result<Option<ecdsa::Signature>, WireError> {
    bytes
        .map(|bytes| ecdsa_signature(field, &bytes))
        .transpose()
}

fn compact(signature: &ecdsa::Signature) -> bytes::Bytes {
    copied(signature.serialize_compact())
}

impl From<&ToSeller> for v1::ClientMessage {
    fn from(message: &ToSeller) -> Self {
        use client_message::Body;
        let round = Some(message.round().into());
        let body = match message {
            ToSeller::Join(join) => Body::SaleJoin(v1::SaleJoin {
                round,
                nonces: nonces(&join.nonces),
            }),
            ToSeller::Partials(partials) => Body::SalePartials(v1::SalePartials {
                round,
                partials: joined(partials.partials.iter().map(|partial| partial.to_bytes())),
                channel_signature: partials.channel_signature.as_ref().map(compact),
            }),
            ToSeller::Ack(_) => Body::SaleAck(v1::SaleAck { round }),
            ToSeller::Decline { reason, .. } => {
                let (kind, rule, text) = decline_to_wire(reason);
                Body::SaleDecline(v1::SaleDecline {
                    round,
                    kind: kind.into(),
                    rule,
                    text,
                })
            }
        };
        body.into()
    }
}

pub(super) fn join(wire: v1::SaleJoin) -> Result<ToSeller, WireError> {
    Ok(ToSeller::Join(Box::new(Join {
        round: round(wire.round)?,
        nonces: public_nonces("sale_join.nonces", &wire.nonces, MAX_SESSIONS)?,
    })))
}

pub(super) fn partials(wire: v1::SalePartials) -> Result<ToSeller, WireError> {
    let (field, channel) = ("sale_partials.partials", "sale_partials.channel_signature");
    Ok(ToSeller::Partials(Box::new(Partials {
        round: round(wire.round)?,
        partials: partial_signatures(field, &wire.partials, MAX_SESSIONS)?,
        channel_signature: signature(channel, wire.channel_signature)?,
    })))
}

pub(super) fn ack(wire: v1::SaleAck) -> Result<ToSeller, WireError> {
    Ok(ToSeller::Ack(round(wire.round)?))
}

pub(super) fn decline(wire: v1::SaleDecline) -> Result<ToSeller, WireError> {
    let reason: DeclineReason = decline_from_wire(wire.kind, wire.rule, wire.text)?;
    Ok(ToSeller::Decline {
        round: round(wire.round)?,
        reason,
    })
}

impl From<&ToCoSigner> for v1::ServerMessage {
    fn from(message: &ToCoSigner) -> Self {
        use server_message::Body;
        let body = match message {
            ToCoSigner::Offer(offer) => Body::SaleOffer(v1::SaleOffer {
                round: Some(offer.round.into()),
                stock: Some(offer.sale.stock.into()),
                number: offer.sale.number.into(),
                bought: Some((&offer.sale.bought).into()),
                bonus: offer.sale.bonus.iter().map(Into::into).collect(),
                until_height: offer.until.0,
            }),
            ToCoSigner::Sign(sign) => Body::SaleSign(v1::SaleSign {
                round: Some(sign.round.into()),
                nonces: sign.nonces.iter().map(nonces).collect(),
                buyer: sign
                    .buyer
                    .as_ref()
                    .map(|all| joined(all.iter().map(|partial| partial.to_bytes()))),
            }),
            ToCoSigner::Finals(finals) => Body::SaleFinals(v1::SaleFinals {
                round: Some(finals.round.into()),
                signatures: joined(finals.signatures.iter().map(|s| s.serialize())),
                channel_signature: finals.channel_signature.as_ref().map(compact),
            }),
            ToCoSigner::Failed { round, reason } => {
                let (kind, text) = fail_to_wire(reason);
                Body::SaleFailed(v1::SaleFailed {
                    round: Some((*round).into()),
                    kind: kind.into(),
                    text,
                })
            }
        };
        body.into()
    }
}

pub(super) fn offer(wire: v1::SaleOffer) -> Result<ToCoSigner, WireError> {
    let round = round(wire.round)?;
    at_most("sale_offer.bonus", wire.bonus.len(), MAX_SIGNERS, "entries")?;
    let bonus = wire.bonus.into_iter().map(TryInto::try_into);
    Ok(ToCoSigner::Offer(Box::new(Offer {
        round,
        sale: Sale {
            id: round.sale,
            stock: required("sale_offer.stock", wire.stock)?.try_into()?,
            number: narrow("sale_offer.number", wire.number, u8::MAX.into())?,
            bought: required("sale_offer.bought", wire.bought)?.try_into()?,
            bonus: bonus.collect::<Result<_, _>>()?,
        },
        until: Height(wire.until_height),
    })))
}

pub(super) fn sign(wire: v1::SaleSign) -> Result<ToCoSigner, WireError> {
    at_most(
        "sale_sign.nonces",
        wire.nonces.len(),
        MAX_SIGNERS,
        "entries",
    )?;
    let all = wire.nonces.iter();
    let all = all.map(|one| public_nonces("sale_sign.nonces", one, MAX_SESSIONS));
    let buyer = wire
        .buyer
        .map(|all| partial_signatures("sale_sign.buyer", &all, MAX_SESSIONS));
    Ok(ToCoSigner::Sign(Box::new(Sign {
        round: round(wire.round)?,
        nonces: all.collect::<Result<_, _>>()?,
        buyer: buyer.transpose()?,
    })))
}

pub(super) fn finals(wire: v1::SaleFinals) -> Result<ToCoSigner, WireError> {
    let (field, channel) = ("sale_finals.signatures", "sale_finals.channel_signature");
    Ok(ToCoSigner::Finals(Box::new(Finals {
        round: round(wire.round)?,
        signatures: schnorr_signatures(field, &wire.signatures, MAX_SESSIONS)?,
        channel_signature: signature(channel, wire.channel_signature)?,
    })))
}

pub(super) fn failed(wire: v1::SaleFailed) -> Result<ToCoSigner, WireError> {
    let said = text("sale_failed.text", wire.text)?;
    let reason = match v1::SaleFailKind::try_from(wire.kind) {
        Ok(v1::SaleFailKind::Silent) => FailReason::Silent,
        Ok(v1::SaleFailKind::Guilty) => FailReason::Guilty,
        Ok(v1::SaleFailKind::Declined) => FailReason::Declined,
        Ok(v1::SaleFailKind::Restarted) => FailReason::Restarted,
        Ok(v1::SaleFailKind::Cancelled) => FailReason::Cancelled,
        Ok(v1::SaleFailKind::Unable) => FailReason::Unable(said),
        Ok(v1::SaleFailKind::Unspecified) | Err(_) => {
            return Err(WireError::UnknownEnum {
                field: "sale_failed.kind",
                value: wire.kind,
            });
        }
    };
    Ok(ToCoSigner::Failed {
        round: round(wire.round)?,
        reason,
    })
}

fn fail_to_wire(reason: &FailReason) -> (v1::SaleFailKind, String) {
    let plain = |kind| (kind, String::new());
    match reason {
        FailReason::Silent => plain(v1::SaleFailKind::Silent),
        FailReason::Guilty => plain(v1::SaleFailKind::Guilty),
        FailReason::Declined => plain(v1::SaleFailKind::Declined),
        FailReason::Restarted => plain(v1::SaleFailKind::Restarted),
        FailReason::Cancelled => plain(v1::SaleFailKind::Cancelled),
        FailReason::Unable(why) => (v1::SaleFailKind::Unable, short(why)),
    }
}
