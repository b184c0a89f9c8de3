"""Files of texts."""

from pathlib import Path

import pytest

from nlprobe.data.texts import Line, is_text, read_texts
from nlprobe.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffOne two three four five six\r\n\n   \n  grüße an alle \nlast".encode())
    return path


def test_lines_are_named_by_their_number_and_first_words(path: Path) -> None:
    assert read_texts(path).lines == (
        Line("1 One two three four", "One two three four five six"),
        Line("4 grüße an alle", "grüße an alle"),
        Line("5 last", "last"),
    )


def test_a_part_is_spread_over_the_whole(path: Path) -> None:
    texts = read_texts(path)
    assert [line.id for line in texts.part(2).lines] == ["1 One two three four", "4 grüße an alle"]
    assert texts.part(None) == texts.part(9) == texts


def test_the_fingerprint_changes_with_every_text(path: Path) -> None:
    whole = read_texts(path).fingerprint()
    assert whole == read_texts(path).fingerprint()
    assert whole["images"] == 3
    path.write_text(path.read_text(encoding="utf-8-sig").replace("last", "lost"), encoding="utf-8")
    assert read_texts(path).fingerprint()["sha256"] != whole["sha256"]


@pytest.mark.parametrize(("name", "expected"), [("a.txt", True), ("a.TXT", True), ("a.png", False), ("txt", False)])
def test_texts_are_known_by_their_ending(name: str, expected: bool) -> None:
    assert is_text(Path(name)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"", "holds no text"), (b" \n\n", "holds no text"), (b"a\xff", "byte 1")],
)
def test_what_is_no_file_of_texts_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "a.txt")
