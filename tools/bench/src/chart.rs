//! The growth of cost as a picture: one panel for each axis, rates relative to the first point of their series.

use std::fmt::Write as _;

use crate::growth::Series;

const PANEL: (f64, f64) = (300.0, 180.0);
const MARGIN: (f64, f64) = (46.0, 34.0);
const COLOURS: [&str; 5] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"];
/// The rate at the upper edge, in parts of the first one.
const TOP: f64 = 1.6;

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

/// Writes never fail on a string.
fn panel(text: &mut String, left: f64, axis: &str, all: &[&Series]) {
    let (top, bottom) = (MARGIN.1, MARGIN.1 + PANEL.1);
    let _ =
        writeln!(text, "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">requests/s by {axis}, the first is 1</text>");
    for part in [0.0, 0.5, 1.0, 1.5] {
        let y = bottom - part / TOP * PANEL.1;
        let right = left + PANEL.0;
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
        let first = series.points.first().map_or(1.0, |point| point.per_second);
        let place =
            |point: &crate::growth::Point| (x(point.at), bottom - (point.per_second / first).min(TOP) / TOP * PANEL.1);
        let line: Vec<_> = series.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (x, y) in series.points.iter().map(place) {
            let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let (x, y) = (left + (number % 3) as f64 * 104.0, bottom + 36.0 + (number / 3) as f64 * 16.0);
        let _ = writeln!(text, "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>", y - 9.0);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 14.0, series.what);
    }
    let _ = writeln!(text, "<path d=\"M{left} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#333\"/>", left + PANEL.0);
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

    #[test]
    fn every_point_is_inside_its_panel() {
        let points = [(1, 10.0), (100, 5.0), (1000, 90.0)];
        let points = points.map(|(at, per_second)| Point { at, per_second, p99_ms: 1.0 }).to_vec();
        let one = Series { axis: "patients".to_owned(), what: "read".to_owned(), points: points.clone() };
        let two = Series { axis: "partitions".to_owned(), what: "read".to_owned(), points };
        let text = svg(&[one, two]);
        assert_eq!(text.matches("<polyline").count(), 2);
        for circle in text.lines().filter(|line| line.starts_with("<circle")) {
            let y: f64 = circle.split("cy=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok()).unwrap();
            assert!((MARGIN.1..=MARGIN.1 + PANEL.1).contains(&y), "{circle}");
        }
    }
}
