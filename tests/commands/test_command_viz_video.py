"""`nlprobe viz video`, in process."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint
from PIL import Image
from videos_on_disk import write_frames

from nlprobe.cli import run
from nlprobe.data import ClipPreprocessing

SITE = "layer3.1:after_block"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ClipPreprocessing(48, 48, frames=4, stride=3).as_dict()
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    return write_checkpoint(path, "miniature-kinetics/slowonly-nl", preprocessing=settings)


def test_a_video_gives_a_strip_an_animation_and_their_data(network: Path, tmp_path: Path, capsys) -> None:
    write_frames(tmp_path / "clip", 20)
    arguments = ["--ckpt", str(network), "--video", str(tmp_path / "clip"), "--site", SITE, "--device", "cpu"]
    out = tmp_path / "strip"
    assert run(["viz", *arguments, "--query", "1,5,6", "--query", "100%,50%,50%", "--out", str(out)]) == 0
    assert SITE in capsys.readouterr().out
    assert all(out.with_suffix(f".{ending}").stat().st_size for ending in ("png", "pdf", "svg"))
    with Image.open(out.with_suffix(".gif")) as animation:
        assert animation.n_frames == 4
    data = pd.read_csv(out.with_suffix(".csv"))
    assert data["frame_number"].unique().tolist() == [5, 8, 11, 14]
    queries = data.dropna(subset="query_t").drop_duplicates("map")
    assert queries["query_t"].tolist() == [1, 3]
    assert np.allclose(data.groupby("map")["weight"].sum(), 1, atol=1e-4)
    shares = data.drop_duplicates(["map", "time"]).groupby("map")["frame_mass"].sum()
    assert np.allclose(shares, 1, atol=1e-4)


def test_what_cannot_be_drawn_is_refused_in_words(network: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    write_frames(tmp_path / "clip", 6)
    base = ["viz", "--video", str(tmp_path / "clip"), "--site", SITE, "--device", "cpu", "--out", str(tmp_path / "s")]
    for arguments, said in (
        (["--ckpt", str(network), "--query", "1,2"], "no place"),
        (["--ckpt", str(network), "--query", "9,2,2"], "lies outside the clip"),
        (["--ckpt", str(network), "--start", "6"], "has 6 frames"),
        (["--ckpt", str(checkpoint)], "takes no videos"),
    ):
        assert run([*base, *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("s.*"))
