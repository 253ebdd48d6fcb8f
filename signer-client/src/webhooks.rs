//! Being woken while away (LSPS5, bLIP-55): webhooks set with the coordinator, and how whoever stands behind one judges what arrives there.

use std::time::{Duration, SystemTime};

use bitcoin::secp256k1::PublicKey;
use channel_host::{is_signed_by, notification_text};
use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::SignerClient;
use crate::error::{Error, Result};
use crate::lightning::coordinator_of;

/// A notification is good for so long before and after the time it bears (bLIP-55).
const TOLERANCE: Duration = Duration::from_secs(600);

/// What the coordinator says of a webhook that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookSet {
    /// How many this wallet has now.
    pub num_webhooks: u32,
    /// How many it may have.
    pub max_webhooks: u32,
    /// Whether it was set already, just so; otherwise it is sent a first notification, `lsps5.webhook_registered`.
    pub no_change: bool,
}

/// The webhooks of this wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhooks {
    /// Their names.
    pub app_names: Vec<String>,
    /// How many there may be.
    pub max_webhooks: u32,
}

/// What a webhook is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// `lsps5.payment_incoming`, `lsps5.liquidity_management_request` and others: whichever it is, the wallet should connect.
    pub method: String,
    /// More of it, by method.
    #[serde(default)]
    pub params: Value,
}

/// Why a notification is not to be acted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotificationError {
    /// It does not say when it was made.
    #[error("x-lsps5-timestamp is no time: {0}")]
    Timestamp(String),
    /// It was made too long ago, or will be.
    #[error("it was made at {0}, more than ten minutes from now")]
    Stale(String),
    /// Somebody else made it.
    #[error("it is not signed by the coordinator {0}")]
    Signature(PublicKey),
    /// It says nothing.
    #[error("the body is no notification: {0}")]
    Body(String),
}

/// Judges what was posted to a webhook: `timestamp` and `signature` are the headers `x-lsps5-timestamp` and `x-lsps5-signature`, `coordinator` its
/// node id. Whoever keeps the signatures of the last 20 minutes refuses repetitions as well.
///
/// # Errors
/// [`NotificationError`].
pub fn read_notification(
    coordinator: &PublicKey,
    timestamp: &str,
    signature: &str,
    body: &str,
    now: SystemTime,
) -> Result<Notification, NotificationError> {
    let made = DateTime::parse_from_rfc3339(timestamp)
        .map_err(|error| NotificationError::Timestamp(error.to_string()))?;
    let apart = now
        .duration_since(made.into())
        .unwrap_or_else(|error| error.duration());
    if apart > TOLERANCE {
        return Err(NotificationError::Stale(timestamp.to_owned()));
    }
    if !is_signed_by(&notification_text(timestamp, body), signature, coordinator) {
        return Err(NotificationError::Signature(*coordinator));
    }
    serde_json::from_str(body).map_err(|error| NotificationError::Body(error.to_string()))
}

impl SignerClient {
    /// Has the coordinator post to `url` (https) when this wallet is away and should come: `app_name` names it, and setting it again replaces it.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::Asked`] when the coordinator refuses, for example before this wallet is in a factory, or is away.
    pub async fn set_webhook(&self, app_name: &str, url: &str) -> Result<WebhookSet> {
        let params = json!({ "app_name": app_name, "webhook": url });
        self.ask_coordinator("lsps5.set_webhook", &params).await
    }

    /// The webhooks of this wallet.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::Asked`].
    pub async fn webhooks(&self) -> Result<Webhooks> {
        self.ask_coordinator("lsps5.list_webhooks", &json!({}))
            .await
    }

    /// Removes a webhook.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::Asked`], for example if there is none of this name.
    pub async fn remove_webhook(&self, app_name: &str) -> Result<()> {
        let params = json!({ "app_name": app_name });
        let _: Value = self
            .ask_coordinator("lsps5.remove_webhook", &params)
            .await?;
        Ok(())
    }

    pub(crate) async fn ask_coordinator<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        params: &Value,
    ) -> Result<T> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        let coordinator =
            coordinator_of(inner).ok_or_else(|| Error::Connection("there is none".to_owned()))?;
        let answer = node.ask(coordinator, method, params).await?;
        serde_json::from_value(answer)
            .map_err(|error| Error::Handshake(format!("{method} was answered with {error}")))
    }
}

#[cfg(test)]
mod tests {
    use channel_host::LeafKeys;

    use super::*;

    const BODY: &str = r#"{"jsonrpc":"2.0","method":"lsps5.payment_incoming","params":{}}"#;
    const TIMESTAMP: &str = "2026-11-21T12:00:00.000Z";

    fn signed(timestamp: &str, body: &str) -> (PublicKey, String) {
        let keys = LeafKeys::new(&[1; 32]);
        (
            keys.node_id(),
            keys.sign(&notification_text(timestamp, body)),
        )
    }

    fn at(timestamp: &str) -> SystemTime {
        DateTime::parse_from_rfc3339(timestamp).unwrap().into()
    }

    #[test]
    fn only_the_coordinators_notifications_count() {
        let (coordinator, signature) = signed(TIMESTAMP, BODY);
        let now = at(TIMESTAMP);
        let read = |timestamp, signature: &str, body, now| {
            read_notification(&coordinator, timestamp, signature, body, now)
        };
        let good = read(TIMESTAMP, &signature, BODY, now).unwrap();
        assert_eq!(good.method, "lsps5.payment_incoming");
        assert!(read(TIMESTAMP, &signature, BODY, now + TOLERANCE).is_ok());
        let late = now + TOLERANCE + Duration::from_secs(1);
        assert!(matches!(
            read(TIMESTAMP, &signature, BODY, late),
            Err(NotificationError::Stale(_))
        ));
        let early = now - TOLERANCE - Duration::from_secs(1);
        assert!(matches!(
            read(TIMESTAMP, &signature, BODY, early),
            Err(NotificationError::Stale(_))
        ));
        let forged = [
            read("2026-11-21T12:00:01.000Z", &signature, BODY, now),
            read(TIMESTAMP, &signature, "{}", now),
            read(TIMESTAMP, "", BODY, now),
        ];
        for forged in forged {
            assert_eq!(forged, Err(NotificationError::Signature(coordinator)));
        }
        assert!(matches!(
            read("yesterday", &signature, BODY, now),
            Err(NotificationError::Timestamp(_))
        ));
    }
}
