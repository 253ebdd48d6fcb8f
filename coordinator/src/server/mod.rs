//! What clients connect to: one file per call, each thin.

mod handshake;
mod health;
mod history;
mod info;
mod pace;
mod session;
mod status;

use std::sync::Arc;

use factory_tree::ids::ClientId;
use proto::auth::{CertHash, ServerHandshake};
use proto::session::{ServiceError, SessionToken};
use proto::tls::Places;
use proto::v1::coordinator_server::Coordinator;
use proto::v1::{self, ErrorCode};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use crate::sessions::Outgoing;
use crate::store::StoreError;

pub use health::report;
pub(crate) use status::{factory_state, phase};

/// Name and version, as both sides tell each other.
pub const SOFTWARE: &str = concat!("superscalar-coordinator/", env!("CARGO_PKG_VERSION"));

/// The service for clients.
#[derive(Clone, Debug)]
pub struct Front {
    ctx: Arc<Context>,
    handshake: ServerHandshake,
    /// Streams that have not authenticated yet.
    strangers: Arc<Places>,
    /// Clients that were seen, to be written down together.
    seen: mpsc::Sender<(ClientId, String)>,
    shutdown: watch::Receiver<bool>,
}

impl Front {
    /// The service on a port whose certificate has this hash.
    #[must_use]
    pub fn new(
        ctx: Arc<Context>,
        cert: CertHash,
        seen: mpsc::Sender<(ClientId, String)>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let server = &ctx.config.server;
        let strangers = Places::new(
            server.max_unauthenticated,
            server.max_unauthenticated_per_ip,
        );
        let handshake = ServerHandshake {
            network: ctx.config.network,
            cert,
            node_id: ctx.keys.node_id(),
        };
        Self {
            ctx,
            handshake,
            strangers,
            seen,
            shutdown,
        }
    }

    /// Whose session the call belongs to.
    fn caller(&self, metadata: &MetadataMap) -> Result<ClientId, ServiceError> {
        let client =
            SessionToken::find(metadata).and_then(|token| self.ctx.sessions.client_of(&token));
        let text = "no open session has this token; open a session first";
        client.ok_or_else(|| ServiceError::new(ErrorCode::Unauthenticated, text))
    }
}

/// The one place where an error of the database becomes one of the service.
pub(crate) fn store_error(error: &StoreError) -> ServiceError {
    tracing::error!(%error, "a request failed");
    ServiceError::new(
        ErrorCode::Store,
        "the coordinator cannot use its database now; try again later",
    )
}

#[tonic::async_trait]
impl Coordinator for Front {
    type SessionStream = ReceiverStream<Outgoing>;

    async fn get_info(
        &self,
        _: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        Ok(Response::new(info::get(&self.ctx)))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Ok(Response::new(session::open(self, request)?))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let client = self.caller(request.metadata())?;
        Ok(Response::new(status::get(&self.ctx, client).await?))
    }

    async fn list_history(
        &self,
        request: Request<v1::ListHistoryRequest>,
    ) -> Result<Response<v1::ListHistoryResponse>, Status> {
        let client = self.caller(request.metadata())?;
        Ok(Response::new(
            history::list(&self.ctx, client, request.get_ref()).await?,
        ))
    }
}
