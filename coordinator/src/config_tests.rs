use super::*;

fn load(file: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("coordinator.toml"), file).unwrap();
    Config::load(dir.path(), None, &Overrides::default())
}

/// Every path of a JSON object's fields, tables left out.
fn paths(prefix: &str, value: &serde_json::Value, found: &mut Vec<String>) {
    match value.as_object().filter(|fields| !fields.is_empty()) {
        Some(fields) => {
            for (name, value) in fields {
                paths(&format!("{prefix}.{name}"), value, found);
            }
        }
        None => found.push(prefix.trim_start_matches('.').to_owned()),
    }
}

/// Keys of the default file, commented ones too, with their tables.
fn documented() -> Vec<String> {
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            table = name.to_owned();
            continue;
        }
        let key = line
            .trim_start_matches("# ")
            .split_once(" = ")
            .map(|(key, _)| key);
        let is_key =
            |key: &&str| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if let Some(key) = key.filter(is_key) {
            let full = if table.is_empty() {
                key.to_owned()
            } else {
                format!("{table}.{key}")
            };
            keys.push(full);
        }
    }
    keys
}

#[test]
fn the_shipped_file_holds_every_key() {
    let config = Config::defaults().unwrap();
    let mut keys = Vec::new();
    paths("", &serde_json::to_value(&config).unwrap(), &mut keys);
    let documented = documented();
    for key in keys.iter().filter(|key| *key != "factory.set") {
        assert!(
            documented.contains(key),
            "{key} is missing in coordinator.default.toml"
        );
    }
    for key in documented
        .iter()
        .filter(|key| !key.starts_with("factory.set."))
    {
        assert!(
            keys.contains(key),
            "{key} in coordinator.default.toml is not a key"
        );
    }
}

#[test]
fn every_key_of_the_shipped_file_is_documented() {
    let mut before = "";
    for line in DEFAULT_FILE.lines() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        if is_key {
            let grouped = before.contains(" = ");
            assert!(
                before.starts_with('#') || grouped,
                "{line:?} has no comment above it"
            );
        }
        before = line;
    }
}

#[allow(clippy::result_large_err, reason = "figment's own error type")]
#[test]
fn flags_win_over_environment_and_file() {
    figment::Jail::expect_with(|jail| {
        jail.create_file(
            "coordinator.toml",
            "network = \"regtest\"\n[chain]\npoll_ms = 7\n",
        )?;
        jail.set_env("SUPERSCALAR_COORDINATOR_CHAIN__POLL_MS", "8");
        jail.set_env("SUPERSCALAR_COORDINATOR_LISTEN", "127.0.0.1:1");
        let here = jail.directory().to_owned();
        let overrides = Overrides {
            listen: Some("127.0.0.1:2".parse().unwrap()),
            ..Overrides::default()
        };
        let config = Config::load(&here, None, &overrides).unwrap();
        assert_eq!(config.network, Network::Regtest);
        assert_eq!(config.chain.poll_ms, 8);
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.confirmations(), 1);
        Ok(())
    });
}

#[test]
fn unknown_keys_and_bad_values_are_named() {
    let unknown = load("[policy]\ncapacity_mni_sat = 1\n")
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("capacity_mni_sat"), "{unknown}");
    let kind = load("[server]\nqueue = \"many\"\n")
        .unwrap_err()
        .to_string();
    assert!(kind.contains("queue"), "{kind}");
    let plain = load("tls = false\nlisten = \"0.0.0.0:1\"\n")
        .unwrap_err()
        .to_string();
    assert!(plain.contains("loopback"), "{plain}");
    let light = load("network = \"bitcoin\"\nkdf = \"light\"\n")
        .unwrap_err()
        .to_string();
    assert!(light.contains("standard"), "{light}");
    for (file, key) in [
        ("[policy]\ncapacity_min_sat = 1\n", "capacity_min_sat"),
        (
            "[policy]\ncapacity_max_sat = 2100000000000001\n",
            "capacity_max_sat",
        ),
        (
            "[policy]\ncapacity_default_sat = 1\n",
            "capacity_default_sat",
        ),
        ("[policy]\nconfirmations = 0\n", "confirmations"),
        ("[ceremony]\nmin_clients = 1\n", "min_clients"),
        ("[server]\nqueue = 1\n", "queue"),
        (
            "network = \"signet\"\n[jit]\nenabled = true\n",
            "jit.enabled",
        ),
        (
            "network = \"signet\"\n[lsps1]\nenabled = true\n",
            "lsps1.enabled",
        ),
        ("[lsps1]\nmax_sat = 16777216\n", "lsps1.max_sat"),
        ("[lsps1]\nmin_sat = 1\n", "lsps1.min_sat"),
        ("[lsps1]\nhold_blocks = 3\n", "lsps1.hold_blocks"),
        ("[lsps1]\nvalid_seconds = 0\n", "lsps1.valid_seconds"),
        ("[sales]\nmax_fee_sat = 999\n", "sales.max_fee_sat"),
        (
            "[sales]\nmax_fee_sat = 2100000000000001\n",
            "sales.max_fee_sat",
        ),
        ("[jit]\nfee_ppm = 1000000\n", "jit.fee_ppm"),
        (
            "network = \"signet\"\n[jit]\nvalid_seconds = 599\n",
            "jit.valid_seconds",
        ),
        (
            "network = \"signet\"\n[jit]\nhold_seconds = 89\n",
            "jit.hold_seconds",
        ),
        ("[jit]\nhold_seconds = 0\n", "jit.hold_seconds"),
        ("[factory.set]\nk = 9\n", "k is 9"),
        ("[factory.set]\nkk = 9\n", "kk"),
    ] {
        let error = load(file).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn a_named_file_must_exist() {
    let missing = Config::load(
        Path::new("/nonexistent"),
        Some(Path::new("/nonexistent/x.toml")),
        &Overrides::default(),
    );
    assert!(matches!(missing, Err(ConfigError::Missing { .. })));
}

#[test]
fn credentials_are_a_cookie_or_a_user() {
    let mut config = Config::defaults().unwrap();
    assert!(matches!(config.bitcoind(), Err(ConfigError::Value { .. })));
    config.chain.rpc_cookie = Some("/x/.cookie".into());
    assert!(matches!(
        config.bitcoind().unwrap().auth,
        chain::RpcAuth::CookieFile(_)
    ));
    config.chain.rpc_user = Some("u".into());
    assert!(config.bitcoind().is_err(), "both at once");
}

#[test]
fn versions_are_compared_by_number() {
    assert_eq!(parse_version("1.20.3-rc1"), Some((1, 20, 3)));
    assert!(parse_version("1.2").is_none() && parse_version("a.b.c").is_none());
    assert!(parse_version("0.10.0") > parse_version("0.9.9"));
}
