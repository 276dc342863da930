//! The messages of a watch out of a stream of chunks: lines of JSON, or protobuf with the length before it. A message that
//! lies within one chunk is handed out where it lies; only one that is spread over several is put together.

use hyper::body::{Buf, Bytes};

use super::format::Format;

/// Longest message that is accepted: several times the largest object that an API server stores.
const LONGEST: usize = 16 * 1024 * 1024;
/// Bytes of the number before a message of protobuf: its length, the highest byte first.
const PREFIX: usize = size_of::<u32>();

/// What has come and was not handed out yet.
pub struct Frames {
    format: Format,
    chunk: Bytes,
    /// The beginning of a message that ends in `chunk` or later.
    partial: Vec<u8>,
}

/// A message is longer than anything that an API server sends.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

// === impl Frames ===

impl Frames {
    /// Messages of this format, none of which has come yet.
    pub fn new(format: Format) -> Self {
        Self { format, chunk: Bytes::new(), partial: Vec::new() }
    }

    /// Takes the next chunk. All messages of the one before must have been taken.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), TooLong> {
        self.chunk = chunk;
        if self.partial.len() + self.chunk.len() > LONGEST { Err(TooLong) } else { Ok(()) }
    }

    /// The next complete message, without what separates it from others; empty ones are left out.
    pub fn next(&mut self) -> Option<Bytes> {
        loop {
            let Some(end) = self.end() else {
                self.partial.extend_from_slice(&std::mem::take(&mut self.chunk));
                return None;
            };
            let mut message = self.chunk.split_to(end);
            if !self.partial.is_empty() {
                self.partial.extend_from_slice(&message);
                message = std::mem::take(&mut self.partial).into();
            }
            match self.format {
                Format::Json => message.truncate(message.len() - 1),
                Format::Protobuf => message.advance(PREFIX),
            }
            if !message.trim_ascii().is_empty() {
                return Some(message);
            }
        }
    }

    /// Where in `chunk` the message ends that is next.
    fn end(&self) -> Option<usize> {
        match self.format {
            Format::Json => memchr::memchr(b'\n', &self.chunk).map(|end| end + 1),
            Format::Protobuf => {
                let mut begun = self.partial.iter().chain(&self.chunk).take(PREFIX);
                let mut length: u32 = 0;
                for _ in 0..PREFIX {
                    length = length << 8 | u32::from(*begun.next()?);
                }
                let whole = PREFIX.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                Some(whole - self.partial.len()).filter(|&end| end <= self.chunk.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(format: Format, chunks: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
        let mut frames = Frames::new(format);
        let mut found = Vec::new();
        for chunk in chunks {
            frames.feed(chunk).unwrap();
            found.extend(std::iter::from_fn(|| frames.next()));
        }
        found
    }

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        const LINES: &[u8] = b"{\"a\":1}\n\n{\"bb\":22}\r\n \n{\"c\":\"long enough to be cut often\"}\nunfinished";
        const PREFIXED: &[u8] =
            b"\0\0\0\x01a\0\0\0\0\0\0\0\x1blong enough to be cut often\0\0\0\x02b\n\0\0\0\x0bunfinished";
        let lines: [&[u8]; 3] = [b"{\"a\":1}", b"{\"bb\":22}\r", b"{\"c\":\"long enough to be cut often\"}"];
        let prefixed: [&[u8]; 3] = [b"a", b"long enough to be cut often", b"b\n"];
        for (format, text, expected) in [(Format::Json, LINES, lines), (Format::Protobuf, PREFIXED, prefixed)] {
            for size in 1..=text.len() {
                let found = all(format, text.chunks(size).map(Bytes::from_static));
                assert_eq!(found, expected, "{format:?} in chunks of {size}");
            }
        }
    }

    #[test]
    fn whole_messages_are_not_copied() {
        for (format, text, place) in [(Format::Json, "one\ntwo\n", 4), (Format::Protobuf, "\0\0\0\x01a\0\0\0\x02bc", 9)]
        {
            let chunk = Bytes::from_static(text.as_bytes());
            let found = all(format, std::iter::once(chunk.clone()));
            assert_eq!(found[1].as_ptr(), chunk[place..].as_ptr());
        }
    }

    #[test]
    fn endless_messages_are_refused() {
        for format in [Format::Json, Format::Protobuf] {
            let chunk = Bytes::from(vec![b'x'; 1 << 20]);
            let mut frames = Frames::new(format);
            let refused = (0..32).position(|_| frames.feed(chunk.clone()).is_err() || frames.next().is_some());
            assert_eq!(refused, Some(16));
        }
    }
}
