//! Payments that are held: invoices for them, and their two ends.

use channel_host::{InvoiceRequest, NodeError, PaymentHash};
use zeroize::Zeroizing;

use super::Lightning;

/// What was asked of a node that a test does without.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Claim([u8; 32]),
    SendBack(PaymentHash),
    RefuseFunding(u64),
}

pub(super) fn no_node() -> NodeError {
    NodeError::Refused("the Lightning node does not run".to_owned())
}

impl Lightning {
    /// An invoice whose payment waits for its preimage so many blocks.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub async fn hold_invoice(
        &self,
        request: InvoiceRequest,
        hash: PaymentHash,
        blocks: u32,
    ) -> Result<String, NodeError> {
        #[cfg(test)]
        if self.pretends() {
            return Ok(format!("invoice {:?} {hash} {blocks}", request.amount));
        }
        let node = self.node().ok_or_else(no_node)?;
        let made = tokio::task::spawn_blocking(move || node.hold_invoice(&request, hash, blocks));
        made.await.map_err(|_| no_node())?
    }

    /// Whether a payment is held. Not while there is no node: one that was held before is again when it has started.
    #[must_use]
    pub fn holds(&self, hash: PaymentHash) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return !self.pretended.lock().unwrap().gone.contains(&hash);
        }
        self.node().is_some_and(|node| node.holds(hash))
    }

    /// Takes a payment that is held.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub async fn claim(&self, preimage: Zeroizing<[u8; 32]>) -> Result<(), NodeError> {
        #[cfg(test)]
        if self.pretends() {
            self.asked.lock().unwrap().push(Asked::Claim(*preimage));
            return Ok(());
        }
        let node = self.node().ok_or_else(no_node)?;
        let claimed = tokio::task::spawn_blocking(move || node.claim(*preimage));
        claimed.await.map_err(|_| no_node())?
    }

    /// Gives a channel just in time up that is about to be paid for.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub(super) fn refuse_jit_funding(&self, scid: u64) -> Result<(), NodeError> {
        #[cfg(test)]
        if self.pretends() {
            self.asked.lock().unwrap().push(Asked::RefuseFunding(scid));
            return Ok(());
        }
        let node = self.node().ok_or_else(no_node)?;
        node.refuse_jit_funding(scid)
    }

    /// Sends a payment back that is held. Without a node it is done after its start, by whoever keeps book.
    pub fn send_back(&self, hash: PaymentHash) {
        #[cfg(test)]
        if self.pretends() {
            self.asked.lock().unwrap().push(Asked::SendBack(hash));
            self.pretended.lock().unwrap().gone.push(hash);
            return;
        }
        if let Some(node) = self.node() {
            node.fail(hash);
        }
    }
}
