//! Heat maps: a value for every ordered pair.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Drawn;
use super::layout::title_height;
use super::layout::{Area, EDGE, TEXT_SIZE, WIDTH, footer_height, frame, number, picture, text, text_width};
use crate::Failure;

/// The body's side, for as long as cells stay visible.
const SIDE: i32 = 640;
const MIN_CELL: i32 = 5;
const MAX_CELL: i32 = 72;
/// The scale of colours, at the right of the body.
const BAR_WIDTH: i32 = 18;
const BAR_STEPS: i32 = 40;
/// Where nothing is to be said.
const NOTHING: RGBColor = RGBColor(235, 235, 235);

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// The value.
    pub value: f64,
    /// It was not measured itself: it is marked with a corner.
    pub estimated: bool,
}

/// A value for every ordered pair of some things.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What it shows.
    pub title: String,
    /// What the values are counted in.
    pub unit: String,
    /// What the rows are.
    pub rows_name: String,
    /// What the columns are.
    pub columns_name: String,
    /// The things, for rows and columns.
    pub labels: Vec<String>,
    /// A row for each; `None` where there is nothing to say (the diagonal). What is missing counts as that.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// What stands below, a line each.
    pub footer: String,
}

impl HeatMap {
    /// The picture as SVG.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn svg(&self) -> Result<String, Failure> {
        let count = self.labels.len().max(1) as i32;
        let cell = (SIDE / count).clamp(MIN_CELL, MAX_CELL);
        let label = self.labels.iter().map(|label| text_width(label, TEXT_SIZE)).max().unwrap_or(0);
        let scale = text_width(&self.with_unit(self.highest()), TEXT_SIZE);
        let (left, body) = (EDGE + label + 8, cell * count);
        // Room for the names of rows and columns.
        let width = (left + body + 28 + BAR_WIDTH + 8 + scale + EDGE).max(WIDTH as i32) as u32;
        let names = title_height(&self.title, width) + 4;
        let top = names + 22 + 22;
        let bar = 150.max(body.min(300));
        let marked = self.all().any(|cell| cell.estimated);
        let key = if marked { 26 } else { 0 };
        let height = top + body.max(bar) + 18 + key + footer_height(&self.footer);
        picture((width, height as u32), |area| {
            frame(area, &self.title, &self.footer)?;
            let name = format!("rows: {}; columns: {}", self.rows_name, self.columns_name);
            text(area, &name, (EDGE, names), (HPos::Left, VPos::Top), &BLACK)?;
            self.body(area, (left, top), cell)?;
            self.scale(area, (left + body + 28, top), bar)?;
            if marked {
                let y = top + body.max(bar) + 12;
                area.draw(&Rectangle::new([(EDGE, y), (EDGE + 16, y + 16)], NOTHING.filled()))?;
                corner(area, (EDGE, y), 16, &BLACK)?;
                let what = "not measured itself: the median of the pairs at the same distance";
                text(area, what, (EDGE + 24, y + 8), (HPos::Left, VPos::Center), &BLACK)?;
            }
            Ok(())
        })
    }

    fn all(&self) -> impl Iterator<Item = &Cell> + Clone {
        self.cells.iter().flatten().flatten().filter(|cell| cell.value.is_finite())
    }

    /// The scale begins at 0, so that what is nearly the same looks nearly the same.
    fn highest(&self) -> f64 {
        self.all().map(|cell| cell.value).fold(0.0, f64::max)
    }

    fn with_unit(&self, value: f64) -> String {
        format!("{} {}", number(value), self.unit)
    }

    fn body(&self, area: &Area<'_>, (left, top): (i32, i32), cell: i32) -> Drawn {
        let highest = self.highest();
        // Labels of columns need room beside each other, those of rows above each other.
        let widest = self.labels.iter().map(|label| text_width(label, TEXT_SIZE)).max().unwrap_or(0);
        let (every_column, every_row) = ((widest + 6 + cell - 1) / cell, (TEXT_SIZE as i32 + 3 + cell - 1) / cell);
        for (at, label) in (0i32..).zip(&self.labels) {
            let middle = at * cell + cell / 2;
            if at % every_column.max(1) == 0 {
                text(area, label, (left + middle, top - 8), (HPos::Center, VPos::Bottom), &BLACK)?;
            }
            if at % every_row.max(1) == 0 {
                text(area, label, (left - 8, top + middle), (HPos::Right, VPos::Center), &BLACK)?;
            }
            for column in 0..self.labels.len() {
                let corner = (left + column as i32 * cell, top + at * cell);
                let value = self.cells.get(at as usize).and_then(|row| row.get(column)).copied().flatten();
                let value = value.filter(|cell| cell.value.is_finite());
                draw_cell(area, corner, cell, value, |value| part(value, highest))?;
            }
        }
        Ok(())
    }

    fn scale(&self, area: &Area<'_>, (left, top): (i32, i32), height: i32) -> Drawn {
        for step in 0..BAR_STEPS {
            let y = |step| top + height * step / BAR_STEPS;
            let shade = shade(1.0 - f64::from(step) / f64::from(BAR_STEPS - 1));
            area.draw(&Rectangle::new([(left, y(step)), (left + BAR_WIDTH, y(step + 1))], shade.filled()))?;
        }
        let x = left + BAR_WIDTH + 8;
        text(area, &self.with_unit(self.highest()), (x, top), (HPos::Left, VPos::Top), &BLACK)?;
        text(area, &self.with_unit(0.0), (x, top + height), (HPos::Left, VPos::Bottom), &BLACK)
    }
}

fn draw_cell(area: &Area<'_>, (x, y): (i32, i32), size: i32, cell: Option<Cell>, part: impl Fn(f64) -> f64) -> Drawn {
    let colour = cell.map_or(NOTHING, |cell| shade(part(cell.value)));
    let gap = i32::from(size > 8);
    area.draw(&Rectangle::new([(x, y), (x + size - gap, y + size - gap)], colour.filled()))?;
    let Some(cell) = cell else { return Ok(()) };
    // Dark shades carry light text.
    let ink = if part(cell.value) > 0.55 { WHITE } else { BLACK };
    if cell.estimated {
        corner(area, (x, y), size, &ink)?;
    }
    let label = number(cell.value);
    if text_width(&label, TEXT_SIZE) + 4 <= size {
        text(area, &label, (x + size / 2, y + size / 2), (HPos::Center, VPos::Center), &ink)?;
    }
    Ok(())
}

/// The mark of a cell that was not measured itself.
fn corner(area: &Area<'_>, (x, y): (i32, i32), size: i32, ink: &RGBColor) -> Drawn {
    let leg = (size / 4).clamp(2, 10);
    Ok(area.draw(&Polygon::new([(x, y), (x + leg, y), (x, y + leg)], ink.mix(0.6).filled()))?)
}

/// Where a value lies on the scale, from 0 to 1.
fn part(value: f64, highest: f64) -> f64 {
    if highest > 0.0 { (value / highest).clamp(0.0, 1.0) } else { 0.0 }
}

/// From pale yellow over orange to dark red; lightness falls all the way, so it also works in grey.
fn shade(part: f64) -> RGBColor {
    const STOPS: [(u8, u8, u8); 4] = [(255, 247, 188), (254, 178, 76), (217, 72, 1), (103, 0, 13)];
    let at = part.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let first = (at as usize).min(STOPS.len() - 2);
    let (a, b, share) = (STOPS[first], STOPS[first + 1], at - first as f64);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
