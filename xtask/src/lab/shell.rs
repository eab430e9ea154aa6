//! Quoting for the shells inside the lab.

/// The text as one word of a POSIX shell.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_a_quoted_word_back_unchanged() {
        for word in [
            "",
            "plain",
            "two words",
            "it's",
            "$HOME `id` \"x\" \\ * \n end",
            "''",
        ] {
            let script = format!("printf %s {}", quote(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
