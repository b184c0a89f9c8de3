"""The probe's numbers against written-out matrices, and what it must leave alone."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist, brute_block, brute_columns, brute_context
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import ContextBlock, ContextConfig, NonLocal, NonLocalConfig
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe.adapters import NonLocalAdapter
from nlprobe.probe.watch import Watch

INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


class Network(nn.Module):
    """A convolution, a block and a classifier."""

    def __init__(self, block: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.block = block
        self.head = nn.Linear(channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.stem(images)).mean((2, 3)))


def non_local(channels: int = 16, dimension: int = 2, **settings: object) -> NonLocal:
    """A block with weights far from zero and running statistics of its own."""
    block = NonLocal(channels, dimension, NonLocalConfig(**{"zero_init": False, **settings}))
    for layer in (block.query, block.key, block.value, block.output):
        if layer is not None:
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias, std=0.1)
    if isinstance(block.norm, nn.BatchNorm1d):
        with torch.no_grad():
            block.norm.weight.uniform_(0.5, 1.5)
            block.norm.bias.uniform_(-0.1, 0.1)
            block.norm.running_mean.uniform_(-0.1, 0.1)
            block.norm.running_var.uniform_(0.5, 1.5)
    return block


def images(count: int = 3, height: int = 6, width: int = 7) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def values(frame, quantity: str, column: str = "avg_dist") -> np.ndarray:
    return frame.loc[frame["quantity"] == quantity, column].to_numpy()


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project", "project_then_pool"])
def test_all_numbers_equal_the_written_out_formulas(instantiation: str, sub_sample: str, device: torch.device) -> None:
    model = Network(non_local(instantiation=instantiation, sub_sample=sub_sample)).eval().to(device)
    batch = images().to(device)
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(batch)
    frame = probe.frame()
    softmax = "gaussian" in instantiation
    for index in range(len(batch)):
        found = brute_block(model.block, model.stem(batch[index : index + 1]).detach())
        expected = {name: brute_avg_dist(rows) for name, rows in found.items()}
        assert set(expected) == set(frame["quantity"])
        for name, distance in expected.items():
            assert values(frame, name)[index] == pytest.approx(distance, rel=1e-4, abs=1e-8), name
        for name, number in brute_columns(found, model.block.attention.logit_scale, softmax).items():
            measured = frame.loc[frame[name].notna(), name].to_numpy()[index]
            assert measured == pytest.approx(number, rel=2e-4), name


@pytest.mark.parametrize("dimension", [1, 3])
def test_sequences_and_videos_are_measured_like_images(dimension: int) -> None:
    block = non_local(8, dimension).eval()
    x = torch.randn(2, 8, *[9] * dimension if dimension == 1 else (3, 4, 5))
    with nlprobe.probe(block) as probe:
        block(x)
    for index in range(2):
        found = brute_block(block, x[index : index + 1])
        for name, rows in found.items():
            assert values(probe.frame(), name)[index] == pytest.approx(brute_avg_dist(rows), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_measured_as_they_are(dtype: torch.dtype) -> None:
    block = non_local(norm="none").eval().to(dtype)
    x = torch.randn(1, 16, 5, 5).to(dtype)
    with nlprobe.probe(block, precision="float64") as probe, torch.no_grad():
        block(x)
    found = brute_block(block, x)
    assert values(probe.frame(), "input")[0] == pytest.approx(brute_avg_dist(found["input"]), rel=1e-5)
    tolerance = {torch.float64: 1e-7, torch.float16: 2e-2, torch.bfloat16: 0.1}[dtype]
    assert values(probe.frame(), "att")[0] == pytest.approx(brute_avg_dist(found["att"]), rel=tolerance)
    assert probe.audit()[0].dtype == str(dtype).removeprefix("torch.")


def test_autocast_is_audited_and_does_not_reach_the_statistics() -> None:
    model = Network(non_local()).eval()
    with nlprobe.probe(model) as probe, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(images())
    with nlprobe.probe(model) as plain, torch.no_grad():
        model(images())
    assert probe.audit()[0].dtype == "bfloat16"
    assert probe.audit()[0].tolerance == pytest.approx(2e-2)
    np.testing.assert_allclose(values(probe.frame(), "att"), values(plain.frame(), "att"), rtol=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_changes_neither_outputs_nor_gradients_nor_buffers(training: bool) -> None:
    def run(probed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = Network(non_local()).train(training)
        batch = images().requires_grad_()
        if probed:
            with nlprobe.probe(model):
                loss = model(batch).square().sum()
        else:
            loss = model(batch).square().sum()
        loss.backward()
        return [loss.detach(), batch.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()]

    for plain, probed in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, probed)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_no_hook_is_left_behind_on_success_or_on_exceptions() -> None:
    model = Network(non_local())
    with nlprobe.probe(model):
        model(images())
    assert hooks_of(model) == 0
    with pytest.raises(ZeroDivisionError), nlprobe.probe(model) as probe:
        model(images(0 // len(probe.sites[1:])))
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError), nlprobe.probe(model):
        model(torch.randn(1, 5, 4, 4))
    assert hooks_of(model) == 0


def test_no_captured_tensor_outlives_the_forward_call(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref] = []
    attach = NonLocalAdapter.attach

    def watched(self: NonLocalAdapter, module: nn.Module, deliver: Callable, watch: Watch) -> list:
        def receive(capture) -> None:
            alive.extend(weakref.ref(getattr(capture, name)) for name in ("x", "query", "key", "value", "context"))
            deliver(capture)

        return attach(self, module, receive, watch)

    monkeypatch.setattr(NonLocalAdapter, "attach", watched)
    model = Network(non_local())
    with nlprobe.probe(model) as probe:
        with torch.no_grad():
            model(images())
        gc.collect()
        assert len(alive) == 5
        assert all(reference() is None for reference in alive)
    assert len(probe.frame()) == 3 * 6


def test_a_zero_initialised_block_has_an_undefined_output() -> None:
    model = Network(NonLocal(16)).eval()
    with nlprobe.probe(model) as probe:
        model(images())
    output = probe.frame().query("quantity == 'output'")
    assert output["avg_dist"].isna().all()
    assert (output["zero_rows"] == 42).all()
    assert (output["update"] == 0).all()
    assert np.isnan(list(probe.energy()["block"].values())).all()


def test_images_are_numbered_or_named_and_may_differ_in_size_between_calls() -> None:
    model = Network(non_local()).eval()
    with nlprobe.probe(model) as probe:
        model(images(2))
        model(images(1, 9, 4))
    frame = probe.frame()
    assert list(frame.query("quantity == 'att'")["image"]) == ["0", "1", "2"]
    assert list(frame.query("quantity == 'att'")["n_queries"]) == [42, 42, 36]
    with nlprobe.probe(model) as probe:
        with probe.images(["a", "b", "c"]):
            model(images(2))
            model(images(1))
        with probe.images(["a"], views=[1]):
            model(images(1))
    att = probe.frame().query("quantity == 'att'")
    assert list(zip(att["image"], att["view"], strict=True)) == [("a", 0), ("b", 0), ("c", 0), ("a", 1)]


def test_a_wrong_number_of_names_is_refused() -> None:
    model = Network(non_local()).eval()
    for names, message in ((["a", "b"], "held 3 images, and `images` has 2"), (list("abcd"), "1 of them never came")):
        with nlprobe.probe(model) as probe:
            model(images(1))
            with pytest.raises(ConfigError, match=message), probe.images(names):
                model(images(3))


def test_a_call_used_twice_in_one_forward_gets_two_records_an_image() -> None:
    class Twice(Network):
        def forward(self, batch: Tensor) -> Tensor:
            return self.block(self.block(self.stem(batch)))

    model = Twice(non_local()).eval()
    with nlprobe.probe(model) as probe:
        model(images(2))
    att = probe.frame().query("quantity == 'att'")
    assert sorted(zip(att["image"], att["call"], strict=True)) == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]


def test_quantities_can_be_chosen_and_their_numbers_stay_the_same() -> None:
    model = Network(non_local()).eval()
    with nlprobe.probe(model) as full:
        model(images())
    with nlprobe.probe(model, quantities=("output", "att")) as part:
        model(images())
    assert set(part.frame()["quantity"]) == {"att", "output"}
    for quantity, column in (("att", "avg_dist"), ("output", "update")):
        np.testing.assert_array_equal(values(part.frame(), quantity, column), values(full.frame(), quantity, column))
    with pytest.raises(ConfigError, match="unknown quantities `attention`"):
        nlprobe.probe(model, quantities=("attention",))


def test_energy_shares_are_those_of_the_written_out_means() -> None:
    model = Network(non_local()).eval()
    batch = images(5)
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(batch[:2])
        model(batch[2:])
    outputs = torch.stack([brute_block(model.block, model.stem(one[None]).detach())["output"] for one in batch])
    means = outputs.mean(1)
    total = outputs.square().sum(2).mean()
    shares = probe.energy()["block"]
    assert shares["constant"] == pytest.approx(float(means.mean(0).square().sum() / total), rel=1e-5)
    assert shares["context"] == pytest.approx(float((means - means.mean(0)).square().sum(1).mean() / total), rel=1e-4)
    spread = (outputs - means[:, None]).square().sum(2).mean()
    assert shares["pairwise_part"] == pytest.approx(float(spread / total), rel=1e-5)
    assert sum(shares.values()) == pytest.approx(1)


def test_centred_distances_have_the_data_set_mean_removed() -> None:
    model = Network(non_local()).eval()
    batch = images(4)
    with nlprobe.probe(model) as first, torch.no_grad():
        model(batch)
    with nlprobe.probe(model, centres=first.centres()) as second, torch.no_grad():
        model(batch)
    found = [brute_block(model.block, model.stem(one[None]).detach()) for one in batch]
    for quantity in ("input", "key", "query", "output"):
        mean = torch.stack([one[quantity].mean(0) for one in found]).mean(0)
        expected = [brute_avg_dist(one[quantity] - mean) for one in found]
        np.testing.assert_allclose(values(second.frame(), quantity, "centred_dist"), expected, rtol=1e-4)
    assert first.frame()["centred_dist"].isna().all()


@pytest.mark.parametrize(
    "config",
    [ContextConfig.snl(), ContextConfig.gc(4), ContextConfig.se_with_ln(4)],
    ids=["snl", "gc", "se"],
)
def test_blocks_with_one_map_report_what_is_so_by_construction(config: ContextConfig) -> None:
    block = ContextBlock(16, config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(2, 16, 5, 6)
    with nlprobe.probe(block.eval()) as probe, torch.no_grad():
        block(x)
    frame = probe.frame()
    assert set(frame["quantity"]) == {"input", "att", "output"}
    att, output = frame.query("quantity == 'att'"), frame.query("quantity == 'output'")
    assert att["by_construction"].all()
    assert (att["avg_dist"] == 0).all()
    additive = config.fusion == "add"
    assert (output["by_construction"] == additive).all()
    for index in range(2):
        found = brute_context(block, x[index : index + 1])
        weights, rows = found["weights"], found["output"]
        assert att["entropy"].iloc[index] == pytest.approx(float(-(weights * weights.log()).sum() / np.log(30)))
        assert att["n_eff"].iloc[index] == pytest.approx(float(1 / weights.square().sum()), rel=1e-5)
        expected = 0 if additive else brute_avg_dist(rows)
        assert output["avg_dist"].iloc[index] == pytest.approx(expected, rel=1e-4)
        update = float(rows.norm() / found["input"].norm())
        assert output["update"].iloc[index] == pytest.approx(update, rel=1e-4)
    shares = probe.energy()["."]
    assert sum(shares.values()) == pytest.approx(1)
    if additive:
        assert shares["pairwise_part"] == 0


def test_a_global_block_that_adds_zero_has_an_undefined_output() -> None:
    block = ContextBlock(16, ContextConfig.gc(4)).eval()
    with nlprobe.probe(block) as probe:
        block(torch.randn(2, 16, 5, 6))
    assert values(probe.frame(), "output").tolist() == pytest.approx([np.nan, np.nan], nan_ok=True)


def test_calling_another_module_than_the_probed_one_is_refused() -> None:
    model = Network(non_local())
    with pytest.raises(CaptureError, match="never called inside the probe"), nlprobe.probe(model):
        pass
    with pytest.raises(CaptureError, match="outside of a forward call"), nlprobe.probe(model):
        model.block(torch.randn(1, 16, 4, 4))


def test_a_site_that_does_not_run_is_refused() -> None:
    class Skips(Network):
        def forward(self, batch: Tensor) -> Tensor:
            return self.stem(batch)

    model = Skips(non_local())
    with pytest.raises(CaptureError, match="`block` did not run"), nlprobe.probe(model):
        model(images())


def test_the_package_and_the_function_share_their_name() -> None:
    import nlprobe.probe

    assert callable(nlprobe.probe)
    model = Network(non_local())
    with nlprobe.probe(model), nlprobe.probe.probe(model):
        model(images())
