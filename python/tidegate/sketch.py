"""One-pass summaries of streams, in memory that `size_bytes` states.

Each `update` takes a whole array, of NumPy or Arrow. Arrow arrays with nulls are refused.

- Numbers: `Moments`, `Kll`, `Req`, and the test `ks`.
- How many and how often: `Hll`, `Theta`, `Cpc`, `CountMin`, `FrequentItems`.
- A random sample: `Reservoir`.
- The last values: `Window`, `EventCount`.
- Whether something changed: `Adwin`, `PageHinkley`, `SendOnDelta`, `Unchanged`.
- Similarity: `minhash`, `Lsh`, `Points`; new rows of a rare class: `smote`.
- A model that learns from a stream: `Online`.

Summaries that do not depend on the order of values have `merge`. All except `Lsh` and `Points`
have `to_bytes` and `from_bytes`. All except these two, `Theta` and `FrequentItems` can be pickled
and copied. The bytes of `Hll`, `Theta`, `Cpc`, `Kll`, `Req` and `FrequentItems` are those of
Apache DataSketches; the other formats are Tidegate's own. Errors are `tidegate.ConfigError`.

Flow: arrays -> `update` -> estimates, bytes.
Memory: `size_bytes` of each object, outside of any budget.

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
