"""Training and scoring networks for object detection: losses, sizes, recipes; and a run from its data to its scores."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import Batch, Batches, Instances, open_dataset, write_miniature_coco, write_miniature_imagenet
from nlprobe.errors import DataError
from nlprobe.models import entry
from nlprobe.models.detections import Detections
from nlprobe.training import Engine, Observer, detect, recipe, score_detections
from nlprobe.training.catalogue import CHOICES
from nlprobe.training.detection import Detection, Found, check_instances, sizes_of
from nlprobe.training.keeping import Keeper
from nlprobe.training.run import Run

CPU = torch.device("cpu")
RECIPE = recipe("miniature-coco")
NOTHING = object.__new__(Batches)


class Fixed(nn.Module):
    """Losses in training mode; in evaluation mode the objects that it was told, halved in size."""

    def __init__(self, targets: list[Instances]) -> None:
        super().__init__()
        self.targets = targets
        self.seen: list[object] = []

    def forward(self, images: Tensor, sizes: list, targets: list | None = None) -> object:
        self.seen.append((sizes, targets))
        if self.training:
            return {"classes": torch.tensor(2.0, requires_grad=True), "boxes": torch.tensor(0.5)}
        return [
            Detections(one.boxes / 2, torch.linspace(0.9, 0.5, len(one)), one.labels, torch.ones(len(one), 28, 28))
            for one in self.targets
        ]


def objects(number: int, size: tuple[int, int] = (40, 60)) -> Instances:
    boxes = torch.tensor([[4.0, 6.0, 24.0, 30.0], [30.0, 10.0, 50.0, 34.0]])
    return Instances(boxes, torch.tensor([1, 0]), None, torch.tensor([False, False]), number, size)


def batch(count: int) -> Batch:
    """Pictures of half their size, padded to a multiple of 32."""
    labels = [objects(number) for number in range(count)]
    return Batch(torch.zeros(count, 3, 32, 32), labels, [str(n) for n in range(count)], [], [(20, 30)] * count)


def test_the_loss_is_the_sum_of_the_networks_losses_and_each_is_logged_as_a_mean_over_images() -> None:
    shown = batch(3)
    network = Fixed(shown.labels).train()
    found = Detection(NOTHING, NOTHING, RECIPE, CPU).loss(network, shown)
    assert float(found.mean.detach()) == 2.5
    assert found.mean.requires_grad
    assert found.images == 3
    assert {name: float(total) for name, total in found.sums.items()} == {"loss_classes": 6.0, "loss_boxes": 1.5}
    [(sizes, targets)] = network.seen
    assert sizes == [(20, 30)] * 3
    assert [one.image_id for one in targets] == [0, 1, 2]


def test_images_that_were_not_padded_are_all_picture() -> None:
    assert sizes_of(batch(2)._replace(sizes=None)) == [(32, 32)] * 2


def test_what_is_found_is_brought_back_into_the_original_picture() -> None:
    shown = batch(2)
    network = Fixed(shown.labels)
    found = detect(network, [shown], CPU)
    assert found is not None
    assert network.training
    assert found.ids == ["0", "1"]
    assert found.kinds == ("box", "mask")
    for one, truth in zip(found.detections, shown.labels, strict=True):
        torch.testing.assert_close(torch.from_numpy(one.boxes).float(), truth.boxes)
        assert [mask["size"] for mask in one.masks] == [[40, 60]] * 2


def test_parts_of_several_processes_come_in_the_order_of_the_data() -> None:
    whole = detect(Fixed(batch(4).labels), [batch(4)], CPU)
    assert whole is not None
    parts = [Found(whole.ids[start::2], whole.detections[start::2]) for start in (0, 1)]
    joined = Found.joined(parts, ["0", "1", "2", "3"])
    assert [one.image_id for one in joined.detections] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "epochs", "drops"), [("coco", 12, (8, 11)), ("coco-2x", 24, (16, 22)), ("coco-3x", 36, (28, 34))]
)
def test_the_recipes_have_the_papers_numbers(name: str, epochs: int, drops: tuple[float, float]) -> None:
    known = recipe(name)
    assert (known.epochs, known.batch_size, known.schedule.milestones) == (epochs, 16, drops)
    assert (known.optimiser.learning_rate, known.optimiser.weight_decay) == (0.02, 1e-4)
    assert (known.preprocessing.resize, known.preprocessing.longest, known.preprocessing.pad) == (800, 1333, 32)
    assert known.frozen == ("c1", "c2")
    assert known.batch_norm == ("sync" if name == "coco-3x" else "frozen")
    assert recipe("coco-syncbn").batch_norm == "sync"
    steps = 7330  # 117 266 pictures in batches of 16
    rates = [known.schedule.factor(epoch * steps, steps, epochs) for epoch in (1, drops[0], drops[1])]
    assert rates == pytest.approx([1, 0.1, 0.01])
    assert known.schedule.factor(0, steps, epochs) == pytest.approx(1 / 3, abs=2e-3)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_coco(tmp_path_factory.mktemp("data"), train=8, val=4)


def make_run(root: Path) -> Run:
    chosen, training = entry("miniature-coco/resnet-gc"), open_dataset(root, "train")
    small = RECIPE.override({"epochs": 2, "batch_size": 4, "schedule.warmup_epochs": 0})
    config = replace(chosen.config, classes=len(training.classes or ()))
    return Run(chosen.name, config, small, training, open_dataset(root, "val"))


def test_a_run_leaves_a_checkpoint_that_scores_as_its_log_says(plates: Path, tmp_path: Path, capsys) -> None:
    made = make_run(plates)
    engine = made.engine(CPU, observers=[Keeper(tmp_path, made.metadata({}), {"resolved": made.settings()})])
    engine.train()
    row = engine.progress.history[-1]
    assert {"val_box_ap", "val_mask_ap50", "train_loss", "train_loss_objectness", "train_loss_masks"} <= set(row)
    parts = sum(value for name, value in row.items() if name.startswith("train_loss_"))
    assert row["train_loss"] == pytest.approx(parts, rel=1e-5)
    checkpoint = read_checkpoint(tmp_path / "last.safetensors")
    again = detect(checkpoint.model, engine.task._validation, CPU)  # type: ignore[attr-defined]
    assert again is not None
    scores = score_detections(made.validation, again.detections, again.kinds).means()
    assert scores["box_ap"] == pytest.approx(row["val_box_ap"], abs=1e-6)
    assert run(["eval", "--ckpt", str(tmp_path / "last.safetensors"), "--data", str(plates), "--format", "csv"]) == 0
    assert "box_ap50" in capsys.readouterr().out


class After(Observer):
    """Keeps the state after the first epoch."""

    state: dict | None = None

    def epoch_done(self, engine: Engine, row: object, best: bool) -> None:
        if self.state is None:
            self.state = copy.deepcopy(engine.state())


def test_a_stopped_run_goes_on_to_the_same_bits(plates: Path) -> None:
    seen = After()
    whole = make_run(plates).engine(CPU, observers=[seen])
    whole.train()
    second = make_run(plates).engine(CPU)
    assert seen.state is not None
    second.load_state(seen.state)
    second.train()
    other = second.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.model.state_dict().items())


def test_data_without_objects_are_refused(plates: Path, tmp_path: Path) -> None:
    good = open_dataset(plates, "train")
    scenes = open_dataset(write_miniature_imagenet(tmp_path, train=10, val=10), "train")
    with pytest.raises(DataError, match="has no boxes"):
        check_instances(good, scenes, 2)
    with pytest.raises(DataError, match="8 training images, fewer than one batch of 9"):
        check_instances(good, good, 9)
    with pytest.raises(DataError, match="have no boxes"):
        detect(Fixed([]), [batch(1)._replace(labels=None)], CPU)


def test_the_plan_says_what_the_text_leaves_open(plates: Path, tmp_path: Path, capsys) -> None:
    arguments = ["train", "miniature-coco/resnet-gc", "--recipe", "coco", "--data", str(plates)]
    assert run([*arguments, "--batch-size", "4", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(choice in text for choice in CHOICES["coco"].choices)
