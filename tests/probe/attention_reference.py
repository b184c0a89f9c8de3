"""What a probe must report of an attention module, by brute force in float64 from the library's own tensors."""

import math

import numpy as np
import pandas as pd
import torch
from probe_reference import brute_avg_dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def expected_maps(weights: Tensor, support: Tensor | None = None) -> dict[str, float]:
    """The columns of an `att` record, for the rows (n, m) of one map, which may be zero outside of their supports."""
    weights = weights.double()
    support = torch.ones_like(weights, dtype=torch.bool) if support is None else support.expand_as(weights)
    seeing = support.any(1)
    rows, seen = weights[seeing], support[seeing]
    sizes = seen.sum(1).double()
    entropies = -(torch.where(rows > 0, rows * rows.clamp_min(1e-300).log(), 0.0)).sum(1)
    several = sizes > 1
    uneven = rows - seen / sizes[:, None] * rows.sum(1, keepdim=True)
    energy = uneven.square().sum(1).mean()
    return {
        "avg_dist": brute_avg_dist(rows),
        "zero_rows": float((~seeing).sum()),
        "entropy": float((entropies[several] / sizes[several].log()).mean()) if bool(several.any()) else math.nan,
        "n_eff": float((rows.abs().sum(1).square() / rows.square().sum(1)).mean()),
        "shared": float(uneven.mean(0).square().sum() / energy) if float(energy) > 1e-26 else math.nan,
    }


def expected_flat(support: Tensor) -> float:
    """avg_dist of uniform rows on the supports (n, m)."""
    return brute_avg_dist(support[support.any(1)].double())


def expected_logit_std(logits: Tensor, support: Tensor | None = None) -> float:
    """√ mean_i mean_{j in S_i} (s_ij − row mean)², for the scaled logits (n, m)."""
    logits = logits.double()
    support = torch.ones_like(logits, dtype=torch.bool) if support is None else support.expand_as(logits)
    variances = [row[seen].var(correction=0) for row, seen in zip(logits, support, strict=True) if seen.any()]
    return float(torch.stack(variances).mean().sqrt())


def column(
    frame: pd.DataFrame,
    quantity: str,
    *,
    site: str,
    head: str = "-",
    image: int = 0,
    positions: str = "all",
    call: int = 0,
) -> pd.Series:
    """The one record of a key."""
    rows = frame[
        (frame["quantity"] == quantity)
        & (frame["site"] == site)
        & (frame["head"] == head)
        & (frame["image"] == str(image))
        & (frame["positions"] == positions)
        & (frame["call"] == call)
    ]
    assert len(rows) == 1, f"{len(rows)} records of {quantity} {site} {head} {image} {positions} {call}"
    return rows.iloc[0]


def assert_maps(record: pd.Series, expected: dict[str, float], rtol: float = 1e-6) -> None:
    """An `att` record has the expected columns."""
    for name, value in expected.items():
        np.testing.assert_allclose(float(record[name]), value, rtol=rtol, atol=1e-12, err_msg=name)


def assert_attention(
    frame: pd.DataFrame,
    weights: Tensor,
    *,
    site: str,
    query: Tensor | None = None,
    key: Tensor | None = None,
    x: Tensor | None = None,
    output: Tensor | None = None,
    support: Tensor | None = None,
    positions: str = "all",
    rows: slice = slice(None),
    call: int = 0,
    rtol: float = 1e-6,
) -> None:
    """All records of one site hold what the library's own tensors give.

    Args:
        frame: The probe's records.
        weights: (images, heads, n, m), as the library returned them.
        site: The site.
        query: (images, heads, n, d).
        key: (images, key heads, m, d).
        x: (images, n, c).
        output: (images, n, c).
        support: Broadcastable to the weights: the keys that are visible.
        positions: Which records.
        rows: The queries that these hold.
        call: Which call.
        rtol: Relative tolerance.
    """
    images, heads = weights.shape[:2]
    seen = None if support is None else support.expand_as(weights)
    for image in range(images):
        common = {"site": site, "image": image, "positions": positions, "call": call}
        for head in range(heads):
            hidden = None if seen is None else seen[image, head, rows]
            record = column(frame, "att", head=str(head), **common)
            assert_maps(record, expected_maps(weights[image, head, rows], hidden), rtol)
            if query is not None and key is not None:
                keys = key[image, head // (heads // key.shape[1])]
                product = column(frame, "prod", head=str(head), **common)
                expected = brute_avg_dist(query[image, head, rows].double() @ keys.double().T)
                np.testing.assert_allclose(product["avg_dist"], expected, rtol=rtol, atol=1e-12)
                found = column(frame, "query", head=str(head), **common)["avg_dist"]
                np.testing.assert_allclose(found, brute_avg_dist(query[image, head, rows]), rtol=rtol, atol=1e-12)
        if key is not None:
            chosen = rows if key.shape[2] == weights.shape[2] else slice(None)
            for head in range(key.shape[1]):
                found = column(frame, "key", head=str(head), **common)["avg_dist"]
                np.testing.assert_allclose(found, brute_avg_dist(key[image, head, chosen]), rtol=rtol, atol=1e-12)
        if heads > 1:
            union = None if seen is None else seen[image, :, rows].any(0)
            average = expected_maps(weights[image, :, rows].double().mean(0), union)
            assert_maps(column(frame, "att", head="avg", **common), average, rtol)
        for quantity, tensor in (("input", x), ("output", output)):
            if tensor is not None:
                found = column(frame, quantity, **common)["avg_dist"]
                np.testing.assert_allclose(found, brute_avg_dist(tensor[image, rows]), rtol=rtol, atol=1e-12)


class WrittenOutPath(TorchFunctionMode):
    """Notes what one timm module computes on its written-out path: weights, queries, keys, what enters and leaves it.

    Queries and keys are the operands of the first matrix product that has the shape of the softmax's weights.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        self._module, self._inside = model.get_submodule(path), False
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []

    def of(self, model: nn.Module, *args: object) -> dict[str, Tensor]:
        """Run the model."""
        fused = getattr(self._module, "fused_attn", None)
        if fused is not None:
            self._module.fused_attn = False
        handles = [self._module.register_forward_pre_hook(self._begin), self._module.register_forward_hook(self._end)]
        with torch.no_grad(), self:
            model(*args)
        for handle in handles:
            handle.remove()
        if fused is not None:
            self._module.fused_attn = fused
        return self.seen

    def _begin(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inside, self.seen["x"] = True, args[0].clone()

    def _end(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._inside, self.seen["output"] = False, output.clone()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if self._inside and func.__name__ in ("matmul", "__matmul__", "bmm"):
            self._products.append((args[0], args[1].mT, result))
        if self._inside and func.__name__ == "softmax":
            query, key = next((q, k) for q, k, logits in self._products if logits.numel() == result.numel())
            self.seen |= {"weights": result.clone(), "query": query.clone(), "key": key.clone()}
        return result


def assert_windows(
    frame: pd.DataFrame,
    weights: Tensor,
    *,
    site: str,
    query: Tensor,
    key: Tensor,
    x: Tensor | None,
    output: Tensor | None,
    valid: Tensor | None = None,
    hidden: float = 0.0,
    rtol: float = 1e-6,
) -> None:
    """All records of one site hold the means over windows of what the library's own tensors give.

    Args:
        frame: The probe's records.
        weights: (images, windows, heads, n, m).
        site: The site.
        query: (images, windows, heads, n, d).
        key: (images, windows, heads, m, d).
        x: (images, windows, n, c); None where no record of it may be there.
        output: As `x`.
        valid: (images, windows, n), False for padding; None where there is none.
        hidden: Weights up to this are those of keys that a query may not see.
        rtol: Relative tolerance.
    """
    images, windows, heads, n, m = weights.shape
    rows = torch.ones(images, windows, n, dtype=torch.bool) if valid is None else valid
    for image in range(images):
        common = {"site": site, "image": image, "positions": "all" if valid is None else "valid"}
        chosen = [rows[image, w] for w in range(windows)]

        def check(quantity: str, values: list[float], head: str = "-", common: dict = common) -> None:
            found = float(column(frame, quantity, head=head, **common)["avg_dist"])
            np.testing.assert_allclose(found, np.nanmean(values), rtol=rtol, atol=1e-12, err_msg=quantity)

        for head in range(heads):
            maps = [weights[image, w, head][chosen[w]] for w in range(windows)]
            each = [expected_maps(one, one > hidden) for one in maps]
            record = column(frame, "att", head=str(head), **common)
            means = {name: np.nanmean([one[name] for one in each]) for name in ("avg_dist", "entropy", "n_eff")}
            assert_maps(record, means, rtol)
            queries = [query[image, w, head][chosen[w]].double() for w in range(windows)]
            keys = [key[image, w, head].double() for w in range(windows)]
            check("query", [brute_avg_dist(one) for one in queries], str(head))
            check("prod", [brute_avg_dist(q @ k.T) for q, k in zip(queries, keys, strict=True)], str(head))
            placed = [k[at] if n == m else k for k, at in zip(keys, chosen, strict=True)]
            check("key", [brute_avg_dist(one) for one in placed], str(head))
        for quantity, tensor in (("input", x), ("output", output)):
            if tensor is None:
                assert frame.query("quantity == @quantity and site == @site").empty, quantity
            else:
                check(quantity, [brute_avg_dist(tensor[image, w][chosen[w]]) for w in range(windows)])
    assert set(frame.query("site == @site")["groups"]) == {windows}
