"""CSV, TSV and JSON as pandas writes them and people save them: pandas' values, or a refusal.

Flow: text -> one file -> `pandas.read_csv` or `read_json` and `tg.open`. Empty cells are missing.
Memory: a few lines a dataset.
"""

import csv
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from compare import ours, refused, same, warned
from made import text

import tidegate as tg

FRAME = pd.DataFrame(
    {
        "x": [1, -2, 2**62],
        "y": [0.1, np.nan, 1e-300],
        "s": ['a,b "c"', "line\nbreak\r\nand\tmore", "é日本 "],
    },
    index=["r0", "r1", "r2"],
)


def records(frame):
    """Return the rows of a frame; NaN of floats and of texts is a missing value."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()} for row in frame.to_dict("records")
    ]


def theirs(path, **options):
    # Only an empty cell is missing.
    return records(pd.read_csv(path, **{"keep_default_na": False, "na_values": [""]} | options))


@pytest.mark.parametrize(
    "options", [{}, {"index": False}, {"lineterminator": "\r\n"}], ids=["index", "no_index", "crlf"]
)
def test_a_frame(tmp_path, options):
    FRAME.to_csv(tmp_path / "a.csv", **options)
    same(ours(tmp_path / "a.csv"), theirs(tmp_path / "a.csv"))


def test_a_frame_with_every_cell_in_quotes(tmp_path):
    FRAME.fillna(0.25).to_csv(tmp_path / "a.csv", quoting=csv.QUOTE_ALL)
    same(ours(tmp_path / "a.csv"), theirs(tmp_path / "a.csv"))


def test_a_frame_with_tabs(tmp_path):
    FRAME.to_csv(tmp_path / "a.tsv", sep="\t")
    same(ours(tmp_path / "a.tsv"), theirs(tmp_path / "a.tsv", sep="\t"))


# {dataset: text of a CSV file}.
SAME = {
    "integers_and_floats": "a\n1\n1.5\n-3\n9007199254740993\n",
    "floats_in_every_form": "a\n1e3\n.5\n5.\n-0.0\n0.1234567890123456789\n1e-320\n+2.5\n",
    "infinities": "a\ninf\n-inf\n1.5\n",
    "leading_zeros": "id,v\n00123,1\n00456,2\n",
    "blanks_around": "a, b\nx , y \nz,w\n",
    "dates": "a\n2020-01-01\n2021-02-03\n",
    "thousands": 'a\n"1,000"\n2\n',
    "semicolons": "a;b\n1;2\n3;4\n",
    "blank_lines": "a,b\n1,2\n\n3,4\n",
    "no_last_line_end": "a,b\n1,x\n2,y",
    "quotes_within": 'a,b\nx"y,1\n"p""q",2\n',
    "a_byte_order_mark": "\ufeffa,b\n1,é\n",
    "empty_columns": "a,b,\n1,,\n2,,\n",
    "one_column_of_text": "text\nhello world\nit's\n",
    "integers_beyond_64_bits_as_text": "a\n1\n99999999999999999999999\n",
}


@pytest.mark.parametrize("name", SAME)
def test_the_values_are_pandas(tmp_path, name):
    path = text(tmp_path / "a.csv", SAME[name])
    options = {"dtype": str} if name.endswith("as_text") else {}
    same(ours(path), theirs(path, **options))


def test_leading_zeros_as_text(tmp_path):
    path = text(tmp_path / "a.csv", SAME["leading_zeros"])
    same(ours(path, {"id": tg.Text()}), theirs(path, dtype={"id": str}))


def test_words_for_true_come_as_text(tmp_path):
    path = text(tmp_path / "a.csv", "a\nTrue\nFalse\n")
    same(ours(path), theirs(path, dtype=str))


# {dataset: (text, encoding, words)}.
REFUSED = {
    "utf_16": ("a,b\n1,é\n", "utf-16", "this is text in UTF-16"),
    "latin_1": ("a,b\n1,é\n", "latin-1", "not UTF-8"),
    "a_quote_that_is_never_closed": ('a,b\n"x,1\ny,2\n', "utf-8", "a quote .* is never closed"),
    "two_columns_of_one_name": ("a,a\n1,2\n", "utf-8", 'the column "a" comes twice'),
    "only_a_head": ("a,b\n", "utf-8", "no line with a sample"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_cause_is_named(tmp_path, name):
    content, encoding, words = REFUSED[name]
    refused(text(tmp_path / "a.csv", content, encoding), words)


def test_json_lines_in_utf_16_are_refused(tmp_path):
    refused(text(tmp_path / "a.jsonl", '{"a": 1}\n', "utf-16"), "this is text in UTF-16")


def test_a_byte_that_is_not_utf_8_is_not_replaced(tmp_path):
    source = tg.open(text(tmp_path / "a.csv", "a,b\n1,é\n", "latin-1"))
    with pytest.raises(tg.SampleError, match="not UTF-8"):
        source[0]


def test_lines_of_other_lengths_fail_alone(tmp_path):
    path = text(tmp_path / "a.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    read = ours(path, failing={1: "1 cells under 2 names", 2: "3 cells under 2 names"})
    same(read, theirs(path, on_bad_lines="skip", skiprows=[2]))


def test_words_among_numbers_are_said(tmp_path):
    path = text(tmp_path / "a.csv", "a\n1\nNA\n3\n")
    source = warned(path, 'column "a" is a number in 2 samples and other in 1.*: all come as text')
    same(ours(source), theirs(path, dtype=str))


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_of_to_json(tmp_path, name, ascii):
    path = tmp_path / name
    FRAME.to_json(path, orient="records", lines=True, force_ascii=ascii, double_precision=15)
    same(ours(path), records(pd.read_json(path, lines=True, precise_float=True)))


@pytest.mark.parametrize("orient", ["records", "values"])
def test_an_array_of_to_json_is_refused(tmp_path, orient):
    FRAME.to_json(tmp_path / "a.json", orient=orient)
    refused(tmp_path / "a.json", "this is one array of JSON, which has no random access: write an object a line")


@pytest.mark.parametrize("orient", ["columns", "split", "index"])
def test_an_object_of_to_json_is_one_line(tmp_path, orient):
    FRAME.to_json(tmp_path / "a.json", orient=orient)
    same(ours(tmp_path / "a.json"), [json.loads((tmp_path / "a.json").read_text())])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.jsonl.zst"])
def test_compressed_lines_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b'{"a": 1}\n', mtime=0))
    refused(tmp_path / name, "compressed lines have no random access: unpack the file")


# {dataset: lines}, as `json.loads` reads each.
LINES = {
    "nan_and_infinity": [
        '{"a": NaN, "b": 1}',
        '{"a": Infinity, "b": 2}',
        '{"a": -Infinity, "b": 3}',
        '{"a": 1.5, "b": 4}',
    ],
    "nulls_and_missing_keys": ['{"a": null, "b": 1}', '{"a": 3, "b": 2}', '{"b": 3}'],
    "escapes": ['{"a": "\\ud83d\\ude00\\n\\u0000\\/", "\\u00e9": 1}', '{"a": "", "é": 2}'],
    "a_type_that_comes_late": [*['{"a": null}'] * 1200, '{"a": "x"}'],
    "a_key_that_comes_late": [*['{"a": 1}'] * 1200, '{"a": 1, "b": 2}'],
    "a_key_twice": ['{"a": 1, "a": 2}'],
    "keys_with_dots": ['{"a.b": 1, "a": {"b": [2, {"c": null}]}}'],
    "floats_in_every_form": ['{"a": 1.0}', '{"a": -0.0}', '{"a": 1e400}', '{"a": 0.1234567890123456789}'],
    "booleans": ['{"a": true}', '{"a": false}'],
    "blank_lines": ['{"a": 1}', "", '{"a": 2}'],
    "integers_of_64_bits_in_lists": ['{"a": [9007199254740993, -1]}', '{"a": []}', '{"a": [9223372036854775807]}'],
    "booleans_in_lists": ['{"a": [true, 1, false]}', '{"a": []}'],
    "lists": ['{"a": ["x", {"y": 1}], "b": [1, 2]}', '{"a": [], "b": [3]}'],
}


@pytest.mark.parametrize("name", LINES)
def test_lines_are_those_of_json(tmp_path, name):
    path = text(tmp_path / "a.jsonl", "\n".join(LINES[name]) + "\n")
    same(ours(path), [json.loads(line) for line in LINES[name] if line])


@pytest.mark.parametrize("line", ['{"a": 2} x', '{"a": 01}', "[1]", '{"a": [1, null]}', '{"a":'])
def test_a_line_that_is_no_such_object_fails_alone(tmp_path, line):
    path = text(tmp_path / "a.jsonl", f'{{"a": [3]}}\n{line}\n{{"a": [4]}}\n')
    words = "no object of JSON|trailing characters|a list of int64|numbers"
    same(ours(path, failing={1: words}), [{"a": [3]}, {"a": [4]}])


def test_half_of_a_pair_fails_alone(tmp_path):
    path = text(tmp_path / "a.jsonl", '{"a": "x"}\n{"a": "\\ud800"}\n{"a": "y"}\n')
    same(ours(path, failing={1: "half of a pair"}), [{"a": "x"}, {"a": "y"}])


@pytest.mark.parametrize("other", ["1", "[1]", '{"b": 1}'])
def test_values_of_several_types_are_said(tmp_path, other):
    path = text(tmp_path / "a.jsonl", f'{{"a": "x"}}\n{{"a": {other}}}\n')
    source = warned(path, 'field "a" is .* all come as JSON text')
    same(ours(source), [{"a": "x"}, {"a": json.loads(other)}])


def test_integers_among_floats_are_floats(tmp_path):
    path = text(tmp_path / "a.jsonl", '{"a": 1.5}\n{"a": 9007199254740993}\n{"a": 2}\n')
    same(ours(path), records(pd.read_json(path, lines=True)))


def test_json_lines_in_latin_1_are_refused(tmp_path):
    refused(text(tmp_path / "a.jsonl", '{"a": "é"}\n', "latin-1"), "UTF-8")
