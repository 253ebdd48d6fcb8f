//! Leaf keys against LDK itself.

use std::collections::HashSet;

use bitcoin::secp256k1::{PublicKey, Secp256k1};
use channel_host::{LeafKeys, funding_redeem_script, is_leaf};
use lightning::sign::{ChannelSigner, KeysManager, SignerProvider};

fn random_leaf() -> u128 {
    std::iter::repeat_with(rand::random)
        .find(|id| is_leaf(*id))
        .unwrap()
}

#[test]
fn the_fast_path_is_ldks_own_derivation() {
    let secp = Secp256k1::new();
    for _ in 0..40 {
        let seed: [u8; 32] = rand::random();
        let ours = LeafKeys::new(&seed);
        let theirs = KeysManager::new(&seed, 1_700_000_000, 42, true);
        for _ in 0..50 {
            let leaf = random_leaf();
            let id = ours.generate_channel_keys_id(rand::random(), leaf);
            let expected = theirs.derive_channel_keys(&id).funding_key(None);
            assert_eq!(
                ours.funding_secret(leaf),
                expected,
                "seed {} leaf {leaf:032x}",
                hex::encode(seed)
            );
            assert_eq!(
                ours.funding_pubkey(leaf),
                PublicKey::from_secret_key(&secp, &expected)
            );
        }
    }
}

#[test]
fn a_funding_key_is_fixed() {
    // A release that derives anything else loses every open channel.
    let keys = LeafKeys::new(&[7; 32]);
    let leaf = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;
    assert_eq!(
        keys.funding_pubkey(leaf).to_string(),
        "03353a1f8b1c76b05260fe068e755ecd03518eb6de15d86a7f0956f9c9d6e37120"
    );
}

#[test]
fn the_signer_provider_gives_the_same_key() {
    let secp = Secp256k1::new();
    let keys = LeafKeys::new(&rand::random());
    for inbound in [false, true] {
        let leaf = random_leaf();
        // What ChannelManager does, and what it does again after a restart.
        let id = keys.generate_channel_keys_id(inbound, leaf);
        let signer = keys.derive_channel_signer(id);
        assert_eq!(signer.channel_keys_id(), id);
        assert_eq!(
            signer.pubkeys(&secp).funding_pubkey,
            keys.funding_pubkey(leaf)
        );
        assert_eq!(keys.generate_channel_keys_id(!inbound, leaf), id);
    }
}

#[test]
fn keys_outlive_a_restart() {
    let seed: [u8; 32] = rand::random();
    let (before, after) = (LeafKeys::new(&seed), LeafKeys::new(&seed));
    // An ordinary id starts with a counter and the starting time: the two runs do differ in it.
    let ordinary = |keys: &LeafKeys| keys.generate_channel_keys_id(false, 1);
    assert_ne!(ordinary(&before)[4..16], ordinary(&after)[4..16]);
    for _ in 0..20 {
        let leaf = random_leaf();
        assert_eq!(before.funding_pubkey(leaf), after.funding_pubkey(leaf));
        let id = before.generate_channel_keys_id(true, leaf);
        assert_eq!(id, after.generate_channel_keys_id(true, leaf));
        let (first, second) = (
            before.derive_channel_signer(id),
            after.derive_channel_signer(id),
        );
        assert!(
            first == second,
            "all secrets of the channel, not only the funding key"
        );
    }
}

#[test]
fn ordinary_channels_never_meet_a_leafs_keys() {
    let keys = LeafKeys::new(&rand::random());
    let mut ids = HashSet::new();
    for channel in [0, 1, 1, u128::from(u64::MAX)] {
        let id = keys.generate_channel_keys_id(false, channel);
        assert_ne!(id[8..16], *b"SSLEAF01");
        assert_eq!(id[8], 0, "a starting time keeps below every leaf's mark");
        assert!(ids.insert(id), "LDK's own ids differ at every call");
    }
    assert_eq!(
        keys.generate_channel_keys_id(false, random_leaf())[8..16],
        *b"SSLEAF01"
    );
}

#[test]
fn every_leaf_and_every_seed_has_its_own_key() {
    let keys = LeafKeys::new(&rand::random());
    let leaf = random_leaf();
    let pubkeys: HashSet<_> = (0..128)
        .map(|bit| keys.funding_pubkey(leaf ^ (1 << bit)))
        .collect();
    assert_eq!(pubkeys.len(), 128);
    assert_ne!(
        keys.funding_pubkey(leaf),
        LeafKeys::new(&rand::random()).funding_pubkey(leaf)
    );
    assert_eq!(format!("{keys:?}"), "LeafKeys(..)");
}

#[test]
fn the_script_is_bolt_3s() {
    // BOLT 3, appendix B.
    let local = "023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb";
    let remote = "030e9f7b623d2ccc7c9bd44d66d5ce21ce504c0acf6385a132cec6d3c39fa711c1";
    let expected = format!("5221{local}21{remote}52ae");
    let (local, remote): (PublicKey, PublicKey) = (local.parse().unwrap(), remote.parse().unwrap());
    for script in [
        funding_redeem_script(&local, &remote),
        funding_redeem_script(&remote, &local),
    ] {
        assert_eq!(hex::encode(script.as_bytes()), expected);
    }
}

#[test]
fn the_tree_builds_the_script_ldk_will() {
    for _ in 0..50 {
        let (lsp, client) = (
            LeafKeys::new(&rand::random()),
            LeafKeys::new(&rand::random()),
        );
        let (a, b) = (
            lsp.funding_pubkey(random_leaf()),
            client.funding_pubkey(random_leaf()),
        );
        let script = funding_redeem_script(&a, &b);
        assert_eq!(factory_tree::output::channel_witness_script(&a, &b), script);
        assert_eq!(factory_tree::output::channel(&b, &a), script.to_p2wsh());
    }
}
