"""What the parts of a block show during one of its forward calls, for adapters that read whole modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Capture, Deliver


@dataclass(frozen=True)
class PartCall:
    """One call of a part: what went in and what came out."""

    inputs: tuple[Tensor, ...]
    output: Tensor


Calls = Mapping[str, list[PartCall]]
"""The calls of each part during one forward of the block, in their order; one at least."""

Read = Callable[[tuple[Tensor, ...], Tensor, Calls], Capture]
"""From the block's inputs, its result and its parts' calls to the capture."""


def hook_parts(block: nn.Module, parts: Mapping[str, nn.Module], read: Read, deliver: Deliver) -> list[RemovableHandle]:
    """Deliver one capture for each forward call of a block; what was seen lives no longer than the call.

    Args:
        block: The block.
        parts: Those of its modules that are watched, by the name that an error calls them.
        read: Makes the capture.
        deliver: Takes it.

    Returns:
        The handles; removing them leaves the block as it was.
    """
    seen: dict[str, list[PartCall]] = {name: [] for name in parts}

    def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        for calls in seen.values():
            calls.clear()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def called(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name].append(PartCall(tuple(tensor.detach() for tensor in args), output.detach()))

        return called

    def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        calls = {name: list(found) for name, found in seen.items()}
        for found in seen.values():
            found.clear()
        missing = [name for name, found in calls.items() if not found]
        if missing:
            raise CaptureError(
                f"a `{type(block).__name__}` block ran without calling its `{missing[0]}`",
                f"its forward was replaced; call `block.{missing[0]}`, or leave the site out",
            )
        with torch.no_grad():
            deliver(read(tuple(tensor.detach() for tensor in args), z.detach(), calls))

    return [
        block.register_forward_pre_hook(begin),
        *(part.register_forward_hook(watch(name)) for name, part in parts.items()),
        block.register_forward_hook(end),
    ]
