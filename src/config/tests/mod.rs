//! The configuration as a whole: tables of what goes in, as flags and files, and what comes out.

mod bad_values;
mod completed;
mod precedence;
mod written;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// A file that is gone at the end of the test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kube-proxy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("the temporary folder is writable");
        Self(path)
    }

    fn with_body(text: &str) -> Self {
        Self::new(&format!("{HEAD}{text}"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn options(line: &str) -> Options {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Options::parse(&words).unwrap_or_else(|e| panic!("{line}: {e}")).expect("no help is asked for")
}

fn from_flags(line: &str) -> Result<Loaded, String> {
    options(line).settle_with_default(Path::new("/nonexistent/config.conf"))?.check()
}

fn from_file(text: &str) -> Result<Loaded, String> {
    from_file_and_flags(text, "")
}

fn from_file_and_flags(text: &str, line: &str) -> Result<Loaded, String> {
    let file = File::with_body(text);
    from_flags(&format!("--config={} {line}", file.0.display()))
}

/// The text of one field of the effective configuration, by JSON pointer.
fn field(loaded: &Loaded, pointer: &str) -> String {
    let tree = serde_json::to_value(&loaded.effective).expect("every field has a form in JSON");
    match tree.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => panic!("no field {pointer}"),
    }
}
