//! Proposals changed at random by a coordinator that means what it says: every id is told anew, so
//! that only the rules about content can refuse. Whatever passes must still pay the client.

use bitcoin::ScriptBuf;
use proptest::prelude::*;

use super::*;
use crate::kit::{ChannelSignatures, ExitKit, JoinData};
use crate::output::{OutputRole, anchor_script};

/// One change. Indices are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Change {
    AccountsFrom(u32),
    SwapAccounts(usize, usize),
    AccountCapacity(usize, i64),
    AccountScript(usize, u8),
    OutputValue(usize, usize, i64),
    MoveValue(usize, usize, usize, i64),
    OutputScript(usize, usize, u8),
    SwapOutputs(usize, usize, usize),
    Sequence(usize, u32),
    SwapKeys(usize, usize),
    Key(usize),
    Position(u32),
    LspKey,
    LspChannelKey,
    Birth(i32),
    Expiry(i32),
    FundingValue(i64),
    FundingScript(u8),
    Branch(usize, usize, i64, i64),
    BranchScript(usize, usize, u8),
    DropTimeout,
    DropStockTimeout,
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0usize..300;
    let sat = || prop_oneof![Just(1i64), Just(-1), -300_000i64..300_000, Just(i64::MAX)];
    prop_oneof![
        (0u32..300).prop_map(Change::AccountsFrom),
        (at(), at()).prop_map(|(a, b)| Change::SwapAccounts(a, b)),
        (at(), sat()).prop_map(|(a, d)| Change::AccountCapacity(a, d)),
        (at(), 0u8..4).prop_map(|(a, s)| Change::AccountScript(a, s)),
        (at(), at(), sat()).prop_map(|(l, o, d)| Change::OutputValue(l, o, d)),
        (at(), at(), at(), sat()).prop_map(|(l, a, b, d)| Change::MoveValue(l, a, b, d)),
        (at(), at(), 0u8..4).prop_map(|(l, o, s)| Change::OutputScript(l, o, s)),
        (at(), at(), at()).prop_map(|(l, a, b)| Change::SwapOutputs(l, a, b)),
        (at(), prop_oneof![Just(0), Just(1), Just(144), any::<u32>()])
            .prop_map(|(l, s)| Change::Sequence(l, s)),
        (at(), at()).prop_map(|(a, b)| Change::SwapKeys(a, b)),
        at().prop_map(Change::Key),
        (0u32..300).prop_map(Change::Position),
        Just(Change::LspKey),
        Just(Change::LspChannelKey),
        (-9i32..9).prop_map(Change::Birth),
        (-9i32..9).prop_map(Change::Expiry),
        sat().prop_map(Change::FundingValue),
        (0u8..4).prop_map(Change::FundingScript),
        (at(), at(), sat(), sat()).prop_map(|(t, b, c, s)| Change::Branch(t, b, c, s)),
        (at(), at(), 0u8..4).prop_map(|(t, b, s)| Change::BranchScript(t, b, s)),
        Just(Change::DropTimeout),
        Just(Change::DropStockTimeout),
    ]
}

fn moved(amount: Amount, by: i64) -> Amount {
    Amount::from_sat(amount.to_sat().saturating_add_signed(by))
}

fn pick<T>(list: &mut [T], index: usize) -> Option<&mut T> {
    let count = list.len().max(1);
    list.get_mut(index % count)
}

fn swap<T>(list: &mut [T], a: usize, b: usize) {
    let count = list.len();
    if count > 0 {
        list.swap(a % count, b % count);
    }
}

/// A thief's script, a worthless one, an anchor, or the client's own.
fn script(which: u8, own: &Own) -> ScriptBuf {
    match which {
        0 => output::taproot(key(6, 0).x_only_public_key().0),
        1 => ScriptBuf::new(),
        2 => anchor_script(),
        _ => own.payout_script.clone(),
    }
}

impl Change {
    fn apply(self, case: &mut Case) {
        let (own, proposal) = (&case.own, &mut case.proposal);
        let levels = &mut proposal.levels;
        match self {
            Self::AccountsFrom(from) => proposal.accounts_from = from,
            Self::SwapAccounts(a, b) => swap(&mut proposal.accounts, a, b),
            Self::AccountCapacity(at, by) => {
                let account = pick(&mut proposal.accounts, at).unwrap();
                account.capacity = moved(account.capacity, by);
            }
            Self::AccountScript(at, which) => {
                pick(&mut proposal.accounts, at).unwrap().payout_script = script(which, own);
            }
            Self::OutputValue(level, at, by) => {
                let output = pick(&mut pick(levels, level).unwrap().outputs, at).unwrap();
                output.value = moved(output.value, by);
            }
            Self::MoveValue(level, from, to, by) => {
                let outputs = &mut pick(levels, level).unwrap().outputs;
                let source = pick(outputs, from).unwrap();
                source.value = moved(source.value, by.saturating_neg());
                let target = pick(outputs, to).unwrap();
                target.value = moved(target.value, by);
            }
            Self::OutputScript(level, at, which) => {
                let output = pick(&mut pick(levels, level).unwrap().outputs, at).unwrap();
                output.script_pubkey = script(which, own);
            }
            Self::SwapOutputs(level, a, b) => swap(&mut pick(levels, level).unwrap().outputs, a, b),
            Self::Sequence(level, sequence) => pick(levels, level).unwrap().sequence = sequence,
            Self::SwapKeys(a, b) => swap(&mut proposal.keys, a, b),
            Self::Key(at) => *pick(&mut proposal.keys, at).unwrap() = key(9, 9),
            Self::Position(position) => proposal.position = position,
            Self::LspKey => proposal.lsp_key = key(9, 8),
            Self::LspChannelKey => proposal.lsp_channel_key = key(9, 7),
            Self::Birth(by) => {
                proposal.birth = Height(proposal.birth.0.saturating_add_signed(by));
                proposal.expiry = Height(proposal.expiry.0.saturating_add_signed(by));
            }
            Self::Expiry(by) => {
                proposal.expiry = Height(proposal.expiry.0.saturating_add_signed(by));
            }
            Self::FundingValue(by) => {
                let output = &mut proposal.funding_tx.output[0];
                output.value = moved(output.value, by);
            }
            Self::FundingScript(which) => {
                proposal.funding_tx.output[0].script_pubkey = script(which, own);
            }
            Self::Branch(timeout, at, capacity, share) => {
                let timeout = pick(&mut proposal.timeouts, timeout);
                if let Some(branch) = timeout.and_then(|t| pick(&mut t.branches, at)) {
                    branch.capacity = moved(branch.capacity, capacity);
                    branch.share = moved(branch.share, share);
                }
            }
            Self::BranchScript(timeout, at, which) => {
                let timeout = pick(&mut proposal.timeouts, timeout);
                if let Some(branch) = timeout.and_then(|t| pick(&mut t.branches, at)) {
                    branch.script = script(which, own);
                }
            }
            Self::DropTimeout => drop(proposal.timeouts.pop()),
            Self::DropStockTimeout => proposal.stock_timeout = None,
        }
    }
}

/// What `path` pays to the client's own script at the end of each of its outputs' timeouts.
fn paid(path: &Path, own: &Own) -> Vec<Amount> {
    let to_own = |tx: &crate::factory::FactoryTx| -> Amount {
        let own = tx
            .tx
            .output
            .iter()
            .filter(|o| o.script_pubkey == own.payout_script);
        own.map(|output| output.value).sum()
    };
    let firsts = path.timeout_txs().chain([&path.channel_timeout]);
    let paid = firsts.map(|first| {
        let second = path
            .sessions
            .iter()
            .find(|tx| tx.spends.outpoint.txid == first.txid);
        to_own(second.unwrap_or(first))
    });
    paid.collect()
}

/// The kit of a path, with signatures that are none.
fn kit(case: &Case, path: &Path) -> ExitKit {
    let musig = schnorr::Signature::from_slice(&[1; 64]).unwrap();
    let ecdsa = ecdsa::Signature::from_compact(&[1; 64]).unwrap();
    let channel = ChannelSignatures {
        client: ecdsa,
        lsp: ecdsa,
    };
    let join = JoinData {
        ceremony: case.invitation.round.ceremony,
        attempt: case.invitation.round.attempt,
        join_nonce: [7; 16],
        leaf_id: LeafId::derive(&[7; 16], 0),
        factory_key: case.own.factory_key,
        channel_key: case.own.channel_key,
        payout_script: case.own.payout_script.clone(),
    };
    let signatures = vec![musig; path.sessions.len()];
    ExitKit::assemble(path, &case.proposal, &signatures, &channel, join).unwrap()
}

/// Everything the client was promised, read from the transactions themselves.
fn check_passed(case: &Case, path: &Path) {
    let capacity = case.invitation.capacity;
    let least = capacity.to_sat() * 98 / 100;
    assert!(path.position == case.proposal.position);
    let place = case.proposal.keys[path.position as usize];
    assert_eq!(place, case.own.factory_key);
    for amount in paid(path, &case.own) {
        assert!(amount.to_sat() >= least, "{amount}");
    }
    assert!(
        coverage(path) <= capacity,
        "more than the channel is never sure"
    );
    let channel = &path.channel_timeout.spends.txout;
    let due = crate::factory::channel_output(
        &case.own.channel_key,
        &case.proposal.lsp_channel_key,
        capacity,
    );
    assert_eq!(*channel, due);
    for tx in &path.sessions {
        let key = tx.spends.key.as_ref().unwrap();
        assert_eq!(
            tx.spends.txout.script_pubkey,
            key.script(),
            "not ours to sign"
        );
        assert!(key.owners.clients().contains(&path.position));
        assert_eq!(tx.outputs.last().unwrap().role, OutputRole::Anchor);
    }
    crate::exit::rehearse(&kit(case, path)).unwrap();
}

fn two_stages(position: u32) -> Case {
    case_of(params(), 205, position)
}

fn reclaim(position: u32) -> Case {
    let mut params = params();
    params.expiry_policy = ExpiryPolicy::LspReclaim;
    case_of(params, 8, position)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(400)))]

    #[test]
    fn whatever_passes_pays_the_client(
        changes in proptest::collection::vec(change(), 0..4), position in 0u32..8, reclaimed: bool,
    ) {
        let mut case = if reclaimed { reclaim(position) } else { case_of(params(), 8, position) };
        for change in &changes {
            change.apply(&mut case);
        }
        case.retell();
        if let Ok(path) = case.check() {
            check_passed(&case, &path);
        } else {
            prop_assert!(!changes.is_empty(), "an honest proposal is refused");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(24)))]

    #[test]
    fn whatever_passes_in_two_stages_pays_the_client(
        changes in proptest::collection::vec(change(), 1..3), position in 0u32..205,
    ) {
        let mut case = two_stages(position);
        for change in &changes {
            change.apply(&mut case);
        }
        case.retell();
        if let Ok(path) = case.check() {
            check_passed(&case, &path);
        }
    }
}
