//! Nodes that are not well: a server that plays a script, one connection after the other.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use serde_json::json;

use super::*;

/// Answers each request with the next of these, and keeps silent afterwards. Returns its address.
fn server(answers: Vec<(&'static str, Value)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            while let Some(id) = read_request(&mut reader) {
                let Some((status, mut body)) = answers.next() else {
                    break;
                };
                if body.is_object() {
                    body["id"] = id;
                }
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            open.push(reader);
        }
    });
    url
}

/// The id of one request, or `None` when the client hangs up.
fn read_request(reader: &mut impl BufRead) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice::<Value>(&body).ok()?["id"].clone())
}

fn pool(url: String, warmup: Duration) -> RpcPool {
    patient_pool(url, warmup, Duration::from_secs(20))
}

fn patient_pool(url: String, warmup: Duration, timeout: Duration) -> RpcPool {
    let auth = RpcAuth::UserPass {
        user: "user".to_owned(),
        password: "secret".to_owned().into(),
    };
    RpcPool::new(BitcoindConfig {
        timeout,
        warmup,
        ..BitcoindConfig::new(url, auth)
    })
    .unwrap()
}

fn warming_up() -> (&'static str, Value) {
    (
        "500 Internal Server Error",
        json!({"result": null, "error": {"code": -28, "message": "Loading block index…"}}),
    )
}

fn seven() -> (&'static str, Value) {
    ("200 OK", json!({"result": 7, "error": null}))
}

#[tokio::test]
async fn a_node_that_starts_or_is_busy_is_asked_again() {
    let busy = (
        "503 Service Unavailable",
        json!("Work queue depth exceeded"),
    );
    let url = server(vec![warming_up(), busy, warming_up(), seven()]);
    assert_eq!(
        pool(url, Duration::from_secs(20))
            .call::<u32>("getblockcount", vec![])
            .await,
        Ok(7)
    );
}

#[tokio::test]
async fn a_node_that_does_not_get_ready_in_time_is_an_error() {
    let url = server(vec![warming_up(), seven()]);
    let answer = pool(url, Duration::ZERO)
        .call::<u32>("getblockcount", vec![])
        .await;
    assert!(
        matches!(&answer, Err(ChainError::NotReady { message, .. }) if message.starts_with("Loading")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn other_errors_are_not_asked_again() {
    let refused = (
        "500 Internal Server Error",
        json!({"result": null, "error": {"code": -5, "message": "no"}}),
    );
    let answer = pool(server(vec![refused, seven()]), Duration::from_secs(20))
        .call::<u32>("getblockcount", vec![])
        .await;
    let expected = ChainError::Rpc {
        method: "getblockcount",
        code: -5,
        message: "no".to_owned(),
    };
    assert_eq!(answer, Err(expected));
}

#[tokio::test]
async fn a_node_that_keeps_silent_does_not_hold_us() {
    let pool = patient_pool(server(vec![]), Duration::ZERO, Duration::from_millis(100));
    let answer = pool.call::<u32>("getblockcount", vec![]).await;
    assert!(
        matches!(&answer, Err(ChainError::Unreachable { .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error() {
    let answer = pool(
        server(vec![("200 OK", json!({"result": "seven", "error": null}))]),
        Duration::ZERO,
    );
    let answer = answer.call::<u32>("getblockcount", vec![]).await;
    assert!(
        matches!(
            &answer,
            Err(ChainError::UnexpectedAnswer {
                method: "getblockcount",
                ..
            })
        ),
        "{answer:?}"
    );
}

#[test]
fn no_password_is_shown() {
    let pool = pool("http://127.0.0.1:1".to_owned(), Duration::ZERO);
    assert!(format!("{pool:?}").contains("user") && !format!("{pool:?}").contains("secret"));
}
