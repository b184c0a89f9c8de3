"""Frames of video files, exact to the frame, decoded with PyAV from the keyframe before.

A container's seek goes to a time and lands near it, headers miscount frames, and frames are stored in another order
than they are shown. So the packets are gone through once without decoding them (`index_frames`): their times, sorted,
number the frames. To read frames, the file is sought, packets are passed over up to the very keyframe that the index
names, and decoding goes on until the frames with the right times come out. Where they do not, everything from the
beginning on is decoded. Containers that do not store times, when they store frames in another order too (AVI with
B-frames), are decoded from the beginning and counted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nlprobe.data.images import UnreadableImageError
from nlprobe.errors import MissingExtraError

# Containers that store the time at which each frame is shown.
_TIMED = ("mov", "mp4", "matroska", "webm", "mpegts", "flv", "ogg", "asf", "nut")
# A header's duration may be that of a longer sound: only far less than it is a sign that a file has been cut off.
_LEAST_SHARE, _LEAST_SECONDS = 0.9, 1.0
_HOLE = 16  # bytes

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Keyframe:
    """A frame from which decoding may begin: its place in the order of decoding, and its times."""

    place: int
    time: int
    seek: int


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video file in the order in which they are shown.

    Attributes:
        times: When each is shown, in units of `unit`.
        stored: When the frame of each packet is shown, in the order of decoding; empty where frames have to be counted.
        keyframes: In the order of decoding.
        unit: Seconds.
        cut_off: What tells that the file has lost its end; empty if nothing does.
    """

    times: tuple[int, ...]
    stored: tuple[int, ...]
    keyframes: tuple[Keyframe, ...]
    unit: Fraction
    cut_off: str = ""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def counted(self) -> bool:
        """Whether times cannot be trusted, so that frames are decoded from the beginning and counted."""
        return not self.stored

    @property
    def rate(self) -> float | None:
        """Mean number of frames in a second."""
        span = (self.times[-1] - self.times[0]) * self.unit
        return float((len(self) - 1) / span) if span > 0 else None

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of each time in the order of decoding."""
        return {time: place for place, time in enumerate(self.stored)}

    def keyframe(self, frame: int) -> Keyframe:
        """The last keyframe that is neither shown nor decoded after a frame."""
        time = self.times[frame]
        place = self.places[time]
        before = [key for key in self.keyframes if key.place <= place and key.time <= time]
        return before[-1] if before else self.keyframes[0]


def index_frames(path: Path, name: str) -> FrameIndex:
    """Number the frames of a file; O(packets), nothing is decoded where the file stores times.

    Raises:
        MissingExtraError: PyAV is not installed.
        UnreadableImageError: the file is missing, damaged from the start, without pictures, or without a frame.
    """
    with _opened(path, name) as (container, stream):
        packets = [packet for packet in _packets(container, stream) if packet.size]
        if not packets:
            raise UnreadableImageError(name, "it holds no frame")
        shown = [packet.pts for packet in packets if not (packet.is_discard or packet.is_corrupt)]
        unit = Fraction(stream.time_base)
        if not shown or not _trusted(container, stream, shown):
            times = _counted(path, name)
            if not times:
                raise UnreadableImageError(name, "none of its frames can be decoded")
            return FrameIndex(times, (), (), unit, _cut_off(container, stream, packets, times))
        keyframes = tuple(
            Keyframe(place, packet.pts, packet.pts if packet.dts is None else min(packet.dts, packet.pts))
            for place, packet in enumerate(packets)
            if packet.is_keyframe
        ) or (Keyframe(0, packets[0].pts, packets[0].pts),)
        times, stored = tuple(sorted(shown)), tuple(packet.pts for packet in packets)
        return FrameIndex(times, stored, keyframes, unit, _cut_off(container, stream, packets, times))


def decode_frames(path: Path, name: str, index: FrameIndex, wanted: Sequence[int]) -> dict[int, Pixels]:
    """The frames of those numbers, sorted and without repeats, in RGB and upright.

    Raises:
        MissingExtraError: PyAV is not installed.
        UnreadableImageError: the file is missing by now, or one of the frames, or one that it is predicted from, is
            damaged.
    """
    read: dict[int, Pixels] = {}
    with _opened(path, name) as (container, stream):
        if index.counted:
            read = _by_counting(container, stream, wanted)
        else:
            for key, frames in groupby(wanted, index.keyframe):
                read |= _by_time(container, stream, index, list(frames), key)
    left = [frame for frame in wanted if frame not in read]
    if left and not index.counted:
        with _opened(path, name) as (container, stream):
            read |= _by_time(container, stream, index, left, None)
        left = [frame for frame in wanted if frame not in read]
    if left:
        raise UnreadableImageError(name, f"its frame {left[0]} of {len(index)} cannot be decoded")
    return read


def _by_time(
    container: Any, stream: Any, index: FrameIndex, frames: list[int], key: Keyframe | None
) -> dict[int, Pixels]:
    """Those of the frames that can be decoded, and told by their times, from a keyframe on, or from the beginning.

    From a keyframe on, frames that are neither wanted nor needed by others are not decoded.
    """
    wanted = {index.times[frame]: frame for frame in frames}
    begin = key.place if key else 0
    end = max(index.places[time] for time in wanted)
    # What a frame is predicted from may be shown after it, and only then is told to be damaged.
    last = max(index.stored[begin : end + 1])
    reformatter = pyav().video.reformatter.VideoReformatter()
    read: dict[int, Pixels] = {}
    damaged: list[int] = []
    for place, packet in _packets_from(container, stream, index, key):
        if key:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
        decoded = _decoded(packet)
        damaged += [place] if decoded is None else []
        for frame in decoded or ():
            damaged += [index.places[frame.pts]] if frame.is_corrupt and frame.pts in index.places else []
            if frame.pts in wanted:
                read[wanted[frame.pts]] = _upright(frame, reformatter)
        if any(frame.pts is not None and frame.pts >= last for frame in decoded or ()):
            break
    return {frame: pixels for frame, pixels in read.items() if not _touched(index, frame, damaged)}


def _touched(index: FrameIndex, frame: int, damaged: Sequence[int]) -> bool:
    """Whether damaged packets lie between a frame's keyframe and itself."""
    begin, end = index.keyframe(frame).place, index.places[index.times[frame]]
    return any(begin <= place <= end for place in damaged)


def _packets_from(container: Any, stream: Any, index: FrameIndex, key: Keyframe | None) -> Iterator[tuple[int, Any]]:
    """The packets from a keyframe's own on, with their places; none where seeking lands behind it."""
    place = -1
    if key:
        try:
            container.seek(key.seek, stream=stream)
        except pyav().FFmpegError:
            return
    for packet in _packets(container, stream):
        if key and place < 0:
            at = index.places.get(packet.pts, -1)
            if at > key.place:
                return
            place = at if at == key.place else -1
        else:
            place += 1
        if place >= 0:
            yield place, packet


def _by_counting(container: Any, stream: Any, frames: Sequence[int]) -> dict[int, Pixels]:
    """Those of the frames that can be decoded, by decoding everything before them."""
    reformatter = pyav().video.reformatter.VideoReformatter()
    read: dict[int, Pixels] = {}
    for number, frame in enumerate(_all(container, stream)):
        if number in frames and not frame.is_corrupt:
            read[number] = _upright(frame, reformatter)
        if number >= frames[-1]:
            break
    return read


def _counted(path: Path, name: str) -> tuple[int, ...]:
    """The times of all frames by decoding them; where they are not given, or not in order, evenly spread."""
    with _opened(path, name) as (container, stream):
        times = [frame.pts for frame in _all(container, stream)]
        if all(time is not None for time in times) and all(one < other for one, other in pairwise(times)):
            return tuple(times)
        step = Fraction(stream.duration or 0, max(len(times), 1)) or 1
        return tuple(int(number * step) for number in range(len(times)))


def _trusted(container: Any, stream: Any, times: list[int | None]) -> bool:
    """Whether times of packets are those of the frames: stored for each, or of frames stored as they are shown."""
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times):
        return False
    if any(one in _TIMED for one in container.format.name.split(",")):
        return True
    return not stream.codec_context.has_b_frames and all(a < b for a, b in pairwise(known))


def _cut_off(container: Any, stream: Any, packets: list[Any], times: tuple[int, ...]) -> str:
    """What tells that a file has lost its end."""
    if "mp4" in container.format.name and len(packets) < stream.frames:
        return f"it is cut off: {len(packets)} of its {stream.frames} frames are there"
    if packets[-1].is_corrupt:
        return f"it is cut off within frame {len(times)}"
    seconds = (container.duration or 0) / 1e6
    there = float(times[-1] * stream.time_base)
    if there < _LEAST_SHARE * seconds and there < seconds - _LEAST_SECONDS:
        return f"it is cut off: {there:.1f} of the {seconds:.1f} seconds that it tells of are there"
    return ""


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its stream of pictures, decoded in this thread alone."""
    av = pyav()
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise UnreadableImageError(name, _reason(error)) from error
    with container:
        pictures = [
            each for each in container.streams.video if not each.disposition & av.stream.Disposition.attached_pic
        ]
        if not pictures:
            raise UnreadableImageError(
                name, f"it holds {'nothing but sound' if container.streams.audio else 'no pictures'}"
            )
        stream = pictures[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        yield container, stream


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, up to where the file can be read; the last is empty, and drains the decoder."""
    try:
        yield from container.demux(stream)
    except pyav().FFmpegError:
        return


def _all(container: Any, stream: Any) -> Iterator[Any]:
    """All frames that can be decoded."""
    for packet in _packets(container, stream):
        yield from _decoded(packet) or ()


def _decoded(packet: Any) -> list[Any] | None:
    """The frames that a packet brings out of the decoder; None where it is damaged."""
    # Some decoders pass over zeros without a word, and interrupted downloads leave holes of zeros.
    if packet.size >= _HOLE and not any(memoryview(packet)[-_HOLE:]):
        return None
    try:
        frames: list[Any] = packet.decode()
        return frames
    except pyav().FFmpegError:
        return None


def _upright(frame: Any, reformatter: Any) -> Pixels:
    """A frame in RGB, turned and mirrored as its display matrix says."""
    pixels = reformatter.reformat(frame, format="rgb24").to_ndarray()
    matrix = _display_matrix(frame)
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), y downwards.
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels = pixels.swapaxes(0, 1)
        across, down = c, b
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return np.ascontiguousarray(pixels[::-1] if down < 0 else pixels)


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            numbers = np.frombuffer(bytes(data), dtype=np.int32)
            return int(numbers[0]), int(numbers[1]), int(numbers[3]), int(numbers[4])
    return None


def _reason(error: Exception) -> str:
    av = pyav()
    if isinstance(error, av.FileNotFoundError):
        return "it is not there"
    if isinstance(error, av.InvalidDataError):
        return "it is no video that FFmpeg knows, or has lost the part that says what is in it"
    return getattr(error, "strerror", None) or str(error)


def pyav(purpose: str = "reading video files") -> ModuleType:
    """PyAV, which is imported when it is needed.

    Args:
        purpose: What needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
        import av.stream
        import av.video.reformatter
    except ImportError as error:
        raise MissingExtraError("av", "video", purpose) from error
    return av
