//! For each rule a proposal that breaks exactly it, and is refused for exactly it.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, ecdsa, schnorr};
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute};

use super::*;
use crate::ceremony::message::Round;
use crate::factory::{FactorySpec, Member, SpentKind};
use crate::ids::{Attempt, CeremonyId, ClientId, LeafId};
use crate::output;
use crate::params::{FactoryParams, Profile};
use crate::tree::{Draft, Tree, max_sessions};

mod hostile;

const TIP: Height = Height(1000);

fn secret(role: u8, index: u32) -> SecretKey {
    let mut bytes = [role; 32];
    bytes[28..].copy_from_slice(&(index + 1).to_be_bytes());
    SecretKey::from_slice(&bytes).unwrap()
}

fn key(role: u8, index: u32) -> PublicKey {
    secret(role, index).public_key(&Secp256k1::new())
}

fn pin() -> OutPoint {
    OutPoint::new(Txid::from_byte_array([9; 32]), 0)
}

/// A factory of `clients`, the view of one of them, and what that one agreed to.
struct Case {
    tree: Tree,
    funding_tx: Transaction,
    proposal: PathProposal,
    invitation: Invitation,
    own: Own,
    limits: Limits,
    known_factory: bool,
}

fn params() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn spec(params: &FactoryParams, clients: u32) -> FactorySpec {
    let secp = Secp256k1::new();
    let members = (0..clients).map(|i| Member {
        client: ClientId(key(4, i).serialize()),
        factory_key: key(1, i),
        payout_script: output::payout(&secp, key(2, i).x_only_public_key().0),
        leaf_id: LeafId::derive(&[7; 16], i),
        channel_key: key(3, i),
        lsp_channel_key: key(5, i),
        capacity: Amount::from_sat(200_000),
    });
    FactorySpec {
        params: params.clone(),
        birth: TIP,
        lsp_key: key(6, 0),
        members: members.collect(),
    }
}

fn funding(output: TxOut) -> Transaction {
    let input = TxIn {
        previous_output: pin(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    let change = TxOut {
        value: Amount::from_sat(50_000),
        script_pubkey: output::taproot(key(6, 1).x_only_public_key().0),
    };
    Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![input],
        output: vec![output, change],
    }
}

fn case_of(params: FactoryParams, clients: u32, position: u32) -> Case {
    let draft = Draft::new(spec(&params, clients)).unwrap();
    let funding_tx = funding(draft.funding_output());
    let tree = draft
        .at(OutPoint::new(funding_tx.compute_txid(), 0))
        .unwrap();
    let proposal = tree.proposal_for(position, &funding_tx).unwrap();
    let member = &tree.spec().members[position as usize];
    let own = Own {
        factory_key: member.factory_key,
        payout_script: member.payout_script.clone(),
        channel_key: member.channel_key,
    };
    let invitation = Invitation {
        round: Round {
            ceremony: CeremonyId([1; 16]),
            attempt: Attempt(1),
        },
        max_sessions: max_sessions(&params, clients).unwrap(),
        params,
        capacity: member.capacity,
        fee: Amount::ZERO,
        join_seconds: 20,
        step_seconds: 20,
        max_clients: clients,
        common_pin: pin(),
        confirmations: 1,
    };
    let mut limits = Limits::default_for(Network::Regtest);
    limits.allow_lsp_reclaim = true;
    Case {
        tree,
        funding_tx,
        proposal,
        invitation,
        own,
        limits,
        known_factory: false,
    }
}

fn case() -> Case {
    case_of(params(), 8, 5)
}

impl Case {
    fn check(&self) -> Result<Path, Refusal> {
        let agreed = Agreed {
            invitation: &self.invitation,
            own: &self.own,
            limits: &self.limits,
            tip: TIP,
            known_factory: self.known_factory,
        };
        check_proposal(&self.proposal, agreed)
    }

    /// The coordinator means exactly what its proposal makes: every id in it is told anew.
    fn retell(&mut self) {
        let Ok(path) = Path::rebuild(&self.proposal) else {
            return;
        };
        let proposal = &mut self.proposal;
        for (level, tx) in proposal.levels.iter_mut().zip(path.node_txs()) {
            level.txid = tx.txid;
        }
        for (timeout, tx) in proposal.timeouts.iter_mut().zip(path.timeout_txs()) {
            timeout.txid = tx.txid;
            let mut second = path.sessions.iter();
            let second = second.find(|second| second.spends.outpoint.txid == tx.txid);
            timeout.second_stage = second.map(|tx| tx.txid);
        }
        let stock = path
            .sessions
            .iter()
            .find(|tx| tx.spends.kind == SpentKind::Stock);
        proposal.stock_timeout = stock.map(|tx| tx.txid);
        proposal.channel_timeout = path.channel_timeout.txid;
    }

    fn refused_for(&self, rule: Rule) {
        match self.check() {
            Ok(_) => panic!("accepted, should break {rule}"),
            Err(refusal) => assert_eq!(refusal.rule, rule, "{refusal}"),
        }
    }
}

#[test]
fn honest_proposals_pass_for_everybody_and_rebuild_the_coordinators_transactions() {
    let mut deep = FactoryParams::profile(Profile::Deep, Network::Regtest);
    deep.kickoff_arity = 2;
    let mut reclaim = params();
    reclaim.expiry_policy = ExpiryPolicy::LspReclaim;
    let mut no_stock = params();
    no_stock.stock_share_ppm = 0;
    for (params, clients) in [
        (params(), 2),
        (params(), 9),
        (deep, 19),
        (reclaim, 11),
        (no_stock, 5),
    ] {
        for position in 0..clients {
            let case = case_of(params.clone(), clients, position);
            let path = case.check().unwrap();
            let sessions = case.tree.sessions_of(position);
            let theirs: Vec<Txid> = sessions.iter().map(|s| case.tree.txs()[*s].txid).collect();
            let ours: Vec<Txid> = path.sessions.iter().map(|tx| tx.txid).collect();
            assert_eq!(ours, theirs);
            assert!(ours.len() <= case.invitation.max_sessions as usize);
        }
    }
}

#[test]
fn two_stage_timeouts_rebuild_alike() {
    for position in [0, 77, 204] {
        let case = case_of(params(), 205, position);
        let path = case.check().unwrap();
        assert!(coverage(&path) >= Amount::from_sat(200_000));
        assert!(case.proposal.timeouts[0].second_stage.is_some());
    }
}

#[test]
fn rule_1_fresh() {
    let mut case = case();
    case.known_factory = true;
    case.refused_for(Rule::Fresh);
}

#[test]
fn rule_2_membership() {
    let mut moved = case();
    moved.proposal.position = 4;
    moved.refused_for(Rule::Membership);
    let mut twice = case();
    twice.proposal.keys[0] = twice.proposal.keys[1];
    twice.refused_for(Rule::Membership);
    let mut own_twice = case();
    own_twice.proposal.keys[0] = own_twice.own.factory_key;
    own_twice.refused_for(Rule::Membership);
    let mut lsp = case();
    lsp.proposal.keys[0] = lsp.proposal.lsp_key;
    lsp.refused_for(Rule::Membership);
}

/// The coordinator's tree with an own output keyed to the LSP alone, consistently rebuilt.
#[test]
fn rule_3_output_keys() {
    for level in [0, 1] {
        let mut case = case();
        let own = if level == 0 { 1 } else { 0 };
        let output = &mut case.proposal.levels[level].outputs[own];
        output.script_pubkey = output::taproot(key(6, 0).x_only_public_key().0);
        case.refused_for(Rule::OutputKeys);
    }
    let mut stock = case();
    let leaf = stock.proposal.levels.last_mut().unwrap();
    leaf.outputs[4].script_pubkey = output::taproot(key(6, 0).x_only_public_key().0);
    // The other sub-factory's stock is none of ours; ours (positions 4 and 5 of 8) is the first.
    stock.refused_for(Rule::OutputKeys);
}

/// Without timeouts too the stock belongs to its clients: nothing else would notice its key.
#[test]
fn rule_3_the_own_stock_is_keyed_to_its_owners_without_timeouts_too() {
    let mut params = params();
    params.expiry_policy = ExpiryPolicy::LspReclaim;
    let mut case = case_of(params, 8, 5);
    let leaf = case.proposal.levels.last_mut().unwrap();
    leaf.outputs[4].script_pubkey = output::taproot(key(6, 0).x_only_public_key().0);
    case.retell();
    case.refused_for(Rule::OutputKeys);
}

#[test]
fn rule_4_rebuild() {
    let mut txid = case();
    txid.proposal.levels[1].txid = Txid::all_zeros();
    txid.refused_for(Rule::Rebuild);
    // A sibling's script changed without telling: everything else holds.
    let mut sibling = case();
    sibling.proposal.levels[0].outputs[0].script_pubkey =
        output::taproot(key(6, 0).x_only_public_key().0);
    // What is below moves with it, so the timeouts differ first.
    assert!(matches!(
        sibling.check().unwrap_err().rule,
        Rule::Timeouts | Rule::Rebuild
    ));
}

#[test]
fn rule_5_timelocks() {
    for (level, sequence) in [
        (0, 144),
        (1, 0xffff_ffff),
        (2, 143),
        (2, 0xffff_fffd),
        (2, 1 << 22),
    ] {
        let mut case = case();
        case.proposal.levels[level].sequence = sequence;
        case.refused_for(Rule::Timelocks);
    }
}

#[test]
fn rule_6_amounts() {
    let mut sum = case();
    sum.proposal.levels[0].outputs[0].value += Amount::from_sat(1);
    sum.refused_for(Rule::Amounts);
    let mut own = case();
    own.proposal.accounts[5].capacity = Amount::from_sat(199_999);
    own.refused_for(Rule::Amounts);
    let mut payout = case();
    payout.proposal.accounts[5].payout_script = output::taproot(key(6, 0).x_only_public_key().0);
    payout.refused_for(Rule::Amounts);
    let mut channel = case();
    channel.proposal.lsp_channel_key = key(5, 77);
    channel.refused_for(Rule::Amounts);
    let mut mate = case();
    mate.proposal.accounts[4].capacity = Amount::from_sat(150_000);
    mate.refused_for(Rule::Amounts);
}

/// The account list is said to start elsewhere: what looks like ours would be a neighbour's, and the
/// timeouts of our own outputs would pay whoever is at our place.
#[test]
fn rule_6_accounts_start_where_the_claims_do() {
    let mut case = case();
    case.proposal.accounts.swap(0, 5);
    case.proposal.accounts_from = 5;
    case.proposal.accounts[5].payout_script = output::taproot(key(6, 0).x_only_public_key().0);
    case.retell();
    case.refused_for(Rule::Amounts);
}

#[test]
fn rule_7_shape() {
    let mut params = case();
    params.proposal.params.step = 143;
    params.refused_for(Rule::Shape);
    let mut clients = case();
    clients.invitation.max_clients = 7;
    clients.refused_for(Rule::Shape);
    let mut delay = case();
    delay.limits.max_exit_delay = Blocks(227);
    delay.refused_for(Rule::Shape);
    let mut size = case();
    size.limits.max_path_vbytes = 630 + 3 * 153 - 1;
    size.refused_for(Rule::Shape);
    let mut levels = case();
    levels.proposal.levels.pop();
    levels.refused_for(Rule::Shape);
}

#[test]
fn rule_8_relay() {
    // A sibling script that a node would not relay.
    let mut script = case();
    script.proposal.levels[0].outputs[0].script_pubkey = bitcoin::ScriptBuf::new();
    script.refused_for(Rule::Relay);
    // A sibling under the dust limit; the sum still holds.
    let mut dust = case();
    let outputs = &mut dust.proposal.levels[0].outputs;
    let moved = outputs[0].value - Amount::from_sat(329);
    outputs[0].value -= moved;
    outputs[1].value += moved;
    let refusal = dust.check().unwrap_err();
    // Our branch grew with it, so its own sum fails before; a dust sibling alone cannot hide.
    assert_eq!(refusal.rule, Rule::Amounts);
}

#[test]
fn rule_9_expiry() {
    let mut expiry = case();
    expiry.proposal.expiry = Height(expiry.proposal.expiry.0 - 1);
    expiry.refused_for(Rule::Expiry);
    let mut life = case();
    life.limits.max_lifetime = Blocks(5000);
    life.refused_for(Rule::Expiry);
    let mut birth = case();
    birth.limits.max_birth_drift = Blocks(0);
    birth.proposal.birth = Height(TIP.0 + 1);
    birth.proposal.expiry = Height(birth.proposal.expiry.0 + 1);
    birth.refused_for(Rule::Expiry);
}

#[test]
fn rule_10_timeouts() {
    let mut missing = case();
    missing.proposal.timeouts.pop();
    missing.refused_for(Rule::Timeouts);
    let mut other = case();
    other.proposal.timeouts[2].txid = Txid::all_zeros();
    other.refused_for(Rule::Timeouts);
    let mut stock = case();
    stock.proposal.stock_timeout = None;
    stock.refused_for(Rule::Timeouts);
    let mut channel = case();
    channel.proposal.channel_timeout = Txid::all_zeros();
    channel.refused_for(Rule::Timeouts);
    // A client of another leaf is said to own more than it does, so that we would get less.
    let mut claims = case();
    claims.proposal.accounts[0].capacity = Amount::from_sat(500_000);
    claims.refused_for(Rule::Timeouts);
    let mut branch = case_of(params(), 205, 3);
    branch.proposal.timeouts[0].branches[1].capacity += Amount::from_sat(1_000);
    branch.refused_for(Rule::Timeouts);
}

#[test]
fn rule_11_stock_delay() {
    let mut case = case();
    case.limits.min_stock_delay = Blocks(505);
    case.refused_for(Rule::StockDelay);
}

#[test]
fn rule_12_coverage() {
    let mut params = params();
    params.stock_share_ppm = 0;
    params.timeout_feerate = 200;
    case_of(params, 8, 2).refused_for(Rule::Coverage);
}

#[test]
fn rule_14_funding() {
    let mut amount = case();
    amount.proposal.funding_tx.output[0].script_pubkey =
        output::taproot(key(6, 0).x_only_public_key().0);
    amount.refused_for(Rule::Funding);
    let mut legacy = case();
    legacy.proposal.funding_tx.input[0].script_sig = bitcoin::ScriptBuf::from_bytes(vec![0x51]);
    legacy.refused_for(Rule::Funding);
    let mut pin = case();
    pin.proposal.funding_tx.input[0].previous_output.vout = 1;
    pin.refused_for(Rule::Funding);
    let mut change = case();
    change.proposal.funding_tx.output.pop();
    change.refused_for(Rule::Funding);
    let mut small = case();
    small.proposal.funding_tx.output[1].value = Amount::from_sat(9_999);
    small.refused_for(Rule::Funding);
    let mut vout = case();
    vout.proposal.funding_vout = 7;
    vout.refused_for(Rule::Funding);
}

#[test]
fn rule_14_funding_amount_is_the_roots_input() {
    let mut case = case();
    case.proposal.funding_tx.output[0].value += Amount::from_sat(1);
    case.refused_for(Rule::Amounts);
}

#[test]
fn rule_15_signatures() {
    let case = case();
    let path = case.check().unwrap();
    let forged = schnorr::Signature::from_slice(&[1; 64]).unwrap();
    let channel = ecdsa::Signature::from_compact(&[1; 64]).unwrap();
    let lsp = case.proposal.lsp_channel_key;
    for count in [path.sessions.len(), 0] {
        let signatures = vec![forged; count];
        let refusal = check_signatures(&path, &lsp, &case.own.channel_key, &signatures, &channel);
        assert_eq!(refusal.unwrap_err().rule, Rule::Signatures);
    }
}

#[test]
fn an_invitation_outside_the_users_limits_is_declined() {
    let terms = |change: fn(&mut Invitation, &mut Limits)| {
        let Case {
            mut invitation,
            mut limits,
            ..
        } = case();
        change(&mut invitation, &mut limits);
        check_invitation(&invitation, &limits)
    };
    assert!(terms(|_, _| {}).is_ok());
    assert!(terms(|i, _| i.params.network = Network::Bitcoin).is_err());
    assert!(terms(|i, _| i.capacity = Amount::from_sat(1)).is_err());
    assert!(terms(|i, _| i.fee = Amount::from_sat(1_000_000)).is_err());
    assert!(terms(|i, _| i.max_clients = 1_000_000).is_err());
    assert!(terms(|i, _| i.max_sessions += 1).is_err());
    assert!(terms(|i, _| i.params.q = 1).is_err());
    assert!(terms(|i, _| i.confirmations = 0).is_err());
    assert!(
        terms(|i, l| {
            i.params.expiry_policy = ExpiryPolicy::LspReclaim;
            l.allow_lsp_reclaim = false;
        })
        .is_err()
    );
}

#[test]
fn every_rule_has_a_name_of_its_own() {
    let case = case();
    let _ = (&case.tree, &case.funding_tx, Witness::new());
    let names = [
        Rule::Fresh,
        Rule::Membership,
        Rule::OutputKeys,
        Rule::Rebuild,
        Rule::Timelocks,
    ];
    let names: std::collections::BTreeSet<_> = names.iter().map(|rule| rule.name()).collect();
    assert_eq!(names.len(), 5);
}
