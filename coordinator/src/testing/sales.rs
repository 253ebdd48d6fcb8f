//! Sales, signed by nobody: what becomes of one that is stored.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{SecretKey, ecdsa, schnorr};
use bitcoin::{Amount, Txid};
use channel_host::lsp_channel_id;
use factory_tree::ids::{Attempt, LeafId, SaleId};
use factory_tree::kit::ChannelSignatures;
use factory_tree::sale::message::SaleRound;
use factory_tree::sale::seller::SoldRecord;
use factory_tree::sale::{Sale, SaleTxs, SoldChannel, Stock};
use factory_tree::testing::{public, secret};
use factory_tree::tree::Tree;

use super::TestWorld;
use crate::keys::FreshSeed;
use crate::store::sold;

/// One sale.
pub struct TestSale {
    pub id: SaleId,
    /// Of the buyer's channel.
    pub leaf: LeafId,
    /// The buyer's funding key.
    pub key: SecretKey,
    pub fresh: FreshSeed,
    pub txs: SaleTxs,
}

impl TestWorld {
    /// The client at `position` buys a channel of `sat`.
    pub async fn sell(&self, tree: &Tree, position: u32, sat: u64) -> TestSale {
        let sale = self.order(tree, position, sat).await;
        let signature = schnorr::Signature::from_slice(&[7; 64]).unwrap();
        let one = ecdsa::Signature::from_compact(&[7; 64]).unwrap();
        let sold = SoldRecord {
            round: SaleRound {
                sale: sale.id,
                attempt: Attempt(1),
            },
            sale: sale.txs.sale.clone(),
            signatures: sale.txs.sessions().map(|_| signature).collect(),
            channels: vec![ChannelSignatures {
                client: one,
                lsp: one,
            }],
        };
        let sold = serde_json::to_string(&sold).unwrap();
        let query = "UPDATE sale SET state = 'settled', sold = ? WHERE sale = ?";
        let stored = self.ctx.store.write(async |tx| {
            let query = sqlx::query(query).bind(&sold).bind(sale.id.0.as_slice());
            Ok(query.execute(tx).await.map(drop)?)
        });
        stored.await.unwrap();
        self.ctx.trees.forget(tree.id());
        sale
    }

    /// The same, paid for and not signed.
    pub async fn order(&self, tree: &Tree, position: u32, sat: u64) -> TestSale {
        let id = tree.id();
        let read = self
            .ctx
            .store
            .read(async |tx| sold::of_factory(tx, id).await);
        let mut stock = Stock::of_tree(tree, position).unwrap();
        for known in read.await.unwrap() {
            if known.record.sale.stock == stock.outpoint() {
                stock.push(known.record.sale).unwrap();
            }
        }
        let number = stock.next_number();
        let tag = [number, u8::try_from(position).unwrap()];
        let drawn = |label: &str| secret(tag[0].into(), label, tag[1].into()).secret_bytes();
        let fresh: FreshSeed = drawn("fresh")[..16].try_into().unwrap();
        let nonce: [u8; 16] = drawn("nonce")[..16].try_into().unwrap();
        let leaf = LeafId::derive(&nonce, 0);
        let key = secret(tag[0].into(), "bought", tag[1].into());
        let ours = lsp_channel_id(leaf.0, fresh);
        let sale = Sale {
            id: SaleId(drawn("sale")[..16].try_into().unwrap()),
            stock: stock.outpoint(),
            number,
            bought: SoldChannel {
                position,
                leaf_id: leaf,
                channel_key: public(&key),
                lsp_channel_key: self.ctx.keys.leaf_keys().funding_pubkey(ours),
                capacity: stock
                    .capacity_for(Amount::from_sat(sat), Amount::ZERO)
                    .unwrap(),
            },
            bonus: Vec::new(),
        };
        let txs = stock.draft(&sale).unwrap();
        let sale = TestSale {
            id: sale.id,
            leaf,
            key,
            fresh,
            txs,
        };
        self.store_order(tree, &sale).await;
        sale
    }

    async fn store_order(&self, tree: &Tree, sale: &TestSale) {
        let terms = &sale.txs.sale;
        let position = terms.bought.position;
        let client = tree.spec().members[position as usize].client;
        let txid: &Txid = &terms.stock.txid;
        let stored = self.ctx.store.write(async |tx| {
            let query = sqlx::query(
                "INSERT INTO sale (sale, client, factory, position, stock_txid, stock_vout, place, leaf_id, channel_key, fresh, \
                 capacity_sat, fee_msat, quote, sign_until, hash, invoice, state, ordered_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 1000, '', 0, ?1, '', 'paid', 0)",
            );
            let query = query
                .bind(sale.id.0.as_slice())
                .bind(client.0.as_slice())
                .bind(tree.id().0.to_vec())
                .bind(position)
                .bind(txid.to_byte_array().to_vec())
                .bind(terms.stock.vout)
                .bind(terms.number)
                .bind(sale.leaf.0.as_slice())
                .bind(terms.bought.channel_key.serialize().to_vec())
                .bind(sale.fresh.as_slice())
                .bind(i64::try_from(terms.bought.capacity.to_sat()).unwrap());
            Ok(query.execute(tx).await.map(drop)?)
        });
        stored.await.unwrap();
    }
}
