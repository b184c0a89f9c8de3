"""Sites: which attention blocks a model has, and what they are called."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from nlprobe.blocks import PLACES
from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import ADAPTERS, Adapter
from nlprobe.suggestions import did_you_mean


@dataclass(frozen=True)
class Site:
    """One attention block at one place in a model.

    Attributes:
        name: Module path; for a block inserted into a residual block the place follows a colon
            (`layer3.4:after_add`).
        module: The block.
        adapter: What knows how to read it.
        block: The kind of block.
        settings: The block's settings.
    """

    name: str
    module: nn.Module
    adapter: Adapter
    block: str
    settings: dict[str, object]


SiteSelection = str | Sequence[str] | Callable[[Site], bool] | None
"""All sites (None), those whose name matches a glob, those named in a list (globs too), or a predicate."""


def site_name(path: str) -> str:
    """The site's name for a module path: `layer3.4.after_add` is `layer3.4:after_add`."""
    parent, _, last = path.rpartition(".")
    return f"{parent}:{last}" if last in PLACES and parent else path or "."


def find_sites(model: nn.Module, selection: SiteSelection = None, adapters: Sequence[Adapter] = ADAPTERS) -> list[Site]:
    """The sites of a model in the order of its modules.

    Args:
        model: Any module; a block itself is a model whose site is called `.`.
        selection: Which sites; everything by default.
        adapters: Tried in order.

    Raises:
        ConfigError: the model has no site, a name matches none, or the model is compiled or replicated.
    """
    refuse_wrapped(model)
    sites = []
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and (not inside or path.startswith(inside + ".")):
            continue
        adapter = next((adapter for adapter in adapters if adapter.matches(module)), None)
        if adapter is not None:
            sites.append(Site(site_name(path), module, adapter, *adapter.describe(module)))
            inside = path
    if not sites:
        raise ConfigError(
            f"`{type(model).__name__}` has no attention block that nlprobe can read",
            "blocks understood: `nlprobe.blocks.NonLocal`, `nlprobe.blocks.ContextBlock`",
        )
    return _select(sites, selection)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise where hooks would silently not fire: compiled, scripted or replicated modules."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        where = f"`{path}`" if path else "the model"
        if hasattr(module, "_orig_mod"):
            raise ConfigError(
                f"{where} is compiled, and compiled code does not call hooks",
                "probe the module that was compiled (`compiled._orig_mod`) and call that one",
            )
        if kind in ("ScriptModule", "RecursiveScriptModule", "TopLevelTracedModule"):
            raise ConfigError(
                f"{where} is scripted (`{kind}`) and cannot be hooked", "probe the module it was made from"
            )
        if kind == "DataParallel":
            raise ConfigError(f"{where} is replicated by `DataParallel`", "probe its `.module` on one device")


def _select(sites: list[Site], selection: SiteSelection) -> list[Site]:
    if selection is None:
        return sites
    if callable(selection):
        chosen = [site for site in sites if selection(site)]
        if not chosen:
            raise ConfigError("the predicate chose no site", f"the sites are {_quoted(sites)}")
        return chosen
    patterns = [selection] if isinstance(selection, str) else list(selection)
    for pattern in patterns:
        if not any(_matches(site, pattern) for site in sites):
            hint = did_you_mean(pattern, [site.name for site in sites], otherwise=f"the sites are {_quoted(sites)}")
            raise ConfigError(f"no site is called or matches `{pattern}`", hint)
    return [site for site in sites if any(_matches(site, pattern) for pattern in patterns)]


def _matches(site: Site, pattern: str) -> bool:
    return site.name == pattern or fnmatch.fnmatchcase(site.name, pattern)


def _quoted(sites: Sequence[Site]) -> str:
    shown = ", ".join(f"`{site.name}`" for site in sites[:12])
    return shown if len(sites) <= 12 else f"{shown} and {len(sites) - 12} more"
