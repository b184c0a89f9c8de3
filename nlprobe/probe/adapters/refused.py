"""Adapter for attention that has no map to measure: its sites are known, and refused in words."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver
from nlprobe.probe.watch import Watch


@dataclass(frozen=True)
class RefusedAttention:
    """Says of a class of modules why its maps cannot be measured.

    Without it the search would pass such a module over, or take what stands between its softmax and its values for a
    map over positions.

    Attributes:
        classes: The classes by qualified name; sub-classes match too.
        reason: Why, as the end of a sentence that begins with the site.
        block: What the kind of block is called.
    """

    classes: tuple[str, ...]
    reason: str
    block: str = "not measurable"

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is of one of the classes."""
        return any(f"{cls.__module__}.{cls.__qualname__}" in self.classes for cls in type(module).__mro__)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its class, and why it is refused."""
        return self.block, {"class": type(module).__name__, "refused": self.reason}

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Raise when the module runs."""

        def refuse(*_: Any) -> None:
            raise CaptureError(
                f"the maps of `{type(module).__name__}` cannot be measured: it {self.reason}",
                "choose the other sites with `sites=` (--site)",
            )

        return [module.register_forward_pre_hook(refuse)]
