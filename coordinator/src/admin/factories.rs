//! Factories: list, show, export, cancel.

use factory_tree::export::Export;
use factory_tree::ids::{ClientId, LeafId};
use factory_tree::kit::ChannelSignatures;
use factory_tree::shape::Shape;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode, FactoryState};

use super::convert::{create_error, listed, named, store_error, trees_error};
use crate::ceremony;
use crate::context::Context;
use crate::store::attempts::AttemptState;
use crate::store::{ceremonies, factories, sold};

pub async fn list(ctx: &Context, live_only: bool) -> Result<FactoryListResponse, ServiceError> {
    let rows = ctx
        .store
        .read(async |tx| {
            let mut rows = Vec::new();
            for ceremony in ceremonies::list(tx).await? {
                let factory = factories::of_ceremony(tx, ceremony.id).await?;
                rows.push((ceremony, factory));
            }
            Ok(rows)
        })
        .await
        .map_err(|error| store_error(&error))?;
    let is_live = |factory: &Factory| {
        let live = [
            FactoryState::Unconfirmed,
            FactoryState::Confirmed,
            FactoryState::Usable,
        ];
        live.contains(&factory.state())
    };
    let mut factories = Vec::with_capacity(rows.len());
    for (ceremony, row) in &rows {
        factories.push(listed(ctx, ceremony, row.as_ref()).await);
    }
    factories.retain(|factory| !live_only || is_live(factory));
    Ok(FactoryListResponse { factories })
}

pub async fn show(ctx: &Context, id: &[u8]) -> Result<FactoryShowResponse, ServiceError> {
    let named = named(ctx, id).await?;
    let params = named.ceremony.wish.params.clone();
    let shown = listed(ctx, &named.ceremony, named.factory.as_ref()).await;
    let Some(row) = named.factory else {
        return Ok(FactoryShowResponse {
            factory: Some(shown),
            params: Some((&params).into()),
            members: Vec::new(),
            levels: 0,
            transactions: 0,
        });
    };
    let (spec, signatures, bought) = ctx
        .store
        .read(async |tx| {
            Ok((
                factories::spec(tx, row.id).await?,
                factories::signatures(tx, row.id).await?,
                sold::leaves(tx, None).await?,
            ))
        })
        .await
        .map_err(|error| store_error(&error))?;
    let spec = spec.ok_or_else(|| {
        ServiceError::new(ErrorCode::Internal, "the factory has no specification")
    })?;
    let acked = matches!(row.state, AttemptState::Ready | AttemptState::FundingSigned);
    let mut channels = super::node::leaf_channels(ctx);
    let mut channel_of = |leaf: LeafId| channels.remove(&channel_host::LeafId(leaf.0));
    let members = (0u32..).zip(&spec.members).map(|(position, member)| {
        let bought = bought
            .iter()
            .filter(|sold| sold.factory == row.id && sold.position == position)
            .map(|sold| BoughtChannel {
                leaf_id: sold.leaf.0.to_vec().into(),
                capacity_sat: sold.capacity.to_sat(),
                channel: channel_of(sold.leaf),
            });
        let bought = bought.collect();
        Member {
            client: member.client.0.to_vec().into(),
            factory_key: member.factory_key.serialize().to_vec().into(),
            payout_script: member.payout_script.to_bytes().into(),
            capacity_sat: member.capacity.to_sat(),
            acked,
            channel: channel_of(member.leaf_id),
            bought,
        }
    });
    let clients = u32::try_from(spec.members.len()).unwrap_or(u32::MAX);
    let signed = signatures.map_or(0, |all| {
        all.tree.len().saturating_add(all.lsp_channel.len())
    });
    Ok(FactoryShowResponse {
        factory: Some(shown),
        params: Some((&spec.params).into()),
        members: members.collect(),
        levels: Shape::new(&spec.params, clients).map_or(0, |shape| shape.levels()),
        transactions: u32::try_from(signed).unwrap_or(u32::MAX),
    })
}

pub async fn export(ctx: &Context, id: &[u8]) -> Result<FactoryExportResponse, ServiceError> {
    let named = named(ctx, id).await?;
    let unsigned = || {
        ServiceError::new(
            ErrorCode::Refused,
            "this factory is not signed: there is nothing to export yet",
        )
    };
    let row = named.factory.ok_or_else(unsigned)?;
    let signatures = ctx
        .store
        .read(async |tx| factories::signatures(tx, row.id).await)
        .await;
    let signatures = signatures
        .map_err(|error| store_error(&error))?
        .ok_or_else(unsigned)?;
    let known = ctx
        .trees
        .get(&ctx.store, row.id)
        .await
        .map_err(|error| trees_error(&error))?;
    let node = ClientId(ctx.keys.node_id().to_bytes());
    let json = tokio::task::spawn_blocking(move || {
        let pairs = signatures
            .client_channel
            .into_iter()
            .zip(signatures.lsp_channel);
        let channel: Vec<_> = pairs
            .map(|(client, lsp)| ChannelSignatures { client, lsp })
            .collect();
        serde_json::to_string(&Export::of_tree(
            &known.tree,
            node,
            &signatures.tree,
            &channel,
        ))
    });
    let failed = |error: String| ServiceError::new(ErrorCode::Internal, error);
    let json = json
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    Ok(FactoryExportResponse { json })
}

pub async fn cancel(ctx: &Context, id: &[u8]) -> Result<FactoryCancelResponse, ServiceError> {
    let named = named(ctx, id).await?;
    tracing::info!(ceremony = %named.ceremony.id, "the operator cancels");
    let released = ceremony::cancel(ctx, named.ceremony.id)
        .await
        .map_err(|error| create_error(&error))?;
    Ok(FactoryCancelResponse {
        ceremony: named.ceremony.id.0.to_vec().into(),
        released: released.into_iter().map(v1::OutPoint::from).collect(),
    })
}
