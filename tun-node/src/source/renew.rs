//! What is made of files and made again when they say something else: clients with their
//! certificates, which are renewed by others while the node runs.
//!
//! The files are read before each request. That is cheap, because a source asks every few seconds,
//! and it needs no watching: a certificate that is refused is followed by another request anyway.

use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{info, warn};

/// A value, and the description that it was made of.
#[derive(Debug)]
pub(super) struct Renewed<D, T> {
    held: Mutex<Held<D, T>>,
}

#[derive(Debug)]
struct Held<D, T> {
    made_of: D,
    value: Arc<T>,
    /// Why the last other description was not taken, so that it is said once.
    refused: Option<String>,
}

impl<D: PartialEq, T> Renewed<D, T> {
    /// Holds `value`, made of `made_of`.
    pub(super) fn new(made_of: D, value: T) -> Self {
        let held = Held {
            made_of,
            value: Arc::new(value),
            refused: None,
        };
        Self {
            held: Mutex::new(held),
        }
    }

    /// The value of what `read` gives. Where that is what it was, or nothing that can be used (a
    /// file that is just being written), it is the value that is held.
    pub(super) fn current<E: Display>(
        &self,
        what: &str,
        read: impl FnOnce(&D) -> Result<D, E>,
        make: impl FnOnce(&D) -> Result<T, E>,
    ) -> Arc<T> {
        let mut held = self.held.lock();
        let made = match read(&held.made_of) {
            Ok(same) if same == held.made_of => {
                held.refused = None;
                return Arc::clone(&held.value);
            }
            Ok(other) => make(&other).map(|value| (other, value)),
            Err(error) => Err(error),
        };
        match made {
            Ok((made_of, value)) => {
                info!("{what}: certificates and keys are read again");
                *held = Held {
                    made_of,
                    value: Arc::new(value),
                    refused: None,
                };
            }
            Err(error) => {
                let why = error.to_string();
                if held.refused.as_ref() != Some(&why) {
                    warn!("{why}; what was read before is used on");
                    held.refused = Some(why);
                }
            }
        }
        Arc::clone(&held.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_description_makes_another_value_and_a_bad_one_none() {
        let renewed = Renewed::new(1, "one".to_owned());
        let current = |read: Result<u8, String>| {
            let make = |made_of: &u8| match made_of {
                9 => Err("nine is none".to_owned()),
                other => Ok(format!("of {other}")),
            };
            renewed.current("it", |_| read, make).as_ref().clone()
        };
        assert_eq!(current(Ok(1)), "one");
        assert_eq!(current(Err("half written".to_owned())), "one");
        assert_eq!(current(Ok(2)), "of 2");
        assert_eq!(current(Ok(9)), "of 2");
        assert_eq!(current(Ok(2)), "of 2");
        assert_eq!(current(Ok(1)), "of 1");
    }
}
