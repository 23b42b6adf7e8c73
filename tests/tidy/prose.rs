//! What the pages promise: their links lead somewhere, the tests they name exist.

use crate::tree::{Source, nothing_found, sources};

#[test]
fn every_relative_link_leads_to_a_file() {
    let root = harness::workspace();
    let mut findings = Vec::new();
    for page in pages() {
        let dir = root.join(page.path.rsplit_once('/').map_or("", |(dir, _)| dir));
        for target in links(&page.text) {
            let path = target.split('#').next().unwrap_or("");
            let is_elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !is_elsewhere && !dir.join(path).exists() {
                findings.push(format!("{}: {target}", page.path));
            }
        }
    }
    nothing_found("links to nowhere", &findings);
}

#[test]
fn every_test_a_page_names_exists() {
    let mut findings = Vec::new();
    for page in pages() {
        for name in cited_tests(&page.text) {
            let declaration = format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
            if !sources().iter().any(|source| source.is_rust() && source.text.contains(&declaration)) {
                findings.push(format!("{}: {name}", page.path));
            }
        }
    }
    nothing_found("no such test", &findings);
}

#[test]
fn links_and_cited_tests_are_found_in_a_page() {
    let page = "see [a](b/c.md#d) and ![e](f.png), held by `test: g_h` and `test: i::j_k`.";
    assert_eq!(links(page).collect::<Vec<_>>(), ["b/c.md#d", "f.png"]);
    assert_eq!(cited_tests(page).collect::<Vec<_>>(), ["g_h", "i::j_k"]);
}

fn pages() -> impl Iterator<Item = &'static Source> {
    sources().iter().filter(|source| source.extension() == "md")
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.trim())
}

fn cited_tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("`test: ").skip(1).filter_map(|rest| rest.split_once('`')).map(|(name, _)| name.trim())
}
