"""Compare class-balanced and uniform patches of an OME-Zarr volume for 3-D segmentation.

    python examples/segmentation.py [--seeds 5] [--steps 200]

The script makes the volume: noisy cells with rare vesicles in them, of almost the same brightness
(less than a thousandth of the voxels). The network is in NumPy: two 3x3x3 convolutions and a
classifier for each voxel. It sees the same number of patches from each sampler and is judged by
Dice on a volume that it has not seen. The script prints resident memory during training; it stays
the same after the first steps.

Needs `pip install zarr` to write the volume.
"""

import argparse
import tempfile

import numpy as np
import zarr

import tidegate as tg
from tidegate import samplers

PATCH, BATCH, CHANNELS, CLASSES = 16, 8, 10, 3
# An output voxel depends on this many input voxels on each side.
SEES = 2


def make(path, side, seed):
    """Write an OME-NGFF image and its labels: 0 outside, 1 cells, 2 vesicles in them."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side,) * 3, "uint8")

    def ball(at, radius, label):
        box = tuple(slice(a - radius, a + radius + 1) for a in at)
        sphere = sum(n**2 for n in np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1])
        labels[box][sphere <= radius**2] = label

    for _ in range(30):
        centre = rng.integers(16, side - 16, 3)
        ball(centre, int(rng.integers(8, 14)), 1)
    cells = np.argwhere(labels[8:-8, 8:-8, 8:-8] == 1) + 8
    for centre in rng.permutation(cells)[:60]:
        ball(centre, 2, 2)
    image = np.array([60, 110, 150])[labels] + rng.normal(0, 12, labels.shape)
    root = zarr.open_group(path, mode="w")
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    transforms = [{"type": "scale", "scale": [8.0, 8.0, 8.0]}]
    for name, array in (("em", image.clip(0, 255).astype("uint8")), ("labels", labels)):
        group = root.create_group(name)
        datasets = [{"path": "s0", "coordinateTransformations": transforms}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
        group.create_array("s0", shape=array.shape, chunks=(32, 32, 32), dtype=array.dtype)[:] = array


def windows(x):
    """Return the flat 3x3x3 neighbourhood of each inner voxel of (batch, z, y, x, channels)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (3, 3, 3), axis=(1, 2, 3))
    return view.reshape(*view.shape[:4], -1)


class Network:
    """Two convolutions with rectifiers and a classifier, trained by Adam."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        shapes = [(27, CHANNELS), (27 * CHANNELS, CHANNELS), (CHANNELS, CLASSES)]
        self.weights = [rng.normal(0, np.sqrt(2 / n), (n, m)).astype("f4") for n, m in shapes]
        self.weights += [np.zeros(m, "f4") for _, m in shapes]
        self.moments = [[np.zeros_like(w), np.zeros_like(w)] for w in self.weights]
        self.steps = 0

    def forward(self, image):
        """Return logits of inner voxels of (batch, z, y, x) images, and inputs of the gradient."""
        a, b, c, a0, b0, c0 = self.weights
        x = windows((image.astype("f4")[..., None] - 100) / 50)
        first = np.maximum(x @ a + a0, 0)
        y = windows(first)
        second = np.maximum(y @ b + b0, 0)
        return second @ c + c0, (x, first, y, second)

    def step(self, image, labels, rate=3e-3):
        logits, (x, first, y, second) = self.forward(image)
        target = labels[:, SEES:-SEES, SEES:-SEES, SEES:-SEES]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        p[(*np.indices(target.shape), target)] -= 1
        d = p.reshape(-1, CLASSES) / target.size
        _, b, c = self.weights[:3]
        e = (d @ c.T) * (second.reshape(-1, CHANNELS) > 0)
        # Back through the windows: each voxel sums the gradients of all windows that contain it.
        spread = (e @ b.T).reshape(*y.shape[:4], CHANNELS, 3, 3, 3)
        f = np.zeros_like(first)
        n = y.shape[1]
        for i, j, k in np.ndindex(3, 3, 3):
            f[:, i : i + n, j : j + n, k : k + n] += spread[..., i, j, k]
        f = (f * (first > 0)).reshape(-1, CHANNELS)
        flat = [x.reshape(-1, 27), y.reshape(-1, 27 * CHANNELS), second.reshape(-1, CHANNELS)]
        gradients = [flat[0].T @ f, flat[1].T @ e, flat[2].T @ d, f.sum(0), e.sum(0), d.sum(0)]
        self.steps += 1
        for w, g, m in zip(self.weights, gradients, self.moments, strict=True):
            m[0] += 0.1 * (g - m[0])
            m[1] += 0.01 * (g * g - m[1])
            mean, square = m[0] / (1 - 0.9**self.steps), m[1] / (1 - 0.99**self.steps)
            w -= rate * mean / (np.sqrt(square) + 1e-8)


def dice(network, volume, memory):
    """Return the Dice score of each class over all tiles of a volume."""
    both, either = np.zeros(CLASSES), np.zeros(CLASSES)
    for batch in tg.Loader(volume, batch_size=BATCH, memory=memory):
        found = network.forward(batch["em"])[0].argmax(-1)
        truth = batch["labels"][:, SEES:-SEES, SEES:-SEES, SEES:-SEES]
        for label in range(CLASSES):
            both[label] += 2 * ((found == label) & (truth == label)).sum()
            either[label] += (found == label).sum() + (truth == label).sum()
    return both / either


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--side", type=int, default=160)
    arguments.add_argument("--memory", default="32MiB")
    arguments = arguments.parse_args()
    memory = tg.Budget(arguments.memory)
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in (("train", 1), ("test", 2)):
            make(f"{folder}/{name}.zarr", arguments.side, seed)
        arrays = {"em": "em", "labels": "labels"}
        train = tg.volume(f"{folder}/train.zarr", array=arrays, patch=(PATCH,) * 3)
        test = tg.volume(f"{folder}/test.zarr", array=arrays, patch=(PATCH,) * 3, stride=PATCH - 2 * SEES)
        boxes = train.boxes("labels", ignore=(), memory=memory)
        voxels = sum(boxes.classes.values())
        print({label: f"{count / voxels:.3%}" for label, count in boxes.classes.items()}, "of the voxels")
        scores = {"uniform": [], "balanced": []}
        for seed in range(arguments.seeds):
            for name, around in (("uniform", None), ("balanced", boxes)):
                network, curve = Network(seed), []
                sampler = samplers.patches(train, BATCH * arguments.steps, boxes=around)
                loader = tg.Loader(train, batch_size=BATCH, memory=memory, sampler=sampler, seed=seed)
                for step, batch in enumerate(loader):
                    network.step(batch["em"], batch["labels"])
                    if step % (arguments.steps // 6) == arguments.steps // 6 - 1:
                        curve.append(round(resident_mib()))
                scores[name].append(dice(network, test, memory))
                shown = " ".join(f"{score:.3f}" for score in scores[name][-1])
                print(f"seed {seed}, {name:8}: Dice {shown}; resident MiB {curve}", flush=True)
        for name, all_seeds in scores.items():
            mean = " ".join(f"{score:.3f}" for score in np.mean(all_seeds, axis=0))
            print(f"{name:8} over {arguments.seeds} seeds: {mean}")
        better = sum(b[2] > u[2] for u, b in zip(scores["uniform"], scores["balanced"], strict=True))
        print(f"balanced patches find vesicles better in {better} of {arguments.seeds} seeds")


if __name__ == "__main__":
    main()
