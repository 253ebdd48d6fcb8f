//! Who is connected, what they want, and how to reach them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::Amount;
use factory_tree::ids::ClientId;
use proto::session::{ServiceError, SessionToken};
use proto::v1::server_message::Body;
use proto::v1::{ErrorCode, ServerMessage};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

/// What goes out on a stream.
pub type Outgoing = Result<ServerMessage, Status>;

/// A client's wish to be in the next factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The capacity it asks for, within the policy.
    pub capacity: Amount,
    /// Whether it has confirmed coins to pay fees with.
    pub has_fee_coins: bool,
    /// Whether one factory is enough.
    pub once: bool,
    /// The order in which clients asked.
    pub order: u64,
}

/// A connected client.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Who.
    pub client: ClientId,
    /// What its software calls itself.
    pub software: String,
    /// What it wants.
    pub interest: Option<Interest>,
}

/// The sessions that are open. One per client: a newer one replaces an older one.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<Open>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Open {
    by_client: HashMap<ClientId, Session>,
    by_token: HashMap<SessionToken, ClientId>,
    counter: u64,
}

#[derive(Debug)]
struct Session {
    number: u64,
    token: SessionToken,
    software: String,
    out: mpsc::Sender<Outgoing>,
    end: Option<oneshot::Sender<ServiceError>>,
    interest: Option<Interest>,
    refusals: u32,
}

/// An open session, as its own task holds it.
#[derive(Debug)]
pub struct SessionHandle {
    /// Which one of this client's.
    pub number: u64,
    /// Whether it replaced an older one.
    pub replaced: bool,
    /// Resolves when somebody else ends it.
    pub ended: oneshot::Receiver<ServiceError>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session with `welcome` as its first message, ending an older one of the same client.
    ///
    /// # Errors
    /// `TooManySessions`.
    pub fn start(
        &self,
        client: ClientId,
        token: SessionToken,
        software: String,
        out: mpsc::Sender<Outgoing>,
        welcome: ServerMessage,
        limit: usize,
    ) -> Result<SessionHandle, ServiceError> {
        let (end, ended) = oneshot::channel();
        let mut open = self.open();
        if open.by_client.len() >= limit && !open.by_client.contains_key(&client) {
            let text = format!("the coordinator serves {limit} clients already; come back later");
            return Err(ServiceError::new(ErrorCode::TooManySessions, text));
        }
        open.counter = open.counter.wrapping_add(1);
        let number = open.counter;
        // Before anybody else can send: nothing comes before the welcome. A stream that is gone already ends by itself.
        let _ = out.try_send(Ok(welcome));
        let session = Session {
            number,
            token,
            software,
            out,
            end: Some(end),
            interest: None,
            refusals: 0,
        };
        open.by_token.insert(token, client);
        let older = open.by_client.insert(client, session);
        let replaced = older.is_some();
        if let Some(mut older) = older {
            open.by_token.remove(&older.token);
            let text = "the same client opened another session; this one ends";
            older.stop(ServiceError::new(ErrorCode::SessionReplaced, text));
        }
        drop(open);
        self.changed();
        Ok(SessionHandle {
            number,
            replaced,
            ended,
        })
    }

    /// Closes a session; false if a newer one of this client has replaced it.
    pub fn stop(&self, client: &ClientId, number: u64) -> bool {
        let mut open = self.open();
        if open
            .by_client
            .get(client)
            .is_none_or(|session| session.number != number)
        {
            return false;
        }
        if let Some(session) = open.by_client.remove(client) {
            open.by_token.remove(&session.token);
        }
        drop(open);
        self.changed();
        true
    }

    /// Sends to a client, if it is connected. A client that does not read is disconnected: it never misses a message unnoticed.
    pub fn send(&self, client: &ClientId, message: ServerMessage) {
        let mut open = self.open();
        let Some(session) = open.by_client.get_mut(client) else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = session.out.try_send(Ok(message)) {
            let text = "you read too slowly; connect again and ask for your status";
            session.stop(ServiceError::new(ErrorCode::TooSlow, text));
        }
    }

    /// Tells a client why its message is refused; ends a session with too many of these.
    pub fn refuse(&self, client: &ClientId, error: &ServiceError, limit: u32) {
        self.send(client, Body::Error(error.into()).into());
        if let Some(session) = self.open().by_client.get_mut(client) {
            session.refusals = session.refusals.saturating_add(1);
            if session.refusals >= limit {
                let text = format!(
                    "{limit} messages of this session were refused; the last: {}",
                    error.message
                );
                session.stop(ServiceError::new(ErrorCode::RateLimited, text));
            }
        }
    }

    /// Ends every session.
    pub fn end_all(&self, why: &ServiceError) {
        for session in self.open().by_client.values_mut() {
            session.stop(why.clone());
        }
    }

    /// Sets or clears what a client wants; whether that is news.
    pub fn set_interest(&self, client: &ClientId, interest: Option<Interest>) -> bool {
        {
            let mut open = self.open();
            open.counter = open.counter.wrapping_add(1);
            let order = open.counter;
            let Some(session) = open.by_client.get_mut(client) else {
                return false;
            };
            // Asking again does not lose one's place.
            let order = session.interest.map_or(order, |held| held.order);
            let interest = interest.map(|interest| Interest { order, ..interest });
            if session.interest == interest {
                return false;
            }
            session.interest = interest;
        }
        self.changed();
        true
    }

    /// Clears the interest of those who wanted one factory, and got it.
    pub fn satisfied(&self, clients: &[ClientId]) {
        let mut open = self.open();
        for client in clients {
            if let Some(session) = open.by_client.get_mut(client) {
                session.interest = session.interest.filter(|interest| !interest.once);
            }
        }
        drop(open);
        self.changed();
    }

    /// Whose token this is.
    #[must_use]
    pub fn client_of(&self, token: &SessionToken) -> Option<ClientId> {
        self.open().by_token.get(token).copied()
    }

    /// Whether a client is connected.
    #[must_use]
    pub fn is_connected(&self, client: &ClientId) -> bool {
        self.open().by_client.contains_key(client)
    }

    /// What a client wants.
    #[must_use]
    pub fn interest(&self, client: &ClientId) -> Option<Interest> {
        self.open().by_client.get(client)?.interest
    }

    /// Everybody who is connected.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let open = self.open();
        let info = |(client, session): (&ClientId, &Session)| SessionInfo {
            client: *client,
            software: session.software.clone(),
            interest: session.interest,
        };
        open.by_client.iter().map(info).collect()
    }

    /// Changes whenever somebody comes, goes, or changes its mind.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Session {
    fn stop(&mut self, why: ServiceError) {
        if let Some(end) = self.end.take() {
            // Its task may have ended by itself: then it is gone already.
            let _ = end.send(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::Heartbeat;

    fn id(byte: u8) -> ClientId {
        ClientId([byte; 33])
    }

    fn heartbeat() -> ServerMessage {
        Body::Heartbeat(Heartbeat {}).into()
    }

    fn wish(once: bool) -> Interest {
        Interest {
            capacity: Amount::from_sat(1000),
            has_fee_coins: false,
            once,
            order: 0,
        }
    }

    fn start(
        sessions: &Sessions,
        byte: u8,
        queue: usize,
    ) -> (SessionHandle, mpsc::Receiver<Outgoing>) {
        let (out, reader) = mpsc::channel(queue);
        let token = SessionToken::new([byte; 32]);
        (
            sessions
                .start(id(byte), token, String::new(), out, heartbeat(), 2)
                .unwrap(),
            reader,
        )
    }

    #[test]
    fn a_newer_session_replaces_an_older_one() {
        let sessions = Sessions::default();
        let (mut first, _reader) = start(&sessions, 1, 1);
        let (second, _reader) = start(&sessions, 1, 1);
        assert_eq!(
            first.ended.try_recv().unwrap().code,
            ErrorCode::SessionReplaced
        );
        assert!(
            !sessions.stop(&id(1), first.number),
            "the older one does not close the newer one"
        );
        assert!(sessions.is_connected(&id(1)));
        assert!(sessions.stop(&id(1), second.number));
        assert_eq!(sessions.client_of(&SessionToken::new([1; 32])), None);
    }

    #[test]
    fn no_more_sessions_than_allowed() {
        let sessions = Sessions::default();
        let _open = [start(&sessions, 1, 1), start(&sessions, 2, 1)];
        let (out, _reader) = mpsc::channel(1);
        let refused = sessions.start(
            id(3),
            SessionToken::new([3; 32]),
            String::new(),
            out,
            heartbeat(),
            2,
        );
        assert_eq!(refused.unwrap_err().code, ErrorCode::TooManySessions);
        start(&sessions, 2, 1);
    }

    #[test]
    fn a_client_that_does_not_read_is_ended_and_not_skipped() {
        let sessions = Sessions::default();
        let (mut handle, mut reader) = start(&sessions, 1, 2);
        sessions.send(&id(1), heartbeat());
        assert!(handle.ended.try_recv().is_err());
        sessions.send(&id(1), heartbeat());
        assert_eq!(handle.ended.try_recv().unwrap().code, ErrorCode::TooSlow);
        assert!(reader.try_recv().is_ok());
        sessions.send(&id(9), heartbeat());
    }

    #[test]
    fn a_client_that_sends_nonsense_is_ended() {
        let sessions = Sessions::default();
        let (mut handle, _reader) = start(&sessions, 1, 9);
        let error = ServiceError::new(ErrorCode::Malformed, "no");
        sessions.refuse(&id(1), &error, 2);
        assert!(handle.ended.try_recv().is_err());
        sessions.refuse(&id(1), &error, 2);
        assert_eq!(
            handle.ended.try_recv().unwrap().code,
            ErrorCode::RateLimited
        );
    }

    #[test]
    fn interest_keeps_its_place_and_ends_when_satisfied() {
        let sessions = Sessions::default();
        let (_one, _a) = start(&sessions, 1, 1);
        let (_two, _b) = start(&sessions, 2, 1);
        let mut changes = sessions.changes();
        sessions.set_interest(&id(1), Some(wish(true)));
        sessions.set_interest(&id(2), Some(wish(false)));
        sessions.set_interest(&id(1), Some(wish(true)));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let order = |byte| sessions.interest(&id(byte)).unwrap().order;
        assert!(order(1) < order(2));
        sessions.satisfied(&[id(1), id(2)]);
        assert_eq!(sessions.interest(&id(1)), None);
        assert!(sessions.interest(&id(2)).is_some());
    }
}
