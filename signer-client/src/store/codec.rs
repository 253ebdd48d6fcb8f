//! Values to and from their columns.

use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::hashes::Hash;
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Result, StoreError};

/// An outpoint as 36 bytes.
pub(super) fn outpoint_bytes(outpoint: &OutPoint) -> Vec<u8> {
    serialize(outpoint)
}

/// An amount as SQLite's signed integer; every amount of bitcoin fits.
pub(super) fn sat(amount: Amount) -> i64 {
    i64::try_from(amount.to_sat()).unwrap_or(i64::MAX)
}

/// Reads columns of one row by name.
pub(super) struct Columns<'a>(pub &'a SqliteRow);

impl Columns<'_> {
    pub(super) fn bytes(&self, name: &'static str) -> Result<Vec<u8>> {
        self.get(name)
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String> {
        self.get(name)
    }

    pub(super) fn maybe_text(&self, name: &'static str) -> Result<Option<String>> {
        self.get(name)
    }

    pub(super) fn maybe_bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
        self.get(name)
    }

    pub(super) fn array<const N: usize>(&self, name: &'static str) -> Result<[u8; N]> {
        let bytes = self.bytes(name)?;
        bytes.try_into().map_err(|_| unreadable(name))
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u32> {
        let value: i64 = self.get(name)?;
        u32::try_from(value).map_err(|_| unreadable(name))
    }

    pub(super) fn maybe_number(&self, name: &'static str) -> Result<Option<u32>> {
        let value: Option<i64> = self.get(name)?;
        value
            .map(|value| u32::try_from(value).map_err(|_| unreadable(name)))
            .transpose()
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<bool> {
        Ok(self.number(name)? != 0)
    }

    pub(super) fn amount(&self, name: &'static str) -> Result<Amount> {
        Ok(Amount::from_sat(self.whole(name)?))
    }

    pub(super) fn whole(&self, name: &'static str) -> Result<u64> {
        let value: i64 = self.get(name)?;
        u64::try_from(value).map_err(|_| unreadable(name))
    }

    pub(super) fn maybe_whole(&self, name: &'static str) -> Result<Option<u64>> {
        let value: Option<i64> = self.get(name)?;
        value
            .map(|value| u64::try_from(value).map_err(|_| unreadable(name)))
            .transpose()
    }

    pub(super) fn outpoint(&self, name: &'static str) -> Result<OutPoint> {
        deserialize(&self.bytes(name)?).map_err(|_| unreadable(name))
    }

    pub(super) fn txid(&self, name: &'static str) -> Result<Txid> {
        Ok(Txid::from_byte_array(self.array(name)?))
    }

    pub(super) fn transaction(&self, name: &'static str) -> Result<Transaction> {
        deserialize(&self.bytes(name)?).map_err(|_| unreadable(name))
    }

    fn get<'r, T>(&'r self, name: &'static str) -> Result<T>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.0.try_get(name).map_err(|_| unreadable(name))
    }
}

pub(super) const fn unreadable(what: &'static str) -> StoreError {
    StoreError::Unreadable { what }
}
