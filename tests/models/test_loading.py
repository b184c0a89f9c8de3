"""Published weights in networks with inserted blocks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import CheckpointError
from nlprobe.models import ARCHITECTURES, Insertion, ResNet, build, load_backbone, load_strictly

PLAIN = ARCHITECTURES["resnet18"]
EXTENDED = replace(
    PLAIN,
    insertions=(
        Insertion(NonLocalConfig(zero_init=False), "c4", (-2,), "after_add"),
        Insertion(ContextConfig.gc(), "c5", "all", "after_1x1"),
    ),
)


@pytest.fixture
def published() -> dict[str, Tensor]:
    return torchvision.models.resnet18().state_dict()


def test_the_trunk_is_loaded_and_the_inserted_blocks_keep_their_weights(published: dict[str, Tensor]) -> None:
    network, untouched = build(EXTENDED, seed=0), build(EXTENDED, seed=0).state_dict()
    load_backbone(network, published)
    inserted = ("layer3.0.after_add.", "layer4.0.after_1x1.", "layer4.1.after_1x1.")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, untouched[name] if name.startswith(inserted) else published[name])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_are_read(published: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(published, path) if suffix == ".pth" else save_file(published, path)
    network = ResNet(EXTENDED)
    load_backbone(network, path)
    assert torch.equal(network.fc.weight, published["fc.weight"])


def test_weights_without_batch_counters_load(published: dict[str, Tensor]) -> None:
    old = {name: tensor for name, tensor in published.items() if not name.endswith("num_batches_tracked")}
    network = ResNet(EXTENDED)
    load_backbone(network, old)
    assert torch.equal(network.layer4[1].bn2.weight, old["layer4.1.bn2.weight"])


def test_other_classes_need_the_classifier_left_out(published: dict[str, Tensor]) -> None:
    network = ResNet(replace(EXTENDED, classes=10))
    with pytest.raises(CheckpointError, match=r"`fc.weight` has the shape \(1000, 512\).*\(10, 512\)"):
        load_backbone(network, published)
    before = network.fc.weight.clone()
    load_backbone(network, published, classifier=False)
    assert torch.equal(network.fc.weight, before)
    assert torch.equal(network.conv1.weight, published["conv1.weight"])


def test_a_missing_trunk_weight_is_refused(published: dict[str, Tensor]) -> None:
    published["layer1.0.conv_1.weight"] = published.pop("layer1.0.conv1.weight")
    with pytest.raises(CheckpointError) as error:
        load_backbone(ResNet(EXTENDED), published)
    assert "lacks `layer1.0.conv1.weight`" in error.value.cause
    assert "holds `layer1.0.conv_1.weight` that the model does not have" in error.value.cause
    assert error.value.remedy == "nearest to `layer1.0.conv1.weight` in the file: `layer1.0.conv_1.weight`"


def test_weights_of_another_network_are_refused_and_nothing_is_changed(published: dict[str, Tensor]) -> None:
    network = build("imagenet/resnet50-nl", seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="lacks"):
        load_backbone(network, published)
    wide = ResNet(replace(PLAIN, width=32))
    with pytest.raises(CheckpointError, match="has the shape"):
        load_backbone(wide, published)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_left_over_weights_are_refused(published: dict[str, Tensor]) -> None:
    more = ResNet(EXTENDED).state_dict()
    with pytest.raises(CheckpointError, match=r"holds `layer3.0.after_add.*` and \d+ more(.|\n)*network with them"):
        load_strictly(ResNet(PLAIN), more, "the file")


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        load_backbone(ResNet(PLAIN), path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`.*weights\.pth` is not there"):
        load_backbone(ResNet(PLAIN), tmp_path / "weights.pth")


def test_a_pickled_object_is_not_executed(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_backbone(ResNet(PLAIN), tmp_path / "module.pth")


def test_a_wrapped_state_dict_says_what_it_holds(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": published, "epoch": 3}, tmp_path / "wrapped.pth")
    with pytest.raises(CheckpointError, match=r"a dictionary with \['epoch', 'state_dict'\]"):
        load_backbone(ResNet(PLAIN), tmp_path / "wrapped.pth")
