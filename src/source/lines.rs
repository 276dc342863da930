//! Lines out of a stream of chunks. A line that lies within one chunk is handed out where it lies; only one that is
//! spread over several is put together.

use hyper::body::Bytes;

/// Longest line that is accepted: several times the largest object that an API server stores.
const LONGEST: usize = 16 * 1024 * 1024;

/// What has come and was not handed out yet.
#[derive(Default)]
pub struct Lines {
    chunk: Bytes,
    /// The beginning of a line that ends in `chunk` or later.
    partial: Vec<u8>,
}

/// A line is longer than anything that an API server sends.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

// === impl Lines ===

impl Lines {
    /// Takes the next chunk. All lines of the one before must have been taken.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), TooLong> {
        self.chunk = chunk;
        if self.partial.len() + self.chunk.len() > LONGEST { Err(TooLong) } else { Ok(()) }
    }

    /// The next complete line, without its end; empty ones are left out.
    pub fn next(&mut self) -> Option<Bytes> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.chunk) else {
                self.partial.extend_from_slice(&std::mem::take(&mut self.chunk));
                return None;
            };
            let mut line = self.chunk.split_to(end + 1);
            line.truncate(end);
            if !self.partial.is_empty() {
                self.partial.extend_from_slice(&line);
                line = std::mem::take(&mut self.partial).into();
            }
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(chunks: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for chunk in chunks {
            lines.feed(chunk).unwrap();
            found.extend(std::iter::from_fn(|| lines.next()));
        }
        found
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        const TEXT: &[u8] = b"{\"a\":1}\n\n{\"bb\":22}\r\n \n{\"c\":\"long enough to be cut often\"}\nunfinished";
        for size in 1..=TEXT.len() {
            let found = all(TEXT.chunks(size).map(Bytes::from_static));
            let expected: [&[u8]; 3] = [b"{\"a\":1}", b"{\"bb\":22}\r", b"{\"c\":\"long enough to be cut often\"}"];
            assert_eq!(found, expected, "chunks of {size}");
        }
    }

    #[test]
    fn whole_lines_are_not_copied() {
        let chunk = Bytes::from_static(b"one\ntwo\n");
        let found = all(std::iter::once(chunk.clone()));
        assert_eq!(found[1].as_ptr(), chunk[4..].as_ptr());
    }

    #[test]
    fn endless_lines_are_refused() {
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let mut lines = Lines::default();
        let refused = (0..32).position(|_| lines.feed(chunk.clone()).is_err() || lines.next().is_some());
        assert_eq!(refused, Some(16));
    }
}
