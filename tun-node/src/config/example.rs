//! The commented file that `tun-node example-config` prints.

/// A whole configuration with a comment at every key. It validates as it stands.
#[must_use]
pub const fn example_config() -> &'static str {
    include_str!("example.toml")
}
