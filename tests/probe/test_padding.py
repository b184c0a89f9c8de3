"""Pictures in padded tensors: what lies in the padding is left out of the queries, and never of the keys."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from attention_reference import column, expected_maps
from hypothesis import given, settings
from hypothesis import strategies as st
from operators_reference import inputs_of, operators
from operators_reference import written_out as operator_written_out
from probe_reference import brute_avg_dist, brute_block, brute_columns, brute_context
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
from nlprobe.probe import Probe, init_block
from nlprobe.probe.baselines import redraw
from nlprobe.stats.grids import valid_cells
from nlprobe.stats.records import KEY_COLUMNS, VALUE_COLUMNS
from nlprobe.stats.summary import at_positions, per_image, summarise

CANVAS = (23, 30)
SIZES = [(23, 30), (14, 30), (17, 19)]
INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


class Network(nn.Module):
    """A convolution with stride 4 and a block: 6x8 positions on 23x30 pixels, which 4 does not divide."""

    def __init__(self, block: nn.Module, channels: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=4, padding=1)
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.block(self.stem(images))
        return result


def drawn(module: nn.Module, std: float = 0.4) -> nn.Module:
    """Weights far from zero, in evaluation mode."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def pictures(count: int = 3, canvas: tuple[int, int] = CANVAS) -> Tensor:
    return torch.randn(count, 3, *canvas, generator=torch.Generator().manual_seed(1))


def probed(model: nn.Module, sizes: list[tuple[int, int]] | None = None, **settings: object) -> Probe:
    sizes = SIZES if sizes is None else sizes
    images = pictures(len(sizes))
    with nlprobe.probe(model, **settings) as probe, probe.images("abc"[: len(sizes)], sizes=sizes), torch.no_grad():
        model(images)
    return probe


def inside(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The rule, cell by cell: the centre lies in the picture; the first row and column always count."""
    cells = [
        all(at == 0 or Fraction(2 * at + 1, 2) * Fraction(length, count) < pixels for at, length, count, pixels in axes)
        for y in range(grid[0])
        for x in range(grid[1])
        for axes in [list(zip((y, x), CANVAS, grid, size, strict=True))]
    ]
    return torch.tensor(cells)


def record(frame: pd.DataFrame, image: str, quantity: str, positions: str, head: str | None = None) -> pd.Series:
    rows = frame[(frame["image"] == image) & (frame["quantity"] == quantity) & (frame["positions"] == positions)]
    rows = rows if head is None else rows[rows["head"] == head]
    assert len(rows) == 1
    return rows.iloc[0]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_cell_counts_where_its_centre_lies_in_the_picture(data: st.DataObject) -> None:
    sides = [(data.draw(st.integers(1, 60)), data.draw(st.integers(1, 20))) for _ in range(2)]
    canvas, grid = (sides[0][0], sides[1][0]), (sides[0][1], sides[1][1])
    size = (data.draw(st.integers(1, canvas[0])), data.draw(st.integers(1, canvas[1])))
    found = valid_cells([size], canvas, grid)[0].view(grid)
    for y in range(grid[0]):
        for x in range(grid[1]):
            axes = zip((y, x), canvas, grid, size, strict=True)
            centres = [(at, Fraction(2 * at + 1, 2) * Fraction(length, n), pixels) for at, length, n, pixels in axes]
            assert bool(found[y, x]) == all(at == 0 or centre < pixels for at, centre, pixels in centres)
    assert torch.equal(valid_cells([size], canvas, (3, *grid))[0], found.flatten().repeat(3))


def test_known_sizes_give_known_cells() -> None:
    # 1333 of 1344 pixels at stride 16: the centre of the last of 84 columns, 1336, lies outside; of 42, 1328, inside
    whole = valid_cells([(800, 1333)], (800, 1344), (50, 84))[0].view(50, 84)
    assert whole[:, :83].all()
    assert not whole[:, 83].any()
    assert valid_cells([(800, 1333)], (800, 1344), (25, 42)).all()


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project", "project_then_pool"])
def test_all_numbers_of_the_valid_rows_equal_the_written_out_formulas(instantiation: str, sub_sample: str) -> None:
    config = NonLocalConfig(instantiation=instantiation, sub_sample=sub_sample, zero_init=False)
    model = Network(drawn(NonLocal(12, config=config)))
    probe = probed(model)
    frame, softmax = probe.frame(), "gaussian" in instantiation
    assert probe.audit()[0].padding == "by its grid, 6x8 in the first call"
    for index, (image, size) in enumerate(zip("abc", SIZES, strict=True)):
        found = brute_block(model.block, model.stem(pictures()[index : index + 1]).detach())
        keys = inside((6, 8) if sub_sample == "none" else (3, 4), size)
        for positions in ("all", "valid"):
            rows = inside((6, 8), size) if positions == "valid" else torch.ones(48, dtype=torch.bool)
            key_rows = keys if positions == "valid" else torch.ones_like(keys)
            chosen = {name: tensor[key_rows if name == "key" else rows] for name, tensor in found.items()}
            for name, tensor in chosen.items():
                one = record(frame, image, name, positions)
                assert one["avg_dist"] == pytest.approx(brute_avg_dist(tensor), rel=1e-4, abs=1e-8), name
                assert one["n_queries"] == len(tensor)
                assert one["n_keys"] == len(keys)
            for name, number in brute_columns(chosen, model.block.attention.logit_scale, softmax).items():
                of = "prod" if name in ("logit_std", "pairwise", "unary") else "att"
                of = "output" if name in ("update", "mean_map_error") else of
                assert record(frame, image, of, positions)[name] == pytest.approx(number, rel=5e-4, abs=1e-9), name
            weights = chosen["att"].abs()
            share = weights[:, ~keys].sum(1) / weights.sum(1)
            found_mass = record(frame, image, "att", positions)["padding_mass"]
            assert found_mass == pytest.approx(float(share.nanmean()), rel=1e-4)
    assert record(frame, "a", "att", "valid")["padding_mass"] == 0
    assert record(frame, "b", "att", "valid")["padding_mass"] > 0


@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusion", ["add", "scale"])
def test_one_map_for_all_queries_keeps_its_keys(pooling: str, fusion: str) -> None:
    model = Network(drawn(ContextBlock(12, ContextConfig(pooling=pooling, fusion=fusion, zero_init=False))))
    frame = probed(model).frame()
    for index, (image, size) in enumerate(zip("abc", SIZES, strict=True)):
        found = brute_context(model.block, model.stem(pictures()[index : index + 1]).detach())
        valid = inside((6, 8), size)
        x, output, weights = found["input"][valid], found["output"][valid], found["weights"]
        att = record(frame, image, "att", "valid")
        assert att["padding_mass"] == pytest.approx(float(weights[~valid].sum()), rel=1e-5)
        assert att["n_eff"] == pytest.approx(float(1 / weights.square().sum()), rel=1e-5)
        assert (att["n_queries"], att["n_keys"], att["by_construction"]) == (int(valid.sum()), 48, True)
        assert record(frame, image, "input", "valid")["avg_dist"] == pytest.approx(brute_avg_dist(x), rel=1e-5)
        out = record(frame, image, "output", "valid")
        assert out["update"] == pytest.approx(float(output.norm() / x.norm()), rel=1e-5)
        assert out["avg_dist"] == pytest.approx(0 if fusion == "add" else brute_avg_dist(output), rel=1e-4)
        whole = record(frame, image, "output", "all")["update"]
        assert whole == pytest.approx(float(found["output"].norm() / found["input"].norm()), rel=1e-5)


def test_gates_without_a_map_are_measured_on_their_valid_rows() -> None:
    model = Network(drawn(CBAM(12, CBAMConfig())))
    frame = probed(model).frame()
    for index, (image, size) in enumerate(zip("abc", SIZES, strict=True)):
        x = model.stem(pictures()[index : index + 1]).detach()
        rows = x.flatten(2)[0].T[inside((6, 8), size)]
        assert record(frame, image, "input", "valid")["avg_dist"] == pytest.approx(brute_avg_dist(rows), rel=1e-5)


@pytest.mark.parametrize("name", ["position_attention", "object_context", "dnl_mmseg", "dnl_paper"])
def test_the_operators_of_segmentation_leave_padding_out_too(name: str) -> None:
    block = operators()[name]
    (x,) = inputs_of(block)
    grid = (x.shape[2], x.shape[3])
    sizes = [(grid[0] - 1, grid[1]), (grid[0], grid[1] - 2)]
    with nlprobe.probe(block) as probe, probe.images("ab", sizes=sizes), torch.no_grad():
        block(x)
    for index, (image, size) in enumerate(zip("ab", sizes, strict=True)):
        found = operator_written_out(block, x[index : index + 1])
        valid = torch.zeros(grid, dtype=torch.bool)
        valid[: size[0], : size[1]] = True
        valid = valid.flatten()
        heads = {"att": "0", "pairwise": "pairwise", "unary": "unary"} if "unary" in found else {"att": "0"}
        for quantity in ("input", "prod", "output"):
            expected = brute_avg_dist(found[quantity][valid])
            assert record(probe.frame(), image, quantity, "valid")["avg_dist"] == pytest.approx(expected, rel=1e-4)
        for name_of_map, head in heads.items():
            if head == "pairwise" and block.config.unary != "shared":
                continue
            rows = found[name_of_map].expand(len(valid), -1)[valid]
            one = record(probe.frame(), image, "att", "valid", head)
            assert one["avg_dist"] == pytest.approx(brute_avg_dist(rows), rel=1e-4, abs=1e-9)
            share = rows[:, ~valid].sum(1) / rows.sum(1)
            assert one["padding_mass"] == pytest.approx(float(share.mean()), rel=1e-4)


def test_keys_that_lie_on_no_grid_have_no_padding() -> None:
    block = operators()["asymmetric_pyramid"]
    (x,) = inputs_of(block)
    with nlprobe.probe(block) as probe, probe.images("ab", sizes=[(2, 2), (2, 2)]), torch.no_grad():
        block(x)
    frame = probe.frame()
    assert set(frame["positions"]) == {"all", "valid"}
    assert frame["padding_mass"].isna().all()
    keys = frame[frame["quantity"] == "key"]
    assert keys.loc[keys["positions"] == "valid", "avg_dist"].tolist() == (
        keys.loc[keys["positions"] == "all", "avg_dist"].tolist()
    )
    assert any("keys lie on no grid" in reason for reason in probe.audit()[0].not_counted)


def test_channels_are_no_positions_that_could_be_padding() -> None:
    block = operators()["channel_attention"]
    (x,) = inputs_of(block)
    with nlprobe.probe(block) as probe, probe.images("ab", sizes=[(2, 2), (2, 2)]), torch.no_grad():
        block(x)
    assert set(probe.frame()["positions"]) == {"all"}
    assert any("no grid of the picture" in reason for reason in probe.audit()[0].not_counted)


def test_steps_of_criss_cross_attention_count_the_valid_queries() -> None:
    torch.manual_seed(3)
    block = CrissCross(12, 2, CrissCrossConfig(4, 2, zero_init=False)).eval()
    model = Network(block)
    frame = probed(model).frame()
    x = model.stem(pictures()).detach().double().flatten(2).mT
    places = [(y, u) for y in range(6) for u in range(8)]
    seen = torch.tensor([[y == v or a == u for v, u in places] for y, a in places])
    valid = torch.stack([inside((6, 8), size) for size in SIZES])
    maps = []
    wide = CrissCross(12, 2, CrissCrossConfig(4, 2, zero_init=False)).double()
    wide.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    for call in range(2):
        query, key, value = (layer(x).detach() for layer in (wide.query, wide.key, wide.value))
        logits = query @ key.mT
        maps.append(logits.masked_fill(~seen, -torch.inf).softmax(-1))
        steps = frame[(frame["call"] == call) & (frame["head"] != "composed")]
        for index, image in enumerate("abc"):
            rows = valid[index]
            att = record(steps, image, "att", "valid")
            expected = expected_maps(maps[-1][index][rows], seen[rows])
            for column_name, number in expected.items():
                assert att[column_name] == pytest.approx(number, rel=1e-5), column_name
            assert att["flat"] == pytest.approx(brute_avg_dist(seen[rows].double()), rel=1e-6)
            assert att["padding_mass"] == pytest.approx(float(maps[-1][index][rows][:, ~rows].sum(1).mean()), rel=1e-5)
            prod = record(steps, image, "prod", "valid")
            assert prod["avg_dist"] == pytest.approx(brute_avg_dist((logits[index] * seen)[rows]), rel=1e-5)
            centred = logits[index][rows] - (logits[index] * seen)[rows].sum(1, keepdim=True) / 13
            assert prod["logit_std"] == pytest.approx(float(centred[seen[rows]].square().mean().sqrt()), rel=1e-5)
            key_distance = record(steps, image, "key", "valid")["avg_dist"]
            assert key_distance == pytest.approx(brute_avg_dist(key[index][rows]), rel=1e-5)
        x = x + (wide.gamma.gamma * (maps[-1] @ value)).detach()
    for index, image in enumerate("abc"):
        rows = (maps[1][index] @ maps[0][index])[valid[index]]
        composed = record(frame, image, "att", "valid", "composed")
        for column_name, number in expected_maps(rows).items():
            assert composed[column_name] == pytest.approx(number, rel=1e-5), column_name
        assert composed["padding_mass"] == pytest.approx(float(rows[:, ~valid[index]].sum(1).mean()), rel=1e-5)


def test_heads_and_prefix_tokens_of_a_transformer() -> None:
    """Class tokens are no padding: `valid` has them, `no_prefix` leaves both out."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), patch_size=16, depth=1, num_classes=2)
    model = drawn(model, 0.1)
    images = pictures(2, (48, 80))
    attention = model.blocks[0].attn
    seen: dict[str, Tensor] = {}
    handle = attention.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].clone()))
    sizes = [(48, 80), (30, 50)]
    with nlprobe.probe(model) as probe, probe.images("ab", sizes=sizes), torch.no_grad():
        model(images)
    handle.remove()
    x = seen["x"]
    qkv = attention.qkv(x).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4).detach().double()
    weights = (qkv[0] @ qkv[1].mT / 8).softmax(-1)
    frame = probe.frame()
    assert probe.audit()[0].padding == "by an assumed grid, 3x5 in the first call"
    cells = [torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)]
    cells[1][:2, :3] = True  # centres at 8, 24, 40 pixels: under 30 the first two, under 50 the first three
    for image, grid in enumerate(cells):
        valid = torch.cat((torch.ones(1, dtype=torch.bool), grid.flatten()))
        places = {"all": torch.ones_like(valid), "valid": valid, "no_prefix": valid & (torch.arange(16) > 0)}
        for positions, rows in places.items():
            one = weights[image][:, rows]
            for head in range(3):
                at = {"site": "blocks.0.attn", "head": str(head), "positions": positions}
                found = column(frame.replace({"image": {"a": "0", "b": "1"}}), "att", image=image, **at)
                for name, number in expected_maps(one[head]).items():
                    assert found[name] == pytest.approx(number, rel=1e-4), (positions, name)
                assert found["padding_mass"] == pytest.approx(float(one[head][:, ~valid].sum(1).mean()), rel=1e-4)
            at = {"site": "blocks.0.attn", "head": "avg", "positions": positions}
            found = column(frame.replace({"image": {"a": "0", "b": "1"}}), "att", image=image, **at)
            assert found["padding_mass"] == pytest.approx(float(one.mean(0)[:, ~valid].sum(1).mean()), rel=1e-4)
            keys = column(
                frame.replace({"image": {"a": "0", "b": "1"}}),
                "key",
                **{**at, "head": "1"},
                image=image,
            )
            assert keys["avg_dist"] == pytest.approx(brute_avg_dist(qkv[1][image, 1][rows]), rel=1e-4)


def test_records_of_all_positions_are_those_without_sizes() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    frame = probed(model).frame()
    with nlprobe.probe(model) as probe, probe.images("abc"), torch.no_grad():
        model(pictures())
    plain = probe.frame()
    whole = frame[frame["positions"] == "all"]
    assert set(plain["positions"]) == {"all"}
    assert plain["padding_mass"].isna().all()
    keys = list(KEY_COLUMNS)
    whole, plain = (one.set_index(keys).sort_index() for one in (whole, plain))
    assert list(whole.index) == list(plain.index)
    for name in VALUE_COLUMNS:
        if name != "padding_mass":
            np.testing.assert_allclose(whole[name].astype(float), plain[name].astype(float), rtol=2e-5, atol=1e-9)


def test_pictures_that_fill_their_tensor_have_no_second_records() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    frame = probed(model, [CANVAS, (22, 29)]).frame()  # one pixel of padding, and no cell whose centre lies in it
    assert set(frame["positions"]) == {"all"}
    assert set(frame.loc[frame["quantity"] == "att", "padding_mass"]) == {0.0}


def test_energy_shares_and_data_set_means_are_those_of_the_valid_rows() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    probe = probed(model)
    outputs, inputs = [], []
    for index, size in enumerate(SIZES):
        found = brute_block(model.block, model.stem(pictures()[index : index + 1]).detach())
        outputs.append(found["output"][inside((6, 8), size)])
        inputs.append(found["input"][inside((6, 8), size)].mean(0))
    means = torch.stack([rows.mean(0) for rows in outputs])
    energy = torch.stack([rows.square().sum(1).mean() for rows in outputs]).mean()
    shares = probe.energy()["block"]
    assert shares["constant"] == pytest.approx(float(means.mean(0).square().sum() / energy), rel=1e-4)
    context = (means - means.mean(0)).square().sum(1).mean() / energy
    assert shares["context"] == pytest.approx(float(context), rel=1e-4)
    centre = torch.stack(inputs).mean(0)
    torch.testing.assert_close(probe.centres()["block"]["input"], centre, rtol=1e-5, atol=1e-6)
    centred = probed(model, centres=probe.centres()).frame()
    rows = brute_block(model.block, model.stem(pictures()[2:]).detach())["input"]
    for positions, chosen in (("all", rows), ("valid", rows[inside((6, 8), SIZES[2])])):
        found = record(centred, "c", "input", positions)["centred_dist"]
        assert found == pytest.approx(brute_avg_dist(chosen - centre), rel=1e-4)


def test_metrics_of_the_valid_maps_leave_padded_queries_out() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    frame = probed(model, metrics=("sink_mass", "jsd", "attention_distance")).frame()
    for index, (image, size) in enumerate(zip("abc", SIZES, strict=True)):
        att = brute_block(model.block, model.stem(pictures()[index : index + 1]).detach())["att"]
        places = torch.cartesian_prod(torch.arange(6.0), torch.arange(8.0))
        apart = torch.cdist(places, places).double()
        for positions, rows in (("all", torch.ones(48, dtype=torch.bool)), ("valid", inside((6, 8), size))):
            one, chosen = record(frame, image, "att", positions), att[rows]
            assert one["sink_mass"] == pytest.approx(float(chosen.mean(0).max()), rel=1e-5)
            entropies = torch.special.entr(chosen).sum(1).mean()
            divergence = (torch.special.entr(chosen.mean(0)).sum() - entropies) / math.log(2)
            assert one["jsd"] == pytest.approx(float(divergence), rel=1e-4)
            assert one["attention_distance"] == pytest.approx(float((chosen * apart[rows]).sum(1).mean()), rel=1e-5)


def test_the_valid_records_are_shown_unless_all_are_asked_for() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    padded = probed(model).frame()
    whole = probed(model, [CANVAS]).frame().assign(image="d")
    frame = pd.concat([padded, whole], ignore_index=True)
    shown = at_positions(frame)
    assert set(shown.loc[shown["image"] != "d", "positions"]) == {"valid"}
    assert set(shown.loc[shown["image"] == "d", "positions"]) == {"all"}
    assert set(at_positions(frame, "all")["positions"]) == {"all"}
    assert len(at_positions(frame, "all")) == len(shown)
    assert list(per_image(frame, "att").index) == ["a", "b", "c", "d"]
    summary = summarise(frame, model="m")
    assert (summary.positions, summary.n_queries, summary.n_keys) == ("valid", (20, 48), (48, 48))
    assert summary.columns["padding_mass"].n == 4
    assert summarise(frame, model="m", positions="all").positions == "all"
    assert summarise(whole, model="m").positions == "all"
    everything = frame[(frame["positions"] == "all") & (frame["quantity"] == "att")]
    assert summarise(frame, model="m", positions="all").quantities["att"].mean == pytest.approx(
        everything["avg_dist"].mean()
    )


def test_redrawn_blocks_see_the_same_padding() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    probe = nlprobe.probe(model)
    with probe, init_block(probe, draws=1, seed=7) as null, probe.images("abc", sizes=SIZES), torch.no_grad():
        model(pictures())
    frame = null.draws("block")[0].frame
    twin = redraw(model.block, 7)
    for index, (image, size) in enumerate(zip("abc", SIZES, strict=True)):
        found = brute_block(twin, model.stem(pictures()[index : index + 1]).detach())
        for name, rows in found.items():
            expected = brute_avg_dist(rows[inside((6, 8), size)])
            assert record(frame, image, name, "valid")["avg_dist"] == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_probes_that_share_out_padded_batches_have_the_bits_of_one() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    batches = [(pictures(), "abc", SIZES), (pictures(2), "de", [CANVAS, (9, 9)])]

    def show(probe: Probe, at: int) -> None:
        images, names, sizes = batches[at]
        with probe.images(names, sizes=sizes), torch.no_grad():
            model(images)

    with nlprobe.probe(model) as one:
        show(one, 0)
        show(one, 1)
    first = nlprobe.probe(model)
    with first:
        show(first, 0)
    second = nlprobe.probe(model)
    with second:
        show(second, 1)
    first.absorb(second.take())
    assert first.frame().equals(one.frame())
    assert first.energy() == one.energy()
    assert [audit.as_dict() for audit in first.audit()] == [audit.as_dict() for audit in one.audit()]


class Windows(nn.Module):
    """Attention within the four quarters of a picture, as timm's Swin has it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(1,), embed_dim=24, num_heads=(2,), window_size=7
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.model(images)
        return result


def test_sets_that_are_not_whole_pictures_say_that_their_padding_is_measured() -> None:
    model = Windows().eval()
    with nlprobe.probe(model) as probe, probe.images("ab", sizes=[(56, 30), (56, 56)]), torch.no_grad():
        model(pictures(2, (56, 56)))
    assert set(probe.frame()["positions"]) == {"all"}
    assert any("not whole pictures" in reason for reason in probe.audit()[0].not_counted)
    assert probe.audit()[0].padding == ""


class Masked(nn.Module):
    """An encoder that hides the padding itself, as DETR does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        rows = self.stem(images).flatten(2).mT
        result: Tensor = self.attention(rows, rows, rows, key_padding_mask=hidden.flatten(1))[0]
        return result


def test_padding_that_a_model_hides_itself_is_left_out_as_the_model_has_it() -> None:
    model = drawn(Masked())
    hidden = torch.zeros(2, 4, 5, dtype=torch.bool)
    hidden[1, :, 3:] = True
    images = pictures(2, (16, 20))
    with nlprobe.probe(model) as probe, probe.images("ab", sizes=[(16, 20), (16, 12)]), torch.no_grad():
        model(images, hidden)
    frame = probe.frame()
    assert set(frame["positions"]) == {"valid"}
    assert set(frame.loc[frame["image"] == "b", "n_queries"]) == {12}
    assert probe.audit()[0].padding == "by the model's own mask"


@pytest.mark.parametrize(
    ("ids", "sizes", "match"),
    [
        ("abc", [(23, 30)] * 2, "3 ids and 2 sizes"),
        ("abc", [(23, 30), (24, 30), (1, 1)], "the picture of `b` is 24x30, and the padded tensor 23x30"),
        ("abc", [(23, 30), (0, 30), (1, 1)], "the picture of `b` is 0x30"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(ids: str, sizes: list[tuple[int, int]], match: str) -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    with pytest.raises(ConfigError, match=match), nlprobe.probe(model) as probe, probe.images(ids, sizes=sizes):
        model(pictures())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_sizes_of_something_else_than_pictures_need_a_canvas() -> None:
    block = drawn(NonLocal(6, 1, NonLocalConfig(zero_init=False)))
    probe = nlprobe.probe(block)
    with pytest.raises(ConfigError, match="no batch of pictures"), probe, probe.images("a", sizes=[(3, 3)]):
        block(torch.randn(1, 6, 9))


def test_a_picture_of_features_takes_its_sizes_on_another_canvas() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    with nlprobe.probe(model.block) as probe, probe.images("abc", sizes=SIZES, canvas=CANVAS), torch.no_grad():
        model(pictures())
    whole = probed(model).frame()
    assert probe.frame()["avg_dist"].tolist() == whole["avg_dist"].tolist()


def test_a_thin_picture_keeps_its_first_row_of_cells() -> None:
    model = Network(drawn(NonLocal(12, config=NonLocalConfig(zero_init=False))))
    frame = probed(model, [(1, 30)]).frame()
    assert record(frame, "a", "att", "valid")["n_queries"] == 8
