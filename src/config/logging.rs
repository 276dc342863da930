//! The rules for logging options, which are checked before all others (contract 2.3, last line).
//!
//! Only judges; what is logged, and how, is the business of `observe`.

use super::gates::Gates;
use super::raw::{LogStream, Logging};

/// Checks the logging options.
///
/// # Errors
/// One text that names every bad value, in upstream's words.
pub fn check(raw: &Logging, gates: &Gates) -> Result<(), String> {
    let mut errors = Vec::new();
    match &*raw.format {
        "text" => {}
        "json" if gates.enabled("LoggingBetaOptions") => {}
        "json" => {
            errors.push("format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature".to_owned())
        }
        other => errors.push(format!("format: Invalid value: {other:?}: Unsupported log format")),
    }
    too_verbose("verbosity", raw.verbosity, &mut errors);
    if !raw.vmodule.is_empty() && raw.format != "text" {
        errors.push("vmodule: Forbidden: Only supported for text log format".to_owned());
    }
    for (i, item) in raw.vmodule.iter().enumerate() {
        let pattern = &item.file_pattern;
        if pattern.is_empty() {
            errors.push(format!("vmodule[{i}]: Required value: File pattern must not be empty"));
        }
        if pattern.contains(['=', ',']) {
            let message = "File pattern must not contain equal sign or comma";
            errors.push(format!("vmodule[{i}]: Invalid value: {pattern:?}: {message}"));
        }
        too_verbose(&format!("vmodule[{i}]"), item.verbosity, &mut errors);
    }
    if raw.flush_frequency <= super::duration::GoDuration::ZERO {
        errors.push(format!("flushFrequency: Invalid value: {}: must be greater than 0", raw.flush_frequency));
    }
    if !gates.enabled("LoggingAlphaOptions") {
        alpha_options("text", &raw.options.text, &mut errors);
        alpha_options("json", &raw.options.json, &mut errors);
    }
    let errors: Vec<_> = errors.into_iter().map(|error| format!("logging.{error}")).collect();
    match &*errors {
        [] => Ok(()),
        [only] => Err(only.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

fn too_verbose(path: &str, verbosity: u32, errors: &mut Vec<String>) {
    if i32::try_from(verbosity).is_err() {
        errors.push(format!("{path}: Invalid value: {verbosity}: Must be <= {}", i32::MAX));
    }
}

fn alpha_options(format: &str, raw: &LogStream, errors: &mut Vec<String>) {
    for (name, used) in [("splitStream", raw.split_stream), ("infoBufferSize", !raw.info_buffer_size.is_zero())] {
        if used {
            errors.push(format!("options.{format}.{name}: Forbidden: Feature LoggingAlphaOptions is disabled"));
        }
    }
}
