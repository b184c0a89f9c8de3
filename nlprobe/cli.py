"""The command `nlprobe`: its verbs, loaded when they are used, and the one place where errors become exit codes."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import click

from nlprobe.errors import NlprobeError

# The one-line help stands here and not in the modules, so that `nlprobe --help` need not import them.
VERBS = {
    "demo": "Train a small non-local network, measure it and draw its attention.",
    "data": "Write the miniature data sets, or look over any data set.",
    "train": "Train a model of the zoo by its recipe.",
    "eval": "Score checkpoints on a data set.",
    "zoo": "List the models of the paper with their parameters and costs, or published checkpoints.",
    "fetch": "Download a published checkpoint, and check it.",
    "inspect": "List the attention sites of a network.",
    "stats": "Measure how much attention differs between query positions.",
    "viz": "Draw attention maps over photographs, how they arose in a training, or channels by class.",
    "intervene": "Replace the attention of networks, and see whether that matters.",
    "simplify": "Give a network cheap blocks where its queries do not matter.",
    "env": "Print versions and devices, for a bug report.",
}

EXIT_CODES = """\b
Exit codes:
  0    ok
  1    failure
  2    usage or configuration
  3    the capture audit failed: the numbers would not be what the model computed
  4    data or weights are missing or not understood
  130  interrupted
  141  broken pipe
"""

COMPLETION = """\b
Shell completion (bash; or zsh, fish):
  eval "$(_NLPROBE_COMPLETE=bash_source nlprobe)"
"""

_DEBUG_HELP = "Show the traceback of an error."


class LazyGroup(click.Group):
    """The verbs whose module is installed; a module is imported when its verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which one works."""
        return [verb for verb in VERBS if find_spec(f"nlprobe.commands.{verb}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb and take its click command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"nlprobe.commands.{cmd_name}").command
        _accept_debug(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, without importing them."""
        if verbs := self.list_commands(ctx):
            with formatter.section("Commands"):
                formatter.write_dl([(verb, VERBS[verb]) for verb in verbs])


def _accept_debug(command: click.Command) -> None:
    """Let `--debug` stand behind the verb too, where people write it."""
    if not any(parameter.name == "debug" for parameter in command.params):
        command.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help=_DEBUG_HELP))
    if isinstance(command, click.Group):
        for nested in command.commands.values():
            _accept_debug(nested)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"nlprobe {version('nlprobe')} (torch {version('torch')})")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{EXIT_CODES}\n{COMPLETION}",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of nlprobe and torch.",
)
@click.option("--debug", is_flag=True, expose_value=False, help=_DEBUG_HELP)
def nlprobe() -> None:
    """Measure what an attention layer really does.

    The result goes to stdout, progress and messages to stderr. `nlprobe VERB --help` explains a verb.
    """


def run(args: Sequence[str]) -> int:
    """Run the command line in this process and return its exit code; errors are written to stderr.

    Args:
        args: What stands behind `nlprobe`.
    """
    # click parses the flag for the sake of --help; the answer is needed where parsing itself may have failed.
    debug = "--debug" in args
    try:
        with nlprobe.make_context("nlprobe", list(args)) as context:
            nlprobe.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        return 141
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        _complain(*_explain_usage(error))
        return error.exit_code
    except NlprobeError as error:
        if debug:
            traceback.print_exc()
        _complain(error.cause, error.remedy)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(*_explain_unexpected(error))
        return 1
    return 0


def main() -> None:
    """Entry point of the installed command."""
    if instruction := os.environ.get("_NLPROBE_COMPLETE"):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(nlprobe, {}, "nlprobe", "_NLPROBE_COMPLETE", instruction))
    code = run(sys.argv[1:])
    if code == 141:
        # Nobody reads any more: what is still buffered must not raise a second time when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _complain(cause: str, remedy: str = "") -> None:
    from nlprobe.commands.report import use_colour

    colour = use_colour(sys.stderr.isatty())
    click.echo(f"{click.style('error:', fg='red', bold=True)} {cause}", err=True, color=colour)
    if remedy:
        click.echo(f"{click.style('hint:', bold=True)} {remedy}", err=True, color=colour)


def _explain_usage(error: click.ClickException) -> tuple[str, str]:
    """Cause and remedy of what click found wrong, with close matches."""
    from nlprobe.suggestions import did_you_mean

    context = getattr(error, "ctx", None)
    help_line = f"`{context.command_path if context else 'nlprobe'} --help` explains the usage"
    command = context.command if context else nlprobe
    if isinstance(error, click.NoSuchOption):
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        cause = f"`{context.command_path if context else 'nlprobe'}` has no option `{error.option_name}`"
        return cause, _unless_list(did_you_mean(error.option_name, [*options, "--help"])) or help_line
    cause = _quoted(error.format_message().rstrip("."))
    if isinstance(command, click.Group) and context and (unknown := re.match(r"No such command `([^`]*)`", cause)):
        verbs = command.list_commands(context)
        return f"`{context.command_path}` has no command `{unknown[1]}`", did_you_mean(unknown[1], verbs)
    if isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.Choice):
        given = re.match(r"'(.*)' is not one of", error.message)
        if given:
            flag = (
                "/".join(error.param.opts) if isinstance(error.param, click.Option) else error.param.human_readable_name
            )
            choices = [str(choice) for choice in error.param.type.choices]
            close = did_you_mean(given[1], choices)
            return f"`{flag}` cannot be `{given[1]}`: {', '.join(choices)}", _unless_list(close) or help_line
    return cause, help_line


def _unless_list(suggestion: str) -> str:
    return suggestion if suggestion.startswith("did you mean") else ""


def _quoted(message: str) -> str:
    return re.sub(r"'([^']*)'", r"`\1`", message)


def _explain_unexpected(error: Exception) -> tuple[str, str]:
    """Cause and remedy of an exception that no part of nlprobe foresaw."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory", "use a smaller --batch-size, smaller images, or --device cpu"
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"`{error.filename}`: {error.strerror}",
            "check the path, its permissions and the free space; --debug shows where it happened",
        )
    return (
        f"{type(error).__name__}{f': {first}' if first else ''}",
        "nlprobe did not expect this: run again with --debug, and report it with the output of `nlprobe env`",
    )
