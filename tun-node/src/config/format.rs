//! The shape of the file: which sections and keys there are, and what type each value has.
//!
//! Reads the TOML tree into a [`Draft`] in which every value remembers where it was written. A value
//! that cannot be used is reported and left out; reading goes on, so that one run finds
//! everything. This walks toml's own spanned tree and not a serde `Deserialize`, which ends at the
//! first wrong key or type. What values mean together is for `validate.rs`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use warren_core::tables::EcnMode;

use super::encap::Choice;
use super::error::{At, Lines, Problems, quoted};
use super::sources::{Etcd, Files, Guard, Kubernetes};
use super::{DeviceMode, Dscp, LogLevel, PeerMode, RouteAction, VtepMac, underlay, value};

mod dscp;
mod sources;
mod ways;
mod worker;

pub(super) use ways::ProbingDraft;
pub(super) use worker::WorkerDraft;

/// The whole file; `None` or empty where nothing usable was written.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) node: NodeDraft,
    pub(super) device: DeviceDraft,
    pub(super) vxlan: EncapDraft,
    pub(super) geneve: EncapDraft,
    pub(super) fou: EncapDraft,
    pub(super) gue: EncapDraft,
    pub(super) ipip: EncapDraft,
    pub(super) vxlan_gpe: EncapDraft,
    pub(super) peers: Vec<PeerDraft>,
    pub(super) routes: Vec<RouteDraft>,
    pub(super) control_socket: Option<At<PathBuf>>,
    pub(super) metrics_listen: Option<At<SocketAddr>>,
    pub(super) log_level: Option<At<LogLevel>>,
    pub(super) state_file: Option<At<PathBuf>>,
    pub(super) worker: WorkerDraft,
    pub(super) probing: ProbingDraft,
    pub(super) etcd: Option<Etcd>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) files: Option<Files>,
    pub(super) guard: Guard,
}

#[derive(Debug, Default)]
pub(super) struct NodeDraft {
    pub(super) name: Option<At<String>>,
    pub(super) underlay: Vec<At<IpAddr>>,
    pub(super) follows: Vec<String>,
    pub(super) servers: Vec<String>,
    pub(super) vtep_mac: Option<At<VtepMac>>,
    pub(super) receive: Vec<At<Choice>>,
    pub(super) prefixes: Vec<At<IpNet>>,
    /// The list may lack what was meant: something in it was refused, or all of `[node]` is
    /// missing.
    pub(super) prefixes_refused: bool,
    pub(super) allow_loopback_underlay: Option<At<bool>>,
    pub(super) allow_overlap: Option<At<bool>>,
    pub(super) subnet_env: Option<At<PathBuf>>,
    pub(super) ip_masq: Option<At<bool>>,
}

#[derive(Debug, Default)]
pub(super) struct DeviceDraft {
    pub(super) name: Option<At<String>>,
    pub(super) addresses: Vec<At<IpNet>>,
    pub(super) mtu: Option<At<u16>>,
    pub(super) underlay_mtu: Option<At<u16>>,
    pub(super) clamp_mss: Option<At<bool>>,
    pub(super) mode: Option<At<DeviceMode>>,
    pub(super) routes: Option<At<bool>>,
}

/// One of the sections of encapsulations; keys that it does not have stay `None`.
#[derive(Debug, Default)]
pub(super) struct EncapDraft {
    pub(super) present: bool,
    pub(super) enabled: Option<At<bool>>,
    pub(super) port: Option<At<u16>>,
    pub(super) vni: Option<At<u32>>,
    pub(super) strict_reserved_bits: Option<At<bool>>,
}

#[derive(Debug)]
pub(super) struct PeerDraft {
    /// Where `[[peers]]` of this peer stands.
    pub(super) at: usize,
    pub(super) name: Option<At<String>>,
    pub(super) address: Option<At<IpAddr>>,
    /// By preference.
    pub(super) encaps: Vec<At<Choice>>,
    pub(super) mode: Option<At<PeerMode>>,
    pub(super) probe_address: Option<At<IpAddr>>,
    pub(super) probe: Option<At<bool>>,
    /// The key was not written at all, as opposed to written with a value that was refused.
    pub(super) encap_absent: bool,
    pub(super) vtep_mac: Option<At<VtepMac>>,
    pub(super) vtep_mac_absent: bool,
    pub(super) vni: Option<At<u32>>,
    pub(super) port: Option<At<u16>>,
    pub(super) prefixes: Vec<At<IpNet>>,
    pub(super) mtu: Option<At<u16>>,
    pub(super) dscp: Dscp,
    pub(super) ecn: Option<At<EcnMode>>,
}

#[derive(Debug)]
pub(super) struct RouteDraft {
    /// Where `[[routes]]` of this route stands.
    pub(super) at: usize,
    pub(super) prefix: Option<At<IpNet>>,
    pub(super) via: Vec<At<String>>,
    pub(super) action: Option<At<RouteAction>>,
}

/// Reads the tree of a whole file.
pub(super) fn read(file: &DeTable<'_>, problems: &mut Problems) -> Draft {
    let mut draft = Draft::default();
    for (key, content) in file {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        match name {
            "peers" => {
                for table in sections(name, content, problems) {
                    draft.peers.push(peer(&table, problems));
                }
            }
            "routes" => {
                for table in sections(name, content, problems) {
                    draft.routes.push(route(&table, problems));
                }
            }
            _ if !SECTIONS.contains(&name) => {
                let shown = quoted(name);
                let sentence = match problems.did_you_mean(name, SECTIONS) {
                    Some(meant @ ("peers" | "routes")) => {
                        format!("unknown section {shown}; did you mean [[{meant}]]?")
                    }
                    Some(meant) => format!("unknown section {shown}; did you mean [{meant}]?"),
                    None if !content.get_ref().is_table() && !content.get_ref().is_array() => {
                        format!("the key {shown} stands outside of any section; move it into one")
                    }
                    None => format!(
                        "unknown section {shown}; remove it (the sections are {})",
                        SECTIONS.join(", ")
                    ),
                };
                problems.push(at, sentence);
            }
            _ => {
                if let Some(table) = section(name, content, problems) {
                    if name == "node" {
                        let has_claims = CLAIMING.iter().any(|key| file.contains_key(*key));
                        draft.node = node(&table, has_claims, underlay::servers(file), problems);
                        continue;
                    }
                    single(name, &table, &mut draft, problems);
                }
            }
        }
    }
    if !file.contains_key("node") {
        if CLAIMING.iter().any(|key| file.contains_key(*key)) {
            let table = &DeTable::new();
            let label = "[node]".to_owned();
            draft.node = node(
                &Section {
                    label,
                    at: 0,
                    table,
                },
                true,
                underlay::servers(file),
                problems,
            );
        } else {
            draft.node.prefixes_refused = true;
            problems.push(
                0,
                "the section [node] is missing; add it with name and underlay",
            );
        }
    }
    draft
}

/// Reads a section that a file has at most once.
fn single(name: &str, table: &Section<'_, '_>, draft: &mut Draft, problems: &mut Problems) {
    match name {
        "device" => draft.device = device(table, problems),
        "vxlan" => {
            table.refuse_unknown(
                &["enabled", "port", "vni", "strict-reserved-bits"],
                problems,
            );
            draft.vxlan = encap(table, problems);
        }
        "vxlan-gpe" => {
            table.refuse_unknown(&["enabled", "port", "vni"], problems);
            draft.vxlan_gpe = encap(table, problems);
        }
        "geneve" => {
            table.refuse_unknown(&["enabled", "port", "vni"], problems);
            draft.geneve = encap(table, problems);
        }
        "fou" => {
            table.refuse_unknown(&["enabled", "port"], problems);
            draft.fou = encap(table, problems);
        }
        "gue" => {
            table.refuse_unknown(&["enabled", "port"], problems);
            draft.gue = encap(table, problems);
        }
        "ipip" => {
            table.refuse_unknown(&["enabled"], problems);
            draft.ipip = encap(table, problems);
        }
        "control" => {
            table.refuse_unknown(&["socket"], problems);
            draft.control_socket = table.parsed("socket", problems, value::socket_path);
        }
        "metrics" => {
            table.refuse_unknown(&["listen"], problems);
            draft.metrics_listen = table.parsed("listen", problems, value::listen_address);
            if table.get("listen").is_none() {
                table.missing("listen", "write for example \"127.0.0.1:9472\"", problems);
            }
        }
        "log" => {
            table.refuse_unknown(&["level"], problems);
            draft.log_level = table.choice("level", &LogLevel::NAMES, problems);
        }
        "worker" => draft.worker = worker::worker(table, problems),
        "probing" => draft.probing = ways::probing(table, problems),
        "etcd" => draft.etcd = sources::etcd(table, problems),
        "kubernetes" => draft.kubernetes = sources::kubernetes(table, problems),
        "files" => draft.files = sources::files(table, problems),
        "guard" => draft.guard = sources::guard(table, problems),
        "state" => {
            table.refuse_unknown(&["file"], problems);
            draft.state_file = table.parsed("file", problems, value::file_path_or_none);
        }
        _ => {}
    }
}

/// Reports what the parser could not read: the first error of each line, up to the first inside of
/// a list or an inline table, because an unclosed one makes errors of all lines after it.
pub(super) fn syntax_errors(errors: &[toml::de::Error], text: &str, problems: &mut Problems) {
    let lines = Lines::new(text);
    let place = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let mut errors: Vec<&toml::de::Error> = errors.iter().collect();
    errors.sort_by_key(|error| place(error));
    let mut last_line = 0;
    for error in errors {
        let at = place(error);
        let line = lines.line(at);
        if line == last_line {
            continue;
        }
        last_line = line;
        let message = error.message();
        let inside = ["array", "inline table"];
        let inside = inside.iter().any(|container| message.contains(container));
        let sentence = if message.starts_with("duplicate key") {
            "this key or section was written before; keep one of the two".to_owned()
        } else if message.starts_with("string values must be quoted") {
            "this is not TOML: text must be in quotes; put them around the value".to_owned()
        } else if inside {
            format!("this is not TOML: {message}; look for a missing comma or bracket before it")
        } else {
            format!("this is not TOML: {message}; correct it")
        };
        problems.push(at, sentence);
        if inside {
            return;
        }
    }
}

fn node(
    table: &Section<'_, '_>,
    has_claims: bool,
    servers: Vec<String>,
    problems: &mut Problems,
) -> NodeDraft {
    table.refuse_unknown(
        &[
            "name",
            "underlay",
            "vtep-mac",
            "prefixes",
            "receive",
            "allow-loopback-underlay",
            "allow-overlap",
            "subnet-env",
            "ip-masq",
        ],
        problems,
    );
    if table.get("name").is_none() && !has_claims {
        table.missing("name", "write this node's own name", problems);
    }
    let written = |text: &str| underlay::written(text, &servers);
    let underlay = match table.list("underlay", problems, written) {
        // Who names where the others are found has said enough.
        None if has_claims => Some(underlay::by_default(table.at, &servers, problems)),
        written => written,
    };
    if underlay.is_none() {
        table.missing(
            "underlay",
            "list the addresses that other nodes reach this node at, or write \"auto\"",
            problems,
        );
    }
    if let Some((content, at)) = table.get("underlay")
        && content.as_array().is_some_and(|list| list.is_empty())
    {
        problems.push(at, "underlay is empty; write at least one address");
    }
    let refused_before = problems.len();
    let prefixes = table.list("prefixes", problems, value::prefix);
    let prefixes_refused = problems.len() > refused_before;
    let (underlay, follows) = underlay::addresses(underlay.unwrap_or_default());
    let name = match table.get("name") {
        Some(_) => table.parsed("name", problems, value::node_name),
        // The others will know the node by its address.
        None => underlay.first().map(|first| At {
            value: value::name_by_address(first.value),
            at: table.at,
        }),
    };
    NodeDraft {
        receive: ways::choices(table, "receive", problems),
        name,
        underlay,
        // What is written follows nothing.
        servers: if follows.is_empty() {
            Vec::new()
        } else {
            servers
        },
        follows,
        vtep_mac: table.parsed("vtep-mac", problems, value::vtep_mac),
        prefixes: prefixes.unwrap_or_default(),
        prefixes_refused,
        allow_loopback_underlay: table.boolean("allow-loopback-underlay", problems),
        allow_overlap: table.boolean("allow-overlap", problems),
        subnet_env: table.parsed("subnet-env", problems, value::file_path_or_none),
        ip_masq: table.boolean("ip-masq", problems),
    }
}

fn device(table: &Section<'_, '_>, problems: &mut Problems) -> DeviceDraft {
    table.refuse_unknown(
        &[
            "name",
            "addresses",
            "mtu",
            "underlay-mtu",
            "clamp-mss",
            "mode",
            "routes",
        ],
        problems,
    );
    DeviceDraft {
        name: table.parsed("name", problems, value::device_name),
        addresses: table
            .list("addresses", problems, value::device_address)
            .unwrap_or_default(),
        mtu: table.number("mtu", MTU_MIN..=u16::MAX, problems),
        underlay_mtu: table.number("underlay-mtu", MTU_MIN..=u16::MAX, problems),
        clamp_mss: table.boolean("clamp-mss", problems),
        mode: table.choice("mode", &DeviceMode::NAMES, problems),
        routes: table.boolean("routes", problems),
    }
}

/// Reads whichever of the keys of the encapsulation sections are there.
fn encap(table: &Section<'_, '_>, problems: &mut Problems) -> EncapDraft {
    EncapDraft {
        present: true,
        enabled: table.boolean("enabled", problems),
        port: table.number("port", 1..=u16::MAX, problems),
        vni: table.number("vni", 0..=VNI_MAX, problems),
        strict_reserved_bits: table.boolean("strict-reserved-bits", problems),
    }
}

fn peer(table: &Section<'_, '_>, problems: &mut Problems) -> PeerDraft {
    table.refuse_unknown(
        &[
            "name",
            "address",
            "encap",
            "mode",
            "probe-address",
            "probe",
            "vtep-mac",
            "vni",
            "port",
            "prefixes",
            "mtu",
            "dscp",
            "dscp-value",
            "dscp-map",
            "ecn",
        ],
        problems,
    );
    for (key, hint) in [
        ("name", "write the peer's name"),
        ("address", "write the peer's underlay address"),
        (
            "prefixes",
            "list the overlay prefixes that the peer owns, or nothing it sends is accepted",
        ),
    ] {
        if table.get(key).is_none() {
            table.missing(key, hint, problems);
        }
    }
    let prefixes = table.list("prefixes", problems, value::prefix);
    if let Some((content, at)) = table.get("prefixes")
        && content.as_array().is_some_and(|list| list.is_empty())
    {
        problems.push(
            at,
            "this peer owns no prefix; list those it owns, or nothing it sends is accepted",
        );
    }
    PeerDraft {
        at: table.at,
        name: table.parsed("name", problems, value::node_name),
        address: table.parsed("address", problems, value::underlay_address),
        encaps: ways::choices(table, "encap", problems),
        mode: table.choice("mode", &PeerMode::NAMES, problems),
        probe_address: table.parsed("probe-address", problems, value::overlay_address),
        probe: table.boolean("probe", problems),
        encap_absent: table.get("encap").is_none(),
        vtep_mac: table.parsed("vtep-mac", problems, value::vtep_mac),
        vtep_mac_absent: table.get("vtep-mac").is_none(),
        vni: table.number("vni", 0..=VNI_MAX, problems),
        port: table.number("port", 1..=u16::MAX, problems),
        prefixes: prefixes.unwrap_or_default(),
        mtu: table.number("mtu", MTU_MIN..=u16::MAX, problems),
        dscp: dscp::dscp(table, problems),
        ecn: table.choice("ecn", &ECN_MODES, problems),
    }
}

fn route(table: &Section<'_, '_>, problems: &mut Problems) -> RouteDraft {
    table.refuse_unknown(&["prefix", "via", "action"], problems);
    if table.get("prefix").is_none() {
        table.missing("prefix", "write where the route leads", problems);
    }
    let via = table.list("via", problems, value::reference);
    match (table.get("via"), table.get("action")) {
        (None, None) => problems.push(
            table.at,
            "this route goes nowhere; add via = \"PEER\" or \
             action = \"blackhole\", \"prohibit\" or \"direct\"",
        ),
        (Some(_), Some((_, at))) => problems.push(
            at,
            "a route has either via or action; remove one of the two",
        ),
        (Some((content, at)), None) => {
            if content.as_array().is_some_and(|list| list.is_empty()) {
                problems.push(at, "via is empty; name at least one peer");
            }
        }
        (None, Some(_)) => {}
    }
    RouteDraft {
        at: table.at,
        prefix: table.parsed("prefix", problems, value::prefix),
        via: via.unwrap_or_default(),
        action: table.choice("action", &RouteAction::NAMES, problems),
    }
}

/// One table of the file and how to name it to the user.
#[derive(Debug)]
struct Section<'t, 'i> {
    /// As written: `[node]` or `[[peers]]`.
    label: String,
    at: usize,
    table: &'t DeTable<'i>,
}

impl<'t, 'i> Section<'t, 'i> {
    /// Reports every key that is not in `known`.
    fn refuse_unknown(&self, known: &[&'static str], problems: &mut Problems) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let advice = match problems.did_you_mean(name, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("remove it (the keys are {})", known.join(", ")),
            };
            problems.push(
                key.span().start,
                format!("unknown key {} in {}; {advice}", quoted(name), self.label),
            );
        }
    }

    fn missing(&self, key: &str, hint: &str, problems: &mut Problems) {
        problems.push(
            self.at,
            format!("{key} is missing in {}; {hint}", self.label),
        );
    }

    /// The value of `key` and where it starts.
    fn get(&self, key: &str) -> Option<(&'t DeValue<'i>, usize)> {
        let content = self.table.get(key)?;
        Some((content.get_ref(), content.span().start))
    }

    /// A string that `parse` makes a value of.
    fn parsed<T>(
        &self,
        key: &str,
        problems: &mut Problems,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let (content, at) = self.get(key)?;
        self.element(key, content, at, problems, &parse)
    }

    /// A list of strings, or one string in place of a list of one. `None` when the key is absent.
    fn list<T>(
        &self,
        key: &str,
        problems: &mut Problems,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<At<T>>> {
        let (content, at) = self.get(key)?;
        let Some(list) = content.as_array() else {
            if content.is_str() {
                let one = self.element(key, content, at, problems, &parse);
                return Some(one.into_iter().collect());
            }
            let wanted = match key {
                "underlay" => "an address, an interface or \"auto\" in quotes, or a list of them",
                _ => "a list of strings",
            };
            self.wrong_type(key, content, at, wanted, problems);
            return Some(Vec::new());
        };
        let parsed = list.iter().filter_map(|item| {
            self.element(key, item.get_ref(), item.span().start, problems, &parse)
        });
        Some(parsed.collect())
    }

    fn boolean(&self, key: &str, problems: &mut Problems) -> Option<At<bool>> {
        let (content, at) = self.get(key)?;
        if let Some(value) = content.as_bool() {
            return Some(At { value, at });
        }
        self.wrong_type(key, content, at, "true or false", problems);
        None
    }

    /// An integer within `range`.
    fn number<T>(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<T>,
        problems: &mut Problems,
    ) -> Option<At<T>>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let (content, at) = self.get(key)?;
        let DeValue::Integer(written) = content else {
            self.wrong_type(key, content, at, "a whole number", problems);
            return None;
        };
        let value = integer(content).and_then(|value| T::try_from(value).ok());
        if let Some(value) = value
            && range.contains(&value)
        {
            return Some(At { value, at });
        }
        problems.push(
            at,
            format!(
                "{key} in {} is {}; write a number from {} to {}",
                self.label,
                quoted(&written.to_string()).trim_matches('"'),
                range.start(),
                range.end()
            ),
        );
        None
    }

    /// One of a few words.
    fn choice<T: Copy>(
        &self,
        key: &str,
        words: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<At<T>> {
        let (content, at) = self.get(key)?;
        let word = self
            .element(key, content, at, problems, &value::reference)?
            .value;
        if let Some(&(_, value)) = words.iter().find(|(name, _)| *name == word) {
            return Some(At { value, at });
        }
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let advice = match problems.did_you_mean(&word, names.iter().copied()) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("write {}", one_of(&names)),
        };
        problems.push(at, format!("{key} cannot be {}; {advice}", quoted(&word)));
        None
    }

    fn element<T>(
        &self,
        key: &str,
        content: &DeValue<'_>,
        at: usize,
        problems: &mut Problems,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let Some(text) = content.as_str() else {
            self.wrong_type(key, content, at, "a string in quotes", problems);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(At { value, at }),
            Err(sentence) => {
                problems.push(at, sentence);
                None
            }
        }
    }

    fn wrong_type(
        &self,
        key: &str,
        content: &DeValue<'_>,
        at: usize,
        wanted: &str,
        problems: &mut Problems,
    ) {
        let is = type_name(content);
        problems.push(
            at,
            format!("{key} in {} is {is}; write {wanted}", self.label),
        );
    }
}

/// The table under `[name]`.
fn section<'t, 'i>(
    name: &str,
    content: &'t Spanned<DeValue<'i>>,
    problems: &mut Problems,
) -> Option<Section<'t, 'i>> {
    let at = content.span().start;
    if let Some(table) = content.get_ref().as_table() {
        let label = format!("[{name}]");
        return Some(Section { label, at, table });
    }
    let is = type_name(content.get_ref());
    problems.push(
        at,
        format!("{name} is {is}; write it once, as the section [{name}]"),
    );
    None
}

/// The tables under every `[[name]]`.
fn sections<'t, 'i>(
    name: &str,
    content: &'t Spanned<DeValue<'i>>,
    problems: &mut Problems,
) -> Vec<Section<'t, 'i>> {
    let label = format!("[[{name}]]");
    let Some(list) = content.get_ref().as_array() else {
        let is = type_name(content.get_ref());
        problems.push(
            content.span().start,
            format!("{name} is {is}; write each one under {label} with double brackets"),
        );
        return Vec::new();
    };
    let mut tables = Vec::new();
    for item in list.iter() {
        let at = item.span().start;
        let label = label.clone();
        if let Some(table) = item.get_ref().as_table() {
            tables.push(Section { label, at, table });
        } else {
            let is = type_name(item.get_ref());
            problems.push(
                at,
                format!("an entry of {name} is {is}; write each one under {label}"),
            );
        }
    }
    tables
}

fn integer(content: &DeValue<'_>) -> Option<i64> {
    let written = content.as_integer()?;
    i64::from_str_radix(written.as_str(), written.radix()).ok()
}

/// What a value is, in the words of TOML and with an article.
fn type_name(content: &DeValue<'_>) -> &'static str {
    match content {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `"a", "b" or "c"`.
fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

const ECN_MODES: [(&str, EcnMode); 2] = [
    ("normal", EcnMode::Normal),
    ("compatibility", EcnMode::Compatibility),
];
const SECTIONS: [&str; 20] = [
    "node",
    "device",
    "vxlan",
    "vxlan-gpe",
    "geneve",
    "fou",
    "gue",
    "ipip",
    "peers",
    "routes",
    "control",
    "metrics",
    "log",
    "worker",
    "probing",
    "etcd",
    "kubernetes",
    "files",
    "guard",
    "state",
];
/// The sections of sources that give a node its subnet.
const CLAIMING: [&str; 2] = ["etcd", "kubernetes"];
const VNI_MAX: u32 = (1 << 24) - 1;
/// The lowest number taken for an MTU at all; the real limits follow from the families in use.
const MTU_MIN: u16 = 576;
