"""Compare sample orders on a rare class, over five seeds, and on data where no order helps.

A small network in NumPy learns from a Parquet file. It sees the rare class in few steps of small
batches, where the contents of a batch matter most.

Needs Tidegate and `pip install pyarrow`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tidegate as tg
from tidegate import samplers

SAMPLES, FEATURES, HIDDEN = 20_000, 16, 32


def rare(seed):
    """Two in a hundred belong to class 1, a shell around part of class 0."""
    random = np.random.default_rng(seed)
    labels = (random.random(SAMPLES) < 0.02).astype(np.int64)
    x = random.normal(size=(SAMPLES, FEATURES))
    x[labels == 1, :4] *= 2.2
    return x.astype(np.float32), labels


def noisy(seed):
    """Every fifth label is wrong, in equal classes: the hardest samples teach nothing."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(SAMPLES, FEATURES))
    labels = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)
    return x.astype(np.float32), np.where(random.random(SAMPLES) < 0.2, 1 - labels, labels)


class Network:
    """One hidden layer with a cross-entropy loss; stochastic gradient descent with momentum."""

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
        """Make a step.

        Return each sample's loss before the step, and a bound of its gradient's norm up to a
        factor.
        """
        inputs, hidden = self.hidden(x)
        p = np.clip(1 / (1 + np.exp(-hidden @ self.weights[1])), 1e-7, 1 - 1e-7)
        slope = (p - y) * weights / len(y)
        back = np.outer(slope, self.weights[1][:-1]) * (hidden[:, :-1] > 0)
        for speed, weight, gradient in zip(self.speed, self.weights, (inputs.T @ back, hidden.T @ slope), strict=True):
            speed *= 0.9
            speed -= rate * gradient
            weight += speed
        return -np.where(y == 1, np.log(p), np.log(1 - p)), np.abs(p - y) * np.linalg.norm(inputs, axis=1)


def trained(data, test, sampler, seed, feeds, batch_size, epochs, rate, decay):
    """Train, and return the accuracy on each class of the test data."""
    loader = tg.Loader(data, batch_size=batch_size, memory=tg.Budget("32MiB"), seed=seed, drop_last=True, **sampler)
    network, listens = Network(seed), loader.feedback_state() is not None
    for epoch in range(epochs):
        for batch in loader:
            x = np.stack([batch[f"x{i}"] for i in range(FEATURES)], axis=1)
            losses, bounds = network.learn(x, batch["label"], batch.weights, rate * decay**epoch)
            if listens:
                loader.feedback(batch.indices, bounds if feeds == "bounds" else losses)
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
        for make, regime in ((rare, (8, 4, 0.1, 0.7)), (noisy, (64, 8, 0.3, 0.8))):
            print(f"\n{make.__name__}: {make.__doc__} Batches of {regime[0]}, {regime[1]} epochs.")
            print(
                f"{'order':<12} {'class 0':>16} {'class 1':>16} {'mean of both':>16}   class 1 better than uniform in"
            )
            found = {}
            for seed in seeds:
                data, test = make(seed), make(1000 + seed)
                path = written(Path(folder), f"{make.__name__}-{seed}", data)
                for name, sampler in {
                    "uniform": {"shuffle": True},
                    "balanced": {"sampler": samplers.balanced(data[1], "effective", beta=0.9999)},
                    "importance": {"sampler": samplers.importance(gain=1.0, newness=1.0, even=0.5)},
                    "hard": {"sampler": samplers.hard()},
                    "focal": {"sampler": samplers.focal()},
                }.items():
                    feeds = "bounds" if name == "importance" else "losses"
                    found.setdefault(name, []).append(trained(path, test, sampler, seed, feeds, *regime))
            uniform = np.array(found["uniform"])[:, 1]
            for name, runs in found.items():
                runs = np.array(runs)
                columns = [*runs.T, runs.mean(axis=1)]
                means = [f"{100 * c.mean():>8.1f} +-{100 * c.std():>5.1f}" for c in columns]
                print(f"{name:<12}", *means, f"  {(runs[:, 1] > uniform).sum()} of {len(runs)} seeds")


if __name__ == "__main__":
    main()
