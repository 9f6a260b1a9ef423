//! Names of files, and their order as people read them.
//!
//! Flow: names of shards -> the order in which their samples are numbered.
//! Memory: holds none.

use std::path::Path;

/// The last component of a path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Orders names as people do: shard_2 before shard_10.
#[must_use]
pub fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        match (x.first(), y.first()) {
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
                let (m, n) = (digits(x), digits(y));
                let trim = |s: &[u8]| s.iter().position(|&c| c != b'0').unwrap_or(s.len());
                let (u, v) = (&x[..m][trim(&x[..m])..], &y[..n][trim(&y[..n])..]);
                let order = u.len().cmp(&v.len()).then_with(|| u.cmp(v));
                if order.is_ne() {
                    return order;
                }
                (x, y) = (&x[m..], &y[n..]);
            }
            (Some(p), Some(q)) if p == q => (x, y) = (&x[1..], &y[1..]),
            (p, q) => return p.cmp(&q).then_with(|| a.cmp(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_number() {
        let mut names = ["s_10", "s_2", "s_02", "a9z", "a10", "s_1", "s"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a9z", "a10", "s", "s_1", "s_02", "s_2", "s_10"]);
    }
}
