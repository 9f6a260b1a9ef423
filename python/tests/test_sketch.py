"""Sketches from Python: whole arrays, bytes of Apache DataSketches both ways, river's alarms."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from golden.make_sketches import COUNTS, RANKS, stream

import tidegate as tg
from tidegate import sketch

GOLDEN = Path(__file__).parent / "golden"
TRUTH = json.loads((GOLDEN / "sketches.json").read_text())


def stored(name, n):
    return (GOLDEN / "sketches" / f"{name}-{n}.bin").read_bytes()


def numbers(n):
    return np.arange(n) * 7919


def of(made, values):
    made.update(values)
    return made


def texts(n):
    return [f"word {value}" for value in numbers(n)]


@pytest.mark.parametrize("n", COUNTS)
def test_reads_what_the_cpp_core_wrote(n):
    truth = TRUTH["estimates"][str(n)]
    for name in ("hll4", "hll6", "hll8", "text"):
        assert sketch.Hll.from_bytes(stored(name, n)).estimate()[0] == pytest.approx(truth[name], rel=1e-12)
    assert sketch.Theta.from_bytes(stored("theta", n)).estimate()[0] == pytest.approx(truth["theta"], rel=1e-12)
    assert sketch.Cpc.from_bytes(stored("cpc", n)).estimate()[0] == pytest.approx(truth["cpc"], rel=1e-12)
    for name, kind in (("kll", sketch.Kll), ("req", sketch.Req)):
        read = kind.from_bytes(stored(name, n))
        assert read.count == n
        if n:
            assert read.quantiles(RANKS).tolist() == truth[name]
    top = sketch.FrequentItems.from_bytes(stored("items", n), texts=True).top()
    assert sorted(top) == [tuple(row) for row in truth["items"]]


@pytest.mark.parametrize("n", COUNTS)
def test_writes_the_bytes_of_the_cpp_core(n):
    """Theta, CPC and HLL are equal byte for byte, of numbers and of texts, in any parts."""
    values = numbers(n)
    theta = of(sketch.Theta(), values).to_bytes()
    # Of an empty one the seed's hash, bytes 6 and 7, is not written.
    assert theta == stored("theta", n) if n else theta[:6] == stored("theta", n)[:6]
    assert of(sketch.Cpc(), values).to_bytes() == stored("cpc", n)
    cut = of(of(sketch.Hll(), values[: n // 3]), values[n // 3 :].astype(np.uint64))
    assert cut.to_bytes() == stored("hll8", n)
    assert of(sketch.Hll(), texts(n)).to_bytes() == stored("text", n)


def test_the_cpp_core_reads_what_is_written():
    import datasketches as ds

    for n in COUNTS:
        values = numbers(n)
        hll = of(sketch.Hll(), values)
        assert ds.hll_sketch.deserialize(hll.to_bytes()).get_estimate() == pytest.approx(hll.estimate()[0])
        theta = of(sketch.Theta(), values)
        assert ds.compact_theta_sketch.deserialize(theta.to_bytes()).get_estimate() == theta.estimate()[0]
        cpc = of(sketch.Cpc(), values)
        assert ds.cpc_sketch.deserialize(cpc.to_bytes()).get_estimate() == pytest.approx(cpc.estimate()[0])
        for ours, theirs in ((sketch.Kll(), ds.kll_floats_sketch), (sketch.Req(), ds.req_floats_sketch)):
            read = theirs.deserialize(of(ours, values).to_bytes())
            assert read.n == n
            if n:
                assert [read.get_quantile(r, True) for r in RANKS] == ours.quantiles(RANKS).tolist()
        items = of(sketch.FrequentItems(), [f"word {i % 7}" for i in range(n)])
        read = ds.frequent_strings_sketch.deserialize(items.to_bytes())
        assert sorted(row[:1] + row[2:4] for row in read.get_frequent_items(ds.NO_FALSE_NEGATIVES)) == sorted(
            items.top()
        )


@pytest.mark.parametrize("name", TRUTH["alarms"])
def test_alarms_are_rivers(name):
    truth = TRUTH["alarms"][name]
    bits, reals = stream(truth["parts"])
    assert sketch.Adwin().update(bits).tolist() == truth["adwin_bits"]
    assert sketch.Adwin(0.02).update(reals).tolist() == truth["adwin_reals"]
    assert sketch.PageHinkley(threshold=10).update(reals).tolist() == truth["page_hinkley"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "uint16", "bool"])
def test_moments_of_any_numbers(dtype):
    values = (np.random.default_rng(0).normal(10, 30, (50, 70)) % 100 // 1 % (2 if dtype == "bool" else 100)).astype(
        dtype
    )
    moments = of(sketch.Moments(shape=True), values)
    wide = values.astype(np.float64)
    assert (moments.count, moments.min, moments.max) == (3500, wide.min(), wide.max())
    assert moments.mean == pytest.approx(wide.mean(), rel=1e-13)
    assert moments.var(1) == pytest.approx(wide.var(ddof=1), rel=1e-11)
    z = (wide - wide.mean()) / wide.std()
    assert moments.skewness == pytest.approx((z**3).mean(), abs=1e-9)
    assert moments.kurtosis == pytest.approx((z**4).mean() - 3, abs=1e-9)
    again = sketch.Moments.from_bytes(moments.to_bytes())
    assert again.to_bytes() == moments.to_bytes()
    moments.merge(again)
    assert moments.count == 7000
    assert np.isnan(of(sketch.Moments(), []).mean)


def test_arrow_arrays_are_read():
    import pyarrow as pa

    words = texts(1000)
    plain = of(sketch.Hll(), words).to_bytes()
    kinds = [pa.string(), pa.large_string(), pa.binary()]
    for array in [pa.array(words, kind) for kind in kinds] + [pa.chunked_array([words[:300], words[300:]])]:
        assert of(sketch.Hll(), array).to_bytes() == plain
    assert of(sketch.Hll(), pa.array(["x", *words])[1:]).to_bytes() == plain
    assert of(sketch.Hll(), np.array(words)).to_bytes() == plain
    assert of(sketch.Hll(), pa.array([], pa.string())).estimate()[0] == 0
    ints = pa.array(numbers(500))
    assert of(sketch.Theta(), ints).to_bytes() == of(sketch.Theta(), numbers(500)).to_bytes()
    for nulls in (pa.array([1.0, None]), pa.array([1, None]), pa.array(["a", None])):
        with pytest.raises(tg.ConfigError, match="an Arrow array with 1 nulls"):
            of(sketch.Hll(), nulls)
    assert of(sketch.CountMin(), pa.array(["a", "b"], pa.large_binary())[0:0]).total == 0
    assert sketch.minhash(pa.array(["a b c d e f"])).shape == (1, 112)


def test_counts():
    counts = of(sketch.CountMin(0.001, 0.01), ["a", "b", "a"])
    counts.update(["b", "c"], [10, 1])
    assert counts.estimate(["a", "b", "c", "d"]).tolist() == [2, 11, 1, 0]
    assert sketch.CountMin.from_bytes(counts.to_bytes()).total == 14
    items = of(sketch.FrequentItems(), [3, 3, 1, -5])
    items.merge(of(sketch.FrequentItems(), [3]))
    items.merge(sketch.FrequentItems())
    assert items.top() == [(3, 3, 3), (-5, 1, 1), (1, 1, 1)]
    assert sketch.FrequentItems.from_bytes(items.to_bytes()).top() == items.top()
    one, other = of(sketch.Theta(), numbers(100)), of(sketch.Theta(), numbers(150)[50:])
    assert [t.estimate()[0] for t in (one.union(other), one.intersection(other), one.difference(one))] == [150, 50, 0]
    one.merge(one)
    assert one.estimate()[0] == 100


def test_streams():
    sample = sketch.Reservoir(10, seed=1)
    sample.update(np.arange(1000))
    assert sample.seen == 1000
    assert len(set(sample.ids.tolist())) == 10
    assert sample.skip > 0
    again = sketch.Reservoir.from_bytes(sample.to_bytes())
    sample.update(np.arange(1000, 5000))
    again.pass_over(min(again.skip, 5))
    weighted = sketch.Reservoir(2)
    weighted.update([7, 8, 9], [0.0, 1.0, 2.0])
    assert sorted(weighted.ids) == [8, 9]
    assert sketch.Window(2, "mean").update([1, 3, 5]).tolist() == [1, 2, 4]
    count = of(sketch.EventCount(100, 0.1), np.ones(1000))
    assert abs(count.estimate - 100) <= 10
    metric = sketch.SendOnDelta(0.5)
    assert metric.update([0, 0.4, 1]).tolist() == [True, False, True]
    assert metric.drain() == [(0, 0.0), (2, 1.0)]
    seen = sketch.Unchanged(10)
    assert [seen.changed(1, b"x"), seen.changed(1, b"x"), seen.changed(1, b"y")] == [True, False, True]
    rows = np.random.default_rng(0).normal(size=(4000, 3))
    model = sketch.Online(3, "class", rate=1.0)
    for part in np.split(rows, 250):
        model.learn(part, part @ [1, -2, 0.5] > 0)
    assert ((model.predict(rows) > 0.5) == (rows @ [1, -2, 0.5] > 0)).mean() > 0.95
    assert sketch.Online.from_bytes(model.to_bytes()).weights.tolist() == model.weights.tolist()


def test_pickles():
    values = np.arange(1000) % 7
    for made in (sketch.Hll(), sketch.Cpc(), sketch.CountMin(), sketch.Moments(), sketch.Kll(), sketch.Adwin()):
        made.update(values)
        assert pickle.loads(pickle.dumps(made)).to_bytes() == made.to_bytes()
    assert copy.deepcopy(of(sketch.Reservoir(5), values)).ids.tolist() == of(sketch.Reservoir(5), values).ids.tolist()


def test_neighbours():
    text = "it was the best of times it was the worst of times it was the age of wisdom"
    near = text.replace("worst", "very worst")
    signatures = sketch.minhash([text, near, "something else entirely, with other words in it"], n=2)
    assert signatures.dtype == np.uint32
    assert signatures.shape == (3, 112)
    assert np.array_equal(signatures[0], sketch.minhash(sketch.shingles(text, 2)))
    assert sketch.similarity(signatures[0], signatures[1]) > 0.6 > 0.1 > sketch.similarity(signatures[0], signatures[2])
    lsh = sketch.Lsh(bands=56, rows=2)
    lsh.add([10, 11, 12], signatures)
    assert [c.tolist() for c in lsh.candidates(signatures[:1])] == [[10, 11]]
    vectors = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    for index in (sketch.Lsh.angles(16), sketch.Lsh.distances(16, 4.0)):
        index.add(np.arange(200), vectors)
        found = index.candidates(vectors + np.float32(1e-4))
        assert np.mean([i in ids for i, ids in enumerate(found)]) > 0.99
    points = sketch.Points(vectors[:, :3])
    ids, distances = points.nearest(vectors[:5, :3], k=2)
    assert ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (distances[:, 0] == 0).all()
    assert distances.shape == (5, 2)


def test_synthetic_rows_lie_between_neighbours():
    rows = np.random.default_rng(0).normal(size=(200, 3))
    made = sketch.smote(rows, 1000, k=3, seed=1)
    assert made.shape == (1000, 3)
    assert np.array_equal(made[:10], sketch.smote(rows, 10, k=3, seed=1))
    assert not np.array_equal(made, sketch.smote(rows, 1000, k=3, seed=2))
    # Nowhere further from a row than half of the way to a third neighbour.
    _, third = sketch.Points(rows).nearest(rows, k=4)
    _, off = sketch.Points(rows).nearest(made)
    assert off.max() <= third[:, 3].max() / 2 + 1e-9
    assert np.abs(made.mean(axis=0) - rows.mean(axis=0)).max() < 0.2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: sketch.Hll(99), "lg_k is 99"),
        (lambda: sketch.CountMin(epsilon=2.0), "epsilon is 2"),
        (lambda: sketch.CountMin(delta=0.0), "delta is 0"),
        (lambda: sketch.Adwin(1.0), "delta is 1"),
        (lambda: sketch.Adwin().update([1.0, np.nan]), "the value at 1 is NaN"),
        (lambda: sketch.Kll().update([np.nan]), "the value at 0 is NaN"),
        (lambda: sketch.Kll().quantiles([0.5]), "nothing has been seen"),
        (lambda: sketch.Kll().quantiles([2.0]), "rank is 2"),
        (lambda: sketch.Moments().update(["a"]), "give numbers"),
        (lambda: sketch.Hll().update(np.array([1, "a", None], object)), "in an array of Python objects"),
        (lambda: of(sketch.FrequentItems(), [1.5]), "round floats first"),
        (lambda: of(sketch.FrequentItems(), [b"\xff"]), "texts in UTF-8"),
        (lambda: of(sketch.Reservoir(2), [1]).merge(of(sketch.Reservoir(2), [2])), "both have the seed 0"),
        (lambda: sketch.minhash(["a"], slots=10**13), "slots is 10000000000000"),
        (lambda: sketch.Moments().merge(sketch.Moments(shape=True)), "shape is false in one and true in the other"),
        (lambda: sketch.Reservoir(2).merge(sketch.Reservoir(3)), "k is 2 in one and 3 in the other"),
        (lambda: sketch.Reservoir(2).update([1], [-1.0]), "the value at 0 is -1"),
        (lambda: sketch.Reservoir(2).update([1, 2], [1.0]), "1 weights for 2 ids"),
        (lambda: sketch.Moments.from_bytes(b"abc"), "no moments: 3 bytes"),
        (lambda: sketch.Moments.from_bytes(sketch.Adwin().to_bytes()), "kind 6, not 1"),
        (lambda: sketch.Kll.from_bytes(b"\x00" * 8), "no KLL sketch"),
        (lambda: sketch.Theta.from_bytes(b"x"), "no Theta sketch"),
        (lambda: sketch.ks(sketch.Kll(), sketch.Kll()), "nothing has been seen"),
        (lambda: sketch.Window(3, "median"), 'not "median"'),
        (lambda: sketch.Online(2).learn([[1.0]], [1.0]), "rows have 1 features, the model 2"),
        (lambda: sketch.Points([[1.0, np.inf]]), "the value at 0 is inf"),
        (lambda: sketch.Lsh(0, 4), "bands is 0 x 4"),
        (lambda: sketch.smote([[1.0], [2.0]], 3), "less than the 2 rows"),
        (lambda: of(sketch.FrequentItems(), [1]).update(["a"]), "these frequent items are of whole numbers"),
    ],
)
def test_says_what_is_wrong(wrong, says):
    with pytest.raises(tg.ConfigError) as error:
        wrong()
    assert says in str(error.value)
