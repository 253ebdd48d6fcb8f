//! A plan as an SVG picture: capital above, fees below.

use core::fmt::Write;

use super::run::Day;
use super::summary::{Locked, Plan};

const WIDTH: u64 = 900;
const LEFT: u64 = 80;
const PLOT: u64 = 620;
const TOP: u64 = 50;
const UPPER: u64 = 300;
const LOWER_TOP: u64 = 420;
const LOWER: u64 = 110;
const HEIGHT: u64 = 570;

/// A part of what is locked.
type Layer = fn(&Locked) -> u64;

/// Bottom to top: name, colour, part.
const LAYERS: [(&str, &str, Layer); 4] = [
    ("channels in use", "#3b7dd8", |locked| locked.channels_sat),
    ("stock for sale", "#7cb5ec", |locked| locked.stock_sat),
    ("funded twice while moving", "#f2a541", |locked| {
        locked.double_sat
    }),
    ("held up by no-shows", "#d1495b", |locked| locked.tail_sat),
];

/// The picture.
#[must_use]
pub fn svg(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a string never fails.
    let _ = draw(&mut out, plan);
    out
}

fn draw(out: &mut String, plan: &Plan) -> core::fmt::Result {
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    )?;
    writeln!(
        out,
        r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##
    )?;
    let params = &plan.params;
    writeln!(
        out,
        r#"<text x="{LEFT}" y="24" font-size="16">{} clients of {} sat, {} per factory, no-shows {}</text>"#,
        params.clients,
        params.capacity.to_sat(),
        params.factory_clients,
        percent(params.no_show_ppm)
    )?;
    let most = plan.totals.peak_locked_sat.max(1);
    writeln!(
        out,
        r#"<text x="{LEFT}" y="44">Capital in factories, BTC (most: {})</text>"#,
        btc(most)
    )?;
    let mut below = vec![0u64; plan.days.len()];
    for (index, (name, colour, of)) in (0u64..).zip(LAYERS) {
        let above: Vec<u64> = plan
            .days
            .iter()
            .zip(&below)
            .map(|(day, base)| base.saturating_add(of(&day.locked)))
            .collect();
        area(out, &below, &above, most, colour)?;
        let y = TOP
            .saturating_add(20)
            .saturating_add(index.saturating_mul(20));
        legend(out, y, name, colour)?;
        below = above;
    }
    frame(out, TOP, UPPER, &btc(most))?;
    fees(out, &plan.days)?;
    let last = plan.days.len().saturating_sub(1);
    let y = HEIGHT.saturating_sub(14);
    writeln!(out, r#"<text x="{LEFT}" y="{y}">day 0</text>"#)?;
    let right = LEFT.saturating_add(PLOT);
    writeln!(
        out,
        r#"<text x="{right}" y="{y}" text-anchor="end">day {last}</text>"#
    )?;
    writeln!(out, "</svg>")
}

fn area(
    out: &mut String,
    below: &[u64],
    above: &[u64],
    most: u64,
    colour: &str,
) -> core::fmt::Result {
    write!(out, r#"<polygon fill="{colour}" points=""#)?;
    let count = above.len();
    for (index, value) in above.iter().enumerate() {
        write!(out, "{},{} ", x(index, count), y(*value, most, TOP, UPPER))?;
    }
    for (index, value) in below.iter().enumerate().rev() {
        write!(out, "{},{} ", x(index, count), y(*value, most, TOP, UPPER))?;
    }
    writeln!(out, r#""/>"#)
}

fn fees(out: &mut String, days: &[Day]) -> core::fmt::Result {
    let most = days
        .iter()
        .map(|day| day.fees_sat)
        .max()
        .unwrap_or(0)
        .max(1);
    let title = LOWER_TOP.saturating_sub(12);
    writeln!(
        out,
        r#"<text x="{LEFT}" y="{title}">On-chain fees per day, sat (most: {most})</text>"#
    )?;
    write!(out, r##"<polyline fill="none" stroke="#333333" points=""##)?;
    for (index, day) in days.iter().enumerate() {
        let y = y(day.fees_sat, most, LOWER_TOP, LOWER);
        write!(out, "{},{y} ", x(index, days.len()))?;
    }
    writeln!(out, r#""/>"#)?;
    frame(out, LOWER_TOP, LOWER, &most.to_string())
}

fn frame(out: &mut String, top: u64, height: u64, most: &str) -> core::fmt::Result {
    writeln!(
        out,
        r##"<rect x="{LEFT}" y="{top}" width="{PLOT}" height="{height}" fill="none" stroke="#999999"/>"##
    )?;
    let (at, bottom) = (LEFT.saturating_sub(6), top.saturating_add(height));
    let first = top.saturating_add(10);
    writeln!(
        out,
        r#"<text x="{at}" y="{first}" text-anchor="end">{most}</text>"#
    )?;
    writeln!(
        out,
        r#"<text x="{at}" y="{bottom}" text-anchor="end">0</text>"#
    )
}

fn legend(out: &mut String, y: u64, name: &str, colour: &str) -> core::fmt::Result {
    let at = LEFT.saturating_add(PLOT).saturating_add(12);
    let (box_y, text) = (y.saturating_sub(10), at.saturating_add(18));
    writeln!(
        out,
        r#"<rect x="{at}" y="{box_y}" width="12" height="12" fill="{colour}"/><text x="{text}" y="{y}">{name}</text>"#
    )
}

fn x(index: usize, count: usize) -> u64 {
    let last = count.saturating_sub(1).max(1) as u64;
    let along = (index as u64).saturating_mul(PLOT).checked_div(last);
    LEFT.saturating_add(along.unwrap_or(0))
}

fn y(value: u64, most: u64, top: u64, height: u64) -> u64 {
    let up = u128::from(value).saturating_mul(height.into());
    let up = up.checked_div(most.into()).unwrap_or(0);
    let up = u64::try_from(up).unwrap_or(height).min(height);
    top.saturating_add(height).saturating_sub(up)
}

fn percent(ppm: u32) -> String {
    format!("{}.{:02} %", ppm / 10_000, (ppm % 10_000) / 100)
}

fn btc(sat: u64) -> String {
    format!("{}.{:03}", sat / 100_000_000, (sat % 100_000_000) / 100_000)
}
