//! The client's check of the coordinator's certificate.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use crate::auth::CertHash;

/// The coordinator presented another certificate than the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator's certificate is {found}, pinned is {pinned}")]
pub struct PinMismatch {
    /// What the connection string says.
    pub pinned: CertHash,
    /// What was presented.
    pub found: CertHash,
}

/// Accepts one certificate, whatever names and dates it carries, from whoever proves to hold its key.
#[derive(Debug)]
pub struct PinnedCertificate {
    pinned: CertHash,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedCertificate {
    /// Accepts the certificate with this hash.
    #[must_use]
    pub fn new(pinned: CertHash) -> Self {
        Self {
            pinned,
            algorithms: ring::default_provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = CertHash::of(end_entity);
        if found == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = PinMismatch {
            pinned: self.pinned,
            found,
        };
        let other = CertificateError::Other(OtherError(Arc::new(mismatch)));
        Err(Error::InvalidCertificate(other))
    }

    // A certificate is public: only these two show that the other side holds its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
