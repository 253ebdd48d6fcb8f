//! `coordinator ladder ..`

use factory_tree::ids::{ClientId, FactoryId};
use proto::admin::admin_client::AdminClient;
use proto::admin::*;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::args::LadderCommand;
use super::operator::refused;
use super::output::{pairs, table, yes};
use super::{Failure, outln};

/// Cells of a drawn life.
const WIDTH: u32 = 24;

pub async fn call(
    admin: &mut AdminClient<Channel>,
    json: bool,
    command: &LadderCommand,
) -> Result<(), Failure> {
    match command {
        LadderCommand::Show => {
            let answer = admin.ladder_show(LadderShowRequest {}).await;
            show(json, &answer.map_err(refused)?.into_inner());
        }
        LadderCommand::Preview => {
            let answer = admin.ladder_preview(LadderPreviewRequest {}).await;
            preview(json, &answer.map_err(refused)?.into_inner());
        }
        LadderCommand::Forecast { days } => {
            let request = LadderForecastRequest { days: *days };
            let answer = admin.ladder_forecast(request).await;
            forecast(json, &answer.map_err(refused)?.into_inner());
        }
    }
    Ok(())
}

fn factory_id(bytes: &[u8]) -> String {
    FactoryId::try_from(bytes).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn client_id(bytes: &[u8]) -> String {
    ClientId::try_from(bytes).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

fn show(json: bool, answer: &LadderShowResponse) {
    if json {
        outln!("{}", show_json(answer));
        return;
    }
    let next = match (answer.enabled, answer.next_birth) {
        (false, _) => "never: set ladder.enabled = true".to_owned(),
        (true, None) => "at the next block".to_owned(),
        (true, Some(height)) if height <= answer.height => "now".to_owned(),
        (true, Some(height)) => format!("block {height}"),
    };
    let mut head = vec![
        ("height", answer.height.to_string()),
        (
            "ladder",
            format!(
                "{} rungs, one birth every {} blocks",
                answer.rungs, answer.spacing
            ),
        ),
        ("next birth", next),
    ];
    if let Some(wait) = &answer.waiting {
        head.push(("waits for", waits_for(wait)));
    }
    if let Some(failure) = &answer.last_failure {
        head.extend(failure_pairs(failure));
    }
    pairs(&head);
    if answer.factories.is_empty() {
        outln!("\nno factories yet");
        return;
    }
    outln!("\n= active, ~ dying, ! closing, | now; then T");
    let rows: Vec<Vec<String>> = answer
        .factories
        .iter()
        .map(|row| factory_row(row, answer.height))
        .collect();
    table(
        &[
            "RUNG",
            "FACTORY",
            "STATE",
            "LIFE",
            "BORN",
            "DYING",
            "T",
            "CLIENTS",
            "MOVING",
            "LEFT",
            "SILENT",
            "PUBLISHED",
            "LOCKED",
            "CLIENTS'",
            "STOCK",
        ],
        &rows,
    );
    outln!("\n{}", locked(&answer.factories));
}

/// What is locked in all, and in how many; a factory of which nothing is left locks nothing.
fn locked(factories: &[LadderFactory]) -> String {
    let sum = |field: fn(&LadderFactory) -> u64| factories.iter().map(field).sum::<u64>();
    let count = factories.iter().filter(|row| row.locked_sat > 0).count();
    format!(
        "{} sat locked in {count} {}, of that {} sat the clients'",
        sum(|row| row.locked_sat),
        if count == 1 { "factory" } else { "factories" },
        sum(|row| row.client_sat)
    )
}

fn show_json(answer: &LadderShowResponse) -> Value {
    let factories: Vec<Value> = answer.factories.iter().map(factory_json).collect();
    json!({
        "enabled": answer.enabled,
        "height": answer.height,
        "rungs": answer.rungs,
        "spacing": answer.spacing,
        "next_birth": answer.next_birth,
        "waiting": answer.waiting.as_ref().map(wait_json),
        "last_failure": answer.last_failure.as_ref().map(failure_json),
        "factories": factories,
    })
}

fn wait_json(wait: &LadderWait) -> Value {
    let away: Vec<String> = wait.away.iter().map(|client| client_id(client)).collect();
    json!({ "rung": wait.rung, "away": away, "until": wait.until })
}

fn waits_for(wait: &LadderWait) -> String {
    let whom = match wait.away.len() {
        0 => "clients that ask for a place".to_owned(),
        1 => "1 client that must leave its factory and is away".to_owned(),
        many => format!("{many} clients that must leave their factories and are away"),
    };
    format!(
        "{whom} (`coordinator ladder preview`), at most until block {}; then it begins with those who are there, if they are enough",
        wait.until
    )
}

fn failure_json(failure: &LadderFailure) -> Value {
    json!({
        "rung": failure.rung,
        "ceremony": hex::encode(&failure.ceremony),
        "attempt": failure.attempt,
        "begun": failure.begun,
        "reason": failure.reason,
        "next": failure.next,
    })
}

fn failure_pairs(failure: &LadderFailure) -> [(&'static str, String); 3] {
    let ceremony = short(&hex::encode(&failure.ceremony));
    let attempt = match failure.attempt {
        0 => String::new(),
        number => format!(", attempt {number}"),
    };
    [
        (
            "last failed birth",
            format!(
                "rung {}, ceremony {ceremony} begun at block {}{attempt}",
                failure.rung, failure.begun
            ),
        ),
        ("why", failure.reason.clone()),
        ("then", failure.next.clone()),
    ]
}

fn factory_json(row: &LadderFactory) -> Value {
    json!({
        "id": factory_id(&row.id),
        "rung": row.rung,
        "stage": row.stage,
        "dying_day": row.dying_day,
        "born": row.born,
        "dying_from": row.dying_from,
        "closes": row.closes,
        "expires": row.expires,
        "clients": row.clients,
        "moving": row.moving,
        "handed_over": row.handed_over,
        "silent": row.silent,
        "published": row.published,
        "locked_sat": row.locked_sat,
        "client_sat": row.client_sat,
        "stock_sat": row.stock_sat,
        "root": row.root,
        "loss_sat": row.loss_sat,
    })
}

fn state(row: &LadderFactory) -> String {
    match (row.stage.as_str(), row.root.as_str()) {
        ("dying", "standing") => format!("dying, day {}", row.dying_day),
        (_, "coming_back") => "coming back".to_owned(),
        (_, "reaped") => "reaped".to_owned(),
        (_, "timed_out") => "timed out".to_owned(),
        // It is in use no more, whatever its calendar says.
        ("active", "published") => "published".to_owned(),
        (stage @ ("dying" | "closing" | "expired"), "published") => format!("{stage}, published"),
        (stage, _) => stage.to_owned(),
    }
}

fn factory_row(row: &LadderFactory, height: u32) -> Vec<String> {
    vec![
        row.rung
            .map_or_else(|| "-".to_owned(), |rung| rung.to_string()),
        short(&factory_id(&row.id)),
        state(row),
        life(row, height),
        row.born.to_string(),
        row.dying_from.to_string(),
        row.expires.to_string(),
        row.clients.to_string(),
        row.moving.to_string(),
        row.handed_over.to_string(),
        row.silent.to_string(),
        row.published.to_string(),
        row.locked_sat.to_string(),
        row.client_sat.to_string(),
        row.stock_sat.to_string(),
    ]
}

/// A factory's calendar as a bar, with the present in it.
fn life(row: &LadderFactory, height: u32) -> String {
    let span = row.expires.saturating_sub(row.born).max(1);
    let at = |cell: u32| {
        let blocks = u64::from(span).saturating_mul(cell.into()) / u64::from(WIDTH);
        row.born
            .saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX))
    };
    (0..WIDTH)
        .map(|cell| {
            let (from, to) = (at(cell), at(cell.saturating_add(1)));
            if (from..to).contains(&height) {
                '|'
            } else if from < row.dying_from {
                '='
            } else if from < row.closes {
                '~'
            } else {
                '!'
            }
        })
        .collect()
}

fn preview(json: bool, answer: &LadderPreviewResponse) {
    if json {
        let seats: Vec<Value> = answer
            .seats
            .iter()
            .map(|seat| {
                json!({
                    "client": client_id(&seat.client),
                    "capacity_sat": seat.capacity_sat,
                    "leaf": seat.leaf,
                    "standing": seat.standing,
                    "why": seat.why,
                })
            })
            .collect();
        let excluded: Vec<Value> = answer
            .excluded
            .iter()
            .map(|out| json!({"client": client_id(&out.client), "why": out.why}))
            .collect();
        let away: Vec<String> = answer.away.iter().map(|client| client_id(client)).collect();
        outln!(
            "{}",
            json!({
                "seats": seats,
                "excluded": excluded,
                "away": away,
                "channels_sat": answer.channels_sat,
                "stock_sat": answer.stock_sat,
                "total_sat": answer.total_sat,
                "available_sat": answer.available_sat,
                "problem": (!answer.problem.is_empty()).then_some(&answer.problem),
            })
        );
        return;
    }
    let rows: Vec<Vec<String>> = answer
        .seats
        .iter()
        .map(|seat| {
            vec![
                seat.leaf.to_string(),
                short(&client_id(&seat.client)),
                seat.capacity_sat.to_string(),
                seat.standing.clone(),
                seat.why.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        table(&["LEAF", "CLIENT", "CAPACITY", "STANDING", "WHY"], &rows);
        outln!("");
    }
    for client in &answer.away {
        outln!("{} is away; its factory ends", short(&client_id(client)));
    }
    for out in &answer.excluded {
        outln!(
            "{} is not invited: {}",
            short(&client_id(&out.client)),
            out.why
        );
    }
    let enough = answer.available_sat >= answer.total_sat;
    pairs(&[
        ("channels", format!("{} sat", answer.channels_sat)),
        ("stock", format!("{} sat", answer.stock_sat)),
        (
            "takes",
            format!("{} sat and the funding's fee", answer.total_sat),
        ),
        ("in the wallet", format!("{} sat", answer.available_sat)),
        ("enough", yes(enough)),
    ]);
    if !answer.problem.is_empty() {
        outln!("no factory now: {}", answer.problem);
    }
}

fn forecast(json: bool, answer: &LadderForecastResponse) {
    if json {
        let days: Vec<Value> = answer
            .days
            .iter()
            .map(|day| {
                json!({
                    "day": day.day,
                    "height": day.height,
                    "births": day.births,
                    "clients": day.clients,
                    "reaps": day.reaps,
                    "locked_sat": day.locked_sat,
                    "needed_sat": day.needed_sat,
                    "fees_sat": day.fees_sat,
                })
            })
            .collect();
        outln!(
            "{}",
            json!({
                "feerate_sat_per_vb": answer.feerate,
                "most_locked_sat": answer.most_locked_sat,
                "days": days,
            })
        );
        return;
    }
    // Days on which nothing happens say nothing.
    let rows: Vec<Vec<String>> = answer
        .days
        .iter()
        .filter(|day| day.births > 0 || day.reaps > 0 || day.day == 0)
        .map(|day| {
            vec![
                day.day.to_string(),
                day.height.to_string(),
                day.births.to_string(),
                day.clients.to_string(),
                day.reaps.to_string(),
                day.needed_sat.to_string(),
                day.locked_sat.to_string(),
                day.fees_sat.to_string(),
            ]
        })
        .collect();
    table(
        &[
            "DAY", "HEIGHT", "BIRTHS", "CLIENTS", "REAPS", "NEEDED", "LOCKED", "FEES",
        ],
        &rows,
    );
    let fees: u64 = answer.days.iter().map(|day| day.fees_sat).sum();
    outln!(
        "\nin {} days: at most {} sat locked at once, {fees} sat of fees at {} sat/vB; if everybody comes to its first invitation, nobody joins and nobody leaves",
        answer.days.len(),
        answer.most_locked_sat,
        answer.feerate
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_birth_that_waits_says_for_whom_and_until_when() {
        let wait = |away| LadderWait {
            rung: 3,
            away: vec![vec![2; 33].into(); away],
            until: 712,
        };
        for (away, whom) in [
            (0, "clients that ask"),
            (1, "1 client that"),
            (2, "2 clients that"),
        ] {
            let text = waits_for(&wait(away));
            assert!(text.starts_with(whom), "{text}");
            assert!(text.contains("until block 712"), "{text}");
        }
        let answer = LadderShowResponse {
            waiting: Some(wait(1)),
            ..LadderShowResponse::default()
        };
        let shown = &show_json(&answer)["waiting"];
        assert_eq!(shown["away"], json!(["02".repeat(33)]));
        assert_eq!((&shown["rung"], &shown["until"]), (&json!(3), &json!(712)));
    }

    #[test]
    fn what_is_on_the_chain_is_called_so_and_locks_what_is_left_of_it() {
        let row = |stage: &str, root: &str, locked_sat| LadderFactory {
            stage: stage.to_owned(),
            root: root.to_owned(),
            locked_sat,
            ..LadderFactory::default()
        };
        assert_eq!(state(&row("active", "published", 0)), "published");
        assert_eq!(state(&row("ended", "published", 0)), "ended");
        let closing = row("closing", "published", 1);
        assert_eq!(state(&closing), "closing, published");
        let all = [row("active", "standing", 5), row("ended", "published", 0)];
        let text = locked(&all);
        assert!(text.starts_with("5 sat locked in 1 factory,"), "{text}");
        let both = locked(&[row("active", "standing", 5), closing]);
        assert!(both.starts_with("6 sat locked in 2 factories,"), "{both}");
    }

    #[test]
    fn a_failed_birth_is_in_the_text_and_in_the_json() {
        let failure = LadderFailure {
            rung: 3,
            ceremony: vec![0xab; 16].into(),
            attempt: 2,
            begun: 700,
            reason: "some clients did not answer in time".to_owned(),
            next: "the next attempt is under way".to_owned(),
        };
        let text = failure_pairs(&failure);
        assert_eq!(
            text[0].1,
            "rung 3, ceremony abababab begun at block 700, attempt 2"
        );
        assert_eq!((&text[1].1, &text[2].1), (&failure.reason, &failure.next));
        let answer = LadderShowResponse {
            last_failure: Some(failure),
            ..LadderShowResponse::default()
        };
        let shown = &show_json(&answer)["last_failure"];
        assert_eq!(shown["ceremony"], "ab".repeat(16));
        assert_eq!(shown["begun"], 700);
        assert_eq!(shown["reason"], "some clients did not answer in time");
        assert_eq!(shown["next"], "the next attempt is under way");
        let none = show_json(&LadderShowResponse::default());
        assert_eq!(none["last_failure"], Value::Null);
    }
}
