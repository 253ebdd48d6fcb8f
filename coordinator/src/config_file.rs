//! The configuration file that `init` writes: the shipped one, documentation and all, with what was chosen.

use toml::{Table, Value};

use crate::config::{DEFAULT_FILE, Overrides};

/// The file for these choices.
///
/// # Errors
/// A value that TOML cannot hold: a path that is not UTF-8.
pub fn render(chosen: &Overrides) -> Result<String, toml::ser::Error> {
    let chosen = Table::try_from(chosen)?;
    let mut table = String::new();
    let mut file = String::with_capacity(DEFAULT_FILE.len());
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut table);
        }
        match replaced(&chosen, &table, line) {
            Some(text) => file.push_str(&text),
            None => file.push_str(line),
        }
        file.push('\n');
    }
    Ok(file)
}

/// The line with the chosen value, if its key (a commented one, too) was chosen.
fn replaced(chosen: &Table, table: &str, line: &str) -> Option<String> {
    let (key, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    let within = match table {
        "" => chosen,
        name => chosen.get(name)?.as_table()?,
    };
    match within.get(key)? {
        Value::Table(_) => None,
        value => Some(format!("{key} = {value}")),
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;

    use super::*;
    use crate::config::{ChainOverrides, Config, Kdf};

    fn everything() -> Overrides {
        Overrides {
            network: Some(Network::Regtest),
            listen: Some("127.0.0.1:2".parse().unwrap()),
            public_address: Some("lsp.example:1".to_owned()),
            lightning_listen: Some("127.0.0.1:3".parse().unwrap()),
            lightning_public_address: Some("lsp.example:3".to_owned()),
            tls: Some(false),
            passphrase_file: Some("/a \"quoted\" path".into()),
            kdf: Some(Kdf::Light),
            chain: ChainOverrides {
                rpc_url: Some("http://127.0.0.1:1".to_owned()),
                rpc_cookie: Some("/cookie".into()),
                rpc_user: Some("me".to_owned()),
                rpc_password_file: Some("/password".into()),
                poll_ms: Some(7),
                scan_from_height: Some(9),
            },
        }
    }

    #[test]
    fn every_choice_is_in_the_written_file() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = everything();
        let text = render(&chosen).unwrap();
        std::fs::write(dir.path().join("coordinator.toml"), &text).unwrap();
        let read = Config::load(dir.path(), None, &Overrides::default()).unwrap();
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(read, Config::load(empty.path(), None, &chosen).unwrap());
        // And all the rest with its documentation.
        assert_eq!(text.lines().count(), DEFAULT_FILE.lines().count());
        assert!(text.contains("\n# Seconds clients have to join"));
    }

    #[test]
    fn without_choices_it_is_the_shipped_file() {
        assert_eq!(render(&Overrides::default()).unwrap(), DEFAULT_FILE);
    }
}
