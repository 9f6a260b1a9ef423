"""Tar shards: the samples of webdataset, or a refusal that names the cause.

Flow: members -> one tar -> `webdataset.WebDataset`, which decodes by Pillow, and `tg.open`.
Memory: a few kilobytes a dataset.
"""

import gzip

import pytest
import webdataset as wds
from compare import either, ours, refused, same
from made import encoded, picture, tar

JPG, PNG = encoded(picture(1)), encoded(picture(2), "PNG")


def theirs(path, decoded=True):
    data = wds.WebDataset(str(path), shardshuffle=False)
    if decoded:
        data = data.decode("pil")
    hidden = ("__url__", "__local_path__")
    return [{name: value for name, value in sample.items() if name not in hidden} for sample in data]


# {dataset: members}.
SAME = {
    "pairs": [("0.jpg", JPG), ("0.cls", b"3"), ("1.jpg", encoded(picture(3))), ("1.cls", b"-4")],
    "every_simple_field": [
        ("a.jpg", JPG),
        ("a.png", PNG),
        ("a.cls", b" 12\n"),
        ("a.txt", "é\n日本".encode()),
        ("a.json", b'{"x": [1, 2.5, null, true], "y": {"z": "\\u00e9"}}'),
        ("a.index", b"7"),
        ("a.text", b"t"),
    ],
    "json_of_every_type": [
        (f"{i}.json", text) for i, text in enumerate((b"[1, NaN]", b'"x"', b"1.0", b"2", b"{}", b"[]"))
    ],
    "names_with_underscores": [("__a.txt", b"1"), ("__b__", b"meta"), ("c__.txt", b"2"), ("_d__e.txt", b"3")],
    "dotted_extensions": [
        ("k.seg.png", PNG),
        ("k.left.cls", b"1"),
        ("k.cls", b"2"),
        ("l.seg.png", PNG),
        ("l.left.cls", b"5"),
    ],
    "folders_with_dots": [("x.y/k.txt", b"1"), ("./x.y/k.z.txt", b"2")],
    "upper_case_extensions": [("K.JPG", JPG), ("K.Cls", b"7"), ("k.jpg", JPG), ("k.cls", b"8")],
    "one_key_in_two_folders": [("x/0.txt", b"1"), ("x/0.cls", b"1"), ("y/0.txt", b"2"), ("y/0.cls", b"2")],
    "one_key_again_later": [("0.cls", b"0"), ("1.cls", b"1"), ("0.cls", b"2")],
    "missing_members": [("a.txt", b"1"), ("a.cls", b"1"), ("b.txt", b"x"), ("c.cls", b"5")],
    "jpg_or_png": [("0.jpg", JPG), ("0.cls", b"0"), ("1.png", PNG), ("1.cls", b"1")],
    "empty_text": [("a.txt", b""), ("b.txt", b"x")],
    "paths_from_the_root_and_above": [("/abs/a.txt", b"1"), ("../b.txt", b"2"), ("c//d.txt", b"3")],
    "several_dots": [("a.txt", b"1"), ("a.1.txt", b"2"), ("a..txt", b"3"), ("b.", b"4")],
    "names_beyond_ascii": [("ünï code.txt", b"1"), ("日本/語.txt", b"2"), ("#a+b%20c.txt", b"3")],
    "names_beyond_the_header": [("long/" * 60 + "k.txt", b"1"), ("k.txt", b"2")],
    "hidden_members": [("a.txt", b"1"), ("._a.txt", b"2"), ("./.b.txt", b"3"), ("e.txt", b"4")],
}


@pytest.mark.parametrize("name", SAME)
def test_the_samples_are_webdatasets(tmp_path, name):
    path = tar(tmp_path / "a.tar", *SAME[name])
    same(ours(path, keys=True), theirs(path))


def test_keys_within_underscores(tmp_path):
    path = tar(tmp_path / "a.tar", ("__a__.txt", b"1"), ("b.txt", b"2"))
    either(path, [{"txt": sample["txt"]} for sample in theirs(path)], "__a__")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed_archives(tmp_path, name):
    whole = tar(tmp_path / "a.tar", *SAME["every_simple_field"], *SAME["names_beyond_ascii"])
    (tmp_path / name).write_bytes(gzip.compress(whole.read_bytes(), mtime=0))
    same(ours(tmp_path / name, keys=True), theirs(whole))


def test_several_shards(tmp_path):
    for shard in range(3):
        members = [(f"{i}.{end}", b"%d" % (shard * 10 + i)) for i in range(shard + 1) for end in ("cls", "txt")]
        tar(tmp_path / f"s-{shard}.tar", *members)
    pattern = f"{tmp_path}/s-{{0..2}}.tar"
    same(ours(pattern, keys=True), theirs(pattern))


def test_members_of_unknown_kinds_come_as_they_are_stored(tmp_path):
    members = [("a.bin", b"\0\xff"), ("a.npz", b"PK"), ("a.txt.gz", gzip.compress(b"x", mtime=0)), ("a.flt", b"1.5")]
    path = tar(tmp_path / "a.tar", *members)
    same(
        ours(path),
        [{key: x for key, x in sample.items() if key != "__key__"} for sample in theirs(path, decoded=False)],
    )


# {dataset: (members, words)}.
REFUSED = {
    "scattered_members": (
        [("0.txt", b"1"), ("1.txt", b"2"), ("0.cls", b"3"), ("1.cls", b"4")],
        'members of sample "0" are scattered',
    ),
    "a_class_that_is_a_word": ([("a.cls", b"1"), ("b.cls", b"cat")], '"cat" is no integer'),
    "an_empty_class": ([("a.cls", b"")], '"" is no integer'),
    "a_class_beyond_64_bits": ([("a.cls", b"9223372036854775808")], '"9223372036854775808" is beyond int64'),
    "an_empty_picture": ([("a.jpg", b"")], "0 bytes where an image belongs"),
    "a_picture_of_another_kind": ([("a.jpg", encoded(picture(1), "GIF"))], "neither JPEG, PNG nor WebP"),
    "a_picture_cut_short": (
        [("a.jpg", encoded(picture(1, width=200, height=200))[:3000])],
        "truncated JPEG: the end marker is missing",
    ),
    "text_in_latin_1": ([("a.txt", "é".encode("latin-1"))], "not UTF-8"),
    "json_in_latin_1": ([("a.json", '{"x": "é"}'.encode("latin-1"))], "not UTF-8"),
    "json_that_ends_early": ([("a.json", b'{"x": ')], "no JSON: it ends within a value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_cause_is_named(tmp_path, name):
    members, words = REFUSED[name]
    refused(tar(tmp_path / "a.tar", *members), words)


@pytest.mark.parametrize("again", ["a.txt", "a.TXT"])
def test_a_member_that_comes_twice_fails_alone(tmp_path, again):
    path = tar(tmp_path / "a.tar", ("a.txt", b"1"), (again, b"2"), ("b.txt", b"3"))
    with pytest.raises(ValueError, match="duplicate file name"):
        theirs(path)
    assert ours(path, failing={0: 'sample "a" has two members "txt"'}) == [{"txt": "3"}]
