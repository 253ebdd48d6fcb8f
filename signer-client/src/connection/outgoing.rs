//! What goes out over a session stream.

use factory_tree::ceremony::message::ToCoordinator;
use factory_tree::sale::message::ToSeller;
use proto::v1::ClientMessage;
use proto::v1::client_message::Body;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// The sending half of a session stream; bounded.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(mpsc::Sender<ClientMessage>);

impl Outgoing {
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<ClientMessage>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender), receiver)
    }

    /// Sends a message of the stream's own.
    pub(crate) async fn body(&self, body: Body) -> Result<()> {
        self.raw(body.into()).await
    }

    /// Sends a message of a ceremony.
    pub(crate) async fn ceremony(&self, message: &ToCoordinator) -> Result<()> {
        #[cfg(feature = "fault-points")]
        {
            for twisted in crate::misbehave::twist(message) {
                self.raw(twisted).await?;
            }
            Ok(())
        }
        #[cfg(not(feature = "fault-points"))]
        self.raw(message.into()).await
    }

    /// Sends a message of a sale.
    pub(crate) async fn sale(&self, message: &ToSeller) -> Result<()> {
        self.raw(message.into()).await
    }

    pub(crate) async fn raw(&self, message: ClientMessage) -> Result<()> {
        self.0
            .send(message)
            .await
            .map_err(|_| Error::Disconnected("the stream is closed".to_owned()))
    }
}
