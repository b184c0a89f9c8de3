"""Settings in a TOML file: read under the flags, written beside a run, replayed from there."""

import importlib.metadata
import json
import tomllib
from pathlib import Path
from typing import Any

import click

from nlprobe.errors import ConfigError
from nlprobe.files import write_text
from nlprobe.suggestions import did_you_mean

FILE_NAME = "run.toml"

# They belong to one invocation and not to what a run is: a replay must neither overwrite nor resume by itself.
NOT_SETTINGS = frozenset({"config", "debug", "dry_run", "force", "help", "resume"})


def read_settings(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Callback of `--config`: make the file's settings the defaults of the command's flags.

    A key is a flag without its dashes (`batch-size`, or `batch_size`); a flag given on the command line wins. The key
    `command`, if there, has to be the command that runs. Relative paths mean what they mean on the command line.

    Raises:
        ConfigError: the file cannot be read, is not TOML, belongs to another command, or a key or value does not fit.
    """
    if path is None or ctx.resilient_parsing:
        return
    settings = _parse(path)
    verb = _verb(ctx)
    written_for = settings.pop("command", verb)
    if written_for != verb:
        raise ConfigError(
            f"`{path}` holds the settings of `nlprobe {written_for}`, not of `nlprobe {verb}`",
            f"run `nlprobe {written_for} --config {path}`, or remove the line `command` if the settings fit",
        )
    parameters = {key: parameter for parameter in ctx.command.params for key in _keys(parameter)}
    known = {key: parameter for key, parameter in parameters.items() if parameter.name not in NOT_SETTINGS}
    defaults: dict[str, Any] = {}
    for written, value in settings.items():
        key = written.replace("_", "-")
        if key in parameters and key not in known:
            raise ConfigError(
                f"`{written}` in `{path}` is no setting of a run", f"give `--{key}` on the command line instead"
            )
        if key not in known:
            raise ConfigError(
                f"unknown setting `{written}` in `{path}`",
                f"{did_you_mean(written, known)}; `nlprobe {verb} --help` explains each".removeprefix("; "),
            )
        name = known[key].name
        assert name is not None
        if name in defaults:
            raise ConfigError(f"`{path}` sets `{_keys(known[key])[0]}` twice", "keep one of the two lines")
        defaults[name] = _checked(ctx, known[key], written, value, path)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def settings(ctx: click.Context) -> dict[str, Any]:
    """The command's settings as they are in force, flags and file and defaults joined; unset ones are left out."""
    own = [parameter for parameter in ctx.command.params if parameter.name not in NOT_SETTINGS]
    joined = {_keys(parameter)[0]: ctx.params.get(parameter.name or "") for parameter in own}
    return {key: _plain(value) for key, value in joined.items() if value is not None and value != ()}


def write_settings(folder: Path | str, ctx: click.Context | None = None) -> Path:
    """Write the settings in force as `run.toml` into `folder`; `--config` with that file replays the run.

    Args:
        folder: The run's folder.
        ctx: The command's context; the current one if left out.
    """
    ctx = ctx or click.get_current_context()
    path = Path(folder) / FILE_NAME
    verb = _verb(ctx)
    lines = [
        f"# Settings of `nlprobe {verb}`, version {importlib.metadata.version('nlprobe')}.",
        f"# Replay: nlprobe {verb} --config {FILE_NAME}",
        f"command = {_toml(verb)}",
        *(f"{key} = {_toml(value)}" for key, value in settings(ctx).items()),
    ]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"`{path}` cannot be read: {error.strerror or error}", "check the path of `--config`"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is not UTF-8 text", "`--config` takes a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"`{path}` is not valid TOML: {error}", 'a line is `key = value`, with text in quotes: `device = "cpu"`'
        ) from error


def _checked(ctx: click.Context, parameter: click.Parameter, key: str, value: Any, path: Path) -> Any:
    """`value` if it has the type that the flag wants; click itself would read `true` as 1 and 2.5 as 2."""
    many = parameter.multiple or parameter.nargs != 1 if isinstance(parameter, click.Option) else parameter.nargs != 1
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    number = isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
    if many:
        fits, wanted = isinstance(value, list), "a list, `[…]`"
    elif flag:
        fits, wanted = isinstance(value, bool), "`true` or `false`"
    elif isinstance(parameter.type, click.types.IntParamType):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif number:
        fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, wanted = isinstance(value, str), "text in quotes"
    if not fits:
        raise ConfigError(f"`{key} = {_toml(value)}` in `{path}`: `{key}` takes {wanted}", f"mend the line in `{path}`")
    try:
        parameter.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise ConfigError(f"`{key}` in `{path}`: {error.message.rstrip('.')}", f"mend the line in `{path}`") from error
    return value


def _verb(ctx: click.Context) -> str:
    return " ".join(ctx.command_path.split()[1:])


def _keys(parameter: click.Parameter) -> list[str]:
    """What a setting is called in a file: its flag, or one of its flags, without the dashes."""
    flags = [flag.lstrip("-") for flag in parameter.opts if flag.startswith("--")]
    return [name.replace("_", "-") for name in flags or [parameter.name or ""]]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float) else str(value)


def _toml(value: Any) -> str:
    """`value` as TOML: JSON's strings and numbers are TOML's, but for DEL and for the names of the non-finite."""
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value) if isinstance(value, int | float) else str(value)
