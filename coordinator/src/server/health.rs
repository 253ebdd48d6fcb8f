//! Health that tells the truth: SERVING only while the Bitcoin node answers and every block is taken into account.

use proto::v1::coordinator_server::CoordinatorServer;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Front;
use crate::context::ChainState;

/// Keeps health as the chain is, until `shutdown`.
pub async fn report(
    reporter: HealthReporter,
    mut chain: watch::Receiver<ChainState>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let stopping = *shutdown.borrow_and_update();
        let ready = chain.borrow_and_update().height().is_some() && !stopping;
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        reporter.set_service_status("", status).await;
        if ready {
            reporter.set_serving::<CoordinatorServer<Front>>().await;
        } else {
            reporter.set_not_serving::<CoordinatorServer<Front>>().await;
        }
        if stopping {
            return;
        }
        tokio::select! {
            changed = chain.changed() => if changed.is_err() { return },
            _ = shutdown.changed() => {}
        }
    }
}
