"""Thousands of JPEGs compared with libjpeg-turbo: equal, and only errors for damaged ones.

`TIDEGATE_FUZZ_SECONDS` says how long; 600 without it.
"""

import io
import os
import time
import warnings

import numpy as np
import pytest
import simplejpeg
from conftest import ROUNDING, encoded
from PIL import Image, ImageFile, UnidentifiedImageError

import tidegate as tg

FILES = 200
PROGRESSIVE = b"\xff\xc2"


def image(rng):
    """Noise, edges and slopes of a random size."""
    width, height = (int(rng.integers(1, 1 + rng.choice([20, 64, 300]))) for _ in range(2))
    slope = np.add.outer(np.linspace(0, 255, height), np.linspace(0, 255, width))[..., None] / 2
    noise = rng.normal(0, rng.choice([1, 10, 80]), (height, width, 3))
    pixels = slope * rng.random(3) + noise
    pixels[:, : width // 3] += rng.integers(-200, 200)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(rng.choice(["RGB", "RGB", "L", "CMYK"]))


def jpeg(rng):
    picture = image(rng)
    if picture.mode == "RGB" and rng.random() < 0.25:
        # What Pillow does not write.
        sampling = str(rng.choice(["440", "411", "422"]))
        return simplejpeg.encode_jpeg(np.asarray(picture), int(rng.integers(1, 101)), "RGB", sampling, fastdct=False)
    # Pillow writes progressive files in one block, which noise at full quality does not fit.
    ImageFile.MAXBLOCK = 1 << 22
    restart = {0: {}, 1: {"restart_marker_blocks": int(rng.integers(1, 9))}, 2: {"restart_marker_rows": 1}}
    return encoded(
        picture,
        quality=int(rng.integers(1, 101)),
        subsampling=int(rng.integers(0, 3)),
        optimize=bool(rng.integers(2)),
        progressive=bool(rng.random() < 0.25),
        **restart[int(rng.integers(3))],
    )


def damaged(data, rng):
    """The same with bytes changed, left out, put in, or cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(2, max(3, len(data))))
        match rng.integers(4):
            case 0:
                data[at:] = b""
            case 1:
                del data[at : at + int(rng.integers(1, 9))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                data[at : at + 1] = rng.bytes(1)
    return bytes(data)


def pillows(data, draft=None):
    """What Pillow decodes, or drafts and resizes; None where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data))
            if draft is None:
                return np.asarray(opened.convert("RGB"))
            box = (opened.draft(opened.mode, draft) or (None, None))[1]
            return np.asarray(opened.convert("RGB").resize(draft, Image.Resampling.BILINEAR, box=box))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def compare(batch, files):
    """Count images equal to Pillow's, and damaged ones that differ; Pillow refuses the rest."""
    agreed = differing = 0
    for id, ours in zip(batch.ids.tolist(), batch["image"], strict=True):
        theirs = pillows(files[id])
        # libjpeg-turbo smooths progressive files that lack their last scans; ours does not.
        if theirs is None or (id % 2 == 0 and PROGRESSIVE in files[id]):
            continue
        same = np.array_equal(ours, theirs)
        assert same or id % 2 == 0, f"{id:04}.jpg of this round is whole, and differs"
        agreed, differing = agreed + same, differing + (not same)
    return agreed, differing


def drafts(folder, files):
    """Whole images, drafted and resized to 16 x 16 pixels, are those of Pillow."""
    fields = {"image": tg.Image(16, layout="HWC", draft=True, load_truncated=True)}
    policy = {"on_error": "skip", "max_failure_rate": 1.0}
    loader = tg.Loader(folder, batch_size=50, memory=tg.Budget("512MiB"), fields=fields, **policy)
    for batch in loader:
        for id, ours in zip(batch.ids.tolist(), batch["image"], strict=True):
            if id % 2:
                far = np.abs(ours.astype(int) - pillows(files[id], (16, 16))).max()
                assert far <= ROUNDING, f"the draft of {id:04}.jpg differs by {far}"


@pytest.mark.slow
def test_whole_files_are_the_same_and_damaged_ones_no_panic(tmp_path):
    rng = np.random.default_rng(20261121)
    ends = time.monotonic() + float(os.environ.get("TIDEGATE_FUZZ_SECONDS", 600))
    rounds = agreed = differing = refused = 0
    while time.monotonic() < ends or not rounds:
        folder = tmp_path / f"{rounds}"
        folder.mkdir()
        whole = [jpeg(rng) for _ in range(FILES)]
        files = [data if i % 2 else damaged(data, rng) for i, data in enumerate(whole)]
        for i, data in enumerate(files):
            (folder / f"{i:04}.jpg").write_bytes(data)
        loader = tg.Loader(
            folder,
            # A damaged header may ask for as much as the budget allows.
            batch_size=1,
            memory=tg.Budget("512MiB"),
            fields={"image": tg.Image()},
            on_error="skip",
            max_failure_rate=1.0,
        )
        seen = set()
        for batch in loader:
            agreed, differing = np.add((agreed, differing), compare(batch, files))
            seen |= set(batch.ids.tolist())
        refused += FILES - len(seen)
        assert set(range(1, FILES, 2)) <= seen, f"round {rounds}: a whole file was refused"
        drafts(folder, files)
        for path in folder.iterdir():
            path.unlink()
        rounds += 1
    print(f"{rounds * FILES} files: {agreed} the same, {differing} damaged ones not, {refused} refused")
    assert agreed > rounds * FILES / 2
    # Coefficients that no encoder writes overflow, each decoder in its way.
    assert differing < agreed / 500
