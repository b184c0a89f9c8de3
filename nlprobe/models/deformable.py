"""Deformable convolution as in DCN: each tap of a 3x3 convolution looks where its input tells it to."""

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

TAPS = 9


class OffsetConvolution(nn.Conv2d):
    """The 3x3 convolution that gives a vertical and a horizontal offset for each tap; it starts, and stays, at zero.

    Nothing is drawn for it, so that a network has the same weights with it as without.
    """

    def __init__(self, channels: int, stride: int, dilation: int) -> None:
        super().__init__(channels, 2 * TAPS, 3, stride=stride, padding=dilation, dilation=dilation)

    def reset_parameters(self) -> None:
        """Weight and bias to zero: the deformable convolution starts as the plain one."""
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class DeformableConvolution(DeformConv2d):
    """y(p) = Σ_k W_k x(p + p_k + Δ_k(p)), with Δ from a convolution of x: unmodulated, one group of offsets.

    x between positions is interpolated bilinearly and is zero outside. Stride, dilation and groups are those of the 3x3
    convolution in whose place it stands; `offset` has 18 channels, in each pair the vertical one first.

    Shapes: (B, C_in, H, W) -> (B, C, H / stride, W / stride).
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__(
            channels_in, channels, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.offset = OffsetConvolution(channels_in, stride, dilation)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c h_out w_out"]:
        """The convolution at the offsets that x gives."""
        return super().forward(x, self.offset(x))
