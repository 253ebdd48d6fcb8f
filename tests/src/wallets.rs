//! The addresses of a service's on-chain wallet, derived from its seed: not from what it says.

use anyhow::Result;
use bitcoin::bip32::{ChildNumber, DerivationPath};
use bitcoin::key::Secp256k1;
use bitcoin::{Network, ScriptBuf};
use keystore::{Passphrase, Seed};

use crate::service::{PASSPHRASE, Service};

/// More addresses than any scenario uses.
const ADDRESSES: u32 = 200;

/// The first scripts of both chains of BIP 86's first account, with the service's name.
pub fn scripts(service: &Service) -> Result<Vec<(ScriptBuf, String)>> {
    let passphrase = Passphrase::new(PASSPHRASE.to_owned())?;
    let seed = Seed::open(service.data().join("seed.json"), &passphrase)?;
    let secp = Secp256k1::new();
    let account: DerivationPath = "m/86'/1'/0'".parse()?;
    let master = seed.keys(Network::Regtest)?.wallet_xpriv();
    let account = master.derive_priv(&secp, &account)?;
    let mut scripts = Vec::new();
    for chain in 0..2 {
        let chain = account.derive_priv(&secp, &[ChildNumber::from_normal_idx(chain)?])?;
        for index in 0..ADDRESSES {
            let key = chain.derive_priv(&secp, &[ChildNumber::from_normal_idx(index)?])?;
            let key = key.to_keypair(&secp).x_only_public_key().0;
            scripts.push((
                ScriptBuf::new_p2tr(&secp, key, None),
                service.name().to_owned(),
            ));
        }
    }
    Ok(scripts)
}
