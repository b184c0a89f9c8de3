"""Sites: which attention blocks a model has, and what they are called."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from nlprobe.blocks import PLACES
from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import ADAPTERS, Adapter
from nlprobe.probe.positions import prefix_tokens
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
        prefix: How many of its first positions are not places in the image (class token, registers).
    """

    name: str
    module: nn.Module
    adapter: Adapter
    block: str
    settings: dict[str, object]
    prefix: int = 0


SiteSelection = str | Sequence[str] | Callable[[Site], bool] | None
"""All sites (None), those whose name matches a glob, those named in a list (globs too), or a predicate."""


def site_name(path: str) -> str:
    """The site's name for a module path: `layer3.4.after_add` is `layer3.4:after_add`."""
    path = ".".join(part for part in path.split(".") if part != "_orig_mod")
    parent, _, last = path.rpartition(".")
    return f"{parent}:{last}" if last in PLACES and parent else path or "."


def find_sites(
    model: nn.Module,
    selection: SiteSelection = None,
    adapters: Sequence[Adapter] = ADAPTERS,
    prefix: int | None = None,
) -> list[Site]:
    """The sites of a model in the order of its modules, as far as adapters know their classes.

    Args:
        model: Any module; a block itself is a model whose site is called `.`.
        selection: Which sites; everything by default.
        adapters: Tried in order.
        prefix: Number of prefix tokens; found out by default.

    Raises:
        ConfigError: the model has no site, a name matches none, or the model is scripted or replicated.
    """
    sites = known_sites(model, adapters, prefix)
    if not sites:
        kinds = sorted({block for adapter in adapters if (block := getattr(adapter, "block", None))})
        raise ConfigError(
            f"`{type(model).__name__}` has no attention block that nlprobe knows by its class",
            f"known: the library's own blocks, {', '.join(kinds)}; what others compute is found when the model runs "
            "inside `nlprobe.probe`",
        )
    return select(sites, selection)


def known_sites(model: nn.Module, adapters: Sequence[Adapter] = ADAPTERS, prefix: int | None = None) -> list[Site]:
    """All sites whose class an adapter knows; the outermost module where several are nested."""
    refuse_wrapped(model)
    sites: list[Site] = []
    inside: str | None = None
    for path, module in model.named_modules():
        if inside is not None and (not inside or path.startswith(inside + ".")):
            continue
        adapter = next((adapter for adapter in adapters if adapter.matches(module)), None)
        if adapter is not None:
            own = getattr(adapter, "prefix", None) if prefix is None else prefix
            tokens = prefix_tokens(model, path) if own is None else own
            sites.append(Site(site_name(path), module, adapter, *adapter.describe(module), tokens))
            inside = path
    return sites


def compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is compiled by `torch.compile`."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def refuse_wrapped(model: nn.Module) -> None:
    """Raise where hooks would silently not fire: scripted or replicated modules."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        where = f"`{path}`" if path else "the model"
        if kind in ("ScriptModule", "RecursiveScriptModule", "TopLevelTracedModule"):
            raise ConfigError(
                f"{where} is scripted (`{kind}`) and cannot be hooked", "probe the module it was made from"
            )
        if kind == "DataParallel":
            raise ConfigError(f"{where} is replicated by `DataParallel`", "probe its `.module` on one device")


def select(sites: list[Site], selection: SiteSelection, paths: Sequence[str] = ()) -> list[Site]:
    """The chosen ones among the sites.

    Args:
        sites: What there is.
        selection: Which.
        paths: Other module paths at which sites may still be found; a name that matches one of them is no error.

    Raises:
        ConfigError: nothing matches.
    """
    if selection is None:
        return sites
    if callable(selection):
        chosen = [site for site in sites if selection(site)]
        if not chosen and not paths:
            raise ConfigError("the predicate chose no site", f"the sites are {_quoted(sites)}")
        return chosen
    patterns = [selection] if isinstance(selection, str) else list(selection)
    names = [site.name for site in sites]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in (*names, *map(site_name, paths))):
            hint = did_you_mean(pattern, names, otherwise=f"the sites are {_quoted(sites)}")
            raise ConfigError(f"no site is called or matches `{pattern}`", hint)
    return [site for site in sites if any(matches(site.name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a site's name is, or matches, the pattern."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _quoted(sites: Sequence[Site]) -> str:
    shown = ", ".join(f"`{site.name}`" for site in sites[:12])
    return shown if len(sites) <= 12 else f"{shown} and {len(sites) - 12} more"
