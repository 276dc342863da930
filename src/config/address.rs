//! Addresses of the form `host:port` in files and flags. Pure text: resolves no name, opens no socket.

use crate::model::parse_ip;

/// Splits `host:port` or `[host]:port`, without judging either part; `None` where a colon is missing or ambiguous.
pub fn split_host_port(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").filter(|(host, port)| !host.contains(['[', ']']) && !port.contains(':')),
        None => text.split_once(':').filter(|(host, port)| !port.contains(':') && !host.contains([']'])),
    }
}

/// A bare IP address with this port behind it; everything else as it is.
pub fn with_port(text: &str, port: i32) -> String {
    match parse_ip(text) {
        Some(_) if text.contains(':') => format!("[{text}]:{port}"),
        Some(_) => format!("{text}:{port}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_come_apart() {
        for (text, expected) in [
            ("0.0.0.0:10256", Some(("0.0.0.0", "10256"))),
            ("[::]:10256", Some(("::", "10256"))),
            ("host:", Some(("host", ""))),
            (":80", Some(("", "80"))),
            ("::1", None),
            ("1.2.3.4", None),
            ("[::1]", None),
            ("[::1]:1:2", None),
            ("", None),
        ] {
            assert_eq!(split_host_port(text), expected, "{text:?}");
        }
    }

    #[test]
    fn only_a_bare_address_gets_a_port() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:80"),
            ("fd00::1", "[fd00::1]:80"),
            ("10.0.0.1:90", "10.0.0.1:90"),
            ("[::]:90", "[::]:90"),
            ("name", "name"),
            ("", ""),
        ] {
            assert_eq!(with_port(text, 80), expected, "{text:?}");
        }
    }
}
