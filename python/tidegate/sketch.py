"""One-pass summaries of streams, in memory that `size_bytes` declares; each takes whole arrays, of NumPy or Arrow.

What one pass can tell of numbers (`Moments`, `Kll`, `Req`, `ks`), of how many and how often (`Hll`, `Theta`, `Cpc`,
`CountMin`, `FrequentItems`), a fair sample (`Reservoir`), the last values (`Window`, `EventCount`), whether anything
changed (`Adwin`, `PageHinkley`, `SendOnDelta`, `Unchanged`), what is alike (`minhash`, `Lsh`, `Points`), new rows of
a rare class (`smote`), and a model that learns as data pass (`Online`).

Those whose order does not matter have `merge`; all have `to_bytes` and `from_bytes`, but for `Lsh` and `Points`, and
can be pickled and copied, but for these, `Theta` and `FrequentItems`. Arrow arrays with nulls are refused. The bytes of
`Hll`, `Theta`, `Cpc`, `Kll`, `Req` and `FrequentItems` are those of Apache DataSketches; of the others they are
Tidegate's own. Errors are `tidegate.ConfigError`.

>>> import numpy as np
>>> from tidegate import sketch
>>> moments = sketch.Moments()
>>> moments.update(np.array([1, 2, 3, np.nan], np.float32))
>>> moments.count, moments.nan, moments.mean, moments.var(ddof=1)
(3, 1, 2.0, 1.0)
>>> train, test = sketch.Theta(), sketch.Theta()
>>> train.update(["a", "b", "c"])
>>> test.update(["c", "d"])
>>> train.intersection(test).estimate()[0]
1.0
>>> old, new = sketch.Kll(), sketch.Kll()
>>> old.update(np.arange(10_000))
>>> new.update(np.arange(10_000) + 2_000)
>>> sketch.ks(old, new)[2]
True
>>> sketch.Adwin().update(np.repeat([0.2, 0.9], 1000))
array([1023])
"""

from tidegate._tidegate import (
    Adwin,
    CountMin,
    Cpc,
    EventCount,
    FrequentItems,
    Hll,
    Kll,
    Lsh,
    Moments,
    Online,
    PageHinkley,
    Points,
    Req,
    Reservoir,
    SendOnDelta,
    Theta,
    Unchanged,
    Window,
    ks,
    minhash,
    shingles,
    similarity,
    smote,
)

__all__ = [
    "Adwin",
    "CountMin",
    "Cpc",
    "EventCount",
    "FrequentItems",
    "Hll",
    "Kll",
    "Lsh",
    "Moments",
    "Online",
    "PageHinkley",
    "Points",
    "Req",
    "Reservoir",
    "SendOnDelta",
    "Theta",
    "Unchanged",
    "Window",
    "ks",
    "minhash",
    "shingles",
    "similarity",
    "smote",
]
