//! The connection to the coordinator: kept up for ever, and the ceremonies that run over it.

mod backoff;
mod handshake;
mod outgoing;
mod session;

use std::sync::Arc;

use proto::connection::Connection;

use crate::ceremony::Driver;
use crate::client::{Inner, Shutdown};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::sales;
use backoff::Backoff;
pub(crate) use outgoing::Outgoing;

/// Connects again and again until told to stop.
///
/// # Errors
/// A connection string that cannot be used, and what leaves nothing to go on with.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let Some(text) = client.config.coordinator.as_deref() else {
        return Ok(());
    };
    let connection: Connection =
        text.parse()
            .map_err(|error: proto::connection::ConnectionError| {
                Error::Connection(error.to_string())
            })?;
    let mut drivers = session::Drivers {
        ceremony: Driver::new(Arc::clone(&client)),
        sales: sales::Driver::new(Arc::clone(&client)),
    };
    let mut backoff = Backoff::new(&client.config.connection);
    let mut told = None;
    while !shutdown.is_set() {
        let ended = session::run(&client, &connection, &mut drivers, &mut shutdown).await;
        if shutdown.is_set() {
            break;
        }
        let session::Ended { welcomed, error } = ended;
        if Inner::is_fatal(&error) {
            return Err(error);
        }
        if welcomed {
            backoff.reset();
        }
        if is_hopeless(&error) {
            backoff.give_time();
        }
        let reason = error.to_string();
        if welcomed {
            told = None;
        }
        client
            .set_live(|live| {
                live.connected = false;
                live.disconnected_because = Some(reason.clone());
            })
            .await;
        // Every further attempt that fails for the same reason is no news.
        if told.as_ref() != Some(&reason) {
            told = Some(reason.clone());
            client.events.emit(Event::Disconnected { reason });
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.wait() => {}
        }
    }
    Ok(())
}

/// What will not be better in a moment: another process with this seed, a coordinator that refuses
/// this client.
fn is_hopeless(error: &Error) -> bool {
    use proto::v1::ErrorCode;
    match error {
        Error::Refused(refused) => matches!(
            refused.code,
            ErrorCode::SessionReplaced
                | ErrorCode::AuthFailed
                | ErrorCode::VersionUnsupported
                | ErrorCode::WrongNetwork
        ),
        Error::Handshake(_) | Error::Connection(_) => true,
        _ => false,
    }
}
