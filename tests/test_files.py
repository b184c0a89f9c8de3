"""Files and folders that are whole or not there."""

import errno
from pathlib import Path

import pytest

from nlprobe.errors import ConfigError, DataError
from nlprobe.files import atomic_path, new_folder, write_text


def test_a_file_replaces_the_old_one_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_told_in_words_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fill(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="No space left on device"), atomic_path(path) as temporary:
        fill(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_permissions_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "written", "")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_when_it_is_complete_and_never_over_another(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").touch()
        assert not target.exists()
    assert (target / "a").exists()
    with pytest.raises(ConfigError, match="already there"), new_folder(target):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(target, force=True) as folder:
        (folder / "b").write_text(str(1 / 0))
    assert (target / "a").exists()
    with new_folder(target, force=True) as folder:
        (folder / "b").touch()
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]
