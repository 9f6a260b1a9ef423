"""The package as a whole: imports, old names, `repr`s, docstrings, wrong arguments."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from conftest import zarr3

import tidegate as tg
from tidegate import samplers


def fresh(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_imports_no_framework():
    wanted = ["torch", "jax", "scipy", "pyarrow", "zarr", "PIL", "ml_dtypes", "tidegate.sparse", "tidegate.sketch"]
    found = fresh(f"import sys, tidegate; print([name for name in {wanted} if name in sys.modules])")
    assert found == "[]"


def test_modules_are_imported_on_first_use():
    lazy = ["compress", "quantize", "samplers", "sketch", "sparse", "tensor_train"]
    code = f"""
import sys, tidegate as tg
assert set({lazy}) <= set(dir(tg))
for name in {lazy}:
    assert getattr(tg, name) is sys.modules["tidegate." + name]
assert "torch" not in sys.modules and "torch" not in dir(tg) and "scipy" not in sys.modules
print(tg.torch.tensors.__name__, "torch" in sys.modules)
"""
    assert fresh(code) == "tensors True"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tg.nothing  # noqa: B018


def test_old_names_warn_and_mean_the_same(folder):
    with pytest.warns(DeprecationWarning, match=r"Window\(ranges=...\) is now Window\(range_samples=...\)"):
        old = tg.Window(100, 2, ranges=10)
    assert old == tg.Window(100, 2, range_samples=10) == tg.Window(100, 2, 10)
    with pytest.warns(DeprecationWarning, match="Window.ranges is now"):
        assert old.ranges == 10

    def hits(**options):
        fields = {"image": tg.Image(32)}
        loader = tg.Loader(folder, batch_size=10, memory=tg.Budget("64MiB"), fields=fields, **options)
        return [sum(1 for _ in loader) and loader.report()["stages"]["hits"] for _ in range(2)]

    assert hits(cache="stored") == [0, 40]
    assert hits(cache="off") == [0, 0]
    with pytest.warns(DeprecationWarning, match=r"Loader\(keep=...\) is now Loader\(cache=...\)") as warned:
        assert hits(keep="nothing") == [0, 0]
    assert warned[0].filename == __file__, "the warning names the line of the user"
    with pytest.warns(DeprecationWarning, match="keep"):
        assert hits(keep="stored") == [0, 40]
    with pytest.warns(DeprecationWarning, match="picture"), pytest.raises(tg.ConfigError):
        tg.dedup(tg.synthetic(10, 8), memory=tg.Budget("32MiB"), by="picture")


def test_reprs_are_short_and_tell(folder):
    source = tg.open(folder)
    assert repr(source) == f"Source({source._inner.name!r}, 40 samples, image: image, label: int)"
    fields = {"image": tg.Image(32, dtype="float32")}
    loader = tg.Loader(source, batch_size=16, memory=tg.Budget("64MiB"), fields=fields, shuffle=True, seed=3)
    before = repr(loader)
    assert before.splitlines()[0] == f"Loader({source._inner.name!r}, 40 samples, 3 batches of 16 samples)"
    for part in ("image float32[3, 32, 32], label int", "64.0 MiB", "shuffle=True, seed=3, rank 0 of 1"):
        assert part in before
    assert "position" not in before
    batches = iter(loader)
    batch = next(batches)
    assert repr(batch) == "Batch(epoch 0, batch 0, 16 rows: image float32[16, 3, 32, 32], label int64[16])"
    assert repr(loader).splitlines()[-1].strip() == "position: epoch 0, batch 1 of 3"
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert "position" not in repr(loader)
    report = loader.report()
    assert "of 64.0 MiB charged" in repr(report)
    assert len(repr(report).splitlines()) == 1
    assert repr(loader.budget).startswith("Budget(64")
    assert repr(tg.Batch(x=np.zeros(2))) == "Batch(x float64[2])"
    assert repr(tg.Report()) == "Report({})"


def test_a_loader_of_some_fields_shows_those(shards):
    loader = tg.Loader(f"{shards}/*.tar", batch_size=5, memory=tg.Budget("64MiB"), fields=["txt", "cls"])
    assert "fields: txt text, cls int" in repr(loader)


def test_every_parameter_of_a_loader_is_documented():
    # Python 3.13 takes the indentation of docstrings away, and `getdoc` does so everywhere.
    said = inspect.getdoc(tg.Loader)
    for name in inspect.signature(tg.Loader).parameters:
        assert f"\n    {name}: " in said, name


def test_public_docstrings_begin_with_one_sentence():
    for name in tg.__all__:
        thing = getattr(tg, name)
        if isinstance(thing, str) or name == "errors":
            continue
        members = [(name, thing)]
        if inspect.isclass(thing) and thing.__module__.startswith("tidegate."):
            members += [(f"{name}.{n}", m) for n, m in vars(thing).items() if not n.startswith("_") and callable(m)]
        for label, member in members:
            first = (inspect.getdoc(member) or "").split("\n\n")[0]
            assert first.endswith((".", ":")), f"{label}: {first!r}"


def test_mistakes_of_arguments_are_named(tmp_path):
    array = zarr3().create_array(str(tmp_path / "x.zarr"), shape=(16, 16, 16), chunks=(8, 8, 8), dtype="uint8")
    array[:] = 1
    volume = tg.volume(tmp_path / "x.zarr", patch=(8, 8, 8), stride=np.array([8, 8, 8]))
    assert len(volume) == 8
    assert samplers.patches(volume, 10, boxes=tg.Boxes([1], [[0] * 3], [[8] * 3]), classes=np.array([1]))
    with volume.predictions(tmp_path / "out.zarr", chunks=np.array([8, 8, 8]), memory=tg.Budget("32MiB")) as out:
        assert out.remaining_chunks == 8
        with pytest.warns(DeprecationWarning, match="Predictions.left is now"):
            assert out.left == 8
    with pytest.raises(tg.PatchTooLargeError, match="fewer than the patch"):
        tg.volume(tmp_path / "x.zarr", patch=(8, 8, 20))
    with pytest.raises(tg.ConfigError, match="wavelet"):
        tg.Patch(wavelet=()).spec()


def test_a_first_sample_without_fields_is_no_excuse_for_the_next():
    def odd(sample, rng):
        return {"id": sample["id"]} if sample["id"] else {}

    with pytest.raises(tg.ConfigError, match="others for the first sample .* differ in id"):
        list(tg.Loader(tg.synthetic(10, 8), batch_size=10, memory=tg.Budget("16MiB"), transform=odd))


def test_an_epoch_of_no_accesses_is_refused():
    with pytest.raises(tg.ConfigError, match="epoch=0: expected an int of at least 1"):
        tg.cache_curve([0, 1], memory=[1], epoch=0)


def test_what_a_sampler_raises_is_the_cause_whatever_it_says():
    class Picky:
        def __len__(self):
            return 10

        def __iter__(self):
            yield 1
            raise ValueError("window too small")

    with pytest.raises(tg.SamplerError) as caught:
        list(tg.Loader(tg.synthetic(10, 8), batch_size=5, memory=tg.Budget("16MiB"), sampler=Picky()))
    assert isinstance(caught.value.__cause__, ValueError)
    assert not isinstance(caught.value, MemoryError)

    def later(epoch):
        if epoch:
            raise ValueError("window too small")
        return np.arange(10)

    loader = tg.Loader(tg.synthetic(10, 8), batch_size=5, memory=tg.Budget("16MiB"), sampler=later)
    with pytest.raises(tg.SamplerError) as caught:
        [list(loader) for _ in range(2)]
    assert isinstance(caught.value.__cause__, ValueError)


def test_looking_around_shows_what_there_is_to_use():
    assert set(dir(tg)) >= {"Loader", "open", "samplers", "__doc__"}
    assert not {"importlib", "loader", "batch", "deprecation", "torch", "_tidegate"} & set(dir(tg))


def test_samplers_tell_what_they_are():
    assert repr(tg.samplers.balanced([0, 1, 1])).startswith("Sampler(")
    assert " at 0x" not in repr(tg.samplers.hard())
