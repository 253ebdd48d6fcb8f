//! Which crate may use which: dependencies point downwards only.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

/// Each of our crates, and those of ours that it may depend on outside tests.
const LAYERS: &[(&str, &[&str])] = &[
    ("factory-tree", &[]),
    ("chain", &[]),
    ("keystore", &["factory-tree"]),
    ("proto", &["factory-tree"]),
    ("channel-host", &["chain", "factory-tree", "keystore"]),
    (
        "coordinator",
        &["chain", "channel-host", "factory-tree", "keystore", "proto"],
    ),
    (
        "signer-client",
        &["chain", "channel-host", "factory-tree", "keystore", "proto"],
    ),
];

/// What the protocol must not know of: no IO, no clock, no network, no database, no Lightning.
const FOREIGN_TO_FACTORY_TREE: &[&str] = &[
    "tokio",
    "tonic",
    "prost",
    "sqlx",
    "lightning",
    "bitcoincore-rpc",
    "bdk_wallet",
    "rand",
];

fn dependencies(name: &str) -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
        .join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let manifest: toml::Table = text.parse()?;
    let listed = manifest.get("dependencies").and_then(toml::Value::as_table);
    Ok(listed
        .map(|table| table.keys().cloned().collect())
        .unwrap_or_default())
}

#[test]
fn dependencies_point_downwards_only() -> Result<()> {
    for (name, allowed) in LAYERS {
        for used in dependencies(name)? {
            let ours = LAYERS.iter().any(|(known, _)| *known == used);
            assert!(
                !ours || allowed.contains(&used.as_str()),
                "{name} must not depend on {used}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_protocol_knows_nothing_of_the_world() -> Result<()> {
    let used = dependencies("factory-tree")?;
    for foreign in FOREIGN_TO_FACTORY_TREE {
        assert!(
            !used.contains(*foreign),
            "factory-tree must not depend on {foreign}"
        );
    }
    Ok(())
}
