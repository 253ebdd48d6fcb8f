//! What somebody's BOLT 11 invoice says, before it is paid.

use std::str::FromStr;
use std::time::Duration;

use bitcoin::Network;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use lightning::bolt11_invoice::{Bolt11Invoice, Bolt11InvoiceDescriptionRef};

use crate::error::NodeError;
use crate::event::{Msat, PaymentHash};

/// What an invoice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceView {
    /// What names its payment.
    pub hash: PaymentHash,
    /// Who is paid.
    pub payee: PublicKey,
    /// How much; `None` leaves it to the payer.
    pub amount: Option<Msat>,
    /// What for; empty where only its hash is given.
    pub description: String,
    /// The hash, where only that is given.
    pub description_hash: Option<[u8; 32]>,
    /// Until when it can be paid, since 1970.
    pub expires_at: Option<Duration>,
}

/// Reads an invoice of this network; its signature is checked.
///
/// # Errors
/// [`NodeError::Refused`].
pub fn read_invoice(text: &str, network: Network) -> Result<InvoiceView, NodeError> {
    let invoice = Bolt11Invoice::from_str(text)
        .map_err(|error| NodeError::Refused(format!("this is no invoice: {error}")))?;
    if invoice.network() != network {
        let text = format!("this invoice is for {}, not {network}", invoice.network());
        return Err(NodeError::Refused(text));
    }
    let (description, description_hash) = match invoice.description() {
        Bolt11InvoiceDescriptionRef::Direct(text) => (text.to_string(), None),
        Bolt11InvoiceDescriptionRef::Hash(hash) => (String::new(), Some(hash.0.to_byte_array())),
    };
    Ok(InvoiceView {
        hash: PaymentHash(invoice.payment_hash().0),
        payee: invoice.get_payee_pub_key(),
        amount: invoice.amount_milli_satoshis().map(Msat),
        description,
        description_hash,
        expires_at: invoice.expires_at(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // BOLT 11's example "Please send $3 for a cup of coffee to the same peer, within one minute".
    const COFFEE: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";

    #[test]
    fn an_invoice_is_read() {
        let view = read_invoice(COFFEE, Network::Bitcoin).unwrap();
        assert_eq!(view.amount, Some(Msat(250_000_000)));
        assert_eq!(view.description, "1 cup coffee");
        let expires = Duration::from_secs(1_496_314_658 + 60);
        assert_eq!(view.expires_at, Some(expires));
    }

    #[test]
    fn what_is_of_another_network_or_nothing_is_refused() {
        assert!(read_invoice(COFFEE, Network::Regtest).is_err());
        assert!(read_invoice("lnbc1", Network::Bitcoin).is_err());
    }
}
