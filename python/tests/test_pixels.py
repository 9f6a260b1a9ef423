"""Pixels next to Pillow's: whole images, crops, orientations, modes."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import simplejpeg
from conftest import ROUNDING, encoded, picture
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from test_found import tar

import tidegate as tg


def decoded(tmp_path, files, spec):
    """Encoded files through the loader, one batch."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, data in enumerate(files):
            info = tarfile.TarInfo(f"{i:04}.img")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    loader = tg.Loader(tmp_path, batch_size=len(files), memory=tg.Budget("256MiB"), fields={"img": spec})
    return next(iter(loader))["img"]


def difference(ours, pillow):
    far = np.abs(ours.astype(int) - np.asarray(pillow).astype(int))
    return far.max(), far.mean()


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {"quality": 80}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_lossless_containers_equal_pillow(tmp_path, form, mode, options):
    images = [picture(i, 50 + i, 41 + i) for i in range(6)]
    if mode == "I;16":
        images = [Image.fromarray(np.asarray(i.convert("L")).astype(np.uint16) * 3) for i in images]
    else:
        images = [i.convert(mode) for i in images]
    files = [encoded(i, form, **options) for i in images]
    for ours, data in zip(decoded(tmp_path, files, tg.Image(gray16="clip")), files, strict=True):
        assert difference(ours, Image.open(io.BytesIO(data)).convert("RGB"))[0] == 0


def test_16_bit_gray_is_never_made_white_without_a_word(tmp_path):
    wide = np.linspace(0, 65535, 48 * 32).astype("uint16").reshape(32, 48)
    file = encoded(Image.fromarray(wide), "PNG")
    scaled = decoded(tmp_path, [file], tg.Image(gray16="scale"))[0]
    np.testing.assert_array_equal(scaled, np.repeat(wide[:, :, None] >> 8, 3, axis=2))
    with pytest.raises(tg.SampleError, match='16-bit gray, which 8 bits cannot hold: say gray16="scale".*="clip"'):
        decoded(tmp_path, [file], tg.Image())
    with pytest.raises(tg.ConfigError, match="gray16='cut'"):
        tg.Image(gray16="cut")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_keep_their_values_at_every_depth(tmp_path, bits, palette):
    values = np.random.default_rng(bits).integers(0, 2**bits, (19, 21)).astype("uint8")
    mask = png_of(values, bits, palette)
    if palette:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), values)
    image = encoded(picture(0, 21, 19), "PNG")
    fields = {"png": tg.Image((19, 21)), "seg.png": tg.Mask("png")}
    np.testing.assert_array_equal(pairs(tmp_path, [(image, mask)], fields)["seg.png"][0], values)


@pytest.mark.parametrize("form", ["whole", "cropped"])
def test_a_png_with_a_flipped_bit_is_refused(tmp_path, form):
    rng = np.random.default_rng(7)
    whole = encoded(picture(0, 60, 50), "PNG")
    begin, end = whole.index(b"IDAT") + 4, whole.rindex(b"IEND") - 8
    flipped = []
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(begin, end)] ^= 1 << rng.integers(8)
        flipped.append(bytes(content))
    members = [(f"{i:02}.png", content) for i, content in enumerate([whole, *flipped])]
    path = tar(tmp_path / "a.tar", *members)
    image = tg.Image(16, crop="random") if form == "cropped" else tg.Image()
    options = {"on_error": "skip", "max_failure_rate": 1.0, "fields": {"png": image}}
    batches = list(tg.Loader(path, batch_size=61, memory=tg.Budget("64MiB"), **options))
    assert [id for batch in batches for id in batch.ids] == [0]


def test_a_png_keeps_nothing_of_what_is_not_its_image(tmp_path):
    image = picture(1, 20, 10)
    sink = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "x" * 100_000
    note = PngInfo()
    note.add_text("note", "y" * 100_000, zip=True)
    image.save(sink, "PNG", exif=exif, pnginfo=note, icc_profile=b"z" * 1000)
    cut = sink.getvalue()[: sink.getvalue().rindex(b"IEND") - 4]
    path = tar(tmp_path / "a.tar", ("0.png", sink.getvalue()), ("1.png", cut), ("2.png", cut[:-20]))
    loader = tg.Loader(path, batch_size=3, memory=tg.Budget("64MiB"), on_error="skip", max_failure_rate=1.0)
    (batch,) = list(loader)
    assert batch.ids.tolist() == [0, 1]
    for row in batch["png"]:
        np.testing.assert_array_equal(row, np.asarray(image))
    assert "the file ends within the image" in str(loader.report())


class Bits:
    """Bits of a WebP, the lowest first."""

    def __init__(self):
        self.done, self.value, self.count = bytearray(), 0, 0

    def put(self, value, count):
        self.value |= value << self.count
        self.count += count
        whole = self.count // 8
        self.done += (self.value & ((1 << 8 * whole) - 1)).to_bytes(whole, "little")
        self.value >>= 8 * whole
        self.count -= 8 * whole

    def bytes(self):
        """All bits, and zeros to an even number of bytes."""
        self.put(0, -self.count % 8)
        return bytes(self.done) + bytes(len(self.done) % 2)

    def one_symbol(self, symbol):
        self.put(0b101, 3)
        self.put(symbol, 8)

    def long_code(self):
        """Lengths 1 to 9 and twice 10, themselves written in a code of 4 bits at most."""
        lengths = {length: 3 if length in (1, 2, 9) else 4 for length in range(1, 10)} | {10: 2}
        order = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10]
        self.put(0, 1)
        self.put(len(order) - 4, 4)
        for symbol in order:
            self.put(lengths.get(symbol, 0), 3)
        codes, code = {}, 0
        for length in range(1, 8):
            for symbol in sorted(lengths):
                if lengths[symbol] == length:
                    codes[symbol] = int(f"{code:0{length}b}"[::-1], 2), length
                    code += 1
            code <<= 1
        self.put(0b0011, 4)
        self.put(9, 4)
        for length in [*range(1, 11), 10]:
            self.put(*codes[length])


def webp_of_groups(groups):
    """A lossless WebP of 8 × 8 pixels with this number of groups of codes."""
    bits = Bits()
    for value, count in [(0x2F, 8), (7, 14), (7, 14), (0, 4), (0, 1), (0, 1), (1, 1), (0, 3), (0, 1)]:
        bits.put(value, count)
    for symbol in ((groups - 1) & 255, (groups - 1) >> 8, 0, 0, 0):
        bits.one_symbol(symbol)
    for _ in range(5 * groups):
        bits.long_code()
    bits.put(0, 4 * 64)
    data = bits.bytes()
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(*chunks):
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_chunks_of_webp_that_lead_nowhere_take_no_time_and_no_stack(tmp_path):
    whole = encoded(picture(1, 8, 8), "WEBP", lossless=True)
    lossless = whole[20 : 20 + int.from_bytes(whole[16:20], "little")]
    depth = 40_000
    frames = b"".join(b"ANMF" + struct.pack("<I", 16 + 24 * (depth - 1 - i)) + bytes(16) for i in range(depth))
    nested = riff((b"VP8L", lossless), (b"ANMF", bytes(16) + frames))
    # An alpha channel whose transform image is of copies without bits, for a side of 2^24: the code
    # of greens has only the symbol 256, after 138 and 118 symbols of length zero.
    bits = Bits()
    for value, count in [(1, 1), (0, 2), (0, 3), (0, 1), (0, 1), (0, 4), (0, 3), (1, 3), (0, 3), (1, 3), (1, 1)]:
        bits.put(value, count)
    for value, count in [(0, 3), (1, 2), (1, 1), (127, 7), (1, 1), (107, 7), (0, 1)]:
        bits.put(value, count)
    for _ in range(4):
        bits.one_symbol(0)
    huge = riff((b"VP8L", lossless), (b"VP8X", bytes(4) + b"\xff" * 6), (b"ALPH", b"\x01" + bits.bytes() + bytes(40)))
    path = tar(tmp_path / "a.tar", *[(f"{i}.webp", file) for i, file in enumerate([whole, nested, huge])])
    loader = tg.Loader(path, batch_size=3, memory=tg.Budget("64MiB"), on_error="skip", max_failure_rate=1.0)
    assert 0 in next(iter(loader)).ids


def test_a_bound_of_pixels_makes_nothing_else_fail(tmp_path):
    """Neither other formats, nor a resize, nor a sample of two images, nor a mask."""

    def ids(folder, **options):
        loader = tg.Loader(folder, batch_size=2, on_error="skip", max_failure_rate=1.0, **options)
        return [i for batch in loader for i in batch.ids.tolist()]

    (tmp_path / "webp").mkdir()
    for i, side in enumerate([1000, 1000, 1000, 1500]):
        (tmp_path / "webp" / f"{i}.webp").write_bytes(encoded(picture(i, side, side), "WEBP"))
    spec = {"image": tg.Image(224, max_pixels=10**6)}
    assert ids(tmp_path / "webp", memory=tg.Budget("128MiB"), fields=spec) == [0, 1, 2]
    (tmp_path / "large").mkdir()
    for i, side in enumerate([1500, 1500, 2000]):
        data = encoded(picture(i, side, side), progressive=True)
        (tmp_path / "large" / f"{i}.jpg").write_bytes(data)
    spec = {"image": tg.Image(1024, max_pixels=1500 * 1500)}
    assert ids(tmp_path / "large", memory=tg.Budget("64MiB"), fields=spec, workers=1) == [0, 1]
    members = []
    for i in range(4):
        members += [
            (f"{i}.jpg", encoded(picture(i, 200, 200))),
            (f"{i}.full.png", encoded(picture(i, 900, 900), "PNG")),
        ]
    tar(tmp_path / "two.tar", *members)
    spec = {"jpg": tg.Image(max_pixels=250_000)}
    two = tmp_path / "two.tar"
    assert ids(two, memory=tg.Budget("64MiB"), columns=["jpg"], fields=spec) == [0, 1, 2, 3]
    members = []
    for i, side in enumerate([300, 300, 3000]):
        image = picture(i, side, side)
        members += [
            (f"{i}.jpg", encoded(image, progressive=True)),
            (f"{i}.seg.png", encoded(image.convert("L"), "PNG")),
        ]
    tar(tmp_path / "masks.tar", *members)
    spec = {"jpg": tg.Image(64, max_pixels=250_000), "seg.png": tg.Mask(of="jpg")}
    assert ids(tmp_path / "masks.tar", memory=tg.Budget("32MiB"), fields=spec) == [0, 1]


def test_an_image_that_was_changed_since_it_was_indexed_is_skipped(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i, 1500, 1500)))
    source = tg.open(tmp_path)
    old = (tmp_path / "2.jpg").read_bytes()
    new = encoded(picture(2, 1500, 1500), quality=40, progressive=True)
    assert len(new) < len(old)
    (tmp_path / "2.jpg").write_bytes(new.ljust(len(old), b"\0"))
    loader = tg.Loader(source, batch_size=2, memory=tg.Budget("64MiB"), fields={"image": tg.Image(64)}, on_error="skip")
    assert [i for batch in loader for i in batch.ids.tolist()] == [0, 1, 3]
    assert "tidegate index --force" in loader.report()["failures"][0]


def test_an_image_that_is_too_long_for_the_budget_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(Image.new("L", (70_000, 2)), "PNG"))
    for policy in ("raise", "skip"):
        with pytest.raises(tg.BudgetError, match=r"sample 0 .*x\.png.* is more than 65,535 pixels long.*max_pixels"):
            tg.Loader(tmp_path, batch_size=1, memory=tg.Budget("1MiB"), fields={"image": tg.Image(8)}, on_error=policy)


def test_a_wide_png_is_read(tmp_path):
    for mode, width in (("RGB", 30_000), ("RGBA", 20_000)):
        image = Image.new(mode, (width, 3), (9,) * len(mode))
        path = tar(tmp_path / f"{mode}.tar", ("0.png", encoded(image, "PNG")))
        (row,) = next(iter(tg.Loader(path, batch_size=1, memory=tg.Budget("64MiB"))))["png"]
        np.testing.assert_array_equal(row, np.asarray(image.convert("RGB")))


def test_a_small_webp_of_many_codes_is_refused_before_it_takes_memory(tmp_path):
    alpha = picture(2, 90, 70)
    alpha.putalpha(picture(3, 90, 70).convert("L"))
    images = [picture(1, 90, 70), alpha]
    files = [encoded(image, "WEBP", lossless=lossless) for image in images for lossless in (True, False)]
    files += [webp_of_groups(40), webp_of_groups(2000)]
    path = tar(tmp_path / "a.tar", *[(f"{i}.webp", file) for i, file in enumerate(files)])
    loader = tg.Loader(path, batch_size=6, memory=tg.Budget("64MiB"), on_error="skip", max_failure_rate=1.0)
    (batch,) = list(loader)
    assert batch.ids.tolist() == [0, 1, 2, 3, 4]
    for row, file in zip(batch["webp"], files, strict=False):
        np.testing.assert_array_equal(row, np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))
    assert "a WebP of 8 × 8 pixels whose codes take 40 MiB" in str(loader.report())


@pytest.mark.parametrize("mode", ["P", "L", "LA"])
def test_masks_keep_their_values_beside_alpha(tmp_path, mode):
    values = np.random.default_rng(5).integers(0, 256, (19, 21)).astype("uint8")
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette(bytes(range(256)) * 3)
    if mode == "LA":
        mask.putalpha(Image.fromarray(255 - values))
    sink = io.BytesIO()
    mask.save(sink, "PNG", **({} if mode == "LA" else {"transparency": 3}))
    image = encoded(picture(0, 21, 19), "PNG")
    fields = {"png": tg.Image((19, 21)), "seg.png": tg.Mask("png")}
    np.testing.assert_array_equal(pairs(tmp_path, [(image, sink.getvalue())], fields)["seg.png"][0], values)


def png_of(values, bits, palette):
    """Write a PNG of this bit depth, which Pillow does for few modes only."""
    import struct
    import zlib

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape
    rows = []
    for row in values:
        line = np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)
        rows.append(b"\0" + np.packbits(line).tobytes())
    colors = bytes(range(3 * 2**bits % 256)) * 3
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0))]
    if palette:
        parts.append(chunk(b"PLTE", (colors * 4 + bytes(768))[: 3 * 2**bits]))
    parts += [chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pairs(tmp_path, samples, fields):
    """Images and masks through the loader, one batch."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, members in enumerate(samples):
            for name, data in zip(fields, members, strict=True):
                info = tarfile.TarInfo(f"{i:04}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return next(iter(tg.Loader(tmp_path, batch_size=len(samples), memory=tg.Budget("256MiB"), fields=fields)))


def turned(image, form, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_exif_turns_images_of_all_formats_alike(tmp_path, form, options, orientation):
    file = turned(picture(0, 60, 41), form, orientation, **options)
    stored = Image.open(io.BytesIO(file))
    assert stored.size == (60, 41)
    shown = ImageOps.exif_transpose(stored).convert("RGB")
    assert difference(decoded(tmp_path, [file], tg.Image())[0], shown)[0] == 0
    assert difference(decoded(tmp_path, [file], tg.Image(exif=False))[0], stored.convert("RGB"))[0] == 0
    small = decoded(tmp_path, [file], tg.Image((20, 30), exif=False, layout="HWC"))[0]
    resized = stored.convert("RGB").resize((30, 20), Image.Resampling.BILINEAR)
    assert difference(small, resized)[0] <= (0 if form != "JPEG" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_follows_its_image(tmp_path, orientation):
    values = np.arange(41 * 60).reshape(41, 60).astype("uint8")
    image, mask = turned(picture(0, 60, 41), "JPEG", orientation), encoded(Image.fromarray(values), "PNG")
    as_stored = Image.open(io.BytesIO(turned(Image.fromarray(values), "PNG", orientation)))
    shown = np.asarray(ImageOps.exif_transpose(as_stored))
    drawn_on_shown = encoded(Image.fromarray(shown), "PNG")
    size = shown.shape
    plain = {"jpg": tg.Image(size), "seg.png": tg.Mask("jpg")}
    if orientation in (1, 5, 6, 7, 8):
        # The sides tell whether the mask was drawn on the stored or on the displayed image.
        for file in (mask, drawn_on_shown):
            np.testing.assert_array_equal(pairs(tmp_path, [(image, file)], plain)["seg.png"][0], shown)
    else:
        with pytest.raises(tg.SampleError, match=r"Exif turns its image \"jpg\".*tg.Mask\(exif=True\)"):
            pairs(tmp_path, [(image, mask)], plain)
    for exif, file in ((False, mask), (True, drawn_on_shown)):
        fields = {"jpg": tg.Image(size), "seg.png": tg.Mask("jpg", exif=exif)}
        np.testing.assert_array_equal(pairs(tmp_path, [(image, file)], fields)["seg.png"][0], shown)
    stored = {"jpg": tg.Image((41, 60), exif=False), "seg.png": tg.Mask("jpg")}
    np.testing.assert_array_equal(pairs(tmp_path, [(image, mask)], stored)["seg.png"][0], values)
    if orientation >= 5:
        with pytest.raises(tg.SampleError, match="leave exif=False out"):
            pairs(tmp_path, [(image, drawn_on_shown)], stored)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restart", [0, 3])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0", "optimize": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_jpegs_equal_pillow_bit_for_bit(tmp_path, mode, options, restart, progressive):
    sizes = [(1, 1), (2, 9), (5, 3), (16, 16), (17, 33), (60, 45), (131, 97)]
    options = options | {"progressive": progressive, "restart_marker_blocks": restart}
    files = [encoded(picture(i, *size, mode), quality=15 + 12 * i, **options) for i, size in enumerate(sizes)]
    for ours, data in zip(decoded(tmp_path, files, tg.Image()), files, strict=True):
        assert difference(ours, Image.open(io.BytesIO(data)).convert("RGB"))[0] == 0


def test_interlaced_png_equals_pillow(tmp_path):
    """Adam7, which Pillow reads and does not write: a 2-bit palette image, interlaced by hand."""
    rng = np.random.default_rng(7)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    values = rng.integers(0, 4, (21, 37))
    lines = b""
    for x, y, dx, dy in passes:
        for row in values[y::dy, x::dx]:
            bits = "".join(f"{v:02b}" for v in row)
            bits += "0" * (-len(bits) % 8)
            lines += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    palette = bytes(rng.integers(0, 256, 12).tolist())

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 37, 21, 2, 3, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + body
    (ours,) = decoded(tmp_path, [data], tg.Image())
    assert difference(ours, Image.open(io.BytesIO(data)).convert("RGB"))[0] == 0


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411"])
def test_all_samplings_equal_libjpeg_turbo(tmp_path, sampling):
    images = [picture(i, 1 + 23 * i % 80, 70 - 9 * i) for i in range(7)]
    files = [simplejpeg.encode_jpeg(np.asarray(i), 80, "RGB", sampling, fastdct=False) for i in images]
    for ours, data in zip(decoded(tmp_path, files, tg.Image()), files, strict=True):
        assert difference(ours, Image.open(io.BytesIO(data)))[0] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = picture(orientation, 64, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, quality=95, subsampling=0, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    (ours,) = decoded(tmp_path, [data], tg.Image())
    assert difference(ours, upright)[0] == 0
    width, height = upright.size
    (small,) = decoded(tmp_path, [data], tg.Image((height // 2, width // 2), layout="HWC"))
    resized = upright.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    assert difference(small, resized)[0] <= ROUNDING


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(48, 48), (300, 200), (7, 90), (1, 1)])
def test_resizing_is_pillows_antialiased_bilinear_bit_for_bit(tmp_path, form, size):
    files = [encoded(picture(i, 30 + 37 * i, 340 - 31 * i), form) for i in range(10)]
    spec = tg.Image(size, layout="HWC")
    for ours, data in zip(decoded(tmp_path, files, spec), files, strict=True):
        expected = Image.open(io.BytesIO(data)).resize(size[::-1], Image.Resampling.BILINEAR)
        assert difference(ours, expected)[0] <= ROUNDING


@pytest.mark.parametrize("size", [(20, 90), (60, 60), (110, 15), (140, 130)])
def test_the_order_of_both_passes_is_pillows(tmp_path, size):
    """Noise, which rounds otherwise in the other order, of many sizes to one."""
    rng = np.random.default_rng(size[0])
    sizes = rng.integers(10, 130, (60, 2))
    files = [encoded(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)), "PNG") for w, h in sizes]
    for ours, data in zip(decoded(tmp_path, files, tg.Image(size, layout="HWC")), files, strict=True):
        expected = Image.open(io.BytesIO(data)).resize(size[::-1], Image.Resampling.BILINEAR)
        assert difference(ours, expected)[0] <= ROUNDING


def test_a_crop_is_cut_and_resized_as_pillow_does(tmp_path):
    files = [encoded(picture(i, 90 + 7 * i, 120 - 5 * i), "JPEG") for i in range(10)]
    for ours, data in zip(decoded(tmp_path, files, tg.Image(48, crop="center", layout="HWC")), files, strict=True):
        image = Image.open(io.BytesIO(data))
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        expected = image.crop((x, y, x + side, y + side)).resize((48, 48), Image.Resampling.BILINEAR)
        assert difference(ours, expected)[0] <= ROUNDING


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "subsampling"), [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0), ("CMYK", 0)])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_draft_is_pillows_bit_for_bit(tmp_path, mode, subsampling, scale, progressive):
    sizes = [(16, 16), (24, 8), (64, 40), (131, 97), (240, 231), (77, 300), (97, 16)]
    options = {} if mode == "L" else {"subsampling": subsampling}
    for i, size in enumerate(sizes):
        data = encoded(picture(i, *size, mode), quality=25 + 11 * i, progressive=progressive, **options)
        target = (size[0] // scale, size[1] // scale)
        folder = tmp_path / str(i)
        folder.mkdir()
        (ours,) = decoded(folder, [data], tg.Image(target[::-1], layout="HWC", draft=True))
        pillow = Image.open(io.BytesIO(data))
        _, box = pillow.draft(mode, target)
        assert pillow.size == (-(-size[0] // scale), -(-size[1] // scale))
        expected = pillow.convert("RGB").resize(target, Image.Resampling.BILINEAR, box=box)
        assert difference(ours, expected)[0] <= ROUNDING, size


def test_drafts_are_near_to_what_they_stand_for(tmp_path):
    files = [encoded(picture(i, 400 + 31 * i, 500 - 17 * i), subsampling=i % 3) for i in range(8)]
    fields = {"crop": "random", "layout": "HWC", "flip": True}
    (tmp_path / "whole").mkdir()
    (tmp_path / "draft").mkdir()
    whole = decoded(tmp_path / "whole", files, tg.Image(40, **fields))
    draft = decoded(tmp_path / "draft", files, tg.Image(40, draft=True, **fields))
    assert (whole != draft).any()
    assert difference(whole, draft)[1] < 2


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_filled_as_libjpeg_turbo_does(tmp_path, progressive):
    rng = np.random.default_rng(3)
    for i in range(40):
        options = {"subsampling": i % 3, "restart_marker_blocks": 3 * (i % 2), "progressive": progressive}
        whole = encoded(picture(i, 60 + 4 * i, 150 - 3 * i), quality=20 + 2 * i, **options)
        cut = int(rng.integers(whole.index(b"\xff\xda") + 14, len(whole) - 2))
        data = whole[:cut] + (b"\xff\xd9" if i % 4 == 1 else b"")
        folder = tmp_path / str(i)
        folder.mkdir()
        spec = tg.Image(load_truncated=True, layout="HWC")
        (ours,) = decoded(folder, [data], spec)
        if progressive:
            # libjpeg-turbo smooths the known part of a progressive file. Tidegate does not, and is
            # nearer to it than gray is.
            expected = simplejpeg.decode_jpeg(whole)
            assert difference(ours, expected)[1] < difference(np.full_like(ours, 128), expected)[1]
        else:
            assert difference(ours, simplejpeg.decode_jpeg(data, strict=False))[0] == 0, options
        with pytest.raises(tg.SampleError, match=r"truncated|restart|scan"):
            decoded(folder, [data], tg.Image())


def test_damage_within_is_not_taken_for_the_end(tmp_path):
    """An interval that is too short, with whole ones behind it."""
    whole = encoded(picture(1, 90, 70), "JPEG", restart_marker_blocks=2)
    marker = whole.index(b"\xff\xd1")
    short = whole[: marker - 5] + whole[marker:]
    with pytest.raises(tg.SampleError, match="JPEG"):
        decoded(tmp_path, [short], tg.Image(load_truncated=True))


def test_filled_jpegs_are_counted(tmp_path):
    data = encoded(picture(1, 90, 70), "JPEG")
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(data[: len(data) // 2] if i % 2 else data)
    fields = {"image": tg.Image(32, load_truncated=True)}
    loader = tg.Loader(tmp_path, batch_size=4, memory=tg.Budget("64MiB"), fields=fields)
    assert len(next(iter(loader))["image"]) == 4
    assert "2 truncated JPEGs, filled with gray" in str(loader.report())


def test_checkpoints_change_no_pixel(tmp_path, folder):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        options = {"quality": 97, "subsampling": i % 3, "progressive": i == 5}
        (photos / f"{i}.jpg").write_bytes(encoded(picture(i, 240 + i, 200 - i), **options))

    def crops(source):
        fields = {"image": tg.Image(64, crop="random")}
        loader = tg.Loader(source, batch_size=12, memory=tg.Budget("64MiB"), shuffle=True, seed=1, fields=fields)
        return next(iter(loader))["image"].copy(), str(loader.report())

    plain, without = crops(tg.open(photos))
    entered, with_checkpoints = crops(tg.open(photos, checkpoints=True))
    assert (plain == entered).all()
    assert "12 samples with JPEG checkpoints" in with_checkpoints
    assert "checkpoints" not in without
    with pytest.raises(tg.ConfigError, match="less than 10 KB"):
        tg.open(folder, checkpoints=True)


def test_what_libjpeg_decodes_with_a_warning(tmp_path):
    """Bytes too many are passed over, as COCO has them; bytes too few are filled on request."""
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype("uint8")
    folder = tmp_path / "a"
    folder.mkdir()
    for name, options in (("base", {}), ("progressive", {"progressive": True})):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", **options)
        whole, scan = out.getvalue(), out.getvalue().index(b"\xff\xda")
        (folder / f"{name}-end.jpg").write_bytes(whole[:-2] + b"\x12\x34\x56" * 5 + whole[-2:])
        (folder / f"{name}-scan.jpg").write_bytes(whole[:scan] + b"\x01\x02\x03" + whole[scan:])
        if name == "base":
            (folder / "base-few.jpg").write_bytes(whole[:-300] + whole[-2:])
    source = tg.open(tmp_path)
    loader = tg.Loader(
        source, batch_size=5, memory="48MiB", fields={"image": tg.Image(load_truncated=True)}, columns=["image"]
    )
    (batch,) = loader
    for i in range(5):
        theirs = np.asarray(Image.open(tmp_path / source.key(i)).convert("RGB"))
        np.testing.assert_array_equal(batch["image"][i], theirs, source.key(i))
    assert loader.report()["stages"]["filled"] == 1
    few = next(i for i in range(5) if source.key(i).endswith("few.jpg"))
    with pytest.raises(tg.SampleError, match=r'load_truncated=True fills the rest; on_error="skip" leaves'):
        list(tg.Loader(source.select([few]), batch_size=1, memory="48MiB", fields={"image": tg.Image()}))


def test_what_is_left_out_depends_on_neither_workers_nor_budget(tmp_path):
    """Whole images of many sizes: what does not fit is an error, and `max_pixels` leaves out."""
    for i in range(24):
        side = [300, 300, 700, 1000, 1500, 2200][i % 6]
        (tmp_path / f"{i:02}.jpg").write_bytes(encoded(picture(i, side, side // 2), progressive=i % 4 == 0))

    def epoch(workers, memory, policy="skip", max_pixels=None):
        loader = tg.Loader(
            tmp_path, batch_size=4, memory=tg.Budget(memory), fields={"image": tg.Image(max_pixels=max_pixels)},
            on_error=policy, max_failure_rate=1.0, shuffle=True, seed=1, workers=workers,
        )  # fmt: skip
        ids = []
        for batch in loader:
            ids += batch.ids.tolist()
            # The next may need all there is.
            del batch
        return ids

    whole = epoch(2, "256MiB")
    assert sorted(whole) == list(range(24))
    outcomes = set()
    for workers, memory in [(1, "12MiB"), (8, "12MiB"), (1, "24MiB"), (8, "32MiB"), (4, "96MiB")]:
        try:
            outcomes.add(tuple(epoch(workers, memory)))
        except tg.BudgetError as refused:
            outcomes.add("max_pixels" in str(refused))
    assert outcomes == {tuple(whole), True}
    most = 1000 * 500
    smaller = [i for i in whole if i % 6 < 4]
    for workers, memory in [(1, "16MiB"), (8, "24MiB"), (4, "96MiB")]:
        assert epoch(workers, memory, max_pixels=most) == smaller
    # A replacement is drawn by the seed; with room for every image it is the same everywhere.
    replaced = epoch(1, "64MiB", "replace", most)
    assert len(replaced) == 24
    assert epoch(8, "128MiB", "replace", most) == replaced
    with pytest.raises(tg.SampleError, match=r"2200 × 1100 pixels, and max_pixels is 500000; on_error=\"skip\""):
        epoch(1, "64MiB", "raise", most)
