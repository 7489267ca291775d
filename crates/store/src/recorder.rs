//! The recorder settings of a website, from its row: Umami's versions have them in different columns.

use dashi_domain::json::{self, Object, Value};

/// The rules of `/api/record`, by Umami's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecorderRules {
    /// Up to 3.1: recordings, switched by `replay_enabled`; no heatmaps.
    #[default]
    Recordings,
    /// The development state before 3.2, and a SQLite file: recordings, and heatmaps that are read out of them.
    WithHeatmaps,
    /// From 3.2 on: a recorder, switched by `recorder_enabled`, that sends recordings, heatmaps or both, as its
    /// configuration says; no body above 1,000,000 bytes.
    Configured,
}

/// Where a website's heatmaps come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heatmaps {
    /// There are none.
    Off,
    /// They are read out of recordings; posts are taken where recordings are.
    #[default]
    FromRecordings,
    /// The recorder posts them. Clicks of recordings count as well, as far as they were not posted.
    Posted,
}

/// The recorder settings of a website.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorder {
    /// The rules that hold.
    pub rules: RecorderRules,
    /// Whether it takes anything at all.
    pub enabled: bool,
    /// Whether it takes recordings. Counts only where it is enabled.
    pub recordings: bool,
    /// Where its heatmaps come from. Counts only where it is enabled.
    pub heatmaps: Heatmaps,
    /// `replay_config` as JSON text.
    pub config: Option<String>,
}

/// The columns of these settings; `None` where there is no such column, or null in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecorderColumns {
    pub replay_enabled: Option<bool>,
    pub recorder_enabled: Option<bool>,
    pub config: Option<String>,
    /// Whether the store has a table of heatmaps.
    pub has_heatmaps: bool,
    /// Only in a SQLite file.
    pub heatmap_enabled: Option<bool>,
}

impl Recorder {
    pub(crate) fn of(columns: RecorderColumns) -> Self {
        let RecorderColumns { replay_enabled, recorder_enabled, config, has_heatmaps, heatmap_enabled } =
            columns;
        if let Some(enabled) = recorder_enabled {
            let is_on = |key: &str| matches!(member(config.as_deref(), key), Some(Value::Bool(true)));
            return Self {
                rules: RecorderRules::Configured,
                enabled,
                recordings: is_on("replayEnabled"),
                heatmaps: if is_on("heatmapEnabled") { Heatmaps::Posted } else { Heatmaps::Off },
                config,
            };
        }
        let recordings = replay_enabled.unwrap_or(false);
        let heatmaps = match heatmap_enabled {
            None => Heatmaps::FromRecordings,
            Some(true) => Heatmaps::Posted,
            Some(false) => Heatmaps::Off,
        };
        Self {
            rules: if has_heatmaps { RecorderRules::WithHeatmaps } else { RecorderRules::Recordings },
            enabled: recordings || heatmaps == Heatmaps::Posted,
            recordings,
            heatmaps,
            config,
        }
    }

    /// Whether chunks of recordings are taken.
    pub fn takes_recordings(&self) -> bool {
        self.enabled && self.recordings
    }

    /// Whether heatmap posts are taken.
    pub fn takes_heatmaps(&self) -> bool {
        match self.heatmaps {
            Heatmaps::Off => false,
            Heatmaps::Posted => self.enabled,
            Heatmaps::FromRecordings => self.rules != RecorderRules::Recordings && self.takes_recordings(),
        }
    }

    /// The answer to Umami's recorder (`GET /api/websites/{id}/recorder`): JSON.
    pub fn to_json(&self) -> String {
        if !self.enabled {
            return r#"{"enabled":false}"#.to_owned();
        }
        let mut out = format!(
            r#"{{"enabled":true,"replayEnabled":{},"heatmapEnabled":{}"#,
            self.recordings,
            self.heatmaps == Heatmaps::Posted
        );
        let config = self.config.as_deref().and_then(object).unwrap_or_default();
        for (key, default) in SETTINGS {
            let value = config.get(key).and_then(|value| checked(key, value));
            let Some(value) = value.or_else(|| default.map(str::to_owned)) else { continue };
            out.push_str(&format!(",\"{key}\":{value}"));
        }
        out.push('}');
        out
    }
}

/// A recorder's settings with Umami's defaults; a setting without default is left out where nobody has set it.
const SETTINGS: [(&str, Option<&str>); 9] = [
    ("sampleRate", Some("0.15")),
    ("heatmapSampleRate", Some("0.15")),
    ("maskLevel", Some("\"moderate\"")),
    ("maxDuration", Some("300000")),
    ("blockSelector", Some("\"\"")),
    ("consoleLevel", None),
    ("recordCanvas", None),
    ("canvasFps", None),
    ("canvasQuality", None),
];

/// A setting's value as JSON, if it is one; otherwise the recorder gets the default, as from Umami.
fn checked(key: &str, value: &Value<'_>) -> Option<String> {
    let number = |number: f64| number.is_finite().then(|| Value::Number(number).to_json());
    match (key, value) {
        ("sampleRate" | "heatmapSampleRate", Value::Number(rate)) => number(*rate),
        ("maxDuration", Value::Number(ms)) => number(ms.round()),
        ("canvasFps", Value::Number(per_second)) => number(per_second.round().clamp(1.0, 60.0)),
        ("canvasQuality", Value::Number(quality)) => number(quality.clamp(0.0, 1.0)),
        ("recordCanvas", Value::Bool(_)) => Some(value.to_json()),
        ("blockSelector", Value::String(_)) => Some(value.to_json()),
        // An older name of it.
        ("maskLevel", Value::String(level)) if level == "none" => Some("\"lax\"".to_owned()),
        ("maskLevel", Value::String(level)) => {
            ["lax", "moderate", "strict"].contains(&level.as_ref()).then(|| value.to_json())
        }
        ("consoleLevel", Value::String(level)) => {
            let levels = ["none", "error", "warn", "info", "debug", "all"];
            levels.contains(&level.as_ref()).then(|| value.to_json())
        }
        _ => None,
    }
}

fn object(text: &str) -> Option<Object<'_>> {
    match json::parse_str(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

fn member<'t>(text: Option<&'t str>, key: &str) -> Option<Value<'t>> {
    object(text?)?.remove(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(enabled: bool, config: &str) -> Recorder {
        Recorder::of(RecorderColumns {
            recorder_enabled: Some(enabled),
            config: Some(config.to_owned()),
            has_heatmaps: true,
            ..RecorderColumns::default()
        })
    }

    #[test]
    fn from_3_2_on_the_configuration_says_what_is_taken() {
        let takes = |enabled, config| {
            let recorder = configured(enabled, config);
            (recorder.takes_recordings(), recorder.takes_heatmaps())
        };
        assert_eq!(takes(true, r#"{"replayEnabled":true,"heatmapEnabled":true}"#), (true, true));
        assert_eq!(takes(true, r#"{"replayEnabled":true}"#), (true, false));
        assert_eq!(takes(true, r#"{"heatmapEnabled":true,"replayEnabled":"true"}"#), (false, true));
        assert_eq!(takes(false, r#"{"replayEnabled":true,"heatmapEnabled":true}"#), (false, false));
        for config in ["", "null", "[]", "{", r#"{"replayEnabled":1}"#] {
            assert_eq!(takes(true, config), (false, false), "{config}");
        }
    }

    #[test]
    fn before_heatmaps_are_read_out_of_recordings() {
        let of = |replay_enabled, has_heatmaps, heatmap_enabled| {
            let columns =
                RecorderColumns { replay_enabled, has_heatmaps, heatmap_enabled, ..Default::default() };
            let recorder = Recorder::of(columns);
            (recorder.takes_recordings(), recorder.takes_heatmaps(), recorder.heatmaps)
        };
        assert_eq!(of(None, false, None), (false, false, Heatmaps::FromRecordings));
        assert_eq!(of(Some(true), false, None), (true, false, Heatmaps::FromRecordings));
        assert_eq!(of(Some(true), true, None), (true, true, Heatmaps::FromRecordings));
        assert_eq!(of(Some(false), true, None), (false, false, Heatmaps::FromRecordings));
        assert_eq!(of(Some(true), true, Some(false)), (true, false, Heatmaps::Off));
        assert_eq!(of(Some(false), true, Some(true)), (false, true, Heatmaps::Posted));
    }

    #[test]
    fn the_recorder_is_told_the_settings_of_its_website() {
        assert_eq!(configured(false, "{}").to_json(), r#"{"enabled":false}"#);
        assert_eq!(
            configured(true, "{}").to_json(),
            r#"{"enabled":true,"replayEnabled":false,"heatmapEnabled":false,"sampleRate":0.15,"heatmapSampleRate":0.15,"maskLevel":"moderate","maxDuration":300000,"blockSelector":""}"#
        );
        let config = r##"{"replayEnabled":true,"sampleRate":1,"heatmapSampleRate":"1","maskLevel":"none","maxDuration":1000.6,
            "blockSelector":"#a \"b\"","recordCanvas":false,"canvasFps":99,"consoleLevel":"loud","secret":7}"##;
        assert_eq!(
            configured(true, config).to_json(),
            r##"{"enabled":true,"replayEnabled":true,"heatmapEnabled":false,"sampleRate":1,"heatmapSampleRate":0.15,"maskLevel":"lax","maxDuration":1001,"blockSelector":"#a \"b\"","recordCanvas":false,"canvasFps":60}"##
        );
    }
}
