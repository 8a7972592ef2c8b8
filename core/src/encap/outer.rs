//! Outer IP and UDP headers.
