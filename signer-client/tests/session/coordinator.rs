//! A coordinator that authenticates as it should, and then does as the test says.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::SecretKey;
use bitcoin::{Amount, Network, OutPoint, Txid};
use factory_tree::ceremony::message::{Invitation, Join, Round, ToClient, ToCoordinator};
use factory_tree::ids::{Attempt, CeremonyId};
use factory_tree::params::{FactoryParams, Profile};
use proto::NodeId;
use proto::auth::{CertHash, ServerHandshake};
use proto::connection::{Connection, Security};
use proto::v1::server_message::Body;
use proto::v1::{self, ClientMessage, ServerMessage};
use proto::wire::{FromClient, FromServer, Interest};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::wallet::PATIENCE;

type Outbox = mpsc::UnboundedSender<Result<ServerMessage, Status>>;

pub struct Coordinator {
    address: SocketAddr,
    node_id: NodeId,
    heard: mpsc::UnboundedReceiver<FromClient>,
    shared: Arc<Shared>,
}

struct Shared {
    secret: SecretKey,
    node_id: NodeId,
    heard: mpsc::UnboundedSender<FromClient>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outbox: Option<Outbox>,
    status: Option<Round>,
    silent: bool,
    answers: usize,
}

pub fn round(attempt: u32) -> Round {
    Round {
        ceremony: CeremonyId([5; 16]),
        attempt: Attempt(attempt),
    }
}

pub fn invitation(attempt: u32, capacity: u64) -> Invitation {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    let max_clients = 8;
    Invitation {
        round: round(attempt),
        max_sessions: factory_tree::tree::max_sessions(&params, max_clients).unwrap(),
        params,
        capacity: Amount::from_sat(capacity),
        fee: Amount::ZERO,
        join_seconds: 20,
        step_seconds: 20,
        max_clients,
        common_pin: OutPoint::new(Txid::from_byte_array([9; 32]), 0),
        confirmations: 1,
    }
}

impl Coordinator {
    pub async fn start(key: u8) -> Self {
        let secret = SecretKey::from_slice(&[key; 32]).unwrap();
        let node_id = NodeId::of(&secret);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, heard) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            secret,
            node_id,
            heard: sender,
            state: Mutex::default(),
        });
        let service = proto::session::service(Service(Arc::clone(&shared)));
        let server = proto::tls::server(address, None).unwrap();
        let serving = {
            let mut server = server;
            server
                .add_service(service)
                .serve_with_incoming(proto::tls::incoming(
                    listener,
                    proto::tls::Places::new(64, 64),
                ))
        };
        tokio::spawn(serving);
        Self {
            address,
            node_id,
            heard,
            shared,
        }
    }

    pub fn connection(&self) -> String {
        self.connection_as(self)
    }

    /// Our address, another's name.
    pub fn connection_as(&self, other: &Self) -> String {
        let (host, port) = (self.address.ip().to_string(), self.address.port());
        let connection = Connection::new(other.node_id, &host, port, Security::Plain);
        connection.unwrap().to_string()
    }

    pub async fn heard(&mut self) -> FromClient {
        let next = tokio::time::timeout(PATIENCE, self.heard.recv()).await;
        next.expect("the wallet speaks in time").unwrap()
    }

    pub async fn ceremony(&mut self) -> ToCoordinator {
        match self.heard().await {
            FromClient::Ceremony(message) => message,
            other => panic!("not part of a ceremony: {other:?}"),
        }
    }

    pub async fn interest(&mut self) -> Interest {
        match self.heard().await {
            FromClient::Interest(interest) => interest,
            other => panic!("not an interest: {other:?}"),
        }
    }

    /// The next join; the wish that is told again at each session is passed over.
    pub async fn join(&mut self) -> Join {
        loop {
            match self.heard().await {
                FromClient::Ceremony(ToCoordinator::Join(join)) => return *join,
                FromClient::Interest(_) => {}
                other => panic!("not a join: {other:?}"),
            }
        }
    }

    pub fn heard_only_hello(&mut self) -> bool {
        self.heard.try_recv().is_err() && self.shared.state.lock().unwrap().answers == 0
    }

    /// To the session that is open, or to the next one.
    pub fn send(&self, message: &ToClient) {
        let state = self.shared.state.lock().unwrap();
        let outbox = state.outbox.as_ref().expect("a session is open");
        outbox.send(Ok(message.into())).unwrap();
    }

    /// To the session that is open.
    pub fn say(&self, message: &FromServer) {
        let state = self.shared.state.lock().unwrap();
        let outbox = state.outbox.as_ref().expect("a session is open");
        outbox.send(Ok(message.into())).unwrap();
    }

    pub fn set_status(&self, round: Option<Round>) {
        self.shared.state.lock().unwrap().status = round;
    }

    pub fn hang_up(&self) {
        let outbox = self.shared.state.lock().unwrap().outbox.take();
        let outbox = outbox.expect("a session is open");
        let _ = outbox.send(Err(Status::unavailable("hanging up")));
    }

    pub fn fall_silent(&self) {
        self.shared.state.lock().unwrap().silent = true;
    }
}

struct Service(Arc<Shared>);

type Out = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl v1::coordinator_server::Coordinator for Service {
    type SessionStream = Out;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Out>, Status> {
        let (outbox, queue) = mpsc::unbounded_channel();
        tokio::spawn(session(Arc::clone(&self.0), request.into_inner(), outbox));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(queue))))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let round = self.0.state.lock().unwrap().status;
        Ok(Response::new(v1::GetStatusResponse {
            connected: true,
            round: round.map(Into::into),
            ..v1::GetStatusResponse::default()
        }))
    }

    async fn get_info(
        &self,
        _request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_history(
        &self,
        _request: Request<v1::ListHistoryRequest>,
    ) -> Result<Response<v1::ListHistoryResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

async fn session(shared: Arc<Shared>, mut incoming: Streaming<ClientMessage>, outbox: Outbox) {
    let handshake = ServerHandshake {
        network: Network::Regtest,
        cert: CertHash::PLAIN,
        node_id: shared.node_id,
    };
    let Some(Ok(hello)) = incoming.next().await else {
        return;
    };
    let hello = FromClient::try_from(hello).unwrap();
    let (challenge, awaiting) = handshake
        .challenge(hello, &shared.secret, rand::random(), &rand::random())
        .unwrap();
    let _ = outbox.send(Ok(Body::Challenge(challenge).into()));
    let Some(Ok(answer)) = incoming.next().await else {
        return;
    };
    shared.state.lock().unwrap().answers += 1;
    awaiting
        .verify(FromClient::try_from(answer).unwrap())
        .unwrap();
    shared.state.lock().unwrap().outbox = Some(outbox.clone());
    let welcome = v1::Welcome {
        session_token: vec![3; 32].into(),
        heartbeat_seconds: 1,
        tip_height: 100,
    };
    let _ = outbox.send(Ok(Body::Welcome(welcome).into()));
    while let Some(Ok(message)) = incoming.next().await {
        match FromClient::try_from(message).unwrap() {
            FromClient::Heartbeat => {
                if !shared.state.lock().unwrap().silent {
                    let _ = outbox.send(Ok(Body::Heartbeat(v1::Heartbeat {}).into()));
                }
            }
            other => {
                let _ = shared.heard.send(other);
            }
        }
    }
}
