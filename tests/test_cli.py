"""The frame of the command line: verbs, help, errors, exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import click
import pytest

from nlprobe import cli
from nlprobe.commands.options import config_option, limit_option
from nlprobe.errors import CaptureError, CheckpointError, ConfigError, DataError, MissingExtraError, NlprobeError

PROGRAM = "from nlprobe.cli import main; main()"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """A verb `trial` that raises the exception put into the list."""
    raises: list[BaseException | None] = [None]

    @click.command()
    @config_option
    @limit_option
    @click.option("--mode", type=click.Choice(["gaussian", "concat"]))
    def command(limit: int | None, mode: str | None) -> None:
        """Try."""
        if raises[0] is not None:
            raise raises[0]
        click.echo(f"limit {limit}")

    module = ModuleType("nlprobe.commands.trial")
    module.command = command  # type: ignore[attr-defined]
    module.__spec__ = type(sys.__spec__)("nlprobe.commands.trial", None)
    monkeypatch.setitem(sys.modules, "nlprobe.commands.trial", module)
    monkeypatch.setitem(cli.VERBS, "trial", "Try.")
    return raises


def test_every_module_with_a_command_is_a_verb_and_every_verb_loads() -> None:
    folder = Path(cli.__file__).parent / "commands"
    with_command = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    context = click.Context(cli.nlprobe)
    assert with_command <= set(cli.VERBS)
    assert set(cli.nlprobe.list_commands(context)) == with_command
    for name in with_command:
        assert isinstance(cli.nlprobe.get_command(context, name), click.Command)


def test_help_lists_verbs_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert cli.VERBS["env"] in out
    for code in ("0    ok", "2    usage", "3    the capture audit", "4    data", "130", "141"):
        assert code in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=["help", "version"])
def test_help_and_version_import_neither_torch_nor_a_verb(arguments: list[str]) -> None:
    program = (
        "import sys; from nlprobe.cli import run; assert run(sys.argv[1:]) == 0;"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'nlprobe.commands.env', 'tqdm'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_help_is_as_quick_as_click() -> None:
    def seconds(program: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program, "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    ratios = sorted(seconds(PROGRAM) / seconds("import click") for _ in range(9))
    assert ratios[4] <= 3


def test_version_names_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nlprobe 0.1.0 (torch 2.")


def test_no_verb_shows_the_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "cause", "hint"),
    [
        (["trail"], "`nlprobe` has no command `trail`", "did you mean `trial`"),
        (["trial", "--limt", "3"], "`nlprobe trial` has no option `--limt`", "did you mean `--limit`?"),
        (["trial", "--mode", "gausian"], "`--mode` cannot be `gausian`: gaussian, concat", "did you mean `gaussian`?"),
        (["trial", "--mode", "zzz"], "`--mode` cannot be `zzz`: gaussian, concat", "`nlprobe trial --help`"),
        (["trial", "--limit", "many"], "`--limit`: `many` is not a valid integer", "`nlprobe trial --help`"),
        (["trial", "more"], "unexpected extra argument", "`nlprobe trial --help`"),
        (["trial", "--config", "no.toml"], "`no.toml` cannot be read", "check the path"),
    ],
)
def test_a_usage_error_is_two_lines_on_stderr_and_exit_2(
    verb: list[BaseException | None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    cause: str,
    hint: str,
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert captured.out == ""
    assert first.startswith("error: ")
    assert cause in first
    assert second.startswith("hint: ")
    assert hint in second


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (NlprobeError("it broke", "mend it"), 1, ["error: it broke", "hint: mend it"]),
        (ConfigError("wrong", "mend it"), 2, ["error: wrong", "hint: mend it"]),
        (CaptureError("`a` did not fire", "call it"), 3, ["error: `a` did not fire", "hint: call it"]),
        (DataError("no images", "give some"), 4, ["error: no images", "hint: give some"]),
        (CheckpointError("damaged"), 4, ["error: damaged"]),
        (
            MissingExtraError("sklearn", "mini", "the miniature data"),
            4,
            [
                "error: the miniature data needs the package `sklearn`, which is not installed",
                "hint: pip install 'nlprobe[mini]'",
            ],
        ),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (click.Abort(), 130, ["error: interrupted"]),
        (BrokenPipeError(), 141, []),
    ],
)
def test_an_error_becomes_its_exit_code_and_two_lines(
    verb: list[BaseException | None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    lines: list[str],
) -> None:
    verb[0] = error
    assert cli.run(["trial"]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "cause", "hint"),
    [
        (ZeroDivisionError("one\ntwo"), "ZeroDivisionError: one", "nlprobe env"),
        (ZeroDivisionError(), "ZeroDivisionError", "--debug"),
        (MemoryError(), "out of memory", "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", "--batch-size"),
        (PermissionError(13, "Permission denied", "/root/x"), "`/root/x`: Permission denied", "permissions"),
    ],
)
def test_an_unforeseen_exception_is_two_lines_and_exit_1(
    verb: list[BaseException | None], capsys: pytest.CaptureFixture[str], error: BaseException, cause: str, hint: str
) -> None:
    verb[0] = error
    assert cli.run(["trial"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {cause}"
    assert hint in second


@pytest.mark.parametrize("arguments", [["--debug", "trial"], ["trial", "--debug"]], ids=["before", "behind"])
def test_debug_shows_the_traceback(
    verb: list[BaseException | None], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    verb[0] = DataError("no images", "give some")
    assert cli.run(arguments) == 4
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: no images\nhint: give some\n")


def test_a_reader_that_goes_away_ends_the_command_quietly_with_141() -> None:
    program = f"import sys; sys.argv[1:] = ['env', '--format', 'csv']; {PROGRAM}"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_ends_the_command_with_130() -> None:
    program = (
        "import sys, click, nlprobe.cli as cli, time\n"
        "@click.command()\ndef wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "cli.LazyGroup.get_command = lambda *_: wait\nsys.argv[1:] = ['env']\ncli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "error: interrupted\n")


def test_the_shell_completes_verbs_and_devices() -> None:
    def complete(words: str, position: int) -> str:
        environment = {**os.environ, "_NLPROBE_COMPLETE": "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(position)
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert "plain,env" in complete("nlprobe e", 1)
    assert "plain,--format" in complete("nlprobe env --fo", 2)
    assert "plain,json" in complete("nlprobe env --format j", 3)


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from nlprobe.commands.report import use_colour

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_colour(True)
    assert not use_colour(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour(True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_colour(True)
