//! Texts of flags that become values of columns.

use crate::exit::Misuse;

/// Width of the columns for names in Umami's tables, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// Refuses a text that is empty, is longer than its column, or has control characters, which would break a line.
///
/// # Errors
/// [`Misuse`], which names the flag.
pub fn fits(flag: &str, text: Option<&str>, chars_max: usize) -> anyhow::Result<()> {
    let chars = text.map_or(0, |text| text.chars().count());
    if chars > chars_max {
        return Err(Misuse(format!("{flag} has {chars} characters, at most {chars_max} fit")).into());
    }
    if let Some(control) = text.and_then(|text| text.chars().find(|c| c.is_control())) {
        return Err(Misuse(format!("{flag} has the control character {control:?}")).into());
    }
    if text == Some("") {
        return Err(Misuse(format!("{flag} is empty")).into());
    }
    Ok(())
}
