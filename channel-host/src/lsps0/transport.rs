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
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::inbox::{Inbox, Question};
use super::message::{self, Incoming};
use super::{LspsService, RpcError};

/// bLIP-50's message type.
const MESSAGE_TYPE: u16 = 37_913;
/// bLIP-50's `option_supports_lsps`, the odd bit.
const FEATURE: usize = 729;
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

type Outcome = Result<Value, RpcError>;

#[derive(Debug, Default)]
struct State {
    /// What LDK is to send.
    out: Vec<(PublicKey, RawMessage)>,
    /// What peers ask.
    inbox: Inbox,
    /// Who waits for which answer.
    asked: HashMap<(PublicKey, String), oneshot::Sender<Outcome>>,
}

/// The transport of one node.
pub(crate) struct Lsps0 {
    service: Option<Arc<dyn LspsService>>,
    /// Whether a peer has no channel with us.
    is_stranger: Box<dyn Fn(&PublicKey) -> bool + Send + Sync>,
    state: Mutex<State>,
    /// The inbox has changed.
    news: Notify,
}

impl std::fmt::Debug for Lsps0 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lsps0").finish_non_exhaustive()
    }
}

impl Lsps0 {
    pub(crate) fn new(
        service: Option<Arc<dyn LspsService>>,
        is_stranger: impl Fn(&PublicKey) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            service,
            is_stranger: Box::new(is_stranger),
            state: Mutex::default(),
            news: Notify::new(),
        }
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

    async fn next(&self) -> Question {
        loop {
            // Before the look: what comes in between is news, too.
            let news = self.news.notified();
            let question = self.state().inbox.next();
            if let Some(question) = question {
                return question;
            }
            news.await;
        }
    }

    /// Answers the next question; the answer is LDK's to send then.
    pub(crate) async fn serve_one(&self) {
        let question = self.next().await;
        let (peer, id) = (question.peer, question.id.clone());
        // A set of one: what panics ends there, and what is given up with us is ended.
        let mut answering = JoinSet::new();
        answering.spawn(outcome(self.service.clone(), question));
        let outcome = match tokio::time::timeout(PATIENCE, answering.join_next()).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(Some(Err(error))) => {
                tracing::error!(%peer, %error, "a question was not answered");
                Err(RpcError::internal())
            }
            // It took too long.
            Ok(None) | Err(_) => Err(RpcError::internal()),
        };
        self.answer(peer, &id.into(), &outcome);
        self.state().inbox.done(peer);
        self.news.notify_waiters();
    }

    fn asked(&self, question: Question) {
        // LDK's locks are not taken while ours is held.
        let is_stranger = (self.is_stranger)(&question.peer);
        self.state().inbox.add(question, is_stranger);
        self.news.notify_waiters();
    }
}

async fn outcome(service: Option<Arc<dyn LspsService>>, question: Question) -> Outcome {
    let service = service.ok_or(RpcError::unknown_method())?;
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
        let said = if message.0.len() > LONGEST {
            let too_long = RpcError::new(-32_600, format!("longer than {LONGEST} bytes"));
            Err((Value::Null, too_long))
        } else {
            message::read(&message.0)
        };
        match said {
            Ok(Incoming::Answer { id, outcome }) => {
                let waiting = self.state().asked.remove(&(peer, id));
                if let Some(tell) = waiting {
                    // Nobody waits any more: it took too long.
                    let _ = tell.send(outcome);
                }
            }
            Ok(Incoming::Remark) => {}
            // bLIP-50: who only asks ignores all else.
            _ if self.service.is_none() => {}
            Ok(Incoming::Question { id, method, params }) => self.asked(Question {
                peer,
                id,
                method,
                params,
            }),
            Err((id, error)) => {
                tracing::debug!(%peer, %error, "a message is no request");
                self.answer(peer, &id, &Err(error));
            }
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

    fn peer_connected(&self, peer: PublicKey, _: &Init, _: bool) -> Result<(), ()> {
        if let Some(service) = &self.service {
            service.came(peer);
        }
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
