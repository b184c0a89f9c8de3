"""CCNet and DANet as their own repositories define them, and the CBAM authors' gates: names, shapes and forwards."""

import torch
import torch.nn.functional as F
import torchvision
from mmseg_twin import CrissCross
from torch import Tensor, nn


class ABN(nn.BatchNorm2d):
    """InPlaceABN: |γ| + ε, and a leaky ReLU or nothing behind it."""

    def __init__(self, channels: int, leaky: bool = True) -> None:
        super().__init__(channels)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        scale = self.weight.abs() + self.eps
        x = F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, eps=self.eps)
        return F.leaky_relu(x, 0.01) if self.leaky else x


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = ABN(planes, False)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = ABN(planes, False)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = ABN(planes * 4, False)
        self.downsample = None
        if projects:
            conv = nn.Conv2d(channels, planes * 4, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, ABN(planes * 4, False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class CCNet(nn.Module):
    """The network, with the names of its second release or of its `first`."""

    def __init__(
        self, layers: tuple[int, ...] = (1, 1, 2, 1), width: int = 8, classes: int = 5, first: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn1 = ABN(width, False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = ABN(width, False)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False)
        self.bn3 = ABN(2 * width, False)
        channels = 2 * width
        for stage, (count, stride, dilation) in enumerate(zip(layers, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            blocks = []
            for index in range(count):
                planes = width * 2**stage
                blocks.append(Bottleneck(channels, planes, 1 if index else stride, dilation, not index))
                channels = planes * 4
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        inner = channels // 4
        self.names = ("conv1a", "pc", "conv1b") if first else ("conva", "cca", "convb")
        attention = CrissCross(inner)
        attention.gamma = nn.ParameterList([nn.Parameter(torch.zeros(1))])
        self.head = nn.Module()
        for name, part in zip(
            self.names,
            (
                nn.Sequential(nn.Conv2d(channels, inner, 3, padding=1, bias=False), ABN(inner)),
                attention,
                nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, bias=False), ABN(inner)),
            ),
            strict=True,
        ):
            self.head.add_module(name, part)
        self.head.bottleneck = nn.Sequential(
            nn.Conv2d(channels + inner, inner, 3, padding=1, bias=False),
            *(ABN(inner), nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1)),
        )
        self.dsn = nn.Sequential(
            nn.Conv2d(channels // 2, inner, 3, padding=1),
            *(ABN(inner), nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1)),
        )

    def forward(self, images: Tensor, recurrence: int = 2) -> tuple[Tensor, Tensor]:
        """Coarse scores of head and auxiliary head."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x))))))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        c4 = self.layer3(self.layer2(self.layer1(x)))
        c5 = self.layer4(c4)
        reduce, attention, smooth = (self.head.get_submodule(name) for name in self.names)
        y = reduce(c5)
        for _ in range(recurrence):
            y = y + attention.gamma[0] * self.attended(attention, y)
        return self.head.bottleneck(torch.cat([c5, smooth(y)], 1)), self.dsn(c4)

    @staticmethod
    def attended(block: CrissCross, x: Tensor) -> Tensor:
        """One step without γ and without the residual, which mmcv's block has."""
        gamma = block.gamma
        del block.gamma
        block.gamma = nn.Identity()
        found = block(x) - x
        del block.gamma
        block.gamma = gamma
        return found

    def saved(self) -> dict[str, Tensor]:
        """The state dict, where γ is a parameter of the block itself."""
        return {name.replace("gamma.0", "gamma"): tensor for name, tensor in self.state_dict().items()}


class Gates(nn.Module):
    """The authors' `CBAM`."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.ChannelGate = nn.Module()
        self.ChannelGate.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.SpatialGate = nn.Module()
        self.SpatialGate.spatial = nn.Module()
        self.SpatialGate.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate.spatial.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        mlp, spatial = self.ChannelGate.mlp, self.SpatialGate.spatial
        logits = mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1))
        y = x * logits.sigmoid()[:, :, None, None]
        pooled = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
        return y * spatial.bn(spatial.conv(pooled)).sigmoid()


class DANet(nn.Module):
    """The network on a ResNet-50's layout, whose c5 has dilations of its own."""

    def __init__(self, dilations: tuple[int, ...], classes: int = 5) -> None:
        super().__init__()
        trunk = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 2, 3], 6, replace_stride_with_dilation=[False, True, True]
        )
        for block, dilation in zip(trunk.layer4, dilations, strict=True):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        self.pretrained = trunk
        inner = 512
        self.head = nn.Module()
        for name, channels in (("5a", 2048), ("5c", 2048), ("51", inner), ("52", inner)):
            conv = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
            self.head.add_module(f"conv{name}", nn.Sequential(conv, nn.BatchNorm2d(inner), nn.ReLU()))
        for name in ("6", "7", "8"):
            self.head.add_module(f"conv{name}", nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1)))
        self.head.sa, self.head.sc = nn.Module(), nn.Module()
        for name, width in (("query", inner // 8), ("key", inner // 8), ("value", inner)):
            self.head.sa.add_module(f"{name}_conv", nn.Conv2d(inner, width, 1))
        self.head.sa.gamma, self.head.sc.gamma = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coarse scores of the sum and of its two parts."""
        net, head = self.pretrained, self.head
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        y = head.conv5a(x)
        query, key, value = (head.sa.get_submodule(f"{name}_conv")(y).flatten(2) for name in ("query", "key", "value"))
        y = y + head.sa.gamma * (value @ (query.mT @ key).softmax(2).mT).view_as(y)
        position = head.conv51(y)
        z = head.conv5c(x)
        maps = z.flatten(2)
        energy = maps @ maps.mT
        attention = (energy.amax(2, keepdim=True) - energy).softmax(2)
        channel = head.conv52(z + head.sc.gamma * (attention @ maps).view_as(z))
        return head.conv8(position + channel), head.conv6(position), head.conv7(channel)
