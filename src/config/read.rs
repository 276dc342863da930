//! From the text of a configuration file to [`RawConfig`].
//!
//! As upstream does it (contract 2.1), YAML or JSON becomes a tree first and the tree is typed after: a quoted number
//! is not a number. Whatever is wrong is reported with its place. Must not judge values: that is the business of
//! `check`.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};
use serde_saphyr::{DefaultMessageFormatter, DuplicateKeyPolicy, MessageFormatter};

use super::places::Places;
use super::raw::{API_VERSION, KIND, RawConfig};

/// A file that could be read.
#[derive(Debug)]
pub struct Document {
    /// What it says.
    pub raw: RawConfig,
    /// Where it says so.
    pub places: Places,
    /// One line for each key that was passed over: `<file>:<line>:<column>: …`.
    pub warnings: Vec<String>,
}

/// Reads the first document in `text`; `file` is only for messages.
///
/// # Errors
/// Malformed YAML, a value of the wrong type, or an object that is no `KubeProxyConfiguration`: one line that names
/// file, line, column and field.
pub fn read(file: &str, text: &str) -> Result<Document, String> {
    check_json(file, text)?;
    let mut tree: Value = first_document(file, text)?.unwrap_or(Value::Null);
    simplify(&mut tree);
    check_kind(file, &tree)?;
    let places = Places::new(file, first_document(file, text)?.unwrap_or_default());
    let place = |pointer: &str| places.find(pointer).unwrap_or_else(|| file.to_owned());
    let known = serde_json::to_value(RawConfig::sample()).unwrap_or_default();
    if let Some(pointer) = misplaced_list(&tree, &known) {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        return Err(format!("{}: {path}: invalid type: sequence, expected a map", place(&pointer)));
    }
    let raw = serde_path_to_error::deserialize(&tree)
        .map_err(|e| format!("{}: {}: {}", place(&pointer(e.path())), e.path(), e.inner()))?;
    Ok(Document { raw, warnings: places.odd_keys(&known), places })
}

/// What begins as JSON must be JSON to its end: upstream does not look for another document behind it, nor for YAML in it.
fn check_json(file: &str, text: &str) -> Result<(), String> {
    if !text.trim_start().starts_with('{') {
        return Ok(());
    }
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|e| {
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        format!("{file}:{}:{}: {message}", e.line(), e.column())
    })
}

fn first_document<T: DeserializeOwned>(file: &str, text: &str) -> Result<Option<T>, String> {
    // Upstream reads YAML 1.1, in which 010 is eight.
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins, with_snippet: false, legacy_octal_numbers: true
    };
    let mut bytes = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
    documents.next().transpose().map_err(|e| {
        let place = e.location().map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
        let message = DefaultMessageFormatter.format_message(&e).replace('\n', " ");
        format!("{file}{place}: {message}")
    })
}

/// The path of a value in the form that [`Places`] knows.
fn pointer(path: &Path) -> String {
    path.iter().fold(String::new(), |pointer, segment| match segment {
        Segment::Seq { .. } => pointer + "/0",
        named => pointer + "/" + &named.to_string(),
    })
}

/// Leaves of a tree what upstream sees: a `null` says the same as leaving the key out, and `1e2` the same as `100`.
fn simplify(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            // For a duration upstream takes a null for an empty text, which is none.
            let is_duration = |key: &str| key.ends_with("Period") || key.ends_with("Timeout");
            map.retain(|key, value| !value.is_null() || is_duration(key));
            map.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Number(number) => {
            const EXACT: f64 = 9_007_199_254_740_992.0;
            let whole = |float: &f64| float.fract() == 0.0 && float.abs() < EXACT;
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && whole(float)) {
                *number = (float as i64).into();
            }
        }
        _ => {}
    }
}

/// Where a list stands in place of an object, as a JSON pointer: `serde` would take its elements for the fields.
fn misplaced_list(tree: &Value, known: &Value) -> Option<String> {
    match (tree, known) {
        (Value::Array(_), Value::Object(_)) => Some(String::new()),
        (Value::Object(fields), Value::Object(known)) => {
            fields.iter().find_map(|(name, value)| Some(format!("/{name}{}", misplaced_list(value, known.get(name)?)?)))
        }
        (Value::Array(items), Value::Array(known)) => {
            items.iter().find_map(|item| Some(format!("/0{}", misplaced_list(item, known.first()?)?)))
        }
        _ => None,
    }
}

fn check_kind(file: &str, tree: &Value) -> Result<(), String> {
    let text = |key| tree.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        (_, "") => Err(format!("{file}: Object 'Kind' is missing: add the line `kind: {KIND}`")),
        ("", _) => Err(format!("{file}: Object 'apiVersion' is missing: add the line `apiVersion: {API_VERSION}`")),
        (API_VERSION, KIND) => Ok(()),
        (version, kind) => Err(format!(
            "{file}: no kind {kind:?} is registered for version {version:?}: this must be {KIND} in {API_VERSION}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn body(text: &str) -> Result<Document, String> {
        read("f", &format!("{HEAD}{text}"))
    }

    #[test]
    fn wrong_values_are_refused_with_file_line_and_field() {
        for (text, expected) in [
            ("mode: 5\n", "f:3:1: mode: invalid type: integer `5`, expected a string"),
            ("mode: yes\n", "f:3:1: mode: invalid type: boolean `true`, expected a string"),
            ("iptables:\n  masqueradeBit: \"14\"\n", "f:4:3: iptables.masqueradeBit: invalid type: string \"14\""),
            ("iptables:\n  masqueradeBit: 3000000000\n", "f:4:3: iptables.masqueradeBit: invalid value: integer"),
            ("iptables:\n  masqueradeBit: 14.5\n", "f:4:3: iptables.masqueradeBit: invalid type: floating point"),
            ("ipvs:\n  syncPeriod: 30\n", "f:4:3: ipvs.syncPeriod: invalid type: integer `30`, expected a string"),
            ("ipvs:\n  syncPeriod: \"\"\n", "f:4:3: ipvs.syncPeriod: invalid duration \"\""),
            ("ipvs:\n  syncPeriod: soon\n", "f:4:3: ipvs.syncPeriod: invalid duration \"soon\""),
            ("featureGates:\n  A: 1\n", "f:4:3: featureGates.A: invalid type: integer `1`, expected a boolean"),
            ("nodePortAddresses:\n- 10.0.0.0/8\n- 5\n", "f:3:1: nodePortAddresses[1]: invalid type: integer `5`"),
            ("nodePortAddresses: 10.0.0.0/8\n", "f:3:1: nodePortAddresses: invalid type: string"),
            ("ipvs: {syncPeriod: 5}\nip: 1\n", "f:3:8: ipvs.syncPeriod: invalid type"),
            ("conntrack: 5\n", "f:3:1: conntrack: invalid type: integer `5`"),
            ("logging:\n  verbosity: -1\n", "f:4:3: logging.verbosity: invalid value: integer `-1`, expected u32"),
            ("logging:\n  flushFrequency: x\n", "f:4:3: logging.flushFrequency: expected a duration"),
            (
                "logging:\n  options:\n    json:\n      infoBufferSize: 1Xi\n",
                "f:6:7: logging.options.json.infoBufferSize: invalid quantity",
            ),
            (
                "logging:\n  options:\n    json:\n      infoBufferSize: 1K\n",
                "f:6:7: logging.options.json.infoBufferSize: invalid quantity",
            ),
            ("oomScoreAdj: 1e-1\n", "f:3:1: oomScoreAdj: invalid type: floating point `0.1`, expected i32"),
            ("oomScoreAdj: 1e20\n", "f:3:1: oomScoreAdj: invalid type: floating point `1e+20`"),
            ("oomScoreAdj: '010'\n", "f:3:1: oomScoreAdj: invalid type: string \"010\", expected i32"),
            ("mode: 010\n", "f:3:1: mode: invalid type: integer `8`, expected a string"),
            ("iptables: []\n", "f:3:1: iptables: invalid type: sequence, expected a map"),
            ("featureGates: []\n", "f:3:1: featureGates: invalid type: sequence, expected a map"),
            ("logging:\n  options: []\n", "f:4:3: logging.options: invalid type: sequence, expected a map"),
            ("logging:\n  vmodule: [[a, 1]]\n", "f:4:3: logging.vmodule.0: invalid type: sequence, expected a map"),
            ("mode: [\n", "f:3:"),
            ("a:\tb\n\tc: d\n", "f:"),
        ] {
            let error = body(text).expect_err(text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn odd_keys_are_warned_about_and_passed_over() {
        for (text, expected) in [
            ("Mode: ipvs\n", "f:3:1: unknown field \"Mode\", ignored"),
            ("ipvs:\n  sheduler: lc\n", "f:4:3: unknown field \"sheduler\", ignored"),
            ("extra:\n  deeper: 1\n", "f:3:1: unknown field \"extra\", ignored"),
            ("logging:\n  vmodule:\n  - filePattern: a\n  - pattern: b\n", "f:6:5: unknown field \"pattern\", ignored"),
            ("mode: ipvs\nmode: nftables\n", "f:4:1: key \"mode\" already set above, the last one wins"),
            (
                "ipvs: {syncPeriod: 1s, syncPeriod: 2s}\n",
                "f:3:24: key \"syncPeriod\" already set above, the last one wins",
            ),
        ] {
            let document = body(text).expect(text);
            assert_eq!(document.warnings, [expected], "{text:?}");
        }
        assert_eq!(body("mode: ipvs\nmode: nftables\n").unwrap().raw.mode, "nftables");
    }

    #[test]
    fn known_keys_raise_no_warning() {
        let text = "featureGates: {AllAlpha: false}\nlogging:\n  vmodule:\n  - {filePattern: a, verbosity: 1}\n  - \
                    {filePattern: b, verbosity: 2}\nwindowsRunAsService: true\nnodePortAddresses: [primary]\n";
        let document = body(text).unwrap();
        assert!(document.warnings.is_empty(), "{:?}", document.warnings);
        assert_eq!(document.raw.logging.vmodule.len(), 2);
        assert_eq!(document.raw.node_port_addresses.unwrap(), ["primary"]);
    }

    #[test]
    fn only_the_first_document_counts_and_json_is_yaml() {
        assert_eq!(body("mode: ipvs\n---\nmode: [\n").unwrap().raw.mode, "ipvs");
        let json = format!("{{\n\t\"apiVersion\": {API_VERSION:?},\n\t\"kind\": {KIND:?},\n\t\"mode\": \"ipvs\"\n}}\n");
        assert_eq!(read("f", &json).unwrap().raw.mode, "ipvs");
        assert_eq!(read("f", &format!("# JSON in YAML\n---\n{json}---\nx\n")).unwrap().raw.mode, "ipvs");
        for (behind, expected) in [
            ("garbage", "f:6:1: trailing characters"),
            ("{}", "f:6:1: trailing characters"),
            ("---\n{}", "f:6:1: trailing characters"),
            ("# comment", "f:6:1: trailing characters"),
        ] {
            assert_eq!(read("f", &format!("{json}{behind}\n")).expect_err(behind), expected, "{behind}");
        }
        assert_eq!(read("f", "{mode: ipvs}").unwrap_err(), "f:1:2: key must be a string");
    }

    #[test]
    fn numbers_are_those_of_yaml_1_1() {
        for (text, expected) in [
            ("1e2", 100),
            ("100.0", 100),
            ("-0.0", 0),
            ("010", 8),
            ("-010", -8),
            ("08", 8),
            ("0o10", 8),
            ("0x10", 16),
            ("0b11", 3),
            ("1_0", 10),
            ("+5", 5),
        ] {
            let raw = body(&format!("oomScoreAdj: {text}\nclientConnection: {{qps: {text}}}\n")).expect(text).raw;
            assert_eq!((raw.oom_score_adj, raw.client_connection.qps), (Some(expected), expected as f32), "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_configuration_is_refused() {
        for (text, expected) in [
            ("", "Object 'Kind' is missing"),
            ("# nothing\n", "Object 'Kind' is missing"),
            ("apiVersion: v1\n", "Object 'Kind' is missing"),
            ("kind: KubeProxyConfiguration\n", "Object 'apiVersion' is missing"),
            ("apiVersion: v1\nkind: Pod\n", "no kind \"Pod\" is registered for version \"v1\""),
            ("apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n", "no kind \"KubeProxyConfig"),
        ] {
            let error = read("f", text).expect_err(text);
            assert!(error.starts_with("f: ") && error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let nulls = body(
            "mode: null\niptables: ~\nipvs:\n  excludeCIDRs:\noomScoreAdj: null\nlogging: {flushFrequency: null}\n\
                          conntrack: {tcpEstablishedTimeout: null, tcpCloseWaitTimeout: null, tcpBeLiberal: ~}\n",
        );
        assert_eq!(nulls.unwrap().raw, body("").unwrap().raw);
    }

    #[test]
    fn a_duration_is_not_null() {
        let sample = serde_json::to_value(RawConfig::sample()).unwrap();
        let blocks = sample.as_object().unwrap().iter().filter(|(name, _)| *name != "logging");
        let mut durations = 0;
        for (block, value) in blocks {
            let fields = value.as_object().into_iter().flatten();
            let inner = fields.map(|(name, value)| (format!("{block}: {{{name}: null}}\n"), value));
            for (text, _) in inner.chain([(format!("{block}: null\n"), value)]).filter(|(_, value)| *value == "0s") {
                let error = body(&text).expect_err(&text);
                assert!(error.contains("invalid type: null, expected a string"), "{text}: {error}");
                durations += 1;
            }
        }
        assert_eq!(durations, 12, "all but those that may be null");
    }

    #[test]
    fn flush_frequency_and_buffer_size_may_be_numbers() {
        let text = "logging:\n  flushFrequency: 2000000000\n  options: {json: {infoBufferSize: 512}}\n";
        let logging = body(text).unwrap().raw.logging;
        assert_eq!(logging.flush_frequency.to_string(), "2s");
        assert_eq!(logging.options.json.info_buffer_size.0, "512");
    }
}
