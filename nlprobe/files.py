"""Files and folders that are either whole or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlprobe.errors import ConfigError, DataError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block ends without an exception.

    The file is flushed to disk before it is renamed, so a crash, a full disk or a signal leaves either the old file or
    the new one, never a half.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be written: {error.strerror or error}", "free some space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(path: Path | str, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once the block ends without an exception.

    Args:
        path: The folder to make.
        force: Replace a folder that is already there; it stays untouched until the new one is complete.

    Raises:
        ConfigError: the folder is there and not empty, and `force` is not set.
        DataError: it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise DataError(f"`{path}` cannot be made: {error.strerror or error}", "choose another folder") from error
    try:
        yield partial
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(path: Path | str, *, force: bool = False) -> None:
    """Raise a ConfigError where `path` holds something and `force` is not set."""
    path = Path(path)
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not force:
        raise ConfigError(f"`{path}` is already there", "choose another folder, or replace it with --force")
