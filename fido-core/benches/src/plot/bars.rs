//! Groups of horizontal bars: long labels have room on the left.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::layout::{Axis, EDGE, TEXT_SIZE, WIDTH, colour, footer_height, frame, legend, number, picture, text};
use super::layout::{text_width, title_height};
use crate::Failure;

const BAR: i32 = 14;
const GAP: i32 = 12;
/// What the ticks and the unit need below the bars.
const SCALE: i32 = 52;
const GREY: RGBColor = RGBColor(215, 215, 215);

pub(super) fn draw(
    title: &str,
    unit: &str,
    series: &[String],
    groups: &[(String, Vec<Option<f64>>)],
    footer: &str,
) -> Result<String, Failure> {
    let legend_height = if series.len() > 1 { legend(None, series, 0, WIDTH)? } else { 0 };
    let top = title_height(title, WIDTH) + legend_height + 8;
    let group_height = series.len() as i32 * BAR + GAP;
    let bottom = top + groups.len() as i32 * group_height + GAP;
    let height = bottom + SCALE + footer_height(footer);
    let longest = groups.iter().map(|(label, _)| text_width(label, TEXT_SIZE)).max().unwrap_or(0);
    let left = EDGE + longest.min(WIDTH as i32 / 2) + 10;
    let values = groups.iter().flat_map(|(_, values)| values.iter().copied().flatten());
    let widest = values.clone().map(|value| text_width(&number(value), TEXT_SIZE)).max().unwrap_or(0);
    let axis = Axis::new(values, (left, WIDTH as i32 - EDGE - widest - 6));
    picture((WIDTH, height as u32), |area| {
        frame(area, title, footer)?;
        if series.len() > 1 {
            legend(Some(area), series, title_height(title, WIDTH), WIDTH)?;
        }
        for tick in axis.ticks(70) {
            let x = axis.pixel(tick);
            area.draw(&PathElement::new([(x, top), (x, bottom)], GREY))?;
            text(area, &number(tick), (x, bottom + 6), (HPos::Center, VPos::Top), &BLACK)?;
        }
        let middle = (left + WIDTH as i32 - EDGE) / 2;
        let what = series.first().filter(|_| series.len() == 1).map(String::as_str).unwrap_or_default();
        let caption = [what, unit].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ");
        text(area, &caption, (middle, bottom + 28), (HPos::Center, VPos::Top), &BLACK)?;
        for (group, (label, values)) in groups.iter().enumerate() {
            let y = top + GAP + group as i32 * group_height;
            let middle = y + series.len() as i32 * BAR / 2;
            text(area, label, (left - 8, middle), (HPos::Right, VPos::Center), &BLACK)?;
            for (at, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let (y, x) = (y + at as i32 * BAR, axis.pixel(*value).max(left + 1));
                area.draw(&Rectangle::new([(left, y + 1), (x, y + BAR - 1)], colour(at).filled()))?;
                text(area, &number(*value), (x + 5, y + BAR / 2), (HPos::Left, VPos::Center), &BLACK)?;
            }
        }
        area.draw(&PathElement::new([(left, top), (left, bottom), (WIDTH as i32 - EDGE, bottom)], BLACK))?;
        Ok(())
    })
}
