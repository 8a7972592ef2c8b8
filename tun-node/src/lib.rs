//! The Warren node as a library, so that tests and fuzzing reach every module.

pub mod config;
pub mod demo;
