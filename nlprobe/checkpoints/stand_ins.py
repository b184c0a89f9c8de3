"""What a pickle may name, and the inert things that stand in for all of it that is not a tensor.

A pickle is a program: it names functions and calls them. The files of other projects name, beside tensors, the classes
of their frameworks (configurations, histories, numbers of numpy), none of which is installed and none of which is
needed. Each of those names gets a thing here that takes any arguments, keeps nothing and does nothing. A name that is
neither a part of a tensor nor of a known project is refused before anything is read.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

TENSOR_PARTS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "_codecs.encode",
        "builtins.set",
        *(
            f"torch.{kind}Storage"
            for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
        ),
        *(
            f"torch.{kind}"
            for kind in (
                "float32",
                "float64",
                "float16",
                "bfloat16",
                "int64",
                "int32",
                "int16",
                "int8",
                "uint8",
                "bool",
            )
        ),
    }
)
"""What torch itself builds tensors and state dicts of, and calls with `weights_only=True`; far less than it allows."""

PROJECTS = frozenset(
    {
        "addict",
        "detectron2",
        "easydict",
        "encoding",
        "fvcore",
        "mmaction",
        "mmcv",
        "mmdet",
        "mmengine",
        "mmseg",
        "slowfast",
        "torchcv",
        "yacs",
    }
)
"""Packages whose classes stand beside the weights of their checkpoints."""


class StandIn:
    """Takes the place of an object of a class that is not here: any arguments, any state, none of it kept."""

    def __new__(cls, *arguments: Any, **settings: Any) -> "StandIn":
        """An empty object, whatever was given."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Nothing."""

    def __setstate__(self, state: Any) -> None:
        """Nothing."""

    def __repr__(self) -> str:
        return "<stand-in>"


def empty_mapping(*arguments: Any) -> "OrderedDict[Any, Any]":
    """In the place of other kinds of dictionary, which fill up after they were made."""
    return OrderedDict()


def empty_list(*arguments: Any) -> list[Any]:
    """In the place of a deque."""
    return []


_MAPPINGS = (
    "addict.addict.Dict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)
_HARMLESS = (
    "argparse.Namespace",
    "builtins.dict",
    "builtins.float",
    "builtins.getattr",
    "builtins.int",
    "builtins.list",
    "builtins.slice",
    "builtins.tuple",
    "datetime.datetime",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.float32",
    "numpy.float64",
    "pathlib.PosixPath",
)
_OWN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_MAPPINGS, empty_mapping),
    **dict.fromkeys(_HARMLESS, StandIn),
    "collections.deque": empty_list,
}


def stand_in(name: str) -> Callable[..., Any] | None:
    """What stands in for the global `package.module.name`; None where nothing does, because nobody knows what it is.

    Names of numpy's types of numbers, and of any class of `PROJECTS`, are among those that are known.
    """
    if name in _OWN:
        return _OWN[name]
    if name.startswith("numpy.dtypes.") or name.partition(".")[0] in PROJECTS:
        return StandIn
    return None


def stand_ins(names: Iterable[str]) -> list[tuple[Callable[..., Any], str]]:
    """The stand-ins for all of `names`, as `torch.serialization.safe_globals` takes them."""
    found: list[tuple[Callable[..., Any], str]] = [(StandIn, "nlprobe.StandIn")]
    for name in sorted(names):
        inert = stand_in(name)
        assert inert is not None, name
        found.append((inert, name))
    return found
