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
    assert run(["inspect", str(plain)]) == 3
    assert "no attention was seen" in capsys.readouterr().err


def test_a_network_of_another_library_is_listed_by_its_name(capsys) -> None:
    assert run(["inspect", "timm:swin_tiny_patch4_window7_224", "--format", "json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["weights"] == {"kind": "random", "seed": 0}
    assert payload["preprocessing"]["interpolation"] == "bicubic"
    assert payload["inputs"] == "(1, 3, 224, 224)"
    assert len(payload["sites"]) == 12
    first, last = payload["sites"][0], payload["sites"][-1]
    assert (first["block"], first["heads"], first["channels"]) == ("timm.WindowAttention", 3, 96)
    assert (first["n_queries"], first["n_keys"], first["windows"]) == (49, 49, 64)
    assert (last["heads"], last["windows"]) == (24, 1)


def test_the_table_names_what_reads_each_site(capsys) -> None:
    assert run(["inspect", "--model", "python:own_networks:tiny_vit", "--size", "32"]) == 0
    captured = capsys.readouterr()
    assert ["blocks.1.attn", "timm.Attention", "192", "3", "17", "17"] in [
        line.split()[:6] for line in captured.out.splitlines()
    ]
    assert "network: python:own_networks:tiny_vit" in captured.err
    assert "windows" not in captured.out


def test_a_network_may_be_shown_the_first_of_some_data(capsys) -> None:
    arguments = ["inspect", "python:own_networks:tiny_vit", "--data", "python:own_networks:noise", "--format", "json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == "(2, 3, 32, 32)"
    assert run(arguments[:2]) == 2
    assert "give --size, or --data with an item to show it" in capsys.readouterr().err


def test_a_language_model_is_shown_a_sentence(tmp_path, capsys) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertConfig(**sizes, vocab_size=6).save_pretrained(tmp_path)
    (tmp_path / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox")
    transformers.BertTokenizer(vocab=str(tmp_path / "words.txt")).save_pretrained(tmp_path)
    assert run(["inspect", f"hf:{tmp_path}"]) == 0
    captured = capsys.readouterr()
    assert "input_ids (1, 12)" in captured.out
    assert "random weights" in captured.err


def test_one_network_is_inspected_at_a_time(checkpoint, capsys) -> None:
    assert run(["inspect", str(checkpoint), "--model", "timm:vit_tiny_patch16_224"]) == 2
    assert "which network?" in capsys.readouterr().err


def test_a_network_has_to_be_given(capsys) -> None:
    assert run(["inspect"]) == 2
    assert "which network?" in capsys.readouterr().err
