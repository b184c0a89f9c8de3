"""`PairwiseAttention` is the written-out formula, in value and gradient, at every precision."""

from contextlib import nullcontext

import pytest
import torch
from blocks_reference import relative_error, written_out
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.blocks import INSTANTIATIONS, PairwiseAttention
from nlprobe.errors import ConfigError

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def compare(
    instantiation: str,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    autocast: bool = False,
    spread: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
) -> dict[str, float]:
    """Relative errors of output and gradients against the formula in float64 on the same, already rounded, numbers."""
    batch, queries, keys, width, value_width = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        rounded = (torch.randn(*size, generator=generator) * spread + shift).to(torch.bfloat16 if autocast else dtype)
        return rounded.to(device, dtype).requires_grad_()

    scale = 0.7 if "gaussian" in instantiation else 1.0
    module = PairwiseAttention(instantiation, width, scale).to(device, dtype)  # type: ignore[arg-type]
    operands = [draw(batch, queries, width), draw(batch, keys, width), draw(batch, keys, value_width)]
    inputs = [*operands, *module.parameters()]
    wide = [tensor.detach().double().cpu().requires_grad_() for tensor in inputs]
    expected = written_out(instantiation, wide[0], wide[1], wide[2], scale, (wide[3], wide[4]) if wide[3:] else None)
    upstream = torch.randn(expected.shape, generator=generator).to(dtype)
    expected.backward(upstream.double())

    with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
        actual = module(*operands)
    assert actual.dtype == (torch.bfloat16 if autocast else dtype)
    assert actual.is_contiguous()
    actual.backward(upstream.to(device, actual.dtype))
    errors = {"output": relative_error(actual.cpu(), expected)}
    names = ("query", "key", "value", "weight_query", "weight_key")
    for name, tensor, reference in zip(names, inputs, wide, strict=False):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        errors[name] = relative_error(tensor.grad.cpu(), reference.grad)
    return errors


SHAPES = {
    "as many keys as queries, one width": (2, 35, 35, 16, 16),
    "narrow values": (2, 35, 35, 16, 8),
    "wide values, fewer keys": (3, 30, 7, 4, 12),
    "more keys than queries": (1, 5, 40, 6, 6),
    "one position": (2, 1, 1, 4, 4),
    "many positions, narrow": (1, 300, 280, 4, 4),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_value_and_gradient_are_those_of_the_formula(
    instantiation: str, dtype: torch.dtype, shape: tuple[int, int, int, int, int], device: torch.device
) -> None:
    if dtype == torch.float64 and device.type == "mps":
        pytest.skip("MPS has no float64")
    for name, error in compare(instantiation, shape, dtype, device).items():
        assert error < TOLERANCE[dtype], name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_value_and_gradient_are_those_of_the_formula_under_autocast(
    instantiation: str, shape: tuple[int, int, int, int, int], device: torch.device
) -> None:
    for name, error in compare(instantiation, shape, torch.float32, device, autocast=True).items():
        assert error < 2e-2, name


@given(
    instantiation=st.sampled_from(INSTANTIATIONS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    spread=st.sampled_from([1e-3, 1.0, 3.0]),
    shift=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**20),
)
def test_any_shape_and_size_of_numbers_gives_the_formula(
    instantiation: str, shape: tuple[int, int, int, int, int], spread: float, shift: float, seed: int
) -> None:
    errors = compare(instantiation, shape, torch.float64, torch.device("cpu"), spread=spread, shift=shift, seed=seed)
    # The softmax's own gradient vanishes where one key takes all, and its relative error then means nothing.
    bounds = dict.fromkeys(errors, 1e-9)
    if "gaussian" in instantiation:
        bounds |= {"query": 1.0, "key": 1.0}
    for name, error in errors.items():
        assert error < bounds[name], name


@pytest.mark.parametrize("instantiation", ["gaussian", "concat"])
def test_a_second_derivative_raises_instead_of_being_wrong(instantiation: str) -> None:
    module = PairwiseAttention(instantiation, 4).double()  # type: ignore[arg-type]
    query = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(query, query, query).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|not implemented|not have been used"):
        torch.autograd.grad(gradient.square().sum(), query)


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_permuting_keys_and_values_together_changes_nothing(instantiation: str) -> None:
    module = PairwiseAttention(instantiation, 4).double()  # type: ignore[arg-type]
    query, key, value = (torch.randn(2, n, 4, dtype=torch.float64) for n in (6, 9, 9))
    order = torch.randperm(9)
    assert relative_error(module(query, key[:, order], value[:, order]), module(query, key, value)) < 1e-12


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_duplicating_all_keys_changes_nothing(instantiation: str) -> None:
    module = PairwiseAttention(instantiation, 4).double()  # type: ignore[arg-type]
    query, key, value = (torch.randn(2, n, 4, dtype=torch.float64) for n in (6, 9, 9))
    twice = module(query, key.repeat(1, 2, 1), value.repeat(1, 2, 1))
    assert relative_error(twice, module(query, key, value)) < 1e-12


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_a_nan_reaches_the_output(instantiation: str, where: str) -> None:
    module = PairwiseAttention(instantiation, 4)  # type: ignore[arg-type]
    operands = {name: torch.randn(1, 5, 4) for name in ("query", "key", "value")}
    operands[where][0, 2, 1] = torch.nan
    output = module(**operands)
    rows = output.isnan().any(-1)[0]
    # As in the formula: a bad query spoils its own row, a bad key or value spoils all.
    assert rows.tolist() == ([False, False, True, False, False] if where == "query" else [True] * 5)


def test_autocast_leaves_float64_alone() -> None:
    module = PairwiseAttention("gaussian")
    rows = torch.randn(1, 5, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(rows, rows, rows).dtype == torch.float64


def test_no_grad_and_eval_compute_the_same() -> None:
    for instantiation in INSTANTIATIONS:
        module = PairwiseAttention(instantiation, 4)
        rows = torch.randn(2, 9, 4, requires_grad=True)
        trained = module(rows, rows, rows)
        with torch.no_grad():
            plain = module.eval()(rows, rows, rows)
        with torch.inference_mode():
            inferred = module(rows, rows, rows)
        assert torch.equal(trained, plain)
        assert torch.equal(plain, inferred)


def test_settings_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no logit scale"):
        PairwiseAttention("dot_product", logit_scale=2.0)
    with pytest.raises(ConfigError, match="width"):
        PairwiseAttention("concat")


def test_it_prints_its_settings() -> None:
    assert str(PairwiseAttention("gaussian", logit_scale=0.125)) == "PairwiseAttention(gaussian, logit_scale=0.125)"
    assert str(PairwiseAttention("concat", 3)) == "PairwiseAttention(concat)"
