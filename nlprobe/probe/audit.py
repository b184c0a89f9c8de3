"""The audit: does what was captured reproduce what the model computed?"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters import Capture, CrossCapture, MaplessCapture, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, relative_error
from nlprobe.stats import apply_map, cross_apply, softmax_apply

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest relative Frobenius error by the precision in which the block computed."""


@dataclass
class SiteAudit:
    """What was expected at one site, what fired, and how well the capture reproduces the block.

    Attributes:
        site: The site's name.
        expected_calls: Forward calls of the model, each of which should have reached the site.
        calls: Forward calls of the site.
        dtype: The lowest precision met in the block.
        errors: Relative Frobenius errors of the recomputed parts, on the first batch; the largest where one forward
            call of the model uses the site several times.
        tolerance: What they may be at most.
        masks: What was added to or hidden from the logits, in words.
        status: "passed", "unverified" (dropout drew other weights than those measured) or "not seen".
        not_counted: What the records of this site leave out, in words.
        padding: How positions in the padding of pictures were told from the others, in words; "" where no sizes of
            pictures were given, or it cannot be told.
    """

    site: str
    expected_calls: int = 0
    calls: int = 0
    dtype: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    masks: list[str] = field(default_factory=list)
    status: str = "not seen"
    not_counted: list[str] = field(default_factory=list)
    padding: str = ""

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=float("nan"))

    def describe(self, found: "SiteAudit") -> None:
        """Take over what the check of a call has found; the first one stands, unless a later one fails."""
        if self.status == "not seen" or found.status == "failed":
            self.dtype, self.errors, self.tolerance = found.dtype, found.errors, found.tolerance
            self.masks, self.status, self.not_counted = found.masks, found.status, found.not_counted
            self.padding = found.padding

    def absorb(self, other: "SiteAudit") -> None:
        """Take in the audit of the same site in later forward calls."""
        self.expected_calls += other.expected_calls
        self.calls += other.calls
        self.describe(other)

    def as_dict(self) -> dict[str, object]:
        """The audit for JSON."""
        return {
            "site": self.site,
            "expected_calls": self.expected_calls,
            "calls": self.calls,
            "dtype": self.dtype,
            "error": None if not self.errors else self.error,
            "errors": dict(self.errors),
            "tolerance": self.tolerance,
            "masks": list(self.masks),
            "status": self.status,
            "not_counted": list(self.not_counted),
            "padding": self.padding,
        }


def check(audit: SiteAudit, capture: Capture) -> None:
    """Recompute a call from what was captured and hold it against the block's real output.

    The audit keeps the largest error of each part over the calls that are checked.

    The product: A·V from the captured queries, keys and values by the written-out formula, streamed over queries. The
    rest: the projections, W_z with its norm, and the addition, from the block's input and weights.

    Raises:
        CaptureError: an error passes the tolerance.
    """
    errors = dict(capture.errors())
    if isinstance(capture, PairwiseCapture):
        tensors = [
            tensor for tensor in (capture.x, capture.query, capture.given, capture.context) if tensor is not None
        ]
        audit.masks = _masks(capture)
        audit.not_counted = list(capture.not_counted)
        if not capture.dropout:
            errors["A·V"] = relative_error(_recomputed_context(capture), capture.context)
    elif isinstance(capture, CrossCapture):
        tensors = [capture.x, capture.query, capture.context]
        audit.not_counted = list(capture.not_counted)
        errors["A·V"] = relative_error(cross_apply(capture.query, capture.key, capture.value), capture.context)
    else:
        tensors = [capture.x]
    if isinstance(capture, MaplessCapture):
        audit.not_counted = list(capture.not_counted)
    dtypes = [tensor.dtype for tensor in tensors]
    if isinstance(capture, PairwiseCapture) and capture.dtype is not None:
        dtypes.append(capture.dtype)
    dtype = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
    audit.dtype = str(dtype).removeprefix("torch.")
    audit.tolerance = TOLERANCES[dtype]
    audit.errors = {name: max(error, audit.errors.get(name, 0.0)) for name, error in errors.items()}
    wrong = {name: error for name, error in errors.items() if not error <= audit.tolerance}
    if wrong:
        audit.status = "failed"
        parts = ", ".join(f"`{name}` is off by {error:.1e}" for name, error in wrong.items())
        raise CaptureError(
            f"`{audit.site}`: recomputed from what was captured, {parts} "
            f"(at most {audit.tolerance:.0e} in {audit.dtype})",
            "the block's forward does not compute what its settings say; mend it, or leave the site out",
        )
    dropped = isinstance(capture, PairwiseCapture) and capture.dropout > 0
    audit.status = "unverified" if dropped or audit.status == "unverified" else "passed"


def _masks(capture: PairwiseCapture) -> list[str]:
    mask = capture.mask
    if mask is None:
        return []
    found = []
    if mask.diagonal is not None:
        found.append("causal")
    if mask.visible is not None:
        found.append("hidden keys")
    if mask.bias is not None:
        hides = bool((mask.bias <= mask.hidden_below).any())
        found.append("bias with hidden keys" if hides else "bias")
    return found


def _recomputed_context(capture: PairwiseCapture) -> Tensor:
    if capture.instantiation in ("gaussian", "embedded_gaussian"):
        return softmax_apply(capture.logits, capture.value)
    assert capture.query is not None
    assert capture.key is not None
    query, key, value = (at_least_single(t)[:, 0] for t in (capture.query, capture.key, capture.value))
    weights = None
    if capture.weight_query is not None and capture.weight_key is not None:
        weights = (capture.weight_query.to(query.dtype), capture.weight_key.to(query.dtype))
    return apply_map(capture.instantiation, query, key, value, capture.scale, weights).unsqueeze(1)
