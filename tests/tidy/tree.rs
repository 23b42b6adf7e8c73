//! The files of the project, as a fresh clone would hold them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A text file, its path relative to the workspace with `/` between the parts.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Numbered lines that are not comments. A string that looks like a comment is taken for one.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(n, line)| (n + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.extension() == "rs"
    }

    pub(crate) fn extension(&self) -> &str {
        self.path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map_or("", |(_, end)| end)
    }
}

/// Every text file outside what is built, downloaded or vendored.
pub(crate) fn sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let root = harness::workspace();
        let mut paths = Vec::new();
        walk(&root, &root, &mut paths);
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(root.join(&path)).ok()?;
            Some(Source { path: path.to_str()?.to_owned(), text })
        };
        paths.into_iter().filter_map(read).collect()
    })
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let relative = path.strip_prefix(root).unwrap().to_path_buf();
        let name = relative.to_str().unwrap();
        let is_elsewhere = matches!(
            name,
            "target" | "tests/rumqtt/target" | ".git" | "tests/.venv" | "tests/.node" | "tests/out"
        ) || name.contains("__pycache__")
            || name.starts_with("gateway/dashboard/vendor/");
        if is_elsewhere {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(relative);
        }
    }
}

/// Where `word` stands in `line` with nothing of a name on either side.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(is_name)
            && !line[at + word.len()..].chars().next().is_some_and(is_name)
    })
}

/// Fails with every finding, one per line.
pub(crate) fn nothing_found(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn a_word_is_not_found_inside_another() {
    assert!(has_word("use lapin::Channel;", "lapin"));
    assert!(!has_word("let lapins = 1;", "lapin"));
    assert!(!has_word("tokio-serial = 1", "tokio"));
}
