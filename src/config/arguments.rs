//! The habits of Go's flag library, translated for `argh`: `--name=value`, switches with a value, `_` for `-`, and the
//! last of several wins. Knows the flags only by what `argh` says of them; their values pass through unread.

use argh::{ArgsInfo, FlagInfo, FlagInfoKind, Optionality};

use super::flags::{Flags, parse_bool};

/// The flags in `words` as pairs of `--name` and value, each name once unless it may repeat; `None` when help is asked
/// for, and the flags beside it exist.
///
/// # Errors
/// A flag that does not exist or lacks its value, or a word that belongs to no flag.
pub fn pairs(words: &[String]) -> Result<Option<Vec<(String, String)>>, String> {
    let known = Flags::get_args_info().flags;
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut strays = Vec::new();
    let mut help = false;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            strays.extend(rest.by_ref());
            break;
        }
        let Some((name, value)) = split(word) else {
            strays.push(word);
            continue;
        };
        if matches!(&*name, "--help" | "-h") {
            help = value.map_or(Ok(true), parse_bool).map_err(|error| format!("{name}: {error}"))?;
            continue;
        }
        let flag = known.iter().find(|flag| flag.long == name).ok_or_else(|| format!("unknown flag: {name}"))?;
        let value = match value {
            Some(value) => value.to_owned(),
            None if is_switch(flag) => "true".to_owned(),
            None => rest.next().ok_or_else(|| format!("flag needs an argument: {name}"))?.clone(),
        };
        if flag.optionality != Optionality::Repeating {
            pairs.retain(|(earlier, _)| *earlier != name);
        }
        pairs.push((name, value));
    }
    if help {
        return Ok(None);
    }
    strays.retain(|word| !word.is_empty());
    match strays.is_empty() {
        true => Ok(Some(pairs)),
        false => Err(format!("\"kube-proxy\" does not take any arguments, got {strays:?}")),
    }
}

/// Whether this flag may stand without a value.
pub fn is_switch(flag: &FlagInfo<'_>) -> bool {
    match flag.kind {
        FlagInfoKind::Switch => true,
        FlagInfoKind::Option { arg_name } => arg_name.starts_with("bool"),
    }
}

/// A flag's name, with the dashes it is known by, and its value if that is in the same word.
fn split(word: &str) -> Option<(String, Option<&str>)> {
    if let Some(short) = word.strip_prefix("-v").filter(|rest| rest.is_empty() || !rest.starts_with('-')) {
        let value = short.strip_prefix('=').unwrap_or(short);
        return Some(("--v".to_owned(), (!short.is_empty()).then_some(value)));
    }
    if !word.starts_with('-') || word == "-" {
        return None;
    }
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    Some((name.replace('_', "-"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<String, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let show = |pairs: Vec<(String, String)>| pairs.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>();
        Ok(pairs(&words)?.map_or("help".to_owned(), |pairs| show(pairs).join(" ")))
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for (line, expected) in [
            ("", ""),
            ("--config=a", "--config=a"),
            ("--config a", "--config=a"),
            ("--config=", "--config="),
            ("--config=a=b", "--config=a=b"),
            ("--config a --config=b", "--config=b"),
            ("--cleanup", "--cleanup=true"),
            ("--cleanup=false", "--cleanup=false"),
            ("--cleanup --cleanup=0", "--cleanup=0"),
            ("--iptables_masquerade_bit=1", "--iptables-masquerade-bit=1"),
            ("--hostname_override a_b", "--hostname-override=a_b"),
            ("--oom-score-adj -999", "--oom-score-adj=-999"),
            ("-v 4", "--v=4"),
            ("-v=4", "--v=4"),
            ("-v4", "--v=4"),
            ("--v 4", "--v=4"),
            ("--v=1 -v 2", "--v=2"),
            ("--version", "--version=true"),
            ("--version=raw", "--version=raw"),
            ("--nodeport-addresses=a --nodeport-addresses=b", "--nodeport-addresses=a --nodeport-addresses=b"),
            ("--cleanup --", "--cleanup=true"),
            ("--help", "help"),
            ("--cleanup -h", "help"),
            ("--help=1", "help"),
            ("--help=false --cleanup", "--cleanup=true"),
            ("--help --help=false --cleanup", "--cleanup=true"),
            ("--help --cleanup=0 stray", "help"),
        ] {
            assert_eq!(read(line).expect(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_flag_is_refused() {
        for (line, expected) in [
            ("--nonsense", "unknown flag: --nonsense"),
            ("--nonsense=1", "unknown flag: --nonsense"),
            ("-config=a", "unknown flag: -config"),
            ("-x", "unknown flag: -x"),
            ("--help --nonsense", "unknown flag: --nonsense"),
            ("--help=maybe", "--help: \"maybe\" is neither true nor false"),
            ("-h=", "-h: \"\" is neither true nor false"),
            ("--config", "flag needs an argument: --config"),
            ("--cleanup false", "\"kube-proxy\" does not take any arguments, got [\"false\"]"),
            ("-- --cleanup", "\"kube-proxy\" does not take any arguments, got [\"--cleanup\"]"),
        ] {
            assert_eq!(read(line), Err(expected.to_owned()), "{line}");
        }
    }
}
