//! Tables in Markdown, and their place in the documentation.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// The section of `benchmarks.md` between `<!-- NAME -->` and `<!-- /NAME -->`.
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

impl Report {
    /// Replaces the section in the file.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let page = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let (begin, end) = (format!("<!-- {} -->\n", self.name), format!("<!-- /{} -->", self.name));
        let place = page.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
        let (head, tail) = place.with_context(|| format!("{}: no section {}", file.display(), self.name))?;
        std::fs::write(file, format!("{head}{begin}{}{end}{tail}", self.text))?;
        Ok(())
    }
}

/// A Markdown table whose first column is text, and the others numbers.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(
        text,
        "| {} |",
        head.iter().enumerate().map(|(n, _)| if n == 0 { "---" } else { "---:" }).collect::<Vec<_>>().join(" | ")
    );
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// The quantile `part` of the samples, which are sorted on the way.
pub(crate) fn quantile<T: Copy + Ord + Default>(samples: &mut [T], part: f64) -> T {
    samples.sort_unstable();
    let at = whole((samples.len() as f64 * part).ceil());
    samples.get(at.saturating_sub(1) as usize).copied().unwrap_or_default()
}

/// A number that is not negative, rounded down.
#[allow(clippy::cast_sign_loss)]
pub(crate) fn whole(n: f64) -> u64 {
    debug_assert!(n >= 0.0, "{n}");
    n as u64
}

/// A number with commas between the thousands.
pub(crate) fn number(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
