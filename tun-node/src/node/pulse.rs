//! Whether a worker answers: one question at a time, counted in ticks.

use crossbeam_channel::{Receiver, Sender};

/// The questions to one worker, and how long it has not answered.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The answer to the question that the worker took.
    pending: Option<Receiver<()>>,
    /// Ticks for which it has not been answered. Ticks, not time: a process that was stopped and
    /// goes on again has not waited.
    unanswered: u32,
}

impl Pulse {
    /// Of a worker that has not been asked yet.
    pub(super) const NEW: Self = Self {
        pending: None,
        unanswered: 0,
    };

    /// Looks for an answer, asks again if there is one or the worker took no question, and returns
    /// how many ticks have passed without. `ask` says whether the worker took the question: one
    /// with a full queue does not, and a question that nobody has is never answered.
    pub(super) fn beat(&mut self, ask: impl FnOnce(Sender<()>) -> bool) -> u32 {
        if let Some(pending) = &self.pending {
            if pending.try_recv().is_err() {
                self.unanswered += 1;
                return self.unanswered;
            }
            self.unanswered = 0;
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.pending = ask(sender).then_some(receiver);
        if self.pending.is_none() {
            self.unanswered += 1;
        }
        self.unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_took_no_question_is_asked_again_at_the_next_tick() {
        let mut pulse = Pulse::NEW;
        // Its queue is full for two ticks.
        assert_eq!(pulse.beat(|_| false), 1);
        assert_eq!(pulse.beat(|_| false), 2);
        // It takes the third question, and answers.
        assert_eq!(pulse.beat(|answer| answer.send(()).is_ok()), 2);
        let mut asked = None;
        let taken = pulse.beat(|answer| asked.replace(answer).is_none());
        assert_eq!(taken, 0);
    }

    #[test]
    fn ticks_are_counted_while_a_question_is_not_answered_or_none_is_taken() {
        let mut pulse = Pulse::NEW;
        let mut asked = None;
        assert_eq!(pulse.beat(|answer| asked.replace(answer).is_none()), 0);
        let again = |_| panic!("one question at a time");
        assert_eq!((pulse.beat(again), pulse.beat(again)), (1, 2));
        asked.unwrap().send(()).unwrap();
        assert_eq!(pulse.beat(|_| false), 1);
        assert_eq!(pulse.beat(|_| false), 2);
    }
}
