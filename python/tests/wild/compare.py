"""Compares what Tidegate reads with what a peer reads: `ours`, `same`, `refused`, `either`.

Flow: a path -> every sample by itself and every field in batches, which must agree -> {field:
value} -> value by value against the peer's. Missing values are absent.
Memory: all samples of a small dataset, outside of any budget but the loader's 32 MiB.
"""

import decimal
import json
import re

import numpy as np
import pytest
from PIL import Image

import tidegate as tg


def ours(data, fields=None, failing=None, keys=False):
    """Return [{field: value}] of a path or a source, with "__key__" if `keys`.

    `fields` are specs for the loader. `failing` is {id: words}: samples that fail with these words;
    they are left out of the result.
    """
    source = data if isinstance(data, tg.Source) else tg.open(data)
    fields, failing = fields or {}, failing or {}
    for id, words in failing.items():
        refused(source.select([id]), words, fields)
    good = [i for i in range(len(source)) if i not in failing]
    rows = {i: {"__key__": source.key(i)} if keys else {} for i in good}
    alone = {i: source[i] for i in good}
    for name, kind in source.schema.items():
        ids = [i for i in good if name in alone[i]]
        if not failing:
            assert source.missing.get(name, 0) == len(source) - len(ids), f"{name}: the count of missing values"
        values = column(source.select(ids), name, kind, fields.get(name)) if ids else []
        for id, value in zip(ids, values, strict=True):
            agrees(alone[id][name], value, kind)
            rows[id][name] = value
    return list(rows.values())


def column(source, name, kind, spec=None):
    """Return the values of one field, from batches."""
    chosen = {} if spec is None else {name: spec}
    loader = tg.Loader(source, batch_size=3, memory=tg.Budget("32MiB"), columns=[name], fields=chosen)
    values = [value for batch in loader for value in batch[name]]
    if kind == "json":
        return [json.loads(value) for value in values]
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def agrees(alone, value, kind):
    """Check what `source[i]` returned against the batch, where both are decoded."""
    if kind == "json":
        alone = json.loads(alone)
    if kind in ("int", "float", "text", "bytes", "json") and type(alone) is type(value):
        assert equal(alone, value), f"source[i] has {alone!r}, the batch {value!r}"


def refused(data, words, fields=None):
    """Check that opening, or reading all samples, is an error with these words beside the path."""
    with pytest.raises(tg.Error) as caught:
        ours(data, fields)
    named(words, caught.value, data)


def warned(data, words):
    """Open with a warning of these words beside the path, and return the source."""
    with pytest.warns(tg.DataWarning) as caught:
        source = tg.open(data)
    named(words, caught[0].message, data)
    return source


def either(data, theirs, words):
    """Check that the peer's samples come, or else an error or a warning with these words."""
    try:
        read = ours(data)
    except (tg.Error, tg.DataWarning) as refusal:
        named(words, refusal, data)
    else:
        same(read, theirs)


def named(words, said, data):
    """Check that a message has these words; a path is no word."""
    message = str(said).replace(str(data), "")
    assert re.search(words, message), f"{words!r} is not in {message!r}"


def same(ours, theirs):
    """Check that the same samples come in the same order, with the same names and values."""
    theirs = [{name: value for name, value in sample.items() if value is not None} for sample in theirs]
    assert len(ours) == len(theirs)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert sorted(one) == sorted(other), f"sample {number}: the fields"
        for name, value in one.items():
            assert equal(value, other[name]), f"sample {number}, {name}: {value!r}, and by the peer {other[name]!r}"


def equal(ours, theirs):
    """Whether two values are the same: type, bits, shape. A bool may come as 0 or 1."""
    if isinstance(theirs, Image.Image):
        theirs = np.asarray(theirs.convert("RGB"))
    if isinstance(theirs, np.generic):
        theirs = theirs.item()
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype.newbyteorder("=") and np.array_equal(
            ours, theirs, equal_nan=ours.dtype.kind == "f"
        )
    ours, theirs = (x.tolist() if isinstance(x, np.ndarray) else x for x in (ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    if isinstance(theirs, decimal.Decimal):
        return decimal.Decimal(repr(ours)) == theirs
    if isinstance(theirs, bool) and isinstance(ours, int):
        return ours == theirs
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)
