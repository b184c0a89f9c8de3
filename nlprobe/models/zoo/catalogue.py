"""The models of all data sets together: by name, and by the paper's rows."""

from nlprobe.errors import ConfigError
from nlprobe.models.zoo import cityscapes, coco, imagenet, kinetics
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import PaperRow, order_in_paper
from nlprobe.suggestions import did_you_mean

_ENTRIES = {each.name: each for each in (*imagenet.ENTRIES, *coco.ENTRIES, *cityscapes.ENTRIES, *kinetics.ENTRIES)}


def names() -> list[str]:
    """The name of every model."""
    return list(_ENTRIES)


def entry(name: str) -> ModelEntry:
    """What the zoo knows of the model of that name.

    Raises:
        ConfigError: there is none, with close matches.
    """
    if name not in _ENTRIES:
        raise ConfigError(f"the zoo has no model `{name}`", _remedy(name))
    return _ENTRIES[name]


def rows() -> list[tuple[ModelEntry, PaperRow | None]]:
    """Every row of the paper's tables with its model, in the paper's order; then the models that no table prints."""
    printed = [(each, row) for each in _ENTRIES.values() for row in each.paper]
    printed.sort(key=lambda pair: order_in_paper(pair[1]))
    return [*printed, *((each, None) for each in _ENTRIES.values() if not each.paper)]


def paper_distances(name: str) -> dict[str, tuple[str, PaperRow]]:
    """The cosine distances that the paper prints of a model: quantity -> (printed text, the row it stands in).

    A miniature twin has those of the model that it is the small version of. Of a quantity in several tables it is the
    most detailed one's; where the paper gives none, the answer is empty.

    Raises:
        ConfigError: there is no such model.
    """
    known = entry(name)
    if known.full_size is not None:
        return paper_distances(known.full_size)
    quantities = ("input", "key", "query", "prod", "att", "output")
    printed = {
        quantity: (row.cells[quantity], row) for row in known.paper for quantity in quantities if quantity in row.cells
    }
    return {quantity: printed[quantity] for quantity in quantities if quantity in printed}


def _remedy(name: str) -> str:
    ends = [known for known in _ENTRIES if known.endswith(f"/{name}")]
    return did_you_mean(name, ends or _ENTRIES, otherwise="`nlprobe zoo` lists them", cutoff=0.0 if ends else 0.6)
