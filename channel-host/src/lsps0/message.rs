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
    /// An answer to nothing: two nodes that answered those would never stop.
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
    // bLIP-50's "bad message format": one answer to all that is no request, also where JSON-RPC has another, or none (notifications).
    let bad = |what: &str| {
        let error = RpcError::new(-32_700, format!("parse error: {what}"));
        (Value::Null, error)
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|_| bad("it is not JSON"))?;
    // A struct would be read from an array, too.
    let Value::Object(members) = &value else {
        return Err(bad("it is not an object"));
    };
    let has = |name: &str| members.contains_key(name);
    let is_answer = !has("method") && (has("result") || has("error"));
    let raw: Raw = match serde_json::from_value(value) {
        Ok(raw) => raw,
        Err(_) if is_answer => return Ok(Incoming::Remark),
        Err(_) => return Err(bad("a member is of the wrong kind")),
    };
    if is_answer {
        let outcome = raw.error.map_or(Ok(raw.result.unwrap_or_default()), Err);
        return Ok(match raw.id {
            Some(Value::String(id)) => Incoming::Answer { id, outcome },
            _ => Incoming::Remark,
        });
    }
    if raw.jsonrpc.as_deref() != Some("2.0") {
        return Err(bad("jsonrpc is not \"2.0\""));
    }
    let (Some(method), Some(Value::String(id))) = (raw.method, raw.id) else {
        return Err(bad("method and id, both strings, are missing"));
    };
    match raw.params {
        None => Ok(Incoming::Question {
            id,
            method,
            params: Map::new(),
        }),
        Some(Value::Object(params)) => Ok(Incoming::Question { id, method, params }),
        // A request to JSON-RPC, and not to bLIP-50: by name only.
        Some(Value::Array(_)) => {
            let error = RpcError::invalid_params("params is an array; give them by name");
            Err((id.into(), error))
        }
        Some(_) => Err(bad("params is not an object")),
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
