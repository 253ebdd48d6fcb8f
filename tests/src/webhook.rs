//! A webhook: an HTTPS server that keeps what is posted to it, and answers as it is told.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// Longer than anybody's notification.
const LONGEST: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// What was posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The path of the URL.
    pub path: String,
    /// The header `x-lsps5-timestamp`.
    pub timestamp: String,
    /// The header `x-lsps5-signature`.
    pub signature: String,
    /// The body.
    pub body: String,
}

/// The server. It goes with its owner.
#[derive(Debug)]
pub struct Webhook {
    address: std::net::SocketAddr,
    ca_file: PathBuf,
    posted: Arc<Mutex<Vec<Posted>>>,
    status: Arc<AtomicU16>,
    _runtime: Runtime,
}

impl Webhook {
    /// A server on loopback, whose certificate is written below `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let ca_file = directory.join("webhook-ca.pem");
        std::fs::write(&ca_file, made.cert.pem())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let (posted, status) = (Arc::default(), Arc::new(AtomicU16::new(200)));
        let (heard, answers) = (Arc::clone(&posted), Arc::clone(&status));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, heard) = (acceptor.clone(), Arc::clone(&heard));
                let status = answers.load(Ordering::Acquire);
                // Who hangs up is nobody's loss: it is tried again.
                tokio::spawn(async move { serve(stream, acceptor, &heard, status).await });
            }
        });
        Ok(Self {
            address,
            ca_file,
            posted,
            status,
            _runtime: runtime,
        })
    }

    /// Its URL with this path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.address)
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// How it answers from now on.
    pub fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Release);
    }

    /// What was posted so far.
    pub fn posted(&self) -> Vec<Posted> {
        let posted = self.posted.lock();
        posted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first of those after `mark` that says this.
    pub fn wait(&self, mark: usize, words: &str) -> Result<Posted> {
        let until = Instant::now() + PATIENCE;
        loop {
            let posted = self.posted();
            let found = posted
                .iter()
                .skip(mark)
                .find(|one| one.body.contains(words));
            match found {
                Some(found) => return Ok(found.clone()),
                None if Instant::now() > until => bail!("nobody posted {words}: {posted:#?}"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    heard: &Mutex<Vec<Posted>>,
    status: u16,
) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut bytes = Vec::new();
    let posted = loop {
        ensure!(bytes.len() < LONGEST, "too long");
        ensure!(stream.read_buf(&mut bytes).await? > 0, "it hung up");
        if let Some(posted) = parse(&bytes)? {
            break posted;
        }
    };
    heard
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(posted);
    let answer =
        format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// A whole HTTP/1.1 request, when it is.
fn parse(bytes: &[u8]) -> Result<Option<Posted>> {
    let text = std::str::from_utf8(bytes)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let header = |name: &str| {
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let length: usize = header("content-length").context("no length")?.parse()?;
    if body.len() < length {
        return Ok(None);
    }
    let mut first = head.split(' ');
    ensure!(first.next() == Some("POST"), "no POST: {head}");
    Ok(Some(Posted {
        path: first.next().context("no path")?.to_owned(),
        timestamp: header("x-lsps5-timestamp").context("no timestamp")?,
        signature: header("x-lsps5-signature").context("no signature")?,
        body: body.to_owned(),
    }))
}
