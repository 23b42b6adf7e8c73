//! `[[device]]` and `[[uplink]]`: the keys that all have are read here, the rest by the kind that `type` names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use drivers::Period;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::bad_name;
use super::document::{Diagnostic, read, settings};
use crate::reading::is_name;
use crate::sampler::{ChannelOverride, DeviceConfig};
use crate::uplink::settings::Common;
use crate::uplink::{self, UplinkConfig};

pub(super) fn devices(root: &mut DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Vec<DeviceConfig> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shared {
        title: Option<String>,
        interval: Option<Period>,
        absent_after: Option<Period>,
        #[serde(default)]
        channels: BTreeMap<String, ChannelOverride>,
    }
    let mut devices: Vec<DeviceConfig> = Vec::new();
    let mut names = BTreeMap::new();
    let mut places: BTreeMap<String, (Range<usize>, String)> = BTreeMap::new();
    for item in array(root, "device", diagnostics) {
        let Some(Item { name, name_span, type_name, type_span, mut table }) = item else { continue };
        first_use(&mut names, &name, &name_span, "device", diagnostics);
        let common = take(&mut table, &["title", "interval", "absent_after", "channels"]);
        let interval_span = common.get_ref().get("interval").map(Spanned::span);
        let common: Option<Shared> = read(common, diagnostics, settings);
        let Some(device_type) = drivers::device::find(&type_name) else {
            let known: Vec<&str> = drivers::device::registry().iter().map(|known| known.name).collect();
            let message = format!("no device type `{type_name}`, expected one of {}", known.join(", "));
            diagnostics.push(Diagnostic::at(type_span, message));
            continue;
        };
        let whole = table.span();
        let setup = read(table, diagnostics, |table| {
            (device_type.parse)(table).map_err(|error| Diagnostic {
                message: error.message,
                span: error.span,
                also: None,
                help: None,
            })
        });
        let (Some(common), Some(setup)) = (common, setup) else { continue };
        let interval = common.interval.map_or_else(|| setup.default_interval(), |interval| interval.0);
        if !(Duration::from_millis(1)..=Duration::from_secs(24 * 3600)).contains(&interval) {
            let span = interval_span.unwrap_or_else(|| whole.clone());
            diagnostics.push(Diagnostic::at(span, "interval out of range: 1ms to 1d"));
        }
        let known: Vec<String> = setup.channels().iter().map(|channel| channel.name.to_string()).collect();
        for channel in common.channels.keys().filter(|channel| !known.is_empty() && !known.contains(channel))
        {
            let message = format!("{name} has no channel `{channel}`, it has {}", known.join(", "));
            diagnostics.push(Diagnostic::at(whole.clone(), message));
        }
        if let Some(path) = setup.missing().filter(|_| !is_pluggable(&*setup)) {
            diagnostics.push(
                Diagnostic::at(whole.clone(), format!("{name}: {path} is not there"))
                    .help("run `tidegate scan` to see what is connected, or try it out on \"sim\""),
            );
        }
        if let Some(place) = setup.occupies() {
            if let Some((first, other)) = places.get(&place) {
                let message = format!("{place} is used by two devices");
                diagnostics.push(
                    Diagnostic::at(whole.clone(), message)
                        .also(first.clone(), format!("first used by {other}")),
                );
            } else {
                places.insert(place, (whole.clone(), name.clone()));
            }
        }
        devices.push(DeviceConfig {
            name,
            type_name: device_type.name,
            title: common.title,
            interval,
            absent_after: common.absent_after.map_or(ABSENT_AFTER, |period| period.0),
            setup,
            channels: common.channels,
        });
    }
    devices
}

pub(super) fn uplinks(root: &mut DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Vec<UplinkConfig> {
    let mut uplinks = Vec::new();
    let mut names = BTreeMap::new();
    for item in array(root, "uplink", diagnostics) {
        let Some(Item { name, name_span, type_name, type_span, mut table }) = item else { continue };
        first_use(&mut names, &name, &name_span, "uplink", diagnostics);
        let common = take(&mut table, uplink::settings::KEYS);
        let Some(uplink_type) = uplink::find(&type_name) else {
            let known: Vec<&str> = uplink::registry().iter().map(|known| known.name).collect();
            let message = format!("no uplink type `{type_name}`, expected one of {}", known.join(", "));
            diagnostics.push(Diagnostic::at(type_span, message));
            continue;
        };
        let whole = table.span();
        let common: Option<Common> = read(common, diagnostics, settings);
        let setup = read(table, diagnostics, uplink_type.parse);
        let (Some(common), Some(setup)) = (common, setup) else { continue };
        let mut problems = common.problems(setup.type_name(), setup.deliveries());
        problems.extend(setup.problems(&common));
        for problem in problems {
            diagnostics.push(Diagnostic::at(whole.clone(), format!("{name}: {problem}")));
        }
        uplinks.push(UplinkConfig { name, common, setup });
    }
    uplinks
}

/// Takes the keys that all of a kind have out of a table.
fn take<'i>(table: &mut Spanned<DeTable<'i>>, keys: &[&str]) -> Spanned<DeTable<'i>> {
    let mut taken = DeTable::new();
    for key in keys {
        if let Some((key, value)) = table.get_mut().remove_entry(*key) {
            taken.insert(key, value);
        }
    }
    Spanned::new(table.span(), taken)
}

/// One `[[device]]` or `[[uplink]]`, its name and type taken out.
struct Item<'i> {
    name: String,
    name_span: Range<usize>,
    type_name: String,
    type_span: Range<usize>,
    table: Spanned<DeTable<'i>>,
}

fn array<'i>(root: &mut DeTable<'i>, key: &str, diagnostics: &mut Vec<Diagnostic>) -> Vec<Option<Item<'i>>> {
    let Some(value) = root.remove(key) else { return Vec::new() };
    let span = value.span();
    let DeValue::Array(items) = value.into_inner() else {
        diagnostics.push(Diagnostic::at(span, format!("`{key}` is an array of tables: write [[{key}]]")));
        return Vec::new();
    };
    items
        .into_iter()
        .map(|item| {
            let span = item.span();
            let DeValue::Table(mut table) = item.into_inner() else {
                diagnostics.push(Diagnostic::at(span, format!("write [[{key}]]")));
                return None;
            };
            let mut text = |field: &str| match table.remove(field) {
                Some(value) => match value.get_ref() {
                    DeValue::String(text) => Some((text.to_string(), value.span())),
                    other => {
                        let found = other.type_str();
                        diagnostics.push(Diagnostic::at(
                            value.span(),
                            format!("{field} is a string, found {found}"),
                        ));
                        None
                    }
                },
                None => {
                    diagnostics.push(Diagnostic::at(span.clone(), format!("a {key} needs a {field}")));
                    None
                }
            };
            let (name, type_name) = (text("name"), text("type"));
            if let Some((name, span)) = name.as_ref().filter(|(name, _)| !is_name(name)) {
                diagnostics.push(Diagnostic::at(span.clone(), bad_name(name)));
                return None;
            }
            let ((name, name_span), (type_name, type_span)) = name.zip(type_name)?;
            Some(Item { name, name_span, type_name, type_span, table: Spanned::new(span, table) })
        })
        .collect()
}

fn first_use(
    names: &mut BTreeMap<String, Range<usize>>,
    name: &str,
    span: &Range<usize>,
    what: &str,
    diagnostics: &mut Vec<Diagnostic>,
) {
    match names.get(name) {
        None => {
            names.insert(name.to_owned(), span.clone());
        }
        Some(first) => diagnostics.push(
            Diagnostic::at(span.clone(), format!("two {what}s are named `{name}`"))
                .also(first.clone(), "first used here"),
        ),
    }
}

/// A device that is silent for longer is cause for alarm, unless its table says otherwise.
const ABSENT_AFTER: Duration = Duration::from_secs(60);

/// A USB adapter may be plugged in later; a bus or a line of the board itself cannot.
fn is_pluggable(setup: &dyn drivers::Setup) -> bool {
    setup.bus().to_string().starts_with("serial/")
}
