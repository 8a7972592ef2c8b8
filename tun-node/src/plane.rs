//! The control plane: one thread that takes what all sources say and publishes what follows.
