"""The peers, each doing the same work in its own idiom.

JPEG -> random resized crop 224 (scale .08-1, ratio 3/4-4/3, antialiased bilinear) -> horizontal
flip p=.5 -> shuffled uint8 batches, on the CPU. Every `*_loader(data_dir, batch, workers)`
returns a Loader: `.epoch()` iterates one epoch of image batches, the partial last one included
(workers that the peer can keep alive between epochs stay alive); `.close()` stops it. torch,
webdataset, mosaicml and litdata yield N,C,H,W torch tensors, dali N,H,W,C torch tensors, grain,
tfdata, spdl and datago N,H,W,C numpy arrays. Write shards and measure each peer in separate
processes. SPDL needs the FFmpeg libraries on LD_LIBRARY_PATH.
"""

import math
import os
import random
import shutil
from glob import glob
from pathlib import Path

SIZE, SCALE, RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)


class Loader:
    def __init__(self, epoch, close=lambda: None):
        self.epoch, self.close = epoch, close


def files_of(folder):
    return sorted(glob(os.path.join(folder, "*", "*")))


def random_box(width, height, rng=random):
    """torchvision's RandomResizedCrop.get_params: x, y, width, height."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1)), w, h
    side = min(width, height)  # nearly never reached
    return (width - side) // 2, (height - side) // 2, side, side


def pil_transform():
    from torchvision import transforms as T

    return T.Compose([T.RandomResizedCrop(SIZE, SCALE, RATIO), T.RandomHorizontalFlip(), T.PILToTensor()])


def shard_sample(sample):
    from PIL import Image

    return {"image": Image.open(sample[0]), "label": sample[1]}


def make_shards(peer, folder, out, shards=8):
    """Write `folder` (class folders of JPEGs) as at least `shards` shards into the new `out`, by
    the peer's own writer; all three store the JPEG bytes as they are."""
    files = files_of(folder)
    size = min(64 << 20, sum(map(os.path.getsize, files)) // shards)
    classes = sorted({os.path.dirname(f) for f in files})
    samples = [(f, classes.index(os.path.dirname(f))) for f in files]
    random.Random(0).shuffle(samples)
    if peer == "webdataset":
        from webdataset import ShardWriter

        os.makedirs(out)
        with ShardWriter(out + "/%06d.tar", maxsize=size, verbose=0) as sink:
            for i, (path, label) in enumerate(samples):
                sink.write({"__key__": f"{i:08d}", "jpg": Path(path).read_bytes(), "cls": label})
    elif peer == "mosaicml":
        from streaming import MDSWriter

        with MDSWriter(out=out, columns={"image": "jpeg", "label": "int"}, size_limit=size) as sink:
            for sample in samples:
                sink.write(shard_sample(sample))
    elif peer == "litdata":
        from litdata import optimize

        optimize(shard_sample, samples, out, chunk_bytes=size, num_workers=1, verbose=False)
    elif peer == "tidegate_checkpoints":
        import tidegate as tg

        if not os.path.exists(out):
            shutil.copytree(folder, out, copy_function=os.link)
        tg.open(out, checkpoints=True)
    else:
        raise ValueError(f"{peer} reads the image folder itself")


def torch_epochs(dataset, batch, workers, loader_class=None, **options):
    """torch's DataLoader, for torch and the three shard readers built on it."""
    from torch.utils.data import DataLoader

    loader = (loader_class or DataLoader)(
        dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0, **options
    )

    def close():  # there is no public call for it
        if workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()

    return Loader(lambda: (b[0] if isinstance(b, (list, tuple)) else b for b in loader), close)


def torch_loader(data_dir, batch, workers):
    from torchvision.datasets import ImageFolder

    data = ImageFolder(data_dir, pil_transform())
    return torch_epochs(data, batch, workers, shuffle=True)


def webdataset_loader(shards, batch, workers):
    import webdataset as wds

    urls = sorted(glob(shards + "/*.tar"))
    data = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(pil_transform())
    )
    return torch_epochs(data, batch, workers)


def mosaicml_loader(shards, batch, workers):
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Images(StreamingDataset):
        transform = pil_transform()

        def __getitem__(self, i):
            return self.transform(super().__getitem__(i)["image"].convert("RGB"))

    clean_stale_shared_memory()  # what a killed run left in /dev/shm
    data = Images(local=shards, shuffle=True, batch_size=batch)
    return torch_epochs(data, batch, workers)


def litdata_loader(shards, batch, workers):
    from operator import itemgetter

    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision import transforms as T

    transform = T.Compose(
        [
            itemgetter("image"),  # LitData decodes into a C,H,W tensor
            T.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True),
            T.RandomHorizontalFlip(),
        ]
    )
    data = StreamingDataset(shards, shuffle=True, transform=transform)
    return torch_epochs(data, batch, workers, StreamingDataLoader)


def grain_image(path, rng):
    import numpy as np
    from PIL import Image

    image = Image.open(path).convert("RGB")
    x, y, w, h = random_box(*image.size, rng)
    image = image.crop((x, y, x + w, y + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)[:, :: 1 if rng.random() < 0.5 else -1]


def grain_loader(data_dir, batch, workers):
    import grain

    files = files_of(data_dir)
    data = (
        grain.MapDataset.source(files)
        .seed(0)
        .shuffle()
        .random_map(grain_image)
        .batch(batch)
        .repeat()  # repeat last: epochs keep their own batches
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        .mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
    )
    batches = iter(data)

    def close():
        nonlocal batches
        batches.close()
        del batches  # else it complains as the interpreter exits

    return Loader(lambda: (next(batches) for _ in range(math.ceil(len(files) / batch))), close)


def tfdata_loader(data_dir, batch, workers):
    import tensorflow as tf

    files = files_of(data_dir)

    def image(path):
        jpeg = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(jpeg),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        pixels = tf.image.decode_and_crop_jpeg(
            jpeg, tf.concat([begin[:2], size[:2]], 0), channels=3, dct_method="INTEGER_ACCURATE"
        )
        pixels = tf.image.resize(pixels, (SIZE, SIZE), "bilinear", antialias=True)
        return tf.cast(tf.round(tf.image.random_flip_left_right(pixels)), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False  # it held short epochs up to .64 or 1.28 s
    data = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files))
        .map(image, num_parallel_calls=workers, deterministic=False)
        .batch(batch)
        .prefetch(2)
        .with_options(options)
    )
    return Loader(data.as_numpy_iterator)


def dali_loader(data_dir, batch, workers):
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None)
    def pipeline():
        jpegs, _ = fn.readers.file(file_root=data_dir, shuffle_after_epoch=True, pad_last_batch=True, name="files")
        images = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        images = fn.resize(images, size=[SIZE, SIZE], antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))

    loader = DALIGenericIterator(
        pipeline(), ["images"], reader_name="files", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL
    )
    return Loader(lambda: (outputs[0]["images"] for outputs in loader))


def spdl_loader(data_dir, batch, workers):
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    files = files_of(data_dir)

    def image(path):
        packets = spdl.io.demux_image(path)
        x, y, w, h = random_box(packets.width, packets.height)
        flip = "hflip," if random.random() < 0.5 else ""
        return spdl.io.decode_packets(
            packets,
            filter_desc=(
                f"crop={w}:{h}:{x}:{y}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear+full_chroma_int,{flip}format=rgb24"
            ),
        )

    def images(paths):  # whole batches per call: faster than single
        return spdl.io.to_numpy(spdl.io.convert_frames([image(path) for path in paths]))

    def epoch():
        pipeline = (
            PipelineBuilder()
            .add_source(random.sample(files, len(files)))
            .aggregate(batch)
            .pipe(images, concurrency=workers)
            .add_sink(2)
            .build(num_threads=workers)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return Loader(epoch)


def datago_loader(data_dir, batch, workers):
    """No random crop in datago: whole image -> Lanczos3 -> centre crop; flip and stack here."""
    import json

    import numpy as np

    os.environ["DATAGO_MAX_TASKS"] = str(workers)
    from datago import DatagoClient

    client = DatagoClient(
        json.dumps(
            {
                "source_type": "file",
                "source_config": {"root_path": data_dir, "random_sampling": True},
                "image_config": {
                    "crop_and_resize": True,
                    "default_image_size": SIZE,
                    "image_to_rgb8": True,
                    "downsampling_ratio": 32,
                    "min_aspect_ratio": 1.0,
                    "max_aspect_ratio": 1.0,
                },
                "samples_buffer_size": 2 * batch,
                "limit": len(files_of(data_dir)),
            }
        )
    )

    def epoch():
        client.start()
        images = []
        while (sample := client.get_sample()) is not None:
            image = sample.image.to_numpy_array()
            images.append(image[:, ::-1] if random.random() < 0.5 else image)
            if len(images) == batch:
                yield np.stack(images)
                images = []
        if images:
            yield np.stack(images)

    return Loader(epoch, client.stop)


def tidegate_loader(data_dir, batch, workers):
    """Default options, except for those that the work needs and the number of threads."""
    import tidegate as tg

    name = tg.open(data_dir)
    field = "jpg" if "jpg" in name.schema else "image"
    loader = tg.Loader(
        name,
        batch_size=batch,
        memory=os.environ.get("TIDEGATE_MEMORY", "64MiB"),
        shuffle=True,
        workers=workers,
        fields={field: tg.Image(SIZE, crop="random", flip=True)},
    )
    return Loader(lambda: (b[field] for b in loader), loader.close)


# The same loader: it finds the checkpoints that were made for the files.
tidegate_checkpoints_loader = tidegate_loader
