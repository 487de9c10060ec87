//! Directory positions as old clients count them: entry by entry, `.` and `..` first (spec: fs 5,
//! readdirp). Each page that was sent is remembered by the tree's own cookies, so that the next begins
//! exactly behind it, whatever has come and gone meanwhile. Our own clients have no need of it.

use std::collections::VecDeque;

/// Pages remembered for one session.
const PAGES_MAX: usize = 64;
/// Entries before the tree's own: `.` and `..`.
pub const DOTS: u64 = 2;

#[derive(Default)]
pub struct Cursors(VecDeque<Page>);

struct Page {
    dir: u64,
    /// Position of the first entry.
    start: u64,
    /// Where the tree goes on behind each entry.
    cookies: Vec<u64>,
}

impl Cursors {
    /// The tree's cookie for position `at` of a directory, if a page that ends there, or reaches over it,
    /// was sent.
    pub fn find(&self, dir: u64, at: u64) -> Option<u64> {
        if at <= DOTS {
            return Some(0);
        }
        let covers =
            |p: &&Page| p.dir == dir && at > p.start && at - p.start <= p.cookies.len() as u64;
        // A walk that stopped right there, or one that went over it.
        let ends = |p: &&Page| covers(p) && at - p.start == p.cookies.len() as u64;
        let page = self.0.iter().rev().find(ends).or_else(|| self.0.iter().rev().find(covers))?;
        page.cookies.get((at - page.start - 1) as usize).copied()
    }

    pub fn keep(&mut self, dir: u64, start: u64, cookies: Vec<u64>) {
        if cookies.is_empty() {
            return;
        }
        if self.0.len() >= PAGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Page { dir, start, cookies });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_of_a_page_that_was_sent_is_known() {
        let mut c = Cursors::default();
        assert_eq!(c.find(9, 0), Some(0));
        assert_eq!(c.find(9, 2), Some(0));
        assert_eq!(c.find(9, 3), None);
        c.keep(9, 2, vec![70, 80, 90]);
        assert_eq!([c.find(9, 3), c.find(9, 5), c.find(9, 6)], [Some(70), Some(90), None]);
        assert_eq!(c.find(8, 3), None);
        for dir in 100..200 {
            c.keep(dir, 2, vec![1]);
        }
        assert!(c.0.len() <= PAGES_MAX);
    }
}
