"""Networks for clips as video-nonlocal-net computes them, from its blobs alone; and PySlowFast's names for them."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = (3, 4, 6, 3)
NON_LOCAL = {3: (1, 3), 4: (1, 3, 5)}
I3D = {1: (5,), 2: (3, 3, 3), 3: (3, 1, 3, 1), 4: (3, 1, 3, 1, 3, 1), 5: (1, 3, 1)}
C2D = {1: (1,), 2: (1,) * 3, 3: (1,) * 4, 4: (1,) * 6, 5: (1,) * 3}
SLOW = {1: (1,), 2: (1,) * 3, 3: (1,) * 4, 4: (3,) * 6, 5: (3,) * 3}


def shapes(
    kernels: dict[int, tuple[int, ...]], width: int, classes: int, attends: bool = True
) -> dict[str, tuple[int, ...]]:
    """The blobs of the network by name."""
    found: dict[str, tuple[int, ...]] = {"conv1_w": (width, 3, kernels[1][0], 7, 7)}

    def norm(name: str, channels: int) -> None:
        found.update({f"{name}_{part}": (channels,) for part in ("s", "b", "rm", "riv")})

    norm("res_conv1_bn", width)
    channels = width
    for stage, count in zip(range(2, 6), LAYERS, strict=True):
        planes = width * 2 ** (stage - 2)
        for index in range(count):
            block = f"res{stage}_{index}_branch"
            found[f"{block}2a_w"] = (planes, channels, kernels[stage][index], 1, 1)
            found[f"{block}2b_w"] = (planes, planes, 1, 3, 3)
            found[f"{block}2c_w"] = (planes * 4, planes, 1, 1, 1)
            norm(f"{block}2a_bn", planes)
            norm(f"{block}2b_bn", planes)
            norm(f"{block}2c_bn", planes * 4)
            if index == 0:
                found[f"{block}1_w"] = (planes * 4, channels, 1, 1, 1)
                norm(f"{block}1_bn", planes * 4)
            channels = planes * 4
            if attends and index in NON_LOCAL.get(stage, ()):
                own = f"nonlocal_conv{stage}_{index}"
                for part in ("theta", "phi", "g", "out"):
                    sizes = (channels, channels // 2) if part == "out" else (channels // 2, channels)
                    found[f"{own}_{part}_w"] = (*sizes, 1, 1, 1)
                    found[f"{own}_{part}_b"] = (sizes[0],)
                norm(f"{own}_bn", channels)
    found["pred_w"], found["pred_b"] = (classes, channels), (classes,)
    return found


def blobs(
    kernels: dict[int, tuple[int, ...]], width: int = 8, classes: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Drawn at random, with what stands beside the weights in a file."""
    generator = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, shape in shapes(kernels, width, classes).items():
        drawn = generator.random(shape)
        if name.endswith(("_s", "_riv")):
            found[name] = drawn * 0.5 + 0.5
        elif len(shape) == 1:
            found[name] = drawn * 0.4 - 0.2
        else:
            found[name] = (drawn * 2 - 1) * (3 / np.prod(shape[1:])) ** 0.5
        found[name] = found[name].astype("f4")
        if name.endswith("_w"):
            found[f"{name}_momentum"] = np.zeros(shape, "f4")
    return {**found, "lr": np.float32([0.01]), "model_iter": np.array([400000])}


def logits(
    held: dict[str, np.ndarray],
    clips: Tensor,
    *,
    stem_stride: int,
    pool: tuple[int, int],
    padding: int,
    halves: bool = True,
    softmax: bool = True,
    scaled: bool = True,
) -> Tensor:
    """The network in evaluation mode, in float64."""
    w = {name: torch.from_numpy(np.asarray(blob)).double() for name, blob in held.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, w[f"{name}_rm"], w[f"{name}_riv"], w[f"{name}_s"], w[f"{name}_b"], eps=1e-5)

    def conv(x: Tensor, name: str, stride: object = 1, pads: object = 0) -> Tensor:
        return F.conv3d(x, w[f"{name}_w"], w.get(f"{name}_b"), stride, pads)  # type: ignore[arg-type]

    def attend(x: Tensor, name: str) -> Tensor:
        pooled = F.max_pool3d(x, (1, 2, 2))
        theta, phi, g = (
            conv(of, f"{name}_{part}").flatten(2) for of, part in ((x, "theta"), (pooled, "phi"), (pooled, "g"))
        )
        product = theta.mT @ phi
        if softmax:
            weights = (product * (theta.shape[1] ** -0.5 if scaled else 1)).softmax(2)
        else:
            weights = product / phi.shape[2]
        y = (weights @ g.mT).mT.unflatten(2, x.shape[2:])
        return x + norm(conv(y, f"{name}_out"), f"{name}_bn")

    long = w["conv1_w"].shape[2] // 2
    x = F.relu(norm(conv(clips, "conv1", (stem_stride, 2, 2), (long, 3, 3)), "res_conv1_bn"))
    x = F.max_pool3d(x, (pool[0], 3, 3), (pool[1], 2, 2), (0, padding, padding))
    for stage, count in zip(range(2, 6), LAYERS, strict=True):
        if stage == 3 and halves:
            x = F.max_pool3d(x, (2, 1, 1))
        for index in range(count):
            block, stride = f"res{stage}_{index}_branch", 2 if stage > 2 and index == 0 else 1
            long = w[f"{block}2a_w"].shape[2] // 2
            y = F.relu(norm(conv(x, f"{block}2a", 1, (long, 0, 0)), f"{block}2a_bn"))
            y = F.relu(norm(conv(y, f"{block}2b", (1, stride, stride), (0, 1, 1)), f"{block}2b_bn"))
            y = norm(conv(y, f"{block}2c"), f"{block}2c_bn")
            if index == 0:
                x = norm(conv(x, f"{block}1", (1, stride, stride)), f"{block}1_bn")
            x = F.relu(y + x)
            if f"nonlocal_conv{stage}_{index}_g_w" in w:
                x = attend(x, f"nonlocal_conv{stage}_{index}")
    return x.mean((2, 3, 4)) @ w["pred_w"].T + w["pred_b"]


def slowfast_names(held: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The weights as PySlowFast names them."""
    ends = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var", "w": "weight"}
    found = {}
    for name, blob in held.items():
        if name.endswith("_momentum") or name in ("lr", "model_iter"):
            continue
        stem, _, end = name.rpartition("_")
        stem = re.sub(r"^nonlocal_conv(\d)_(\d+)_bn$", r"s\1.pathway0_nonlocal\2.bn", stem)
        stem = re.sub(r"^nonlocal_conv(\d)_(\d+)_(\w+)$", r"s\1.pathway0_nonlocal\2.conv_\3", stem)
        stem = re.sub(r"^res(\d)_(\d+)_branch2([abc])(_bn)?$", r"s\1.pathway0_res\2.branch2.\3\4", stem)
        stem = re.sub(r"^res(\d)_(\d+)_branch1(_bn)?$", r"s\1.pathway0_res\2.branch1\3", stem)
        stem = {"conv1": "s1.pathway0_stem.conv", "res_conv1_bn": "s1.pathway0_stem.bn", "pred": "head.projection"}.get(
            stem, stem
        )
        found[f"{stem}.{ends[end]}"] = torch.from_numpy(np.asarray(blob))
    return found
