"""Clips are the frames that they claim to be, and what is random in them is a function of seed, epoch and index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from videos_on_disk import number_of, numbered, write_video

from nlprobe.data import (
    Batches,
    ClipAugmentation,
    ClipPreprocessing,
    FrameStack,
    Preprocessing,
    UnreadableImageError,
    open_dataset,
    read_preprocessing,
)
from nlprobe.data.clips import clip_starts, spread_crops
from nlprobe.errors import ConfigError

ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
AS_THEY_ARE = ClipPreprocessing(resize=0, crop=0, mean=ZEROS, std=ONES, frames=4, stride=5)


def stack(count: int = 100, fps: float | None = None) -> FrameStack:
    return FrameStack(np.stack([numbered(number) for number in range(count)]), fps)


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers of the frames in a clip (3, T, 48, 64)."""
    return [number_of(frame) for frame in (255 * clip).round().byte().permute(1, 2, 3, 0).numpy()]


def test_a_clip_is_the_central_one_with_its_stride() -> None:
    clip = AS_THEY_ARE.transform()(stack(100))
    assert clip.shape == (3, 4, 48, 64)
    assert numbers(clip) == [42, 47, 52, 57]  # 85 starts from 0 to 84


def test_clips_lie_in_the_middles_of_equal_parts() -> None:
    assert clip_starts(100, 57, 1) == [22]
    assert clip_starts(100, 57, 10) == [2, 6, 11, 15, 19, 24, 28, 33, 37, 41]
    assert clip_starts(57, 57, 3) == [0, 0, 0]
    assert clip_starts(20, 57, 2) == [0, 0]
    for count in (57, 58, 60, 75, 300):
        starts = clip_starts(count, 57, 10)
        assert 0 <= starts[0] <= starts[-1] <= count - 57
        mirrored = [count - 57 - start for start in reversed(starts)]
        assert np.abs(np.subtract(starts, mirrored)).max() <= 1


def test_of_a_video_that_is_too_short_the_last_frame_is_repeated() -> None:
    assert numbers(AS_THEY_ARE.transform()(stack(12))) == [0, 5, 10, 11]
    assert numbers(AS_THEY_ARE.transform()(stack(1))) == [0, 0, 0, 0]
    drawn = ClipAugmentation((48, 48), flip=0.0).transform(ClipPreprocessing(48, 48, ZEROS, ONES, frames=4, stride=5))
    assert drawn(stack(12)).shape == (3, 4, 48, 48)


def test_a_rate_makes_clips_of_equal_length_in_seconds() -> None:
    at_ten = ClipPreprocessing(resize=0, crop=0, mean=ZEROS, std=ONES, frames=4, stride=5, rate=10.0)
    assert np.diff(numbers(at_ten.transform()(stack(100, fps=20.0)))).tolist() == [10, 10, 10]
    assert np.diff(numbers(at_ten.transform()(stack(100, fps=5.0)))).tolist() == [2, 3, 2]
    assert np.diff(numbers(at_ten.transform()(stack(100)))).tolist() == [5, 5, 5]


def test_a_frame_of_a_clip_is_what_preprocessing_makes_of_the_picture() -> None:
    video = stack(30)
    clip = ClipPreprocessing(40, 32, frames=2, stride=3).transform()(video)
    pictures = Preprocessing(40, 32, (0.45,) * 3, (0.225,) * 3)
    for place, index in enumerate([13, 16]):
        tensor = video.frames([index])[0].permute(2, 0, 1)
        assert torch.allclose(clip[:, place], pictures.transform()(v2.functional.to_pil_image(tensor)), atol=0.02)


def test_views_are_numbered_clip_by_clip_and_crop_by_crop() -> None:
    preprocessing = ClipPreprocessing(48, 48, ZEROS, ONES, frames=2, stride=3)
    video = stack(100)
    views = preprocessing.views(10, 3)(video)
    assert views.shape == (30, 3, 2, 48, 48)
    starts = clip_starts(100, 4, 10)
    for clip in range(10):
        whole = video.frames([starts[clip], starts[clip] + 3]).permute(3, 0, 1, 2) / 255
        for crop, left in enumerate((0, 8, 16)):
            assert torch.allclose(views[3 * clip + crop], whole[..., left : left + 48])


def test_views_of_one_video_are_read_once_and_the_middle_one_is_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = ClipPreprocessing(48, 48, frames=2, stride=3)
    video = stack(60)
    calls: list[list[int]] = []
    read = video._read
    monkeypatch.setattr(video, "_read", lambda indices: (calls.append(indices), read(indices))[1])
    views = preprocessing.views(5, 3)(video)
    assert len(calls) == 1
    assert torch.equal(views[3 * 2 + 1], preprocessing.transform()(video))
    assert torch.equal(preprocessing.views(1, 1)(video)[0], preprocessing.transform()(video))


def test_crops_run_along_the_longer_side() -> None:
    clip = torch.arange(20 * 8).reshape(1, 1, 20, 8).expand(1, 3, 20, 8).byte()
    tops = [int(crop[0, 0, 0, 0]) // 8 for crop in spread_crops(clip, 3)]
    assert tops == [0, 6, 12]
    assert [crop.shape[-2:] for crop in spread_crops(clip.mT, 3)] == [(8, 8)] * 3


def test_a_training_clip_is_cut_resized_and_mirrored_at_random() -> None:
    preprocessing = ClipPreprocessing(48, 48, ZEROS, ONES, frames=3, stride=4)
    transform = ClipAugmentation(shorter=(48, 96)).transform(preprocessing)
    video = stack(50)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        clip = transform(video)
        assert clip.shape == (3, 3, 48, 48)
        # The same by hand, from the same draws.
        torch.manual_seed(seed)
        start, shorter = int(torch.randint(42, ())), 48 + int(torch.randint(49, ()))
        frames = video.frames([start, start + 4, start + 8]).permute(0, 3, 1, 2)
        scaled = functional.resize(frames, [shorter], antialias=True)
        top, left = (int(torch.randint(side - 47, ())) for side in scaled.shape[-2:])
        cut = functional.crop(scaled, top, left, 48, 48)
        mirrored = bool(torch.rand(()) < 0.5)
        cut = functional.horizontal_flip(cut) if mirrored else cut
        assert torch.allclose(clip, cut.permute(1, 0, 2, 3) / 255)
        seen.add((start, shorter, mirrored))
    assert len(seen) > 30
    assert {mirrored for *_, mirrored in seen} == {True, False}


def test_clips_come_in_batches_that_no_worker_changes(tmp_path: Path) -> None:
    for name in ("jump", "walk"):
        for number in range(3):
            write_video(tmp_path / "train" / name / f"{number}.mp4", count=20 + number)
    transform = ClipAugmentation((32, 48)).transform(ClipPreprocessing(32, 32, frames=4, stride=2))

    def loaded(workers: int, seed: int = 3) -> list:
        dataset = open_dataset(tmp_path, "train")
        return [
            batch
            for batches in [Batches(dataset, transform, 2, workers=workers, seed=seed)]
            for epoch in (0, 1)
            for batch in batches.epoch(epoch)
        ]

    ours, theirs, others = loaded(0), loaded(2), loaded(0, seed=4)
    assert ours[0].images.shape == (2, 3, 4, 32, 32)
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images)
        assert one.labels.tolist() == [name.startswith("walk") for name in one.ids]
    assert not any(torch.equal(one.images, other.images) for one, other in zip(ours, others, strict=True))


def test_a_video_that_its_transform_cannot_read_is_left_out_and_named(tmp_path: Path) -> None:
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", count=5)
    (tmp_path / "1.mp4").write_bytes(b"gone")
    errors: list[UnreadableImageError] = []
    transform = ClipPreprocessing(32, 32, frames=2, stride=2).transform()
    (batch,) = Batches(open_dataset(tmp_path), transform, 3, report=errors.append, workers=1)
    assert batch.ids == ["0.mp4", "2.mp4"]
    assert batch.images.shape == (2, 3, 2, 32, 32)
    assert batch.labels is None
    assert [error.image for error in errors] == ["1.mp4"]


def test_settings_are_read_back_as_what_they_are() -> None:
    for preprocessing in (ClipPreprocessing(frames=4, rate=30.0), Preprocessing(64, 64)):
        assert read_preprocessing(preprocessing.as_dict()) == preprocessing
        assert type(read_preprocessing(preprocessing.as_dict())) is type(preprocessing)
    assert "8 frames, stride 8; shorter side 256" in str(ClipPreprocessing())
    with pytest.raises(ConfigError, match="unknown setting `speed`"):
        read_preprocessing({"frames": 8, "speed": 1})


@pytest.mark.parametrize(
    "settings", [{"frames": 0}, {"stride": 0}, {"rate": -1.0}, {"interpolation": "lanczos"}, {"crop": 300}, {"pad": 32}]
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        ClipPreprocessing(**settings)


def test_impossible_augmentations_and_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="shorter"):
        ClipAugmentation(shorter=(10, 5))
    with pytest.raises(ConfigError, match="probability"):
        ClipAugmentation(flip=2.0)
    with pytest.raises(ConfigError, match="does not fit"):
        ClipAugmentation(shorter=(100, 320)).transform(ClipPreprocessing())
    with pytest.raises(ConfigError, match="1 or more"):
        ClipPreprocessing().views(0)
    with pytest.raises(ConfigError, match="resize"):
        AS_THEY_ARE.views()
