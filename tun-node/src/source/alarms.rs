//! What an agent has to say to people: each thing once until there is another, and not often.
//!
//! What comes too soon after something else waits, the newest of it, and is said when its time has
//! come: most of what an agent complains of it sees once, not as long as it is so.

use std::time::Duration;

use warren_core::units::Time;

/// What was said last, and what waits.
#[derive(Debug)]
pub(super) struct Alarms {
    said: String,
    waiting: Option<String>,
    /// Nothing is said before this.
    not_before: Time,
}

impl Alarms {
    pub(super) const fn new() -> Self {
        Self {
            said: String::new(),
            waiting: None,
            not_before: Time::ZERO,
        }
    }

    /// Takes a sentence and returns it when it is to be said at once; otherwise it waits, unless
    /// it is what was said last.
    #[must_use]
    pub(super) fn say(&mut self, text: String, now: Time) -> Option<String> {
        if text == self.said {
            return None;
        }
        self.waiting = Some(text);
        self.poll(now)
    }

    /// The sentence that waited until now.
    pub(super) fn poll(&mut self, now: Time) -> Option<String> {
        if now < self.not_before {
            return None;
        }
        let text = self.waiting.take()?;
        self.said.clone_from(&text);
        self.not_before = now.after(EVERY);
        Some(text)
    }

    /// When [`Self::poll`] has something.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.waiting.is_some().then_some(self.not_before)
    }

    /// What waits is not so any more.
    pub(super) fn retract(&mut self) {
        self.waiting = None;
    }

    /// This sentence is not so any more: where it waits it is not said, and where it was said last
    /// it is news when it is so again.
    pub(super) fn retract_this(&mut self, text: &str) {
        if self.waiting.as_deref() == Some(text) {
            self.waiting = None;
        }
        if self.said == text {
            self.said.clear();
        }
    }
}

/// The least time between two sentences.
const EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Time {
        Time::ZERO.after(Duration::from_secs(s))
    }

    #[test]
    fn the_newest_of_what_comes_too_soon_is_said_later_and_nothing_twice() {
        let mut alarms = Alarms::new();
        let say = |alarms: &mut Alarms, text: &str, s| alarms.say(text.to_owned(), at(s));
        assert_eq!(say(&mut alarms, "one", 1).as_deref(), Some("one"));
        assert_eq!(alarms.poll_timeout(), None);
        assert_eq!(say(&mut alarms, "two", 2), None);
        assert_eq!(say(&mut alarms, "three", 3), None);
        assert_eq!(say(&mut alarms, "one", 4), None);
        assert_eq!(alarms.poll_timeout(), Some(at(11)));
        assert_eq!(alarms.poll(at(10)), None);
        assert_eq!(alarms.poll(at(11)).as_deref(), Some("three"));
        assert_eq!(alarms.poll(at(30)), None);
        assert_eq!(say(&mut alarms, "three", 31), None);
        assert_eq!(say(&mut alarms, "one", 32).as_deref(), Some("one"));
        assert_eq!(say(&mut alarms, "four", 33), None);
        alarms.retract();
        assert_eq!(alarms.poll(at(60)), None);
    }

    #[test]
    fn what_is_over_is_not_said_and_is_news_when_it_comes_back() {
        let mut alarms = Alarms::new();
        let say = |alarms: &mut Alarms, text: &str, s| alarms.say(text.to_owned(), at(s));
        assert_eq!(say(&mut alarms, "one", 1).as_deref(), Some("one"));
        assert_eq!(say(&mut alarms, "two", 2), None);
        alarms.retract_this("one");
        assert_eq!(alarms.poll_timeout(), Some(at(11)), "the other one waits");
        alarms.retract_this("two");
        assert_eq!(alarms.poll_timeout(), None);
        assert_eq!(say(&mut alarms, "one", 3), None);
        assert_eq!(alarms.poll(at(11)).as_deref(), Some("one"));
    }
}
