//! How our types stand in the database.

use bitcoin::consensus::encode;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{ecdsa, schnorr};
use bitcoin::{OutPoint, Transaction, Txid};
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Result, StoreError};

/// Compact ECDSA and BIP-340 signatures alike.
const SIGNATURE: usize = 64;

pub(super) fn json<T: Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::value(what, error))
}

pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| StoreError::value(what, error))
}

pub(super) fn int(what: &'static str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|error| StoreError::value(what, error))
}

/// A channel's number may be any 64 bits: it is stored as its signed twin.
pub(super) const fn twin(number: u64) -> i64 {
    i64::from_be_bytes(number.to_be_bytes())
}

pub(super) const fn untwin(number: i64) -> u64 {
    u64::from_be_bytes(number.to_be_bytes())
}

pub(super) fn number<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T> {
    T::try_from(value).map_err(|_| StoreError::value(what, value))
}

pub(super) fn optional<T: TryFrom<i64>>(
    what: &'static str,
    value: Option<i64>,
) -> Result<Option<T>> {
    value.map(|value| number(what, value)).transpose()
}

pub(super) fn factory(bytes: &[u8]) -> Result<FactoryId> {
    FactoryId::try_from(bytes).map_err(|error| StoreError::value("factory id", error))
}

pub(super) fn ceremony(bytes: &[u8]) -> Result<CeremonyId> {
    CeremonyId::try_from(bytes).map_err(|error| StoreError::value("ceremony id", error))
}

pub(super) fn client(bytes: &[u8]) -> Result<ClientId> {
    ClientId::try_from(bytes).map_err(|error| StoreError::value("client id", error))
}

pub(super) fn attempt(value: i64) -> Result<Attempt> {
    number("attempt", value).map(Attempt)
}

pub(super) fn txid(bytes: &[u8]) -> Result<Txid> {
    Txid::from_slice(bytes).map_err(|error| StoreError::value("transaction id", error))
}

pub(super) fn outpoint(txid_bytes: &[u8], vout: i64) -> Result<OutPoint> {
    Ok(OutPoint::new(
        txid(txid_bytes)?,
        number("output index", vout)?,
    ))
}

pub(super) fn bytes_of(txid: &Txid) -> &[u8] {
    AsRef::<[u8; 32]>::as_ref(txid)
}

pub(super) fn transaction(bytes: &[u8]) -> Result<Transaction> {
    encode::deserialize(bytes).map_err(|error| StoreError::value("transaction", error))
}

pub(super) fn schnorr_blob(signatures: &[schnorr::Signature]) -> Vec<u8> {
    signatures
        .iter()
        .flat_map(|signature| signature.serialize())
        .collect()
}

pub(super) fn ecdsa_blob(signatures: &[ecdsa::Signature]) -> Vec<u8> {
    signatures
        .iter()
        .flat_map(ecdsa::Signature::serialize_compact)
        .collect()
}

pub(super) fn schnorr_signatures(blob: &[u8]) -> Result<Vec<schnorr::Signature>> {
    each_signature(blob, schnorr::Signature::from_slice)
}

pub(super) fn ecdsa_signatures(blob: &[u8]) -> Result<Vec<ecdsa::Signature>> {
    each_signature(blob, ecdsa::Signature::from_compact)
}

fn each_signature<T, E: std::fmt::Display>(
    blob: &[u8],
    parse: fn(&[u8]) -> Result<T, E>,
) -> Result<Vec<T>> {
    if !blob.len().is_multiple_of(SIGNATURE) {
        return Err(StoreError::value(
            "list of signatures",
            format!("{} bytes", blob.len()),
        ));
    }
    let parsed = blob.chunks_exact(SIGNATURE).map(parse);
    parsed
        .map(|result| result.map_err(|error| StoreError::value("signature", error)))
        .collect()
}
