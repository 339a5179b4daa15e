//! Escaping and the ways numbers are written. All text from a record goes through [`escape`].

pub use crate::table::bytes;

/// Makes text safe between tags and inside double-quoted attributes. Control characters, which HTML forbids, become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// `digits` decimals; a number that is not finite is said in words.
pub fn decimal(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "not finite".to_string();
    }
    let text = format!("{value:.digits$}");
    // No negative zero, and a true minus sign.
    match text.strip_prefix('-') {
        Some(zero) if zero.chars().all(|c| c == '0' || c == '.') => zero.to_string(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// A loss, error rate or perplexity: two decimals, fewer for large ones.
pub fn score(value: f64) -> String {
    decimal(value, if value.abs() >= 1000.0 { 0 } else { 2 })
}

/// 41,309
pub fn whole(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// 6.70 M
pub fn count(value: u64) -> String {
    match value {
        0..10_000 => whole(value),
        10_000..1_000_000 => format!("{:.0} k", value as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", value as f64 / 1e6),
        _ => format!("{:.2} G", value as f64 / 1e9),
    }
}

/// 3 h 05 min, 6 min 48 s, 2.3 s
pub fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "–".to_string();
    }
    match value {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 59.5 => format!("{s:.0} s"),
        s if s < 3570.0 => {
            let whole = s.round() as u64;
            format!("{} min {:02} s", whole / 60, whole % 60)
        }
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", whole(minutes / 60), minutes % 60)
        }
    }
}

/// The width of a bar in per cent of the full one, as CSS.
pub fn width(value: f64, full: f64) -> String {
    let share = if full > 0.0 && value.is_finite() && value > 0.0 { (value / full).min(1.0) } else { 0.0 };
    format!("{:.2}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_data_becomes_text() {
        assert_eq!(escape("<b a=\"x\" c='y'>&\u{0}\n"), "&lt;b a=&quot;x&quot; c=&#39;y&#39;&gt;&amp;\u{fffd} ");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([whole(0), whole(999), whole(41_309), whole(1_000_000)], ["0", "999", "41,309", "1,000,000"]);
        assert_eq!([count(16_692), count(6_702_132), count(999)], ["17 k", "6.70 M", "999"]);
        assert_eq!(
            [seconds(2.34), seconds(59.7), seconds(408.0), seconds(11_100.0)],
            ["2.3 s", "1 min 00 s", "6 min 48 s", "3 h 05 min"]
        );
        assert_eq!([seconds(f64::NAN), seconds(-1.0)], ["–", "–"]);
        assert_eq!(
            [score(15.094), score(f64::NAN), score(-0.001), score(-2.5), score(12_345.6)],
            ["15.09", "not finite", "0.00", "−2.50", "12346"]
        );
        assert_eq!(
            [width(1.0, 4.0), width(5.0, 4.0), width(f64::NAN, 4.0), width(1.0, 0.0)],
            ["25.00%", "100.00%", "0.00%", "0.00%"]
        );
    }
}
