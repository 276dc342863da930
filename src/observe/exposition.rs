//! Counters, gauges and histograms, and their text form: the Prometheus exposition format, version 0.0.4.
//!
//! For one thread: plain cells, no locks. Must not know what is measured.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;

/// What can be measured under a name.
pub trait Metric {
    /// The word after `# TYPE name`.
    const TYPE: &'static str;

    /// Writes the samples of one series; `labels` is empty or like `a="b",c="d"`.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(Cell<f64>);

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(Cell<f64>);

/// Counts observations by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is larger than all.
    counts: Box<[Cell<u64>]>,
    sum: Cell<f64>,
}

/// All series of one name. A series exists from the first time it is asked for.
pub struct Family<M> {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    make: fn() -> M,
    /// In the order of their label values.
    series: RefCell<Vec<(LabelValues, Rc<M>)>>,
}

/// In the order of the label names.
type LabelValues = Box<[Box<str>]>;

/// Writes a number as Prometheus' own libraries do, so that bucket bounds are spelled alike everywhere: shortest form,
/// with an exponent when that is less than −4 or more than 5.
pub fn number(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        let exponential = format!("{value:e}");
        let (digits, exponent) = exponential.split_once('e').expect("that is how `e` formats");
        // Writing to a String cannot fail.
        let _ = match exponent.parse::<i32>().expect("an exponent is a small number") {
            exponent @ (..-4 | 6..) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                write!(out, "{digits}e{sign}{:02}", exponent.abs())
            }
            _ => write!(out, "{value}"),
        };
    }
}

/// Begins a family.
pub fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one sample.
pub fn sample(out: &mut String, name: &str, labels: &str, value: f64) {
    out.push_str(name);
    if !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        out.push('}');
    }
    out.push(' ');
    number(out, value);
    out.push('\n');
}

/// Adds `name="value"` to a list of labels.
pub fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
}

// === impl Counter ===

impl Counter {
    /// Adds to the count.
    pub fn add(&self, more: u64) {
        self.0.set(self.0.get() + more as f64);
    }

    /// The count so far.
    pub fn get(&self) -> f64 {
        self.0.get()
    }

    /// Forgets the count, for the rare counter whose readers may ask that.
    pub fn reset(&self) {
        self.0.set(0.0);
    }
}

impl Metric for Counter {
    const TYPE: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, self.0.get());
    }
}

// === impl Gauge ===

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }

    /// The value.
    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

impl Metric for Gauge {
    const TYPE: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, self.0.get());
    }
}

// === impl Histogram ===

impl Histogram {
    /// An empty histogram; `bounds` are the upper bounds of its buckets, ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![Cell::new(0); bounds.len() + 1].into(), sum: Cell::new(0.0) }
    }

    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        let count = &self.counts[self.bounds.partition_point(|bound| *bound < value)];
        count.set(count.get() + 1);
        self.sum.set(self.sum.get() + value);
    }
}

impl Metric for Histogram {
    const TYPE: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().chain([&f64::INFINITY])) {
            total += count.get();
            let _ = write!(out, "{name}_bucket{{{labels}{}le=\"", if labels.is_empty() { "" } else { "," });
            number(out, *bound);
            let _ = write!(out, "\"}} ");
            number(out, total as f64);
            out.push('\n');
        }
        sample(out, &format!("{name}_sum"), labels, self.sum.get());
        sample(out, &format!("{name}_count"), labels, total as f64);
    }
}

// === impl Family ===

impl Family<Counter> {
    /// A family of counters.
    pub fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self::new(name, help, labels, Counter::default)
    }
}

impl Family<Gauge> {
    /// A family of gauges.
    pub fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self::new(name, help, labels, Gauge::default)
    }
}

impl<M: Metric> Family<M> {
    /// A family whose series are made by `make`. Without labels it has one series, which is there from the beginning.
    pub fn new(name: &'static str, help: &'static str, labels: &'static [&'static str], make: fn() -> M) -> Self {
        let family = Self { name, help, labels, make, series: RefCell::default() };
        if labels.is_empty() {
            family.with(&[]);
        }
        family
    }

    /// The series with these label values, in the order of the names.
    ///
    /// # Panics
    /// When there are more or fewer values than names: a slip of the program, not of its input.
    pub fn with(&self, values: &[&str]) -> Rc<M> {
        assert_eq!(values.len(), self.labels.len(), "labels of {}", self.name);
        let mut series = self.series.borrow_mut();
        let place =
            series.binary_search_by(|(known, _)| known.iter().map(|value| &**value).cmp(values.iter().copied()));
        let place = place.unwrap_or_else(|place| {
            let values = values.iter().map(|value| Box::from(*value)).collect();
            series.insert(place, (values, Rc::new((self.make)())));
            place
        });
        Rc::clone(&series[place].1)
    }

    /// Writes all series, in the order of their label values; nothing if there are none.
    pub fn write(&self, out: &mut String) {
        let series = self.series.borrow();
        if !series.is_empty() {
            head(out, self.name, M::TYPE, self.help);
        }
        let mut labels = String::new();
        for (values, metric) in series.iter() {
            labels.clear();
            for (name, value) in self.labels.iter().zip(values) {
                label(&mut labels, name, value);
            }
            metric.write(out, self.name, &labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelled_as_elsewhere() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (-3.5, "-3.5"),
            (0.001, "0.001"),
            (16.384, "16.384"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (262_144.0, "262144"),
            (1_048_576.0, "1.048576e+06"),
            (16_777_216.0, "1.6777216e+07"),
            (1_763_687_000.25, "1.76368700025e+09"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            let mut out = String::new();
            number(&mut out, value);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn series_appear_with_their_first_use() {
        let labelled = Family::counter("t_total", "Things.", &["kind", "text"]);
        let mut out = String::new();
        labelled.write(&mut out);
        assert_eq!(out, "", "no series yet");
        labelled.with(&["b", "a \"quoted\\\nline"]).add(2);
        labelled.with(&["a", ""]);
        labelled.with(&["b", "a \"quoted\\\nline"]).add(1);
        labelled.write(&mut out);
        assert_eq!(
            out,
            "# HELP t_total Things.\n# TYPE t_total counter\n\
             t_total{kind=\"a\",text=\"\"} 0\n\
             t_total{kind=\"b\",text=\"a \\\"quoted\\\\\\nline\"} 3\n"
        );
        out.clear();
        Family::gauge("g", "Plain.", &[]).write(&mut out);
        assert_eq!(out, "# HELP g Plain.\n# TYPE g gauge\ng 0\n");
    }

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for value in [0.1, 0.5, 0.6, 7.0] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.write(&mut out, "h", "a=\"b\"");
        assert_eq!(
            out,
            "h_bucket{a=\"b\",le=\"0.5\"} 2\nh_bucket{a=\"b\",le=\"1\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 4\n\
             h_sum{a=\"b\"} 8.2\nh_count{a=\"b\"} 4\n"
        );
        out.clear();
        histogram.write(&mut out, "h", "");
        assert!(out.starts_with("h_bucket{le=\"0.5\"} 2\n") && out.ends_with("h_sum 8.2\nh_count 4\n"), "{out}");
    }
}
