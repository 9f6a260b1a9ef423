"""Calls everything public with values of random types: `python fuzz_options.py SEED CALLS SECONDS`.

Flow: a table of calls that are right, and the public methods of what they make -> the same calls
with some values replaced -> a line for each outcome that is neither a result nor an error of
Tidegate in its own words. It ends after CALLS calls or SECONDS, whichever comes first.
Memory: small data. It runs in a process and a folder of its own, because it sets budgets and names
files.
"""

import collections
import datetime
import decimal
import faulthandler
import inspect
import io
import pathlib
import random
import re
import sys
import tarfile
import time
import warnings

import numpy as np
import torch
import torch_on_cpu
from PIL import Image

torch_on_cpu.main()
import tidegate as tg  # noqa: E402
import tidegate.torch  # noqa: E402
from tidegate import (  # noqa: E402
    compress,
    quantize,
    samplers,
    sketch,
    sparse,
    tensor_train,
    training,
)

# What the parsers, bindings and libraries below say: none of it may come up.
FOREIGN = re.compile(
    r"at line \d+ column|invalid type|unknown variant|missing field|expected u\d|expected struct|usize|serde|pyo3|"
    r"cannot be converted|not JSON serializable|cannot be interpreted|argument '"
)
# A call that takes longer hangs.
MOST_SECONDS = 120

NONSENSE = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.0, 0.5, -0.5, 1.0, 1e300,
    float("nan"), float("inf"), 3 + 4j, "", "x", "1", "64MiB", "1.5", "4TiB", "-1MiB", "train", "\ud800", "\0", "../x",
    "a" * 10_000, b"", b"\xff", [], [1], [1, 2], [1, "x"], [[1], [2, 3]], [None], (), (1, 2), (0.1, 0.9), (0.9, 0.1),
    ("x", "y"), {}, {"x": 1}, {"x": None}, {1: 2}, {"jpg": "uint8"}, set(), {1}, frozenset({"x"}), range(3), slice(3),
    object(), object, int, len, Ellipsis, NotImplemented, Exception("x"), decimal.Decimal("1.5"),
    datetime.timedelta(seconds=1), pathlib.Path("x"), io.BytesIO(b"x"), np.int64(3), np.float32(0.5), np.bool_(True),
    np.array([1, 2]), np.array([[0.5, np.nan]]), np.array("x"), np.array([]), np.array([object()]), np.zeros((2, 3, 4)),
    np.array([1 + 2j]), np.array(["2020-01-01"], "datetime64[D]"), np.dtype("uint8"), np.float32, torch.tensor(2),
    torch.zeros(2, 3), torch.float32, torch.tensor([1, 2], dtype=torch.bfloat16), tg.Image(8), tg.Image, tg.Text(),
    tg.Window(5), tg.Int(default=3), tg.Bytes, tg.synthetic(10, 8), {"jpg": tg.Image(8)}, {"x": tg.Text()}, ["jpg"],
    lambda *_: 1, lambda *given: given[0], iter([1]), (i for i in range(3)),
]  # fmt: skip
# What would start hundreds of threads, processes or gigabytes is not what is tried here.
SMALL = {"processes": 2, "workers": 4, "threads": 4, "prefetch": 8, "memory": None, "overcommit": None}


def tar(path):
    with tarfile.open(path, "w") as archive:
        for i in range(12):
            image = io.BytesIO()
            Image.fromarray(np.full((9, 8, 3), 20 * i, np.uint8)).save(image, "JPEG")
            for ending, data in (("jpg", image.getvalue()), ("cls", b"%d" % (i % 3)), ("txt", b"text")):
                info = tarfile.TarInfo(f"{i:03}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


# Of `training`, with arguments that are right.
DATACLASSES = {
    "Keep": {"name": "int8", "bytes": 3, "time": 0.5},
    "Stage": {"saved_bytes": 3, "forward_time": 1.0},
    "Skip": {"from_": 1, "to": 2},
    "Chain": {"stages": [training.Stage()]},
    "Held": {"name": "parameters", "bytes": 3},
    "Profile": {"batch": 4, "chain": training.Chain([training.Stage()])},
    "Lifetime": {"bytes": 4, "first": 0, "last": 1},
    "AdaBatch": {"first": 8, "factor": 2.0, "epochs": 4, "most": 64},
    "LinearGrowth": {"first": 8, "rate": 0.5, "most": 64},
    "Target": {"least_steps": 10.0, "least_samples": 100.0},
    "Linear": {"inputs": 3, "outputs": 2},
    "Convolution": {"inputs": 3, "outputs": 4, "kernel": 3, "height": 8, "width": 8},
    "DepthwiseSeparable": {"inputs": 3, "outputs": 4, "kernel": 3, "height": 8, "width": 8},
    "Norm": {"features": 3},
    "Activation": {"elements": 3},
    "Dropout": {"elements": 3},
    "Attention": {"sequence": 8, "width": 8, "heads": 2},
    "Transformer": {"sequence": 8, "width": 8, "heads": 2},
    "Embedding": {"vocabulary": 10, "width": 3},
    "CrossEntropy": {"classes": 10},
    "Block": {"layers": [training.Linear(3, 2)]},
}


def calls():
    """[(name, function, arguments that are right)]."""
    data = tg.open(tar("data.tar"))
    np.save("rows.npy", np.zeros((8, 4), np.float32))
    np.arange(4096, dtype=np.uint16).tofile("tokens.bin")
    lines = "".join(f'{{"x": {i}, "y": {i / 2}, "t": "word {i}"}}\n' for i in range(40))
    pathlib.Path("lines.jsonl").write_text(lines)
    rows = tg.open("lines.jsonl")
    fields = {"jpg": tg.Image(8), "cls": tg.Int()}
    options = {"batch_size": 4, "memory": "48MiB"}
    loader = tg.Loader(data, fields=fields, **options)
    batch = next(iter(tg.Loader(rows, **options)))
    profile = tg.profile(rows, memory="48MiB")
    matrix = sparse.CSR(indptr=np.array([0, 1, 2]), indices=np.array([0, 1]), data=np.ones(2, np.float32), shape=(2, 2))
    classes = [i % 3 for i in range(12)]
    one = np.linspace(0, 1, 64, dtype=np.float32)
    chain = training.Chain([training.Stage(output_bytes=2, saved_bytes=4, forward_time=1.0)] * 4)
    step = training.Profile(8, chain)
    table = [
        (tg.open, {"url": "data.tar"}),
        (tg.synthetic, {"samples": 10, "sample_bytes": 8}),
        (tg.tokens, {"url": "tokens.bin", "length": 16, "dtype": "uint16"}),
        (tg.mapped, {"path": "rows.npy"}),
        (tg.Loader, {"source": data, "fields": fields, **options}),
        (tg.Loader, {"source": rows, **options}),
        (tg.profile, {"source": rows, "memory": "48MiB"}),
        (tg.dedup, {"source": data, "memory": "48MiB"}),
        (tg.pack, {"source": data, "out": "packed"}),
        (tg.cache_curve, {"what": loader, "memory": ["16MiB", "32MiB"]}),
        (tg.volume, {"url": "nothing.zarr", "patch": (4, 4)}),
        (tg.pyramid, {"url": "nothing.zarr", "patch": (4, 4)}),
        (tg.Boxes, {"classes": [1], "low": [[0, 0]], "high": [[2, 2]]}),
        (tg.Budget, {"memory": "48MiB"}),
        (tg.DiskCache, {"folder": "cache", "limit": "1MiB"}),
        (tg.Array, {"dtype": "float32"}),
        (tg.Mask, {"of": "jpg"}),
        (tg.Window, {"samples": 100}),
        *((kind, {}) for kind in (tg.Bytes, tg.Float, tg.Image, tg.Int, tg.Json, tg.Patch, tg.Text)),
        (samplers.replacement, {"positions": 12}),
        (samplers.weighted, {"weights": np.ones(12)}),
        (samplers.stratified, {"labels": classes}),
        (samplers.balanced, {"labels": classes}),
        (samplers.mixture, {"sizes": [6, 6], "proportions": [0.5, 0.5]}),
        (samplers.curriculum, {"difficulty": np.arange(12.0), "epochs": 2}),
        (samplers.hard, {}),
        (samplers.focal, {}),
        (samplers.importance, {}),
        *((getattr(sketch, name), {}) for name in sketch.__all__),
        (sparse.CSR, {"indptr": [0, 1], "indices": [0], "data": [1.0], "shape": (1, 1)}),
        (sparse.COO, {"coords": ([0], [0]), "data": [1.0], "shape": (1, 1)}),
        (sparse.product, {}),
        (quantize.quantize, {"x": one}),
        (quantize.Calibrator, {}),
        (compress.pack, {"x": one}),
        (compress.unpack, {"packed": compress.pack(one)}),
        (compress.codecs, {"dtype": "float32"}),
        (tensor_train.TensorTrain.decompose, {"x": np.ones((3, 3, 3))}),
        (training.rotor, {"chain": chain, "memory": 100}),
        (training.replay, {"chain": chain, "schedule": [1, [2, 3], 4]}),
        (training.plan, {"profile": step, "memory": "1GiB"}),
        (training.curve, {"profile": step}),
        (training.largest_batch, {"profile": step, "memory": "1MiB", "most": 64}),
        (training.compare, {"profile": step, "devices": 2, "memory": "1GiB", "link": 1e9}),
        (training.split, {"chain": chain, "devices": 2, "micro_batches": 4}),
        (training.model, {"layers": [training.Linear(3, 2)], "batch": 4}),
        *((getattr(training, name), right) for name, right in DATACLASSES.items()),
        (training.states, {"shapes": [(3, 4)]}),
        (training.sharding, {"parameters": 1000, "devices": 4, "stage": 2}),
        (training.uniform, {"blocks": 64, "saved_bytes": 5, "boundary_bytes": 1}),
        (training.segments, {"stages": 9, "length": 3}),
        (training.revolve, {"stages": 10, "checkpoints": 3}),
        (training.micro_batches, {"batch": 10, "parts": 3}),
        (training.weights, {"counts": [3, 3, 2]}),
        (training.noise_driven, {"batch": 8, "optimum": 90.0, "share": 0.5, "least": 1, "most": 99}),
        (training.NoiseScale, {"small_batch": 1, "large_batch": 4}),
        (training.front, {"points": [(1, 2), (2, 1)], "better": ["less", "less"]}),
        (training.place, {"tensors": [training.Lifetime(4, 0, 1)]}),
        *((getattr(tidegate.torch, name), {}) for name in tidegate.torch.__all__),
    ]
    made = [loader, data, rows, batch, profile, matrix, tg.mapped("rows.npy"), tg.Budget("48MiB")]
    made += [quantize.quantize(one)]
    made += [sketch.Hll(), sketch.Kll(), sketch.Moments(), sketch.Reservoir(10), sketch.CountMin(), sketch.Theta()]
    for thing in made:
        for name in dir(thing):
            # A batch is a dict: what it has of that is Python's own.
            own = not name.startswith("_") and name not in dir(dict)
            method = getattr(thing, name) if own else None
            if inspect.ismethod(method) or inspect.isbuiltin(method):
                table.append((method, {}))
        if hasattr(thing, "__getitem__") and not isinstance(thing, dict):
            table.append((thing.__getitem__, {}))
    return table


def parameters(function):
    """{name: parameter} of a function."""
    found = inspect.signature(function).parameters.items()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in found if parameter.kind not in kinds}


def drawn(rng, name):
    value = rng.choice(NONSENSE)
    if name in ("progress", "keep", "transform", "batch_transform", "sampler") and (
        isinstance(value, type) or value is len
    ):
        # What a user's function raises is the user's own.
        return None
    if name not in SMALL:
        return value
    if name == "memory":
        return rng.choice(["48MiB", 0, -1, "x", None, float("nan"), [], b"1", True, object(), 64])
    if name == "overcommit":
        return rng.choice([False, None, "x", 1])
    large = isinstance(value, int | float) and value > SMALL[name]
    return SMALL[name] if large else value


def outcome(function, positional, named):
    """What is wrong with the outcome of a call; None if nothing is."""
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    try:
        result = function(*positional, **named)
        if isinstance(result, tg.Loader):
            next(iter(result), None)
            result.close()
    except (tg.Error, tg.DataWarning) as error:
        said = str(error)
        return f"says {said}" if FOREIGN.search(said) or not said else None
    # Python's own for a number beyond the last.
    except (IndexError, KeyError) as error:
        return None if function.__name__ in ("__getitem__", "key") else f"raises {error!r}"
    # Python's own for a value of another type, if it names the argument.
    except (TypeError, ValueError, OverflowError) as error:
        if function.__qualname__ == "MappedArray.__getitem__":
            # The index of an array is NumPy's own.
            return None
        said = " ".join([str(error), *getattr(error, "__notes__", [])])
        labelled = any(f"'{name}'" in said for name in parameters(function))
        # The bindings name it in a note, which Python has from 3.11 on.
        return None if labelled or sys.version_info < (3, 11) else f"raises {type(error).__name__} {said}"
    except BaseException as error:  # noqa: BLE001
        return f"raises {error!r}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def main():
    seed, most, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rng, began, count = random.Random(seed), time.monotonic(), 0
    warnings.simplefilter("ignore")
    table = [(function, right, parameters(function)) for function, right in calls()]
    wrong = collections.Counter()
    while count < most and time.monotonic() - began < seconds:
        function, right, known = rng.choice(table)
        name = function.__qualname__
        needed = [name for name, one in known.items() if one.default is one.empty and name not in right]
        optional = [name for name in known if name not in needed]
        given = dict(right)
        for one in needed + rng.sample(optional, min(len(optional), rng.choice([0, 1, 1, 2]))):
            given[one] = drawn(rng, one)
        positional = [given.pop(one) for one in known if known[one].kind is known[one].POSITIONAL_ONLY and one in given]
        said = outcome(function, positional, given)
        count += 1
        if said is not None:
            place = f"{name}({', '.join([*map(repr, positional), *(f'{k}={v!r}' for k, v in given.items())])[:300]})"
            key = f"{name}: {said.split()[0]}"
            wrong[key] += 1
            if wrong[key] == 1:
                print(f"{place} {said[:300]}", flush=True)
    took = time.monotonic() - began
    print(f"{count} calls of {len(table)} functions, {len(wrong)} findings, {took:.0f} s", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
