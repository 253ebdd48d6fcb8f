//! Parts of moves on their way. What has to be done follows from what is stored: after a crash it is looked at again.

use lightning::ln::channelmanager::{PaymentId, RecentPaymentDetails as Recent};

use super::Core;
use super::moves::payment_id;
use crate::error::NodeError;
use crate::event::NodeEvent;
use crate::leaf::Side;
use crate::moves::{PartBook, PartState, Progress};

/// Fails the parts that a crash kept us from sending. LDK forgets a payment only when it never was stored, or when its end was: one that failed.
pub(super) fn fail_unsent(parts: &PartBook, recent: &[Recent]) -> Result<(), NodeError> {
    let known: Vec<PaymentId> = recent
        .iter()
        .map(|payment| match payment {
            Recent::AwaitingInvoice { payment_id }
            | Recent::Pending { payment_id, .. }
            | Recent::Fulfilled { payment_id, .. }
            | Recent::Abandoned { payment_id, .. } => *payment_id,
        })
        .collect();
    for part in parts.open_ones() {
        let sending = match part.side {
            Side::Lsp => part.state() == Some(PartState::PaidOn),
            Side::Client => part.is_paid() && !part.settled,
        };
        if sending && !known.contains(&payment_id(part.hash())) {
            let why = "the node was stopped before it was sent";
            parts.update(part.hash(), |part| part.fail(why))?;
        }
    }
    Ok(())
}

impl Core {
    /// Tells what is over.
    pub(super) async fn parts_step(&self) -> Result<(), NodeError> {
        for part in self.parts.open_ones() {
            let (hash, from, to) = (part.hash(), part.from, part.to);
            let event = match &part.progress {
                Progress::Under(_) => continue,
                Progress::Moved { .. } => NodeEvent::PartMoved {
                    hash,
                    from,
                    to,
                    amount: part.amount(),
                    fee: part.fee(),
                },
                Progress::Failed { why, .. } => NodeEvent::PartFailed {
                    hash,
                    from,
                    to,
                    why: why.clone(),
                },
            };
            // Not taken in, it is told at the next step.
            if self.config.events.take(event).await.is_ok() {
                self.parts.update(hash, |part| match &mut part.progress {
                    Progress::Moved { told } | Progress::Failed { told, .. } => *told = true,
                    Progress::Under(_) => {}
                })?;
            }
        }
        Ok(())
    }
}
