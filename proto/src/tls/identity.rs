//! The coordinator's self-signed certificate and its key, made on first start.

use core::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::client::NAME;
use crate::auth::CertHash;

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate is there, but its key is not.
    #[error(
        "{} is there, but its key {} is missing: restore the key; or remove the certificate too, then a new one \
         is made and every client needs the new connection string", cert.display(), key.display()
    )]
    KeyMissing {
        /// The certificate's file.
        cert: PathBuf,
        /// Where its key should be.
        key: PathBuf,
    },
    /// Others could read the key.
    #[error("{} can be read by others: chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
    },
    /// A file is damaged.
    #[error("{} is damaged ({reason}): restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is not the certificate's.
    #[error("{} is not the key of {}: {source}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Making them failed.
    #[error("cannot make a TLS certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// What a coordinator serves TLS with.
#[derive(Clone)]
pub struct ServerIdentity {
    cert_pem: String,
    key_pem: Zeroizing<String>,
    hash: CertHash,
}

impl ServerIdentity {
    /// Loads the certificate and its key, or makes both if there is none yet. The key's file is
    /// readable by its owner alone.
    ///
    /// # Errors
    /// [`IdentityError`]. A certificate is never replaced: clients have pinned it.
    pub fn load_or_create(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        match (exists(cert)?, exists(key)?) {
            (true, true) => {}
            (true, false) => {
                return Err(IdentityError::KeyMissing {
                    cert: cert.to_owned(),
                    key: key.to_owned(),
                });
            }
            (false, false) => {
                let pair = KeyPair::generate()?;
                write(key, &Zeroizing::new(pair.serialize_pem()), 0o600)?;
                write(cert, &self_signed(&pair)?, 0o644)?;
            }
            // A first start that was interrupted: nobody has seen a certificate of this key.
            (false, true) => {
                let pair = KeyPair::from_pem(&read_key(key)?);
                let pair = pair.map_err(|error| damaged(key, error))?;
                write(cert, &self_signed(&pair)?, 0o644)?;
            }
        }
        Self::load(cert, key)
    }

    fn load(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let cert_pem = fs::read_to_string(cert).map_err(|source| io_error(cert, source))?;
        let key_pem = read_key(key)?;
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes());
        let der = der.map_err(|error| damaged(cert, error))?;
        let hash = CertHash::of(&der);
        let secret = PrivateKeyDer::from_pem_slice(key_pem.as_bytes());
        let secret = secret.map_err(|error| damaged(key, error))?;
        check_pair(der, secret).map_err(|source| IdentityError::Mismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
            source,
        })?;
        Ok(Self {
            cert_pem,
            key_pem,
            hash,
        })
    }

    /// The hash that clients pin.
    #[must_use]
    pub const fn hash(&self) -> CertHash {
        self.hash
    }

    pub(super) fn to_tonic(&self) -> tonic::transport::Identity {
        tonic::transport::Identity::from_pem(&self.cert_pem, self.key_pem.as_bytes())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerIdentity({})", self.hash)
    }
}

fn self_signed(pair: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, "superscalar coordinator");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.self_signed(pair)?.pem())
}

/// rustls compares the public keys when it makes a configuration of the two.
fn check_pair(
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)?;
    Ok(())
}

fn read_key(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    let metadata = fs::metadata(path).map_err(|source| io_error(path, source))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(IdentityError::KeyExposed {
            path: path.to_owned(),
        });
    }
    let text = fs::read_to_string(path).map_err(|source| io_error(path, source))?;
    Ok(Zeroizing::new(text))
}

fn exists(path: &Path) -> Result<bool, IdentityError> {
    path.try_exists().map_err(|source| io_error(path, source))
}

/// Writes a file that is there whole or not at all, also after a power cut.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    written
        .and_then(|()| {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, path)?;
            match path.parent() {
                Some(dir) if dir != Path::new("") => File::open(dir)?.sync_all(),
                _ => Ok(()),
            }
        })
        .map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io {
        path: path.to_owned(),
        source,
    }
}

fn damaged(path: &Path, error: impl fmt::Display) -> IdentityError {
    IdentityError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
