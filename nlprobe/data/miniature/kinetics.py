"""A miniature Kinetics: CSVs and H.264 files, in which the motion is the class and no single frame tells it."""

import base64
import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nlprobe.data.decoding import pyav
from nlprobe.data.miniature.motions import MOTIONS, FilmSettings, compose_film
from nlprobe.data.miniature.scenes import material
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder

CLASSES = tuple(sorted(MOTIONS))
SPLITS = ("train", "val")
RATE = 12  # frames a second
SETTINGS = FilmSettings()

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_LONGEST_SOURCE = 300  # seconds of the film that a video claims to be cut from

# The same bytes for the same frames need one thread, and no looking ahead: with frames as small as these x264's takes
# in what happened to lie in memory. The quality is such that compression leaves no motion to be seen in a single frame.
_UNSEEING = "b-adapt=0:scenecut=0:weightp=0:weightb=0:mbtree=0:rc-lookahead=0:aq-mode=0"
_ENCODER = {"preset": "veryfast", "threads": "1", "x264-params": f"qp=18:{_UNSEEING}"}
_GROUP, _B_FRAMES = 12, 2


@dataclass(frozen=True)
class _Line:
    """What the CSV says of a video."""

    label: str
    youtube_id: str
    start: int
    end: int
    split: str

    @property
    def file(self) -> str:
        return f"{self.label}/{self.youtube_id}_{self.start:06d}_{self.end:06d}.mp4"


def write_miniature_kinetics(
    out: Path | str,
    seed: int = 0,
    train: int = 800,
    val: int = 160,
    *,
    force: bool = False,
    settings: FilmSettings = SETTINGS,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda videos, label: videos,
) -> Path:
    """Write `out`/kinetics/{train,val}.csv and `out`/kinetics/{train,val}/<class>/<id>_<start>_<end>.mp4.

    The class of a video is how its digits move: left, right, up, down, turning one way or the other, growing or
    shrinking. A single frame does not tell it (see `nlprobe.data.miniature.motions`); the order of the frames does.
    `annotations/<split>.json` lists the digits of each video.

    The files are a function of `seed` and the video's number: byte for byte the same each time with the same version of
    PyAV, and the same whether more or fewer of them are asked for.

    Args:
        out: Folder in which `kinetics` is made.
        seed: Seed of everything random.
        train: Number of training videos, spread evenly over the eight classes.
        val: Number of validation videos.
        force: Replace a `kinetics` that is there.
        settings: What the videos look like.
        progress: Passes the videos' numbers on and shows how far they are, under a label.

    Returns:
        The folder `out`/kinetics.

    Raises:
        ConfigError: the folder is there already, or there would be a class without a video.
        MissingExtraError: scikit-learn or PyAV is not installed.
        DataError: the folder cannot be written.
    """
    if min(train, val) < len(CLASSES):
        raise ConfigError(
            f"{train} training and {val} validation videos leave classes empty",
            f"ask for at least {len(CLASSES)} of each",
        )
    pyav("writing miniature Kinetics")
    root = Path(out) / "kinetics"
    with new_folder(root, force=force) as partial_root:
        (partial_root / "annotations").mkdir(parents=True)
        for split, count in zip(SPLITS, (train, val), strict=True):
            for name in CLASSES:
                (partial_root / split / name).mkdir(parents=True)
            written = [
                _write(partial_root, split, seed, settings, index)
                for index in progress(range(count), f"{split} videos")
            ]
            _write_table(partial_root / f"{split}.csv", [line for line, _ in written])
            lines = ",\n".join(json.dumps(annotation) for _, annotation in written)
            (partial_root / "annotations" / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return root


def _write(root: Path, split: str, seed: int, settings: FilmSettings, index: int) -> tuple[_Line, dict[str, Any]]:
    label = CLASSES[index % len(CLASSES)]
    rng = np.random.default_rng([seed, 2, SPLITS.index(split), index])
    start = int(rng.integers(_LONGEST_SOURCE))
    film = compose_film(material(split), label, rng, settings)
    seconds = -(-len(film.frames) // RATE)
    line = _Line(label, _identifier(seed, split, index), start, start + seconds, split)
    encode(root / split / line.file, film.frames, RATE)
    return line, {"video": line.file, "class": label, "frames": len(film.frames), "objects": film.describe()}


def _write_table(path: Path, lines: list[_Line]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows((line.label, line.youtube_id, line.start, line.end, line.split) for line in lines)


def _identifier(seed: int, split: str, index: int) -> str:
    """Eleven characters, as the site has them."""
    digest = hashlib.sha256(f"{seed} {split} {index}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:11]


def encode(path: Path, frames: UInt8[np.ndarray, "t h w 3"], rate: int) -> None:
    """Write frames as H.264, with B-frames and a keyframe at least every second.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    av = pyav("writing video files")
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_ENCODER)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = _GROUP, _B_FRAMES
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
