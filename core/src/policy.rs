//! Which packets may pass: the one place that can say so.
//!
//! A [`Permit`] is the proof that a policy was asked. Only this file makes one, and
//! [`shim::push`](crate::encap::shim::push) and the engine's delivery demand one, so that no path
//! through the house can forget the question. The policy that exists allows all.

use crate::packet::FlowKey;
use crate::verdict::{Direction, DropReason};

/// The proof that a policy let a packet pass. It is used up by the packet that it is for.
#[derive(Debug)]
#[must_use]
pub struct Permit(());

impl Permit {
    /// The permit for a part of the packet that this one is for, or for the next packet of its
    /// flow: a policy sees nothing but the flow, and the engine forgets what it said when it
    /// changes.
    pub(crate) const fn again(&self) -> Self {
        Self(())
    }
}

/// What may pass.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Policy {
    /// Everything.
    #[default]
    AllowAll,
}

impl Policy {
    /// Decides about a packet of `flow` that passes in `direction`.
    ///
    /// # Errors
    ///
    /// The reason to drop it: [`DropReason::PolicyDeny`].
    pub const fn decide(
        self,
        _direction: Direction,
        _flow: &FlowKey,
    ) -> Result<Permit, DropReason> {
        match self {
            Self::AllowAll => Ok(Permit(())),
        }
    }
}
