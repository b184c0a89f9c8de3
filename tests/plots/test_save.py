"""Figures as files: deterministic bytes, fonts that publishers take, data beside."""

import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from nlprobe.errors import ConfigError, DataError
from nlprobe.plots import FORMATS, save_figure, style


def figure() -> Figure:
    with style():
        figure = Figure(figsize=(2, 1))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], label="× uniform")
        axes.imshow(np.arange(4).reshape(2, 2), extent=(0, 1, 0, 1), alpha=0.5)
        axes.set_title("query 1 − mean")
        axes.legend()
    return figure


def test_the_same_figure_has_the_same_bytes_a_second_later(tmp_path: Path) -> None:
    data = pd.DataFrame({"weight": [0.1, 1 / 3]})
    first = save_figure(figure(), tmp_path / "a", data=data, arrays={"weight": np.arange(3.0)})
    time.sleep(1.1)
    second = save_figure(figure(), tmp_path / "b", data=data, arrays={"weight": np.arange(3.0)})
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_the_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_save as t\n"
    program += f"t.save_figure(t.figure(), {str(tmp_path / 'other')!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    for path in save_figure(figure(), tmp_path / "here"):
        assert path.read_bytes() == (tmp_path / f"other{path.suffix}").read_bytes(), path.suffix


def test_the_pdf_has_truetype_fonts_and_no_date(tmp_path: Path) -> None:
    (path,) = save_figure(figure(), tmp_path / "a", formats=("pdf",))
    content = path.read_bytes()
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
        try:
            content += zlib.decompress(stream)
        except zlib.error:
            continue
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


def test_the_data_stand_beside_the_figure(tmp_path: Path) -> None:
    data = pd.DataFrame({"weight": [0.1, 1 / 3]})
    written = save_figure(figure(), tmp_path / "fig", data=data, arrays={"maps": np.eye(2)})
    assert [path.name for path in written] == ["fig.png", "fig.pdf", "fig.svg", "fig.csv", "fig.npz"]
    assert pd.read_csv(tmp_path / "fig.csv")["weight"].tolist() == [0.1, 1 / 3]
    with np.load(tmp_path / "fig.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["maps"], np.eye(2))


@pytest.mark.parametrize("name", ["layer3.4", "layer3.4.png", "layer3.4.svg"])
def test_a_dot_in_the_name_is_kept_and_a_known_extension_is_not_doubled(tmp_path: Path, name: str) -> None:
    assert [path.name for path in save_figure(figure(), tmp_path / name, formats=("pdf",))] == ["layer3.4.pdf"]


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`jpg` is not a format of figures"):
        save_figure(figure(), tmp_path / "a", formats=("png", "jpg"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_figure(figure(), tmp_path / "file" / "a")


def test_the_callers_settings_neither_change_nor_matter(tmp_path: Path) -> None:
    before = save_figure(figure(), tmp_path / "before")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "pdf.fonttype": 3, "svg.hashsalt": None}):
        after = save_figure(figure(), tmp_path / "after")
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["pdf.fonttype"] == 3
    for one, other in zip(before, after, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_drawing_never_imports_pyplot() -> None:
    program = "import sys, nlprobe.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_format_is_written(tmp_path: Path) -> None:
    save_figure(figure(), tmp_path / "a")
    assert {path.suffix.lstrip(".") for path in tmp_path.iterdir()} == set(FORMATS)
