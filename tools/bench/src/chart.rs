//! The growth of cost as a chart: one panel for each axis, with rates relative to the first point of their series, and with a
//! scale that fits its largest rate.

use std::fmt::Write as _;

use crate::growth::Series;

const PANEL: (f64, f64) = (300.0, 180.0);
const MARGIN: (f64, f64) = (46.0, 34.0);
const COLOURS: [&str; 5] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"];
/// Most grid lines of a panel, and the steps that they may have, relative to the first rate.
const MAX_LINES: f64 = 6.0;
const GRID_STEPS: [f64; 9] = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// The chart as an SVG file.
pub(crate) fn svg(all: &[Series]) -> String {
    let mut axes: Vec<&str> = all.iter().map(|series| series.axis.as_str()).collect();
    axes.dedup();
    let (width, height) = ((PANEL.0 + MARGIN.0 * 1.5) * axes.len() as f64, PANEL.1 + MARGIN.1 * 3.0 + 20.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, axis) in axes.iter().enumerate() {
        let left = MARGIN.0 + number as f64 * (PANEL.0 + MARGIN.0 * 1.5);
        let series: Vec<_> = all.iter().filter(|series| series.axis == *axis).collect();
        panel(&mut text, left, axis, &series);
    }
    text + "</svg>\n"
}

/// Draws one panel. Writing to a string cannot fail.
fn panel(text: &mut String, left: f64, axis: &str, all: &[&Series]) {
    let (top, bottom) = (MARGIN.1, MARGIN.1 + PANEL.1);
    let _ = writeln!(
        text,
        "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">requests/s by {axis}, in parts of the first</text>"
    );
    let largest = all.iter().flat_map(|series| relative(series)).map(|(_, rate)| rate).fold(1.0, f64::max);
    let step = grid_step(largest);
    let most = (largest / step).ceil();
    let height = |rate: f64| bottom - rate / (most * step) * PANEL.1;
    for line in 0..=most as u32 {
        let part = f64::from(line) * step;
        let (y, right) = (height(part), left + PANEL.0);
        let _ = writeln!(text, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
        let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{part}</text>", left - 6.0, y + 4.0);
    }
    let sizes = all.iter().flat_map(|series| &series.points).map(|point| point.at as f64);
    let (least, most) = sizes.fold((f64::MAX, 1.0_f64), |(least, most), size| (least.min(size), most.max(size)));
    let x = |at: u64| left + ((at as f64 / least).ln() / (most / least).ln().max(f64::MIN_POSITIVE)) * PANEL.0;
    for point in all.first().map(|series| series.points.as_slice()).unwrap_or_default() {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(point.at),
            bottom + 16.0,
            short(point.at)
        );
    }
    for (number, (series, colour)) in all.iter().zip(COLOURS).enumerate() {
        let places: Vec<_> = relative(series).map(|(at, rate)| (x(at), height(rate))).collect();
        let line: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (x, y) in places {
            let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let (x, y) = (left + (number % 3) as f64 * 104.0, bottom + 36.0 + (number / 3) as f64 * 16.0);
        let _ = writeln!(text, "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>", y - 9.0);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 14.0, series.what);
    }
    let _ = writeln!(text, "<path d=\"M{left} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#333\"/>", left + PANEL.0);
}

/// The points of a series, with their rates in parts of the first one.
fn relative(series: &Series) -> impl Iterator<Item = (u64, f64)> {
    let first = series.points.first().map_or(1.0, |point| point.per_second);
    series.points.iter().map(move |point| (point.at, point.per_second / first))
}

/// The step of the grid lines in a panel up to this rate.
fn grid_step(largest: f64) -> f64 {
    GRID_STEPS.into_iter().find(|step| largest / step <= MAX_LINES).unwrap_or(largest)
}

fn short(number: u64) -> String {
    match number {
        1_000_000.. => format!("{} M", number / 1_000_000),
        10_000.. => format!("{} k", number / 1000),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::growth::Point;

    /// The heights of the circles, and of the lines by the text beside them.
    fn heights(text: &str) -> (Vec<f64>, Vec<(f64, f64)>) {
        let value = |line: &str, name: &str| line.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?.parse().ok();
        let circles = text.lines().filter(|line| line.starts_with("<circle")).map(|line| value(line, "cy").unwrap());
        let lines = text.lines().filter(|line| line.contains("text-anchor=\"end\""));
        let label = |line: &str| line.split('>').nth(1)?.split('<').next()?.parse().ok();
        let lines = lines.map(|line| (label(line).unwrap(), value(line, "y").unwrap() - 4.0));
        (circles.collect(), lines.collect())
    }

    #[test]
    fn the_recorded_chart_shows_the_recorded_results() {
        let recorded = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance");
        let results = crate::results::Results::read(&recorded.join("results.json")).unwrap();
        let chart = std::fs::read_to_string(recorded.join("growth.svg")).unwrap();
        assert!(chart == svg(results.series()), "just bench --growth --show draws it anew");
    }

    #[test]
    fn every_point_is_drawn_where_its_rate_is() {
        for largest in [10.0, 15.9, 16.0, 35.5, 90.0, 12_345.0] {
            let points = [(1, 10.0), (100, 5.0), (1000, largest)];
            let points = points.map(|(at, per_second)| Point { at, per_second, p99_ms: 1.0 }).to_vec();
            let one = Series { axis: "connections".to_owned(), what: "register".to_owned(), points };
            let text = svg(&[one]);
            assert_eq!(text.matches("<polyline").count(), 1);
            let (circles, lines) = heights(&text);
            let (bottom, top) = (lines[0].1, lines.last().unwrap().1);
            assert_eq!((lines[0].0, bottom), (0.0, MARGIN.1 + PANEL.1));
            assert!((top - MARGIN.1).abs() < 0.1 && lines.len() <= 8, "{lines:?}");
            for (rate, y) in [1.0, 0.5, largest / 10.0].into_iter().zip(circles) {
                let expected = bottom - rate / lines.last().unwrap().0 * (bottom - top);
                assert!((y - expected).abs() < 0.2, "{rate} is at {y}, expected {expected}");
            }
        }
    }
}
