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
            _ => Err(RpcError::unknown_method()),
        }
    }
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
    let (transport, mut questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
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
        transport.serve_one(&mut questions).await;
        expected["jsonrpc"] = "2.0".into();
        expected["id"] = "a".into();
        assert_eq!(sent(&transport), [(peer(1), expected)]);
    }
}

#[tokio::test]
async fn what_takes_too_long_is_our_own_trouble() {
    let (transport, mut questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
    say(&transport, peer(1), &ask("lsps5.never", json!({})));
    let served = transport.serve_one(&mut questions);
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, served).await.expect("an end");
    let told = sent(&transport);
    assert_eq!(told[0].1["error"]["code"], -32_603);
    assert_eq!(told[0].1["id"], "a");
}

#[test]
fn who_answers_announces_it() {
    let announces = |bytes: &[u8]| {
        let byte = bytes.get(729 / 8).copied();
        byte.unwrap_or(0) & (1 << (729 % 8)) != 0
    };
    // bLIP-50: a client must not.
    let (client, _questions) = Lsps0::new(None);
    let (lsp, _questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
    for (transport, answers) in [(client, false), (lsp, true)] {
        let init = transport.provided_init_features(peer(1));
        assert_eq!(announces(init.le_flags()), answers);
        let node = transport.provided_node_features();
        assert_eq!(announces(node.le_flags()), answers);
    }
}

#[test]
fn what_is_no_question_is_told_so() {
    let (transport, _questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
    let code = |message: &[u8]| read(message).expect_err("refused").1.code;
    assert_eq!(code(b"\xff\xfe"), -32_700);
    assert_eq!(
        code(br#"["2.0","id","lsps0.list_protocols",{},null,null]"#),
        -32_600
    );
    assert_eq!(code(br#"{"method":5}"#), -32_600);
    assert_eq!(
        code(br#"{"jsonrpc":"2.0","id":7,"method":"m","params":{}}"#),
        -32_600
    );
    assert_eq!(
        code(br#"{"jsonrpc":"1.0","id":"7","method":"m","params":{}}"#),
        -32_600
    );
    assert_eq!(
        code(br#"{"jsonrpc":"2.0","id":"7","method":"m","params":[1]}"#),
        -32_600
    );
    assert_eq!(
        read(br#"{"jsonrpc":"2.0","method":"m"}"#),
        Ok(Incoming::Remark)
    );
    // An error that answers nothing is not answered: two nodes would never stop.
    say(
        &transport,
        peer(1),
        &json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32700, "message": "" } }),
    );
    assert_eq!(sent(&transport), []);
    let deep = "[".repeat(60_000);
    assert_eq!(code(deep.as_bytes()), -32_700);
}

#[tokio::test]
async fn one_peer_does_not_fill_the_inbox() {
    let (transport, mut questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
    for _ in 0..9 {
        say(&transport, peer(1), &ask("lsps5.echo", json!({})));
    }
    assert_eq!(sent(&transport), []);
    say(&transport, peer(2), &ask("lsps5.echo", json!({})));
    for _ in 0..9 {
        transport.serve_one(&mut questions).await;
    }
    assert_eq!(sent(&transport).len(), 9, "eight of one, one of the other");
    // What was answered makes room.
    say(&transport, peer(1), &ask("lsps5.echo", json!({})));
    assert_eq!(sent(&transport), []);
}

#[tokio::test]
async fn an_answer_reaches_who_asked_that_peer() {
    let (transport, _questions) = Lsps0::new(None);
    let told = transport.ask(peer(1), "q", "lsps5.list_webhooks", &json!({}));
    let question = sent(&transport);
    assert_eq!(question[0].1["method"], "lsps5.list_webhooks");
    let answer = json!({ "jsonrpc": "2.0", "id": "q", "result": 1 });
    // Somebody else's answer is none.
    say(&transport, peer(2), &answer);
    say(&transport, peer(1), &answer);
    assert_eq!(told.await.unwrap(), Ok(json!(1)));
    let told = transport.ask(peer(1), "r", "lsps5.list_webhooks", &json!({}));
    transport.peer_disconnected(peer(1));
    assert!(told.await.is_err());
}

#[test]
fn a_message_of_another_type_is_not_ours() {
    let (transport, _questions) = Lsps0::new(None);
    assert!(
        transport
            .read(37_915, &mut [0_u8; 2].as_slice())
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_is_too_long_is_not_even_read() {
    let (transport, _questions) = Lsps0::new(Some(std::sync::Arc::new(Echo)));
    let long = json!({ "a": vec![json!({ "": 0 }); 2_000] });
    say(&transport, peer(1), &ask("lsps5.echo", long));
    let told = sent(&transport);
    assert_eq!(told[0].1["error"]["code"], -32_600);
    assert_eq!(told[0].1["id"], Value::Null);
}
