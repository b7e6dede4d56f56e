//! Texts for people: safe for a terminal, and short.

use std::borrow::Cow;

use podmesh_views::text::acts;
pub(crate) use podmesh_views::text::escape;

/// Returns at most `most` characters, with `…` if something was cut.
pub(crate) fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// Returns a command as it can be typed in a shell; safe for a terminal.
pub(crate) fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        Cow::Borrowed(word)
    } else if word.chars().any(acts) {
        Cow::Owned(format!("$'{}'", escape(&word.replace('\\', "\\\\").replace('\'', "\\'"))))
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', "'\\''")))
    }
}

/// Returns `1 task`, `2 tasks`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_interprets_are_escaped() {
        assert!(!command_line(&["\u{1b}]0;x\u{7}".into()]).contains('\u{1b}'));
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let words = ["sh", "-c", "echo 'a b'", "", "a=b"].map(String::from);
        assert_eq!(command_line(&words), r"sh -c 'echo '\''a b'\''' '' a=b");
    }

    #[test]
    fn clipping_counts_characters() {
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äöüx", 3), "äöü…");
        assert_eq!((count(1, "task"), count(0, "task")), ("1 task".into(), "0 tasks".into()));
    }
}
