//! What clients have outside of factories, and the places they get for it.

use bitcoin::Amount;
use channel_host::{ChannelView, LeafId, Msat};
use factory_tree::ladder::capacity_for;
use factory_tree::testing::public;
use proto::admin::LadderPreviewResponse;

use super::*;

/// What has to stay in each channel, in satoshi.
const RESERVE: u64 = 2_000;

/// A channel in which the client has so much.
fn channel(client: &TestClient, leaf: Option<LeafId>, sat: u64) -> ChannelView {
    ChannelView {
        channel: [0; 32],
        leaf,
        peer: public(&client.node),
        outpoint: None,
        capacity: Amount::from_sat(sat + 50_000),
        balance: Msat(50_000_000),
        spendable: Msat(48_000_000),
        receivable: Msat((sat - RESERVE) * 1_000),
        usable: true,
        confirmations: 6,
        announced: false,
        our_reserve: Some(RESERVE),
        their_reserve: RESERVE,
        pending: 0,
    }
}

/// The capacity of a client's place, if it has one.
fn place(shown: &LadderPreviewResponse, client: &TestClient) -> Option<u64> {
    let mut seats = shown.seats.iter();
    let seat = seats.find(|seat| seat.client[..] == client.id().0[..]);
    seat.map(|seat| seat.capacity_sat)
}

#[tokio::test]
async fn a_place_has_room_for_what_its_client_has_outside() {
    let (world, _tree) = dying().await;
    let all = clients();
    let stranger = TestClient::new(77, 0, Amount::from_sat(200_000));
    let everybody = all.iter().chain([&stranger]);
    let _there: Vec<_> = everybody.map(|client| comes(&world, client)).collect();
    let places = async || {
        let shown = show::preview(&world.ctx).await.unwrap();
        let everybody = all.iter().chain([&stranger]);
        everybody
            .map(|client| place(&shown, client))
            .collect::<Vec<_>>()
    };
    let usual = Some(200_000);
    assert_eq!(places().await, [usual, usual, usual, usual, None]);

    let most = world.ctx.config.policy.capacity_max_sat / 10 * 9;
    world.ctx.lightning.pretended.lock().unwrap().channels = vec![
        channel(&all[0], None, 150_000),
        channel(&all[0], None, 100_000),
        // What lies in a factory is counted with that.
        channel(&all[1], Some(LeafId([9; 16])), 250_000),
        channel(&all[2], None, most + 1),
        // For that alone nobody is invited.
        channel(&stranger, None, 250_000),
    ];
    let both = Amount::from_sat(250_000);
    let reserve = (10_000, Amount::from_sat(1_000));
    let needed = capacity_for(both, Amount::from_sat(10_000), reserve);
    let larger = Some(needed.to_sat());
    assert!(larger > usual);
    assert_eq!(places().await, [larger, usual, usual, usual, None]);
}
