use bitcoin::secp256k1::{Secp256k1, SecretKey};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::wire::CustomMessageReader;

use super::message::{Incoming, read};
use super::*;

#[derive(Debug)]
struct Echo;

#[async_trait]
impl LspsService for Echo {
    fn protocols(&self) -> Vec<u16> {
        vec![5]
    }

    async fn answer(
        &self,
        _: PublicKey,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Value, RpcError> {
        match method {
            "lsps5.echo" => Ok(Value::Object(params)),
            "lsps5.never" => std::future::pending().await,
            "lsps5.panic" => panic!("a mistake of ours"),
            _ => Err(RpcError::unknown_method()),
        }
    }
}

/// A transport that answers; peer 100 has a channel with it.
fn lsp() -> Lsps0 {
    let is_stranger = |asker: &PublicKey| *asker != peer(100);
    Lsps0::new(Some(std::sync::Arc::new(Echo)), is_stranger)
}

/// One that only asks.
fn client() -> Lsps0 {
    Lsps0::new(None, |_| true)
}

fn peer(byte: u8) -> PublicKey {
    let secret = SecretKey::from_slice(&[byte; 32]).unwrap();
    PublicKey::from_secret_key(&Secp256k1::new(), &secret)
}

fn say(transport: &Lsps0, from: PublicKey, message: &Value) {
    let text = message.to_string();
    let read = transport.read(37_913, &mut text.as_bytes()).unwrap();
    let message = read.expect("the type is ours");
    transport.handle_custom_message(message, from).unwrap();
}

fn sent(transport: &Lsps0) -> Vec<(PublicKey, Value)> {
    use lightning::util::ser::Writeable;
    let messages = transport.get_and_clear_pending_msg().into_iter();
    messages
        .map(|(to, message)| (to, serde_json::from_slice(&message.encode()).unwrap()))
        .collect()
}

fn ask(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": "a", "method": method, "params": params })
}

#[tokio::test]
async fn questions_are_answered() {
    let transport = lsp();
    let asked = [
        (
            ask("lsps0.list_protocols", json!({})),
            json!({ "result": { "protocols": [5] } }),
        ),
        (
            ask("lsps0.list_protocols", json!({ "x": 1 })),
            json!({ "error": { "code": -32602, "message": "unrecognized parameters", "data": { "unrecognized": ["x"] } } }),
        ),
        (
            ask("lsps5.echo", json!({ "b": "c" })),
            json!({ "result": { "b": "c" } }),
        ),
        (
            ask("lsps9.what", json!({})),
            json!({ "error": { "code": -32601, "message": "method not found" } }),
        ),
    ];
    for (question, mut expected) in asked {
        say(&transport, peer(1), &question);
        transport.serve_one().await;
        expected["jsonrpc"] = "2.0".into();
        expected["id"] = "a".into();
        assert_eq!(sent(&transport), [(peer(1), expected)]);
    }
}

#[tokio::test]
async fn what_takes_too_long_is_our_own_trouble() {
    let transport = lsp();
    say(&transport, peer(1), &ask("lsps5.never", json!({})));
    let served = transport.serve_one();
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, served).await.expect("an end");
    let told = sent(&transport);
    assert_eq!(told[0].1["error"]["code"], -32_603);
    assert_eq!(told[0].1["id"], "a");
}

#[tokio::test]
async fn who_meets_a_mistake_of_ours_is_told_so_and_answered_again() {
    let transport = lsp();
    for method in ["lsps5.panic", "lsps5.echo"] {
        say(&transport, peer(1), &ask(method, json!({})));
    }
    transport.serve_one().await;
    assert_eq!(sent(&transport)[0].1["error"]["code"], -32_603);
    transport.serve_one().await;
    assert_eq!(sent(&transport)[0].1["result"], json!({}));
}

#[test]
fn who_answers_announces_it() {
    let announces = |bytes: &[u8]| {
        let byte = bytes.get(729 / 8).copied();
        byte.unwrap_or(0) & (1 << (729 % 8)) != 0
    };
    // bLIP-50: a client must not.
    for (transport, answers) in [(client(), false), (lsp(), true)] {
        let init = transport.provided_init_features(peer(1));
        assert_eq!(announces(init.le_flags()), answers);
        let node = transport.provided_node_features();
        assert_eq!(announces(node.le_flags()), answers);
    }
}

/// bLIP-50's "bad message format" has one answer.
#[test]
fn what_is_no_question_is_told_so() {
    let transport = lsp();
    let refused = |message: &[u8]| {
        let (id, error) = read(message).expect_err("refused");
        (id, error.code)
    };
    let deep = "[".repeat(60_000);
    let bad: [&[u8]; 16] = [
        b"\xff\xfe",
        b"{",
        b"{} {}",
        b"{}\0",
        b"{}",
        br#"[{"jsonrpc":"2.0","id":"7","method":"m","params":{}}]"#,
        br#"["2.0","id","lsps0.list_protocols",{},null,null]"#,
        br#"{"method":5}"#,
        br#"{"jsonrpc":"2.0","id":7,"method":"m","params":{}}"#,
        br#"{"jsonrpc":"1.0","id":"7","method":"m","params":{}}"#,
        br#"{"id":"7","method":"m","params":{}}"#,
        br#"{"jsonrpc":"2.0","id":"7","params":{}}"#,
        br#"{"jsonrpc":"2.0","id":"7","method":"m","params":1}"#,
        // A notification: only an LSP sends those.
        br#"{"jsonrpc":"2.0","method":"m","params":{}}"#,
        br#"{"jsonrpc":"2.0","id":null,"method":"m","params":{}}"#,
        deep.as_bytes(),
    ];
    for message in bad {
        let text = String::from_utf8_lossy(message);
        assert_eq!(refused(message), (Value::Null, -32_700), "{text:.80}");
    }
    say(&transport, peer(1), &json!([]));
    let told = sent(&transport);
    assert_eq!(told[0].1["error"]["code"], -32_700);
    assert_eq!(told[0].1.get("id"), Some(&Value::Null));
}

/// To JSON-RPC these are requests.
#[test]
fn parameters_go_by_name_or_are_left_out() {
    let array = read(br#"{"jsonrpc":"2.0","id":"7","method":"m","params":[1]}"#);
    let (id, error) = array.expect_err("refused");
    assert_eq!((id, error.code), (json!("7"), -32_602));
    let none = Incoming::Question {
        id: "7".to_owned(),
        method: "m".to_owned(),
        params: Map::new(),
    };
    assert_eq!(
        read(br#" {"jsonrpc":"2.0","id":"7","method":"m"} "#),
        Ok(none)
    );
}

/// Otherwise two nodes would never stop.
#[test]
fn answers_are_not_answered() {
    let transport = lsp();
    for answer in [
        json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32700, "message": "" } }),
        json!({ "jsonrpc": "2.0", "id": null, "error": "none of ours" }),
        json!({ "jsonrpc": "2.0", "id": "never asked", "result": {} }),
    ] {
        say(&transport, peer(1), &answer);
        assert_eq!(sent(&transport), [], "{answer}");
    }
}

/// bLIP-50: a client ignores what is no answer.
#[tokio::test]
async fn who_only_asks_answers_nothing() {
    let transport = client();
    say(&transport, peer(1), &json!([]));
    say(&transport, peer(1), &json!("x".repeat(9_000)));
    say(&transport, peer(1), &ask("lsps5.echo", json!({})));
    assert_eq!(sent(&transport), []);
    let served = tokio::time::timeout(std::time::Duration::ZERO, transport.serve_one());
    assert!(served.await.is_err(), "nothing waits");
}

#[test]
fn ids_are_random() {
    let ids = [fresh_id(), fresh_id()];
    let numbers = ids.map(|id| u128::from_str_radix(&id, 16).unwrap());
    // Neither half counts.
    assert_ne!(numbers[0] >> 64, numbers[1] >> 64);
    assert_ne!(numbers[0] as u64, numbers[1] as u64);
}

#[tokio::test]
async fn one_peer_does_not_fill_the_inbox() {
    let transport = lsp();
    for _ in 0..9 {
        say(&transport, peer(1), &ask("lsps5.echo", json!({})));
    }
    assert_eq!(sent(&transport), []);
    say(&transport, peer(2), &ask("lsps5.echo", json!({})));
    for _ in 0..9 {
        transport.serve_one().await;
    }
    assert_eq!(sent(&transport).len(), 9, "eight of one, one of the other");
    // What was answered makes room.
    say(&transport, peer(1), &ask("lsps5.echo", json!({})));
    assert_eq!(sent(&transport), []);
}

async fn serve(transport: std::sync::Arc<Lsps0>) {
    loop {
        transport.serve_one().await;
    }
}

#[tokio::test]
async fn who_has_a_channel_is_answered_whatever_strangers_ask() {
    let transport = std::sync::Arc::new(lsp());
    for _ in 0..AT_ONCE {
        tokio::spawn(serve(std::sync::Arc::clone(&transport)));
    }
    for stranger in 1..51 {
        for _ in 0..3 {
            say(&transport, peer(stranger), &ask("lsps5.never", json!({})));
        }
    }
    say(&transport, peer(100), &ask("lsps5.echo", json!({})));
    let told = async {
        loop {
            let told = sent(&transport);
            if !told.is_empty() {
                return told;
            }
            tokio::task::yield_now().await;
        }
    };
    let limit = std::time::Duration::from_secs(60);
    let told = tokio::time::timeout(limit, told).await.expect("an answer");
    // Those who answer strangers are busy for as long as an answer may take.
    assert_eq!(told[0].0, peer(100));
}

#[tokio::test]
async fn an_answer_reaches_who_asked_that_peer() {
    let transport = client();
    let told = transport.ask(peer(1), "q", "lsps5.list_webhooks", &json!({}));
    let question = sent(&transport);
    assert_eq!(question[0].1["method"], "lsps5.list_webhooks");
    let answer = json!({ "jsonrpc": "2.0", "id": "q", "result": 1 });
    // Somebody else's answer is none, nor is one to another question.
    let foreign = json!({ "jsonrpc": "2.0", "id": "p", "result": 2 });
    say(&transport, peer(1), &foreign);
    let of_another = json!({ "jsonrpc": "2.0", "id": "q", "result": 3 });
    say(&transport, peer(2), &of_another);
    say(&transport, peer(1), &answer);
    assert_eq!(told.await.unwrap(), Ok(json!(1)));
    let told = transport.ask(peer(1), "r", "lsps5.list_webhooks", &json!({}));
    transport.peer_disconnected(peer(1));
    assert!(told.await.is_err());
}

#[test]
fn a_message_of_another_type_is_not_ours() {
    let transport = client();
    assert!(
        transport
            .read(37_915, &mut [0_u8; 2].as_slice())
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_is_too_long_is_not_even_read() {
    let transport = lsp();
    let long = json!({ "a": vec![json!({ "": 0 }); 2_000] });
    say(&transport, peer(1), &ask("lsps5.echo", long));
    let told = sent(&transport);
    assert_eq!(told[0].1["error"]["code"], -32_600);
    assert_eq!(told[0].1["id"], Value::Null);
}
