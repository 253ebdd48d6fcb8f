use bitcoin::Network;
use factory_tree::ceremony::message::{Proposal, ToClient};
use factory_tree::params::ExpiryPolicy;
use factory_tree::tree::Tree;
use proto::v1;
use proto::wire::{FromServer, ProposalParts, WireError};

use crate::fixture;

/// A proposal from the shared parts is the one that the tree makes, and comes back as it was.
#[test]
fn parts_make_the_trees_proposals() {
    // Above 200 clients timeouts have two stages.
    for clients in [2, 9, 205] {
        let (tree, funding_tx) = fixture::factory(clients);
        let parts = ProposalParts::new(fixture::round(), &tree, &funding_tx).unwrap();
        for position in (0..clients).step_by(13).chain([clients - 1]) {
            let proposal = fixture::proposal(&tree, &funding_tx, position);
            let wire = parts.for_client(position, proposal.sums.iter()).unwrap();
            assert_eq!(wire, v1::Proposal::from(&proposal));
            assert_eq!(Proposal::try_from(wire.clone()), Ok(proposal.clone()));
            let body = v1::server_message::Body::Proposal(wire);
            assert_eq!(
                FromServer::parse(body.into(), Network::Regtest),
                Ok(FromServer::Ceremony(ToClient::Proposal(Box::new(proposal))))
            );
        }
        let missing = parts.for_client(clients, [].iter()).unwrap_err();
        assert_eq!(missing, WireError::Position { position: clients });
    }
}

#[test]
fn two_stage_proposals_have_branches() {
    let (tree, funding_tx) = fixture::factory(205);
    let wire = v1::Proposal::from(&fixture::proposal(&tree, &funding_tx, 0));
    assert!(wire.timeouts.iter().any(|t| !t.branches.is_empty()));
    assert!(wire.timeouts.iter().any(|t| t.second_stage.is_some()));
    assert!(wire.stock_timeout.is_some());
}

#[test]
fn factories_without_timeouts_travel_too() {
    let (tree, funding_tx) = fixture::factory(5);
    let mut spec = tree.spec().clone();
    spec.params.expiry_policy = ExpiryPolicy::LspReclaim;
    let tree = Tree::new(spec, tree.funding()).unwrap();
    let proposal = fixture::proposal(&tree, &funding_tx, 3);
    assert!(proposal.path.timeouts.is_empty());
    let wire = v1::Proposal::from(&proposal);
    assert_eq!(wire.stock_timeout, None);
    assert_eq!(Proposal::try_from(wire), Ok(proposal));
}

#[test]
fn key_list_scripts_and_funding_are_shared_by_reference() {
    let (tree, funding_tx) = fixture::factory(33);
    let parts = ProposalParts::new(fixture::round(), &tree, &funding_tx).unwrap();
    let (a, b) = (
        parts.for_client(0, [].iter()).unwrap(),
        parts.for_client(32, [].iter()).unwrap(),
    );
    assert_eq!(a.keys.as_ptr(), b.keys.as_ptr());
    assert_eq!(a.payout_scripts.as_ptr(), b.payout_scripts.as_ptr());
    assert_eq!(a.funding_tx.as_ptr(), b.funding_tx.as_ptr());
}

#[test]
fn parts_refuse_payouts_that_the_receivers_would() {
    let (tree, funding_tx) = fixture::factory(5);
    let mut spec = tree.spec().clone();
    spec.members[3].payout_script = bitcoin::ScriptBuf::from_bytes(vec![0x51]);
    let tree = Tree::new(spec, tree.funding()).unwrap();
    let error = ProposalParts::new(fixture::round(), &tree, &funding_tx).unwrap_err();
    assert!(
        matches!(error, WireError::Script { index: 3, .. }),
        "{error}"
    );
}
