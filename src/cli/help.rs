//! The text of `--help`: all flags in groups, in at most 80 columns.
//!
//! Names and descriptions are those in `config::flags`, in the order in which they stand there. Must not know a flag,
//! except the one that begins each group.

use argh::{ArgsInfo, FlagInfo, FlagInfoKind};

use crate::config::arguments::is_switch;
use crate::config::flags::{Flags, WITHOUT_EFFECT};

const WIDTH: usize = 80;
const COLUMN: usize = 32;

/// Each group's heading, and the flag that it begins with.
const GROUPS: [(&str, &str); 6] = [
    ("--config", "What to do:"),
    ("--hostname-override", "Where Services come from:"),
    ("--proxy-mode", "How traffic is treated:"),
    ("--iptables-masquerade-bit", "By mode:"),
    ("--conntrack-max-per-core", "Connection tracking:"),
    ("--healthz-bind-address", "Health, metrics, log:"),
];

const USAGE: &str = "\
Usage: kube-proxy [flags]             serve Kubernetes Services on this node
       kube-proxy demo                see it at work, without root or cluster
       kube-proxy doctor [--json]     check this node, say how to mend it

Flags are written --flag value or --flag=value. Durations: 300ms, 30s, 1h30m.
";

/// The whole text, without a line break at its end.
pub fn text() -> String {
    let mut text = USAGE.to_owned();
    for flag in Flags::get_args_info().flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
        if WITHOUT_EFFECT.contains(&&flag.long[2..]) {
            continue;
        }
        if let Some((_, heading)) = GROUPS.iter().find(|(first, _)| *first == flag.long) {
            text.push_str(&format!("\n{heading}\n"));
        }
        describe(flag, &mut text);
    }
    text.push_str("\nAccepted, but without effect here:\n");
    let names: Vec<_> = WITHOUT_EFFECT.iter().map(|name| format!("--{name}")).collect();
    wrap("  ", 2, &names.join(", "), &mut text);
    text.truncate(text.trim_end().len());
    text
}

fn describe(flag: &FlagInfo<'_>, text: &mut String) {
    let short = flag.short.map_or(String::new(), |short| format!("-{short}, "));
    let value = match flag.kind {
        FlagInfoKind::Option { arg_name } if !is_switch(flag) => format!(" <{arg_name}>"),
        _ => String::new(),
    };
    let mut head = format!("  {short}{}{value}", flag.long);
    if head.len() + 2 > COLUMN {
        text.push_str(&head);
        text.push('\n');
        head.clear();
    }
    wrap(&format!("{head:COLUMN$}"), COLUMN, flag.description, text);
}

/// Writes `words` behind `head`, and further lines below its end.
fn wrap(head: &str, indent: usize, words: &str, text: &mut String) {
    let mut line = head.to_owned();
    let mut filled = false;
    for word in words.split(' ') {
        if filled && line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = " ".repeat(indent);
            filled = false;
        }
        if filled {
            line.push(' ');
        }
        line.push_str(word);
        filled = true;
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_terminal_and_names_every_flag_that_is_not_hidden() {
        let text = text();
        for line in text.lines() {
            assert!(line.len() <= WIDTH, "{line:?} has {} columns", line.len());
            assert_eq!(line.trim_end(), line, "blanks at the end");
        }
        for flag in Flags::get_args_info().flags.iter().filter(|flag| flag.long != "--help") {
            let words = text.split([' ', ',', '\n']);
            assert_eq!(words.into_iter().filter(|word| *word == flag.long).count() > 0, !flag.hidden, "{}", flag.long);
        }
        for (first, heading) in GROUPS {
            assert!(text.contains(&format!("\n{heading}\n  {first}")), "{heading} does not begin with {first}");
        }
    }
}
