//! What all pictures have in common: sizes, fonts, colours, titles, footers, axes.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Drawn;
use crate::Failure;

/// How wide a picture is, in pixels.
pub(super) const WIDTH: u32 = 960;
/// The empty space at its edges.
pub(super) const EDGE: i32 = 16;
/// Fonts: what a viewer has anyway.
pub(super) const SANS: &str = "sans-serif";
const MONO: &str = "monospace";
const TITLE_SIZE: u32 = 18;
pub(super) const TEXT_SIZE: u32 = 13;
const FOOT_SIZE: u32 = 11;
const FOOT_LINE: i32 = 15;
/// Values that span more than this get a logarithmic axis.
const LOG_SPAN: f64 = 30.0;

/// Colours that people with colour-blindness can tell apart (Okabe and Ito, "Color Universal Design", 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(110, 110, 110),
];

pub(super) fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

/// The picture that is being drawn.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a picture of this height.
pub(super) fn picture(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Failure> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    area.fill(&WHITE)?;
    draw(&area)?;
    area.present()?;
    drop(area);
    Ok(svg)
}

/// How wide a text may become: SVG viewers have different fonts, so it is taken wide.
pub(super) fn text_width(text: &str, size: u32) -> i32 {
    (text.chars().count() as f64 * f64::from(size) * 0.6).ceil() as i32
}

pub(super) fn text(area: &Area<'_>, what: &str, at: (i32, i32), (h, v): (HPos, VPos), colour: &RGBColor) -> Drawn {
    let style = TextStyle::from((SANS, TEXT_SIZE).into_font()).color(colour).pos(Pos::new(h, v));
    Ok(area.draw_text(what, &style, at)?)
}

/// The title in as many lines as it needs.
fn title_lines(title: &str, width: u32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in title.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), TITLE_SIZE) <= width as i32 - 2 * EDGE => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

pub(super) fn title_height(title: &str, width: u32) -> i32 {
    EDGE + title_lines(title, width).len() as i32 * (TITLE_SIZE as i32 + 6)
}

pub(super) fn footer_height(footer: &str) -> i32 {
    footer.lines().count() as i32 * FOOT_LINE + EDGE
}

/// The title at the top and the footer at the bottom.
pub(super) fn frame(area: &Area<'_>, title: &str, footer: &str) -> Drawn {
    let (width, height) = area.dim_in_pixel();
    let style = TextStyle::from((SANS, TITLE_SIZE).into_font());
    for (at, line) in title_lines(title, width).iter().enumerate() {
        area.draw_text(line, &style, (EDGE, EDGE + at as i32 * (TITLE_SIZE as i32 + 6)))?;
    }
    let style = TextStyle::from((MONO, FOOT_SIZE).into_font()).color(&RGBColor(90, 90, 90));
    let top = height as i32 - footer_height(footer);
    for (at, line) in footer.lines().enumerate() {
        area.draw_text(line, &style, (EDGE, top + at as i32 * FOOT_LINE))?;
    }
    Ok(())
}

/// A legend in one or more lines below `top`; returns its height. Without an area it is only measured.
pub(super) fn legend(area: Option<&Area<'_>>, names: &[String], top: i32, width: u32) -> Result<i32, Failure> {
    const LINE: i32 = 20;
    let (mut x, mut y) = (EDGE, top);
    for (at, name) in names.iter().enumerate() {
        let needed = 18 + text_width(name, TEXT_SIZE) + 18;
        if x > EDGE && x + needed > width as i32 - EDGE {
            (x, y) = (EDGE, y + LINE);
        }
        if let Some(area) = area {
            area.draw(&Rectangle::new([(x, y + 3), (x + 12, y + 15)], colour(at).filled()))?;
            text(area, name, (x + 18, y + 9), (HPos::Left, VPos::Center), &BLACK)?;
        }
        x += needed;
    }
    Ok(y - top + LINE)
}

/// From values to pixels, and where the ticks are.
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    pixels: (i32, i32),
}

impl Axis {
    /// An axis for these values along these pixels. A linear one begins at 0.
    pub(super) fn new(values: impl Iterator<Item = f64> + Clone, pixels: (i32, i32)) -> Self {
        let low = values.clone().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let high = values.clone().fold(0.0, f64::max);
        let log = low.is_finite() && high / low > LOG_SPAN && values.clone().all(|value| value > 0.0);
        let (low, high) = match log {
            true => (10f64.powf((low * 0.8).log10().floor()), 10f64.powf(high.log10().ceil())),
            false if high > 0.0 => (0.0, high * 1.02),
            false => (0.0, 1.0),
        };
        Self { low, high, log, pixels }
    }

    /// An axis for values that are not counts from 0 but settings, doubling mostly: logarithmic to the base of 2 from
    /// the first to the last.
    pub(super) fn of_settings(values: &[f64], pixels: (i32, i32)) -> Self {
        let (low, high) = (values.first().copied().unwrap_or(1.0), values.last().copied().unwrap_or(2.0));
        Self { low, high, log: true, pixels }
    }

    pub(super) fn pixel(&self, value: f64) -> i32 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        let (first, last) = self.pixels;
        first + (part * f64::from(last - first)).round() as i32
    }

    /// Values with a tick; the distance between ticks is for labels that need so many pixels.
    pub(super) fn ticks(&self, room: i32) -> Vec<f64> {
        let length = f64::from((self.pixels.1 - self.pixels.0).abs());
        if self.log {
            let decades = (self.high / self.low).log10();
            let digits: &[f64] = if length / decades > 4.0 * f64::from(room) { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let first = self.low.log10().floor() as i32;
            let powers = first..=self.high.log10().ceil() as i32;
            let all = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
            return all.filter(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick)).collect();
        }
        let most = (length / f64::from(room)).floor().max(1.0);
        let raw = (self.high - self.low) / most;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= raw);
        let step = step.unwrap_or(raw);
        (0..=(self.high / step).floor() as u32).map(|count| f64::from(count) * step).collect()
    }
}

/// A value with the digits that matter: `0.05`, `12.3`, `1 234`, `5.6e9`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e7 {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let text = match size {
        s if s >= 100.0 || s == 0.0 => format!("{value:.0}"),
        s if s >= 10.0 => format!("{value:.1}"),
        s if s >= 0.01 => format!("{value:.2}"),
        _ => return format!("{value:.1e}").replace(".0e", "e"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    let digits = text.len();
    if size < 10_000.0 {
        return text;
    }
    text.chars()
        .enumerate()
        .flat_map(|(at, c)| {
            [(at > 0 && (digits - at).is_multiple_of(3)).then_some('\u{202f}'), Some(c)].into_iter().flatten()
        })
        .collect()
}
