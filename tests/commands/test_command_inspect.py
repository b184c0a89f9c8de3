"""`nlprobe inspect`, in process."""

import json

from checkpoints_on_disk import write_checkpoint

from nlprobe.cli import run


def test_the_sites_are_listed_with_their_positions_and_settings(checkpoint, capsys) -> None:
    assert run(["inspect", str(checkpoint.parent)]) == 0
    captured = capsys.readouterr()
    assert "layer3.0:after_add" in captured.out
    assert "instantiation=embedded_gaussian" in captured.out
    assert "metrics: top1 0.5" in captured.err


def test_json_tells_everything_the_file_says(checkpoint, capsys) -> None:
    assert run(["inspect", "--ckpt", str(checkpoint), "--size", "128", "--format", "json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    (site,) = payload["sites"]
    assert (site["n_queries"], site["n_keys"], site["settings"]["channels"]) == (64, 64, 64)
    assert payload["metadata"]["model"] == "miniature-imagenet/resnet-nl"


def test_a_network_without_attention_is_refused(tmp_path, capsys) -> None:
    plain = write_checkpoint(tmp_path / "plain.safetensors", "miniature-imagenet/resnet")
    assert run(["inspect", str(plain)]) == 2
    assert "no attention block" in capsys.readouterr().err


def test_a_network_has_to_be_given(capsys) -> None:
    assert run(["inspect"]) == 2
    assert "which network?" in capsys.readouterr().err
