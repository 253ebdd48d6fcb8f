//! Clients that misbehave, for the tests of the other side: `SUPERSCALAR_MISBEHAVE` names how.
//! Compiled with the feature `fault-points` only.

use std::sync::{Mutex, PoisonError};

use bitcoin::secp256k1::SecretKey;
use factory_tree::ceremony::message::{Round, ToCoordinator};
use factory_tree::ids::CeremonyId;
use factory_tree::musig::PartialSignature;
use proto::v1::client_message::Body;
use proto::v1::{self, ClientMessage};
use proto::wire;

fn how() -> String {
    std::env::var("SUPERSCALAR_MISBEHAVE").unwrap_or_default()
}

/// What is really sent instead of this message.
pub(crate) fn twist(message: &ToCoordinator) -> Vec<ClientMessage> {
    let honest = || ClientMessage::from(message);
    match (how().as_str(), message) {
        ("silent_before_join", ToCoordinator::Join(_))
        | ("silent_after_join", ToCoordinator::Present(_))
        | ("silent_after_proposal", ToCoordinator::Partials(_)) => Vec::new(),
        ("bad_partial", ToCoordinator::Partials(_)) => vec![bad_partial(message)],
        ("garbage", ToCoordinator::Present(_)) => vec![garbage(), honest()],
        ("duplicate", _) => vec![honest(), honest()],
        ("foreign", _) => vec![foreign(message), honest()],
        ("late", ToCoordinator::Partials(_)) => {
            *held() = Some(honest());
            Vec::new()
        }
        // The next attempt's join goes out together with the last attempt's partials.
        ("late", ToCoordinator::Join(_)) => held().take().into_iter().chain([honest()]).collect(),
        _ => vec![honest()],
    }
}

/// Whether to stay away from the coordinator's Lightning node.
pub(crate) fn hides_from_lightning() -> bool {
    how() == "silent_before_channel"
}

/// Whether to find something wrong with every channel.
pub(crate) fn refuses_channel() -> bool {
    how() == "refuse_channel"
}

/// Whether to sign sales, and let the channels that come of them not be opened.
pub(crate) fn refuses_sold_channel() -> bool {
    how() == "refuse_sold_channel"
}

/// Whether to stay away from every factory but the first.
pub(crate) fn ignores_invitations() -> bool {
    how() == "ignores_invitations"
}

/// Whether to move everything, and to hand nothing over.
pub(crate) fn keeps_keys() -> bool {
    how() == "keeps_keys"
}

/// Hands over secrets of the right form that are none of the keys.
pub(crate) fn twist_handover(mut handover: wire::Handover) -> wire::Handover {
    if how() == "wrong_keys" {
        let keys = &mut handover.keys;
        for key in [&mut keys.factory, &mut keys.payout, &mut keys.channel] {
            key[31] ^= 1;
        }
    }
    handover
}

/// Signs the challenge with a key that is not the node's.
pub(crate) fn twist_key(secret: &mut SecretKey) {
    if how() == "wrong_auth" {
        let mut bytes = secret.secret_bytes();
        bytes[31] ^= 1;
        *secret = SecretKey::from_slice(&bytes).unwrap_or(*secret);
    }
}

/// Answers the second session's challenge with the first one's answer.
pub(crate) fn twist_answer(answer: &mut v1::Answer) {
    static FIRST: Mutex<Option<v1::Answer>> = Mutex::new(None);
    if how() != "replay_auth" {
        return;
    }
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    match first.as_ref() {
        Some(first) => *answer = first.clone(),
        None => *first = Some(answer.clone()),
    }
}

/// Whether to hang up right after the welcome, so that there is a second session to replay in.
pub(crate) fn hangs_up() -> bool {
    how() == "replay_auth"
}

fn held() -> std::sync::MutexGuard<'static, Option<ClientMessage>> {
    static HELD: Mutex<Option<ClientMessage>> = Mutex::new(None);
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One signature of the right form and the wrong value.
fn bad_partial(message: &ToCoordinator) -> ClientMessage {
    let ToCoordinator::Partials(partials) = message else {
        return message.into();
    };
    let mut twisted = partials.as_ref().clone();
    if let Some(first) = twisted.partials.first_mut() {
        let mut bytes = first.to_bytes();
        bytes[31] ^= 1;
        *first = PartialSignature::from_bytes(&bytes).unwrap_or(*first);
    }
    ClientMessage::from(&ToCoordinator::Partials(Box::new(twisted)))
}

/// Well-formed protobuf, and nothing in it is what it should be.
fn garbage() -> ClientMessage {
    Body::Partials(v1::Partials {
        round: Some(v1::Round {
            ceremony: vec![1, 2, 3].into(),
            attempt: u32::MAX,
        }),
        partials: vec![0xff; 31].into(),
        channel_signature: vec![0; 63].into(),
    })
    .into()
}

/// The same for a ceremony nobody ever heard of.
fn foreign(message: &ToCoordinator) -> ClientMessage {
    let round = Round {
        ceremony: CeremonyId([0xee; 16]),
        attempt: message.round().attempt,
    };
    let mut foreign = message.clone();
    match &mut foreign {
        ToCoordinator::Join(join) => join.round = round,
        ToCoordinator::Partials(partials) => partials.round = round,
        ToCoordinator::Present(own)
        | ToCoordinator::Ack { round: own, .. }
        | ToCoordinator::ChannelOpened { round: own, .. }
        | ToCoordinator::Decline { round: own, .. } => *own = round,
    }
    (&foreign).into()
}
