//! Fixed test vectors: a release that derives anything else loses its users' money. The expected values were computed by
//! an independent implementation (BIP-39, BIP-32 and the crate's table in a page of Python, hashes from its library).

use std::collections::HashSet;

use bitcoin::Network;
use bitcoin::secp256k1::SecretKey;
use keystore::{JoinRole, KdfCost, Keys, Passphrase, Seed, random_join_nonce};

const XPRV: &str = "xprv9s21ZrQH143K4VHfAaPWRTm4aoHAZhJHunsZZTQptR82FSTZRjBGXBP8kQKHrUVUE8vMM2Z3h7UoG9x9XCt9FHQ1t1nHU7zQDqrEszAg28q";
const TPRV: &str = "tprv8ZgxMBicQKsPfJXBq9F1b7P3tvhNoDLJFLngRsqHNPcW33CeR6X22vkafaUwrqsnbaT8M8AorU4bj1VteRE64LfcQezb8UiT8wbfKg6ZvSw";

const JOIN_NONCE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const CEREMONY: [u8; 16] = [
    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
];
const FRESH: [u8; 16] = [
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
];

struct Vector {
    network: Network,
    ldk_seed: &'static str,
    join_factory: &'static str,
    join_payout: &'static str,
    factory: &'static str,
}

const VECTORS: [Vector; 5] = [
    Vector {
        network: Network::Bitcoin,
        ldk_seed: "0112d013e581ef7c3d61ef6685cafb9b0652e331f7a55b06e429caec64ab8528",
        join_factory: "3b91637a43b9a7546e0ca825994a95f43c577ef07bc2f5703ce804e03437bb7c",
        join_payout: "10b5e8bd390a31ff3f09e20ec8b196b94faf8cfd5b18d331d1f17459c17c3519",
        factory: "2c1e82aa8c9811409f7c8def35b9c518b4e4fb28f0d27aa5962707a921558b48",
    },
    Vector {
        network: Network::Testnet,
        ldk_seed: "eff89c06cad87e11bf43b7fdbafd852f81f10f9f8f534a655f7812fcfd1d7670",
        join_factory: "a7cacfbc097b950518cda3fa4c1c7be7c91ad9ca45e4d87ab809c9564a842da7",
        join_payout: "2baeb0130673226852fb3d7e8ca08b43375af7e9b1fcd8e4a266aca41479771f",
        factory: "4fb8f44d36e746af622d5cedcab78cdb81d1e3850c73c03af4a6b9c336a682a0",
    },
    Vector {
        network: Network::Testnet4,
        ldk_seed: "e019cb961a7d72a64a8b90a14422478e0b885a61beff1109f4e3113868edf282",
        join_factory: "831f28f4b80844899f6c2cb15c55dd0e04a5090286d0f863ae369920b558e847",
        join_payout: "7e18c9387619838b6bc9018c680990c46b4f8e0d60987d8d6d3a92e186cfe34f",
        factory: "1df35afab72afac811a3e22bcfe8974a631ab3980c5cd2189fc9dfecdb0390c7",
    },
    Vector {
        network: Network::Signet,
        ldk_seed: "981b1667b20e3e68e2e3e55ae291b9d05974e96ddc45928940dfd41ac688bfc9",
        join_factory: "f37e04ad1a8c4ada77cf8355714c24bb2cbf086d448e812cd4956621ec6d7bd1",
        join_payout: "0456daf9ae5644c508f590288e627cb01926dcfb1995752f57c9bed6ff2f3914",
        factory: "e591532534018b479e1f35636ca756b25a5c55c7487821a4172042dce105b11f",
    },
    Vector {
        network: Network::Regtest,
        ldk_seed: "c1491fb85a85f526743a88cd361b98134db18755a9938e8ec2cca058d8455ff4",
        join_factory: "50f3358335fea6454a63b22a3eefd131b59ded9725b47d0fb43cf9a08bce2eb0",
        join_payout: "09a1133680e580aa9d3d5e0f17c41737c858cfeb11207bb169e569ee0a6c8311",
        factory: "ebb93f6695599dd9417e3948b3cc550e6c6d0d57d92c79ea74590c139c03ae45",
    },
];

/// BIP-39's own vector of all-zero entropy, in our file format and through a real file.
fn seed() -> Seed {
    let dir = tempfile::tempdir().unwrap();
    let words = format!("{}art", "abandon ".repeat(23));
    let passphrase = Passphrase::new("x".to_owned()).unwrap();
    Seed::restore(
        dir.path().join("seed.json"),
        &words,
        &passphrase,
        KdfCost::Light,
    )
    .unwrap();
    Seed::open(dir.path().join("seed.json"), &passphrase).unwrap()
}

fn hex(key: &SecretKey) -> String {
    hex::encode(key.secret_bytes())
}

#[test]
fn every_derivation_is_fixed() {
    let seed = seed();
    for vector in &VECTORS {
        let keys = seed.keys(vector.network).unwrap();
        let network = vector.network;
        assert_eq!(keys.network(), network);
        assert_eq!(hex::encode(*keys.ldk_seed()), vector.ldk_seed, "{network}");
        assert_eq!(
            hex(&keys.join_secret(JOIN_NONCE, JoinRole::Factory)),
            vector.join_factory,
            "{network}"
        );
        assert_eq!(
            hex(&keys.join_secret(JOIN_NONCE, JoinRole::Payout)),
            vector.join_payout,
            "{network}"
        );
        assert_eq!(
            hex(&keys.factory_secret(CEREMONY, 7, FRESH)),
            vector.factory,
            "{network}"
        );
        let expected = if network == Network::Bitcoin {
            XPRV
        } else {
            TPRV
        };
        assert_eq!(keys.wallet_xpriv().to_string(), expected, "{network}");
    }
}

fn all(keys: &Keys) -> Vec<[u8; 32]> {
    let mut other_nonce = JOIN_NONCE;
    other_nonce[15] ^= 1;
    let mut other_ceremony = CEREMONY;
    other_ceremony[0] ^= 1;
    let mut other_fresh = FRESH;
    other_fresh[15] ^= 1;
    let scalars = [
        keys.join_secret(JOIN_NONCE, JoinRole::Factory),
        keys.join_secret(JOIN_NONCE, JoinRole::Payout),
        keys.join_secret(other_nonce, JoinRole::Factory),
        keys.join_secret(other_nonce, JoinRole::Payout),
        keys.factory_secret(CEREMONY, 7, FRESH),
        keys.factory_secret(CEREMONY, 8, FRESH),
        keys.factory_secret(other_ceremony, 7, FRESH),
        keys.factory_secret(CEREMONY, 7, other_fresh),
    ];
    scalars
        .iter()
        .map(SecretKey::secret_bytes)
        .chain([*keys.ldk_seed()])
        .collect()
}

#[test]
fn no_key_serves_twice() {
    let seed = seed();
    let networks = VECTORS
        .iter()
        .map(|vector| seed.keys(vector.network).unwrap());
    let keys: Vec<_> = networks.flat_map(|keys| all(&keys)).collect();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    assert_eq!(keys.len(), 45);
}

#[test]
fn join_nonces_are_drawn_anew() {
    let mut rng = rand::rngs::OsRng;
    assert_ne!(random_join_nonce(&mut rng), random_join_nonce(&mut rng));
}
