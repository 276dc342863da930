//! From the text of a configuration file to [`RawConfig`].
//!
//! As upstream does it (contract 2.1), YAML or JSON becomes a tree first and the tree is typed after: a quoted number
//! is not a number. Whatever is wrong is reported with its place. Must not judge values: that is the business of
//! `check`.

use serde::de::DeserializeOwned;
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
    let mut tree: Value = first_document(file, text)?.unwrap_or(Value::Null);
    drop_nulls(&mut tree);
    check_kind(file, &tree)?;
    let places = Places::new(file, first_document(file, text)?.unwrap_or_default());
    let raw = serde_path_to_error::deserialize(&tree).map_err(|e| {
        let place = places.find(&pointer(e.path())).unwrap_or_else(|| file.to_owned());
        format!("{place}: {}: {}", e.path(), e.inner())
    })?;
    Ok(Document { raw, warnings: places.odd_keys(), places })
}

fn first_document<T: DeserializeOwned>(file: &str, text: &str) -> Result<Option<T>, String> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins, with_snippet: false };
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

/// A `null` says the same as leaving the key out.
fn drop_nulls(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
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
        let nulls = body("mode: null\niptables: ~\nipvs:\n  excludeCIDRs:\n  syncPeriod: null\noomScoreAdj: null\n");
        assert_eq!(nulls.unwrap().raw, body("").unwrap().raw);
    }

    #[test]
    fn flush_frequency_and_buffer_size_may_be_numbers() {
        let text = "logging:\n  flushFrequency: 2000000000\n  options: {json: {infoBufferSize: 512}}\n";
        let logging = body(text).unwrap().raw.logging;
        assert_eq!(logging.flush_frequency.to_string(), "2s");
        assert_eq!(logging.options.json.info_buffer_size.0, "512");
    }
}
