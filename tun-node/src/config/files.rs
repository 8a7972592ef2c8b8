//! A configuration together with its directory of route files.
//!
//! All files are judged as one text: the configuration, then each route file, in order of their
//! names. So everything that is checked within one file is checked between files, a route may name
//! a peer of another file, and one mistake anywhere refuses the whole. Every problem is reported
//! under the file, line and column where it was written.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::{ConfigError, Problems, quoted};
use super::{Config, format, read_text};

/// A configuration and the route files that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Peers and routes of the configuration come first, then those of each file.
    pub config: Config,
    /// The route files, in the order of their names.
    pub files: Vec<RouteFile>,
}

/// Which peers and routes a route file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFile {
    /// Its name in the directory.
    pub name: String,
    /// Indices into [`Config::peers`].
    pub peers: Range<usize>,
    /// Indices into [`Config::routes`].
    pub routes: Range<usize>,
}

/// What is wrong, by file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, error) in self.0.iter().enumerate() {
            if count > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

/// A text that is judged together with others.
#[derive(Debug)]
struct Part {
    file: String,
    name: String,
    text: String,
    /// Where it begins in the whole.
    start: usize,
}

impl Loaded {
    /// Reads and validates the configuration at `path` and the files of its directory.
    ///
    /// # Errors
    ///
    /// [`ConfigErrors`]: whatever [`Config::load`] finds, in any of the files.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let text = read_text(path)?;
        let alone = Config::parse_on(&text, &file, &super::auto::source_address)?;
        let Some(files) = &alone.sources.files else {
            return Ok(Self {
                config: alone,
                files: Vec::new(),
            });
        };
        let mut parts = vec![Part {
            file,
            name: String::new(),
            text,
            start: 0,
        }];
        let mut errors = Vec::new();
        for path in route_files(&files.directory)? {
            match read_text(&path) {
                Ok(text) => parts.push(Part {
                    file: path.display().to_string(),
                    name: path
                        .file_name()
                        .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
                    text,
                    start: 0,
                }),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(
            parts
                .iter()
                .skip(1)
                .filter_map(|part| alone_wrong(part).err()),
        );
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        together(parts)
    }
}

/// The route files of a directory, in the order of their names.
///
/// # Errors
///
/// [`ConfigError`] when the directory cannot be read.
pub fn route_files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |error: std::io::Error| {
        let file = directory.display().to_string();
        let sentence = format!("cannot be read: {error}; check `files.directory`");
        ConfigError::whole_file(&file, sentence)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|ending| ending == "toml") && !is_hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Judges the form of a route file by itself, so that its text can be put behind another.
fn alone_wrong(part: &Part) -> Result<(), ConfigError> {
    let mut problems = Problems::default();
    match DeTable::parse(&part.text) {
        Err(first) => format::syntax_errors(&[first], &part.text, &mut problems),
        Ok(tree) => {
            for (key, content) in tree.get_ref() {
                let name = key.get_ref().as_ref();
                let is_list = content.get_ref().is_array();
                if !matches!(name, "peers" | "routes") || !is_list {
                    let sentence = format!(
                        "a route file has [[peers]] and [[routes]] only, not {}; move it to the \
                         configuration",
                        quoted(name)
                    );
                    problems.push(key.span().start, sentence);
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.into_error(&part.file, &part.text))
    }
}

fn together(mut parts: Vec<Part>) -> Result<Loaded, ConfigErrors> {
    let mut whole = String::new();
    for part in &mut parts {
        if !whole.is_empty() {
            whole.push('\n');
        }
        part.start = whole.len();
        whole.push_str(&part.text);
    }
    let mut problems = Problems::default();
    let judged = super::judge(&whole, &super::auto::source_address, &mut problems);
    let (config, starts) = match judged {
        Some(judged) if problems.is_empty() => judged,
        Some(_) | None => {
            let mut errors = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let end = parts.get(index + 1).map_or(usize::MAX, |next| next.start);
                let own = problems.split_off(part.start..end);
                if !own.is_empty() {
                    errors.push(own.into_error(&part.file, &part.text));
                }
            }
            return Err(ConfigErrors(errors));
        }
    };
    let within = |starts: &[usize], from: usize, to: usize| {
        let at = |place: usize| starts.partition_point(|start| *start < place);
        at(from)..at(to)
    };
    let files = parts.iter().enumerate().skip(1).map(|(index, part)| {
        let end = parts.get(index + 1).map_or(usize::MAX, |next| next.start);
        RouteFile {
            name: part.name.clone(),
            peers: within(&starts.peers, part.start, end),
            routes: within(&starts.routes, part.start, end),
        }
    });
    let files = files.collect();
    Ok(Loaded { config, files })
}
