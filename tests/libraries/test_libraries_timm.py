"""Networks of timm: built, filled and fed as timm itself would."""

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from nlprobe.errors import CheckpointError, ConfigError, MissingExtraError
from nlprobe.libraries import Drawn, Loaded
from nlprobe.libraries.timm import timm_network

NAME = "vit_tiny_patch16_224"


def test_pictures_are_prepared_as_timm_does() -> None:
    network = timm_network(NAME)
    assert network.pictures is not None
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    config = timm.data.resolve_model_data_config(timm.create_model(NAME))
    expected = timm.data.create_transform(**config, is_training=False)(picture)
    assert torch.equal(network.pictures.transform(picture), expected)
    assert network.pictures.size == (224, 224)
    assert network.pictures.settings["crop_pct"] == 0.9
    assert "crop share 0.9 (center, bicubic), mean 0.5, 0.5, 0.5" in network.pictures.description
    assert network.pictures.example().shape == (1, 3, 224, 224)


def test_random_weights_follow_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (timm_network(NAME, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights == Drawn(5)
    assert str(first.weights) == "random weights (seed 5)"
    weights = [network.model.state_dict()["blocks.3.attn.qkv.weight"] for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.redrawn is None


def test_weights_come_from_their_file_and_are_redrawn_on_request(tmp_path: Path) -> None:
    trained = timm.create_model(NAME).state_dict()
    save_file(trained, tmp_path / "vit.safetensors")
    network = timm_network(NAME, tmp_path / "vit.safetensors", seed=5)
    assert isinstance(network.weights, Loaded)
    assert network.weights.sha256 is not None
    assert all(torch.equal(trained[name], tensor) for name, tensor in network.model.state_dict().items())
    assert network.redrawn is not None
    expected = timm_network(NAME, seed=5).model.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.redrawn().state_dict().items())


def test_a_tag_decides_about_classes_and_preprocessing() -> None:
    network = timm_network("vit_tiny_patch16_224.augreg_in21k")
    assert network.model.state_dict()["head.weight"].shape[0] == 21843


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError) as caught:
        timm_network(NAME, tmp_path / "resnet.safetensors")
    assert "lacks `cls_token` and 151 more of the network and holds `" in caught.value.cause
    assert "the file belongs to another network" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_22", "timm has no network `vit_tiny_patch16_22`\ndid you mean `vit_tiny_patch16_224`"),
        ("zzzzzzzz", r"timm has no network `zzzzzzzz`\n`timm.list_models\(\)` lists them"),
        (f"{NAME}.augreg_in21", "timm has no weights `augreg_in21` of .*\ndid you mean `augreg_in21k`"),
        ("hf-hub:timm/vit_tiny", "timm has no network `hf-hub:timm/vit_tiny`"),
    ],
)
def test_unknown_names_come_with_close_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm_network(name)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object) -> object:
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlprobe\[timm\]'"):
        timm_network(NAME)
