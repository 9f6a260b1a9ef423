"""Duplicates from Python: similar texts, plain images, and which samples to keep or draw."""

import numpy as np
import pytest
from conftest import encoded
from PIL import Image

import tidegate as tg
from tidegate import samplers


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """300 documents of random words; every tenth has a copy with one other word; two are empty."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(5000)]
    texts, copies = [], []
    for i in range(300):
        text = rng.choice(words, 200).tolist()
        texts.append(" ".join(text))
        if i % 10 == 0:
            text[100] = "changed"
            copies.append((len(texts), len(texts) - 1))
            texts.append(" ".join(text).upper() + "!")
    texts += ["...", "..."]
    copies.append((len(texts) - 1, len(texts) - 2))
    path = tmp_path_factory.mktemp("documents") / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": list(range(len(texts)))}), path)
    return str(path), texts, copies


def test_text_that_is_nearly_the_same(documents):
    url, texts, copies = documents
    found = tg.dedup(url, by="text", memory="64MiB")
    assert list(zip(found.index.tolist(), found.of.tolist(), strict=True)) == copies
    assert (found.similarity[:-1] > 0.85).all()
    assert found["clusters"] == len(copies)
    assert found["crowded"] == 0
    assert len(found.keep) == len(texts) - len(copies)
    kept = tg.open(url).select(found.keep)
    assert len(kept) == len(found.keep)
    assert len(tg.dedup(kept, by="text", memory="64MiB").index) == 0
    # Every content is drawn as often: a pair counts as one.
    assert found.weights.sum() == pytest.approx(len(texts) - len(copies))
    loader = tg.Loader(url, batch_size=50, memory="64MiB", fields=["n"], sampler=samplers.weighted(found.weights))
    assert sum(batch.rows for batch in loader) == len(texts)
    # Far below, nothing more is found; above the similarity of the copies, nothing but the empty.
    assert len(tg.dedup(url, by="text", memory="64MiB", threshold=0.5).index) == len(copies)
    assert found.index[-1:] == tg.dedup(url, by="text", memory="64MiB", threshold=0.999).index
    assert len(tg.dedup(url, by="bytes", field="text", memory="64MiB").index) == 1


def test_pictures_that_are_alike_or_have_nothing_to_be_known_by(tmp_path):
    def detailed(seed):
        small = np.random.default_rng(seed).integers(0, 256, (24, 28, 3), np.uint8)
        return Image.fromarray(small).resize((480, 400), Image.Resampling.BICUBIC)

    for i in range(30):
        (tmp_path / f"{i:03}.jpg").write_bytes(encoded(detailed(i), quality=92))
    (tmp_path / "100.jpg").write_bytes(encoded(detailed(4).resize((300, 250)), quality=70))
    white, gray = (Image.new("RGB", (40, 40), color) for color in ("white", "gray"))
    for i, blank in enumerate([white, gray, white]):
        (tmp_path / f"20{i}.png").write_bytes(encoded(blank, "PNG"))
    found = tg.dedup(tmp_path, by="image", memory="64MiB")
    assert list(zip(found.index.tolist(), found.of.tolist(), strict=True)) == [(30, 4), (33, 31)]


def test_rows_are_the_same_if_all_their_fields_are(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = {"a": [1, 1, 2, 1, None, None], "b": ["x", "x", "x", "y", "x", "x"], "c": ["u"] * 6}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    url = str(tmp_path / "t.parquet")
    found = tg.dedup(url, memory="64MiB")
    assert found["field"] == "all fields"
    assert list(zip(found.index.tolist(), found.of.tolist(), strict=True)) == [(1, 0), (5, 4)]
    with pytest.raises(tg.ConfigError, match=r"several fields hold text: say which one: b \(text\), c \(text\)"):
        tg.dedup(url, by="text", memory="64MiB")
    nulls = pyarrow.table({"t": [None, "one text", None, "one text"]})
    pyarrow.parquet.write_table(nulls, tmp_path / "n.parquet")
    assert tg.dedup(str(tmp_path / "n.parquet"), by="text", memory="64MiB").index.tolist() == [3]


def test_very_many_of_the_same(tmp_path):
    data = tg.synthetic(10, 64).select([i % 10 for i in range(100_000)])
    found = tg.dedup(data, memory="64MiB", spill=tmp_path)
    assert len(found.index) == 99_990
    assert (found.of == found.index % 10).all()
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told(documents):
    url, _, _ = documents
    with pytest.raises(tg.ConfigError, match="by=.words.: expected .bytes."):
        tg.dedup(url, by="words", memory="64MiB")
    with pytest.raises(tg.ConfigError, match="no field holds images"):
        tg.dedup(url, by="image", memory="64MiB")
    with pytest.raises(tg.ConfigError, match="threshold=2.0: expected a number from 0 to 1"):
        tg.dedup(url, by="text", threshold=2.0, memory="64MiB")
    with pytest.raises(tg.DataError, match="/nowhere"):
        tg.dedup(url, by="text", spill="/nowhere", memory="64MiB")

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tg.dedup(url, by="text", memory="64MiB", progress=stop)
