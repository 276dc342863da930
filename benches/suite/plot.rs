//! Line plots as plain SVG, both axes logarithmic.
//!
//! Knows points and names, nothing of what they mean.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Space for labels: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (70.0, 40.0, 150.0, 50.0);
const COLOURS: [&str; 6] = ["#1b6ca8", "#d1495b", "#3c8d2f", "#8e5ea2", "#c77d0a", "#555555"];

/// A named line.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// Points in ascending order of x; all coordinates above zero.
    pub points: Vec<(f64, f64)>,
}

/// Powers of ten around some values.
struct Axis {
    first: i32,
    last: i32,
    from: f64,
    to: f64,
}

/// Draws the lines.
pub fn draw(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let x = Axis::around(points().map(|point| point.0), MARGIN.0, WIDTH - MARGIN.2);
    let y = Axis::around(points().map(|point| point.1), HEIGHT - MARGIN.3, MARGIN.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"22\" font-size=\"15\">{title}</text>\n",
        MARGIN.0
    );
    for (value, at) in x.ticks() {
        line(&mut svg, (at, y.from), (at, y.to));
        text(&mut svg, (at, y.from + 18.0), "middle", &label(value));
    }
    for (value, at) in y.ticks() {
        line(&mut svg, (x.from, at), (x.to, at));
        text(&mut svg, (x.from - 8.0, at + 4.0), "end", &label(value));
    }
    text(&mut svg, ((x.from + x.to) / 2.0, HEIGHT - 12.0), "middle", x_label);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>",
        (y.from + y.to) / 2.0
    );
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let place = |point: &(f64, f64)| (x.place(point.0), y.place(point.1));
        let path: Vec<String> = series.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in series.points.iter().map(place) {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let at = MARGIN.1 + 18.0 * index as f64 + 8.0;
        let _ = writeln!(svg, "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>", x.to + 14.0, at - 4.0);
        text(&mut svg, (x.to + 24.0, at), "start", &series.name);
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{words}</text>", at.0, at.1);
}

fn label(value: f64) -> String {
    if value >= 1000.0 { format!("{},000", value / 1000.0) } else { value.to_string() }
}

// === impl Axis ===

impl Axis {
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Self { first, last: last.max(first + 1), from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, f64)> {
        (self.first..=self.last).map(|power| (10_f64.powi(power), self.place(10_f64.powi(power))))
    }
}
