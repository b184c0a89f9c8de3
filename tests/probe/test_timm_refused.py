"""timm's modules that have no map from position to position are refused in words."""

from collections.abc import Callable

import pytest
import torch
from timm.layers.diff_attention import DiffAttention
from timm.layers.lambda_layer import LambdaLayer
from timm.models.cait import Cait, TalkingHeadAttn
from timm.models.coat import ConvRelPosEnc, FactorAttnConvRelPosEnc
from timm.models.convit import GPSA
from timm.models.csatv2 import SpatialTransformerBlock
from timm.models.davit import ChannelAttention, ChannelAttentionV2
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.efficientformer_v2 import Attention2d
from timm.models.mobilevit import LinearSelfAttention
from timm.models.volo import OutlookAttention
from timm.models.xcit import XCA
from timm_models import B, pictures, run, seeded
from torch import Tensor, nn

import nlprobe
from nlprobe.cli import run as command
from nlprobe.probe.sites import find_sites

TOKENS = torch.randn(B, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
CHANNELS, HEADS = "attends from channel to channel", "talking heads"
LINEAR = "is linear attention"

REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[object, ...], str]] = {
    "cait": (lambda: TalkingHeadAttn(16, num_heads=2), (TOKENS,), HEADS),
    "efficientformer v2": (lambda: nn.Sequential(Attention2d(16, 8, 2, resolution=4)), (pictures(4, 16),), HEADS),
    "convit": (lambda: GPSA(16, num_heads=2), (TOKENS,), "mixes two softmax maps"),
    "differential": (lambda: DiffAttention(16, num_heads=2), (TOKENS,), "subtracts one softmax map from another"),
    "volo": (lambda: OutlookAttention(16, 2), (TOKENS.view(B, 4, 4, 16),), "predicts weights"),
    "xcit": (lambda: XCA(16, num_heads=2), (TOKENS,), CHANNELS),
    "davit": (lambda: ChannelAttention(16, num_heads=2), (TOKENS,), CHANNELS),
    "davit v2": (lambda: ChannelAttentionV2(16, num_heads=2), (TOKENS,), CHANNELS),
    "edgenext": (lambda: CrossCovarianceAttn(16, num_heads=2), (TOKENS,), CHANNELS),
    "coat": (
        lambda: FactorAttnConvRelPosEnc(16, num_heads=2, shared_crpe=ConvRelPosEnc(8, 2, {3: 2})),
        (TOKENS[:, :10], (3, 3)),
        LINEAR,
    ),
    "mobilevit v2": (lambda: LinearSelfAttention(16), (pictures(4, 16),), LINEAR),
    "lambda": (lambda: LambdaLayer(16, feat_size=(4, 4)), (pictures(4, 16),), "no map from position to position"),
    "csat v2": (SpatialTransformerBlock, (pictures(4, 1),), "from image to image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_map_is_refused_with_the_reason(name: str) -> None:
    build, inputs, reason = REFUSED[name]
    model = seeded(build())
    with torch.no_grad():
        model(*inputs)  # it runs; only measuring is refused
    [site] = find_sites(model)
    assert reason in str(site.settings["refused"])
    with pytest.raises(nlprobe.CaptureError, match=reason):
        run(model, *inputs)
    assert not model._forward_pre_hooks


def cait() -> Cait:
    return seeded(Cait(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0))


def test_the_other_sites_of_such_a_model_can_be_chosen() -> None:
    model = cait()
    with torch.no_grad(), nlprobe.probe(model, "blocks_token_only.*") as probe:
        model(pictures())
    assert {site.block for site in probe.sites} == {"timm.ClassAttn"}
    assert {audit.status for audit in probe.audit()} == {"passed"}


def test_the_command_refuses_with_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    network = f"python:{__name__}:small_cait"
    assert command(["inspect", "--model", network, "--size", "32"]) == 3
    message = capsys.readouterr().err
    assert "`TalkingHeadAttn` cannot be measured: it mixes the heads' weights" in message
    assert "--site" in message


def small_cait() -> nn.Module:
    """The network that the command opens."""
    return cait().float()


class OwnChannels(nn.Module):
    """Attention between channels in a class that nobody described."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 4, 1)  # (b, heads, channels, n)
        return (((query @ key.mT).softmax(-1)) @ value).flatten(1, 2).mT


def test_maps_between_channels_of_an_unknown_class_are_refused() -> None:
    with pytest.raises(nlprobe.CaptureError, match="from channel to channel"):
        run(seeded(nn.Sequential(OwnChannels())), TOKENS[:, :12])
