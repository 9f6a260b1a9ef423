"""Which order learns a rare class best, over five seeds; and data on which none of them helps.

Run with `pip install tidegate pyarrow`; a small network in NumPy learns from a Parquet file in batches of 64.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tidegate as tg
from tidegate import samplers

SAMPLES, FEATURES, HIDDEN, EPOCHS = 20_000, 16, 32, 8


def rare(seed):
    """Two in a hundred belong to class 1, which lies on a shell around part of class 0."""
    random = np.random.default_rng(seed)
    labels = (random.random(SAMPLES) < 0.02).astype(np.int64)
    x = random.normal(size=(SAMPLES, FEATURES))
    x[labels == 1, :4] *= 2.2
    return x.astype(np.float32), labels


def noisy(seed):
    """As many of each class, and every fifth label is wrong: the hardest samples are those with nothing to learn."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(SAMPLES, FEATURES))
    labels = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)
    return x.astype(np.float32), np.where(random.random(SAMPLES) < 0.2, 1 - labels, labels)


class Network:
    """One hidden layer and a cross-entropy, by stochastic gradient descent with momentum."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.weights = [random.normal(size=(FEATURES + 1, HIDDEN)) / 4, random.normal(size=HIDDEN + 1) / 6]
        self.speed = [np.zeros_like(w) for w in self.weights]

    def hidden(self, x):
        ones = np.ones((len(x), 1))
        raw = np.hstack([x, ones]) @ self.weights[0]
        return np.hstack([x, ones]), np.hstack([np.maximum(raw, 0), ones])

    def predict(self, x):
        return 1 / (1 + np.exp(-self.hidden(x)[1] @ self.weights[1]))

    def learn(self, x, y, weights, rate):
        """Make a step, and return the loss of each sample before."""
        inputs, hidden = self.hidden(x)
        p = np.clip(1 / (1 + np.exp(-hidden @ self.weights[1])), 1e-7, 1 - 1e-7)
        slope = (p - y) * weights / len(y)
        back = np.outer(slope, self.weights[1][:-1]) * (hidden[:, :-1] > 0)
        for speed, weight, gradient in zip(self.speed, self.weights, (inputs.T @ back, hidden.T @ slope), strict=True):
            speed *= 0.9
            speed -= rate * gradient
            weight += speed
        return -np.where(y == 1, np.log(p), np.log(1 - p))


def trained(data, test, sampler, seed):
    """Train, and return the accuracy on each class of the test data."""
    loader = tg.Loader(data, batch_size=64, memory=tg.Budget("32MiB"), seed=seed, drop_last=True, **sampler)
    network, listens = Network(seed), loader.feedback_state() is not None
    for epoch in range(EPOCHS):
        for batch in loader:
            x = np.stack([batch[f"x{i}"] for i in range(FEATURES)], axis=1)
            losses = network.learn(x, batch["label"], batch.weights, 0.3 * 0.8**epoch)
            if listens:
                loader.feedback(batch.indices, losses)
    x, labels = test
    right = (network.predict(x) > 0.5) == (labels == 1)
    return [right[labels == c].mean() for c in (0, 1)]


def written(folder, name, data):
    x, labels = data
    columns = {f"x{i}": x[:, i] for i in range(FEATURES)} | {"label": labels}
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=2000)
    return str(folder / f"{name}.parquet")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=5)
    seeds = range(arguments.parse_args().seeds)
    with tempfile.TemporaryDirectory() as folder:
        for make in (rare, noisy):
            print(f"\n{make.__name__}: {make.__doc__}")
            print(f"{'order':<12} {'class 0':>16} {'class 1':>16} {'mean of both':>16}")
            found = {}
            for seed in seeds:
                data, test = make(seed), make(1000 + seed)
                path = written(Path(folder), f"{make.__name__}-{seed}", data)
                for name, sampler in {
                    "uniform": {"shuffle": True},
                    "balanced": {"sampler": samplers.balanced(data[1], "effective", beta=0.9999)},
                    "importance": {"sampler": samplers.importance(gain=1.0, newness=1.0, even=0.2)},
                    "hard": {"sampler": samplers.hard()},
                    "focal": {"sampler": samplers.focal()},
                }.items():
                    found.setdefault(name, []).append(trained(path, test, sampler, seed))
            for name, runs in found.items():
                runs = np.array(runs)
                columns = [*runs.T, runs.mean(axis=1)]
                print(f"{name:<12}", *[f"{100 * c.mean():>8.1f} +-{100 * c.std():>5.1f}" for c in columns])


if __name__ == "__main__":
    main()
