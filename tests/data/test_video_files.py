"""Every frame of every file is the one that was asked for, whatever the container stores in whatever order."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from videos_on_disk import (
    HEIGHT,
    WIDTH,
    decoded_throughout,
    number_of,
    numbered,
    write_frames,
    write_sound,
    write_video,
)

from nlprobe.data import FrameFolder, FrameStack, UnreadableImageError, VideoFile, decoding, open_video
from nlprobe.errors import ConfigError, MissingExtraError

COUNT = 60
UNEVEN = np.cumsum(np.random.default_rng(0).integers(20, 90, COUNT)).tolist()
LATE = [5_000 + 40 * number for number in range(COUNT)]

KINDS = {
    "h264 in mp4": ("a.mp4", "libx264", {}),
    "h264 without B-frames": ("a.mp4", "libx264", {"b_frames": 0}),
    "h264 with a pyramid of B-frames": ("a.mp4", "libx264", {"b_frames": 4, "options": {"b-pyramid": "normal"}}),
    "h264 with open groups": ("a.mp4", "libx264", {"options": {"x264-params": "open-gop=1:bframes=3"}}),
    "h264 with a moving refresh": ("a.mp4", "libx264", {"options": {"x264-params": "intra-refresh=1:keyint=15"}}),
    "h264 with one keyframe": ("a.mp4", "libx264", {"keys": 250}),
    "h264 of keyframes alone": ("a.mp4", "libx264", {"keys": 1}),
    "fragmented mp4": ("a.mp4", "libx264", {"container": {"movflags": "frag_keyframe+empty_moov"}}),
    "uneven times in mp4": ("a.mp4", "libx264", {"times": UNEVEN}),
    "uneven times in mkv": ("a.mkv", "libx264", {"times": UNEVEN}),
    "a late start in mp4": ("a.mp4", "libx264", {"times": LATE}),
    "a late start in mkv": ("a.mkv", "libx264", {"times": LATE}),
    "a late start in a stream": ("a.ts", "libx264", {"times": LATE}),
    "h264 in mkv": ("a.mkv", "libx264", {}),
    "h264 in mkv that was never finished": ("a.mkv", "libx264", {"container": {"live": "1"}}),
    "h264 in avi": ("a.avi", "libx264", {}),
    "h264 in avi without B-frames": ("a.avi", "libx264", {"b_frames": 0}),
    "mpeg4 in mp4": ("a.mp4", "mpeg4", {}),
    "mpeg4 in mp4 with B-frames": ("a.mp4", "mpeg4", {"b_frames": 2}),
    "mpeg4 in avi": ("a.avi", "mpeg4", {}),
    "mpeg4 in avi with B-frames": ("a.avi", "mpeg4", {"b_frames": 2}),
    "mpeg4 in avi with empty packets": ("a.avi", "mpeg4", {"times": LATE}),
    "mpeg2 in mpg": ("a.mpg", "mpeg2video", {"b_frames": 2}),
    "motion jpeg": ("a.avi", "mjpeg", {"options": {"strict": "unofficial"}}),
    "vp8 with hidden frames": ("a.webm", "libvpx", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    "vp9": ("a.webm", "libvpx-vp9", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "sound beside": ("a.mp4", "libx264", {"sound": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_exact(tmp_path: Path, kind: str) -> None:
    name, codec, settings = KINDS[kind]
    path = write_video(tmp_path / name, codec, COUNT, **settings)
    video = open_video(path)
    truth = decoded_throughout(path)
    assert [number_of(frame) for frame in truth] == list(range(COUNT))
    assert video.frame_count == COUNT
    assert video.size == (WIDTH, HEIGHT)
    single = np.concatenate([video.frames([number]).numpy() for number in range(COUNT)])
    assert np.array_equal(single, truth)
    drawn = np.random.default_rng(1)
    for _ in range(5):
        indices = drawn.integers(0, COUNT, 6).tolist()
        assert np.array_equal(video.frames(indices).numpy(), truth[indices])
    video.check()


@pytest.mark.parametrize("kind", ["h264 in mp4", "uneven times in mkv", "mpeg4 in avi", "a late start in a stream"])
def test_few_frames_are_decoded_for_one(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, codec, settings = KINDS[kind]
    video = open_video(write_video(tmp_path / name, codec, COUNT, **settings))
    assert video.frame_count == COUNT
    fed: list[int] = []
    decode = decoding._decoded
    monkeypatch.setattr(decoding, "_decoded", lambda packet: (fed.append(packet.size), decode(packet))[1])
    video.frames([50])
    assert 0 < len(fed) <= 12 + 6  # a group of pictures, and what the decoder holds back


def test_the_rate_is_that_of_the_frames(tmp_path: Path) -> None:
    assert open_video(write_video(tmp_path / "a.mp4", fps=30)).fps == pytest.approx(30)
    uneven = open_video(write_video(tmp_path / "b.mkv", times=UNEVEN))
    assert uneven.fps == pytest.approx(1000 * (COUNT - 1) / (UNEVEN[-1] - UNEVEN[0]), rel=1e-3)
    assert open_video(write_video(tmp_path / "c.mp4", count=1)).fps is None


# What is seen of a picture by the display matrix that FFmpeg writes for each turn and mirror.
ONE = 1 << 16
TURNS = {
    "as it is": ((ONE, 0, 0, ONE), lambda p: p),
    "a quarter clockwise": ((0, ONE, -ONE, 0), lambda p: np.rot90(p, -1)),
    "a quarter counterclockwise": ((0, -ONE, ONE, 0), lambda p: np.rot90(p)),
    "half a turn": ((-ONE, 0, 0, -ONE), lambda p: np.rot90(p, 2)),
    "mirrored": ((-ONE, 0, 0, ONE), np.fliplr),
    "upside down": ((ONE, 0, 0, -ONE), np.flipud),
    "mirrored and turned": ((0, ONE, ONE, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(tmp_path: Path, turn: str) -> None:
    (a, b, c, d), turned = TURNS[turn]
    path = write_video(tmp_path / "a.mp4", count=3, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    stored = decoded_throughout(path)[1]
    video = open_video(path)
    seen = video.frames([1])[0].numpy()
    assert np.array_equal(seen, turned(stored))
    assert video.size == (seen.shape[1], seen.shape[0])
    if turn in ("as it is", "a quarter clockwise", "a quarter counterclockwise", "half a turn"):
        with av.open(str(path)) as file:  # FFmpeg's own reading, in degrees counterclockwise
            degrees = next(file.decode(video=0)).rotation
        assert np.array_equal(seen, np.rot90(stored, degrees // 90))


def test_numbers_outside_of_the_video_are_refused(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "a.mp4", count=5))
    for indices in ([5], [-1], []):
        with pytest.raises(ConfigError, match="frames 0 to 4"):
            video.frames(indices)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "frames").mkdir()
    cases = {
        "text.mp4": "no video that FFmpeg knows",
        "empty.mp4": "no video that FFmpeg knows",
        "gone.mp4": "not there",
        "frames": "holds no frame",
        write_sound(tmp_path / "sound.mp4").name: "nothing but sound",
    }
    for name, reason in cases.items():
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            open_video(tmp_path / name, f"videos/{name}").frames([0])
        assert caught.value.image == f"videos/{name}"


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", "mpeg4", 1)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    with pytest.raises(UnreadableImageError, match="holds no frame"):
        open_video(path).frames([0])


@pytest.mark.parametrize(
    "name, container", [("a.mkv", {}), ("a.ts", {}), ("a.mp4", {"movflags": "faststart"}), ("a.avi", {})]
)
def test_what_is_left_of_a_video_that_was_cut_off_is_read(tmp_path: Path, name: str, container: dict[str, str]) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_video(tmp_path / name, codec, 200, container=container)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = open_video(path, "cut")
    left = video.frame_count
    assert 50 < left < 150
    assert [number_of(frame.numpy()) for frame in video.frames([0, left // 2, left - 1])] == [0, left // 2, left - 1]
    if name != "a.ts":  # a stream has no header that could tell
        with pytest.raises(UnreadableImageError, match="`cut` cannot be read: it is cut off"):
            video.check()


def test_an_mp4_that_lost_its_index_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", count=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match="lost the part that says what is in it"):
        open_video(path).frames([0])


def damage(path: Path, number: int, keep: float = 0.0) -> None:
    """Overwrite a packet, by its place in the order of decoding, with zeros from a share of it on."""
    with av.open(str(path)) as file:
        data = [bytes(packet) for packet in file.demux(video=0) if packet.size][number]
    content = bytearray(path.read_bytes())
    end = content.index(data[-20:]) + 20  # mkv stores the common beginning of all packets elsewhere
    lost = round(len(data) * (1 - keep)) - 4
    content[end - lost : end] = bytes(lost)
    path.write_bytes(content)


def test_a_damaged_picture_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "mjpeg", 20, options={"strict": "unofficial"})
    damage(path, 7)
    video = open_video(path, "damaged")
    assert video.frame_count == 20
    with pytest.raises(UnreadableImageError, match="its frame 7 of 20 cannot be decoded"):
        video.frames([6, 7, 8])
    assert [number_of(frame.numpy()) for frame in video.frames([6, 8, 19])] == [6, 8, 19]


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_predicted_from_a_damaged_frame_is_not_taken_for_good(tmp_path: Path, codec: str, keep: float) -> None:
    path = write_video(tmp_path / "a.mkv", codec, COUNT)
    truth = decoded_throughout(path)
    damage(path, 16, keep)
    video = open_video(path)
    refused = 0
    for number in range(COUNT):
        try:
            assert np.array_equal(video.frames([number])[0].numpy(), truth[number])
        except UnreadableImageError:
            refused += 1
    assert 0 < refused <= 12


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    video = open_video(write_frames(tmp_path / "frames", 12, "{}.png"))
    assert isinstance(video, FrameFolder)
    assert (video.frame_count, video.fps, video.size) == (12, None, (WIDTH, HEIGHT))
    assert [number_of(frame.numpy()) for frame in video.frames([11, 0, 9, 9])] == [11, 0, 9, 9]
    assert np.array_equal(video.frames([3])[0].numpy(), numbered(3))


def test_damaged_and_odd_frames_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 4)
    (folder / "img_00002.png").write_bytes(b"gone")
    Image.new("RGB", (10, 20)).save(folder / "img_00003.png")
    video = open_video(folder, "walk")
    with pytest.raises(UnreadableImageError, match=r"`walk` .* its frame `img_00002.png`"):
        video.frames([1])
    with pytest.raises(UnreadableImageError, match="different sizes, 64x48 and 10x20"):
        video.frames([0, 2])


def test_frames_in_memory_are_a_video() -> None:
    pixels = np.stack([numbered(number) for number in range(5)])
    video = FrameStack(pixels, fps=10.0)
    assert (video.frame_count, video.fps, video.size) == (5, 10, (WIDTH, HEIGHT))
    assert torch.equal(video.frames([4, 1]), torch.from_numpy(pixels[[4, 1]]))


def test_without_pyav_files_say_how_to_install_it_and_folders_of_frames_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", count=3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlprobe\[video\]'"):
        VideoFile(path).frames([0])
    assert open_video(write_frames(tmp_path / "frames")).frame_count == 20
