//! Payments through us, which LDK holds until we have decided. After a start it asks again about those undecided.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use lightning::ln::channelmanager::InterceptId;
use tokio::time::Instant;

use super::Core;
use crate::event::NodeEvent;
use crate::pay::{ForwardRefusal, Intercepted, decide, next_hop};

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
        self.try_forward(Waiting { id, htlc, until }).await;
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
        let client = self.scids.client(htlc.scid);
        let to = decide(&self.book, &channels, client, &self.config.fees, &htlc);
        let reason = match to {
            Ok((channel, peer)) => {
                let amount = htlc.outbound_msat;
                let forwarded = self
                    .manager
                    .forward_intercepted_htlc(id, &channel, peer, amount);
                if let Err(error) = forwarded {
                    tracing::info!(?error, "a payment cannot be forwarded");
                    self.send_back(id);
                }
                return;
            }
            Err(ForwardRefusal::Away) if Instant::now() < waiting.until => {
                self.waiting().push(waiting);
                return;
            }
            Err(reason) => reason,
        };
        let live = channels.iter().find(|channel| {
            let peer = next_hop(&channels, client, htlc.scid);
            channel.is_usable && peer == Some(channel.counterparty.node_id)
        });
        match live.filter(|_| reason == ForwardRefusal::NoRoom) {
            // LDK refuses it for us, with words that make a payer try again in parts; ours would say that there is no such way.
            Some(channel) => {
                let (to, peer) = (channel.channel_id, channel.counterparty.node_id);
                let amount = htlc.outbound_msat;
                let refused = self.manager.forward_intercepted_htlc(id, &to, peer, amount);
                if refused.is_err() {
                    self.send_back(id);
                }
            }
            None => self.send_back(id),
        }
        let hash = htlc.hash;
        self.tell(NodeEvent::ForwardRefused { hash, reason }).await;
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_back(&self, id: InterceptId) {
        // Fails if LDK has sent it back by itself.
        let _ = self.manager.fail_intercepted_htlc(id);
    }
}
