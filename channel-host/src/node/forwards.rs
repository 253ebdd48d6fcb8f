//! Payments through us, which LDK holds until we have decided. After a start it asks again about those undecided.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use lightning::ln::channelmanager::InterceptId;
use tokio::time::Instant;

use super::Core;
use super::payments::is_dust;
use crate::event::{Msat, NodeEvent, PaymentHash};
use crate::pay::{Forward, ForwardRefusal, Intercepted, decide};

/// How long a payment waits for a receiver who is away: long enough to wake a wallet, and too short to matter beside any expiry.
const PATIENCE: Duration = Duration::from_secs(30);

/// A payment whose receiver is away.
#[derive(Debug)]
pub(super) struct Waiting {
    id: InterceptId,
    htlc: Intercepted,
    until: Instant,
}

impl Core {
    pub(super) async fn forward_or_wait(&self, id: InterceptId, htlc: Intercepted) {
        let until = Instant::now() + PATIENCE;
        let (hash, client) = (htlc.hash, self.scids.client(htlc.scid));
        self.try_forward(Waiting { id, htlc, until }).await;
        if let Some(client) = client.filter(|_| self.waits(hash)) {
            self.tell(NodeEvent::ReceiverAway { client }).await;
        }
    }

    /// Looks again at those that wait.
    pub(super) async fn serve_waiting(&self) {
        let all = std::mem::take(&mut *self.waiting());
        for one in all {
            self.try_forward(one).await;
        }
    }

    async fn try_forward(&self, waiting: Waiting) {
        let channels = self.manager.list_channels();
        let (id, htlc) = (waiting.id, waiting.htlc);
        // What a client revealed for its part is never timed out, whatever else has that hash: so nothing else may have it.
        if self.parts.get(htlc.hash).is_some() {
            self.send_back(id);
            let (hash, reason) = (htlc.hash, ForwardRefusal::PartOfMove);
            self.tell(NodeEvent::ForwardRefused { hash, reason }).await;
            return;
        }
        let client = self.scids.client(htlc.scid);
        let refused = match decide(
            &self.gates(None),
            &channels,
            client,
            &self.config.fees,
            &htlc,
        ) {
            Err(ForwardRefusal::Away) if Instant::now() < waiting.until => {
                self.waiting().push(waiting);
                return;
            }
            Err(reason) => {
                self.send_back(id);
                Some(reason)
            }
            Ok(forward) => {
                self.forward(id, &htlc, &forward);
                (!forward.fits).then_some(ForwardRefusal::NoRoom)
            }
        };
        if let Some(reason) = refused {
            let hash = htlc.hash;
            self.tell(NodeEvent::ForwardRefused { hash, reason }).await;
        }
    }

    pub(super) fn forward(&self, id: InterceptId, htlc: &Intercepted, to: &Forward) {
        // Stored first: should a peer end its channel while we are owed for this, LDK does not always count it among what is pending.
        let leaves = to
            .leaves
            .iter()
            .filter(|_| !is_dust(Msat(htlc.outbound_msat)));
        for leaf in leaves {
            if let Err(error) = self.book.update(*leaf, |leaf| leaf.carries(to.expiry)) {
                tracing::warn!(%error, "a payment cannot be forwarded");
                return self.send_back(id);
            }
        }
        let (channel, amount) = (&to.channel, htlc.outbound_msat);
        let forwarded = self
            .manager
            .forward_intercepted_htlc(id, channel, to.peer, amount);
        match forwarded {
            // At once: the next decision has to see the room that this one takes.
            Ok(()) => self.manager.process_pending_htlc_forwards(),
            Err(error) => {
                tracing::info!(?error, "a payment cannot be forwarded");
                self.send_back(id);
            }
        }
    }

    /// Whether a payment of this hash waits for its receiver.
    pub(super) fn waits(&self, hash: PaymentHash) -> bool {
        self.waiting()
            .iter()
            .any(|waiting| waiting.htlc.hash == hash)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send_back(&self, id: InterceptId) {
        // Fails if LDK has sent it back by itself.
        let _ = self.manager.fail_intercepted_htlc(id);
    }
}
