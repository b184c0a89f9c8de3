"""The miniature Cityscapes: a small network learns it in minutes, and some of its objects do not tell their class."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from nlprobe.data import open_dataset, write_miniature_cityscapes
from nlprobe.data.miniature.streets import AMBIGUOUS
from nlprobe.models import entry
from nlprobe.training import recipe
from nlprobe.training.run import Run


@pytest.mark.slow
def test_a_network_learns_the_streets_in_minutes(tmp_path: Path, device: torch.device) -> None:
    root = write_miniature_cityscapes(tmp_path)
    chosen, settings = entry("miniature-cityscapes/resnet-gc"), recipe("miniature-cityscapes")
    run = Run(chosen.name, chosen.config, settings, open_dataset(root, "train"), open_dataset(root))
    engine = run.engine(device)
    engine.train()
    assert engine.progress.best is not None
    assert engine.progress.best >= 0.50


def test_who_sees_two_of_the_digits_alone_is_right_about_half_of_the_time(tmp_path: Path) -> None:
    root = write_miniature_cityscapes(tmp_path, train=1, val=60)
    lines = json.loads((root / "annotations" / "val.json").read_text())
    objects = [one for line in lines for one in line["objects"] if one["digit"] in AMBIGUOUS]
    counts = {digit: Counter(one["class"] for one in objects if one["digit"] == digit) for digit in AMBIGUOUS}
    assert len(objects) > 90
    assert all(len(count) == 2 for count in counts.values())
    assert 0.5 <= sum(max(count.values()) for count in counts.values()) / len(objects) < 0.65
