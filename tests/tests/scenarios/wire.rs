//! What a coordinator answers to strangers on the wire: no wallet of ours, just bytes.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitcoin::Network;
use bitcoin::secp256k1::{Secp256k1, SecretKey};
use proto::auth::{CertHash, ClientHandshake};
use proto::connection::Connection;
use proto::session::ServiceError;
use proto::v1::client_message::Body;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{self, ClientMessage, ErrorCode, GetInfoRequest, GetStatusRequest, ServerMessage};
use proto::wire::FromServer;
use proto::{NodeId, session};
use scenarios::world::World;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

/// A coordinator without TLS, so that a test can talk to it by hand.
fn plain(name: &str) -> Result<World> {
    World::start_with(name, |coordinator| {
        coordinator.configure("tls", false)?;
        coordinator.configure("server.handshake_seconds", 2)
    })
}

async fn channel(world: &World) -> Result<Channel> {
    let connection: Connection = connection(world)?;
    let endpoint = Endpoint::from_shared(format!("http://{}", connection.authority()))?;
    Ok(endpoint.connect().await?)
}

fn connection(world: &World) -> Result<Connection> {
    // Without TLS it is another one than `init` printed.
    let ready = world.coordinator.wait_for("ready")?;
    ready
        .text("connection")
        .parse()
        .with_context(|| ready.to_string())
}

fn key(n: u8) -> Result<SecretKey> {
    Ok(SecretKey::from_slice(&[n; 32])?)
}

/// One stream.
struct Stream {
    out: mpsc::Sender<ClientMessage>,
    back: Streaming<ServerMessage>,
}

impl Stream {
    async fn open(client: &mut CoordinatorClient<Channel>) -> Result<Self, Status> {
        let (out, messages) = mpsc::channel(8);
        let back = client
            .session(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self { out, back })
    }

    async fn send(&self, body: Body) -> Result<()> {
        Ok(self.out.send(ClientMessage { body: Some(body) }).await?)
    }

    async fn next(&mut self) -> Result<FromServer, ServiceError> {
        match self.back.message().await {
            Ok(Some(message)) => {
                FromServer::parse(message, Network::Regtest).map_err(ServiceError::from)
            }
            Ok(None) => Err(ServiceError::new(
                ErrorCode::Unspecified,
                "the stream ended without a word",
            )),
            Err(status) => Err(ServiceError::from_status(&status)),
        }
    }

    /// The error the stream says or ends with.
    async fn error(&mut self) -> Result<ServiceError> {
        loop {
            match self.next().await {
                Ok(FromServer::Error(error)) | Err(error) => return Ok(error),
                // Said by itself, at any time.
                Ok(FromServer::Heartbeat | FromServer::Lightning(_)) => {}
                Ok(other) => bail!("no error but {other:?}"),
            }
        }
    }
}

/// Hello out, challenge in: what is needed to answer.
async fn challenged(world: &World, stream: &mut Stream, n: u8) -> Result<v1::Answer> {
    let handshake = ClientHandshake {
        network: Network::Regtest,
        cert: CertHash::PLAIN,
        server: connection(world)?.node_id(),
        client: NodeId::from(key(n)?.public_key(&Secp256k1::new())),
    };
    let (hello, state) = handshake.hello([n; 32], "scenario");
    stream.send(Body::Hello(hello)).await?;
    let challenge = stream.next().await?;
    Ok(state.answer(challenge, &key(n)?, &[1; 32])?)
}

async fn authenticated(
    world: &World,
    client: &mut CoordinatorClient<Channel>,
    n: u8,
) -> Result<Stream> {
    let mut stream = Stream::open(client).await?;
    let answer = challenged(world, &mut stream, n).await?;
    stream.send(Body::Answer(answer)).await?;
    match stream.next().await? {
        FromServer::Welcome(_) => Ok(stream),
        other => bail!("no welcome but {other:?}"),
    }
}

fn is(error: &ServiceError, code: ErrorCode, words: &[&str]) -> Result<()> {
    let text = error.message.to_lowercase();
    ensure!(error.code == code, "{error}");
    ensure!(
        words.iter().all(|word| text.contains(word)),
        "{words:?} not in: {error}"
    );
    Ok(())
}

#[tokio::test]
async fn nothing_is_served_before_authentication() -> Result<()> {
    let world = plain("wire_auth")?;
    let mut client = session::client(channel(&world).await?);

    let info = client.get_info(GetInfoRequest {}).await?.into_inner();
    ensure!(info.protocol_version == session::VERSION, "{info:?}");

    let status = client.get_status(GetStatusRequest {}).await;
    let status = status.err().context("a status without a session")?;
    ensure!(status.code() == Code::Unauthenticated, "{status}");

    // Another message instead of Hello.
    let mut stream = Stream::open(&mut client).await?;
    stream.send(Body::Interest(v1::Interest::default())).await?;
    let error = stream.error().await?;
    ensure!(
        [
            ErrorCode::AuthFailed,
            ErrorCode::Unauthenticated,
            ErrorCode::Unexpected
        ]
        .contains(&error.code),
        "{error}"
    );

    // Another message instead of the answer.
    let mut stream = Stream::open(&mut client).await?;
    challenged(&world, &mut stream, 7).await?;
    stream.send(Body::Interest(v1::Interest::default())).await?;
    let error = stream.error().await?;
    ensure!(
        [
            ErrorCode::AuthFailed,
            ErrorCode::Unauthenticated,
            ErrorCode::Unexpected
        ]
        .contains(&error.code),
        "{error}"
    );

    // Nothing at all.
    let mut stream = Stream::open(&mut client).await?;
    challenged(&world, &mut stream, 7).await?;
    is(&stream.error().await?, ErrorCode::AuthTimeout, &[])?;

    // Another node's answer.
    let mut stream = Stream::open(&mut client).await?;
    let mut answer = challenged(&world, &mut stream, 7).await?;
    answer.signature = vec![1; 64].into();
    stream.send(Body::Answer(answer)).await?;
    is(&stream.error().await?, ErrorCode::AuthFailed, &[])?;

    // An answer to another challenge, even with the same nonce of the client.
    let mut first = Stream::open(&mut client).await?;
    let replayed = challenged(&world, &mut first, 7).await?;
    first.send(Body::Answer(replayed.clone())).await?;
    ensure!(
        matches!(first.next().await?, FromServer::Welcome(_)),
        "the honest answer is refused"
    );
    let mut second = Stream::open(&mut client).await?;
    challenged(&world, &mut second, 7).await?;
    second.send(Body::Answer(replayed)).await?;
    is(&second.error().await?, ErrorCode::AuthFailed, &[])?;

    // And the one who can is served.
    authenticated(&world, &mut client, 8).await?;
    Ok(())
}

#[tokio::test]
async fn another_network_or_version_is_named() -> Result<()> {
    let world = plain("wire_network")?;
    let mut client = session::client(channel(&world).await?);
    let hello = |network: v1::Network, protocol_version| -> Result<Body> {
        Ok(Body::Hello(v1::Hello {
            protocol_version,
            network: network.into(),
            node_id: NodeId::from(key(9)?.public_key(&Secp256k1::new()))
                .to_bytes()
                .to_vec()
                .into(),
            client_nonce: vec![3; 32].into(),
            software: "scenario".to_owned(),
        }))
    };
    let mut stream = Stream::open(&mut client).await?;
    stream
        .send(hello(v1::Network::Signet, session::VERSION)?)
        .await?;
    is(
        &stream.error().await?,
        ErrorCode::WrongNetwork,
        &["regtest", "signet"],
    )?;
    let mut stream = Stream::open(&mut client).await?;
    stream.send(hello(v1::Network::Regtest, 99)?).await?;
    is(
        &stream.error().await?,
        ErrorCode::VersionUnsupported,
        &["99"],
    )?;
    Ok(())
}

#[tokio::test]
async fn malformed_and_oversized_messages_get_a_typed_error() -> Result<()> {
    let mut world = plain("wire_malformed")?;
    let mut client = session::client(channel(&world).await?);

    let mut stream = authenticated(&world, &mut client, 11).await?;
    stream.out.send(ClientMessage { body: None }).await?;
    is(&stream.error().await?, ErrorCode::Malformed, &[])?;

    let mut stream = authenticated(&world, &mut client, 12).await?;
    let partials = v1::Partials {
        round: Some(v1::Round {
            ceremony: vec![1; 16].into(),
            attempt: 1,
        }),
        partials: vec![0; 33].into(),
        channel_signature: vec![0; 64].into(),
    };
    stream.send(Body::Partials(partials.clone())).await?;
    is(&stream.error().await?, ErrorCode::Malformed, &["partials"])?;

    // A well-formed one of a ceremony that nobody knows.
    let stranger = v1::Partials {
        partials: vec![1; 32].into(),
        ..partials.clone()
    };
    stream.send(Body::Partials(stranger)).await?;
    let error = stream.error().await?;
    ensure!(
        [ErrorCode::UnknownRound, ErrorCode::Malformed].contains(&error.code),
        "{error}"
    );

    // Over the limit, by a client that does not check its own.
    let mut careless =
        CoordinatorClient::new(channel(&world).await?).max_encoding_message_size(usize::MAX);
    let mut stream = authenticated(&world, &mut careless, 13).await?;
    let huge = v1::Partials {
        partials: vec![0; session::MAX_FROM_CLIENT + 1].into(),
        ..partials
    };
    stream.send(Body::Partials(huge)).await?;
    let error = stream.error().await?;
    ensure!(
        [ErrorCode::TooLarge, ErrorCode::RateLimited].contains(&error.code),
        "{error}"
    );

    // The service goes on for the others.
    let plain = connection(&world)?.to_string();
    world.use_connection(&plain, true);
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    crate::money::funded(&world, &[export], scenarios::world::COORDINATOR_COINS)
}

/// Capacities outside the policy are refused with the policy's numbers.
#[tokio::test]
async fn interest_outside_the_policy_is_refused() -> Result<()> {
    let world = plain("wire_capacity")?;
    let mut client = session::client(channel(&world).await?);
    for capacity_sat in [1, 329, 19_999, 10_000_001] {
        let mut stream = authenticated(&world, &mut client, 21).await?;
        let interest = v1::Interest {
            capacity_sat,
            ..v1::Interest::default()
        };
        stream.send(Body::Interest(interest)).await?;
        is(
            &stream.error().await?,
            ErrorCode::Capacity,
            &["20000", "10000000"],
        )?;
    }
    // More than there is.
    let mut stream = authenticated(&world, &mut client, 22).await?;
    let interest = v1::Interest {
        capacity_sat: 2_100_000_000_000_001,
        ..v1::Interest::default()
    };
    stream.send(Body::Interest(interest)).await?;
    is(&stream.error().await?, ErrorCode::Malformed, &["capacity"])
}

/// Health says what is so: without its node the coordinator cannot serve.
#[tokio::test]
async fn health_follows_the_node() -> Result<()> {
    let world = plain("wire_health")?;
    let mut health = HealthClient::new(channel(&world).await?);
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await?
        .into_inner();
    let mut until = async |wanted: ServingStatus| -> Result<()> {
        while let Some(now) = watch.message().await? {
            if now.status() == wanted {
                return Ok(());
            }
        }
        Err(anyhow!("the watch ended before {wanted:?}"))
    };
    until(ServingStatus::Serving).await?;
    world.node.kill()?;
    until(ServingStatus::NotServing).await?;
    world.node.start_again()?;
    world.mine(1)?;
    until(ServingStatus::Serving).await
}
