"""Folders of images: the samples of torchvision's ImageFolder, pixel by pixel, or a word.

Flow: images -> class folders -> `ImageFolder` and `tg.open`, `exif=False` as torchvision decodes.
Memory: a few small images a dataset.
"""

import os
import warnings

import numpy as np
import PIL.Image
import pytest
import torchvision.datasets
from compare import ours, refused, same, warned
from made import encoded, picture, stored

import tidegate as tg

STORED = {"image": tg.Image(exif=False)}


def theirs(folder, **options):
    """Return the samples of ImageFolder, with their paths."""
    data = torchvision.datasets.ImageFolder(str(folder), **options)
    names = [os.path.relpath(path, folder) for path, _ in data.samples]
    return [{"__key__": name, "image": image, "label": label} for name, (image, label) in zip(names, data, strict=True)]


# {dataset: {file: options of Pillow}}.
SAME = {
    "two_classes": {"cat/a.jpg": {}, "cat/b.jpg": {"quality": 30}, "dog/c.jpg": {}},
    "nested_folders": {"cat/a.png": {}, "cat/x/y/b.png": {}, "cat/x/a.png": {}, "cat/Z.png": {}, "dog/x/a.png": {}},
    "upper_case_extensions": {"cat/a.JPG": {}, "cat/b.JPEG": {}, "cat/c.Png": {}, "dog/d.WEBP": {"lossless": True}},
    "mixed_formats": {
        "cat/a.jpg": {},
        "cat/b.png": {},
        "dog/c.webp": {"lossless": True},
        "dog/d.webp": {"quality": 70},
        "dog/e.jpeg": {},
    },
    "progressive_and_subsampled": {
        "c/a.jpg": {"progressive": True},
        "c/b.jpg": {"subsampling": 0},
        "c/c.jpg": {"subsampling": 1},
        "c/d.jpg": {"subsampling": 2},
    },
    "classes_in_the_order_of_their_bytes": {f"{name}/a.png": {} for name in ("10", "9", "B", "a", "é", "_")},
    "names_with_blanks_and_signs": {"a b/c #1.png": {}, "a b/c+[2].png": {}, "a b/c%20.png": {}, "x.y/z.w.png": {}},
}


@pytest.mark.parametrize("name", SAME)
def test_the_samples_are_those_of_image_folder(tmp_path, name):
    for seed, (file, options) in enumerate(SAME[name].items()):
        stored(tmp_path / "data" / file, picture(seed), **options)
    read = ours(tmp_path / "data", STORED, keys=True)
    same(in_order(read), in_order(theirs(tmp_path / "data")))
    assert [row["label"] for row in read] == [row["label"] for row in theirs(tmp_path / "data")]


def in_order(rows):
    """Sort by path: within a class the readers have orders of their own."""
    return sorted(rows, key=lambda row: row["__key__"])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_pngs_of_every_mode(tmp_path, mode):
    stored(tmp_path / "data/c/a.png", picture(1, mode))
    same(ours(tmp_path / "data", STORED, keys=True), theirs(tmp_path / "data"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_every_mode(tmp_path, mode):
    stored(tmp_path / "data/c/a.jpg", picture(1, mode))
    same(ours(tmp_path / "data", STORED, keys=True), theirs(tmp_path / "data"))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_is_left_alone_on_request(tmp_path, name, turn):
    exif = PIL.Image.Exif()
    exif[0x112] = turn
    stored(tmp_path / "data/c" / name, picture(turn), exif=exif)
    same(ours(tmp_path / "data", STORED, keys=True), theirs(tmp_path / "data"))


def test_16_bit_gray_is_refused(tmp_path):
    gray = np.arange(80, dtype=np.uint16).reshape(8, 10) * 800
    stored(tmp_path / "data/c/a.png", PIL.Image.fromarray(gray))
    assert len(theirs(tmp_path / "data")) == 1
    refused(tmp_path / "data", "16-bit gray, which 8 bits cannot hold")
    clipped = {"image": tg.Image(exif=False, gray16="clip")}
    same(ours(tmp_path / "data", clipped, keys=True), theirs(tmp_path / "data"))


@pytest.mark.parametrize("end", ["bmp", "gif", "tif", "ppm"])
def test_images_of_other_kinds_are_said(tmp_path, end):
    stored(tmp_path / "data/cat/a.jpg", picture(1))
    stored(tmp_path / f"data/cat/b.{end}", picture(2))
    source = warned(tmp_path / "data", rf"1 images of a kind that is not read \(\.{end}\), such as cat/b\.{end}")
    rows = theirs(tmp_path / "data")
    same(ours(source, STORED, keys=True), [row for row in rows if row["__key__"].endswith("jpg")])


def test_an_empty_class_counts_and_is_said(tmp_path):
    for name in ("ant", "cow"):
        stored(tmp_path / "data" / name / "a.png", picture(1))
    (tmp_path / "data/bee").mkdir()
    source = warned(tmp_path / "data", "1 classes without an image that can be read, such as bee")
    same(ours(source, STORED, keys=True), theirs(tmp_path / "data", allow_empty=True))


def test_links_to_files_and_folders(tmp_path):
    elsewhere = stored(tmp_path / "elsewhere/a.png", picture(1))
    stored(tmp_path / "data/cat/b.png", picture(2))
    (tmp_path / "data/cat/c.png").symlink_to(elsewhere)
    (tmp_path / "data/cat/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    same(in_order(ours(tmp_path / "data", STORED, keys=True)), in_order(theirs(tmp_path / "data")))


def test_a_link_that_leads_nowhere_is_said(tmp_path):
    stored(tmp_path / "data/cat/a.png", picture(1))
    (tmp_path / "data/cat/b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError):
        theirs(tmp_path / "data")
    source = warned(tmp_path / "data", "1 links that lead nowhere, such as cat/b.png")
    same(ours(source, STORED), [{"image": picture(1), "label": 0}])


def test_a_folder_without_classes_has_no_labels(tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        stored(tmp_path / "data" / name, picture(i))
    with pytest.raises(FileNotFoundError, match="Couldn't find any class folder"):
        theirs(tmp_path / "data")
    same(ours(tmp_path / "data", STORED), [{"image": picture(0)}, {"image": picture(1)}])


def test_a_picture_beside_the_classes_is_said(tmp_path):
    stored(tmp_path / "data/cat/a.png", picture(1))
    stored(tmp_path / "data/b.png", picture(2))
    source = warned(tmp_path / "data", "1 images beside the folders of the classes, such as b.png")
    same(ours(source, STORED, keys=True), theirs(tmp_path / "data"))


@pytest.mark.parametrize("hidden", [".cat/a.png", "cat/.a.png"])
def test_hidden_files_are_counted(tmp_path, hidden):
    stored(tmp_path / "data/dog/b.png", picture(1))
    stored(tmp_path / "data" / hidden, picture(2))
    assert len(theirs(tmp_path / "data")) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.DataWarning)
        left_out = tg.open(tmp_path / "data").left_out
    (words,) = [words for words in left_out if "hidden" in words]
    # Of a hidden folder its name is given.
    assert words.startswith("1 hidden files and folders, such as ")
    assert hidden.startswith(words.rsplit(" ", 1)[1])


def test_what_a_picture_is_says_its_content(tmp_path):
    (tmp_path / "data/c").mkdir(parents=True)
    (tmp_path / "data/c/a.jpg").write_bytes(encoded(picture(1), "PNG"))
    (tmp_path / "data/c/b.png").write_bytes(encoded(picture(2)))
    (tmp_path / "data/c/c.jpg").write_bytes(encoded(picture(3), "GIF"))
    rows = theirs(tmp_path / "data")
    same(ours(tmp_path / "data", STORED, {2: "neither JPEG, PNG nor WebP"}, keys=True), rows[:2])


def test_a_picture_cut_short_fails_alone(tmp_path):
    for i, name in enumerate(("a.jpg", "b.jpg")):
        stored(tmp_path / "data/c" / name, picture(i, width=200, height=200))
    os.truncate(tmp_path / "data/c/a.jpg", 4000)
    with pytest.raises(OSError, match="truncated"):
        theirs(tmp_path / "data")
    (row,) = ours(tmp_path / "data", STORED, {0: "truncated JPEG"})
    assert np.array_equal(row["image"], np.asarray(PIL.Image.open(tmp_path / "data/c/b.jpg")))
