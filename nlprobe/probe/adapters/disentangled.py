"""Adapter for the disentangled non-local block: a map for every query, and one for all of them."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import Disentangled
from nlprobe.probe.adapters.parts import Calls, hook_parts
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture, UnaryMap
from nlprobe.probe.adapters.recompute import at_least_single, linear, normed, relative_error, rows_of
from nlprobe.probe.watch import Watch
from nlprobe.stats.streaming import wide


class DisentangledAdapter:
    """Reads whitened q and k, v and A·V at the block's `attention`, the unary map at its mask, and what leaves it.

    v_i is a position of x, of the whitened W_k x and W_q x (as they enter the product), and of z − x. ω_i is the row
    over the N positions with which the block multiplies its values: p_i + u, the pairwise softmax and the unary map,
    or γ p_i + u where γ gates the pairwise term; it stands under head "0". The two maps stand beside it under the heads
    "pairwise" and "unary", which are part of no mean over heads; the unary one is the same for all queries by
    construction. `prod` and its columns are those of the pairwise logits. Where the unary term has values of its own
    (`unary` = "own") no row holds both, and head "0" is p_i. Further metrics of maps are those of p_i.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `Disentangled`."""
        return isinstance(module, Disentangled)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, Disentangled)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention, and the parts of its unary term and its output that it has."""
        assert isinstance(module, Disentangled)
        block = module
        parts: dict[str, nn.Module] = {"attention": block.attention}
        if block.gate is not None:
            parts["gate"] = block.gate
        else:
            parts["norm"] = block.norm
        if block.unary is not None:
            parts |= {"unary": block.unary, "unary.mask": block.unary.mask}
        if block.context is not None:
            assert block.context.mask is not None
            parts |= {"context": block.context, "context.mask": block.context.mask}
            parts["context.transform"] = block.context.transform

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> PairwiseCapture:
            return _capture(block, args[0], z, calls)

        return hook_parts(block, parts, read, deliver)


def _capture(block: Disentangled, x: Tensor, z: Tensor, calls: Calls) -> PairwiseCapture:
    query, key, value = calls["attention"][0].inputs
    context = calls["attention"][0].output
    rows, grid = rows_of(x), tuple(x.shape[2:])
    unary, logits = _unary(block, calls)
    update, shift = _update(rows, calls), _shift(calls)
    output = update + shift

    def errors() -> dict[str, float]:
        found = _projection_errors(block, rows, query, key, value)
        if logits is not None:
            mask = block.unary.mask if block.unary is not None else block.context.mask  # type: ignore[union-attr]
            assert mask is not None
            found["W_m"] = relative_error(linear(at_least_single(rows), mask).squeeze(-1), logits)
        found |= _unary_errors(rows, value, logits, calls)
        found["W_z" if block.gate is None else "γ·A·V + u·V"] = relative_error(
            _recomputed(block, context, calls), update
        )
        found["x + output"] = relative_error(at_least_single(rows) + output, rows_of(z))
        return found

    return PairwiseCapture(
        x=rows,
        output=output,
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation="embedded_gaussian",
        scale=block.attention.logit_scale,
        query_grid=grid,
        key_grid=grid,
        projected=True,
        errors=errors,
        unary=unary,
    )


def _unary(block: Disentangled, calls: Calls) -> tuple[UnaryMap | None, Tensor | None]:
    """The unary map with its weights, and the logits that it is the softmax of, (b, n)."""
    mask = calls.get("unary.mask") or calls.get("context.mask")
    if mask is None:
        return None, None
    logits = mask[0].output.squeeze(-1)
    gate = 1.0 if block.gate is None else float(block.gate.gamma)
    return UnaryMap(torch.softmax(wide(logits), -1), gate, 1.0, joined="unary" in calls), logits


def _shift(calls: Calls) -> Tensor | float:
    """What a unary term with values of its own adds to every position, (b, 1, c)."""
    return calls["context.transform"][0].output.unsqueeze(1) if "context" in calls else 0.0


def _update(rows: Tensor, calls: Calls) -> Tensor:
    """What is added to every position as rows, but for a shift, from what the block's last parts gave."""
    if "gate" in calls:
        gated = calls["gate"][0].output
        return gated + calls["unary"][0].output.unsqueeze(1) if "unary" in calls else gated
    pairwise, *others = (call.output.unflatten(0, (rows.shape[0], -1)) for call in calls["norm"])  # (b, n or 1, c)
    return sum(others, pairwise)


def _projection_errors(
    block: Disentangled, rows: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> dict[str, float]:
    single = at_least_single(rows)
    queries, keys = linear(single, block.query), linear(single, block.key)
    whitening = block.config.whitening
    if whitening == "positions":
        queries, keys = queries - queries.mean(1, keepdim=True), keys - keys.mean(1, keepdim=True)
    elif whitening == "image":
        queries, keys = queries - queries.mean((1, 2), keepdim=True), keys - keys.mean((1, 2), keepdim=True)
    elif whitening == "mixed":
        queries, keys = queries - queries.mean(2, keepdim=True), keys - keys.mean(1, keepdim=True)
    return {
        "query": relative_error(queries, query),
        "key": relative_error(keys, key),
        "value": relative_error(linear(single, block.value), value),
    }


def _unary_errors(rows: Tensor, value: Tensor, logits: Tensor | None, calls: Calls) -> dict[str, float]:
    if logits is None:
        return {}
    weights = torch.softmax(at_least_single(logits), -1).unsqueeze(1)  # (b, 1, n)
    if "unary" in calls:
        expected = (weights @ at_least_single(value)).squeeze(1)
        return {"u·V": relative_error(expected, calls["unary"][0].output)}
    single, (transform,) = at_least_single(rows), calls["context.transform"]
    return {
        "u·X": relative_error((weights @ single).squeeze(1), transform.inputs[0]),
        "x + context": relative_error(single + _shift(calls), rows_of(calls["context"][0].output)),
    }


def _recomputed(block: Disentangled, context: Tensor, calls: Calls) -> Tensor:
    """What A·V and a unary mean of the same values become, recomputed."""
    pairwise = at_least_single(context)
    unary = at_least_single(calls["unary"][0].output).unsqueeze(1) if "unary" in calls else None
    if block.gate is not None:
        gated = at_least_single(block.gate.gamma) * pairwise
        return gated if unary is None else gated + unary
    assert block.output is not None
    if block.config.output == "project_apart" and unary is not None:
        terms = (normed(linear(term, block.output), block.norm) for term in (pairwise, unary))
        return sum(terms, torch.zeros((), device=context.device))
    return normed(linear(pairwise if unary is None else pairwise + unary, block.output), block.norm)
