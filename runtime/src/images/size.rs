//! Sizes for people.

/// Three significant digits and a decimal unit, as crictl and docker print sizes.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    // In thousandths of the unit: u64 holds 18 EB of them.
    let mut unit = 0;
    let mut thousandths = bytes;
    while thousandths >= 999_500 {
        thousandths = thousandths / 1000 + u64::from(thousandths % 1000 >= 500);
        unit += 1;
    }
    let (step, digits) = match thousandths {
        0..10_000 => (10, 2),
        10_000..100_000 => (100, 1),
        _ => (1000, 0),
    };
    let rounded = (thousandths + step / 2) / step * step;
    let text = match digits {
        0 => format!("{}", rounded / 1000),
        1 => format!("{}.{}", rounded / 1000, rounded % 1000 / 100),
        _ => format!("{}.{:02}", rounded / 1000, rounded % 1000 / 10),
    };
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_have_three_digits_and_a_decimal_unit() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1004, "1kB"),
            (1005, "1.01kB"),
            (4_261_234, "4.26MB"),
            (12_340_000, "12.3MB"),
            (99_960, "100kB"),
            (123_456_789, "123MB"),
            (999_499, "999kB"),
            (999_500, "1MB"),
            (1_073_741_824, "1.07GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
