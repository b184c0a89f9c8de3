"""What the miniature Cityscapes is for: a small network learns it in minutes, and needs more than an object to."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from nlprobe.data import open_dataset, whole, write_miniature_cityscapes
from nlprobe.data.miniature.streets import AMBIGUOUS
from nlprobe.models import entry
from nlprobe.training import recipe
from nlprobe.training.run import Run


@pytest.mark.slow
def test_a_network_learns_the_streets_and_tells_by_the_scene_what_an_object_does_not_show(
    tmp_path: Path, device: torch.device
) -> None:
    root = write_miniature_cityscapes(tmp_path)
    chosen, settings = entry("miniature-cityscapes/resnet-gc"), recipe("miniature-cityscapes")
    run = Run(chosen.name, chosen.config, settings, open_dataset(root, "train"), open_dataset(root))
    engine = run.engine(device)
    engine.train()
    assert engine.progress.best is not None
    assert engine.progress.best >= 0.50

    # whoever sees the object alone does best to say the more frequent of its two classes
    lines = json.loads((root / "annotations" / "val.json").read_text())
    objects = [(line["image"], one) for line in lines for one in line["objects"] if one["digit"] in AMBIGUOUS]
    counts = {digit: Counter(one["class"] for _, one in objects if one["digit"] == digit) for digit in AMBIGUOUS}
    ceiling = sum(max(count.values()) for count in counts.values()) / len(objects)
    assert 0.5 <= ceiling < 0.6

    dataset, transform = open_dataset(root), whole(settings.preprocessing).transform
    model, right, seen = engine.model.eval(), 0, 0
    for index, name in enumerate(dataset.ids):
        sample = dataset[index]
        image, label = transform(sample.image, sample.label)
        with torch.no_grad():
            predicted = model(image[None].to(device))[0].argmax(0).cpu()
        pair = {dataset.classes.index(each) for count in counts.values() for each in count}
        for picture, one in objects:
            y, x = one["y"], one["x"]
            if picture == name and int(label[y, x]) == dataset.classes.index(one["class"]) in pair:
                right += int(predicted[y, x] == label[y, x])
                seen += 1
    assert seen > 0.8 * len(objects)
    assert right / seen > ceiling + 0.25
