"""`nlprobe stats` of networks that take videos, in process."""

import json
from pathlib import Path

import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint
from videos_on_disk import write_frames, write_video

from nlprobe.cli import run
from nlprobe.data import ClipPreprocessing

CLIPS = ClipPreprocessing(48, 48, frames=4, stride=3)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    return write_checkpoint(path, "miniature-kinetics/slowonly-nl", preprocessing=CLIPS.as_dict())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos that can be read, a short one, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "first.mp4", count=30)
    write_video(folder / "second.mkv", count=20)
    write_video(folder / "short.avi", "mpeg4", count=2)
    (folder / "text.mp4").write_text("no video")
    return folder


def test_a_clip_of_each_video_is_measured(network: Path, videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "measured"
    arguments = ["--ckpt", str(network), "--data", str(videos), "--out", str(out), "--format", "json"]
    assert run(["stats", "--device", "cpu", *arguments]) == 0
    printed, log = capsys.readouterr()
    assert {entry["status"] for entry in json.loads(printed)["audit"]} == {"passed"}
    records = pd.read_csv(out / "records.csv")
    assert set(records["image"]) == {"first.mp4", "second.mkv", "short.avi"}
    assert set(records["view"]) == {0}
    assert "left out: `text.mp4` cannot be read: it is no video" in log
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["kind"] == "videos"
    (settings,) = results["preprocessing"].values()
    assert (settings["frames"], settings["stride"]) == (4, 3)


def test_the_plan_says_the_frames_and_sizes_of_clips(network: Path, videos: Path, capsys) -> None:
    assert run(["stats", "--device", "cpu", "--ckpt", str(network), "--data", str(videos), "--dry-run"]) == 0
    printed = "".join(capsys.readouterr())
    assert "4 videos in batches of" in printed
    assert "4x48x48" in printed


def test_folders_of_frames_of_kinetics_are_measured_and_missing_ones_are_told(
    network: Path, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "kinetics"
    write_frames(root / "rawframes_val" / "jump" / "AAAAAAAAAAA_000000_000010", 12)
    (root / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\njump,AAAAAAAAAAA,0,10,val\njump,BBBBBBBBBBB,0,10,val\n"
    )
    arguments = ["--ckpt", str(network), "--data", str(root), "--quantity", "input", "--format", "json"]
    assert run(["stats", "--device", "cpu", *arguments]) == 0
    printed, log = capsys.readouterr()
    sentence = "1 of 2 videos are not there, such as `BBBBBBBBBBB_000000_000010`"
    assert sentence in log
    assert sentence in json.loads(printed)["not_measured"]


def test_pictures_are_refused_by_networks_for_videos_and_the_other_way_about(
    network: Path, checkpoint: Path, videos: Path, photographs: Path, capsys
) -> None:
    for model, data, takes, holds in (
        (network, photographs, "videos", "images"),
        (checkpoint, videos, "images", "videos"),
    ):
        assert run(["stats", "--device", "cpu", "--ckpt", str(model), "--data", str(data)]) == 4
        assert f"takes {takes}, and `{data}` holds {holds}" in capsys.readouterr().err
    assert run(["eval", "--device", "cpu", "--ckpt", str(checkpoint), "--data", str(videos)]) == 4
    assert f"takes images, and `{videos}` holds videos" in capsys.readouterr().err


def test_the_distances_of_clips_are_split_into_space_and_time_where_it_is_asked_for(
    network: Path, videos: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "measured"
    arguments = ["--ckpt", str(network), "--data", str(videos), "--metric", "space_time", "--out", str(out)]
    assert run(["stats", "--device", "cpu", *arguments]) == 0
    assert "distance, same frame" in capsys.readouterr().out
    records = pd.read_csv(out / "records.csv")
    whole = records["avg_dist_same_frame"] / 4 + records["avg_dist_other_frames"] * 3 / 4
    assert whole.to_numpy() == pytest.approx(records["avg_dist"].to_numpy(), rel=1e-4, abs=1e-8)
    assert records.loc[records["quantity"] == "att", "frame_mass"].between(0, 1).all()
