"""Settings files: read under the flags, written beside a run, replayed."""

from pathlib import Path

import click
import pytest

from nlprobe import cli
from nlprobe.commands.config import settings, write_settings
from nlprobe.commands.options import batch_size_option, config_option, device_option, dry_run_option, force_option

Seen = dict[str, object]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the verb `trial` was called with; it writes its settings where `--out` says."""
    seen: Seen = {}

    @click.command()
    @config_option
    @device_option
    @batch_size_option(8)
    @force_option
    @dry_run_option
    @click.option("--out", type=click.Path(path_type=Path))
    @click.option("--rate", type=float, default=0.1)
    @click.option("--site", "--place", "sites", multiple=True)
    @click.option("--query", type=(int, int))
    @click.option("--mode", type=click.Choice(["gaussian", "concat"]))
    @click.option("--centred/--plain", default=False)
    @click.argument("name")
    def command(out: Path | None, **values: object) -> None:
        """Try."""
        seen.update(values, resolved=settings(click.get_current_context()))
        if out:
            write_settings(out)

    monkeypatch.setitem(cli.VERBS, "trial", "Try.")
    lookup, listing = cli.LazyGroup.get_command, cli.LazyGroup.list_commands
    monkeypatch.setattr(
        cli.LazyGroup, "get_command", lambda self, ctx, name: command if name == "trial" else lookup(self, ctx, name)
    )
    monkeypatch.setattr(cli.LazyGroup, "list_commands", lambda self, ctx: [*listing(self, ctx), "trial"])
    return seen


def write(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_settings_come_from_the_file_and_flags_win(seen: Seen, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'name = "net"\nbatch-size = 4\nrate = 1\nsite = ["a", "b"]\nquery = [3, 4]\ncentred = true\nmode = "concat"',
    )
    assert cli.run(["trial", "--config", path, "--batch-size", "2"]) == 0
    assert seen["name"] == "net"
    assert seen["batch_size"] == 2
    assert seen["rate"] == 1.0
    assert seen["sites"] == ("a", "b")
    assert seen["query"] == (3, 4)
    assert seen["centred"] is True
    assert seen["mode"] == "concat"


def test_a_flag_wins_wherever_the_file_is_named(seen: Seen, tmp_path: Path) -> None:
    path = write(tmp_path, "batch_size = 4")
    assert cli.run(["trial", "net", "--batch-size", "2", "--config", path]) == 0
    assert seen["batch_size"] == 2


def test_a_setting_is_called_like_its_flag_or_any_other_name_of_it(seen: Seen, tmp_path: Path) -> None:
    assert cli.run(["trial", "net", "--config", write(tmp_path, 'place = ["a"]')]) == 0
    assert seen["sites"] == ("a",)
    assert seen["resolved"]["site"] == ["a"]  # type: ignore[index]


def test_the_written_settings_replay_the_run(seen: Seen, tmp_path: Path) -> None:
    first = ["trial", 'näm"e\\', "--rate", "1e-5", "--site", "a", "--query", "1", "2", "--centred", "--force"]
    assert cli.run([*first, "--out", str(tmp_path)]) == 0
    before = dict(seen)
    seen.clear()
    assert cli.run(["trial", "--config", str(tmp_path / "run.toml")]) == 0
    assert seen["resolved"] == before["resolved"]
    assert before["force"] is True
    assert seen["force"] is False


def test_the_written_file_names_its_command_and_version(seen: Seen, tmp_path: Path) -> None:
    assert cli.run(["trial", "net", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    assert text.startswith("# Settings of `nlprobe trial`, version 0.1.0.\n")
    assert 'command = "trial"\n' in text
    assert "batch-size = 8\n" in text
    assert "force" not in text


@pytest.mark.parametrize(
    ("text", "cause", "hint"),
    [
        ("bach-size = 4", "unknown setting `bach-size`", "did you mean `batch-size`?"),
        ('site = ["a"]\nplace = ["b"]', "sets `site` twice", "keep one"),
        ('sites = ["a"]', "unknown setting `sites`", "did you mean `site`"),
        ("zzzz = 4", "unknown setting `zzzz`", "known: `device`"),
        ("batch-size = 4\nbatch_size = 4", "sets `batch-size` twice", "keep one"),
        ("batch-size = 2.5", "`batch-size` takes a whole number", "mend the line"),
        ("batch-size = true", "`batch-size` takes a whole number", "mend the line"),
        ("batch-size = 0", "`batch-size` in", "mend the line"),
        ('rate = "fast"', '`rate = "fast"`', "mend the line"),
        ("rate = true", "`rate` takes a number", "mend the line"),
        ("centred = 1", "`centred` takes `true` or `false`", "mend the line"),
        ('site = "a"', "`site` takes a list", "mend the line"),
        ("device = 0", "`device` takes text in quotes", "mend the line"),
        ('device = "cud"', "did you mean `cuda`", "mend the line"),
        ('mode = "x"', "`mode` in", "mend the line"),
        ("force = true", "`force` in", "give `--force` on the command line"),
        ('command = "stats"', "holds the settings of `nlprobe stats`, not of `nlprobe trial`", "`nlprobe stats"),
        ("batch-size: 4", "is not valid TOML", "`key = value`"),
        ("[trial]\nrate = 1", "unknown setting `trial`", "known:"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_with_it(
    seen: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, cause: str, hint: str
) -> None:
    assert cli.run(["trial", "net", "--config", write(tmp_path, text)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert cause in first
    assert "run.toml" in first
    assert hint in second
    assert not seen


def test_a_file_that_is_not_text_is_refused(seen: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    assert cli.run(["trial", "net", "--config", str(tmp_path / "run.toml")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
