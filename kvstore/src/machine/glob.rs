//! Patterns as `KEYS` and `SCAN MATCH` take them: `*`, `?`, `[abc]`, `[a-z]`, `[^a]`, and `\` before any byte.

/// Whether all of `text` matches `pattern`. Takes time proportional to the product of the lengths at the most.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at_pattern, mut at_text) = (0, 0);
    // Where to go on when a later part fails: behind the last star, one byte further in the text.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = &pattern[at_pattern..];
        if rest.first() == Some(&b'*') {
            at_pattern += 1;
            retry = Some((at_pattern, at_text));
            continue;
        }
        if let Some(&byte) = text.get(at_text) {
            if let Some(used) = one(rest, byte) {
                at_pattern += used;
                at_text += 1;
                continue;
            }
        } else if rest.is_empty() {
            return true;
        }
        match &mut retry {
            Some((after_star, from)) if *from < text.len() => {
                *from += 1;
                (at_pattern, at_text) = (*after_star, *from);
            }
            _ => return false,
        }
    }
}

/// If the first element of `pattern` (not a star) takes `byte`, the length of the element.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (found, used) = in_class(class, byte);
            found.then_some(1 + used)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Whether the class that starts behind the bracket holds `byte`, and how long it is. A class that is not closed ends
/// with the pattern, as in Redis.
fn in_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [from, b'-', upto, ..] => {
                found |= (*from.min(upto)..=*from.max(upto)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hbllo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[\\]]", "]", true),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
            ("user:*:name", "user:17:name", true),
            ("a", "ab", false),
            ("[ab", "b", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = "a*".repeat(50) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(5_000).as_bytes()));
    }

    proptest! {
        #[test]
        fn any_pattern_on_any_text_never_panics(pattern in r"[\[\]\\^*?a\-b]{0,12}", text in "[ab]{0,8}") {
            matches(pattern.as_bytes(), text.as_bytes());
        }
    }
}
