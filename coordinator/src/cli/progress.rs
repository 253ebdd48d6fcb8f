//! How a creation goes, on the terminal.

use std::io::IsTerminal;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::admin::admin_client::AdminClient;
use proto::admin::factory_create_event::Event;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1;
use serde_json::json;
use tonic::Streaming;
use tonic::transport::Channel;

use super::args::Args;
use super::{Exit, Failure, operator, outln, output};

/// Shows how a ceremony goes; Ctrl-C leaves it to itself.
pub async fn follow(
    args: &Args,
    wait: bool,
    admin: &mut AdminClient<Channel>,
    events: Streaming<FactoryCreateEvent>,
) -> Result<(), Failure> {
    let mut ceremony = String::new();
    tokio::select! {
        result = watch(args, wait, admin, events, &mut ceremony) => return result,
        _ = tokio::signal::ctrl_c() => {}
    }
    let text = format!("left alone; {}", goes_on(args, &ceremony));
    Err(Failure::new(Exit::Failed, anyhow!(text)))
}

fn goes_on(args: &Args, ceremony: &str) -> String {
    let program = args.program();
    format!("ceremony {ceremony} goes on; stop it with: {program} factory cancel {ceremony}")
}

async fn watch(
    args: &Args,
    wait: bool,
    admin: &mut AdminClient<Channel>,
    mut events: Streaming<FactoryCreateEvent>,
    ceremony: &mut String,
) -> Result<(), Failure> {
    let json = args.json;
    let bar = ProgressBar::no_length();
    if json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    let mut shown = None;
    while let Some(next) = events
        .message()
        .await
        .map_err(|status| operator::failure(&ServiceError::from_status(&status)))?
    {
        match next.event {
            Some(Event::Started(started)) => {
                *ceremony = hex::encode(&started.ceremony);
                if !wait {
                    outln!("{}", started_text(args, ceremony, &started.waits_for));
                    return Ok(());
                }
                let text = format!(
                    "ceremony {ceremony}\nWhen this command ends, it goes on; stop it with: {} factory cancel {ceremony}",
                    args.program()
                );
                say(json, &bar, &text);
                if !started.waits_for.is_empty() {
                    // Also for who reads JSON: there is none before the end.
                    say(false, &bar, &format!("waits for {}", started.waits_for));
                }
            }
            Some(Event::Progress(progress)) if progress.phase() == v1::Phase::Unspecified => {
                let text = gathering(admin, &progress).await;
                bar.set_length(progress.total.into());
                bar.set_position(progress.done.into());
                bar.set_message(text.clone());
                if bar.is_hidden() {
                    say(json, &bar, &text);
                }
            }
            Some(Event::Progress(progress)) => {
                let attempt = progress.round.as_ref().map_or(0, |round| round.attempt);
                let what = format!("attempt {attempt}: {}", output::phase(progress.phase()));
                bar.set_length(progress.total.into());
                bar.set_position(progress.done.into());
                bar.set_message(what.clone());
                // Without a terminal one line per phase.
                if bar.is_hidden() && shown.as_ref() != Some(&what) {
                    say(json, &bar, &what);
                    shown = Some(what);
                }
            }
            Some(Event::LeftOut(left)) => {
                let phase = output::phase(left.phase());
                say(
                    json,
                    &bar,
                    &format!(
                        "left out: {} ({}, while {phase})",
                        hex::encode(&left.client),
                        left.reason
                    ),
                );
            }
            Some(Event::AttemptFailed(failed)) => {
                say(json, &bar, &format!("attempt failed: {}", failed.reason))
            }
            Some(Event::Finished(factory)) => {
                bar.finish_and_clear();
                output::created(json, ceremony, &factory);
                return Ok(());
            }
            Some(Event::Failed(error)) => {
                bar.finish_and_clear();
                return Err(failed(ceremony, error));
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    let text = format!("the coordinator stopped; ceremony {ceremony} goes on when it runs again");
    Err(Failure::new(Exit::Unreachable, anyhow!(text)))
}

fn failed(ceremony: &str, error: v1::Error) -> Failure {
    let error = match ServiceError::try_from(error) {
        Ok(error) => error,
        Err(error) => error.into(),
    };
    let why = error.message.clone();
    let mut failure = operator::failure(&ServiceError {
        message: format!("ceremony {ceremony} failed: {why}"),
        ..error
    });
    failure.ceremony = Some((ceremony.to_owned(), why));
    failure
}

/// Who is waited for, and what keeps them away if it is the node.
async fn gathering(admin: &mut AdminClient<Channel>, progress: &Progress) -> String {
    let info = admin.info(InfoRequest {}).await;
    let (connected, problem) = match info.map(tonic::Response::into_inner) {
        Ok(info) => (
            format!(" ({} connected)", info.clients_connected),
            info.chain_problem,
        ),
        Err(_) => (String::new(), String::new()),
    };
    let (done, total) = (progress.done, progress.total);
    let mut text = format!("gathering: {done} of {total} clients are interested{connected}");
    if !problem.is_empty() {
        text.push_str(&format!("; {problem}"));
    }
    text
}

/// What is printed when nobody waits for the end.
fn started_text(args: &Args, ceremony: &str, waits_for: &str) -> String {
    let program = args.program();
    if args.json {
        let waits_for = Some(waits_for).filter(|text| !text.is_empty());
        json!({ "ceremony": ceremony, "waits_for": waits_for }).to_string()
    } else if waits_for.is_empty() {
        format!("ceremony {ceremony} has begun; see `{program} factory list`")
    } else {
        format!(
            "ceremony {ceremony} waits for {waits_for}\nSee `{program} factory list`; stop it with: {program} factory cancel {ceremony}"
        )
    }
}

/// Progress goes to standard error: standard output is for the result.
fn say(json: bool, bar: &ProgressBar, text: &str) {
    if !json {
        bar.suspend(|| eprintln!("{text}"));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn what_waits_does_not_say_that_it_has_begun() {
        let args = |more: &[&str]| {
            let words = ["coordinator", "factory", "create"];
            Args::try_parse_from(words.iter().chain(more)).unwrap()
        };
        let (plain, json) = (args(&[]), args(&["--json"]));
        assert!(started_text(&plain, "ab", "").contains("has begun"));
        let text = started_text(&plain, "ab", "3 clients");
        assert!(
            text.starts_with("ceremony ab waits for 3 clients\n"),
            "{text}"
        );
        assert!(text.contains("factory cancel ab"), "{text}");
        let value =
            |waits| serde_json::from_str::<serde_json::Value>(&started_text(&json, "ab", waits));
        assert_eq!(value("3 clients").unwrap()["waits_for"], "3 clients");
        assert!(value("").unwrap()["waits_for"].is_null());
    }
}
