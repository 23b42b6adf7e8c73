//! Cuts a serial port's bytes into lines of bounded length, whatever comes.

/// Gathers bytes until a line ends.
#[derive(Debug)]
pub(super) struct Lines {
    rest: Vec<u8>,
    longest: usize,
    is_overlong: bool,
    rejected: u64,
}

impl Lines {
    /// Lines of at most `longest` bytes; longer ones are thrown away whole.
    pub(super) fn new(longest: usize) -> Self {
        Self { rest: Vec::new(), longest, is_overlong: false, rejected: 0 }
    }

    /// Takes bytes in pieces of any size: `line` sees every line without its end, which is `\n`, `\r` or both. Empty
    /// lines and what is no UTF-8 are left out.
    pub(super) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, has_end) = match piece {
                [text @ .., b'\n' | b'\r'] => (text, true),
                text => (text, false),
            };
            if self.rest.len() + text.len() > self.longest {
                self.is_overlong = true;
                self.rest.clear();
            }
            if !self.is_overlong {
                self.rest.extend_from_slice(text);
            }
            if has_end {
                if std::mem::take(&mut self.is_overlong) {
                    self.rejected += 1;
                } else if !self.rest.is_empty() {
                    match std::str::from_utf8(&self.rest) {
                        Ok(text) => line(text),
                        Err(_) => self.rejected += 1,
                    }
                }
                self.rest.clear();
            }
        }
    }

    /// Forgets a half-received line.
    pub(super) fn reset(&mut self) {
        self.rest.clear();
        self.is_overlong = false;
    }

    /// Lines that were too long or no UTF-8.
    pub(super) fn rejected(&self) -> u64 {
        self.rejected
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(lines: &mut Lines, bytes: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        lines.feed(bytes, |line| seen.push(line.to_owned()));
        seen
    }

    #[test]
    fn long_lines_and_garbage_cost_themselves_alone() {
        let mut lines = Lines::new(8);
        assert_eq!(lines_of(&mut lines, b"one\r\ntwo\n"), ["one", "two"]);
        assert_eq!(lines_of(&mut lines, b"much too "), [""; 0]);
        assert_eq!(lines_of(&mut lines, b"long\nok\n\xFF\xFE\nfine\r"), ["ok", "fine"]);
        assert_eq!(lines.rejected(), 2);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_are_cut(
            text in "([a-z]{0,12}(\r|\n|\r\n)){0,20}",
            cut in 1_usize..7,
        ) {
            let whole = lines_of(&mut Lines::new(8), text.as_bytes());
            let mut lines = Lines::new(8);
            let pieces: Vec<_> = text.as_bytes().chunks(cut).flat_map(|piece| lines_of(&mut lines, piece)).collect();
            prop_assert_eq!(whole, pieces);
        }
    }
}
