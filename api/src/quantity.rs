//! Reads amounts of bytes such as `10Gi` or `500M`: the subset of Kubernetes quantities that makes sense for sizes (no sign, no
//! exponent, no thousandths), exactly and without floating point. The CRDs' pattern accepts what is read here.

/// Why a text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not `digits[.digits][suffix]`.
    #[error("`{0}` is not an amount of bytes: write for example 500M, 10Gi or 1.5Ti")]
    Malformed(String),
    /// More than `i64::MAX` bytes, the most that the API can carry.
    #[error("`{0}` is more than 8Ei - 1 bytes")]
    TooLarge(String),
}

/// Longest text that is looked at, in bytes.
const MAX_LEN: usize = 32;

fn multiplier(suffix: &str) -> Option<u128> {
    let index = |units: &[&str]| units.iter().position(|u| *u == suffix).and_then(|i| u32::try_from(i).ok());
    if let Some(i) = index(&["", "k", "M", "G", "T", "P", "E"]) {
        return Some(1000_u128.pow(i));
    }
    index(&["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]).map(|i| 1024_u128.pow(i))
}

/// Bytes for people, in two or three digits: `1.2Gi`, `900Mi`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unit = (1..UNITS.len()).rev().find(|u| bytes >> (10 * u) > 0).unwrap_or(0);
    let one = 1_u128 << (10 * unit);
    let tenths = (u128::from(bytes) * 10 + one / 2) / one;
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || tenths >= 100 || tenths.is_multiple_of(10) {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

/// Parses an amount of bytes; a fraction of a byte is rounded up, as Kubernetes does.
///
/// # Errors
///
/// Text that is no quantity, is negative, or is more than `u64::MAX` bytes.
pub fn parse_quantity(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.chars().take(MAX_LEN).collect());
    if text.len() > MAX_LEN {
        return Err(malformed());
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let unit = multiplier(suffix).ok_or_else(malformed)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=9).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return Err(malformed()),
        None => (number, ""),
    };
    if whole.is_empty() || whole.len() > 18 {
        return Err(malformed());
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| malformed())?);
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| malformed())?;
    // 27 digits (< 2^90) times 2^60 can pass 2^128: checked.
    let bytes = digits.checked_mul(unit).map(|n| n.div_ceil(scale));
    bytes.and_then(|n| i64::try_from(n).ok()).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_for_people_have_few_digits_and_are_read_again() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1024, "1Ki"), (1536, "1.5Ki"), (209_715_200, "200Mi"), (1_717_986_918, "1.6Gi"), (u64::MAX, "16Ei")]
        {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn the_usual_amounts_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("500M", 500_000_000),
            ("10Gi", 10 << 30),
            ("1.5Ti", 3 << 39),
            ("1k", 1000),
            ("0.1", 1),
            ("7Ei", 7 << 60),
            ("9223372036854775.807k", u64::try_from(i64::MAX).unwrap()),
        ] {
            assert_eq!(parse_quantity(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_of_bytes_is_refused() {
        for text in ["", "Gi", "-1", "+1", "1e3", "100m", "1.Gi", ".5Gi", "1 Gi", "1gi", "1.2.3", "１", "1KiB", "1234567890123456789"] {
            assert!(matches!(parse_quantity(text), Err(QuantityError::Malformed(_))), "{text}");
        }
        for text in ["8Ei", "999999999999999999.999999999Ei", "10E"] {
            assert!(matches!(parse_quantity(text), Err(QuantityError::TooLarge(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_quantity(&text);
        }
        #[test]
        fn whole_binary_amounts_are_exact(n in 0_u64..1 << 20, i in 0_u32..5) {
            let suffix = ["", "Ki", "Mi", "Gi", "Ti"][i as usize];
            prop_assert_eq!(parse_quantity(&format!("{n}{suffix}")), Ok(n << (10 * i)));
        }
    }
}
