//! How to reach the hub.

use std::time::Duration;

/// How to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// Address of the hub; the public one if not given.
    pub endpoint: Option<String>,
    /// Says who asks, for repositories that are not open to all.
    pub token: Option<String>,
    /// Whether to ask nobody and use what is stored.
    pub offline: bool,
    /// How long the hub may send nothing.
    pub stall_timeout: Duration,
    /// Failures in a row, with nothing received between them, before a pull gives up.
    pub failures_max: u32,
    /// Pause after a failure; it doubles with each one in a row.
    pub retry_pause: Duration,
}

impl HubConfig {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` from `lookup`; empty values count as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name| {
            let value = lookup(name)?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let offline = value("HF_HUB_OFFLINE").map(|text| text.to_ascii_lowercase());
        Self {
            endpoint: value("HF_ENDPOINT").map(|text| text.trim_end_matches('/').to_owned()),
            token: value("HF_TOKEN"),
            offline: matches!(offline.as_deref(), Some("1" | "true" | "yes" | "on")),
            ..Self::default()
        }
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            token: None,
            offline: false,
            stall_timeout: Duration::from_secs(30),
            failures_max: 5,
            retry_pause: Duration::from_millis(500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_from_the_lookup_alone() {
        let config = HubConfig::from_lookup(|name| {
            let value = match name {
                "HF_ENDPOINT" => "https://hub.example/",
                "HF_TOKEN" => " secret\n",
                "HF_HUB_OFFLINE" => "True",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(config.endpoint.as_deref(), Some("https://hub.example"));
        assert_eq!(config.token.as_deref(), Some("secret"));
        assert!(config.offline);

        let unset =
            HubConfig::from_lookup(|name| (name == "HF_HUB_OFFLINE").then(|| "0".to_owned()));
        assert!(unset.endpoint.is_none() && unset.token.is_none() && !unset.offline);
        let empty = HubConfig::from_lookup(|_| Some(String::new()));
        assert!(empty.endpoint.is_none() && empty.token.is_none() && !empty.offline);
    }
}
