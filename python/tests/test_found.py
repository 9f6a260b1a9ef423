"""What `tg.open` finds: splits, missing files, and what is no sample."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tidegate as tg


def picture(kind="JPEG", color=(200, 30, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(buffer, kind)
    return buffer.getvalue()


def tar(path, *members):
    """Write a tar of (name, bytes) and of finished `TarInfo`s."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def keys(source):
    return [source.key(i) for i in range(len(source))]


def opened(url, **options):
    """Open without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tg.open(url, **options)


def test_names_that_begin_with_two_underscores_are_samples(tmp_path):
    names = ["__AbC.jpg", "__xyz_.jpg", "_a.jpg", "b__.jpg"]
    path = tar(tmp_path / "a.tar", *[(name, picture()) for name in names], ("__meta__", b"{}"))
    source = opened(path)
    assert keys(source) == ["__AbC", "__xyz_", "_a", "b__"]
    assert source.left_out == ["1 members named __...__, which hold metadata, such as __meta__ of a.tar"]


def test_a_member_that_comes_twice_concerns_its_sample(tmp_path):
    members = [("a.jpg", picture()), ("a.jpg", picture()), ("b.jpg", picture()), ("c.jpg", picture())]
    source = opened(tar(tmp_path / "a.tar", *members))
    assert len(source) == 3
    with pytest.raises(tg.SampleError, match='sample "a" has two members "jpg": rename one of them'):
        source[0]
    options = {"batch_size": 3, "memory": tg.Budget("16MiB"), "fields": {"jpg": tg.Image(8)}}
    assert next(iter(tg.Loader(source, on_error="skip", **options))).ids.tolist() == [1, 2]
    with pytest.raises(tg.SampleError, match="two members"):
        next(iter(tg.Loader(source, **options)))


def test_scattered_members_are_refused_with_both_places(tmp_path):
    path = tar(tmp_path / "a.tar", ("0.jpg", picture()), ("1.jpg", picture()), ("0.cls", b"0"), ("1.cls", b"1"))
    with pytest.raises(tg.DataError, match=r'sample "0" are scattered: some at byte 0, others here.*--sort=name'):
        tg.open(path)
    # Whole samples under one key are several samples, as in webdataset.
    again = tar(tmp_path / "b.tar", ("0.cls", b"0"), ("1.cls", b"1"), ("0.cls", b"2"))
    assert [sample["cls"] for sample in opened(again)] == [0, 1, 2]


def test_links_and_names_without_an_extension_are_counted(tmp_path):
    hard = link("c.cls", "a.cls", tarfile.LNKTYPE)
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    path = tar(
        tmp_path / "a.tar", folder, ("a.cls", b"1"), link("b.cls", "a.cls"), hard, ("README", b"x"), ("._a.cls", b"")
    )
    with pytest.warns(tg.DataWarning, match=r"2 links, such as b\.cls of a\.tar; 1 members without an extension"):
        source = tg.open(path)
    assert len(source) == 1
    assert "1 hidden members, such as ._a.cls of a.tar" in source.left_out
    assert "left out: 2 links" in repr(source)
    with pytest.raises(tg.DataError, match="2 links"):
        tg.open(path, strict=True)
    batch = next(iter(tg.Loader(source, batch_size=1, memory=tg.Budget("16MiB"))))
    assert batch["cls"].tolist() == [1]


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_behind_the_end_of_an_archive_is_not_lost(tmp_path, compressed):
    whole = tar(tmp_path / "a.tar", *[(f"{i}.cls", b"1") for i in range(100)]).read_bytes()

    def written(content):
        path = tmp_path / ("x.tar.gz" if compressed else "x.tar")
        path.write_bytes(gzip.compress(content) if compressed else content)
        return path

    assert len(tg.open(written(whole))) == 100
    with pytest.raises(tg.DataError, match=r"more behind the end .* several archives were joined"):
        tg.open(written(whole + whole))
    hole = bytearray(whole)
    hole[10 * 1024 : 10 * 1024 + 512] = bytes(512)
    with pytest.raises(tg.DataError, match=r"x\.tar.*damaged here"):
        tg.open(written(bytes(hole)), force=True)
    with pytest.raises(tg.DataError, match="a copy of it was broken off"):
        tg.open(written(whole[: 50 * 1024] + bytes(3 << 20)))


def test_a_flipped_bit_at_the_end_of_a_compressed_archive_is_found(tmp_path):
    content = bytearray(gzip.compress(tar(tmp_path / "a.tar", ("0.cls", b"1")).read_bytes()))
    content[-6] ^= 1
    (tmp_path / "b.tar.gz").write_bytes(content)
    with pytest.raises(tg.DataError, match="damaged or truncated"):
        tg.open(tmp_path / "b.tar.gz")


def shards(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            tar(path, (f"{number}.cls", str(number).encode()))
        elif name.endswith(".parquet"):
            pq.write_table(pa.table({"x": [number]}), path)
        elif name.endswith(".jsonl"):
            path.write_text(json.dumps({"x": number}) + "\n")
        else:
            path.write_text(f"x\n{number}\n")


@pytest.mark.parametrize("end", ["tar", "parquet", "jsonl", "csv"])
@pytest.mark.parametrize("remote", ["folder", "pattern"])
def test_several_splits_are_refused_until_one_is_chosen(tmp_path, end, remote):
    shards(tmp_path, f"x-train-0.{end}", f"x-train-1.{end}", f"x-val-0.{end}")
    url = tmp_path if remote == "folder" else f"{tmp_path}/*.{end}"
    with pytest.raises(tg.DataError, match=r'the splits train, val: choose one with split="train"'):
        tg.open(url)
    lengths = [len(opened(url, split=split)) for split in ("train", "val", "validation", "all")]
    assert lengths == [2, 1, 1, 3]
    with pytest.raises(tg.DataError, match='no split "test"; there are: train, val'):
        tg.open(url, split="test")
    # What is written out is what is wanted.
    assert len(opened(f"{tmp_path}/x-{{train-0,val-0}}.{end}")) == 2


def test_folders_of_splits_are_no_classes(tmp_path):
    for name in ("train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    with pytest.raises(tg.DataError, match="the splits test, train"):
        tg.open(tmp_path)
    assert opened(tmp_path, split="train").stats["classes"] == ["cat", "dog"]
    assert len(opened(tmp_path, split="test")) == 1
    classes = tmp_path / "vehicles"
    for name in ("bus/a.jpg", "car/b.jpg", "train/c.jpg"):
        (classes / name).parent.mkdir(parents=True)
        (classes / name).write_bytes(picture())
    assert opened(classes).stats["classes"] == ["bus", "car", "train"]


def test_missing_files_of_a_set_are_named(tmp_path):
    shards(tmp_path, *[f"data-{i:05}-of-00004.parquet" for i in (0, 1, 3)])
    for url in (tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(tg.DataError, match=r"3 of 4 files .* missing: 2\. .*allow_missing=True"):
            tg.open(url)
        assert len(opened(url, allow_missing=True)) == 3
    assert len(opened(tmp_path / "data-00001-of-00004.parquet")) == 1


def test_a_saved_dataset_is_what_its_state_names(tmp_path):
    """As `datasets.save_to_disk` leaves a folder that was written twice, with caches of `map`."""

    def arrow(name, rows):
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)

    rows = pa.table({"x": list(range(10))})
    for name in ("data-00000-of-00001.arrow", "data-00000-of-00002.arrow", "cache-1234.arrow"):
        arrow(name, rows)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    assert len(opened(tmp_path)) == 10


def test_a_dictionary_of_datasets_names_its_splits(tmp_path):
    shards(tmp_path, "english/data-00000-of-00001.parquet", "french/data-00000-of-00001.parquet")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["english", "french"]}))
    assert len(opened(tmp_path, split="french")) == 1
    with pytest.raises(tg.DataError, match=r'no split "german"; there are: english, french'):
        tg.open(tmp_path, split="german")
    with pytest.raises(tg.DataError, match='splits english, french: choose one with split="english"'):
        tg.open(tmp_path)
    for split in ("english", "french"):
        (tmp_path / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.parquet"}]})
        )
    assert len(opened(tmp_path, split="all")) == 2


def test_folders_of_splits_within_a_folder_are_no_class(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        (tmp_path / "images" / split / "0.jpg").write_bytes(picture())
        (tmp_path / "labels" / split / "0.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(tg.DataError, match="images: there are the splits train, val: open .*/images/train, or"):
        tg.open(tmp_path)
    with pytest.warns(tg.DataWarning, match="the folders images, labels are read as classes"):
        assert len(tg.open(tmp_path, split="all")) == 2
    assert len(opened(tmp_path / "images", split="val")) == 1


def test_folders_name_the_split_of_what_a_pattern_finds(tmp_path):
    shards(tmp_path, "train/0.parquet", "train/1.parquet", "test/0.parquet")
    for pattern in (f"{tmp_path}/*/*.parquet", f"{tmp_path}/**/*.parquet"):
        with pytest.raises(tg.DataError, match="splits test, train"):
            tg.open(pattern)
        assert len(opened(pattern, split="train")) == 2


def test_values_in_the_names_of_folders_are_said_where_no_column_has_them(tmp_path):
    for value in "ab":
        (tmp_path / f"label={value}").mkdir()
        (tmp_path / f"label={value}" / "x.jsonl").write_text('{"x": 1}\n')
    with pytest.warns(tg.DataWarning, match="2 values in the names of folders, which only tables have as columns"):
        source = tg.open(f"{tmp_path}/*/*.jsonl")
    assert len(source) == 2
    assert source.schema == {"x": "int"}


def test_a_sample_in_two_archives_is_said(tmp_path):
    tar(tmp_path / "a-0.tar", ("0.cls", b"1"), ("1.jpg", picture()))
    tar(tmp_path / "a-1.tar", ("1.cls", b"2"), ("2.cls", b"3"))
    with pytest.warns(tg.DataWarning, match='1 samples have members in two archives, such as "1": each comes as two'):
        assert len(tg.open(tmp_path)) == 4
    for part in "ab":
        tar(tmp_path / f"{part}.tar", ("0.cls", b"1"), ("0.jpg", picture()))
    assert len(opened(f"{tmp_path}/{{a,b}}.tar")) == 2


def test_members_that_are_no_files_are_counted(tmp_path):
    pipe, device, other = (tarfile.TarInfo(name) for name in ("p", "d", "o"))
    pipe.type, device.type, other.type = tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Q"
    path = tar(tmp_path / "a.tar", ("0.cls", b"1"), pipe, device, other)
    with pytest.warns(tg.DataWarning, match="2 devices and pipes, such as p of a.tar.*1 members of an unknown kind"):
        assert len(tg.open(path)) == 1


def test_folders_of_kinds_are_said(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0.png").write_bytes(picture("PNG"))
    with pytest.warns(tg.DataWarning, match="the folders images, masks are read as classes"):
        assert len(tg.open(tmp_path)) == 2


def test_what_a_command_left_behind_is_its_own(tmp_path):
    command = [str(Path(sys.executable).with_name("tidegate")), "synth", str(tmp_path / "x"), "--form", "tar"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "shard-00000.tar.partial").write_bytes(b"half")
    subprocess.run([*command, "--samples", "4", "--width", "40"], check=True, capture_output=True)
    assert len(opened(tmp_path / "x")) == 4


def test_the_command_shows_the_account(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(picture())
    (tmp_path / "cat" / "b.bmp").write_bytes(picture("BMP"))
    command = [str(Path(sys.executable).with_name("tidegate")), "inspect", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "left out: 1 images of a kind that is not read (.bmp), such as cat/b.bmp" in done.stdout


def test_patterns_are_those_of_a_shell(tmp_path):
    shards(tmp_path, "a/x-0.tar", "a/b/x-1.tar", "x-2.tar", "x-a.tar", ".x-3.tar")
    (tmp_path / "x-file").write_text("where a folder could be")
    (tmp_path / "x-9.tar").mkdir()
    for pattern, count in [("**/*.tar", 4), ("x-[0-9].tar", 1), ("x-?.tar", 2), ("*/*.tar", 1), ("x-[!0-9].tar", 1)]:
        assert len(opened(f"{tmp_path}/{pattern}")) == count, pattern
    (tmp_path / "odd[1]").mkdir()
    shards(tmp_path / "odd[1]", "y.tar")
    assert len(opened(tmp_path / "odd[1]")) == len(opened(tmp_path / "odd[1]/y.tar")) == 1
    with pytest.raises(tg.DataError, match="pattern"):
        tg.open(f"{tmp_path}/x-[0.tar")


def test_images_that_are_not_read_are_counted(tmp_path):
    for name, kind in [("cat/a.jpg", "JPEG"), ("cat/b.bmp", "BMP"), ("dog/c.gif", "GIF"), ("dog/d.tif", "TIFF")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(kind))
    (tmp_path / "e.jpg").write_bytes(picture())
    (tmp_path / "cat/notes.txt").write_text("x")
    os.symlink(tmp_path / "nowhere.jpg", tmp_path / "cat/broken.jpg")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    with pytest.warns(tg.DataWarning, match="left out are") as said:
        source = tg.open(tmp_path)
    assert len(source) == 1
    assert source.stats["classes"] == ["cat", "dog"]
    assert sorted(words.split(", such as ") for words in source.left_out) == [
        ["1 classes without an image that can be read", "dog"],
        ["1 files that are no images", "cat/notes.txt"],
        ["1 images beside the folders of the classes", "e.jpg"],
        ["1 images of a kind that is not read (.bmp)", "cat/b.bmp"],
        ["1 images of a kind that is not read (.gif)", "dog/c.gif"],
        ["1 images of a kind that is not read (.tif)", "dog/d.tif"],
        ["1 links that lead nowhere", "cat/broken.jpg"],
        ["1 pipes and devices", "cat/pipe.jpg"],
    ]
    assert "notes.txt" not in str(said[0].message), "nobody takes it for a sample"
    with pytest.raises(tg.DataError, match="gif"):
        tg.open(tmp_path, strict=True)
    # The account is kept with the index.
    with pytest.warns(tg.DataWarning, match="gif"):
        assert tg.open(tmp_path).left_out == source.left_out


def test_linked_folders_are_followed_and_loops_are_seen(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(picture())
    root = tmp_path / "root"
    (root / "cat").mkdir(parents=True)
    (root / "cat/b.jpg").write_bytes(picture())
    os.symlink(tmp_path / "elsewhere", root / "cat/more")
    os.symlink(tmp_path / "elsewhere", root / "dog")
    source = opened(root)
    assert sorted(keys(source)) == ["cat/b.jpg", "cat/more/a.jpg", "dog/a.jpg"]
    os.symlink(root / "cat", tmp_path / "elsewhere/back")
    with pytest.raises(tg.DataError, match="leads back to a folder that it is in"):
        tg.open(root, force=True)


def test_an_account_survives_pickling_and_subsets(tmp_path):
    import pickle

    path = tar(tmp_path / "a.tar", ("a.cls", b"1"), ("b.cls", b"2"), ("README", b"x"))
    with pytest.warns(tg.DataWarning):
        source = tg.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(source.select([1])))
    assert again.left_out == source.left_out
    assert np.asarray(again[0]["cls"]).item() == 2


def command(*arguments):
    from tidegate import _tidegate

    return _tidegate.cli(["tidegate", *map(str, arguments)])


def test_nothing_is_written_into_a_folder_with_other_data(tmp_path, capfd):
    own = tmp_path / "photos"
    for name in ("cat/a.jpg", "dog/b.jpg"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(picture())
    before = sorted(own.rglob("*"))
    for arguments in (("synth", own, "--samples", 2), ("pack", own, own)):
        assert command(*arguments) != 0
        assert "has other data" in capfd.readouterr().err
    assert sorted(own.rglob("*")) == before
    assert command("pack", own, tmp_path / "mds") == 0
    assert tg.open(tmp_path / "mds").stats["classes"] == ["cat", "dog"]
    assert command("synth", tmp_path / "new", "--samples", 3, "--width", 40) == 0
    assert command("synth", tmp_path / "new", "--samples", 3, "--width", 40) == 0


LIMITED = """
import resource, sys
import tidegate as tg
hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
source = tg.open(sys.argv[1])
loader = tg.Loader(source, batch_size=50, memory="64MiB", shuffle=True, fields={"jpg": tg.Image(8)})
assert sorted(id for batch in loader for id in batch.ids.tolist()) == list(range(600))
others = [tg.open(f"{sys.argv[1]}/{first}*.tar") for first in "12"]
loaders = [tg.Loader(other, batch_size=10, memory="32MiB", fields={"jpg": tg.Image(8)}) for other in others]
assert sum(one.rows + two.rows for one, two in zip(*loaders, strict=True)) == 444
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize("hard", [200, 4096])
def test_more_shards_than_open_files_are_read(tmp_path, hard):
    for i in range(300):
        tar(tmp_path / f"{i}.tar", ("a.jpg", picture()), ("b.jpg", picture()))
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (200 if hard == 200 else 1172), "the soft limit is raised as far as it is needed"


WITHOUT_HOME = """
import sys, warnings
import tidegate as tg
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    source = tg.open(sys.argv[1])
print(len(source), *[str(warning.message) for warning in caught])
"""


@pytest.mark.parametrize("theirs", [False, True])
def test_an_index_has_a_place_without_a_home(tmp_path, theirs):
    data, temporary = tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    temporary.mkdir()
    tar(data / "a.tar", ("a.jpg", picture()))
    # A file where the folder of the index would be, since these tests may run as root.
    (data / ".tidegate").write_text("")
    if theirs:
        (temporary / f"tidegate-{os.geteuid()}").mkdir()
        (temporary / f"tidegate-{os.geteuid()}").chmod(0o777)
    env = {"HOME": "/dev/null", "TMPDIR": str(temporary), "PATH": os.environ["PATH"]}
    env |= {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, str(data)], capture_output=True, text=True, check=False, env=env
    )
    if theirs:
        assert done.returncode != 0, "a folder that others can write is not trusted"
        assert "Not a directory" in done.stderr
        assert not any(path.name != f"tidegate-{os.geteuid()}" for path in temporary.iterdir())
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 ")
    assert f"the index is in {temporary}/tidegate-{os.geteuid()}/" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", b"\x1f\x8b", "compressed lines have no random access: unpack"),
        ("a.csv.zst", b"(\xb5/\xfd", "compressed lines have no random access: unpack"),
        ("a.json", b'[{"a": 1}]', r"one array of JSON.*jq -c"),
        ("a.npy", b"\x93NUMPY", "an array, not samples: tg.mapped opens it"),
        ("a.npz", b"PK", "an array, not samples: tg.mapped opens it"),
        ("a.h5", b"\x89HDF", "no known shard: expected .tar"),
    ],
)
def test_files_that_are_no_shards_are_named_with_the_fix(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(tg.DataError, match=words):
        tg.open(tmp_path / name)


def test_lines_may_be_called_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert list(tg.open(tmp_path / "a.json")) == [{"a": 1}, {"a": 2}]
    (tmp_path / "b.json").write_text('{\n  "a": 1\n}\n')
    with pytest.raises(tg.DataError, match="no line is an object"):
        tg.open(tmp_path / "b.json")


def test_a_warning_names_the_line_of_the_user(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": 2, "y": "a"}\n')
    options = {"batch_size": 1, "memory": tg.Budget("32MiB")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tg.Loader(tmp_path / "a.jsonl", fields={"x": tg.Int()}, **options)
        tg.Loader(tg.synthetic(10, 8), ids=True, **options)
        tg.Window(5, ranges=3)
    assert [Path(warning.filename).name for warning in caught] == ["test_found.py"] * 3


@pytest.mark.parametrize("name", ["b.tar", "b.parquet", "b.jsonl"])
def test_a_pipe_among_shards_is_passed_over_and_said(tmp_path, name):
    rows = {
        "b.tar": tar(tmp_path / "source", ("0.cls", b"1")).read_bytes(),
        "b.jsonl": b'{"x": 1}\n',
    }
    pq.write_table(pa.table({"x": [1]}), tmp_path / "source.parquet")
    rows["b.parquet"] = (tmp_path / "source.parquet").read_bytes()
    data = tmp_path / "data"
    data.mkdir()
    (data / name.replace("b", "a")).write_bytes(rows[name])
    os.mkfifo(data / name)
    with pytest.warns(tg.DataWarning, match=f"1 links that lead nowhere, pipes and devices, such as .*{name}"):
        assert len(tg.open(data)) == 1
    with pytest.raises(tg.DataError, match="there is no such file"):
        tg.open(data / name)


def wide_rows(folder):
    """Files of one sample each that takes more than a MiB, in few bytes where that is possible."""
    zeros = pa.array(np.zeros(4_000_000, "i1"))
    offsets = pa.array([0, 4_000_000], pa.int32())
    table = pa.table({"x": pa.ListArray.from_arrays(offsets, zeros)})
    pq.write_table(table, folder / "a.parquet", use_dictionary=True, data_page_size=1 << 30)
    with pa.ipc.new_file(
        str(folder / "a.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as f:
        f.write_table(table)
    (folder / "a.jsonl").write_text('{"x": "' + "y" * 1_000_000 + '"}\n')
    (folder / "a.csv").write_text('x,y\n"' + "y" * 1_000_000 + '",1\n')
    (folder / "a.libsvm").write_text("1 " + " ".join(f"{i}:1" for i in range(1, 100_001)) + "\n")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "csv", "libsvm"])
def test_opening_has_a_budget(tmp_path, ending):
    wide_rows(tmp_path)
    path = tmp_path / f"a.{ending}"
    with pytest.raises(tg.DataError, match=r"tg\.open\(\.\.\., memory="):
        tg.open(path, memory="1MiB")
    assert len(opened(path)) == 1


def test_a_row_that_takes_most_of_its_group_is_seen(tmp_path):
    values = pa.array(np.zeros(4_000_000, "i1"))
    lists = pa.ListArray.from_arrays(pa.array([0] + [4_000_000] * 1000, pa.int32()), values)
    pq.write_table(pa.table({"x": lists}), tmp_path / "a.parquet", use_dictionary=True, data_page_size=1 << 30)
    with pytest.raises(tg.DataError, match="a row whose values may take 15.3 MiB, where opening may take 1.0"):
        tg.open(tmp_path / "a.parquet", memory="1MiB")
    assert len(opened(tmp_path / "a.parquet")) == 1000


def test_a_flipped_bit_in_a_page_of_parquet_with_a_checksum_is_found(tmp_path):
    table = pa.table({"x": np.random.default_rng(0).integers(0, 2**60, 5000)})
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "none"}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "b.parquet").write_bytes(content)
    assert len(opened(tmp_path / "a.parquet")) == 5000
    with pytest.raises(tg.DataError, match=r"b\.parquet.*(CRC|checksum)"):
        tg.open(tmp_path / "b.parquet")


def test_an_error_at_a_page_of_parquet_names_its_place_once(tmp_path):
    table = pa.table({"x": np.arange(1000), "b": [b"%d" % i for i in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[6] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(tg.DataError) as error:
        for _ in tg.Loader(tg.open(tmp_path / "a.parquet"), batch_size=10, memory="64MiB"):
            pass
    found = str(error.value)
    assert found.count("a.parquet") == found.count("is damaged") == 1, found
    assert found.count("at byte 4: there is no page header") == 1, found
