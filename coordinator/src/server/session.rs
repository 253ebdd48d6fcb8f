//! A client's session: a task that reads its stream until either side ends it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bitcoin::Amount;
use factory_tree::ceremony::message::ToCoordinator;
use factory_tree::ids::ClientId;
use proto::session::{HEARTBEATS_MISSED, ServiceError, SessionToken};
use proto::tls::Place;
use proto::v1::server_message::Body;
use proto::v1::{ClientMessage, ErrorCode, Heartbeat};
use proto::wire::{self, FromClient, Welcome};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::Front;
use super::handshake::handshake;
use super::pace::Pace;
use crate::ceremony::Mail;
use crate::event::Event;
use crate::sessions::{Interest, Outgoing};
use crate::{ladder, lightning, sales, webhooks};

/// Starts a session's task and returns what it will send.
///
/// # Errors
/// `RateLimited`, `ShuttingDown`.
pub fn open(
    front: &Front,
    request: Request<Streaming<ClientMessage>>,
) -> Result<ReceiverStream<Outgoing>, ServiceError> {
    if *front.shutdown.borrow() {
        return Err(going_down());
    }
    // Without an address (a test's duplex pipe) everything counts as one.
    let ip = request
        .remote_addr()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |addr| addr.ip());
    let place = front.strangers.enter(ip).ok_or_else(|| {
        let text = "too many sessions are being opened at once; try again in some seconds";
        ServiceError::new(ErrorCode::RateLimited, text)
    })?;
    let (out, stream) = mpsc::channel(front.ctx.config.server.queue);
    tokio::spawn(run(front.clone(), request.into_inner(), out, place, ip));
    Ok(ReceiverStream::new(stream))
}

fn going_down() -> ServiceError {
    ServiceError::new(
        ErrorCode::ShuttingDown,
        "the coordinator is shutting down; come back later",
    )
}

async fn run(
    front: Front,
    mut incoming: Streaming<ClientMessage>,
    out: mpsc::Sender<Outgoing>,
    place: Place,
    ip: IpAddr,
) {
    let (client, software) = match handshake(&front, &mut incoming, &out).await {
        Ok(authenticated) => authenticated,
        Err(error) => {
            let reason = error.to_string();
            front.ctx.events.emit(Event::AuthRefused {
                reason,
                from: ip.to_string(),
            });
            let _ = out.send(Err(error.into())).await;
            return;
        }
    };
    drop(place);
    let server = &front.ctx.config.server;
    let token = SessionToken::new(crate::keys::random());
    let welcome = Welcome {
        token,
        heartbeat_seconds: server.heartbeat_seconds,
        tip_height: front.ctx.height(),
    };
    let welcome = Body::Welcome(welcome.into()).into();
    let started = front.ctx.sessions.start(
        client,
        token,
        software.clone(),
        out.clone(),
        welcome,
        server.max_sessions,
    );
    let mut handle = match started {
        Ok(handle) => handle,
        Err(error) => {
            let _ = out.send(Err(error.into())).await;
            return;
        }
    };
    front.ctx.events.emit(Event::ClientConnected { client });
    // A full queue only means that this client is written down as seen next time.
    let _ = front.seen.try_send((client, software));
    if handle.replaced {
        // As if the older stream had been seen to close: the client may have been restarted since.
        front.ctx.ceremonies.gone(client).await;
    }
    if let Err(error) = webhooks::came(&front.ctx, client).await {
        tracing::warn!(%error, %client, "a client that is here may be woken once more");
    }
    lightning::greet(&front.ctx, client).await;
    front.ctx.ceremonies.connected(client).await;
    front.ctx.sales.connected(client).await;
    let reason = serve(&front, client, &mut incoming, &out, &mut handle.ended).await;
    if front.ctx.sessions.stop(&client, handle.number) {
        front.ctx.ceremonies.gone(client).await;
    }
    let text = reason
        .as_ref()
        .map_or_else(|| "closed by the client".to_owned(), ToString::to_string);
    front.ctx.events.emit(Event::ClientDisconnected {
        client,
        reason: text,
    });
    if let Some(error) = reason {
        // The client may be gone, or read nothing: then there is nobody to tell.
        let _ = out.try_send(Err(error.into()));
    }
}

/// Reads until the stream ends; `Some`: why it was not the client's wish.
async fn serve(
    front: &Front,
    client: ClientId,
    incoming: &mut Streaming<ClientMessage>,
    out: &mpsc::Sender<Outgoing>,
    ended: &mut oneshot::Receiver<ServiceError>,
) -> Option<ServiceError> {
    let beat = Duration::from_secs(front.ctx.config.server.heartbeat_seconds.into());
    let mut beats = tokio::time::interval_at(Instant::now() + beat, beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut pace = Pace::new(front.ctx.config.server.messages_per_second, heard);
    loop {
        let ready = pace.ready();
        tokio::select! {
            why = &mut *ended => return Some(why.unwrap_or_else(|_| going_down())),
            _ = beats.tick() => {
                if heard.elapsed() >= beat.saturating_mul(HEARTBEATS_MISSED) {
                    let text = "nothing was heard for three heartbeats";
                    return Some(ServiceError::new(ErrorCode::Unreachable, text));
                }
                // A full queue is dealt with when something that matters is to be sent.
                let _ = out.try_send(Ok(Body::Heartbeat(Heartbeat {}).into()));
            }
            // What is not read yet waits at the client: HTTP/2 bounds what it can have under way.
            message = async {
                tokio::time::sleep_until(ready).await;
                incoming.message().await
            } => match message {
                Ok(Some(message)) => {
                    heard = Instant::now();
                    pace.take(heard);
                    if let Err(error) = handle(front, client, message).await {
                        refuse(front, client, &error);
                    }
                }
                Ok(None) => return None,
                Err(status) => {
                    let error = ServiceError::from_status(&status);
                    if error.code == ErrorCode::TooLarge {
                        refuse(front, client, &error);
                    }
                    return Some(error);
                }
            }
        }
    }
}

fn refuse(front: &Front, client: ClientId, error: &ServiceError) {
    let (code, message) = (error.code.as_str_name().to_owned(), error.message.clone());
    front.ctx.events.emit(Event::MessageRefused {
        client,
        code,
        message,
    });
    front
        .ctx
        .sessions
        .refuse(&client, error, front.ctx.config.server.max_refusals);
}

async fn handle(
    front: &Front,
    client: ClientId,
    message: ClientMessage,
) -> Result<(), ServiceError> {
    match FromClient::try_from(message)? {
        FromClient::Heartbeat => Ok(()),
        FromClient::Interest(interest) => interested(front, client, interest),
        FromClient::InterestWithdrawn => {
            front.ctx.sessions.set_interest(&client, None);
            Ok(())
        }
        FromClient::Error(error) => {
            tracing::info!(%client, %error, "a client reports an error");
            Ok(())
        }
        FromClient::MovePart(part) => ladder::move_part(&front.ctx, client, part).await,
        FromClient::Handover(keys) => ladder::hand_over(&front.ctx, client, keys).await,
        FromClient::Sale(message) => sales::deliver(&front.ctx, client, message).await,
        FromClient::Hello(_) | FromClient::Answer(_) => {
            let text = "this session is authenticated already";
            Err(ServiceError::new(ErrorCode::Unexpected, text))
        }
        FromClient::Ceremony(message) => {
            let round = message.round();
            // The last of these ends the ceremony: the same again finds none, and is harmless.
            let repeatable = matches!(
                message,
                ToCoordinator::Ack { .. } | ToCoordinator::ChannelOpened { .. }
            );
            if front
                .ctx
                .ceremonies
                .deliver(round.ceremony, Mail::Client { client, message })
                .await
                || repeatable
            {
                return Ok(());
            }
            let text = "there is no such ceremony (any more); ask for your status";
            Err(ServiceError::new(ErrorCode::UnknownRound, text).round(round))
        }
    }
}

fn interested(front: &Front, client: ClientId, wish: wire::Interest) -> Result<(), ServiceError> {
    let policy = &front.ctx.config.policy;
    let capacity = wish
        .capacity
        .unwrap_or(Amount::from_sat(policy.capacity_default_sat));
    let (min, max) = (policy.capacity_min_sat, policy.capacity_max_sat);
    if !(min..=max).contains(&capacity.to_sat()) {
        let text = format!(
            "a capacity of {} sat is not offered; ask for {min} to {max} sat",
            capacity.to_sat()
        );
        return Err(ServiceError::new(ErrorCode::Capacity, text));
    }
    let interest = Interest {
        capacity,
        has_fee_coins: wish.has_fee_coins,
        once: wish.once,
        order: 0,
    };
    if front.ctx.sessions.set_interest(&client, Some(interest)) {
        front.ctx.events.emit(Event::ClientInterested {
            client,
            capacity_sat: capacity.to_sat(),
        });
    }
    Ok(())
}
