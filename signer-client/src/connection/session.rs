//! One session, from the connection to its end.

use std::collections::HashSet;
use std::time::Duration;

use bitcoin::{Amount, Network};
use factory_tree::ceremony::message::{Round, ToClient};
use factory_tree::ids::FactoryId;
use proto::connection::Connection;
use proto::session::{HEARTBEAT, HEARTBEATS_MISSED, ServiceError, SessionToken};
use proto::tls::{ConnectError, ConnectOptions};
use proto::v1::client_message::Body;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{self, ErrorCode, ServerMessage};
use proto::wire::{self, FromServer};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::{Outgoing, handshake};
use crate::ceremony::Driver;
use crate::client::{Inner, Shutdown};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::migration::Answer;
use crate::sales;
use crate::store::Route;

/// Messages that may wait to be sent.
const QUEUE: usize = 64;
/// How long a unary call may take.
const CALL: Duration = Duration::from_secs(20);

/// What takes part over sessions, and outlives them.
pub(super) struct Drivers {
    pub(super) ceremony: Driver,
    pub(super) sales: sales::Driver,
}

/// How a session ended.
pub(super) struct Ended {
    /// Whether it was authenticated.
    pub(super) welcomed: bool,
    /// Why it ended.
    pub(super) error: Error,
}

/// The receiving half of a session stream.
pub(super) struct Incoming {
    stream: Streaming<ServerMessage>,
    network: Network,
}

impl Incoming {
    /// The next message, parsed; never an end without a reason.
    pub(super) async fn next(&mut self) -> Result<FromServer> {
        let message = self
            .stream
            .message()
            .await
            .map_err(|status| ended(&status))?;
        let message =
            message.ok_or_else(|| Error::Disconnected("the coordinator ended it".to_owned()))?;
        FromServer::parse(message, self.network)
            .map_err(|error| Error::Disconnected(format!("an unreadable message: {error}")))
    }
}

/// Connects, authenticates, and takes part until the connection or this process ends.
pub(super) async fn run(
    client: &Inner,
    connection: &Connection,
    drivers: &mut Drivers,
    shutdown: &mut Shutdown,
) -> Ended {
    let opened = tokio::select! {
        opened = open(client, connection) => opened,
        () = shutdown.wait() => Err(Error::Disconnected("shutting down".to_owned())),
    };
    let mut session = match opened {
        Ok(session) => session,
        Err(error) => {
            return Ended {
                welcomed: false,
                error,
            };
        }
    };
    let served = session.serve(client, drivers, shutdown).await;
    client.migration.disconnected();
    let error = match served {
        Ok(()) => Error::Disconnected("shutting down".to_owned()),
        Err(error) => error,
    };
    Ended {
        welcomed: true,
        error,
    }
}

/// What the coordinator says of this client.
struct Standing {
    /// The attempt it is in.
    round: Option<Round>,
    /// Its factories that are funded, or may be.
    awaited: HashSet<FactoryId>,
}

struct Session {
    calls: CoordinatorClient<Channel>,
    token: SessionToken,
    out: Outgoing,
    incoming: Incoming,
    heartbeat: Duration,
    /// The interest the coordinator knows of: capacity, and whether there are coins for fees.
    told: Option<(Amount, bool)>,
}

async fn open(client: &Inner, connection: &Connection) -> Result<Session> {
    let options = ConnectOptions {
        allow_plain: client.config.allow_plain,
        timeout: Duration::from_millis(client.config.connection.connect_timeout_ms),
    };
    let channel = proto::tls::connect(connection, &options)
        .await
        .map_err(unreachable)?;
    let mut calls = proto::session::client(channel);
    let (out, queue) = Outgoing::new(QUEUE);
    let (hello, state) = handshake::hello(client, connection)?;
    out.body(hello).await?;
    let stream = calls
        .session(ReceiverStream::new(queue))
        .await
        .map_err(|status| ended(&status))?
        .into_inner();
    let mut incoming = Incoming {
        stream,
        network: client.config.network,
    };
    let welcome = handshake::complete(client, state, &out, &mut incoming).await?;
    let seconds = u64::from(welcome.heartbeat_seconds);
    Ok(Session {
        calls,
        token: welcome.token,
        out,
        incoming,
        heartbeat: match seconds {
            0 => HEARTBEAT,
            1..=3600 => Duration::from_secs(seconds),
            _ => Duration::from_secs(3600),
        },
        told: None,
    })
}

/// The coordinator's own words, or that the connection broke.
fn ended(status: &Status) -> Error {
    let error = ServiceError::from_status(status);
    match error.code {
        ErrorCode::Unspecified | ErrorCode::Unreachable => Error::Disconnected(error.message),
        _ => Error::Refused(error),
    }
}

fn unreachable(error: ConnectError) -> Error {
    match error {
        ConnectError::Unreachable { authority, reason } => Error::Unreachable {
            address: authority,
            cause: reason,
        },
        other => Error::Connection(other.to_string()),
    }
}

impl Session {
    /// Until this process is told to stop.
    async fn serve(
        &mut self,
        client: &Inner,
        drivers: &mut Drivers,
        shutdown: &mut Shutdown,
    ) -> Result<()> {
        client
            .set_live(|live| {
                live.connected = true;
                live.disconnected_because = None;
            })
            .await;
        client.events.emit(Event::Connected);
        #[cfg(feature = "fault-points")]
        if crate::misbehave::hangs_up() {
            return Err(Error::Disconnected("misbehaving".to_owned()));
        }
        let status = self.status().await?;
        let driver = &mut drivers.ceremony;
        driver.reconnected(status.round, &self.out).await?;
        driver.only_awaited(status.round, &status.awaited).await?;
        client.migration.connected(self.out.clone());
        self.tell_interest(client, driver).await?;
        drivers.sales.look(&self.out).await?;
        client.sales.wake();
        let mut channels = client.lightning.news();
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = self.heartbeat.saturating_mul(HEARTBEATS_MISSED);
        let mut deadline = Instant::now() + silence;
        loop {
            tokio::select! {
                message = self.incoming.next() => {
                    deadline = Instant::now() + silence;
                    self.received(client, drivers, message?).await?;
                }
                _ = beat.tick() => self.out.body(Body::Heartbeat(v1::Heartbeat {})).await?,
                () = client.wake_connection.notified() => {
                    self.tell_interest(client, &drivers.ceremony).await?;
                }
                // The sender is the client's.
                _ = channels.changed() => {
                    drivers.ceremony.look_at_channel(&self.out).await?;
                    drivers.sales.look(&self.out).await?;
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Err(Error::Disconnected(format!("not a word for {} s", silence.as_secs())));
                }
                () = shutdown.wait() => return Ok(()),
            }
        }
    }

    async fn received(
        &mut self,
        client: &Inner,
        drivers: &mut Drivers,
        message: FromServer,
    ) -> Result<()> {
        match message {
            FromServer::Heartbeat => Ok(()),
            FromServer::Error(error) => {
                self.note_refusal(client, &error).await?;
                if let Some(factory) = error.about.factory {
                    let why = error.message.clone();
                    let refused = Answer::Refused { factory, why };
                    client.migration.answered(refused);
                }
                client.events.emit(Event::ServerError {
                    code: error.code.as_str_name().to_owned(),
                    message: error.message,
                });
                Ok(())
            }
            FromServer::Ceremony(ToClient::Factory(_)) => {
                // The chain decides, not the coordinator; it is a good moment to look, though.
                client.wake_chain.notify_one();
                Ok(())
            }
            FromServer::Ceremony(message) => {
                let over = matches!(message, ToClient::Failed { again: false, .. });
                let driver = &mut drivers.ceremony;
                driver.received(message, &self.out).await?;
                if over {
                    // The ceremony came to nothing, and with it the wish it was to fulfil.
                    self.told = None;
                    self.tell_interest(client, driver).await?;
                }
                Ok(())
            }
            FromServer::Lightning(lightning) => {
                let route = Route {
                    address: lightning.address,
                    intercept_scid: lightning.intercept_scid,
                    cltv_delta: lightning.cltv_delta,
                    base_msat: lightning.base_msat,
                    proportional_millionths: lightning.proportional_millionths,
                };
                client.lightning.set_route(client, route).await
            }
            FromServer::PartTerms(terms) => {
                client.migration.answered(Answer::Terms(terms));
                Ok(())
            }
            FromServer::HandoverTaken(factory) => {
                client.migration.answered(Answer::Taken(factory));
                Ok(())
            }
            FromServer::Notice(notice) => crate::migration::notice(client, notice).await,
            FromServer::Sale(message) => drivers.sales.received(message, &self.out).await,
            FromServer::Challenge(_) | FromServer::Welcome(_) => Err(Error::Handshake(
                "a second handshake within one session".to_owned(),
            )),
        }
    }

    /// The wish as it stands cannot be fulfilled: the reason stays with it.
    async fn note_refusal(&self, client: &Inner, error: &ServiceError) -> Result<()> {
        let about_interest = matches!(error.code, ErrorCode::Capacity | ErrorCode::FeeCoins);
        if about_interest {
            client.store.note_interest(&error.message).await?;
        }
        Ok(())
    }

    /// Which attempt the coordinator has this client in, if any, and what else it is at work on.
    async fn status(&mut self) -> Result<Standing> {
        let mut request = Request::new(v1::GetStatusRequest {});
        request.set_timeout(CALL);
        self.token.attach(request.metadata_mut());
        let answer = self
            .calls
            .get_status(request)
            .await
            .map_err(|status| ended(&status))?
            .into_inner();
        let gone = [v1::FactoryState::Failed, v1::FactoryState::Unspecified];
        let awaited = answer
            .factories
            .iter()
            .filter(|f| !gone.contains(&f.state()));
        let awaited = awaited.filter_map(|f| <[u8; 32]>::try_from(&f.id[..]).ok());
        Ok(Standing {
            awaited: awaited.map(FactoryId).collect(),
            round: answer
                .round
                .map(Round::try_from)
                .transpose()
                .map_err(|error| Error::Disconnected(format!("an unreadable status: {error}")))?,
        })
    }

    /// Tells the coordinator what this client wants now, if that is something new.
    async fn tell_interest(&mut self, client: &Inner, driver: &Driver) -> Result<()> {
        let interest = client.store.interest().await?;
        let Some(interest) = interest else {
            if self.told.take().is_some() {
                let withdrawn = Body::InterestWithdrawn(v1::InterestWithdrawn {});
                self.out.body(withdrawn).await?;
            }
            return Ok(());
        };
        // Whether there are coins for fees is part of the wish: it is told when it is known.
        // So is a node to open the channel with.
        if !client.knows_coins() || !client.lightning.is_ready() || driver.is_served().await? {
            return Ok(());
        }
        let has_fee_coins = !client.wallet.coins().await.is_empty();
        let wanted = Some((interest.capacity, has_fee_coins));
        if wanted == self.told {
            return Ok(());
        }
        let wire = wire::Interest {
            capacity: (interest.capacity != Amount::ZERO).then_some(interest.capacity),
            has_fee_coins,
            once: true,
        };
        self.out.body(Body::Interest(wire.into())).await?;
        self.told = wanted;
        Ok(())
    }
}
