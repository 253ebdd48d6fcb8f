//! Ceremonies of honest clients with anything in between.

use super::*;

/// What a hostile client, a bad connection or a clumsy adapter puts between two inputs.
#[derive(Clone, Copy, Debug)]
enum Noise {
    Connected(usize),
    Gone(usize),
    Decline(usize),
    /// An earlier input once more.
    Again(usize),
    /// The deadline of this phase of an attempt so many before or after the current one.
    Deadline(i32, usize),
    Tip(u32),
    /// A client is sent what it, or another, was sent before.
    Resent(usize, usize),
}

const PHASES: [Phase; 6] = [
    Phase::Joining,
    Phase::Confirming,
    Phase::Funding,
    Phase::Signing,
    Phase::Acking,
    Phase::Finished,
];

fn noise() -> impl Strategy<Value = Noise> {
    let client = 0usize..4;
    prop_oneof![
        4 => client.clone().prop_map(Noise::Connected),
        3 => client.clone().prop_map(Noise::Gone),
        1 => client.prop_map(Noise::Decline),
        6 => (0usize..100).prop_map(Noise::Again),
        2 => (-1i32..2, 0usize..6).prop_map(|(attempt, phase)| Noise::Deadline(attempt, phase)),
        1 => (490u32..510).prop_map(Noise::Tip),
        6 => (0usize..4, 0usize..200).prop_map(|(client, message)| Noise::Resent(client, message)),
    ]
}

fn copy(input: &Input) -> Option<Input> {
    Some(match input {
        Input::Joined {
            client,
            join,
            lsp_channel_key,
        } => Input::Joined {
            client: *client,
            join: join.clone(),
            lsp_channel_key: *lsp_channel_key,
        },
        Input::Message { client, message } => Input::Message {
            client: *client,
            message: message.clone(),
        },
        Input::FundingReady(funding) => Input::FundingReady(funding.clone()),
        _ => return None,
    })
}

impl Sim {
    fn noise(&self, noise: Noise, seen: &[Input]) -> Option<Input> {
        let round = self.ceremony.as_ref().unwrap().round();
        let client = |number: usize| client_id(number as u64 + 1);
        Some(match noise {
            Noise::Connected(number) => Input::Connected(client(number)),
            Noise::Gone(number) => Input::Gone(client(number)),
            Noise::Decline(number) => Input::Message {
                client: client(number),
                message: ToCoordinator::Decline {
                    round,
                    reason: DeclineReason::Unable("noise".into()),
                },
            },
            Noise::Again(index) => copy(seen.get(index % seen.len().max(1))?)?,
            Noise::Deadline(by, phase) => Input::Deadline {
                round: Round {
                    attempt: Attempt(round.attempt.0.saturating_add_signed(by)),
                    ..round
                },
                phase: PHASES[phase],
            },
            Noise::Tip(height) => Input::Tip(Height(height)),
            Noise::Resent(..) => return None,
        })
    }

    fn resend(&mut self, number: usize, message: usize) {
        let (_, message) = self.sent[message % self.sent.len()].clone();
        self.deliver(client_id(number as u64 + 1), message);
    }

    /// Every wallet signed at most one message for each purpose of an output, ever (I10).
    fn check_signed(&self) {
        for (wallet, _) in self.wallets.values() {
            let mut signed = BTreeMap::new();
            for record in &wallet.signed {
                let first = signed.insert((record.outpoint, record.purpose), record.sighash);
                assert!(first.is_none_or(|first| first == record.sighash), "I10");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(48)))]

    /// Whatever comes in between: the ceremony ends, nobody honest is blamed (I6), and what is funded
    /// never failed (I4) and is held complete by all its clients (I2).
    #[test]
    fn noise_never_loses_a_ceremony(
        noises in proptest::collection::vec((0usize..12, noise()), 0..30),
    ) {
        let mut sim = Sim::new(&[Fault::Honest; 4], lite());
        let mut seen = Vec::new();
        for (steps, noise) in noises {
            for _ in 0..steps {
                if let Some(input) = sim.to_coordinator.pop_front() {
                    seen.extend(copy(&input));
                    sim.input(input);
                }
            }
            match noise {
                Noise::Resent(client, message) => sim.resend(client, message),
                noise => {
                    if let Some(input) = sim.noise(noise, &seen) {
                        sim.input(input);
                    }
                }
            }
        }
        sim.run();
        sim.check_signed();
        prop_assert!(sim.blamed().is_empty());
        prop_assert!(sim.funded.len() <= 1);
        let ended = sim.events.iter().filter(|event| {
            matches!(event, Event::CeremonyComplete { .. } | Event::CeremonyFailed { .. })
        });
        prop_assert_eq!(ended.count(), 1);
        for (round, tree) in &sim.funded {
            let failed = |record: &Record| matches!(record, Record::AttemptFailed { round: failed, .. } if failed == round);
            prop_assert!(!sim.records.iter().any(failed));
            for member in &tree.spec().members {
                let (wallet, _) = &sim.wallets[&member.client];
                let kit = ExitKit::from_json(&wallet.kits[&tree.id()]).unwrap();
                prop_assert!(kit.verify().is_ok());
            }
        }
    }
}
