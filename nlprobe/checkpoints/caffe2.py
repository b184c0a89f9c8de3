"""Python 2 pickles of numpy arrays, which Caffe2's tools wrote: `{"blobs": {name: array}}`.

The unpickler knows what a numpy array is made of and nothing else. It runs under `encoding="latin1"`, as the texts of
Python 2 are bytes, and so are its arrays.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from torch import Tensor

from nlprobe.checkpoints.pickles import survey
from nlprobe.errors import CheckpointError

_ARRAY_PARTS = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": scalar,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": scalar,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}


def read_blobs(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by the names of their blobs.

    Raises:
        CheckpointError: it names anything but numpy arrays, which is refused before it is read, is damaged, or holds no
            `blobs`.
    """
    with path.open("rb") as file:
        found = survey(file, path)
    for name in sorted(found.names):
        if name not in _ARRAY_PARTS and name != "_codecs.encode":
            raise CheckpointError(
                f"`{path}` would call `{name}` while it is read, and is refused; nothing of it was run",
                "a Caffe2 checkpoint holds numpy arrays and nothing else: get the file again",
            )
    with path.open("rb") as file:
        held = _ArraysOnly(file, encoding="latin1").load()
    blobs = held.get("blobs") if isinstance(held, dict) else None
    if not isinstance(blobs, dict) or not blobs:
        raise CheckpointError(f"`{path}` is a pickle without `blobs`", "give a checkpoint, as Caffe2's tools wrote it")
    size = path.stat().st_size
    kept = {}
    for name, blob in blobs.items():
        array = np.asarray(blob) if isinstance(blob, np.ndarray | np.generic | int | float) else None
        if not isinstance(name, str) or array is None or array.dtype.kind not in "fiub":
            raise CheckpointError(f"`{path}` holds `{str(name)[:60]}`, which is no array of numbers", "get it again")
        if array.nbytes > size:
            raise CheckpointError(
                f"`{name}` in `{path}` claims {array.nbytes} of the file's {size} bytes", "get it again"
            )
        kept[name] = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), copy=True))
    return kept


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for which there is nothing in the world but numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """The part of an array of that name.

        Raises:
            UnpicklingError: it is something else.
        """
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        if (part := _ARRAY_PARTS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"`{module}.{name}` is no part of a numpy array")
        return part


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes by the protocol of Python 2."""
    return text.encode("latin1")
