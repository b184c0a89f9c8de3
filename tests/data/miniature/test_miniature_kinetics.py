"""The miniature Kinetics: native layout, same bytes each time, and a class that only the order of frames tells."""

import csv
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nlprobe.data import open_dataset, write_miniature_kinetics
from nlprobe.data.miniature.kinetics import CLASSES
from nlprobe.data.miniature.motions import MOTIONS, FilmSettings, _drawn, _states, compose_film
from nlprobe.data.miniature.scenes import material
from nlprobe.errors import ConfigError
from nlprobe.models import build, entry

SETTINGS = FilmSettings()
NO_DRIFT = np.zeros(2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_kinetics(tmp_path_factory.mktemp("miniature"), seed=1, train=16, val=8)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.mp4"))
    }


def test_it_opens_as_kinetics(root: Path) -> None:
    training, validation = open_dataset(root, "train"), open_dataset(root, "val")
    assert (training.kind, training.holds, training.missing) == ("Kinetics", "videos", [])
    assert training.classes == validation.classes == list(CLASSES)
    assert (set(Counter(training.labels).values()), set(Counter(validation.labels).values())) == ({2}, {1})
    for index in range(len(training)):
        video = training[index].image
        assert SETTINGS.fewest <= video.frame_count <= SETTINGS.most
        assert (video.size, video.fps) == ((64, 64), pytest.approx(12))
        video.check()


def test_the_csv_is_that_of_kinetics_and_annotations_name_every_video(root: Path) -> None:
    for split in ("train", "val"):
        with (root / f"{split}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        listed = json.loads((root / "annotations" / f"{split}.json").read_text())
        dataset = open_dataset(root, split)
        assert [film["video"] for film in listed] == dataset.ids
        for line, film, label in zip(lines, listed, dataset.labels, strict=True):
            assert line["label"] == film["class"] == CLASSES[label]
            assert (len(line["youtube_id"]), line["split"]) == (11, split)
            assert int(line["time_end"]) - int(line["time_start"]) == -(-film["frames"] // 12)
            assert SETTINGS.digits[0] <= len(film["objects"]) <= SETTINGS.digits[1]


def test_a_seed_gives_the_same_bytes_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    again = digests(write_miniature_kinetics(tmp_path / "again", seed=1, train=8, val=8))
    other = digests(write_miniature_kinetics(tmp_path / "other", seed=2, train=8, val=8))
    assert len(again) == 16
    assert again.items() <= digests(root).items()
    assert not set(other.values()) & set(again.values())


def test_a_video_shows_what_was_composed(root: Path) -> None:
    dataset = open_dataset(root, "train")
    rng = np.random.default_rng([1, 2, 0, 3])
    rng.integers(300)  # the time at which it is said to begin
    film = compose_film(material("train"), CLASSES[3], rng, SETTINGS)
    video = dataset[3].image
    read = video.frames(range(video.frame_count)).numpy()
    assert read.shape == film.frames.shape
    error = np.mean((read.astype(float) - film.frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 28  # colour is stored at half the resolution


@pytest.mark.parametrize("motion", MOTIONS)
def test_in_each_frame_places_angles_and_sizes_are_uniform_whatever_the_motion(motion: str) -> None:
    """The largest gap between empirical and uniform distribution stays below its 99.9 % point, for each, in each."""
    count = 1500
    drift = np.array([0.2, -0.1])
    drawn = np.stack([_states(motion, 32, drift, np.random.default_rng([7, seed]), SETTINGS) for seed in range(count)])
    shares = drawn / [64, 64, 360, 1]
    shares[..., 3] = np.log(drawn[..., 3] / SETTINGS.smallest) / np.log(SETTINGS.largest / SETTINGS.smallest)
    for frame in (0, 9, 16, 31):
        values = shares[:, frame]
        assert values.min() >= 0
        assert values.max() <= 1
        gaps = np.abs(np.sort(values, axis=0) - (np.arange(count) + 0.5)[:, None] / count).max(0)
        assert gaps.max() < 1.95 / np.sqrt(count)
        waves = np.exp(2j * np.pi * values)
        together = np.abs(waves.T.conj() @ waves / count) - np.eye(4)  # 0 for independent ones
        assert together.max() < 4.5 / np.sqrt(count)


def test_what_is_drawn_does_not_hang_on_the_motion() -> None:
    films = [compose_film(material("train"), motion, np.random.default_rng(5), SETTINGS) for motion in MOTIONS]
    assert {film.digits for film in films} == {films[0].digits}
    assert {film.frames.shape for film in films} == {films[0].frames.shape}
    for film in films:
        assert np.array_equal(film.states[:, 0], films[0].states[:, 0])
        assert np.array_equal(film.frames[0], films[0].frames[0])
    assert len({film.frames.tobytes() for film in films}) == len(MOTIONS)


def backwards(motion: str) -> str:
    """The motion that is seen when a film is played backwards."""
    (other,) = [name for name, rates in MOTIONS.items() if np.array_equal(rates, np.negative(MOTIONS[motion]))]
    return other


@pytest.mark.parametrize("motion", MOTIONS)
def test_backwards_each_motion_is_another_one(motion: str) -> None:
    one, other = (
        _states(each, 20, NO_DRIFT, np.random.default_rng(3), SETTINGS) for each in (motion, backwards(motion))
    )
    circles = [64, 64, 360, np.log(SETTINGS.largest / SETTINGS.smallest)]
    for states in (one, other):
        states[:, 3] = np.log(states[:, 3])
    ahead, behind = (one - one[0]) % circles, (other[0] - other) % circles
    assert np.allclose(np.exp(2j * np.pi * ahead / circles), np.exp(2j * np.pi * behind / circles))
    assert not np.allclose(np.exp(2j * np.pi * ahead / circles), 1)


def test_digits_go_where_their_motion_says() -> None:
    digit = material("train").digits[0]

    def picture(motion: str, frames: int = 5) -> np.ndarray:
        states = _states(motion, frames, NO_DRIFT, np.random.default_rng(4), SETTINGS)
        states[:, :2] += 32 - states[0, :2]  # begin in the middle
        return _drawn(digit, states, 64)

    def centre(alpha: np.ndarray) -> np.ndarray:
        rows, columns = np.indices(alpha.shape)
        return np.array([(alpha * columns).sum(), (alpha * rows).sum()]) / alpha.sum()

    for motion, direction in {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.items():
        drawn = picture(f"moving {motion}")
        moved = (centre(drawn[-1]) - centre(drawn[0])) / 4
        assert SETTINGS.speed[0] - 0.1 < moved @ direction < SETTINGS.speed[1] + 0.1
        assert abs(moved @ direction[::-1]) < 0.1
    assert picture("growing")[2].sum() > 1.02 * picture("growing")[0].sum()
    assert picture("shrinking")[2].sum() < 0.98 * picture("shrinking")[0].sum()


def test_a_quarter_turn_clockwise_is_that_of_the_picture() -> None:
    digit = material("train").digits[3]
    states = np.array([[32, 32, 0, 24], [32, 32, 90, 24]], dtype=float)
    upright, turned = _drawn(digit, states, 64)
    assert np.allclose(turned, np.rot90(upright, -1), atol=1e-4)
    assert np.abs(turned - upright).max() > 0.5


def test_what_leaves_at_one_side_comes_in_at_the_other() -> None:
    digit = material("train").digits[3]
    inside, across = _drawn(digit, np.array([[32, 32, 30, 24], [0, 64, 30, 24]], dtype=float), 64)
    assert np.allclose(np.roll(inside, (32, 32), (0, 1)), across, atol=1e-5)


def test_it_is_not_overwritten_without_force_and_no_class_is_empty(root: Path) -> None:
    before = digests(root)
    with pytest.raises(ConfigError, match="already there"):
        write_miniature_kinetics(root.parent, train=8, val=8)
    with pytest.raises(ConfigError, match="leave classes empty"):
        write_miniature_kinetics(root.parent, train=8, val=7, force=True)
    assert digests(root) == before


class Clips:
    """All videos of a part, decoded: eight frames of each, from the first on, every other one."""

    def __init__(self, root: Path, split: str) -> None:
        dataset = open_dataset(root, split)
        films = [dataset.picture(index).frames(range(SETTINGS.fewest)) for index in range(len(dataset))]
        self.films, self.labels = torch.stack(films), torch.tensor(dataset.labels)

    def at(self, videos: Tensor, starts: Tensor) -> Tensor:
        """(B, 8, 3, 64, 64), normalised."""
        frames = self.films[videos[:, None], starts[:, None] + torch.arange(0, 16, 2)]
        return (frames.permute(0, 1, 4, 2, 3).float() / 255 - 0.45) / 0.225


def classifier(frames: int) -> nn.Module:
    """The miniature ResNet behind a mixture of the channels of so many frames, which is to begin with at random."""
    torch.manual_seed(0)
    config = replace(entry("miniature-imagenet/resnet").config, classes=len(CLASSES))
    return nn.Sequential(nn.Conv2d(3 * frames, 3, 1), build(config, seed=0))


def trained(network: nn.Module, clips: Clips, chosen: str, epochs: int = 6, size: int = 32) -> nn.Module:
    """Train it on all eight frames of each clip together, or on one of them."""
    torch.manual_seed(0)
    steps = epochs * (len(clips.labels) // size)
    optimiser = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.05, steps)
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(clips.labels))
        videos = order[step % (steps // epochs) * size :][:size]
        pictures = clips.at(videos, torch.randint(SETTINGS.fewest - 15, (size,)))
        pictures = torch.roll(pictures, torch.randint(64, (2,)).tolist(), (-2, -1))  # the scene is a torus
        one = pictures[torch.arange(size), torch.randint(8, (size,))]
        scores = network(one if chosen == "one" else pictures.flatten(1, 2))
        loss = functional.cross_entropy(scores, clips.labels[videos])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@pytest.mark.slow
def test_a_single_frame_does_not_tell_the_class_and_eight_in_their_order_do(tmp_path: Path) -> None:
    root = write_miniature_kinetics(tmp_path, train=640, val=240)
    training, validation = Clips(root, "train"), Clips(root, "val")
    pictures = validation.at(torch.arange(240), torch.full((240,), 8))
    single = trained(classifier(1), training, "one")
    with torch.no_grad():
        right = torch.stack([single(pictures[:, frame]).argmax(1) == validation.labels for frame in range(8)])
    assert 0.05 < float(right.float().mean()) < 0.125 + 3 * (0.125 * 0.875 / 240) ** 0.5
    ordered = trained(classifier(8), training, "all")
    opposite = torch.tensor([CLASSES.index(name) for name in map(backwards, CLASSES)])
    with torch.no_grad():
        forwards = ordered(pictures.flatten(1, 2)).argmax(1) == validation.labels
        reversed_in_time = ordered(pictures.flip(1).flatten(1, 2)).argmax(1) == opposite[validation.labels]
    assert float(forwards.float().mean()) > 0.45
    assert float(reversed_in_time.float().mean()) > 0.4
