//! What the operator's command line talks to: gRPC on a Unix socket only the owner may open.

mod convert;
mod create;
mod factories;
mod liquidity;
mod node;
mod overview;
mod sales;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use proto::admin::admin_server::{Admin, AdminServer};
use proto::admin::*;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::app::StartError;
use crate::context::Context;
use crate::datadir::DataDir;
use crate::ladder;
use convert::ladder_error;

/// What does not change while the coordinator runs.
#[derive(Clone, Debug)]
pub struct About {
    /// For clients.
    pub connection: String,
    /// The port.
    pub listen: String,
    /// The data directory.
    pub data_dir: String,
    /// When it was started.
    pub started: Instant,
}

/// The operator's service.
#[derive(Clone, Debug)]
struct Operator {
    ctx: Arc<Context>,
    about: About,
    shutdown: watch::Sender<bool>,
}

/// Binds the socket; a stale one is replaced, as the data directory is ours.
///
/// # Errors
/// [`StartError::Bind`].
pub fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |source| StartError::Bind {
        at: path.display().to_string(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    DataDir::restrict(path)?;
    Ok(listener)
}

/// Serves until shutdown.
pub async fn serve(
    ctx: Arc<Context>,
    about: About,
    listener: UnixListener,
    shutdown: watch::Sender<bool>,
) {
    let mut stop = shutdown.subscribe();
    let operator = Operator {
        ctx,
        about,
        shutdown,
    };
    let served = tonic::transport::Server::builder()
        .add_service(AdminServer::new(operator).max_encoding_message_size(usize::MAX))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
    if let Err(error) = served.await {
        tracing::error!(%error, "the operator's server failed");
    }
}

#[tonic::async_trait]
impl Admin for Operator {
    type FactoryCreateStream = ReceiverStream<Result<FactoryCreateEvent, Status>>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(overview::info(&self.ctx, &self.about).await?))
    }

    async fn wallet_address(
        &self,
        _: Request<WalletAddressRequest>,
    ) -> Result<Response<WalletAddressResponse>, Status> {
        Ok(Response::new(overview::wallet_address(&self.ctx).await?))
    }

    async fn wallet_balance(
        &self,
        _: Request<WalletBalanceRequest>,
    ) -> Result<Response<WalletBalanceResponse>, Status> {
        Ok(Response::new(overview::wallet_balance(&self.ctx).await?))
    }

    async fn client_list(
        &self,
        request: Request<ClientListRequest>,
    ) -> Result<Response<ClientListResponse>, Status> {
        Ok(Response::new(
            overview::clients(&self.ctx, request.get_ref().connected_only).await?,
        ))
    }

    async fn factory_create(
        &self,
        request: Request<FactoryCreateRequest>,
    ) -> Result<Response<Self::FactoryCreateStream>, Status> {
        let stop = self.shutdown.subscribe();
        Ok(Response::new(
            create::create(&self.ctx, request.into_inner(), stop).await?,
        ))
    }

    async fn factory_list(
        &self,
        request: Request<FactoryListRequest>,
    ) -> Result<Response<FactoryListResponse>, Status> {
        Ok(Response::new(
            factories::list(&self.ctx, request.get_ref().live_only).await?,
        ))
    }

    async fn factory_show(
        &self,
        request: Request<FactoryShowRequest>,
    ) -> Result<Response<FactoryShowResponse>, Status> {
        Ok(Response::new(
            factories::show(&self.ctx, &request.get_ref().id).await?,
        ))
    }

    async fn factory_export(
        &self,
        request: Request<FactoryExportRequest>,
    ) -> Result<Response<FactoryExportResponse>, Status> {
        Ok(Response::new(
            factories::export(&self.ctx, &request.get_ref().id).await?,
        ))
    }

    async fn factory_cancel(
        &self,
        request: Request<FactoryCancelRequest>,
    ) -> Result<Response<FactoryCancelResponse>, Status> {
        Ok(Response::new(
            factories::cancel(&self.ctx, &request.get_ref().id).await?,
        ))
    }

    async fn ladder_show(
        &self,
        _: Request<LadderShowRequest>,
    ) -> Result<Response<LadderShowResponse>, Status> {
        let shown = ladder::show(&self.ctx).await;
        Ok(Response::new(shown.map_err(ladder_error)?))
    }

    async fn ladder_preview(
        &self,
        _: Request<LadderPreviewRequest>,
    ) -> Result<Response<LadderPreviewResponse>, Status> {
        let shown = ladder::preview(&self.ctx).await;
        Ok(Response::new(shown.map_err(ladder_error)?))
    }

    async fn ladder_forecast(
        &self,
        request: Request<LadderForecastRequest>,
    ) -> Result<Response<LadderForecastResponse>, Status> {
        // Ten years: nobody needs more, and it is bounded.
        let days = request.get_ref().days.min(3650);
        let shown = ladder::forecast(&self.ctx, days).await;
        Ok(Response::new(shown.map_err(ladder_error)?))
    }

    async fn liquidity_jit(
        &self,
        request: Request<LiquidityJitRequest>,
    ) -> Result<Response<LiquidityJitResponse>, Status> {
        Ok(Response::new(
            liquidity::jit(&self.ctx, request.get_ref().limit).await?,
        ))
    }

    async fn liquidity_orders(
        &self,
        request: Request<LiquidityOrdersRequest>,
    ) -> Result<Response<LiquidityOrdersResponse>, Status> {
        Ok(Response::new(
            liquidity::orders(&self.ctx, request.get_ref().limit).await?,
        ))
    }

    async fn liquidity_stock(
        &self,
        _: Request<LiquidityStockRequest>,
    ) -> Result<Response<LiquidityStockResponse>, Status> {
        Ok(Response::new(sales::stock(&self.ctx).await?))
    }

    async fn liquidity_sales(
        &self,
        request: Request<LiquiditySalesRequest>,
    ) -> Result<Response<LiquiditySalesResponse>, Status> {
        Ok(Response::new(
            sales::sales(&self.ctx, request.get_ref().limit).await?,
        ))
    }

    async fn liquidity_prices(
        &self,
        _: Request<LiquidityPricesRequest>,
    ) -> Result<Response<LiquidityPricesResponse>, Status> {
        Ok(Response::new(sales::prices(&self.ctx).await?))
    }

    async fn liquidity_set_price(
        &self,
        request: Request<LiquiditySetPriceRequest>,
    ) -> Result<Response<LiquidityPricesResponse>, Status> {
        Ok(Response::new(
            sales::set_price(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn liquidity_unset_price(
        &self,
        request: Request<LiquidityUnsetPriceRequest>,
    ) -> Result<Response<LiquidityPricesResponse>, Status> {
        Ok(Response::new(
            sales::unset_price(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn liquidity_revenue(
        &self,
        request: Request<LiquidityRevenueRequest>,
    ) -> Result<Response<LiquidityRevenueResponse>, Status> {
        Ok(Response::new(
            sales::revenue(&self.ctx, request.get_ref().days).await?,
        ))
    }

    async fn node_info(
        &self,
        _: Request<NodeInfoRequest>,
    ) -> Result<Response<NodeInfoResponse>, Status> {
        Ok(Response::new(node::info(&self.ctx)))
    }

    async fn node_connect(
        &self,
        request: Request<NodeConnectRequest>,
    ) -> Result<Response<NodeConnectResponse>, Status> {
        Ok(Response::new(
            node::connect(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn node_disconnect(
        &self,
        request: Request<NodeDisconnectRequest>,
    ) -> Result<Response<NodeDisconnectResponse>, Status> {
        Ok(Response::new(
            node::disconnect(&self.ctx, &request.get_ref().node_id).await?,
        ))
    }

    async fn node_peers(
        &self,
        _: Request<NodePeersRequest>,
    ) -> Result<Response<NodePeersResponse>, Status> {
        Ok(Response::new(node::peers(&self.ctx)?))
    }

    async fn node_channels(
        &self,
        _: Request<NodeChannelsRequest>,
    ) -> Result<Response<NodeChannelsResponse>, Status> {
        Ok(Response::new(node::channels(&self.ctx)?))
    }

    async fn node_open_channel(
        &self,
        request: Request<NodeOpenChannelRequest>,
    ) -> Result<Response<NodeOpenChannelResponse>, Status> {
        Ok(Response::new(
            node::open_channel(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn node_close_channel(
        &self,
        request: Request<NodeCloseChannelRequest>,
    ) -> Result<Response<NodeCloseChannelResponse>, Status> {
        Ok(Response::new(
            node::close_channel(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn node_pay(
        &self,
        request: Request<NodePayRequest>,
    ) -> Result<Response<Payment>, Status> {
        Ok(Response::new(
            node::pay(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn node_invoice(
        &self,
        request: Request<NodeInvoiceRequest>,
    ) -> Result<Response<NodeInvoiceResponse>, Status> {
        Ok(Response::new(
            node::invoice(&self.ctx, request.into_inner()).await?,
        ))
    }

    async fn node_payments(
        &self,
        request: Request<NodePaymentsRequest>,
    ) -> Result<Response<NodePaymentsResponse>, Status> {
        Ok(Response::new(
            node::payments(&self.ctx, request.get_ref().limit).await?,
        ))
    }
}
