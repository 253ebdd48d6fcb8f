//! Ceremonies under way: one task drives each, and is the only one to write about it.

mod create;
mod driver;
mod effects;
mod gather;
mod joins;
mod records;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use factory_tree::ceremony::coordinator::Phase;
use factory_tree::ceremony::message::{Round, ToCoordinator};
use factory_tree::ids::{CeremonyId, ClientId};
use tokio::sync::{mpsc, watch};

use crate::context::Context;
use crate::store::{self, ceremonies::Wish};

pub use create::{Called, CreateError, cancel, create, create_for, resume_all};

/// Messages that may wait for one ceremony; whoever sends more waits.
const MAILBOX: usize = 4096;

/// What reaches a ceremony from outside.
#[derive(Debug)]
pub enum Mail {
    /// A client's message.
    Client {
        /// Who.
        client: ClientId,
        /// What.
        message: ToCoordinator,
    },
    /// A client's channel stands on our side, or cannot.
    Channel {
        /// Of which attempt.
        round: Round,
        /// Whose.
        client: ClientId,
        /// Why it cannot.
        result: Result<(), String>,
    },
    /// A client's stream came (back).
    Connected(ClientId),
    /// A client's stream closed.
    Gone(ClientId),
    /// The operator gives it up.
    Cancel,
}

/// How many clients could be invited for a wish now.
///
/// # Errors
/// Those of the database.
pub async fn interested(ctx: &Context, wish: &Wish) -> store::Result<usize> {
    Ok(gather::candidates(ctx, wish).await?.len())
}

/// Where a ceremony stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The attempt under way; `None` while clients are gathered.
    pub round: Option<Round>,
    /// Its phase.
    pub phase: Option<Phase>,
}

#[derive(Clone, Debug)]
struct Handle {
    mail: mpsc::Sender<Mail>,
    status: watch::Receiver<Status>,
}

/// The ceremonies under way, and which client is in which.
#[derive(Debug)]
pub struct Ceremonies {
    open: Mutex<Open>,
    /// Counts changes of `open`. Never touched while `open` is locked: a waiter may look at `open` while it holds this.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Open {
    running: BTreeMap<CeremonyId, Handle>,
    claimed: HashMap<ClientId, CeremonyId>,
}

impl Default for Ceremonies {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Ceremonies {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self, id: CeremonyId) -> (mpsc::Receiver<Mail>, watch::Sender<Status>) {
        let (mail, mailbox) = mpsc::channel(MAILBOX);
        let (status, reader) = watch::channel(Status {
            round: None,
            phase: None,
        });
        let handle = Handle {
            mail,
            status: reader,
        };
        self.open().running.insert(id, handle);
        self.changed();
        (mailbox, status)
    }

    fn unregister(&self, id: CeremonyId) {
        {
            let mut open = self.open();
            open.running.remove(&id);
            open.claimed.retain(|_, of| *of != id);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Takes those of `wanted` that are in no other ceremony, at most `most` of them.
    fn claim<T: Copy>(
        &self,
        id: CeremonyId,
        wanted: &[T],
        most: usize,
        client: fn(&T) -> ClientId,
    ) -> Vec<T> {
        let mut open = self.open();
        let mut taken = Vec::new();
        for one in wanted {
            if taken.len() == most {
                break;
            }
            if *open.claimed.entry(client(one)).or_insert(id) == id {
                taken.push(*one);
            }
        }
        taken
    }

    /// Lets go of clients that are left out, or of all.
    fn unclaim(&self, id: CeremonyId, only: Option<&ClientId>) {
        self.open()
            .claimed
            .retain(|client, of| *of != id || only.is_some_and(|only| only != client));
        self.changed();
    }

    /// Changes whenever clients may have come free.
    #[must_use]
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until a ceremony is not under way any more.
    async fn over(&self, id: CeremonyId) {
        self.until(|open| !open.running.contains_key(&id)).await;
    }

    /// Whether a client is in a ceremony.
    #[must_use]
    pub fn is_busy(&self, client: &ClientId) -> bool {
        self.open().claimed.contains_key(client)
    }

    /// The ceremonies under way.
    #[must_use]
    pub fn running(&self) -> Vec<(CeremonyId, Status)> {
        self.open()
            .running
            .iter()
            .map(|(id, handle)| (*id, *handle.status.borrow()))
            .collect()
    }

    /// Where the ceremony stands that a client is in.
    #[must_use]
    pub fn status_of(&self, client: &ClientId) -> Option<Status> {
        let open = self.open();
        let handle = open.running.get(open.claimed.get(client)?)?;
        let status = *handle.status.borrow();
        Some(status)
    }

    /// Hands a message to its ceremony, waiting while that is busy. False: there is no such ceremony.
    pub async fn deliver(&self, ceremony: CeremonyId, mail: Mail) -> bool {
        let handle = self.open().running.get(&ceremony).cloned();
        match handle {
            Some(handle) => handle.mail.send(mail).await.is_ok(),
            None => false,
        }
    }

    /// A client's stream came (back).
    pub async fn connected(&self, client: ClientId) {
        self.tell(client, Mail::Connected(client)).await;
    }

    /// A client's stream closed.
    pub async fn gone(&self, client: ClientId) {
        self.tell(client, Mail::Gone(client)).await;
    }

    async fn tell(&self, client: ClientId, mail: Mail) {
        let ceremony = self.open().claimed.get(&client).copied();
        if let Some(ceremony) = ceremony {
            self.deliver(ceremony, mail).await;
        }
    }

    /// Waits until none is under way.
    pub async fn idle(&self) {
        self.until(|open| open.running.is_empty()).await;
    }

    async fn until(&self, condition: impl Fn(&Open) -> bool) {
        let mut changes = self.changes.subscribe();
        // The sender is `self`: it is there as long as we are.
        while !condition(&self.open()) && changes.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests;
