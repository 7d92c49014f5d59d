//! Lines over a setting: batch, lanes, size.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Series;
use super::layout::{Axis, EDGE, TEXT_SIZE, WIDTH, colour, footer_height, frame, legend, number, picture, text};
use super::layout::{text_width, title_height};
use crate::Failure;

const BODY: i32 = 380;
const SCALE: i32 = 52;
const GREY: RGBColor = RGBColor(215, 215, 215);

pub(super) fn draw(title: &str, unit: &str, x_name: &str, series: &[Series], footer: &str) -> Result<String, Failure> {
    let names: Vec<String> = series.iter().map(|line| line.name.clone()).collect();
    let top = title_height(title, WIDTH) + legend(None, &names, 0, WIDTH)? + 26;
    let bottom = top + BODY;
    let values = series.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let y_axis = Axis::new(values, (bottom, top));
    let y_ticks = y_axis.ticks(36);
    let left = EDGE + 12 + y_ticks.iter().map(|tick| text_width(&number(*tick), TEXT_SIZE)).max().unwrap_or(0);
    let mut settings: Vec<f64> = series.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
    settings.sort_by(f64::total_cmp);
    settings.dedup();
    let x_axis = Axis::of_settings(&settings, (left + 12, WIDTH as i32 - EDGE - 40));
    picture((WIDTH, (bottom + SCALE + footer_height(footer)) as u32), |area| {
        frame(area, title, footer)?;
        legend(Some(area), &names, title_height(title, WIDTH), WIDTH)?;
        text(area, unit, (EDGE, top - 18), (HPos::Left, VPos::Center), &BLACK)?;
        for tick in y_ticks {
            let y = y_axis.pixel(tick);
            area.draw(&PathElement::new([(left, y), (WIDTH as i32 - EDGE, y)], GREY))?;
            text(area, &number(tick), (left - 8, y), (HPos::Right, VPos::Center), &BLACK)?;
        }
        let mut free = i32::MIN;
        for &setting in &settings {
            let (x, label) = (x_axis.pixel(setting), setting_label(x_name, setting));
            let half = text_width(&label, TEXT_SIZE) / 2;
            // A label that would touch the one before is left out; its tick stays.
            area.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], BLACK))?;
            if x - half > free {
                text(area, &label, (x, bottom + 8), (HPos::Center, VPos::Top), &BLACK)?;
                free = x + half + 6;
            }
        }
        text(area, x_name, ((left + WIDTH as i32) / 2, bottom + 30), (HPos::Center, VPos::Top), &BLACK)?;
        for (at, line) in series.iter().enumerate() {
            let points: Vec<_> = line.points.iter().map(|&(x, y)| (x_axis.pixel(x), y_axis.pixel(y))).collect();
            area.draw(&PathElement::new(points.clone(), colour(at).stroke_width(2)))?;
            for point in points {
                area.draw(&Circle::new(point, 3, colour(at).filled()))?;
            }
        }
        area.draw(&PathElement::new([(left, top), (left, bottom), (WIDTH as i32 - EDGE, bottom)], BLACK))?;
        Ok(())
    })
}

fn setting_label(name: &str, value: f64) -> String {
    const UNITS: [(f64, &str); 2] = [(1_048_576.0, "MiB"), (1024.0, "KiB")];
    let unit = UNITS.iter().find(|(size, _)| name == "bytes" && value >= *size && value % size == 0.0);
    unit.map_or_else(|| number(value), |(size, unit)| format!("{} {unit}", number(value / size)))
}
