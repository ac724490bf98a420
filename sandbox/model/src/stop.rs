//! Stop strings and whole characters: the bytes of tokens in, text that may be shown out.
//!
//! A token may hold half a character or part of a stop string. Bytes are held until it is known that they are neither.
//!
//! ```text
//!  released ─────────────┐┌─ held: the beginning of a stop string, or of a character
//!  The answer is 42.\nUs  er:        stop = "\nUser:"
//! ```
//!
//! Invariants, held by the property tests for any cut of the bytes: the texts released together are the lossy UTF-8 of the
//! bytes up to the stop string that is complete first (of two complete at one byte, the longer), and without one, of all
//! bytes but a character that the end cut in two. Bytes that can never become a character come out as U+FFFD.

/// Finds stop strings in the bytes of tokens.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    is_stopped: bool,
}

/// What may be shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) text: String,
    /// Bytes of tokens that the text is made of.
    pub(crate) bytes: usize,
}

impl StopFilter {
    /// A filter for stop strings, of which empty ones are ignored.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.clone().into_bytes()).collect();
        Self { stops, held: Vec::new(), is_stopped: false }
    }

    /// Whether a stop string is complete; nothing is released after that.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes the bytes of a token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Released {
        for &byte in bytes {
            if self.is_stopped {
                return Released::default();
            }
            self.held.push(byte);
            if let Some(stop) = self.complete() {
                self.is_stopped = true;
                self.held.truncate(self.held.len() - stop);
                return self.release(self.held.len());
            }
        }
        let free = self.held.len() - self.beginning();
        self.release(whole_characters(&self.held[..free]))
    }

    /// Ends the text: nothing more can complete what is held. Half a character is dropped, since it says nothing.
    pub(crate) fn finish(&mut self) -> Released {
        let released = self.release(whole_characters(&self.held));
        self.held.clear();
        released
    }

    /// Length of the longest stop string that the held bytes end with.
    fn complete(&self) -> Option<usize> {
        self.stops.iter().filter(|stop| self.held.ends_with(stop)).map(Vec::len).max()
    }

    /// Length of the longest beginning of a stop string that the held bytes end with.
    fn beginning(&self) -> usize {
        let longest = |stop: &Vec<u8>| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&length| self.held.ends_with(&stop[..length])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    fn release(&mut self, bytes: usize) -> Released {
        let text = String::from_utf8_lossy(&self.held[..bytes]).into_owned();
        self.held.drain(..bytes);
        Released { text, bytes }
    }
}

/// Length of the bytes without an unfinished character at their end.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Err(error) = std::str::from_utf8(&bytes[whole..]) {
        whole += error.valid_up_to();
        match error.error_len() {
            Some(broken) => whole += broken,
            None => return whole,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[String], cuts: &[&[u8]]) -> (String, bool) {
        let mut filter = StopFilter::new(stops);
        let mut text: String = cuts.iter().map(|bytes| filter.push(bytes).text).collect();
        text.push_str(&filter.finish().text);
        (text, filter.is_stopped())
    }

    /// The plainest way to say it: the first end of a stop string, and of those with that end the longest.
    fn oracle(stops: &[String], bytes: &[u8]) -> (String, bool) {
        let stops: Vec<&[u8]> = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.as_bytes()).collect();
        for end in 0..=bytes.len() {
            if let Some(stop) = stops.iter().filter(|stop| bytes[..end].ends_with(stop)).max_by_key(|stop| stop.len()) {
                return (String::from_utf8_lossy(&bytes[..end - stop.len()]).into_owned(), true);
            }
        }
        let whole =
            bytes.len() - (1..=3.min(bytes.len())).find(|&tail| is_begun(&bytes[bytes.len() - tail..])).unwrap_or(0);
        (String::from_utf8_lossy(&bytes[..whole]).into_owned(), false)
    }

    /// Whether some bytes after these make them one character.
    fn is_begun(bytes: &[u8]) -> bool {
        bytes.len() < 4
            && [0x80, 0x90, 0xa0].iter().any(|&next| {
                let longer = [bytes, &[next]].concat();
                std::str::from_utf8(&longer).is_ok_and(|text| text.chars().count() == 1) || is_begun(&longer)
            })
    }

    fn cut(bytes: &[u8], size: usize) -> Vec<&[u8]> {
        bytes.chunks(size).collect()
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_text(
            stops in prop::collection::vec("[abé🦀]{0,4}", 0..4), text in "[abé🦀]{0,40}", size in 1usize..9,
        ) {
            prop_assert_eq!(run(&stops, &cut(text.as_bytes(), size)), oracle(&stops, text.as_bytes()));
        }

        #[test]
        fn broken_bytes_come_out_as_lossy_text(
            stops in prop::collection::vec("[a\u{80}é]{1,3}", 0..3),
            bytes in prop::collection::vec(prop_oneof![Just(b'a'), Just(0xc3), Just(0xa9), Just(0xf0), Just(0x80), any::<u8>()], 0..40),
            size in 1usize..9,
        ) {
            prop_assert_eq!(run(&stops, &cut(&bytes, size)), oracle(&stops, &bytes));
        }

        #[test]
        fn nothing_is_held_without_a_reason(text in "[abé🦀]{0,40}", size in 1usize..9) {
            let stops = ["ab!".to_owned()];
            let mut filter = StopFilter::new(&stops);
            for bytes in cut(text.as_bytes(), size) {
                filter.push(bytes);
                prop_assert!(filter.held.len() <= 3, "held {:?}", filter.held);
            }
        }
    }

    #[test]
    fn half_a_character_at_the_end_is_dropped() {
        assert_eq!(run(&[], &[b"a\xf0\x9f", b"\x9a"]), ("a".to_owned(), false));
        assert_eq!(run(&[], &[b"a\xf0\x9f", b"\x9a\x80"]), ("a🚀".to_owned(), false));
    }

    #[test]
    fn a_stop_across_tokens_never_shows() {
        let mut filter = StopFilter::new(&["\nUser:".to_owned()]);
        let shown: Vec<String> = [" 42.", "\nU", "ser", ": hi"].map(|token| filter.push(token.as_bytes()).text).into();
        assert_eq!(shown, [" 42.", "", "", ""]);
        assert!(filter.is_stopped());
        assert_eq!(filter.finish(), Released::default());
    }
}
