//! Text files as sources: JSON Lines, LIBSVM, CSV and TSV, and what is wrong with their lines.

use std::sync::Arc;

use tidegate_source::{Error, Result, Source, open};

/// A source over `text` in a file of this name, in memory that outlives it.
fn opened(name: &str, text: &str) -> Result<Arc<dyn Source>> {
    let dir = tempfile::tempdir().map_err(Error::io(name))?.keep();
    let path = dir.join(name);
    std::fs::write(&path, text).map_err(Error::io(name))?;
    open(&path.to_string_lossy(), false)
}

mod json {
    use tidegate_decode::Value;
    use tidegate_decode::npy::DType;
    use tidegate_decode::text::json::{numbers, parse};
    use tidegate_source::{SourceExt, testing};

    use super::opened;

    #[test]
    fn members_are_fields() {
        let text = concat!(
            "{\"id\": 1, \"text\": \"a\\u00e9\\n\", \"score\": 0.5, \"tags\": [1, 2], \"more\": {\"a\": [1]}, \"ok\": true}\n",
            "\n",
            "  {\"id\": 2, \"text\": \"plain\", \"score\": 3, \"tags\": [1.5], \"ok\": false, \"late\": null}\n",
            "{\"id\": 3}\r\n",
        );
        let source = opened("x.jsonl", text).unwrap();
        let kinds: Vec<_> =
            source.schema().iter().map(|field| (field.name.as_str(), field.kind.name())).collect();
        let expected = [
            ("id", "int"),
            ("text", "text"),
            ("score", "float"),
            ("tags", "numbers"),
            ("more", "json"),
            ("ok", "int"),
            ("late", "json"),
        ];
        assert_eq!(kinds, expected);
        testing::source(&*opened("y.ndjson", "{\"a\": 1}\n{\"a\": 2}").unwrap()).unwrap();
        let line = text.lines().next().unwrap();
        let values = parse(source.schema(), line.as_bytes()).unwrap();
        assert_eq!((values[0], values[2], values[5]), (Value::Int(1), Value::Float(0.5), Value::Int(1)));
        let Value::Quoted(quoted) = values[1] else { panic!("it has escapes") };
        assert_eq!(quoted.text().unwrap(), "aé\n".as_bytes());
        let mut room = [0; 64];
        assert_eq!(numbers(b"[1, 2 ,3]", DType::Int64, &mut room).unwrap(), 3);
        assert_eq!(room[16..24], 3i64.to_le_bytes());
        assert_eq!(numbers(b"[ ]", DType::Int64, &mut room).unwrap(), 0);
        assert_eq!(source.key(1).unwrap(), "line 3");
        // In another order, unknown ones among them, names with escapes, and the last of two.
        let line = br#"{"x": [], "ok": true, "id": 7, "te\u0078t": "b", "id": 8}"#;
        let values = parse(source.schema(), line).unwrap();
        let absent = Value::Missing;
        assert_eq!(
            values,
            [Value::Int(8), Value::Bytes(b"b"), absent, absent, absent, Value::Int(1), absent]
        );
        let twice =
            opened("x.jsonl", "{\"a\": 1, \"b\": 1, \"a\": \"x\"}\n{\"a\": \"y\"}\n{\"a\": 5, \"b\": \n")
                .unwrap();
        let kinds: Vec<_> = twice.schema().iter().map(|field| (&*field.name, field.kind.name())).collect();
        assert_eq!(kinds, [("a", "text"), ("b", "int")]);
        assert!(source.fetch(3).is_err());
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let source = opened("x.jsonl", "{\"a\": 1, \"t\": \"x\", \"l\": [1]}\n").unwrap();
        let words = |line: &str| parse(source.schema(), line.as_bytes()).unwrap_err().to_string();
        assert!(words("{\"a\": 1").contains("no object of JSON"));
        assert!(words("[1]").contains("no object of JSON"));
        assert!(words("{\"a\": \"one\"}").contains("\"one\" in field \"a\", which is int"));
        assert!(words("{\"t\": 5}").contains("which is text"));
        assert!(words("{\"l\": {}}").contains("which is numbers"));
        assert!(
            numbers(b"[1, \"x\"]", DType::Int64, &mut [0; 64])
                .unwrap_err()
                .to_string()
                .contains("in a list of int64")
        );
        assert!(
            numbers(b"[1, 2]", DType::Int64, &mut [0; 8]).unwrap_err().to_string().contains("row can hold")
        );
        assert!(words("{\"a\": x}").contains("this is no value, at character 7"));
        assert!(opened("x.jsonl", "\n \n").unwrap_err().to_string().contains("no line"));
        assert!(opened("x.jsonl", "[1]\n[2]\n").unwrap_err().to_string().contains("no line is an object"));
        // A mark of the encoding is of no line.
        let marked = opened("x.jsonl", "\u{feff}{\"a\": 1}\n{\"a\": 2}\n").unwrap();
        assert_eq!((marked.fetch(0).unwrap().1, marked.len()), (b"{\"a\": 1}".to_vec(), 2));
    }
}

mod libsvm {
    use proptest::prelude::*;
    use tidegate_decode::text::libsvm::entries;
    use tidegate_decode::{Kind, Result, SparsePart, Value};
    use tidegate_source::testing;

    use super::opened;

    fn row(text: &str, part: SparsePart, base: u64) -> Result<Vec<[u8; 4]>> {
        let mut room = vec![[0; 4]; text.len() / 4];
        let count = entries(text.as_bytes(), part, base, 10, room.as_flattened_mut())?;
        room.truncate(count);
        Ok(room)
    }

    #[test]
    fn lines_are_rows() {
        let source = opened("x.libsvm", "+1 1:0.5 7:-2e3  # why\n\n# none\n-1\n2.5\t3:1\r\n").unwrap();
        assert_eq!(source.len(), 3);
        assert!(matches!(source.schema()[1].kind, Kind::Sparse { base: 1, columns: 7, .. }));
        assert_eq!(source.key(2).unwrap(), "line 5");
        testing::source(&*opened("x.libsvm", "1 0:1\n0 5:2\n").unwrap()).unwrap();
        let ranked = opened("x.libsvm", "1 qid:7 1:1\n0 qid:8\n").unwrap();
        assert_eq!(ranked.schema()[1].name, "qid");
        assert_eq!(ranked.parse(&ranked.locate(&[1]).unwrap()[0], b"0 qid:8").unwrap()[1], Value::Int(8));
        assert!(opened("x.libsvm", "# nothing\n").unwrap_err().to_string().contains("no line"));
        let indices = row("+1 1:0.5 7:-2e3", SparsePart::Indices, 1).unwrap();
        assert_eq!(indices, [0u32.to_le_bytes(), 6u32.to_le_bytes()]);
        assert_eq!(row("1 1:0.5 7:-2e3", SparsePart::Values, 1).unwrap()[1], (-2000f32).to_le_bytes());
    }

    #[test]
    fn what_is_no_line_says_why() {
        let words = |text: &str| row(text, SparsePart::Values, 1).unwrap_err().to_string();
        assert!(words("1 2:1 2:1").contains("index 2 comes after 2"));
        assert!(words("1 3:1 2:1").contains("index 2 comes after 3"));
        assert!(words("1 2").contains("\"2\" is no index:value"));
        assert!(words("1 2:x").contains("\"x\" is no index:value"));
        let column = |text: &str| row(text, SparsePart::Indices, 1).unwrap_err().to_string();
        assert!(column("1 11:1").contains("index 11 of 10 columns"));
        assert!(column("1 0:1").contains("index 0 of 10 columns from 1"));
        assert!(words("1 99999999999999999999:1").contains("no index:value"));
        assert!(words("1 1:1e39").contains("beyond float32"));
        assert_eq!(row("1 1:inf", SparsePart::Values, 1).unwrap(), [f32::INFINITY.to_le_bytes()]);
        let mut room = [[0; 4]; 9];
        let alone = entries(b"1 3:0.5 1:2", SparsePart::Indices, 1, 0, room.as_flattened_mut());
        assert!(alone.unwrap_err().to_string().contains("index 1 comes after 3"));
        let source = opened("x.libsvm", "cat 1:1\n").unwrap();
        let at = &source.locate(&[0]).unwrap()[0];
        assert!(source.parse(at, b"cat 1:1").unwrap_err().to_string().contains("\"cat\" is no number"));
    }

    proptest! {
        #[test]
        fn no_line_panics_or_needs_more_room_than_it_has(text in "[ -~]{0,60}", pairs in prop::collection::vec((0u64..9, "-?[0-9]{1,3}"), 0..9)) {
            let _an_error_or_a_row = row(&text, SparsePart::Indices, 0).is_ok();
            let mut pairs = pairs;
            pairs.sort_unstable_by_key(|pair| pair.0);
            pairs.dedup_by_key(|pair| pair.0);
            let line = pairs.iter().fold("1".to_owned(), |line, (index, value)| format!("{line} {index}:{value}"));
            prop_assert_eq!(row(&line, SparsePart::Values, 0).unwrap().len(), pairs.len());
        }
    }
}

mod delimited {
    use tidegate_decode::text::delimited::parse;
    use tidegate_decode::{Kind, Value};
    use tidegate_source::testing;

    use super::opened;

    #[test]
    fn cells_are_fields() {
        let text = "id,name,score,\"a b\"\r\n1,\"x, y\",0.5,\r\n2,\"say \"\"hi\"\"\nthere\",3,z\n\n3,,,\n";
        let source = opened("x.csv", text).unwrap();
        let kinds: Vec<_> =
            source.schema().iter().map(|field| (field.name.as_str(), field.kind.name())).collect();
        assert_eq!(kinds, [("id", "int"), ("name", "text"), ("score", "float"), ("a b", "text")]);
        assert_eq!(
            (source.len(), source.key(1).unwrap(), source.key(2).unwrap()),
            (3, "line 3".into(), "line 6".into())
        );
        testing::source(&*opened("y.tsv", "a\tb\n1\tx\n2\ty").unwrap()).unwrap();
        let values = parse(source.schema(), b',', b"1,\"x, y\",0.5,").unwrap();
        assert_eq!(values, [Value::Bytes(b"1"), Value::Bytes(b"x, y"), Value::Bytes(b"0.5"), Value::Missing]);
        let values = parse(source.schema(), b',', b"2,\"say \"\"hi\"\"\nthere\",3,z").unwrap();
        let Value::Quoted(quoted) = values[1] else { panic!("it has quotes") };
        assert_eq!(quoted.text().unwrap(), b"say \"hi\"\nthere");
    }

    #[test]
    fn quotes_count_at_the_beginning_of_a_cell_alone() {
        let source = opened("x.csv", "name,n\n5\" pipe,1\n6\" pipe,2\nplain,3\n\"a\"\"\",4\n").unwrap();
        assert_eq!(source.len(), 4);
        let values = parse(source.schema(), b',', b"5\" pipe,1").unwrap();
        assert_eq!(values, [Value::Bytes(b"5\" pipe"), Value::Bytes(b"1")]);
        let values = parse(source.schema(), b',', b"\"a\"\"\",4").unwrap();
        assert!(matches!(values[0], Value::Quoted(quoted) if quoted.text().unwrap() == b"a\""));
        let error = opened("x.csv", "name,n\n\"open,1\n2,3\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("never closed"), "{error}");
        // Integers that int64 does not hold stay what they are.
        let source = opened("x.csv", "id\n18446744073709551615\n18446744073709551614\n").unwrap();
        assert_eq!(source.schema()[0].kind, Kind::Text);
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let source = opened("x.csv", "a,b\n1,x\n").unwrap();
        let words = |line: &str| parse(source.schema(), b',', line.as_bytes()).unwrap_err().to_string();
        assert!(words("1").contains("1 cells under 2 names"));
        assert!(words("1,2,3").contains("3 cells under 2 names"));
        let words = |text: &str| opened("x.csv", text).unwrap_err().to_string();
        assert!(words("a,a\n1,2\n").contains("line 1") && words("a,a\n1,2\n").contains("comes twice"));
        let source = opened("y.csv", ",a,\n0,1,2\n").unwrap();
        let names: Vec<_> = source.schema().iter().map(|field| &*field.name).collect();
        assert_eq!(names, ["Unnamed: 0", "a", "Unnamed: 2"]);
        assert!(words("a,b\n").contains("no line with a sample"));
    }
}
