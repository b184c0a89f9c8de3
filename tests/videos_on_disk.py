"""Videos whose frames carry their number, as four by two squares that are bright or dark: its bits."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.random import default_rng
from PIL import Image

WIDTH, HEIGHT = 64, 48
SIDE = 16


def numbered(number: int, seed: int = 0) -> np.ndarray:
    """A picture (48, 64, 3) of a number below 256: squares on a band of noise that moves."""
    pixels = np.roll(default_rng(seed).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8), 3 * number, axis=1)
    for bit in range(8):
        top, left = SIDE * (bit // 4), SIDE * (bit % 4)
        pixels[top : top + SIDE, left : left + SIDE] = 230 if number >> bit & 1 else 25
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The number that a picture carries."""
    centres = [pixels[SIDE * (bit // 4) + 8, SIDE * (bit % 4) + 8] for bit in range(8)]
    return sum(int(centre.mean() > 128) << bit for bit, centre in enumerate(centres))


def write_video(
    path: Path,
    codec: str = "libx264",
    count: int = 60,
    *,
    fps: int = 25,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    b_frames: int | None = None,
    keys: int = 12,
    matrix: Sequence[int] | None = None,
    sound: bool = False,
) -> Path:
    """Write a video of numbered frames.

    Args:
        path: The file; its suffix says which container.
        codec: What encodes it.
        count: Frames, each shown for 1/`fps` of a second.
        fps: Frames per second.
        times: When each is shown instead, in milliseconds.
        options: The encoder's.
        container: The muxer's.
        b_frames: Frames between two others that are predicted from both, at most.
        keys: Frames from one keyframe to the next, at most.
        matrix: The display matrix.
        sound: Add a second of silence.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unit = Fraction(1, 1000) if times is not None else Fraction(1, fps)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = keys
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if matrix is not None:
            stream.set_display_matrix(matrix)
        silence = file.add_stream("aac", rate=16000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = (number if times is None else times[number]), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if silence is not None:
            file.mux(_silence(silence))
    return path


def write_sound(path: Path) -> Path:
    """A file that holds sound and no pictures."""
    with av.open(str(path), "w") as file:
        file.mux(_silence(file.add_stream("aac", rate=16000)))
    return path


def write_frames(folder: Path, count: int = 20, pattern: str = "img_{:05d}.png", first: int = 1) -> Path:
    """A folder of numbered frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered(number)).save(folder / pattern.format(number + first))
    return folder


def decoded_throughout(path: Path) -> np.ndarray:
    """All frames of a file in RGB, by decoding it from its beginning to its end."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def _silence(stream: av.AudioStream) -> list[av.Packet]:
    frame = av.AudioFrame.from_ndarray(
        np.zeros((stream.layout.nb_channels, 16384), dtype=np.float32), format="fltp", layout=stream.layout.name
    )
    frame.sample_rate, frame.pts = 16000, 0
    return [*stream.encode(frame), *stream.encode(None)]
