"""What is read of captures beside the records - mean maps and masses on objects - against matrices written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_reference import brute_block, brute_context
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import (
    CBAM,
    CBAMConfig,
    ContextBlock,
    ContextConfig,
    CrissCross,
    CrissCrossConfig,
    NonLocal,
    NonLocalConfig,
)
from nlprobe.errors import ConfigError
from nlprobe.probe import MeanMaps, Probe, Reader
from nlprobe.probe.mean_maps import MapGrids
from nlprobe.probe.naming import Objects
from nlprobe.probe.objects import ObjectMasses, coverage

CANVAS = (24, 32)
SIZES = [(24, 32), (18, 21)]
INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


class Network(nn.Module):
    """A convolution with stride 4 and a block: 6x8 positions on 24x32 pixels."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.block = block
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.block(self.stem(images))
        return result


def pictures() -> Tensor:
    return torch.randn(2, 3, *CANVAS, generator=torch.Generator().manual_seed(1))


def shown(model: nn.Module, *readers: Reader, objects: list[Objects] | None = None) -> Probe:
    probe = nlprobe.probe(model, quantities=("input",), readers=readers)
    with probe, probe.images("ab", sizes=SIZES, objects=objects), torch.no_grad():
        model(pictures())
    return probe


def valid(index: int) -> Tensor:
    """Queries in the picture: all of 6x8, or the first 5 rows and columns (centres 2, 6, 10, 14, 18 … pixels)."""
    cells = torch.zeros(6, 8, dtype=torch.bool)
    height, width = SIZES[index]
    cells[: (height + 1) // 4, : (width + 1) // 4] = True
    return cells.flatten()


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project"])
def test_mean_maps_are_means_over_the_queries_in_the_picture(instantiation: str, sub_sample: str) -> None:
    model = Network(NonLocal(8, 2, NonLocalConfig(instantiation=instantiation, sub_sample=sub_sample, zero_init=False)))
    maps = MeanMaps(["block"])
    shown(model, maps)
    for index, image in enumerate("ab"):
        att = brute_block(model.block, model.stem(pictures()[index : index + 1]).detach())["att"]
        grid = (6, 8) if sub_sample == "none" else (3, 4)
        expected = att[valid(index)].mean(0).view(grid)
        found, *extent = maps.maps["block"][image, 0]
        assert extent == [SIZES[index], CANVAS]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_the_one_map_of_a_context_block_is_its_mean_map(pooling: str) -> None:
    model = Network(ContextBlock(8, ContextConfig(pooling=pooling)))
    maps = MeanMaps(["block"])
    shown(model, maps)
    expected = brute_context(model.block, model.stem(pictures()[1:]).detach())["weights"].view(6, 8)
    np.testing.assert_allclose(maps.maps["block"]["b", 0].values, expected, rtol=1e-5)


def test_steps_of_criss_cross_attention_have_one_mean_map() -> None:
    model = Network(CrissCross(8, 2, CrissCrossConfig(4, 2, zero_init=False)))
    maps = MeanMaps(["block"])
    shown(model, maps)
    composed = composed_map(model)
    for index, image in enumerate("ab"):
        np.testing.assert_allclose(
            maps.maps["block"][image, 0].values, composed[index][valid(index)].mean(0).view(6, 8), rtol=1e-4
        )


def composed_map(model: Network) -> Tensor:
    block = model.block
    x = model.stem(pictures()).detach().double().flatten(2).mT
    wide = CrissCross(8, 2, block.config).double()
    wide.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    places = [(y, u) for y in range(6) for u in range(8)]
    seen = torch.tensor([[y == v or a == u for v, u in places] for y, a in places])
    product = torch.eye(48, dtype=torch.float64)
    for _ in range(2):
        query, key, value = (layer(x).detach() for layer in (wide.query, wide.key, wide.value))
        att = (query @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)
        product = att @ product
        x = x + (wide.gamma.gamma * (att @ value)).detach()
    return product


def test_heads_are_averaged_and_prefix_tokens_left_out() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), patch_size=16, depth=1, num_classes=2).eval()
    images = torch.randn(1, 3, 48, 80)
    x: list[Tensor] = []
    handle = model.blocks[0].attn.register_forward_pre_hook(lambda _, args: x.append(args[0].clone()))
    maps, grids = MeanMaps(["blocks.0.attn"]), MapGrids()
    with nlprobe.probe(model, readers=[maps, grids]) as probe, probe.images(["a"]), torch.no_grad():
        model(images)
    handle.remove()
    qkv = model.blocks[0].attn.qkv(x[0]).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4).detach().double()
    att = (qkv[0] @ qkv[1].mT / 8).softmax(-1)[0].mean(0)
    np.testing.assert_allclose(maps.maps["blocks.0.attn"]["a", 0].values, att[1:, 1:].mean(0).view(3, 5), rtol=1e-4)
    assert grids.grids == {"blocks.0.attn": ((3, 5), (3, 5))}


def test_sites_without_a_map_over_pictures_are_refused_for_mean_maps_and_named_for_objects() -> None:
    model = Network(CBAM(8, CBAMConfig()))
    with pytest.raises(ConfigError, match="`block` has no mean map: it has no map"):
        shown(model, MeanMaps(["block"]))
    masses, grids = ObjectMasses(), MapGrids()
    shown(model, masses, grids, objects=things())
    assert masses.unmapped == {"block": "it has no map"}
    assert masses.frame().empty
    assert grids.grids == {}
    maps = MeanMaps(["elsewhere"])
    shown(model, maps)
    assert maps.maps == {"elsewhere": {}}


def things() -> list[Objects]:
    """Two overlapping objects on the first picture, at half its resolution; a tiny and an empty one on the second."""
    first, second = torch.zeros(2, 12, 16, dtype=torch.bool), torch.zeros(2, 36, 42, dtype=torch.bool)
    first[0, 1:9, 2:11], first[1, 5:12, 7:16] = True, True
    second[0, 17, 20] = True
    return [
        Objects(first, ("cat", "dog"), ("large", "large")),
        Objects(second, ("cat", "cat"), ("small", "small")),
    ]


def pixels(index: int, mask: Tensor) -> Tensor:
    """A mask at pixels of the padded tensor, times 2 for exactness: (48, 64) half pixels."""
    height, width = SIZES[index]
    canvas = torch.zeros(48, 64, dtype=torch.float64)
    rows, columns = 2 * height // mask.shape[0], 2 * width // mask.shape[1]
    whole = mask.double().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    canvas[: 2 * height, : 2 * width] = whole
    return canvas


def cells(index: int, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels(index, mask)[None, None], (48 // grid[0], 64 // grid[1]))[0, 0]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_parts_of_cells_add_up_to_the_area_of_the_mask(data: st.DataObject) -> None:
    canvas = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)))
    picture = tuple(data.draw(st.integers(1, length)) for length in canvas)
    grid = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shape = data.draw(st.tuples(st.integers(1, 15), st.integers(1, 15)))
    mask = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = coverage(mask, picture, canvas, grid)
    area = mask.double().mean() * picture[0] * picture[1] / (canvas[0] * canvas[1])
    assert float(found.mean()) == pytest.approx(float(area), rel=1e-9, abs=1e-12)
    assert float(found.max()) <= 1 + 1e-9
    assert float(found.min()) >= 0


def test_known_masks_cover_known_cells() -> None:
    for index, each in enumerate(things()):
        found = coverage(each.masks, SIZES[index], CANVAS, (6, 8))
        for mask, one in zip(each.masks, found, strict=True):
            torch.testing.assert_close(one.view(6, 8), cells(index, mask, (6, 8)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [*INSTANTIATIONS, "pooled", "gc", "cross"])
def test_masses_on_objects_are_sums_over_their_cells(kind: str) -> None:
    key_grid = (6, 8)
    if kind == "gc":
        model = Network(ContextBlock(8, ContextConfig()))
    elif kind == "cross":
        model = Network(CrissCross(8, 2, CrissCrossConfig(4, 2, zero_init=False)))
    else:
        pooled = kind == "pooled"
        key_grid = (3, 4) if pooled else (6, 8)
        config = NonLocalConfig(
            instantiation="embedded_gaussian" if pooled else kind,
            sub_sample="pool_then_project" if pooled else "none",
            zero_init=False,
        )
        model = Network(NonLocal(8, 2, config))
    masses = ObjectMasses()
    shown(model, masses, objects=things())
    frame = masses.frame()
    assert frame["class"].tolist() == ["cat", "dog", "cat", "cat"]
    for index, (image, each) in enumerate(zip("ab", things(), strict=True)):
        features = model.stem(pictures()[index : index + 1]).detach()
        if kind == "gc":
            att = brute_context(model.block, features)["weights"].expand(48, -1)
        elif kind == "cross":
            att = composed_map(model)[index]
        else:
            att = brute_block(model.block, features)["att"].abs()
        if kind == "dot_product":
            att = att / att.sum(1, keepdim=True)
        if kind == "concat":
            att = torch.nan_to_num(att / att.sum(1, keepdim=True))
        everything = cells(index, torch.ones_like(each.masks[0]), key_grid).flatten()
        queries = valid(index).double()
        for number, mask in enumerate(each.masks):
            keys, inside = cells(index, mask, key_grid).flatten(), cells(index, mask, (6, 8)).flatten() * queries
            one = frame[(frame["image"] == image) & (frame["object"] == number)].iloc[0]
            assert one["area"] == pytest.approx(float(keys.sum() / everything.sum()), rel=1e-9)
            mass = (queries @ att @ keys) / (queries @ att @ everything)
            assert one["mass"] == pytest.approx(float(mass), rel=1e-4, abs=1e-9)
            within = (inside @ att @ keys) / (inside @ att @ everything)
            assert one["within"] == pytest.approx(float(within), rel=1e-4, nan_ok=True)
    assert np.isnan(frame["within"].iloc[3])
    assert frame["area"].iloc[3] == 0


def test_uniform_attention_gives_objects_their_share_of_the_area() -> None:
    model = Network(ContextBlock(8, ContextConfig(pooling="average")))
    masses = ObjectMasses()
    shown(model, masses, objects=things())
    frame = masses.frame().iloc[:3]
    for column in ("mass", "within"):
        np.testing.assert_allclose(frame[column].astype(float), frame["area"].astype(float), rtol=1e-9)


def test_what_was_read_can_be_kept_and_put_together(tmp_path) -> None:
    model = Network(NonLocal(8, 2, NonLocalConfig(zero_init=False)))

    def readers() -> tuple[MeanMaps, ObjectMasses]:
        return MeanMaps(["block"]), ObjectMasses()

    def show(probe: Probe, at: int) -> None:
        with probe.images(["ab"[at]], sizes=[SIZES[at]], objects=[things()[at]]), torch.no_grad():
            model(pictures()[at : at + 1])

    whole, first, second = readers(), readers(), readers()
    with nlprobe.probe(model, readers=whole) as probe:
        show(probe, 0)
        show(probe, 1)
    with nlprobe.probe(model, readers=first) as probe:
        show(probe, 0)
    with nlprobe.probe(model, readers=second) as other:
        show(other, 1)
    torch.save(other.take(), tmp_path / "state.pt")
    assert second[0].maps == {"block": {}}
    assert second[1].frame().empty
    probe.absorb(torch.load(tmp_path / "state.pt", weights_only=True))
    assert list(first[0].maps["block"]) == [("a", 0), ("b", 0)]
    for view, one in whole[0].maps["block"].items():
        assert np.array_equal(first[0].maps["block"][view].values, one.values)
        assert first[0].maps["block"][view][1:] == one[1:] == (SIZES["ab".index(view[0])], CANVAS)
    assert first[1].frame().equals(whole[1].frame())


def test_objects_have_to_be_given_for_each_image() -> None:
    model = Network(NonLocal(8, 2, NonLocalConfig(zero_init=False)))
    with pytest.raises(ConfigError, match="2 ids and 1 objects"):
        shown(model, ObjectMasses(), objects=things()[:1])
