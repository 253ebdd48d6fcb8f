//! One message: a question, an answer, or what is neither.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::RpcError;

/// What a peer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// It asks.
    Question {
        id: String,
        method: String,
        params: Map<String, Value>,
    },
    /// It answers.
    Answer {
        id: String,
        outcome: Result<Value, RpcError>,
    },
    /// A notification, or an answer to nothing: neither is answered.
    Remark,
}

#[derive(Deserialize)]
struct Raw {
    jsonrpc: Option<String>,
    id: Option<Value>,
    method: Option<String>,
    params: Option<Value>,
    result: Option<Value>,
    error: Option<RpcError>,
}

/// Reads a message; an error is what to answer, and to which id.
pub(super) fn read(bytes: &[u8]) -> Result<Incoming, (Value, RpcError)> {
    let no_json = |_| (Value::Null, RpcError::new(-32_700, "parse error"));
    let invalid = |what: &str| RpcError::new(-32_600, format!("invalid request: {what}"));
    let value: Value = serde_json::from_slice(bytes).map_err(no_json)?;
    // A struct would be read from an array, too.
    if !value.is_object() {
        return Err((Value::Null, invalid("it is not an object")));
    }
    let misread = |_| (Value::Null, invalid("a member is of the wrong kind"));
    let raw: Raw = serde_json::from_value(value).map_err(misread)?;
    let Some(method) = raw.method else {
        let outcome = raw.error.map_or(Ok(raw.result.unwrap_or_default()), Err);
        return Ok(match raw.id {
            Some(Value::String(id)) => Incoming::Answer { id, outcome },
            _ => Incoming::Remark,
        });
    };
    let id = match raw.id {
        Some(Value::String(id)) => id,
        // JSON-RPC's notifications have no id, and are never answered.
        None => return Ok(Incoming::Remark),
        Some(_) => return Err((Value::Null, invalid("id is not a string"))),
    };
    if raw.jsonrpc.as_deref() != Some("2.0") {
        return Err((id.into(), invalid("jsonrpc is not \"2.0\"")));
    }
    match raw.params {
        Some(Value::Object(params)) => Ok(Incoming::Question { id, method, params }),
        // bLIP-50: by name only.
        _ => Err((id.into(), invalid("params is not an object"))),
    }
}

pub(super) fn question(id: &str, method: &str, params: &Value) -> Vec<u8> {
    let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
    message.to_string().into_bytes()
}

pub(super) fn answer(id: &Value, outcome: &Result<Value, RpcError>) -> Vec<u8> {
    let message = match outcome {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
    };
    message.to_string().into_bytes()
}
