//! The rules for logging options, which are checked before all others (contract 2.3, last line).
//!
//! Only judges; what is logged, and how, is the business of `observe`.

use super::duration::GoDuration;
use super::gates::{Gate, Gates};
use super::raw::{LogStream, Logging};
use super::refusals::Refusals;

/// Checks the logging options.
///
/// # Errors
/// Every bad value.
pub fn check(raw: &Logging, gates: &Gates) -> Result<(), Refusals> {
    let mut errors = Refusals::default();
    match &*raw.format {
        "text" => {}
        "json" if gates.enabled(Gate::LoggingBetaOptions) => {}
        "json" => {
            errors.push("logging.format", "Forbidden: Log format json is disabled, see LoggingBetaOptions feature");
        }
        other => errors.invalid("logging.format", format!("{other:?}"), "Unsupported log format"),
    }
    too_verbose("logging.verbosity", raw.verbosity, &mut errors);
    if !raw.vmodule.is_empty() && raw.format != "text" {
        errors.push("logging.vmodule", "Forbidden: Only supported for text log format");
    }
    for (i, item) in raw.vmodule.iter().enumerate() {
        let path = format!("logging.vmodule[{i}]");
        let pattern = &item.file_pattern;
        if pattern.is_empty() {
            errors.push(&path, "Required value: File pattern must not be empty");
        }
        if pattern.contains(['=', ',']) {
            let message = "File pattern must not contain equal sign or comma";
            errors.invalid(&path, format!("{pattern:?}"), message);
        }
        too_verbose(&path, item.verbosity, &mut errors);
    }
    if raw.flush_frequency <= GoDuration::ZERO {
        errors.invalid("logging.flushFrequency", raw.flush_frequency, "must be greater than 0");
    }
    if !gates.enabled(Gate::LoggingAlphaOptions) {
        alpha_options("logging.options.text", &raw.options.text, &mut errors);
        alpha_options("logging.options.json", &raw.options.json, &mut errors);
    }
    errors.or(())
}

fn too_verbose(path: &str, verbosity: u32, errors: &mut Refusals) {
    if i32::try_from(verbosity).is_err() {
        errors.invalid(path, verbosity, &format!("Must be <= {}", i32::MAX));
    }
}

fn alpha_options(path: &str, raw: &LogStream, errors: &mut Refusals) {
    for (name, used) in [("splitStream", raw.split_stream), ("infoBufferSize", !raw.info_buffer_size.is_zero())] {
        if used {
            errors.push(&format!("{path}.{name}"), "Forbidden: Feature LoggingAlphaOptions is disabled");
        }
    }
}
