//! Server-sent events from a stream of bytes, however it was cut into pieces.

/// Largest event, in bytes.
const EVENT_MAX: usize = 8 << 20;

/// Takes bytes, gives the data of each event. Field names other than `data` mean nothing here
/// (spec: runtime 5.3).
#[derive(Default)]
pub(super) struct Sse {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

/// An event or a line of it grew past [`EVENT_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Sse {
    /// Calls `each` with the data of every event that `bytes` completes; false ends the parsing.
    /// Returns whether to go on.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<bool, TooLarge> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let mut line = std::mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            let go_on = !line.is_empty() || self.dispatch(&mut each);
            self.field(&line);
            line.clear();
            self.line = line;
            if !go_on {
                return Ok(false);
            }
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() + self.data.len() > EVENT_MAX {
            return Err(TooLarge);
        }
        Ok(true)
    }

    fn field(&mut self, line: &[u8]) {
        let Some(value) = line.strip_prefix(b"data") else { return };
        let value = match value {
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            [] => value,
            _ => return,
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
    }

    fn dispatch(&mut self, each: &mut impl FnMut(&[u8]) -> bool) -> bool {
        let go_on = !std::mem::take(&mut self.has_data) || each(&self.data);
        self.data.clear();
        go_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut sse = Sse::default();
        let mut events = Vec::new();
        for piece in pieces {
            sse.push(piece, |data| {
                events.push(String::from_utf8(data.to_vec()).unwrap());
                true
            })
            .unwrap();
        }
        events
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text = "event: x\r\ndata: {\"a\":\r\ndata:  \"ü\"}\r\n\r\n: comment\n\ndata\n\nid: 1\ndata:z\n\n\
                    data: never finished";
        let expected = ["{\"a\":\n \"ü\"}", "", "z"];
        assert_eq!(events(&[text.as_bytes()]), expected);
        for cut in 0..text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(events(&[a, b]), expected, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(events(&bytes), expected);
    }

    #[test]
    fn parsing_ends_when_told_and_when_an_event_grows_too_large() {
        let mut seen = 0;
        let go_on = Sse::default().push(b"data: 1\n\ndata: 2\n\n", |_| {
            seen += 1;
            false
        });
        assert_eq!((go_on, seen), (Ok(false), 1));

        let mut sse = Sse::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; 1 << 20], b"\n"].concat();
        let fed = (0..9).map(|_| sse.push(&line, |_| true)).find_map(Result::err);
        assert_eq!(fed, Some(TooLarge));
    }
}
