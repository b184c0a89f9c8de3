"""Networks of transformers: a folder's weights, image processor and tokenizer."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries import Drawn, Loaded
from nlprobe.libraries.transformers import transformers_network


def test_a_folder_of_images_brings_weights_and_processor(vit_folder: Path) -> None:
    network = transformers_network(str(vit_folder))
    assert network.weights == Loaded(str(vit_folder))
    assert network.texts is None
    assert network.pictures is not None
    picture = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    expected = transformers.ViTImageProcessor.from_pretrained(vit_folder)(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(network.pictures.transform(picture)[None], expected)
    assert network.pictures.size == (32, 32)
    assert network.pictures.settings["image_mean"] == [0.5, 0.5, 0.5]
    assert set(network.pictures.inputs(expected)) == {"pixel_values"}  # type: ignore[arg-type]
    saved = transformers.ViTModel.from_pretrained(vit_folder).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in network.model.state_dict().items())
    assert not network.model.training


def test_a_folder_of_texts_brings_weights_and_tokenizer(bert_folder: Path) -> None:
    network = transformers_network(str(bert_folder))
    assert network.pictures is None
    assert network.texts is not None
    inputs, cut = network.texts.encode("the cats sat.")
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 11, 8, 10, 3]]
    assert cut == 0
    assert network.model(**inputs).last_hidden_state.shape == (1, 7, 32)


def test_a_text_that_is_longer_than_the_network_is_cut_and_says_by_how_much(bert_folder: Path) -> None:
    network = transformers_network(str(bert_folder))
    assert network.texts is not None
    inputs, cut = network.texts.encode("cat " * 20)
    assert inputs["input_ids"].shape == (1, 16)
    assert cut == 22 - 16


def test_a_folder_without_weights_is_refused_unless_random_ones_are_asked_for(vit_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(vit_folder / name, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights .*\n.*--random-weights"):
        transformers_network(str(tmp_path))
    first, second = (transformers_network(str(tmp_path), 7, random_weights=True) for _ in range(2))
    assert first.weights == Drawn(7)
    assert first.redrawn is None
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_weights_that_are_there_are_taken_although_random_ones_were_allowed(vit_folder: Path) -> None:
    assert isinstance(transformers_network(str(vit_folder), random_weights=True).weights, Loaded)


def test_weights_that_lack_a_layer_are_refused_but_the_pooler_may_be_missing(vit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vit_folder, tmp_path, dirs_exist_ok=True)
    saved = load_file(vit_folder / "model.safetensors")
    path = tmp_path / "model.safetensors"
    without = {name: tensor for name, tensor in saved.items() if not name.startswith("pooler.")}
    assert len(without) < len(saved)
    save_file(without, path, metadata={"format": "pt"})
    weights = transformers_network(str(tmp_path)).weights
    assert isinstance(weights, Loaded)
    assert set(weights.missing) == set(saved) - set(without)
    assert "drawn at random: pooler." in str(weights)
    name = next(name for name in saved if "layer" in name and name.endswith("weight"))
    save_file({key: tensor for key, tensor in saved.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack `layers\.0\..*` of `ViTModel`\nthey belong to another"):
        transformers_network(str(tmp_path))


def test_the_untrained_network_is_another_one_of_the_same_kind(vit_folder: Path) -> None:
    network = transformers_network(str(vit_folder), 3)
    assert network.redrawn is not None
    first, second = network.redrawn().state_dict(), network.redrawn().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = next(name for name in first if "layer" in name and name.endswith("weight") and first[name].dim() == 2)
    assert not torch.equal(first[name], network.model.state_dict()[name])


def test_half_precision_is_widened(vit_folder: Path, tmp_path: Path) -> None:
    transformers.ViTModel.from_pretrained(vit_folder).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in transformers_network(str(tmp_path)).model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("./nowhere", r"`\./nowhere` is no folder"),
        ("nobody/nothing", "`nobody/nothing` is no folder here, nor was it fetched before\n.*--download"),
    ],
)
def test_what_is_not_there_is_not_fetched(path: str, cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        transformers_network(path)


def test_a_damaged_folder_says_what_cannot_be_read(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the configuration of `.*` cannot be read"):
        transformers_network(str(tmp_path))
    shutil.copytree(vit_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match=r"the network of `.*` cannot be read"):
        transformers_network(str(tmp_path))
    shutil.copy(vit_folder / "model.safetensors", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the image processor of `.*` cannot be read"):
        transformers_network(str(tmp_path))


def test_a_processor_that_makes_more_than_an_image_is_refused(vit_folder: Path, monkeypatch) -> None:
    network = transformers_network(str(vit_folder))
    assert network.pictures is not None
    processor = network.pictures.transform.processor  # type: ignore[attr-defined]
    call = type(processor).__call__

    def with_mask(self: object, **arguments: object) -> object:
        made = call(self, **arguments)
        return made | {"pixel_mask": torch.ones(1, 32, 32)}

    monkeypatch.setattr(type(processor), "__call__", with_mask)
    with pytest.raises(ConfigError, match=r"`pixel_mask` \(1, 32, 32\) of a picture"):
        network.pictures.transform(Image.new("RGB", (40, 40)))


def test_what_transformers_says_by_itself_is_as_loud_as_before(vit_folder: Path, capfd) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    transformers_network(str(vit_folder))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().err == ""
