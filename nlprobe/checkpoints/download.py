"""Fetching a published file: resumed where it stopped, checked by its hash, whole or not there."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from nlprobe.errors import CheckpointError

CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""

_NOT_SATISFIABLE = 416


def download(
    url: str, target: Path, sha256: str = "", progress: Callable[[int, int | None], None] = lambda done, total: None
) -> None:
    """Fetch `url` into `target`, going on where an earlier attempt stopped (`target` with `.part` behind it).

    Args:
        url: Where it is, `http` or `https`.
        target: The file, which must not be there.
        sha256: The first digits of the file's hash, in hexadecimal; not checked where they are not known.
        progress: Is told how many bytes are there, and of how many in all, where the server says.

    Raises:
        CheckpointError: the server cannot be reached or has no such file, the disk is full, the connection broke (what
            was fetched is kept), or the file has another hash (what was fetched is removed).
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
    except urllib.error.HTTPError as error:
        raise CheckpointError(f"{url}: the server answers {error.code} {error.reason}", "try again later") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        kept = f"; {part.stat().st_size} bytes are kept" if part.exists() else ""
        raise CheckpointError(
            f"{url} cannot be fetched: {reason}{kept}", "the same command goes on from there"
        ) from error
    except OSError as error:
        raise CheckpointError(f"`{part}` cannot be written: {error.strerror or error}", "free some space") from error
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        part.unlink()
        raise CheckpointError(
            f"{url} has the SHA-256 {digest[:16]}… and should begin with {sha256}; it was removed",
            "fetch it again; if it comes out the same, it is another file than the one that was published",
        )
    part.replace(target)


def _fetch(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nlprobe", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != _NOT_SATISFIABLE or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it was there already
        part.unlink()
        _fetch(url, part, progress)
        return
    with answer:
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # a server that knows no ranges begins anew
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
