//! Text for people: tables, durations, and values that may hold anything.

use std::time::Duration;

/// A value longer than this is cut.
const PREVIEW_CHARS: usize = 60;

/// The two largest units that are not zero; below ten seconds tenths, below one second milliseconds.
pub(super) fn duration(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match s {
        0 => format!("{ms}ms"),
        1..10 => format!("{}.{}s", s, duration.subsec_millis() / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Columns two spaces apart, without trailing spaces.
pub(super) fn align(rows: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let last = row.len().saturating_sub(1);
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column < last {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count() + 2));
            }
        }
        text.push('\n');
    }
    text
}

/// One row of a table with two columns.
pub(super) fn field(name: &str, value: &impl ToString) -> Vec<String> {
    vec![format!("{name}:"), value.to_string()]
}

/// An event as one line, whatever key and value hold.
pub(super) fn event(what: &str, key: &str, value: Option<&[u8]>) -> String {
    let words = [what.to_owned(), printable(key), value.map(preview).unwrap_or_default()];
    words.join(" ").trim_end().to_owned()
}

/// Escapes control characters, which would disturb a terminal or a table.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// The beginning of a value.
pub(super) fn preview(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.chars().count() <= PREVIEW_CHARS => printable(text),
        Ok(text) => printable(&text.chars().take(PREVIEW_CHARS - 3).collect::<String>()) + "...",
        Err(_) => "(binary)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (ms, text) in
            [(0, "0ms"), (999, "999ms"), (3250, "3.2s"), (59_999, "59s"), (90_000, "1m30s"), (90_000_000, "1d1h")]
        {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn tables_are_aligned_by_characters() {
        let rows = [["NAME", "KEYS"], ["größe", "1"], ["x", "22"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(align(&rows), "NAME   KEYS\ngröße  1\nx      22\n");
    }

    #[test]
    fn previews_are_short_and_printable() {
        assert_eq!(preview(b"plain"), "plain");
        assert_eq!(preview(b"two\nlines \x1b[2J"), "two\\nlines \\u{1b}[2J");
        assert_eq!(preview(&[0xff, 0]), "(binary)");
        let long = preview(&[b'a'; 100]);
        assert_eq!(long, "a".repeat(57) + "...");
    }

    #[test]
    fn events_are_one_line() {
        assert_eq!(event("put", "k", Some(b"two\nlines")), "put k two\\nlines");
        assert_eq!(event("put", "a\nb", Some(&[0xff])), "put a\\nb (binary)");
        assert_eq!(event("deleted", "k", None), "deleted k");
        assert_eq!(event("live", "", None), "live");
    }
}
