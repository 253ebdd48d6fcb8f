//! BIP-327 (MuSig2) by the `musig2` crate, behind one small trait, so that the tests can hold it
//! against a second implementation and a later one can replace it.

use core::fmt;

use bitcoin::secp256k1::{PublicKey, SecretKey, XOnlyPublicKey, schnorr};
use bitcoin::taproot::TapNodeHash;
use musig2::secp::{MaybeScalar, Point, Scalar};
use musig2::{AggNonce, BinaryEncoding, KeyAggContext, PubNonce, SecNonce};
use zeroize::Zeroizing;

/// A message to sign: a BIP-341 key-path sighash.
pub type Message = [u8; 32];
/// A secret nonce as BIP-327 serialises it: two scalars and the signer's key.
pub type SecretNonceBytes = Zeroizing<[u8; 97]>;

/// What went wrong with keys, nonces or signatures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MusigError {
    /// No keys, or keys that cancel each other.
    #[error("these public keys have no aggregate")]
    NoAggregate,
    /// Not two points on the curve.
    #[error("malformed public nonce")]
    BadNonce,
    /// Not a scalar below the group order.
    #[error("malformed partial signature")]
    BadPartial,
    /// The signer's key is not in the group, or the nonce is another key's.
    #[error("this key is not a signer of the session")]
    NotASigner,
    /// The aggregate does not verify.
    #[error("the aggregate signature does not verify")]
    BadAggregate,
}

/// One signer's public nonce (BIP-327, 66 bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct PublicNonce(PubNonce);

/// The sum of all signers' public nonces (BIP-327, 66 bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct AggregateNonce(AggNonce);

/// One signer's share of a signature (32 bytes).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PartialSignature(MaybeScalar);

impl PublicNonce {
    /// Parses 66 bytes.
    ///
    /// # Errors
    /// When they are not two points.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MusigError> {
        PubNonce::from_bytes(bytes)
            .map(Self)
            .map_err(|_| MusigError::BadNonce)
    }

    /// The 66 bytes of BIP-327.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 66] {
        self.0.to_bytes()
    }
}

impl AggregateNonce {
    /// Sums the nonces of all signers.
    #[must_use]
    pub fn sum<'a>(nonces: impl IntoIterator<Item = &'a PublicNonce>) -> Self {
        Self(AggNonce::sum(nonces.into_iter().map(|nonce| &nonce.0)))
    }

    /// Parses 66 bytes.
    ///
    /// # Errors
    /// When they are not two points (or infinity).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MusigError> {
        AggNonce::from_bytes(bytes)
            .map(Self)
            .map_err(|_| MusigError::BadNonce)
    }

    /// The 66 bytes of BIP-327.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 66] {
        self.0.to_bytes()
    }
}

impl PartialSignature {
    /// Parses 32 bytes.
    ///
    /// # Errors
    /// When they are not below the group order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MusigError> {
        MaybeScalar::from_slice(bytes)
            .map(Self)
            .map_err(|_| MusigError::BadPartial)
    }

    /// The 32 bytes of BIP-327.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.serialize()
    }
}

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.to_bytes()))
            }
        }
    )*};
}
hex_debug!(PublicNonce, AggregateNonce, PartialSignature);

/// The BIP-327 operations of one group of signers.
pub trait Bip327: Sized {
    /// KeyAgg over `keys`, in this order.
    ///
    /// # Errors
    /// [`MusigError::NoAggregate`].
    fn aggregate(keys: &[PublicKey]) -> Result<Self, MusigError>;
    /// The same group under the BIP-341 tweak by `root` (or the empty tweak of BIP-86).
    ///
    /// # Errors
    /// [`MusigError::NoAggregate`] when the tweak cancels the key.
    fn taproot(&self, root: Option<TapNodeHash>) -> Result<Self, MusigError>;
    /// The (tweaked) aggregate key.
    fn key(&self) -> XOnlyPublicKey;
    /// NonceGen: `seed` must be fresh from a cryptographic source.
    fn nonce(seed: [u8; 32], secret: &SecretKey, extra: &[u8]) -> (SecretNonceBytes, PublicNonce);
    /// Sign, then PartialSigVerify.
    ///
    /// # Errors
    /// [`MusigError::NotASigner`].
    fn sign(
        &self,
        secret: &SecretKey,
        nonce: SecretNonceBytes,
        sum: &AggregateNonce,
        message: &Message,
    ) -> Result<PartialSignature, MusigError>;
    /// PartialSigVerify.
    fn verify(
        &self,
        signer: &PublicKey,
        nonce: &PublicNonce,
        sum: &AggregateNonce,
        message: &Message,
        partial: &PartialSignature,
    ) -> bool;
    /// The secret key of the (tweaked) aggregate, from every signer's in key-aggregation order.
    ///
    /// # Errors
    /// [`MusigError::NotASigner`] when they are not the signers' secrets.
    fn secret(&self, secrets: &[SecretKey]) -> Result<SecretKey, MusigError>;
    /// PartialSigAgg. The result is not verified.
    fn combine(
        &self,
        sum: &AggregateNonce,
        message: &Message,
        partials: &[PartialSignature],
    ) -> Result<schnorr::Signature, MusigError>;
}

/// The `musig2` crate's implementation.
#[derive(Clone)]
pub struct Group {
    context: KeyAggContext,
    key: XOnlyPublicKey,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Group({} keys -> {})",
            self.context.pubkeys().len(),
            self.key
        )
    }
}

impl Bip327 for Group {
    fn aggregate(keys: &[PublicKey]) -> Result<Self, MusigError> {
        if keys.is_empty() {
            return Err(MusigError::NoAggregate);
        }
        let points: Result<Vec<Point>, _> = keys.iter().map(point).collect();
        let context = KeyAggContext::new(points?).map_err(|_| MusigError::NoAggregate)?;
        Self::new(context)
    }

    fn taproot(&self, root: Option<TapNodeHash>) -> Result<Self, MusigError> {
        use bitcoin::hashes::Hash;
        let untweaked = self.context.clone();
        let tweaked = match root {
            Some(root) => untweaked.with_taproot_tweak(&root.to_byte_array()),
            None => untweaked.with_unspendable_taproot_tweak(),
        };
        Self::new(tweaked.map_err(|_| MusigError::NoAggregate)?)
    }

    fn key(&self) -> XOnlyPublicKey {
        self.key
    }

    fn nonce(seed: [u8; 32], secret: &SecretKey, extra: &[u8]) -> (SecretNonceBytes, PublicNonce) {
        let nonce = SecNonce::build_with_seckey(seed, scalar(secret))
            .with_extra_input(&extra)
            .build();
        let public = PublicNonce(nonce.public_nonce());
        (Zeroizing::new(nonce.to_bytes()), public)
    }

    fn sign(
        &self,
        secret: &SecretKey,
        nonce: SecretNonceBytes,
        sum: &AggregateNonce,
        message: &Message,
    ) -> Result<PartialSignature, MusigError> {
        let nonce = SecNonce::from_bytes(nonce.as_slice()).map_err(|_| MusigError::BadNonce)?;
        musig2::sign_partial(&self.context, scalar(secret), nonce, &sum.0, message)
            .map(PartialSignature)
            .map_err(|_| MusigError::NotASigner)
    }

    fn verify(
        &self,
        signer: &PublicKey,
        nonce: &PublicNonce,
        sum: &AggregateNonce,
        message: &Message,
        partial: &PartialSignature,
    ) -> bool {
        let Ok(signer) = point(signer) else {
            return false;
        };
        musig2::verify_partial(&self.context, partial.0, &sum.0, signer, &nonce.0, message).is_ok()
    }

    fn secret(&self, secrets: &[SecretKey]) -> Result<SecretKey, MusigError> {
        if secrets.len() != self.context.pubkeys().len() {
            return Err(MusigError::NotASigner);
        }
        // The crate checks that the sum is the aggregate's secret.
        let sum: Result<musig2::secp::Scalar, _> =
            self.context.aggregated_seckey(secrets.iter().map(scalar));
        let bytes = Zeroizing::new(sum.map_err(|_| MusigError::NotASigner)?.serialize());
        SecretKey::from_slice(bytes.as_slice()).map_err(|_| MusigError::NotASigner)
    }

    fn combine(
        &self,
        sum: &AggregateNonce,
        message: &Message,
        partials: &[PartialSignature],
    ) -> Result<schnorr::Signature, MusigError> {
        self.challenge(sum, message).combine(self, partials)
    }
}

/// What all signers of one session share once the nonces are known.
pub(crate) struct Challenge {
    nonce_coefficient: MaybeScalar,
    nonce: Point,
    challenge: MaybeScalar,
}

impl Group {
    fn new(context: KeyAggContext) -> Result<Self, MusigError> {
        let point: Point = context.aggregated_pubkey();
        let key = x_only(&point).ok_or(MusigError::NoAggregate)?;
        Ok(Self { context, key })
    }

    /// Whether the aggregate has an odd Y.
    pub(crate) fn is_odd(&self) -> bool {
        let key: Point = self.context.aggregated_pubkey();
        key.has_odd_y()
    }

    pub(crate) fn challenge(&self, sum: &AggregateNonce, message: &Message) -> Challenge {
        let key: Point = self.context.aggregated_pubkey();
        let nonce_coefficient: MaybeScalar = sum.0.nonce_coefficient(key, message);
        let nonce: Point = sum.0.final_nonce(nonce_coefficient);
        let challenge =
            musig2::compute_challenge_hash_tweak(&nonce.serialize_xonly(), &key, message);
        Challenge {
            nonce_coefficient,
            nonce,
            challenge,
        }
    }
}

impl Challenge {
    /// BIP-327 Sign without the closing PartialSigVerify, for the party that signs last and
    /// verifies the aggregate before anybody sees it. `odd_untweaked`: whether the aggregate key
    /// before its one x-only tweak has an odd Y, which is BIP-327's `gacc`.
    #[allow(clippy::arithmetic_side_effects)] // group arithmetic cannot overflow
    pub(crate) fn sign_last(
        &self,
        group: &Group,
        odd_untweaked: bool,
        signer: &LastSigner,
        nonce: SecretNonceBytes,
    ) -> Result<PartialSignature, MusigError> {
        let nonce = SecNonce::from_bytes(nonce.as_slice()).map_err(|_| MusigError::BadNonce)?;
        let (k1, k2) = split(&nonce)?;
        let coefficient = group
            .context
            .key_coefficient(signer.public)
            .ok_or(MusigError::NotASigner)?;
        let key: Point = group.context.aggregated_pubkey();
        let odd = u8::from(odd_untweaked);
        let d = signer.secret.negate_if(key.parity() ^ odd.into());
        let k = (k1 + self.nonce_coefficient * k2).negate_if(self.nonce.parity());
        Ok(PartialSignature(k + self.challenge * coefficient * d))
    }

    #[allow(clippy::arithmetic_side_effects)] // group arithmetic cannot overflow
    pub(crate) fn combine(
        &self,
        group: &Group,
        partials: &[PartialSignature],
    ) -> Result<schnorr::Signature, MusigError> {
        let key: Point = group.context.aggregated_pubkey();
        let tweak = group.context.tweak_sum::<Scalar>();
        let tweak = tweak.map_or(MaybeScalar::Zero, MaybeScalar::Valid);
        let sum: MaybeScalar = partials.iter().map(|partial| partial.0).sum();
        let s = sum + (self.challenge * tweak).negate_if(key.parity());
        let mut bytes = [0u8; 64];
        let (r, rest) = bytes.split_at_mut(32);
        r.copy_from_slice(&self.nonce.serialize_xonly());
        rest.copy_from_slice(&s.serialize());
        schnorr::Signature::from_slice(&bytes).map_err(|_| MusigError::BadAggregate)
    }
}

/// The last signer's key pair, converted once for all sessions.
pub(crate) struct LastSigner {
    secret: Scalar,
    public: Point,
}

impl LastSigner {
    pub(crate) fn new(secret: &SecretKey) -> Self {
        let secret = scalar(secret);
        Self {
            public: secret.base_point_mul(),
            secret,
        }
    }
}

fn split(nonce: &SecNonce) -> Result<(Scalar, Scalar), MusigError> {
    let bytes = Zeroizing::new(nonce.to_bytes());
    let first = bytes.get(..32).and_then(|k| Scalar::from_slice(k).ok());
    let second = bytes.get(32..64).and_then(|k| Scalar::from_slice(k).ok());
    first.zip(second).ok_or(MusigError::BadNonce)
}

/// Uncompressed, because parsing a compressed point costs a square root.
fn point(key: &PublicKey) -> Result<Point, MusigError> {
    let bytes = key.serialize_uncompressed();
    musig2::secp256k1::PublicKey::from_slice(&bytes)
        .map(Point::from)
        .map_err(|_| MusigError::NoAggregate)
}

fn scalar(secret: &SecretKey) -> Scalar {
    // Both types hold a scalar in 1..n, so the fallback is unreachable.
    Scalar::from_slice(&secret.secret_bytes()).unwrap_or(Scalar::one())
}

/// Uncompressed for the same reason as in [`point`].
fn x_only(point: &Point) -> Option<XOnlyPublicKey> {
    let key = PublicKey::from_slice(&point.serialize_uncompressed()).ok()?;
    Some(key.x_only_public_key().0)
}

#[cfg(test)]
mod crosscheck;
#[cfg(test)]
mod vectors;
