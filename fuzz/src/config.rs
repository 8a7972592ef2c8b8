//! The configuration file.

use tun_node::config::Config;

/// A text is refused with a place in it and a sentence for each problem, or gives a configuration
/// that keeps what the documentation of [`Config`] promises, and the same one every time.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let lines = text.split('\n').count();
    match Config::parse(text, "FILE") {
        Err(error) => {
            let told = error.to_string();
            assert!(!told.is_empty());
            for line in told.lines().filter(|line| line.starts_with("FILE:")) {
                let place = line.split(':').nth(1).and_then(|word| word.parse().ok());
                let line_number: usize = place.expect("a line number");
                assert!((1..=lines).contains(&line_number), "{line}");
            }
        }
        Ok(config) => {
            assert_eq!(Config::parse(text, "FILE").as_ref(), Ok(&config));
            assert!(!config.node.name.is_empty());
            assert!(!config.summary().is_empty());
            let name = config.device.name.as_str();
            assert!((1..=15).contains(&name.len()), "{name:?}");
        }
    }
}
