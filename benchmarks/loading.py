"""Reading and augmenting JPEG files of ImageNet's usual 500x375, against torchvision's own loader.

The peer is what pytorch/vision's classification references load with: `ImageFolder`, which reads by Pillow, and torch's
`DataLoader`. Files, transforms, batch and worker processes are the same on both sides; ours also turns pictures
upright, seeds every sample by itself and names the files that it cannot read. The last row holds the choice of the
decoder: Pillow and transforms of pictures against `torchvision.io` and the same transforms of tensors, in one process;
scaling in HSV, which torchvision has for neither, is left out on both sides.

The photographs are scikit-learn's two, cut to 500x375 at changing places, and saved with about as many bytes as
ImageNet's files have on average (108 kB).
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from benchmarks.pairs import Row, main
from nlprobe.data import Batches, open_dataset
from nlprobe.data.images import read_image
from nlprobe.training import recipe

WORKERS = 1
BATCH = 16
IMAGES = 96
WIDTH, HEIGHT = 500, 375
QUALITY = 95
IMAGENET = recipe("imagenet")


@cache
def data() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """Two classes of photographs; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory()
    generator = np.random.default_rng(0)
    for label, pixels in enumerate(load_sample_images().images):
        photograph = Image.fromarray(pixels)
        place = Path(folder.name) / str(label)
        place.mkdir()
        for number in range(IMAGES // 2):
            left = int(generator.integers(photograph.width - WIDTH + 1))
            top = int(generator.integers(photograph.height - HEIGHT + 1))
            cut = photograph.crop((left, top, left + WIDTH, top + HEIGHT))
            cut.save(place / f"{number}.jpg", quality=QUALITY)
    return folder, Path(folder.name)


@cache
def files() -> list[Path]:
    return sorted(data()[1].rglob("*.jpg"))


@cache
def ours(transform: Callable[[Any], Any], seed: int | None) -> Batches:
    return Batches(open_dataset(data()[1], "train"), transform, BATCH, workers=WORKERS, seed=seed)


@cache
def peer(transform: Callable[[Any], Any], shuffle: bool) -> DataLoader[Any]:
    folder = ImageFolder(data()[1], transform)
    return DataLoader(folder, BATCH, shuffle=shuffle, num_workers=WORKERS, persistent_workers=True)


@cache
def augmented() -> Callable[[Any], Any]:
    return IMAGENET.augmentation.transform(IMAGENET.preprocessing)


@cache
def centred() -> Callable[[Any], Any]:
    return IMAGENET.preprocessing.transform()


def through(batches: Iterable[Any]) -> int:
    """Go through an epoch."""
    return sum(len(batch[0]) for batch in batches)


@cache
def unscaled() -> Callable[[Any], Any]:
    without = dataclasses.replace(IMAGENET.augmentation, hsv=(1.0, 1.0))
    return without.transform(IMAGENET.preprocessing)


def decode(path: Path) -> Any:
    """The file as an RGB tensor by torchvision's own decoder, upright."""
    return decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)


ROWS = [
    Row(
        f"training pictures: {IMAGES} of {WIDTH}x{HEIGHT}, {WORKERS} worker",
        1.03,
        "at_most",
        lambda: through(ours(augmented(), 0)),
        lambda: through(peer(augmented(), True)),
    ),
    Row(
        f"validation pictures: {IMAGES} of {WIDTH}x{HEIGHT}, {WORKERS} worker",
        1.03,
        "at_most",
        lambda: through(ours(centred(), None)),
        lambda: through(peer(centred(), False)),
    ),
    Row(
        f"Pillow against torchvision.io: {IMAGES} of {WIDTH}x{HEIGHT}, no HSV",
        1.0,
        "at_most",
        lambda: [unscaled()(read_image(path)) for path in files()],
        lambda: [unscaled()(decode(path)) for path in files()],
    ),
]


if __name__ == "__main__":
    raise SystemExit(main(ROWS))
