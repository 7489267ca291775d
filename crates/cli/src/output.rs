//! Standard output. A command prints its results there and nothing else.

/// Prints a text. A reader that has closed the pipe is no error.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Prints a list: as one JSON array, or with a line for each item.
pub fn print_list<T>(
    items: &[T],
    as_json: bool,
    json: impl Fn(&T) -> serde_json::Value,
    line: impl Fn(&T) -> String,
) {
    if as_json {
        print(&format!("{}\n", items.iter().map(json).collect::<serde_json::Value>()));
    } else {
        items.iter().for_each(|item| print(&format!("{}\n", line(item))));
    }
}

/// Prints the result of a command: as JSON, or as a text.
pub fn print_result(as_json: bool, json: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
    print(&if as_json { format!("{}\n", json()) } else { text() });
}
