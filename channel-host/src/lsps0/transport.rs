//! LDK's custom messages as questions and answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use lightning::io;
use lightning::ln::msgs::{DecodeError, Init, LightningError};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::message::{self, Incoming};
use super::{LspsService, RpcError};

/// bLIP-50's message type.
const MESSAGE_TYPE: u16 = 37_913;
/// bLIP-50's `option_supports_lsps`, the odd bit.
const FEATURE: usize = 729;
/// Questions that wait for an answer: of one peer, and of all. What is above is not answered: clients ask again.
const PER_PEER: usize = 8;
const WAITING: usize = 128;
/// The longest message that is read. JSON takes a hundred times its length in memory, and no question of LSPS1, 2 or 5 is as long.
const LONGEST: usize = 8 * 1024;
/// How long an answer may take; tests do not wait as long.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// A message as it travels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawMessage(Vec<u8>);

impl Type for RawMessage {
    fn type_id(&self) -> u16 {
        MESSAGE_TYPE
    }
}

impl Writeable for RawMessage {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), io::Error> {
        writer.write_all(&self.0)
    }
}

/// A question that waits.
#[derive(Debug)]
pub(crate) struct Question {
    peer: PublicKey,
    id: String,
    method: String,
    params: Map<String, Value>,
}

/// Questions in the order they came.
pub(crate) type Questions = mpsc::Receiver<Question>;

type Outcome = Result<Value, RpcError>;

#[derive(Debug, Default)]
struct State {
    /// What LDK is to send.
    out: Vec<(PublicKey, RawMessage)>,
    /// How many questions of each peer wait.
    waiting: HashMap<PublicKey, usize>,
    /// Who waits for which answer.
    asked: HashMap<(PublicKey, String), oneshot::Sender<Outcome>>,
}

/// The transport of one node.
#[derive(Debug)]
pub(crate) struct Lsps0 {
    service: Option<Arc<dyn LspsService>>,
    inbox: mpsc::Sender<Question>,
    state: Mutex<State>,
}

impl Lsps0 {
    pub(crate) fn new(service: Option<Arc<dyn LspsService>>) -> (Self, Questions) {
        let (inbox, questions) = mpsc::channel(WAITING);
        let transport = Self {
            service,
            inbox,
            state: Mutex::default(),
        };
        (transport, questions)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, peer: PublicKey, id: &Value, outcome: &Outcome) {
        let message = RawMessage(message::answer(id, outcome));
        self.state().out.push((peer, message));
    }

    /// Puts a question on its way; the answer comes when the peer gives one, and never if it goes.
    pub(crate) fn ask(
        &self,
        peer: PublicKey,
        id: &str,
        method: &str,
        params: &Value,
    ) -> oneshot::Receiver<Outcome> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        let message = RawMessage(message::question(id, method, params));
        state.out.push((peer, message));
        state.asked.insert((peer, id.to_owned()), tell);
        told
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn give_up(&self, peer: PublicKey, id: &str) {
        self.state().asked.remove(&(peer, id.to_owned()));
    }

    /// Answers the next question; the answer is LDK's to send then.
    pub(crate) async fn serve_one(&self, questions: &mut Questions) {
        let Some(question) = questions.recv().await else {
            // The sender is ours.
            return std::future::pending().await;
        };
        let (peer, id) = (question.peer, question.id.clone());
        let outcome = tokio::time::timeout(PATIENCE, self.outcome(question)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(RpcError::internal()));
        self.answer(peer, &id.into(), &outcome);
        self.done(peer);
    }

    async fn outcome(&self, question: Question) -> Outcome {
        let service = self.service.as_ref().ok_or(RpcError::unknown_method())?;
        match question.method.clone().as_str() {
            "lsps0.list_protocols" => {
                let names: Vec<String> = question.params.keys().cloned().collect();
                if !names.is_empty() {
                    return Err(RpcError::unrecognized(&names));
                }
                Ok(json!({ "protocols": service.protocols() }))
            }
            method => {
                let Question { peer, params, .. } = question;
                service.answer(peer, method, params).await
            }
        }
    }

    fn done(&self, peer: PublicKey) {
        let mut state = self.state();
        let left = state.waiting.get_mut(&peer).map(|count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == Some(0) {
            state.waiting.remove(&peer);
        }
    }

    fn asked(&self, question: Question) {
        let peer = question.peer;
        let has_room = {
            let mut state = self.state();
            let waiting = state.waiting.entry(peer).or_default();
            let has_room = *waiting < PER_PEER;
            *waiting += usize::from(has_room);
            has_room
        };
        if has_room && self.inbox.try_send(question).is_err() {
            self.done(peer);
        }
    }
}

impl CustomMessageReader for Lsps0 {
    type CustomMessage = RawMessage;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<RawMessage>, DecodeError> {
        if message_type != MESSAGE_TYPE {
            return Ok(None);
        }
        // A Lightning message holds 65,535 bytes at the most (BOLT 8).
        let size = u16::try_from(buffer.remaining_bytes());
        let mut bytes = vec![0; size.map_err(|_| DecodeError::InvalidValue)?.into()];
        buffer.read_exact(&mut bytes)?;
        Ok(Some(RawMessage(bytes)))
    }
}

impl CustomMessageHandler for Lsps0 {
    fn handle_custom_message(
        &self,
        message: RawMessage,
        peer: PublicKey,
    ) -> Result<(), LightningError> {
        if message.0.len() > LONGEST {
            let too_long = RpcError::new(-32_600, format!("longer than {LONGEST} bytes"));
            self.answer(peer, &Value::Null, &Err(too_long));
            return Ok(());
        }
        match message::read(&message.0) {
            Ok(Incoming::Question { id, method, params }) => self.asked(Question {
                peer,
                id,
                method,
                params,
            }),
            Ok(Incoming::Answer { id, outcome }) => {
                let waiting = self.state().asked.remove(&(peer, id));
                if let Some(tell) = waiting {
                    // Nobody waits any more: it took too long.
                    let _ = tell.send(outcome);
                }
            }
            Ok(Incoming::Remark) => {}
            Err((id, error)) => self.answer(peer, &id, &Err(error)),
        }
        Ok(())
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, RawMessage)> {
        std::mem::take(&mut self.state().out)
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        let mut state = self.state();
        state.asked.retain(|(asked, _), _| *asked != peer);
        state.out.retain(|(to, _)| *to != peer);
    }

    fn peer_connected(&self, _: PublicKey, _: &Init, _: bool) -> Result<(), ()> {
        Ok(())
    }

    fn provided_node_features(&self) -> NodeFeatures {
        let mut features = NodeFeatures::empty();
        if self.service.is_some() {
            // Refused only for bits of LDK's own.
            let _ = features.set_optional_custom_bit(FEATURE);
        }
        features
    }

    fn provided_init_features(&self, _: PublicKey) -> InitFeatures {
        let mut features = InitFeatures::empty();
        if self.service.is_some() {
            // As above.
            let _ = features.set_optional_custom_bit(FEATURE);
        }
        features
    }
}
