"""The miniature COCO: a small network learns to find its objects within an epoch or two."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nlprobe.data import open_dataset, write_miniature_coco
from nlprobe.models import entry
from nlprobe.training import recipe
from nlprobe.training.run import Run


@pytest.mark.slow
def test_a_network_learns_to_find_boxes_and_masks_in_an_epoch(tmp_path: Path, device: torch.device) -> None:
    root = write_miniature_coco(tmp_path)
    training = open_dataset(root, "train")
    chosen, settings = entry("miniature-coco/resnet-gc"), recipe("miniature-coco").override({"epochs": 1})
    config = replace(chosen.config, classes=len(training.classes or ()))
    engine = Run(chosen.name, config, settings, training, open_dataset(root, "val")).engine(device)
    engine.train()
    (row,) = engine.progress.history
    assert row["val_box_ap50"] >= 0.30
    assert row["val_mask_ap50"] >= 0.25
