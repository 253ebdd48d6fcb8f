use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bitcoin::secp256k1::SecretKey;
use rcgen::KeyPair;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData,
    SupportedProtocolVersion,
};
use tokio::net::TcpListener;
use tokio_stream::Once;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;
use crate::NodeId;
use crate::auth::CertHash;
use crate::connection::{Connection, Security};
use crate::session;
use crate::v1::{self, coordinator_server::Coordinator, server_message};

struct Echo;

#[tonic::async_trait]
impl Coordinator for Echo {
    async fn get_info(
        &self,
        _: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        Ok(Response::new(v1::GetInfoResponse::default()))
    }

    type SessionStream = Once<Result<v1::ServerMessage, Status>>;

    /// Answers the first message.
    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        request.into_inner().message().await?;
        let heartbeat = server_message::Body::Heartbeat(v1::Heartbeat {});
        Ok(Response::new(tokio_stream::once(Ok(heartbeat.into()))))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    /// As many bytes as the limit says.
    async fn list_history(
        &self,
        request: Request<v1::ListHistoryRequest>,
    ) -> Result<Response<v1::ListHistoryResponse>, Status> {
        let text = "x".repeat(request.into_inner().limit as usize);
        let entry = v1::HistoryEntry {
            text,
            ..v1::HistoryEntry::default()
        };
        Ok(Response::new(v1::ListHistoryResponse {
            entries: vec![entry],
            more: false,
        }))
    }
}

async fn serve(identity: Option<&ServerIdentity>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = server(address, identity).unwrap();
    let router = server.add_service(session::service(Echo));
    tokio::spawn(router.serve_with_incoming(incoming(listener, Places::new(4, 2))));
    address
}

fn connection(address: SocketAddr, security: Security) -> Connection {
    let id = NodeId::of(&SecretKey::from_slice(&[1; 32]).unwrap());
    Connection::new(id, &address.ip().to_string(), address.port(), security).unwrap()
}

fn identity(dir: &Path) -> Result<ServerIdentity, IdentityError> {
    ServerIdentity::load_or_create(&dir.join("cert.pem"), &dir.join("key.pem"))
}

#[tokio::test]
async fn the_pinned_certificate_is_accepted_and_large_messages_flow() {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity(dir.path()).unwrap();
    let address = serve(Some(&identity)).await;
    let pinned = connection(address, Security::Tls(identity.hash()));
    let channel = connect(&pinned, &ConnectOptions::default()).await.unwrap();
    let mut client = session::client(channel);
    client.get_info(v1::GetInfoRequest {}).await.unwrap();

    let history = |limit: usize| v1::ListHistoryRequest {
        limit: limit.try_into().unwrap(),
        before: 0,
    };
    let large = client.list_history(history(8 << 20)).await.unwrap();
    assert_eq!(large.into_inner().entries[0].text.len(), 8 << 20);
    let too_large = client.list_history(history(session::MAX_TO_CLIENT)).await;
    assert_eq!(too_large.unwrap_err().code(), Code::OutOfRange);

    let message = |bytes: usize| {
        let error = v1::Error {
            message: "x".repeat(bytes),
            ..v1::Error::default()
        };
        let body = v1::client_message::Body::Error(error);
        tokio_stream::once(v1::ClientMessage::from(body))
    };
    client
        .session(message(session::MAX_FROM_CLIENT - 1024))
        .await
        .unwrap();
    // A client that does not keep to the limit itself: the coordinator refuses it undecoded.
    let mut careless = client.max_encoding_message_size(usize::MAX);
    let refused = careless.session(message(session::MAX_FROM_CLIENT)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert_eq!(
        session::ServiceError::from_status(&refused).code,
        v1::ErrorCode::TooLarge
    );
}

#[tokio::test]
async fn another_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity(dir.path()).unwrap();
    let address = serve(Some(&identity)).await;
    let pinned = CertHash([7; 32]);
    let error = connect(
        &connection(address, Security::Tls(pinned)),
        &ConnectOptions::default(),
    )
    .await
    .unwrap_err();
    let ConnectError::OtherCertificate { mismatch, .. } = error else {
        panic!("{error}");
    };
    let found = identity.hash();
    assert_eq!(mismatch, PinMismatch { pinned, found });
}

#[tokio::test]
async fn plain_only_when_asked_and_on_loopback() {
    let address = serve(None).await;
    let plain = connection(address, Security::Plain);
    let mut options = ConnectOptions::default();
    let error = connect(&plain, &options).await.unwrap_err();
    assert!(matches!(error, ConnectError::PlainRefused { .. }));
    options.allow_plain = true;
    let channel = connect(&plain, &options).await.unwrap();
    let mut client = session::client(channel);
    client.get_info(v1::GetInfoRequest {}).await.unwrap();

    // Neither side falls back to the other's protection.
    let tls = connection(address, Security::Tls(CertHash([7; 32])));
    let error = connect(&tls, &options).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");

    let public = SocketAddr::from(([0, 0, 0, 0], 1));
    let error = server(public, None).unwrap_err();
    assert!(matches!(error, ServeError::PlainAddress { .. }));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let nobody = connection(address, Security::Tls(CertHash([7; 32])));
    let error = connect(&nobody, &ConnectOptions::default()).await;
    assert!(matches!(error, Err(ConnectError::Unreachable { .. })));
}

#[test]
fn an_identity_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = identity(dir.path()).unwrap();
    assert_eq!(identity(dir.path()).unwrap().hash(), first.hash());
    let mode = |name| {
        fs::metadata(dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("key.pem"), 0o600);
    let shown = format!("{first:?}");
    assert_eq!(shown, format!("ServerIdentity({})", first.hash()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

    let other = tempfile::tempdir().unwrap();
    assert_ne!(identity(other.path()).unwrap().hash(), first.hash());
}

#[test]
fn an_interrupted_first_start_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path()).unwrap();
    fs::remove_file(dir.path().join("cert.pem")).unwrap();
    fs::write(dir.path().join("cert.pem.part"), "-----BEG").unwrap();
    let again = identity(dir.path()).unwrap();
    assert_eq!(identity(dir.path()).unwrap().hash(), again.hash());
}

#[test]
fn wrong_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    identity(dir.path()).unwrap();
    let good_key = fs::read(&key).unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = identity(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::KeyExposed { .. }), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = identity(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::Mismatch { .. }), "{error}");

    fs::write(&key, "not a key").unwrap();
    let error = identity(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");

    fs::remove_file(&key).unwrap();
    let error = identity(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::KeyMissing { .. }), "{error}");

    fs::write(&key, good_key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    identity(dir.path()).unwrap();
    fs::write(&cert, "").unwrap();
    let error = identity(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
}

/// Presents a certificate with whatever key it has.
#[derive(Debug)]
struct Present(Arc<CertifiedKey>);

impl ResolvesServerCert for Present {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Shakes hands in memory with a server that presents `cert` and signs with `key`.
fn shake(
    version: &'static SupportedProtocolVersion,
    cert: &CertificateDer<'static>,
    key: &KeyPair,
) -> Result<(), rustls::Error> {
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let signer = ring::sign::any_supported_type(&key).unwrap();
    let presented = Present(Arc::new(CertifiedKey::new(vec![cert.clone()], signer)));
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(presented));
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCertificate::new(CertHash::of(cert))))
        .with_no_client_auth();
    let name = ServerName::try_from("superscalar").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok(())
}

fn pass<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = bytes.as_slice();
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn a_copied_certificate_without_its_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path()).unwrap();
    let cert = CertificateDer::from_pem_file(dir.path().join("cert.pem")).unwrap();
    let own = KeyPair::from_pem(&fs::read_to_string(dir.path().join("key.pem")).unwrap()).unwrap();
    let thief = KeyPair::generate().unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        shake(version, &cert, &own).unwrap();
        let error = shake(version, &cert, &thief).unwrap_err();
        let bad = rustls::CertificateError::BadSignature;
        assert_eq!(error, rustls::Error::InvalidCertificate(bad), "{version:?}");
    }
}

/// What the server says to bytes that it does not like: nothing.
async fn ended(stream: &mut tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt;
    matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(Some(&identity(dir.path()).unwrap())).await;
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let waited = tokio::time::timeout(2 * super::HANDSHAKE, ended(&mut silent)).await;
    assert_eq!(waited, Ok(true));
}

#[tokio::test]
async fn one_address_cannot_hold_all_connections() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(Some(&identity(dir.path()).unwrap())).await;
    let _first = tokio::net::TcpStream::connect(address).await.unwrap();
    let second = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut third = tokio::net::TcpStream::connect(address).await.unwrap();
    let refused = tokio::time::timeout(super::HANDSHAKE / 2, ended(&mut third)).await;
    assert_eq!(
        refused,
        Ok(true),
        "closed at once, not by the handshake's limit"
    );
    drop((second, third));
}
