use bitcoin::secp256k1::SecretKey;
use proptest::prelude::*;

use super::*;

fn id() -> NodeId {
    NodeId::of(&SecretKey::from_slice(&[1; 32]).unwrap())
}

fn parse(rest: &str) -> Result<Connection, ConnectionError> {
    format!("superscalar://{}@{rest}", id()).parse()
}

#[test]
fn connections_round_trip() {
    let cert = "ab".repeat(32);
    for (rest, authority) in [
        (format!("lsp.example:9735?cert={cert}"), "lsp.example:9735"),
        (format!("192.0.2.7:1?cert={cert}"), "192.0.2.7:1"),
        (
            format!("[2001:db8::1]:65535?cert={cert}"),
            "[2001:db8::1]:65535",
        ),
        ("127.0.0.1:5000?plain=1".into(), "127.0.0.1:5000"),
        ("[::1]:5000?plain=1".into(), "[::1]:5000"),
        ("localhost:5000?plain=1".into(), "localhost:5000"),
    ] {
        let connection = parse(&rest).unwrap();
        assert_eq!(connection.authority(), authority);
        assert_eq!(connection.node_id(), id());
        assert_eq!(
            connection.to_string(),
            format!("superscalar://{}@{rest}", id())
        );
        assert_eq!(connection.to_string().parse(), Ok(connection));
    }
    let cert = CertHash([0xab; 32]);
    let connection = Connection::new(id(), "::1", 5000, Security::Tls(cert)).unwrap();
    assert_eq!(connection.authority(), "[::1]:5000");
    assert_eq!(connection.cert(), cert);
}

#[test]
fn plain_is_for_loopback_only() {
    for host in [
        "192.0.2.7",
        "lsp.example",
        "[2001:db8::1]",
        "0.0.0.0",
        "localhost.example",
    ] {
        let error = parse(&format!("{host}:5000?plain=1")).unwrap_err();
        assert_eq!(error, ConnectionError::PlainHost(host.into()));
    }
}

#[test]
fn malformed_strings_are_refused() {
    let cert = "ab".repeat(32);
    for rest in [
        "lsp.example:9735".into(),
        "lsp.example:9735?".into(),
        "lsp.example:9735?cert=".into(),
        format!("lsp.example:9735?cert={}", "00".repeat(32)),
        format!("lsp.example:9735?cert={cert}&plain=1"),
        format!("lsp.example:9735?plain=1&cert={cert}"),
        format!("lsp.example:9735?fingerprint={cert}"),
        "127.0.0.1:9735?plain=0".into(),
        format!("lsp.example?cert={cert}"),
        format!("lsp.example:0?cert={cert}"),
        format!("lsp.example:+1?cert={cert}"),
        format!("lsp.example:65536?cert={cert}"),
        format!(":1?cert={cert}"),
        format!("a b:1?cert={cert}"),
        format!("user@lsp.example:1?cert={cert}"),
        format!("lsp.example/path:1?cert={cert}"),
        format!("::1:1?cert={cert}"),
        format!("[::1:1?cert={cert}"),
        format!("127.1:1?cert={cert}"),
        format!("0x7f000001:1?cert={cert}"),
        format!("{}:1?cert={cert}", "a.".repeat(200)),
        format!("{}:1?cert={cert}", "a".repeat(64)),
    ] {
        assert!(parse(&rest).is_err(), "{rest}");
    }
    assert!("https://lsp.example".parse::<Connection>().is_err());
    let no_key = format!(
        "superscalar://{}@lsp.example:1?cert={cert}",
        "ff".repeat(33)
    );
    assert_eq!(no_key.parse::<Connection>(), Err(ConnectionError::NodeId));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}", rest in "[\\[\\]:.?=&@0-9a-z]{0,80}") {
        let _ = text.parse::<Connection>();
        if let Ok(connection) = parse(&rest) {
            prop_assert_eq!(connection.to_string().parse(), Ok(connection));
        }
    }
}
