"""The configuration beside the weights answers what they do not tell, and is never run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively
from mmaction_twin import Recogniser
from mmdet_twin import Detector
from mmseg_twin import Segmentor

from nlprobe.checkpoints.configurations import read_configuration
from nlprobe.checkpoints.foreign import read_foreign
from nlprobe.errors import ConfigError

SEGMENTATION = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    decode_head=dict(
        type='NLHead', in_channels=2048, reduction=2, use_scale=False, mode='dot_product',
        norm_cfg=norm_cfg, align_corners=True))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2049, 1025), flip=False,
         transforms=[dict(type='Resize', keep_ratio=True), dict(type='Normalize', **img_norm_cfg)])
]
"""
DETECTION = """
model = dict(type='MaskRCNN', backbone=dict(
    type='ResNet', norm_cfg=dict(type='SyncBN'), plugins=[
        dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=(False, True, True, True), position='after_conv3')]))
img_norm_cfg = {'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'to_rgb': False}
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(1333, 800), transforms=[dict(type='Pad', size_divisor=32)])]
"""
VIDEO = """
model = dict(
    type='Recognizer3D',
    backbone=dict(type='ResNet3dSlowOnly', non_local_cfg=dict(sub_sample=True, use_scale=True, mode='dot_product')),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], format_shape='NCTHW'))
test_pipeline = [
    dict(type='SampleFrames', clip_len=4, frame_interval=16, num_clips=10),
    dict(type='Resize', scale=(-1, 256)), dict(type='ThreeCrop', crop_size=256)]
"""


def saved(path: Path, network: torch.nn.Module, **meta: Any) -> Path:
    torch.save({"meta": meta, "state_dict": network.state_dict()}, path)
    return path


def test_a_segmentation_network_is_read_by_its_own_configuration(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", lively(Segmentor("NL", mode="dot_product")), config=SEGMENTATION)
    found = read_foreign(path)
    assert found.settings == {
        "order": "rgb",
        "mean": "123.675,116.28,103.53",
        "std": "58.395,57.12,57.375",
        "resize": "1025",
        "align_corners": "true",
        "mode": "dot_product",
        "scale": "none",
    }
    assert found.model.config.context.instantiation == "dot_product"
    assert read_foreign(path, {"mode": "embedded_gaussian"}).settings["mode"] == "embedded_gaussian"


@pytest.mark.parametrize("head", ["GC", "DNL", "criss-cross", "ANN", "DANet"])
def test_heads_take_their_defaults_where_the_configuration_does_not_say(head: str, tmp_path: Path) -> None:
    text = SEGMENTATION.replace("use_scale=False, mode='dot_product',", "")
    found = read_foreign(saved(tmp_path / "x.pth", lively(Segmentor(head)), cfg=text))
    expected = {"DNL": {"scale": "inv_sqrt", "temperature": "0.05"}, "criss-cross": {"recurrence": "2"}}
    assert expected.get(head, {}).items() <= found.settings.items()


def test_a_detector_is_read_by_its_own_configuration(tmp_path: Path) -> None:
    found = read_foreign(saved(tmp_path / "x.pth", lively(Detector(2, block="gc")), config=DETECTION))
    assert found.settings["site"] == "after_1x1"
    preprocessing = found.metadata["preprocessing"]
    assert (preprocessing["resize"], preprocessing["longest"], preprocessing["pad"]) == (800, 1333, 32)
    assert preprocessing["mean"] == [123.675 / 255, 116.28 / 255, 103.53 / 255]
    first = lively(Detector(2, block="gc")).backbone.conv1.weight
    assert torch.equal(found.model.backbone.conv1.weight, first.flip(1))


def test_a_fork_may_put_its_blocks_elsewhere_and_is_asked(tmp_path: Path) -> None:
    text = DETECTION.replace("plugins=[", "gcb=[")
    path = saved(tmp_path / "x.pth", lively(Detector(1, block="gc")), config=text)
    with pytest.raises(ConfigError, match="do not tell `site=") as error:
        read_foreign(path)
    assert "gamma" not in error.value.cause


def test_a_network_for_clips_is_read_by_its_own_configuration(tmp_path: Path) -> None:
    network = lively(Recogniser("slowonly", "dot_product"))
    found = read_foreign(saved(tmp_path / "x.pth", network, cfg=VIDEO))
    assert {"frames": 4, "stride": 16}.items() <= found.metadata["preprocessing"].items()
    assert found.metadata["preprocessing"]["resize"] == 256
    assert found.model.config.insertions[0].block.instantiation == "dot_product"


def test_a_configuration_is_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    text = f"""
import os
os.system('touch {victim}')
a = open('{victim}', 'w')
b = [__import__('os').system('touch {victim}'), 1]
c = dict(x=eval("1"), y=2, **a)
d = {"-" * 30}7
if True:
    e = 1
"""
    assert read_configuration(text) == {"c": {"y": 2}, "d": 7}
    assert not victim.exists()
    assert read_configuration("a = (" * 3000) == {}
    assert read_configuration("a = " + "[" * 80 + "]" * 80) == {}
    assert read_configuration("a = " + "[" * 8 + "]" * 8)["a"]
    assert read_configuration("x = = 1") == {}
