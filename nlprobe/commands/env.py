"""`nlprobe env`: what a bug report has to say about the machine."""

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import click

from nlprobe.commands.options import format_option
from nlprobe.commands.report import result, terminal_width

OWN_EXTRAS = {"dev", "test"}


@click.command()
@format_option()
def command(format: str) -> None:
    """Print versions and devices, for a bug report."""
    from nlprobe.tables import Table

    rows = [*_versions(), *_extras(), *_machine()]
    if format == "json":
        result(json.dumps(dict(rows), indent=2, ensure_ascii=False))
    else:
        result(Table.of("", ("what", "value"), rows).render(format, width=terminal_width()))


def _versions() -> list[tuple[str, str]]:
    """nlprobe, Python and every package that nlprobe always needs."""
    needed = [_name(line) for line in _requirements() if "extra ==" not in line]
    return [
        ("nlprobe", importlib.metadata.version("nlprobe")),
        ("python", f"{platform.python_implementation()} {platform.python_version()}"),
        *((name, _version(name)) for name in needed),
    ]


def _extras() -> list[tuple[str, str]]:
    """Each extra with its packages, installed or with the line that installs them."""
    rows = []
    for extra in sorted(set(importlib.metadata.metadata("nlprobe").get_all("Provides-Extra") or ()) - OWN_EXTRAS):
        packages = [_name(line) for line in _requirements() if re.search(rf"extra == ['\"]{extra}['\"]", line)]
        missing = [package for package in packages if not _version(package)]
        state = ", ".join(f"{package} {_version(package)}" for package in packages)
        rows.append((f"extra {extra}", f"not installed: pip install 'nlprobe[{extra}]'" if missing else state))
    return rows


def _machine() -> list[tuple[str, str]]:
    """Processor, threads and devices as torch sees them."""
    import torch

    devices = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [
        ("platform", platform.platform()),
        ("cpu", _processor()),
        ("cores", f"{_cores()} usable of {os.cpu_count()}"),
        ("torch threads", str(torch.get_num_threads())),
        ("torch cuda", torch.version.cuda or "not built in"),
        ("devices", ", ".join(["cpu", *devices])),
    ]


def _requirements() -> list[str]:
    return importlib.metadata.requires("nlprobe") or []


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0] if match else requirement


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name; Linux hides it from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
