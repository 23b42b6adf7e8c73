//! Links and how they are written, filtered and read: `/.well-known/core` (RFC 6690; `ct` of RFC 7252 §7.2.1; `obs`
//! of RFC 7641 §6).

use coap_lite::link_format::{LinkFormatParser, Unquote};

use crate::wire::Format;

/// A link to a resource, as `/.well-known/core` lists it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link<'a> {
    /// The path, beginning with a slash; what a URI cannot hold is escaped when it is written.
    pub path: &'a str,
    /// `rt`: what it is; several are separated by spaces.
    pub resource_type: &'a str,
    /// `if`: how it is used; several are separated by spaces.
    pub interface: &'a str,
    /// `ct`: the formats it offers.
    pub formats: &'a [Format],
    /// `title`: what a person calls it.
    pub title: &'a str,
    /// `sz`: about how large its representation is, where that is worth knowing.
    pub size: Option<usize>,
    /// `obs`: whether it can be observed.
    pub is_observable: bool,
}

/// A link that was read: where to, and its attributes in their order, unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedLink {
    /// The target as it was written.
    pub target: String,
    /// Names and values; the value of a bare name is empty.
    pub attributes: Vec<(String, String)>,
}

impl Link<'_> {
    /// Whether the link passes a filter `name=value`, where the value may end in `*` (RFC 6690 §4.1). Of attributes
    /// with several values, one must match. A bare name asks whether the attribute is there.
    pub fn matches(&self, query: &str) -> bool {
        let (name, wanted) = query.split_once('=').map_or((query, None), |(name, value)| (name, Some(value)));
        let is_wanted = |value: &str| match wanted {
            None => !value.is_empty(),
            Some(wanted) => match wanted.strip_suffix('*') {
                Some(prefix) => value.starts_with(prefix),
                None => value == wanted,
            },
        };
        match name {
            "href" => is_wanted(self.path),
            "rt" => self.resource_type.split(' ').any(is_wanted),
            "if" => self.interface.split(' ').any(is_wanted),
            "ct" => self.formats.iter().any(|format| is_wanted(&format.0.to_string())),
            "title" => is_wanted(self.title),
            "sz" => self.size.is_some_and(|size| is_wanted(&size.to_string())),
            "obs" => self.is_observable && wanted.is_none_or(str::is_empty),
            _ => false,
        }
    }

    /// Appends the link to a document in link format. Control characters are left out of attributes.
    pub fn write(&self, out: &mut String) {
        use std::fmt::Write;
        if !out.is_empty() {
            out.push(',');
        }
        out.push('<');
        for byte in self.path.bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
                out.push(byte.into());
            } else {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out.push('>');
        write_quoted(out, "rt", self.resource_type);
        write_quoted(out, "if", self.interface);
        match self.formats {
            [] => {}
            [format] => {
                let _ = write!(out, ";ct={}", format.0);
            }
            formats => {
                let formats: Vec<_> = formats.iter().map(|format| format.0.to_string()).collect();
                write_quoted(out, "ct", &formats.join(" "));
            }
        }
        if let Some(size) = self.size {
            let _ = write!(out, ";sz={size}");
        }
        write_quoted(out, "title", self.title);
        if self.is_observable {
            out.push_str(";obs");
        }
    }
}

/// Reads a document in link format, at most `limit` links of it; what cannot be read ends it.
pub fn parse_links(text: &str, limit: usize) -> Vec<OwnedLink> {
    let links = LinkFormatParser::new(text).map_while(Result::ok).take(limit);
    let links = links.map(|(target, attributes)| OwnedLink {
        target: target.to_owned(),
        attributes: attributes
            .map(|(name, value): (&str, Unquote<'_>)| (name.to_owned(), value.to_string()))
            .collect(),
    });
    links.collect()
}

fn write_quoted(out: &mut String, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    out.extend([";", name, "=\""]);
    for c in value.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: Link<'_> = Link {
        path: "/cellar/temperature",
        resource_type: "tidegate.temperature core-s",
        interface: "core.s",
        formats: &[Format(0), Format(110), Format(112)],
        title: "Temperature",
        size: None,
        is_observable: true,
    };

    #[test]
    fn a_link_is_written_as_rfc_6690_has_it() {
        let mut out = String::new();
        LINK.write(&mut out);
        Link { path: "/a b/ä", formats: &[Format(40)], size: Some(2000), ..Link::default() }.write(&mut out);
        assert_eq!(
            out,
            "</cellar/temperature>;rt=\"tidegate.temperature core-s\";if=\"core.s\";ct=\"0 110 112\";\
             title=\"Temperature\";obs,</a%20b/%C3%A4>;ct=40;sz=2000"
        );
    }

    #[test]
    fn a_filter_matches_whole_values_prefixes_and_one_of_several() {
        for query in [
            "rt=tidegate.temperature",
            "rt=core-s",
            "rt=tidegate.*",
            "rt=*",
            "if=core.s",
            "href=/cellar/*",
            "href=/cellar/temperature",
            "ct=110",
            "title=Temp*",
            "obs",
            "rt",
        ] {
            assert!(LINK.matches(query), "{query}");
        }
        for query in [
            "rt=tidegate",
            "rt=tidegate.temperature core-s",
            "if=core",
            "ct=11",
            "href=/",
            "sz=*",
            "x=y",
            "sz",
        ] {
            assert!(!LINK.matches(query), "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_title_is_read_back_without_its_control_characters(title in "\\PC{0,40}") {
            let mut out = String::new();
            Link { path: "/x", title: &title, ..Link::default() }.write(&mut out);
            let links = parse_links(&out, 10);
            prop_assert_eq!(links.len(), 1);
            let read = links[0].attributes.iter().find(|(name, _)| name == "title").map_or("", |(_, value)| value);
            prop_assert_eq!(read, title);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
            prop_assert!(parse_links(&text, 16).len() <= 16);
        }
    }
}
