use bitcoin::hashes::Hash;
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Txid};

use super::*;
use crate::factory::Spent;
use crate::output::{OutputRole, RoledOutput, anchor};
use crate::params::Profile;
use crate::tx::{Timelock, TxKind};

const EXPIRY: Height = Height(5000);

fn params() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn p2tr() -> ScriptBuf {
    ScriptBuf::from_hex(&format!("5120{}", "11".repeat(32))).unwrap()
}

fn p2wsh() -> ScriptBuf {
    ScriptBuf::from_hex(&format!("0020{}", "11".repeat(32))).unwrap()
}

fn output(script: ScriptBuf) -> RoledOutput {
    RoledOutput {
        role: OutputRole::Payout,
        clients: 0..1,
        txout: TxOut {
            value: Amount::from_sat(1000),
            script_pubkey: script,
        },
    }
}

fn tx(
    kind: SpentKind,
    height: Option<u32>,
    delay: Option<u32>,
    outputs: Vec<RoledOutput>,
) -> FactoryTx {
    let spends = Spent {
        outpoint: OutPoint::new(Txid::all_zeros(), 0),
        kind,
        txout: output(p2tr()).txout,
        key: None,
        clients: 0..1,
    };
    let timelock = Timelock {
        height: height.map(Height),
        delay: delay.map(Blocks),
    };
    // The label is wrong on purpose: it must not matter.
    FactoryTx::new(TxKind::StockChain, timelock, spends, outputs)
}

fn free() -> RoledOutput {
    anchor(Amount::ZERO)
}

fn paid() -> RoledOutput {
    anchor(FUNDED_ANCHOR)
}

#[test]
fn every_purpose_is_recognised() {
    use SpentKind::{Channel, FirstStage, Funding, Kickoff, State, Static, Stock};
    let t = Some(EXPIRY.0);
    let (key, wsh) = (|| output(p2tr()), || output(p2wsh()));
    let table = [
        (tx(Funding, None, None, vec![key(), free()]), Purpose::Next),
        (tx(Static, t, None, vec![key(), paid()]), Purpose::Timeout),
        (tx(State, None, None, vec![key()]), Purpose::Close),
        (
            tx(Kickoff, None, Some(144), vec![wsh(), key(), free()]),
            Purpose::State(144),
        ),
        (
            tx(Kickoff, None, Some(0), vec![wsh(), free()]),
            Purpose::State(0),
        ),
        (
            tx(Kickoff, t, Some(288), vec![key(), paid()]),
            Purpose::Timeout,
        ),
        (
            tx(Stock, None, None, vec![wsh(), key(), free()]),
            Purpose::Next,
        ),
        (
            tx(Stock, t, Some(648), vec![key(), paid()]),
            Purpose::Timeout,
        ),
        (
            tx(Stock, None, Some(360), vec![key(), paid()]),
            Purpose::SalePoison(1),
        ),
        (
            tx(Stock, None, Some(144), vec![key(), paid()]),
            Purpose::SalePoison(4),
        ),
        (
            tx(Stock, None, None, vec![key(), paid()]),
            Purpose::DwPoison,
        ),
        (tx(Channel, t, None, vec![key(), free()]), Purpose::Timeout),
        (
            tx(Channel, None, None, vec![key(), free()]),
            Purpose::DwPoison,
        ),
        (
            tx(FirstStage, None, None, vec![key(), key(), paid()]),
            Purpose::Timeout,
        ),
    ];
    for (tx, purpose) in table {
        assert_eq!(classify(&tx, &params(), EXPIRY), Ok(purpose));
        assert_eq!(purpose.to_string().parse(), Ok(purpose));
    }
}

#[test]
fn what_fits_nothing_has_no_purpose() {
    use SpentKind::{Channel, FirstStage, Funding, Kickoff, Static, Stock};
    let t = Some(EXPIRY.0);
    let (key, wsh) = (|| output(p2tr()), || output(p2wsh()));
    let locks = [
        tx(Funding, Some(EXPIRY.0 - 1), None, vec![key(), paid()]),
        tx(Static, None, Some(10), vec![key(), free()]),
        tx(Static, t, Some(10), vec![key(), paid()]),
        tx(Kickoff, None, None, vec![wsh(), free()]),
        tx(Kickoff, None, Some(145), vec![wsh(), free()]),
        tx(Kickoff, t, None, vec![key(), paid()]),
        tx(Kickoff, t, Some(287), vec![key(), paid()]),
        tx(Stock, t, Some(647), vec![key(), paid()]),
        tx(Stock, None, Some(150), vec![key(), paid()]),
        tx(Channel, None, Some(10), vec![key(), free()]),
        tx(FirstStage, t, None, vec![key(), paid()]),
    ];
    for tx in locks {
        let error = classify(&tx, &params(), EXPIRY).unwrap_err();
        assert!(matches!(error, ClassifyError::Locks { .. }), "{error}");
    }
    let outputs = [
        tx(Funding, None, None, vec![key(), paid()]),
        tx(Funding, t, None, vec![key()]),
        tx(Funding, t, None, vec![wsh(), key(), paid()]),
        tx(Funding, None, None, vec![free(), key()]),
        tx(Funding, None, None, vec![key(), free(), free()]),
        tx(Kickoff, None, Some(144), vec![wsh()]),
        tx(Stock, None, None, vec![wsh(), key(), paid()]),
        tx(Channel, t, None, vec![wsh(), free()]),
    ];
    for tx in outputs {
        let error = classify(&tx, &params(), EXPIRY).unwrap_err();
        assert!(matches!(error, ClassifyError::Outputs { .. }), "{error}");
    }
}

#[test]
fn odd_transactions_are_refused() {
    let next = || tx(SpentKind::Funding, None, None, vec![output(p2tr()), free()]);
    let mut two_inputs = next();
    two_inputs.tx.input.push(two_inputs.tx.input[0].clone());
    let mut elsewhere = next();
    elsewhere.tx.input[0].previous_output.vout = 1;
    for tx in [two_inputs, elsewhere] {
        let error = classify(&tx, &params(), EXPIRY).unwrap_err();
        assert!(matches!(error, ClassifyError::Input(_)), "{error}");
    }
    let mut version = next();
    version.tx.version = bitcoin::transaction::Version::TWO;
    assert_eq!(
        classify(&version, &params(), EXPIRY),
        Err(ClassifyError::Version(2))
    );
    let mut empty = next();
    empty.tx.output.clear();
    assert_eq!(
        classify(&empty, &params(), EXPIRY),
        Err(ClassifyError::NoOutputs)
    );
    for sequence in [u32::MAX, 0xffff_fffe, 1 << 22, 0x0001_0001] {
        let mut odd = next();
        odd.tx.input[0].sequence = Sequence(sequence);
        let error = classify(&odd, &params(), EXPIRY).unwrap_err();
        assert!(matches!(error, ClassifyError::Locks { .. }), "{error}");
    }
}

#[test]
fn purposes_are_read_back_only_as_written() {
    for text in [
        "",
        "nex",
        "state",
        "state()",
        "state(+1)",
        "state(01)",
        "sale_poison(256)",
    ] {
        assert!(text.parse::<Purpose>().is_err(), "{text}");
    }
}
