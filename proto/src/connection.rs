//! What a wallet is given to find a coordinator and to know that it is the right one:
//! `superscalar://<node id>@host:port?cert=<SHA-256 of the DER certificate>`, or `?plain=1` for a
//! coordinator without TLS on the same machine.

use core::fmt;
use core::str::FromStr;
use std::net::{IpAddr, Ipv6Addr};

use crate::NodeId;
use crate::auth::CertHash;

const SCHEME: &str = "superscalar://";
/// Longer than any connection string with the longest of host names.
const MAX_LEN: usize = 512;
/// RFC 1035.
const MAX_HOST_LEN: usize = 253;

/// Why a text is no connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// Not the overall form.
    #[error("a connection string looks like superscalar://<node id>@host:port?cert=<sha256>: {0}")]
    Form(&'static str),
    /// The node id is not one.
    #[error("the node id of the connection string is not a public key of 66 hex digits")]
    NodeId,
    /// The host is not one.
    #[error("{0:?} is neither a host name nor an address")]
    Host(String),
    /// The port is not one.
    #[error("{0:?} is not a port (1 to 65535)")]
    Port(String),
    /// The certificate's hash is not one.
    #[error("cert= takes the SHA-256 of the certificate, 64 hex digits")]
    Cert,
    /// Something this version does not know.
    #[error("{0:?} is unknown in a connection string: is it for a newer version?")]
    Unknown(String),
    /// Without TLS anybody on the way could read and change everything.
    #[error("plain=1 is for loopback addresses only, {0} is none")]
    PlainHost(String),
}

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// TLS; the coordinator's certificate has this hash.
    Tls(CertHash),
    /// Nothing; on a loopback address only.
    Plain,
}

/// A parsed connection string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    node_id: NodeId,
    host: Host,
    port: u16,
    security: Security,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Connection {
    /// Puts a connection string together; `host` is a name or an address (IPv6 with or without its
    /// brackets).
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn new(
        node_id: NodeId,
        host: &str,
        port: u16,
        security: Security,
    ) -> Result<Self, ConnectionError> {
        let host = host.parse::<Host>()?;
        if port == 0 {
            return Err(ConnectionError::Port(port.to_string()));
        }
        if security == Security::Plain && !host.is_loopback() {
            return Err(ConnectionError::PlainHost(host.to_string()));
        }
        Ok(Self {
            node_id,
            host,
            port,
            security,
        })
    }

    /// The coordinator's node id.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// `host:port`, as in a URI.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// How the connection is protected.
    #[must_use]
    pub const fn security(&self) -> Security {
        self.security
    }

    /// What both sides sign in the handshake.
    #[must_use]
    pub const fn cert(&self) -> CertHash {
        match self.security {
            Security::Tls(cert) => cert,
            Security::Plain => CertHash::PLAIN,
        }
    }
}

impl Host {
    fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_loopback(),
            Self::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl FromStr for Host {
    type Err = ConnectionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ConnectionError::Host(text.chars().take(MAX_HOST_LEN).collect());
        let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Some(inner) = bracketed {
            let ip = inner.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            return Ok(Self::Ip(ip.into()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        let label = |label: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(legal)
        };
        // A name whose last label is a number would be taken for an IPv4 address by some.
        let numeric = text
            .rsplit('.')
            .next()
            .is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()) || last.starts_with("0x"));
        if text.len() > MAX_HOST_LEN || numeric || !text.split('.').all(label) {
            return Err(wrong());
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.node_id, self.authority())?;
        match self.security {
            Security::Tls(cert) => write!(f, "?cert={cert}"),
            Security::Plain => f.write_str("?plain=1"),
        }
    }
}

impl FromStr for Connection {
    type Err = ConnectionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ConnectionError::Form;
        let text = text.trim();
        if text.len() > MAX_LEN {
            return Err(Form("it is too long"));
        }
        let rest = text.strip_prefix(SCHEME);
        let rest = rest.ok_or(Form("it begins with superscalar://"))?;
        let (node_id, rest) = rest.split_once('@').ok_or(Form("there is no @"))?;
        let (authority, query) = rest
            .split_once('?')
            .ok_or(Form("there is no ?cert= or ?plain=1"))?;
        let (host, port) = authority.rsplit_once(':').ok_or(Form("there is no port"))?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(Form("an IPv6 address stands in brackets"));
        }
        let node_id = node_id.parse().map_err(|_| ConnectionError::NodeId)?;
        let port = port_number(port)?;
        Self::new(node_id, host, port, security(query)?)
    }
}

fn port_number(text: &str) -> Result<u16, ConnectionError> {
    let wrong = || ConnectionError::Port(text.chars().take(16).collect());
    if !text.chars().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

/// Exactly one of `cert=..` and `plain=1`: two, or anything else, might mean another protection than
/// the user believes.
fn security(query: &str) -> Result<Security, ConnectionError> {
    match query.split_once('=') {
        Some(("cert", hash)) => {
            let hash = hash.parse().map_err(|_| ConnectionError::Cert)?;
            // The zero hash means "no TLS" in the handshake.
            if hash == CertHash::PLAIN {
                return Err(ConnectionError::Cert);
            }
            Ok(Security::Tls(hash))
        }
        Some(("plain", "1")) => Ok(Security::Plain),
        _ => Err(ConnectionError::Unknown(query.chars().take(64).collect())),
    }
}

#[cfg(test)]
mod tests;
