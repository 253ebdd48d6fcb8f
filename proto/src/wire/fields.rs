//! Single fields and lists of things of one size.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, ecdsa, schnorr};
use bitcoin::{Amount, ScriptBuf, Txid};
use bytes::{Bytes, BytesMut};
use factory_tree::musig::{AggregateNonce, PartialSignature, PublicNonce};

use super::{MAX_SCRIPT_BYTES, MAX_TEXT_BYTES, MIN_CAPACITY_SAT, WireError};

pub(crate) const KEY: usize = 33;
pub(crate) const NONCE: usize = 66;
pub(crate) const PARTIAL: usize = 32;
pub(crate) const SIGNATURE: usize = 64;
pub(crate) const P2TR: usize = 34;

pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { field })
}

pub(crate) fn fixed<const N: usize>(
    field: &'static str,
    bytes: &[u8],
) -> Result<[u8; N], WireError> {
    <[u8; N]>::try_from(bytes).map_err(|_| WireError::Length {
        field,
        found: bytes.len(),
        expected: N,
    })
}

/// Cuts a list into its items, once their number is known to be bearable.
pub(crate) fn items<'a, const N: usize>(
    field: &'static str,
    bytes: &'a [u8],
    max: usize,
) -> Result<&'a [[u8; N]], WireError> {
    let (items, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(WireError::Ragged {
            field,
            found: bytes.len(),
            item: N,
        });
    }
    at_most(field, items.len(), max, "entries")?;
    Ok(items)
}

pub(crate) fn at_most(
    field: &'static str,
    found: usize,
    max: usize,
    unit: &'static str,
) -> Result<(), WireError> {
    if found <= max {
        return Ok(());
    }
    Err(WireError::TooMany {
        field,
        found,
        max,
        unit,
    })
}

/// Parses every item of a list; `wrong` makes the error from the index.
pub(crate) fn parse_all<const N: usize, T, E>(
    items: &[[u8; N]],
    parse: impl Fn(&[u8]) -> Result<T, E>,
    wrong: impl Fn(usize) -> WireError,
) -> Result<Vec<T>, WireError> {
    let parsed = items.iter().enumerate();
    parsed
        .map(|(index, item)| parse(item).map_err(|_| wrong(index)))
        .collect()
}

/// Puts items one after another.
pub(crate) fn joined<const N: usize>(items: impl ExactSizeIterator<Item = [u8; N]>) -> Bytes {
    let mut out = BytesMut::with_capacity(items.len().saturating_mul(N));
    for item in items {
        out.extend_from_slice(&item);
    }
    out.freeze()
}

pub(crate) fn copied(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

/// A compressed public key: `secp256k1` alone would also take 65 bytes.
pub(crate) fn public_key(field: &'static str, bytes: &[u8]) -> Result<PublicKey, WireError> {
    let bytes = fixed::<KEY>(field, bytes)?;
    PublicKey::from_slice(&bytes).map_err(|_| WireError::Point { field, index: 0 })
}

pub(crate) fn public_keys(
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<Vec<PublicKey>, WireError> {
    let items = items::<KEY>(field, bytes, max)?;
    parse_all(items, PublicKey::from_slice, |index| WireError::Point {
        field,
        index,
    })
}

pub(crate) fn public_nonces(
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<Vec<PublicNonce>, WireError> {
    let items = items::<NONCE>(field, bytes, max)?;
    parse_all(items, PublicNonce::from_bytes, |index| WireError::Scalar {
        field,
        index,
    })
}

pub(crate) fn aggregate_nonces(
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<Vec<AggregateNonce>, WireError> {
    let items = items::<NONCE>(field, bytes, max)?;
    parse_all(items, AggregateNonce::from_bytes, |index| {
        WireError::Scalar { field, index }
    })
}

pub(crate) fn partial_signatures(
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<Vec<PartialSignature>, WireError> {
    let items = items::<PARTIAL>(field, bytes, max)?;
    parse_all(items, PartialSignature::from_bytes, |index| {
        WireError::Scalar { field, index }
    })
}

pub(crate) fn schnorr_signatures(
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<Vec<schnorr::Signature>, WireError> {
    let items = items::<SIGNATURE>(field, bytes, max)?;
    parse_all(items, schnorr::Signature::from_slice, |index| {
        WireError::Scalar { field, index }
    })
}

pub(crate) fn schnorr_signature(
    field: &'static str,
    bytes: &[u8],
) -> Result<schnorr::Signature, WireError> {
    let bytes = fixed::<SIGNATURE>(field, bytes)?;
    schnorr::Signature::from_slice(&bytes).map_err(|_| WireError::Scalar { field, index: 0 })
}

pub(crate) fn ecdsa_signature(
    field: &'static str,
    bytes: &[u8],
) -> Result<ecdsa::Signature, WireError> {
    let bytes = fixed::<SIGNATURE>(field, bytes)?;
    ecdsa::Signature::from_compact(&bytes).map_err(|_| WireError::Scalar { field, index: 0 })
}

pub(crate) fn txid(field: &'static str, bytes: &[u8]) -> Result<Txid, WireError> {
    fixed(field, bytes).map(Txid::from_byte_array)
}

pub(crate) fn txid_bytes(txid: Txid) -> Bytes {
    copied(txid.to_byte_array())
}

pub(crate) fn amount(field: &'static str, sat: u64) -> Result<Amount, WireError> {
    let amount = Amount::from_sat(sat);
    if amount > Amount::MAX_MONEY {
        return Err(WireError::AmountTooLarge { field, sat });
    }
    Ok(amount)
}

pub(crate) fn capacity(field: &'static str, sat: u64) -> Result<Amount, WireError> {
    if sat < MIN_CAPACITY_SAT {
        return Err(WireError::AmountTooSmall {
            field,
            sat,
            min: MIN_CAPACITY_SAT,
        });
    }
    amount(field, sat)
}

pub(crate) fn script(field: &'static str, bytes: &[u8]) -> Result<ScriptBuf, WireError> {
    at_most(field, bytes.len(), MAX_SCRIPT_BYTES, "bytes")?;
    Ok(ScriptBuf::from_bytes(bytes.to_vec()))
}

pub(crate) fn payout_script(
    field: &'static str,
    index: usize,
    bytes: &[u8],
) -> Result<ScriptBuf, WireError> {
    let script = ScriptBuf::from_bytes(bytes.to_vec());
    if script.is_p2tr() {
        return Ok(script);
    }
    Err(WireError::Script { field, index })
}

pub(crate) fn narrow<T: TryFrom<u32>>(
    field: &'static str,
    value: u32,
    max: u64,
) -> Result<T, WireError> {
    T::try_from(value).map_err(|_| WireError::OutOfRange {
        field,
        value: value.into(),
        max,
    })
}

/// A text from the other side. It ends up in logs and terminals, so control characters are taken out.
pub(crate) fn text(field: &'static str, text: String) -> Result<String, WireError> {
    at_most(field, text.len(), MAX_TEXT_BYTES, "bytes")?;
    if !text.contains(char::is_control) {
        return Ok(text);
    }
    Ok(text.replace(char::is_control, "\u{fffd}"))
}

/// A text to the other side, cut to what it takes.
pub(crate) fn short(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default().to_owned()
}
