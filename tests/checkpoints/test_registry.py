"""Every published checkpoint of the registry: its network has just the weights that its project defines."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mmaction_twin import Recogniser, ShiftRecogniser
from mmdet_twin import Detector
from mmseg_twin import Segmentor
from slowfast_twin import C2D, I3D, SLOW, shapes
from torch import Tensor

from nlprobe.checkpoints.answers import Answers, refuse_open
from nlprobe.checkpoints.foreign import PROJECTS, map_weights
from nlprobe.checkpoints.mapping import COUNTERS
from nlprobe.checkpoints.registry import Entry, entries, entry_of, published
from nlprobe.errors import ConfigError
from nlprobe.models import build

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CLASSES = {"Cityscapes": 19, "ADE20K": 150, "VOC 2012": 21}


def weightless(network: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a network on the meta device, of zeros that take no memory."""
    return {name: torch.zeros((), dtype=held.dtype).expand(held.shape) for name, held in network.state_dict().items()}


@contextmanager
def undrawn() -> Iterator[None]:
    """Networks on the meta device, whose weights nobody draws: that alone would take seconds."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "zeros_", "constant_", "ones_")
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        for name in names:
            patch.setattr(torch.nn.init, name, lambda tensor, *arguments, **settings: tensor)
        yield


@cache
def mmseg_weights(block: str, depth: int, data: str) -> dict[str, Tensor]:
    """What mmsegmentation's configuration of that name defines."""
    mask = {"mask": (66, 66) if data == "ADE20K" else (97, 97)} if block == "PSA" else {}
    with undrawn():
        network = Segmentor(block, CLASSES[data], LAYERS[depth], 64, 512, 256, **mask)
    return weightless(network)


@cache
def our_weights(config: object) -> dict[str, Tensor]:
    with undrawn():
        return build(config).state_dict()  # type: ignore[arg-type]


FORK = {
    "baseline": ("", ()),
    "nl_c4": ("nl", ("layer3.4",)),
    "snl_c4": ("snl", ("layer3.4",)),
    "gc_c4": ("gc", ("layer3.4",)),
    "dnl_c4": ("dnl", ("layer3.4",)),
    "dnl_c4_c5": ("dnl", ("layer3.4", "layer4.0", "layer4.1", "layer4.2")),
}
"""Blocks of the configurations of DNL-Object-Detection, and where they stand."""


@cache
def mmdet_weights(name: str, version: int) -> dict[str, Tensor]:
    """What the configuration of mmdetection, of GCNet's repository or of the fork of that name defines."""
    ratio = {"r16_gcb": "gc16", "r4_gcb": "gc"}
    block = next((block for part, block in ratio.items() if part in name), "")
    block, sites = FORK.get(name, (block, "c3-c5"))
    with undrawn():
        network = Detector(
            version,
            LAYERS[101 if "101" in name else 50],
            *(64, 256, 1024, 80),
            groups=32 if "x101" in name else 1,
            block=block,
            sites=sites,
            place="after_add" if name in FORK else "after_1x1",
            cascade="cascade" in name,
            heavy="4conv1fc" in name or name in FORK,
            deforms="dconv" in name,
        )
    return weightless(network)


@cache
def video_weights(project: str, name: str, block: str) -> dict[str, Tensor]:
    """What mmaction2's or video-nonlocal-net's definition of a network for clips is."""
    if project != "mmaction2":
        kernels = {"c2d": C2D, "i3d": I3D, "slow": SLOW}[re.match("c2d|i3d|slow", name.lower())[0]]  # type: ignore[index]
        return {blob: torch.zeros(()).expand(shape) for blob, shape in shapes(kernels, 64, 400, block == "NL").items()}
    mode = {"NL": "embedded_gaussian", "NL Gaussian": "gaussian", "NL dot product": "dot_product"}[block]
    if name.startswith("tsm"):
        with undrawn():
            shifting = ShiftRecogniser(mode, 64, 400)
        return weightless(shifting)
    with undrawn():
        network = Recogniser("i3d" if name.startswith("i3d") else "slowonly", mode, width=64, classes=400)
    return weightless(network)


@cache
def torchvision_weights(name: str) -> dict[str, Tensor]:
    """What torchvision defines; the norms of the published first version were frozen, and count no batches."""
    with undrawn():
        network = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    frozen = not name.endswith("_v2")
    return {key: tensor for key, tensor in weightless(network).items() if not (frozen and key.endswith(COUNTERS))}


def weights_of(entry: Entry) -> dict[str, Tensor]:
    if entry.project == "torchvision":
        return torchvision_weights(entry.name.partition("/")[2])
    if entry.data == "Kinetics-400":
        return video_weights(entry.project, entry.name.partition("/")[2], entry.block)
    if entry.project != "mmseg":
        return mmdet_weights(entry.name.partition("/")[2], 2 if entry.project == "mmdet" else 1)
    depth = re.search(r"r(50|101)", entry.name)
    assert depth is not None
    return mmseg_weights(entry.block, int(depth[1]), entry.data)


BUILT = [entry for entry in entries().values() if entry.project != "timm" and not entry.flaw]
FIRST = {(entry.project, entry.block): entry for entry in reversed(BUILT)}.values()
"""One entry of each project with each kind of attention; all others are compared with the slow tests."""


@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, id=one.name, marks=[] if one in FIRST else [pytest.mark.slow]) for one in BUILT],
)
def test_an_entry_builds_the_network_of_its_file(entry: Entry) -> None:
    weights = weights_of(entry)
    compare(entry.project, id(weights), tuple(sorted(entry.settings.items())), Held(weights))


class Held:
    """Weights that a cache may hold: all are equal, as their identity is a key of its own."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@cache
def compare(name: str, _: int, settings: tuple[tuple[str, str], ...], held: Held) -> None:
    """Map what the project defines to what we build; entries that differ in their training only are compared once."""
    weights = held.weights
    (project,) = (one for one in PROJECTS if one.recognises(weights))
    assert project.name == {"gcnet": "mmdet", "dnl-det": "mmdet", "video-nonlocal-net": "slowfast"}.get(name, name)
    refuse_open(project.questions(weights), dict(settings), "it", project.describe(weights))
    answers = Answers(dict(settings), "it")
    config = project.config(weights, answers)
    wanted = our_weights(replace(config, align_corners=False) if hasattr(config, "align_corners") else config)
    found = map_weights(project, config, weights, wanted, answers)
    # Caffe2's norms, and torch's before 0.4.1, count no batches
    counts = any(name.endswith(COUNTERS) for name in weights)
    assert set(found.weights) == {name for name in wanted if counts or not name.endswith(COUNTERS)}
    assert all(tensor.shape == wanted[name].shape for name, tensor in found.weights.items())
    assert len(found.weights) + sum(found.left_out.values()) == len(project.prepared(weights, config, answers))
    assert answers.preprocessing()["std"][0] > 0


@pytest.mark.parametrize(
    "entry", [one for one in entries().values() if one.project == "timm"], ids=lambda one: one.name
)
def test_networks_of_timm_are_built_by_timm_and_measured_where_they_can_be(entry: Entry) -> None:
    with undrawn():
        network = timm.create_model(entry.settings["model"])
    assert entry.settings["model"] in timm.list_pretrained()
    contexts = [module for module in network.modules() if type(module).__name__ == "GlobalContext"]
    assert bool(contexts) == (entry.block == "GC")
    adds = {module.mlp_add is not None for module in contexts}
    assert adds <= {entry.note.startswith("adds")}


def test_the_list_is_whole_and_says_what_it_has_to() -> None:
    assert len([entry for entry in entries().values() if entry.project == "mmseg"]) == 108
    assert len(entries()) >= 150 + len(FLAWED)
    for name, entry in entries().items():
        assert name == entry.name
        assert name.startswith(f"{entry.project}/")
        assert bool(entry.flaw) == (entry.sha256 in FLAWED)
        assert entry.url.startswith("https://")
        assert re.fullmatch(r"([0-9a-f]{8})?", entry.sha256)
        assert entry.sha256 in entry.file_name
    hashes = [entry.sha256 for entry in entries().values() if entry.sha256]
    assert len(set(hashes)) == len(hashes)


FLAWED = {"680fc3f2", "08f56b56", "24cabcfd", "df42dc84"}
"""Files of mmdetection's issue 4654, and one of mmaction2 that has another file's hash."""


def test_names_may_leave_out_their_project_and_are_suggested() -> None:
    assert published("psanet_r50-d8_512x1024_40k_cityscapes").name == "mmseg/psanet_r50-d8_512x1024_40k_cityscapes"
    with pytest.raises(ConfigError, match="did you mean `mmseg/psanet_r50-d8_512x1024_40k_cityscapes`"):
        published("mmseg/psanet_r50-d8_512x1024_40k_cityscape")


def test_a_file_is_told_by_its_hash_and_not_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published("gcnet_r50-d8_512x1024_40k_cityscapes")
    path = tmp_path / entry.file_name
    path.write_bytes(b"something else")
    assert entry_of(path) is None
    digest = hashlib.sha256(b"something else").hexdigest()
    other = Entry(**{**entry.__dict__, "sha256": digest[:8]})
    monkeypatch.setattr("nlprobe.checkpoints.registry.entries", lambda: {other.name: other})
    assert entry_of(path.rename(tmp_path / "renamed.pth")) is other
