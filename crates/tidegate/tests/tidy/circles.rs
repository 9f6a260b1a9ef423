//! What follows from the arrows between files: circles of files, arrows between rooms, circles of
//! rooms.
//!
//! A room is a module at the top of a crate, with all below it.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{Arrows, arrows, room_of};
use crate::text::Source;

/// Groups of names of which each reaches each other: circles, of two or more.
pub(crate) fn circles(edges: &BTreeSet<(String, String)>) -> Vec<BTreeSet<String>> {
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    for &from in next.keys() {
        let mut seen = BTreeSet::new();
        let mut left = vec![from];
        while let Some(at) = left.pop() {
            for &to in next.get(at).into_iter().flatten() {
                if seen.insert(to) {
                    left.push(to);
                }
            }
        }
        reached.insert(from, seen);
    }
    let mut found = BTreeSet::new();
    for (from, seen) in &reached {
        let both = |to: &&&str| reached.get(**to).is_some_and(|back| back.contains(from));
        let group: BTreeSet<String> = seen.iter().filter(both).map(|&to| to.to_owned()).collect();
        if group.len() > 1 {
            found.insert(group);
        }
    }
    found.into_iter().collect()
}

/// Circles of more files than `most` within a crate; each with one use for every arrow.
pub(crate) fn file_circles(arrows: &Arrows, most: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    for circle in circles(&arrows.keys().cloned().collect()) {
        if circle.len() > most {
            let inside = arrows.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
            let said: Vec<_> = inside.map(|((_, to), said)| format!("    {said} of {to}")).collect();
            breaches.push(format!(
                "{} files import each other in a circle:\n{}",
                circle.len(),
                said.join("\n")
            ));
        }
    }
    breaches
}

/// The arrows between the rooms of each crate: (crate, room, used room) with one use.
pub(crate) fn room_arrows(sources: &[Source]) -> BTreeMap<(String, String, String), String> {
    let mut found = BTreeMap::new();
    for (name, arrows) in arrows(sources) {
        for ((from, to), said) in arrows {
            if let (Some((_, from)), Some((_, to))) = (room_of(&from), room_of(&to))
                && from != to
            {
                found.entry((name.clone(), from, to)).or_insert(said);
            }
        }
    }
    found
}

/// Rooms of a crate that use each other in a circle, of any length.
pub(crate) fn room_circles(sources: &[Source]) -> Vec<String> {
    let mut by_crate: BTreeMap<String, BTreeMap<(String, String), String>> = BTreeMap::new();
    for ((name, from, to), said) in room_arrows(sources) {
        by_crate.entry(name).or_default().insert((from, to), said);
    }
    let mut breaches = Vec::new();
    for (name, edges) in by_crate {
        for circle in circles(&edges.keys().cloned().collect()) {
            let inside = edges.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
            let said: Vec<_> = inside.map(|((f, t), said)| format!("    {f} → {t}: {said}")).collect();
            breaches.push(format!("rooms of {name} use each other in a circle:\n{}", said.join("\n")));
        }
    }
    breaches
}

/// The room arrows of the sources, as lines of [`crate::rules::ROOMS`] to copy; for a message.
pub(crate) fn as_table(sources: &[Source]) -> String {
    let mut rooms: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for path in sources.iter().filter(|s| s.is_rust()).map(|s| &s.path) {
        if let Some((name, room)) =
            room_of(path).filter(|(name, room)| !name.ends_with("/main") && room != "lib")
        {
            rooms.entry((name, room)).or_default();
        }
    }
    for (name, from, to) in room_arrows(sources).into_keys() {
        rooms.entry((name, from)).or_default().push(to);
    }
    let mut lines = Vec::new();
    let mut last = String::new();
    for ((name, room), to) in rooms {
        if name != last {
            lines.extend((!last.is_empty()).then(|| "        ],\n    ),".to_owned()));
            lines.push(format!("    (\n        \"{name}\",\n        &["));
            last = name;
        }
        lines.push(format!("            (\"{room}\", {:?}),", to.join(" ")));
    }
    lines.push("        ],\n    ),".to_owned());
    lines.join("\n")
}

/// Rooms that use rooms which their table does not allow, rooms that no table names, and arrows
/// that nothing uses.
pub(crate) fn rooms_outside(sources: &[Source], table: &[(&str, &[(&str, &str)])]) -> Vec<String> {
    let mut allowed: BTreeSet<(String, String, String)> = BTreeSet::new();
    let mut named: BTreeSet<(String, String)> = BTreeSet::new();
    for (name, rooms) in table {
        for (room, uses) in *rooms {
            named.insert(((*name).to_owned(), (*room).to_owned()));
            for to in uses.split_whitespace() {
                allowed.insert(((*name).to_owned(), (*room).to_owned(), to.to_owned()));
            }
        }
    }
    let found = room_arrows(sources);
    let mut breaches = Vec::new();
    for (arrow @ (name, from, to), said) in &found {
        if !allowed.contains(arrow) {
            breaches.push(format!("{name}: {from} may not use {to}, but {said}"));
        }
    }
    for arrow @ (name, from, to) in &allowed {
        if !found.contains_key(arrow) {
            breaches.push(format!("{name}: the table lets {from} use {to}, and it does not: take that out"));
        }
    }
    let there: BTreeSet<_> =
        sources.iter().filter(|s| s.is_rust()).filter_map(|s| room_of(&s.path)).collect();
    let there: BTreeSet<_> =
        there.into_iter().filter(|(name, room)| !name.ends_with("/main") && room != "lib").collect();
    breaches
        .extend(there.difference(&named).map(|(name, room)| format!("{name}: the table has no room {room}")));
    let gone = named.difference(&there).filter(|(_, room)| room != "lib");
    breaches
        .extend(gone.map(|(name, room)| format!("{name}: the table has a room {room} that is not there")));
    breaches
}

#[cfg(test)]
use crate::imports::{crate_of, python_arrows};

#[test]
fn circles_are_found() {
    let files = [
        ("lib.rs", "mod r; mod s;"),
        ("r/mod.rs", "mod a; mod b; mod c; mod d;"),
        ("r/a.rs", "use super::b::B; pub struct A;"),
        ("r/b.rs", "use super::c::C; pub struct B;"),
        ("r/c.rs", "use super::d::D; pub struct C;"),
        ("r/d.rs", "use crate::r::a::A; pub struct D;"),
        ("s.rs", ""),
    ];
    let sources = crate_of(&files);
    let found = file_circles(&arrows(&sources)["x"], 3);
    assert!(found.len() == 1 && found[0].starts_with("4 files"), "{found:?}");
    assert_eq!(room_circles(&sources), Vec::<String>::new());
    let mut open = files;
    open[5].1 = "pub struct D;";
    assert_eq!(file_circles(&arrows(&crate_of(&open))["x"], 3), Vec::<String>::new());
    open[6].1 = "use crate::r::a::A; pub struct S;";
    open[5].1 = "use crate::s::S; pub struct D;";
    assert_eq!(room_circles(&crate_of(&open)).len(), 1, "rooms may not even use each other in twos");
}

#[test]
fn an_arrow_that_no_table_allows_is_found() {
    let sources = crate_of(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "pub struct B;"),
        ("main.rs", "use x::a;"),
    ]);
    let good: &[(&str, &str)] = &[("a", "b"), ("b", "")];
    assert_eq!(rooms_outside(&sources, &[("x", good)]), Vec::<String>::new());
    let bad: [(&[(&str, &str)], &str); 4] = [
        (&[("a", ""), ("b", "")], "a may not use b"),
        (&[("a", "b"), ("b", "a")], "lets b use a"),
        (&[("a", "b")], "no room b"),
        (&[("a", "b"), ("b", ""), ("c", "")], "room c that is not"),
    ];
    for (table, said) in bad {
        let found = rooms_outside(&sources, &[("x", table)]);
        assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
    }
}

#[test]
fn python_circles_are_found() {
    let module = |name: &str, text: &str| Source::new(&format!("python/tidegate/{name}.py"), text);
    let mut sources = vec![
        module("__init__", "from tidegate.a import A\nfrom tidegate.d import D\n"),
        module("a", "from tidegate.b import (\n    B,\n)\n"),
        module("b", "from tidegate import c\n"),
        module("c", "import tidegate.d\nfrom tidegate import _tidegate\n"),
        module("d", "def f():\n    from tidegate.a import A\n"),
    ];
    assert_eq!(file_circles(&python_arrows(&sources), 3), Vec::<String>::new());
    sources[4] = module("d", "from tidegate.a import A\n");
    let found = file_circles(&python_arrows(&sources), 3);
    assert!(found.len() == 1 && found[0].starts_with("4 files"), "{found:?}");
}
