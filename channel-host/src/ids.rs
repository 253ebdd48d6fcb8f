//! Channel ids: what LDK calls `user_channel_id`, and the `channel_keys_id` that follows from it.

use bitcoin::hashes::{Hash, HashEngine, sha256};

/// Where `KeysManager` puts its starting time. [`crate::LeafKeys`] starts it with a smaller number, so no ordinary channel
/// ever gets the `channel_keys_id` of a leaf.
pub(crate) const LEAF_MARK: [u8; 8] = *b"SSLEAF01";

/// Whether a channel id stands for a leaf. Leaf ids are hashes of 128 bits; ordinary channels take ids below 2^64.
///
/// An id on the wrong side is no danger (it gives keys of its own either way), as long as it is not used twice.
pub const fn is_leaf(user_channel_id: u128) -> bool {
    user_channel_id >> 64 != 0
}

/// The coordinator's channel id of a leaf: the client chose `leaf_id`, so the coordinator mixes in 16 bytes of its own,
/// `fresh`, drawn for this leaf and stored before the id is used. A client that repeats a leaf id, or a coordinator
/// restored from a backup, then still meets no key twice.
pub fn lsp_channel_id(leaf_id: [u8; 16], fresh: [u8; 16]) -> u128 {
    // BIP-340's tagged hash.
    let tag = sha256::Hash::hash(b"superscalar/lsp/channel").to_byte_array();
    let mut engine = sha256::Hash::engine();
    engine.input(&tag);
    engine.input(&tag);
    engine.input(&leaf_id);
    engine.input(&fresh);
    let hash = sha256::Hash::from_engine(engine).to_byte_array();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(id)
}

/// The `channel_keys_id` of a leaf, a pure function of its channel id: no counter and no clock, so that it is known before
/// the channel is opened and comes out the same after any restart.
pub(crate) fn keys_id(leaf: u128) -> [u8; 32] {
    let leaf = leaf.to_be_bytes();
    let hash = sha256::Hash::hash(&leaf).to_byte_array();
    let mut id = [0; 32];
    // LDK reads bytes 4..8 as a hardened child index.
    id[4..8].copy_from_slice(&hash[..4]);
    id[8..16].copy_from_slice(&LEAF_MARK);
    id[16..].copy_from_slice(&leaf);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fixed() {
        // Computed apart, with Python's hashlib. Changing one loses the money of every leaf there is.
        let id = lsp_channel_id([1; 16], [2; 16]);
        assert_eq!(format!("{id:032x}"), "e2f17de29c75faced561aa735434a30b");
        let expected = "00000000be45cb2653534c4541463031000102030405060708090a0b0c0d0e0f";
        assert_eq!(
            hex::encode(keys_id(0x000102030405060708090a0b0c0d0e0f)),
            expected
        );
    }

    #[test]
    fn both_sides_make_the_lsps_id() {
        let id = lsp_channel_id([1; 16], [2; 16]);
        assert_ne!(id, lsp_channel_id([1; 16], [3; 16]));
        assert_ne!(id, lsp_channel_id([3; 16], [2; 16]));
    }

    #[test]
    fn ordinary_ids_are_small() {
        assert!(!is_leaf(0) && !is_leaf(u128::from(u64::MAX)));
        assert!(is_leaf(1 << 64) && is_leaf(u128::MAX));
    }
}
