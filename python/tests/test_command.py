"""The command line: its words, its tips, its pages, and that the demo keeps its budget."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import zarr3
from test_found import command, tar
from test_pack import folder

import tidegate as tg

COMMAND = str(Path(sys.executable).with_name("tidegate"))


def run(*arguments, cwd=None):
    """Run the command in a shell, as a user types it."""
    line = " ".join([shlex.quote(COMMAND), *arguments])
    return subprocess.run(line, shell=True, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_counts_have_their_nouns(tmp_path, capfd):
    one = folder(tmp_path / "one", classes=("cat",), each=1)
    assert command("inspect", one) == 0
    said = capfd.readouterr().out
    assert "1 sample in 1 shard, " in said
    assert "1 class: cat" in said
    assert command("pack", one, tmp_path / "packed") == 0
    assert "1 sample in 1 shard in" in capfd.readouterr().out
    assert command("synth", tmp_path / "made", "--samples", 1, "--classes", 1, "--width", 40) == 0
    assert "1 image of 1 class in" in capfd.readouterr().out
    assert command("bench", one, "--batch-size", 1, "--size", 8, "--workers", 1) == 0
    assert re.search(r"^1 sample in ", capfd.readouterr().out)


@pytest.mark.parametrize("name", ["index", "inspect", "check", "profile", "bench"])
def test_a_pattern_that_the_shell_took_apart(tmp_path, name):
    for i in range(2):
        tar(tmp_path / f"s-{i}.tar", (f"{i}.cls", b"1"))
    done = run(name, "s-*.tar", cwd=tmp_path)
    assert done.returncode == 2
    assert "quote a pattern, so that the shell leaves it whole: '*.tar'" in done.stderr
    assert run("inspect", "'*.tar'", cwd=tmp_path).returncode == 0


def test_a_pattern_for_pack_that_the_shell_took_apart(tmp_path):
    for i in range(2):
        tar(tmp_path / f"s-{i}.tar", (f"{i}.cls", b"1"))
    before = (tmp_path / "s-1.tar").read_bytes()
    done = run("pack", "*.tar", cwd=tmp_path)
    assert done.returncode == 1
    assert "s-1.tar is a file, where a folder to write to is wanted; quote a pattern" in done.stderr
    assert (tmp_path / "s-1.tar").read_bytes() == before


def test_the_command_that_advice_names_can_be_pasted(tmp_path):
    """Paths with spaces and patterns are quoted."""
    subprocess.run(["tar", "-czf", str(tmp_path / "a b.tar.gz"), "-C", str(folder(tmp_path / "d")), "."], check=True)
    with pytest.raises(tg.ConfigError) as refused:
        next(iter(tg.Loader(tmp_path / "*.tar.gz", batch_size=2, memory=tg.Budget("64MiB"), shuffle=True)))
    advised = re.search(r"`tidegate (pack .*?) OUT", str(refused.value))
    done = run(advised[1], str(tmp_path / "out"), "--format tar")
    assert done.returncode == 0, done.stderr
    assert len(tg.open(tmp_path / "out" / "*.tar")) == 6


def test_the_page_of_samples_names_classes(tmp_path, capfd):
    page = tmp_path / "page.html"
    photos = folder(tmp_path / "photos", classes=("cat & co", "dog"), each=1)
    tg.pack(photos, tmp_path / "mds")
    tg.pack(photos, tmp_path / "tar", format="tar")
    for packed in (photos, tmp_path / "mds", tmp_path / "tar"):
        assert command("inspect", packed, "--html", page) == 0
        said = page.read_text()
        assert re.search(r"(label|cls): cat &amp; co", said)
        assert re.search(r"(label|cls): dog", said)


def test_the_profile_page_has_contents_and_says_what_bits_are(tmp_path, capfd):
    page = tmp_path / "page.html"
    assert command("profile", folder(tmp_path / "photos"), "--html", page) == 0
    said = page.read_text()
    for part in ('<a href="#image">', '<h2 id="image">', '<a href="#label">', '<h2 id="label">'):
        assert part in said
    assert re.search(r"entropy of a red, a green and a blue value: [\d.]+, [\d.]+, [\d.]+ bits", said)
    assert re.search(r"entropy of a value: 1.00 bits", said)


def test_shuffle_quality_explains_its_figures(tmp_path, capfd):
    page = tmp_path / "page.html"
    asked = ["shuffle-quality", "--samples", 20000, "--shard", 1000, "--classes", 20, "--html", page]
    assert command(*asked) == 0
    text, said = capfd.readouterr().out, page.read_text()
    for heading in re.search(r"shuffle= +(.*)", text)[1].replace("of ideal", "of-ideal").split():
        assert f"{heading.replace('-', ' ')}:" in text
    dots = re.findall(r"<circle .*?</circle><text [^>]*>(\d+)</text>", said)
    assert len(dots) > 3
    # Each dot has a number, which a line of the table explains; both axes have numbers.
    assert re.findall(r"<tr><td>(\d+)<td>", said) == dots
    assert re.search(r"text-anchor='end'>2</text>", said)
    assert re.search(r"text-anchor='middle'>10000</text>", said)
    assert "bound 1.1" in said


def test_the_demo_keeps_its_budget(tmp_path):
    done = run("demo", "--out", str(tmp_path), "--samples", "300", "--memory", "32MiB")
    assert done.returncode == 0, done.stderr
    figures = re.search(
        r"peak ([\d.]+) MiB over the baseline .* budget ([\d.]+) MiB, and ([\d.]+) MiB allowed", done.stdout
    )
    peak, budget, allowed = map(float, figures.groups())
    assert 0 < peak <= budget + allowed, done.stdout
    assert (budget, allowed) == (32, 8)
    page = (tmp_path / "report.html").read_text()
    for part in (">20 MiB</text>", "baseline + budget: ", " s</text>", "pre{white-space:pre-wrap"):
        assert part in page


def test_a_home_is_found(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "photos")
    assert len(tg.open("~/photos")) == 6
    assert len(tg.pack("~/photos", "~/packed")) == 6
    assert (tmp_path / "packed" / "index.json").exists()


def test_a_volume_and_specs_tell_what_they_are(tmp_path):
    zarr = zarr3()
    cells = zarr.create_array(str(tmp_path / "c.zarr"), shape=(20, 24), chunks=(8, 8), dtype="u2")
    cells[:] = 1
    volume = tg.volume(tmp_path / "c.zarr", patch=(8, 8), stride=(8, 8))
    assert repr(volume).startswith("Volume(")
    assert "9 samples" in repr(volume)
    for spec in (tg.Int(), tg.Float(), tg.Text(), tg.Bytes(), tg.Image(32), tg.Array("float32", (3,))):
        assert re.match(rf"{type(spec).__name__}\(.*\)$", repr(spec)), repr(spec)
        assert " at 0x" not in repr(spec)


def test_a_batch_is_a_dict_of_columns(tmp_path):
    """Unpacking gives names, as with any dict; `values()` are in the order of the fields."""
    batch = next(iter(tg.Loader(folder(tmp_path / "d"), batch_size=2, memory=tg.Budget("32MiB"))))
    first, second = batch
    assert (first, second) == ("image", "label")
    images, labels = batch.values()
    assert (len(images), labels.tolist()) == (2, [0, 0])


def test_arrays_in_a_folder_are_named_with_the_fix(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(tg.DataError, match=r"tg\.mapped"):
        tg.open(tmp_path)


def test_the_budget_calls_its_size_memory():
    assert tg.Budget(memory="64MiB").cap_bytes == 64 << 20
