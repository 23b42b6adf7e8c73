//! TOML files as one document: several sources, positions that still point into the right one, and every mistake
//! collected instead of the first.
//!
//! serde stops at its first error. [`Document::read`] therefore notes the error, takes the offending key out of the
//! table and reads again, until what is left fits.

use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake in the configuration, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostic {
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// Where, in bytes of the whole document; `None` for a mistake without a place.
    pub span: Option<Range<usize>>,
    /// A second place that belongs to it, and what it is.
    pub also: Option<(Range<usize>, String)>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake at a place.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span: Some(span), also: None, help: None }
    }

    /// A mistake that no single place stands for.
    pub fn general(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, also: None, help: None }
    }

    /// What the TOML reader says.
    pub fn from_toml(error: &toml::de::Error) -> Self {
        Self {
            message: error.message().trim().replace('\n', ", "),
            span: error.span(),
            also: None,
            help: None,
        }
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points at a second place.
    #[must_use]
    pub fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }
}

/// The text of all configuration files; spans count through them in order.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The text behind as many newlines as the files before it have bytes, so that the parser's own positions are
    /// positions in the whole document.
    padded: String,
    offset: usize,
}

impl Sources {
    /// Adds a file behind the others.
    pub fn add(&mut self, path: &Path, text: &str) {
        let offset = self.files.last().map_or(0, |last| last.padded.len() + 1);
        let mut padded = "\n".repeat(offset);
        padded.push_str(text);
        self.files.push(Source { path: path.to_owned(), padded, offset });
    }

    /// The files, in the order they were read.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    /// Parses all files into one table: arrays of tables add up, of other keys the last file wins.
    pub fn parse(&self, diagnostics: &mut Vec<Diagnostic>) -> Spanned<DeTable<'_>> {
        let mut merged = DeTable::new();
        for file in &self.files {
            let (table, errors) = DeTable::parse_recoverable(&file.padded);
            diagnostics.extend(errors.iter().take(MAX_ERRORS).map(Diagnostic::from_toml));
            merge(&mut merged, table.into_inner());
        }
        Spanned::new(0..self.files.last().map_or(0, |file| file.padded.len()), merged)
    }

    /// File, line and column (from 1) of a position.
    pub fn locate(&self, position: usize) -> Option<(&Path, usize, usize)> {
        let file = self.file_of(position)?;
        let text = &file.padded[file.offset..];
        let within = (position - file.offset).min(text.len());
        let before = text.get(..within)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
        Some((&file.path, line, column))
    }

    /// Draws a mistake for a person: file, line, column, the line itself and a caret.
    pub fn render(&self, diagnostic: &Diagnostic, with_colour: bool) -> String {
        let mut group = Group::with_title(Level::ERROR.primary_title(diagnostic.message.as_str()));
        if let Some((file, span)) =
            diagnostic.span.as_ref().and_then(|span| Some((self.file_of(span.start)?, span)))
        {
            let text = &file.padded[file.offset..];
            let path = file.path.display().to_string();
            let mut snippet =
                Snippet::source(text).path(path).annotation(AnnotationKind::Primary.span(within(file, span)));
            let mut elsewhere = None;
            if let Some((also, label)) = &diagnostic.also {
                match self.file_of(also.start) {
                    Some(other) if std::ptr::eq(other, file) => {
                        snippet = snippet.annotation(
                            AnnotationKind::Context.span(within(file, also)).label(label.as_str()),
                        );
                    }
                    Some(other) => elsewhere = Some((other, also, label)),
                    None => {}
                }
            }
            group = group.element(snippet);
            if let Some((other, also, label)) = elsewhere {
                group = group.element(
                    Snippet::source(&other.padded[other.offset..])
                        .path(other.path.display().to_string())
                        .annotation(AnnotationKind::Context.span(within(other, also)).label(label.as_str())),
                );
            }
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if with_colour { Renderer::styled() } else { Renderer::plain() };
        renderer.decor_style(DecorStyle::Ascii).render(&[group])
    }

    fn file_of(&self, position: usize) -> Option<&Source> {
        self.files.iter().rev().find(|file| position >= file.offset)
    }
}

/// Reads a table by `parse`, taking out what is wrong until the rest fits, so that the rest can be looked at, too;
/// `None` when nothing fits. Whether all of it was good is whether `diagnostics` grew.
pub fn read<'i, T>(
    mut table: Spanned<DeTable<'i>>,
    diagnostics: &mut Vec<Diagnostic>,
    parse: impl Fn(Spanned<DeTable<'i>>) -> Result<T, Diagnostic>,
) -> Option<T> {
    for _ in 0..MAX_ERRORS {
        match parse(table.clone()) {
            Ok(value) => return Some(value),
            Err(mut diagnostic) => {
                let whole = table.span();
                let span = diagnostic.span.get_or_insert(whole).clone();
                diagnostics.push(diagnostic);
                if !take_out(table.get_mut(), &span) {
                    return None;
                }
            }
        }
    }
    None
}

/// Reads a table as a serde type.
pub fn settings<T: DeserializeOwned>(table: Spanned<DeTable<'_>>) -> Result<T, Diagnostic> {
    T::deserialize(toml::Deserializer::from(table)).map_err(|error| Diagnostic::from_toml(&error))
}

fn within(file: &Source, span: &Range<usize>) -> Range<usize> {
    let length = file.padded.len() - file.offset;
    let start = (span.start - file.offset).min(length);
    start..(span.end.max(span.start) - file.offset).clamp(start, length)
}

fn merge<'i>(into: &mut DeTable<'i>, from: DeTable<'i>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(have), value) => match (have.get_mut(), value.into_inner()) {
                (DeValue::Array(have), DeValue::Array(more))
                    if more.iter().all(|item| item.get_ref().is_table()) =>
                {
                    for item in more {
                        have.push(item);
                    }
                }
                (DeValue::Table(have), DeValue::Table(more)) => merge(have, more),
                (have, other) => *have = other,
            },
            (None, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Removes the innermost key or array element whose key or value is at `span`; whether one was found.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let covers = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let place = value.span();
        let is_inner = match value.get_mut() {
            DeValue::Table(inner) => take_out(inner, span),
            DeValue::Array(items) => items.iter_mut().any(|item| match item.get_mut() {
                DeValue::Table(inner) => take_out(inner, span),
                _ => false,
            }),
            _ => false,
        };
        if is_inner {
            return true;
        }
        if covers(key.span()) || covers(place) {
            found = Some(key.clone());
        }
    }
    found.is_some_and(|key| table.remove(&key).is_some())
}

/// After so many mistakes in one table a person has enough to do.
const MAX_ERRORS: usize = 50;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        port: Option<u16>,
        name: Option<String>,
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let mut sources = Sources::default();
        sources.add(Path::new("a.toml"), "port = \"x\"\nnmae = 1\n");
        sources.add(Path::new("b.toml"), "name = 2\nother = 3\n");
        let mut diagnostics = Vec::new();
        let table = sources.parse(&mut diagnostics);
        let value = read(table, &mut diagnostics, settings::<Example>);
        assert!(value.is_some_and(|value| value.port.is_none() && value.name.is_none()));
        let mut places: Vec<_> = diagnostics
            .iter()
            .filter_map(|d| d.span.as_ref())
            .filter_map(|span| sources.locate(span.start))
            .map(|(path, line, column)| (path.display().to_string(), line, column))
            .collect();
        places.sort();
        let at = |file: &str, line, column| (file.to_owned(), line, column);
        assert_eq!(places, [at("a.toml", 1, 8), at("a.toml", 2, 1), at("b.toml", 1, 8), at("b.toml", 2, 1)]);
    }

    #[test]
    fn a_drawn_mistake_shows_file_line_and_caret() {
        let mut sources = Sources::default();
        sources.add(Path::new("a.toml"), "port = \"x\"\n");
        let mut diagnostics = Vec::new();
        let table = sources.parse(&mut diagnostics);
        let _ = read(table, &mut diagnostics, settings::<Example>);
        let text = sources.render(&diagnostics[0], false);
        assert!(text.contains("a.toml:1:8") && text.contains("^^^"), "{text}");
    }
}
