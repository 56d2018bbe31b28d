//! `training_loss.png`: a measured curve and the same smoothed, drawn for a README or a chat as well as for a screen.
//!
//! The backend of `plotters` doesn't smooth the edges of lines, so the picture is drawn at twice its size in memory
//! and averaged down; it is written at twice the usual resolution of such plots. Its font comes with the program.

use std::path::{Path, PathBuf};

use ferrotune_checkpoint::write_atomic;
use plotters::coord::types::{RangedCoordf64, RangedCoordu64};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::state::TrainerState;
use crate::error::{Error, Result};

/// Size of the picture in pixels.
const WIDTH: usize = 1280;
const HEIGHT: usize = 960;
/// Drawn this many times larger, then averaged down.
const OVERSAMPLING: usize = 2;

const FONT: &str = "roboto";
const BLUE: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const TEXT: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Up to so many points each gets a dot.
const DOTTED: usize = 40;

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Plot<'a, 'b> = ChartContext<'a, BitMapBackend<'b>, Cartesian2d<RangedCoordu64, RangedCoordf64>>;
type Drawn = std::result::Result<(), String>;

/// Draws the curve of `name` (`loss`, `eval_loss`) into `training_<name>.png` in `folder`; `None` if nothing of that
/// name was measured.
///
/// # Errors
/// [`Error::Chart`] if it can't be drawn, [`Error::Io`] if it can't be written.
pub fn write_chart(folder: &Path, state: &TrainerState, name: &str) -> Result<Option<PathBuf>> {
    let points: Vec<(u64, f64)> = state.curve(name).into_iter().filter(|(_, value)| value.is_finite()).collect();
    if points.is_empty() {
        return Ok(None);
    }
    let path = folder.join(format!("training_{}.png", name.replace('/', "_")));
    let run = folder.file_name().map(|run| format!(" of {}", run.to_string_lossy())).unwrap_or_default();
    let title = printable(&format!("training {name}{run}"));
    let picture = draw(&title, &printable(name), &points)
        .and_then(|pixels| encode(&pixels).map_err(|error| error.to_string()))
        .map_err(|reason| Error::Chart { path: path.clone(), reason })?;
    write_atomic(&path, &picture)?;
    Ok(Some(path))
}

/// An exponential moving average whose weight grows with the number of values, from 0 towards 0.9:
/// `1.8 * (sigmoid(0.05 * n) - 0.5)`, as LLaMA-Factory smooths its curves.
#[must_use]
pub fn smooth(values: &[f64]) -> Vec<f64> {
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * values.len() as f64).exp()) - 0.5);
    let mut last = values.first().copied().unwrap_or_default();
    let mut next = |value: &f64| {
        last = last * weight + (1.0 - weight) * value;
        last
    };
    values.iter().map(&mut next).collect()
}

/// The font knows ASCII only.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// RGB bytes of the picture.
fn draw(title: &str, label: &str, points: &[(u64, f64)]) -> std::result::Result<Vec<u8>, String> {
    register_font(FONT, FontStyle::Normal, include_bytes!("../../assets/roboto-ascii.ttf"))
        .map_err(|_| "the embedded font is damaged".to_owned())?;
    let (width, height) = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING);
    let mut pixels = vec![0; width * height * 3];
    {
        let size = (width as u32, height as u32);
        let canvas = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        draw_on(&canvas, title, label, points)?;
        canvas.present().map_err(|error| error.to_string())?;
    }
    Ok(shrink(&pixels))
}

fn draw_on(canvas: &Canvas<'_>, title: &str, label: &str, points: &[(u64, f64)]) -> Drawn {
    let fail = |error: DrawingAreaErrorKind<_>| error.to_string();
    let (low, high) = value_range(points);
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let text = |size: usize| (FONT, px(size)).into_font().color(&TEXT);
    canvas.fill(&WHITE).map_err(fail)?;
    let mut plot = ChartBuilder::on(canvas)
        .caption(title, text(34))
        .margin(px(28))
        .x_label_area_size(px(84))
        .y_label_area_size(px(108))
        .build_cartesian_2d(first..last.max(first + 1), low..high)
        .map_err(fail)?;
    let decimals = decimals_for(high - low);
    plot.configure_mesh()
        .x_desc("step")
        .y_desc(label)
        .axis_desc_style(text(28))
        .label_style(text(24))
        .x_labels(10)
        .y_labels(8)
        .y_label_formatter(&|value| format!("{value:.decimals$}"))
        .axis_style(TEXT.stroke_width(px(2)))
        .bold_line_style(GRID.stroke_width(px(1)))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(8))
        .draw()
        .map_err(fail)?;
    draw_curves(&mut plot, points)?;
    plot.configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(px(16))
        .legend_area_size(px(56))
        .label_font(text(26))
        .background_style(WHITE.mix(0.9))
        .border_style(GRID.stroke_width(px(2)))
        .draw()
        .map_err(fail)
}

fn draw_curves(plot: &mut Plot<'_, '_>, points: &[(u64, f64)]) -> Drawn {
    let fail = |error: DrawingAreaErrorKind<_>| error.to_string();
    let values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
    let smoothed = points.iter().map(|(step, _)| *step).zip(smooth(&values));
    let faint = BLUE.mix(0.4);
    let mut curve = |line: LineSeries<_, _>, name: &str, style: ShapeStyle| {
        plot.draw_series(line)
            .map_err(fail)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + px(44) as i32, y)], style));
        Drawn::Ok(())
    };
    let raw_style = faint.stroke_width(px(3));
    curve(LineSeries::new(points.iter().copied(), raw_style), "original", raw_style)?;
    let smooth_style = BLUE.stroke_width(px(4));
    curve(LineSeries::new(smoothed, smooth_style), "smoothed", smooth_style)?;
    if points.len() <= DOTTED {
        let dots = points.iter().map(|&point| Circle::new(point, px(6), faint.filled()));
        plot.draw_series(dots).map_err(fail)?;
    }
    Ok(())
}

/// A length of the finished picture, in pixels of the drawing.
fn px(pixels: usize) -> u32 {
    (pixels * OVERSAMPLING) as u32
}

/// The values with a margin; a flat curve gets room too.
fn value_range(points: &[(u64, f64)]) -> (f64, f64) {
    let low = points.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    let margin = match (high - low) * 0.05 {
        margin if margin > high.abs() * 1e-9 => margin,
        _ => high.abs().max(1e-3) * 0.1,
    };
    (low - margin, high + margin)
}

/// Decimals that tell the labels of an axis of this span apart.
fn decimals_for(span: f64) -> usize {
    (1.0 - span.log10().floor()).clamp(0.0, 12.0) as usize
}

/// Averages squares of pixels into one.
fn shrink(pixels: &[u8]) -> Vec<u8> {
    let row = WIDTH * OVERSAMPLING * 3;
    let mut small = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            for channel in 0..3 {
                let corner = y * OVERSAMPLING * row + x * OVERSAMPLING * 3 + channel;
                let square = (0..OVERSAMPLING * OVERSAMPLING)
                    .map(|i| corner + i / OVERSAMPLING * row + i % OVERSAMPLING * 3)
                    .map(|at| u32::from(pixels[at]));
                let area = (OVERSAMPLING * OVERSAMPLING) as u32;
                small.push(((square.sum::<u32>() + area / 2) / area) as u8);
            }
        }
    }
    small
}

fn encode(pixels: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::BufReader;

    use super::*;
    use crate::fixtures;
    use crate::report::row::{LogRow, When};

    fn state(losses: &[f64]) -> TrainerState {
        let row = |(i, loss): (usize, &f64)| LogRow::step(When { step: i as u64 + 1, epoch: 0.0 }, *loss, 1.0, 0.1);
        TrainerState { log_history: losses.iter().enumerate().map(row).collect(), ..TrainerState::default() }
    }

    /// Width, height, and the share of pixels in each of: white, curve blue, dark text.
    fn look(path: &Path) -> (u32, u32, [f64; 3]) {
        let file = BufReader::new(File::open(path).expect("written"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
        let info = reader.next_frame(&mut pixels).expect("whole");
        let share = |is: fn(&[u8]) -> bool| {
            pixels.chunks_exact(3).filter(|pixel| is(pixel)).count() as f64 / (pixels.len() / 3) as f64
        };
        let shares = [share(|p| p == [255; 3]), share(|p| p == [0x1f, 0x77, 0xb4]), share(|p| p == [0x22; 3])];
        (info.width, info.height, shares)
    }

    #[test]
    fn the_picture_shows_the_curve_on_white() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = TrainerState::read(&fixtures::train_case("qwen3_lora_eval").path("")).expect("a state");
        for (name, file) in [("loss", "training_loss.png"), ("eval_loss", "training_eval_loss.png")] {
            let path = write_chart(folder.path(), &state, name).expect("drawn").expect("measured");
            assert_eq!(path, folder.path().join(file));
            let (width, height, [white, blue, dark]) = look(&path);
            assert_eq!((width, height), (1280, 960));
            assert!(white > 0.8, "{white}");
            assert!((0.001..0.05).contains(&blue), "{blue}");
            assert!((0.001..0.05).contains(&dark), "{dark}");
        }
        assert!(write_chart(folder.path(), &state, "eval_accuracy").expect("nothing to draw").is_none());
    }

    #[test]
    fn odd_curves_are_drawn_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let long: Vec<f64> = (0..5_000).map(|i| 1e-4 + 1e4 / f64::from(i + 1)).collect();
        let curves: [&[f64]; 5] = [&[2.5], &[0.0, 0.0], &[1e-300, 1e300], &[3.0, f64::NAN, f64::INFINITY, 2.0], &long];
        for curve in curves {
            let path = write_chart(folder.path(), &state(curve), "loss").expect("drawn").expect("measured");
            assert!(look(&path).2[1] > 0.0, "{curve:?}");
        }
        assert!(write_chart(folder.path(), &state(&[f64::NAN]), "loss").expect("nothing").is_none());
    }

    #[test]
    fn a_name_beyond_ascii_is_still_a_title() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("微调\n1");
        fs::create_dir(&folder).expect("writable");
        assert!(write_chart(&folder, &state(&[2.0, 1.0]), "loss").expect("drawn").is_some());
        assert_eq!(printable("微调\n1"), "???1");
    }

    /// The numbers were computed apart from this program with Python's `math`.
    #[test]
    fn smoothing_is_that_of_the_incumbent() {
        let smoothed = smooth(&[4.0, 2.0, 3.0, 1.0]);
        let expected = [4.0, 2.179_402_390_324_920_4, 2.926_391_413_664_687, 1.172_799_612_156_424];
        for (ours, theirs) in smoothed.iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-12, "{smoothed:?}");
        }
        assert!(smooth(&[]).is_empty());
        let long = smooth(&[vec![0.0; 999], vec![1.0]].concat());
        assert!((long[999] - 0.1).abs() < 1e-6, "the weight tends to 0.9");
    }
}
