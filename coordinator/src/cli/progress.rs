//! How a creation goes, on the terminal.

use std::io::IsTerminal;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::admin::factory_create_event::Event;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1;
use serde_json::json;
use tonic::Streaming;

use super::{Exit, Failure, operator, outln, output};

pub async fn follow(
    json: bool,
    wait: bool,
    mut events: Streaming<FactoryCreateEvent>,
) -> Result<(), Failure> {
    let bar = ProgressBar::no_length();
    if json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    let mut ceremony = String::new();
    let mut shown = None;
    while let Some(next) = events
        .message()
        .await
        .map_err(|status| operator::failure(&ServiceError::from_status(&status)))?
    {
        match next.event {
            Some(Event::Started(started)) => {
                ceremony = hex::encode(&started.ceremony);
                if !wait {
                    print_started(json, &ceremony);
                    return Ok(());
                }
                say(json, &bar, &format!("ceremony {ceremony}"));
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
                output::created(json, &ceremony, &factory);
                return Ok(());
            }
            Some(Event::Failed(error)) => {
                bar.finish_and_clear();
                return Err(failed(&ceremony, error));
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

fn print_started(json: bool, ceremony: &str) {
    if json {
        outln!("{}", json!({ "ceremony": ceremony }));
    } else {
        outln!("ceremony {ceremony} has begun; see `coordinator factory list`");
    }
}

/// Progress goes to standard error: standard output is for the result.
fn say(json: bool, bar: &ProgressBar, text: &str) {
    if !json {
        bar.suspend(|| eprintln!("{text}"));
    }
}
