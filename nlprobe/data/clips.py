"""From a video to the clips that a network takes: which frames, and what is done to them.

A clip's tensor is (3, T, H, W). All draws are made with torch's generator, as those of `augmentation` are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from nlprobe.data.preprocessing import Preprocessing
from nlprobe.data.video import Video
from nlprobe.errors import ConfigError

KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

ClipTransform = Callable[[Video], Float[Tensor, "..."]]


@dataclass(frozen=True)
class ClipPreprocessing(Preprocessing):
    """Take the central clip of a video, then do to each of its frames what `Preprocessing` does to a picture.

    Attributes:
        frames: Frames in a clip.
        stride: From one to the next, in frames of the video.
        rate: If set, strides are counted in frames of a video with that many a second, so that a clip lasts as long
            whatever the video's own rate.

    Raises:
        ConfigError: as `Preprocessing`, or a number that cannot be.
    """

    holds = "videos"

    mean: tuple[float, float, float] = KINETICS_MEAN
    std: tuple[float, float, float] = KINETICS_STD
    frames: int = 8
    stride: int = 8
    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.frames, self.stride) < 1 or self.rate < 0:
            raise ConfigError(
                f"preprocessing: {self.frames} frames, stride {self.stride}, rate {self.rate:g}",
                "`frames` and `stride` are 1 or more, `rate` is not negative",
            )
        if self.longest or self.pad:
            raise ConfigError(
                f"preprocessing: `longest` {self.longest} and `pad` {self.pad} of clips", "leave both at 0"
            )
        if self.interpolation == "lanczos":
            raise ConfigError("preprocessing: clips cannot be resized by `lanczos`", "use `bilinear` or `bicubic`")

    def transform(self) -> ClipTransform:
        """A function from a video to the middle of its central clip, (3, frames, crop, crop)."""

        def transform(video: Video) -> Float[Tensor, "3 t h w"]:
            (clip,) = self.clips(video, 1)
            return self.finished(central_crop(self.resized(clip), self.crop))

        return transform

    def photograph(self) -> ClipTransform:
        """The same without the crop; for figures."""

        def transform(video: Video) -> Float[Tensor, "3 t h w"]:
            (clip,) = self.clips(video, 1)
            return self.finished(self.resized(clip))

        return transform

    def views(self, clips: int = 10, crops: int = 3) -> ClipTransform:
        """A function from a video to all its views, (clips · crops, 3, frames, resize, resize).

        Clips lie in the middles of equal parts of the video, crops are squares of the whole shorter side, spread evenly
        along the longer one from end to end. View number clip · crops + crop is row of that number.

        Raises:
            ConfigError: no view, or frames are left in their own size, of which no equal squares can be cut.
        """
        if min(clips, crops) < 1 or not self.resize:
            raise ConfigError(
                f"{clips} clips and {crops} crops of {self}", "use 1 or more of each, and set `preprocessing.resize`"
            )

        def transform(video: Video) -> Float[Tensor, "views 3 t h w"]:
            resized = [self.resized(clip) for clip in self.clips(video, clips)]
            return torch.stack([self.finished(view) for clip in resized for view in spread_crops(clip, crops)])

        return transform

    def clips(self, video: Video, count: int) -> list[UInt8[Tensor, "t 3 h w"]]:
        """`count` clips, in the middles of equal parts of the video; the video is read once."""
        starts = clip_starts(video.frame_count, self.offsets(video)[-1] + 1, count)
        chosen = [self.indices(video, start) for start in starts]
        needed = sorted({index for clip in chosen for index in clip})
        place = {index: at for at, index in enumerate(needed)}
        frames = video.frames(needed).permute(0, 3, 1, 2)
        return [frames[[place[index] for index in clip]] for clip in chosen]

    def offsets(self, video: Video) -> list[int]:
        """The frames of a clip, counted from its first."""
        step = self.stride * (video.fps / self.rate if self.rate and video.fps else 1)
        return [int(number * step) for number in range(self.frames)]

    def indices(self, video: Video, start: int) -> list[int]:
        """The frames of a clip; where the video is too short, its last frame is repeated."""
        return [min(start + offset, video.frame_count - 1) for offset in self.offsets(video)]

    def resized(self, clip: UInt8[Tensor, "t 3 h w"], shorter: int = 0) -> UInt8[Tensor, "t 3 h2 w2"]:
        """The frames with their shorter side brought to `shorter`, or to `resize`."""
        side = shorter or self.resize
        return functional.resize(clip, [side], self.mode(), antialias=self.antialias) if side else clip

    def finished(self, clip: UInt8[Tensor, "t 3 h w"]) -> Float[Tensor, "3 t h w"]:
        """The clip as the network takes it, normalised."""
        values = clip.transpose(0, 1).contiguous().float().div_(255)
        mean, std = (torch.tensor(numbers)[:, None, None, None] for numbers in (self.mean, self.std))
        return values.sub_(mean).div_(std)

    def __str__(self) -> str:
        seconds = f" at {self.rate:g} frames a second" if self.rate else ""
        return f"{self.frames} frames, stride {self.stride}{seconds}; {super().__str__()}"


@dataclass(frozen=True)
class ClipAugmentation:
    """What happens to a training video: a clip from a random place, resized at random, a random crop, mirrored or not.

    Attributes:
        shorter: The shorter side is brought to a whole number of pixels, uniform in this range.
        flip: Probability of a horizontal flip.

    Raises:
        ConfigError: a number is out of its range.
    """

    shorter: tuple[int, int] = (256, 320)
    flip: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "shorter", tuple(int(number) for number in self.shorter))
        if len(self.shorter) != 2 or not 0 < self.shorter[0] <= self.shorter[1]:
            raise ConfigError(
                f"augmentation: `shorter` is {list(self.shorter)}", "give its lower and its upper end, positive"
            )
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augmentation: `flip` is {self.flip}", "it is a probability")

    def transform(self, preprocessing: ClipPreprocessing) -> ClipTransform:
        """A random function from a video to (3, frames, crop, crop), normalised as in `preprocessing`.

        Raises:
            ConfigError: the crop does not fit into the shorter side.
        """
        if not 0 < preprocessing.crop <= self.shorter[0]:
            raise ConfigError(
                f"augmentation: `crop` {preprocessing.crop} of the preprocessing does not fit into a shorter side from "
                f"{self.shorter[0]} on",
                "change one of the two",
            )

        def transform(video: Video) -> Float[Tensor, "3 t h w"]:
            room = video.frame_count - preprocessing.offsets(video)[-1]
            indices = preprocessing.indices(video, _drawn(max(room, 1)))
            frames = video.frames(indices).permute(0, 3, 1, 2)
            low, high = self.shorter
            clip = preprocessing.resized(frames, low + _drawn(high - low + 1))
            top, left = (_drawn(side - preprocessing.crop + 1) for side in clip.shape[-2:])
            clip = clip[..., top : top + preprocessing.crop, left : left + preprocessing.crop]
            if torch.rand(()) < self.flip:
                clip = clip.flip(-1)
            return preprocessing.finished(clip)

        return transform


def clip_starts(count: int, span: int, clips: int) -> list[int]:
    """First frames of clips that lie in the middles of equal parts of a video.

    Args:
        count: Frames of the video.
        span: Frames from the first to the last of a clip, both included.
        clips: How many clips; one lies in the middle of the video.
    """
    places = max(count - span, 0) + 1
    return [(2 * clip + 1) * places // (2 * clips) for clip in range(clips)]


def central_crop(clip: UInt8[Tensor, "t 3 h w"], side: int) -> UInt8[Tensor, "t 3 h2 w2"]:
    """The central square, or the whole for 0."""
    return functional.center_crop(clip, [side]) if side else clip


def spread_crops(clip: UInt8[Tensor, "t 3 h w"], count: int) -> Sequence[UInt8[Tensor, "t 3 s s"]]:
    """Squares of the shorter side, spread evenly along the longer one from end to end; a single one is central."""
    height, width = clip.shape[-2:]
    side, room = min(height, width), abs(height - width)
    places = [round(room * number / (count - 1)) for number in range(count)] if count > 1 else [round(room / 2)]
    return [
        clip[..., place : place + side, :] if height > width else clip[..., place : place + side] for place in places
    ]


def read_preprocessing(settings: dict[str, Any]) -> Preprocessing:
    """The preprocessing that `as_dict` wrote, of pictures or of clips.

    Raises:
        ConfigError: a key is unknown, or a value cannot be.
    """
    return (ClipPreprocessing if "frames" in settings else Preprocessing).from_dict(settings)


def _drawn(count: int) -> int:
    """A whole number from 0 to `count` - 1."""
    return int(torch.randint(count, ()))
