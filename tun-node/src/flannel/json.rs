//! JSON as Go reads it, within bounds: member names in any case, `null` for "nothing".

use serde_json::{Map, Value};

use super::fault::{Fault, Refused};
use super::{JSON_DEPTH_MAX, VALUE_OCTETS_MAX};

/// A JSON object whose members are looked up without regard to case.
#[derive(Debug)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    /// Reads the object that `octets` are.
    pub(super) fn read(octets: &[u8]) -> Result<Self, Refused> {
        if octets.len() > VALUE_OCTETS_MAX {
            let detail = format!(
                "{} octets, at most {VALUE_OCTETS_MAX} are read",
                octets.len()
            );
            return Err(Fault::TooLarge.with(detail));
        }
        let text = std::str::from_utf8(octets)
            .map_err(|error| Fault::NotUtf8.with(format!("octet {}", error.valid_up_to())))?;
        if depth(text) > JSON_DEPTH_MAX {
            let detail = format!("nested deeper than {JSON_DEPTH_MAX}");
            return Err(Fault::TooDeep.with(detail));
        }
        let value: Value =
            serde_json::from_str(text).map_err(|error| Fault::NotJson.with(error.to_string()))?;
        Self::of(value, "the value")
    }

    /// The object that `value` is.
    pub(super) fn of(value: Value, name: &str) -> Result<Self, Refused> {
        let Value::Object(members) = value else {
            return Err(Fault::NotAnObject.with(name));
        };
        let mut names: Vec<String> = members.keys().map(|k| k.to_ascii_lowercase()).collect();
        names.sort_unstable();
        // Go takes whichever comes last in the text; an order that JSON does not have.
        if let Some(pair) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(Fault::AmbiguousMember.with(pair.concat()));
        }
        Ok(Self(members))
    }

    /// The member called `name` in any case; `None` when it is not there or `null`.
    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        let found = self.0.get(name).or_else(|| {
            let mut members = self.0.iter();
            let found = members.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Refused> {
        self.typed(name, Value::as_str, "a string")
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Refused> {
        self.typed(name, Value::as_bool, "true or false")
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refused> {
        self.typed(name, Value::as_u64, "a whole number")
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<Self>, Refused> {
        let value = self.member(name).cloned();
        value.map(|value| Self::of(value, name)).transpose()
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
        what: &str,
    ) -> Result<Option<T>, Refused> {
        let Some(value) = self.member(name) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Fault::WrongType.with(format!("{name} is not {what}"))),
        }
    }
}

/// How deep brackets outside of strings are nested.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for octet in text.bytes() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
