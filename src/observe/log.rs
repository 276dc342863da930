//! The log: one line per record on standard error, for people, for journald, or as JSON.
//!
//! `simple_logger` decides by level and module what is written. The writing is done here: it panics where standard error
//! cannot be written to, and a full disk must not end a proxy. Must not decide what is worth a line.

use std::fmt::Write as _;
use std::io::Write as _;

use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

use super::time::{Moment, epoch_seconds};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `INFO  [agent] synced services=12 took=3ms`
    Text,
    /// One object per line: `ts` in milliseconds, `caller`, `msg`, `v` (verbosity) or, for errors, `err` (contract 15.4).
    Json,
}

struct Logger {
    filter: SimpleLogger,
    format: Format,
    journal: bool,
}

/// What these libraries do all day is of no use to an operator, however much he wants to know.
const TALKATIVE: [&str; 4] = ["async_io", "hyper", "polling", "rustls"];

/// Begins to log. `verbosity` is `--v`: up to 3 what matters to an operator, 4 and 5 details, from 6 on everything.
///
/// # Errors
/// When the program has a logger already.
pub fn start(format: Format, verbosity: u32) -> Result<(), log::SetLoggerError> {
    let level = level(verbosity);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    log::set_boxed_logger(Box::new(Logger { filter: filter(level), format, journal }))?;
    log::set_max_level(level);
    Ok(())
}

fn filter(level: LevelFilter) -> SimpleLogger {
    let others = level.min(LevelFilter::Info);
    TALKATIVE.iter().fold(SimpleLogger::new().with_level(level), |filter, name| filter.with_module_level(name, others))
}

fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0..=3 => LevelFilter::Info,
        4..=5 => LevelFilter::Debug,
        6.. => LevelFilter::Trace,
    }
}

/// The priority that journald reads from the beginning of a line (sd-daemon(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// `LEVEL [module] message key=value`, in one line.
fn text(record: &Record<'_>) -> String {
    format!("{:<5} [{}] {}", record.level(), target(record), line(record))
}

/// The message with its pairs, in one line.
fn line(record: &Record<'_>) -> String {
    let mut line = record.args().to_string();
    // Writing to a String does not fail, and so the visit does not.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    if line.contains(['\n', '\r']) { line.replace('\r', "\\r").replace('\n', "\\n") } else { line }
}

/// The record as a JSON object.
fn object(record: &Record<'_>, milliseconds: f64) -> String {
    let mut object = serde_json::Map::new();
    object.insert("ts".into(), milliseconds.into());
    object.insert("caller".into(), target(record).into());
    object.insert("msg".into(), record.args().to_string().into());
    match record.level() {
        Level::Error => object.insert("err".into(), record.args().to_string().into()),
        Level::Warn | Level::Info => object.insert("v".into(), 0.into()),
        Level::Debug => object.insert("v".into(), 4.into()),
        Level::Trace => object.insert("v".into(), 6.into()),
    };
    let _ = record.key_values().visit(&mut Members(&mut object));
    serde_json::Value::from(object).to_string()
}

/// Our modules by their short names, others' by their own.
fn target<'a>(record: &Record<'a>) -> &'a str {
    let target = record.target();
    target.strip_prefix("kube_proxy::").unwrap_or(target)
}

struct Pairs<'a>(&'a mut String);
struct Members<'a>(&'a mut serde_json::Map<String, serde_json::Value>);

// === impl Pairs, Members ===

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let value = value.to_string();
        let plain = !value.is_empty() && !value.contains([' ', '"', '=', '\n', '\r', '\t']);
        if plain { write!(self.0, " {key}={value}") } else { write!(self.0, " {key}={value:?}") }
            .map_err(kv::Error::from)
    }
}

impl<'kvs> VisitSource<'kvs> for Members<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let member = match (value.to_i64(), value.to_f64(), value.to_bool()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), _) => number.into(),
            (_, _, Some(truth)) => truth.into(),
            _ => value.to_string().into(),
        };
        self.0.insert(key.to_string(), member);
        Ok(())
    }
}

// === impl Logger ===

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = match self.format {
            Format::Json => object(record, epoch_seconds(Moment::now().date) * 1000.0),
            Format::Text if self.journal => [priority(record.level()), &text(record)].concat(),
            Format::Text => text(record),
        };
        // With standard error gone, or its disk full, there is nobody left to tell.
        let _ = std::io::stderr().write_all((line + "\n").as_bytes());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(level: Level, text: &str, pairs: &[(&str, Value<'_>)], look: impl FnOnce(&Record<'_>)) {
        look(
            &Record::builder()
                .level(level)
                .target("kube_proxy::agent")
                .args(format_args!("{text}"))
                .key_values(&pairs)
                .build(),
        );
    }

    #[test]
    fn a_record_is_one_line_with_its_pairs() {
        let pairs = [
            ("service", Value::from("default/web")),
            ("n", Value::from(3)),
            ("why", Value::from("no \"such\"\nthing")),
            ("empty", Value::from("")),
        ];
        with(Level::Info, "synced", &pairs, |record| {
            assert_eq!(line(record), r#"synced service=default/web n=3 why="no \"such\"\nthing" empty="""#);
        });
        with(Level::Warn, "two\nlines", &[], |record| assert_eq!(line(record), "two\\nlines"));
    }

    #[test]
    fn json_has_upstreams_keys() {
        with(Level::Info, "synced", &[("n", Value::from(3)), ("ok", Value::from(true))], |record| {
            let expected = r#"{"caller":"agent","msg":"synced","n":3,"ok":true,"ts":1500.25,"v":0}"#;
            let value: serde_json::Value = serde_json::from_str(&object(record, 1500.25)).unwrap();
            assert_eq!(value, serde_json::from_str::<serde_json::Value>(expected).unwrap());
        });
        with(Level::Error, "broken", &[], |record| {
            let object = object(record, 0.0);
            assert!(object.contains(r#""err":"broken""#) && !object.contains(r#""v":"#), "{object}");
        });
    }

    #[test]
    fn libraries_stay_quiet_when_we_tell_everything() {
        let filter = filter(LevelFilter::Trace);
        let told = |target, level| filter.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(told("kube_proxy::agent", Level::Trace) && told("rustls::client", Level::Warn));
        assert!(!told("rustls::client", Level::Debug) && !told("hyper", Level::Trace));
    }

    #[test]
    fn verbosity_opens_levels() {
        for (verbosity, expected) in
            [(0, LevelFilter::Info), (3, LevelFilter::Info), (4, LevelFilter::Debug), (10, LevelFilter::Trace)]
        {
            assert_eq!(level(verbosity), expected);
        }
    }
}
