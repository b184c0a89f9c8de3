"""Action recognition: cross-entropy of clips, and top-1 and top-5 by clip and by video."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nlprobe.data import Batch, ImageDataset
from nlprobe.errors import DataError
from nlprobe.processes import ALONE, Processes
from nlprobe.training.classification import Classification, check_data, rank_of_label
from nlprobe.training.task import Stop

TOGETHER = 10
"""Views of a video that go through the network at a time."""


@dataclass(frozen=True)
class ActionScores:
    """How a network did on each video.

    Attributes:
        ids: Names of the videos.
        ranks: How many classes scored above a video's own, of the mean of its views' probabilities.
        clip_ranks: The same for each view, (videos, views).
        classes: Number of classes.
    """

    ids: list[str]
    ranks: Int64[np.ndarray, " n"]
    clip_ranks: Int64[np.ndarray, "n views"]
    classes: int

    def hits(self, k: int) -> Float[np.ndarray, " n"]:
        """1 for each video whose class is among the `k` best, else 0."""
        return (self.ranks < k).astype(np.float64)

    def clip_hits(self, k: int) -> Float[np.ndarray, " n"]:
        """The share of each video's views whose class is among the `k` best."""
        return (self.clip_ranks < k).mean(1)

    def means(self) -> dict[str, float]:
        """Top-1 and, where there are more than five classes, top-5, by video and by clip."""
        found: dict[str, float] = {}
        for k in (1, 5) if self.classes > 5 else (1,):
            found |= {f"top{k}": float(self.hits(k).mean()), f"clip_top{k}": float(self.clip_hits(k).mean())}
        return found

    @classmethod
    def joined(cls, parts: Sequence["ActionScores"], order: Sequence[str]) -> "ActionScores":
        """The scores of several processes as one would have them, in the order of the names `order`."""
        place = {name: number for number, name in enumerate(order)}
        parts = [part for part in parts if part.ids]
        ids = [name for part in parts for name in part.ids]
        sorting = np.argsort([place[name] for name in ids], kind="stable")
        return cls(
            [ids[number] for number in sorting],
            np.concatenate([part.ranks for part in parts])[sorting],
            np.concatenate([part.clip_ranks for part in parts])[sorting],
            max(part.classes for part in parts),
        )


def evaluate_videos(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    stop: Stop = lambda: False,
    processes: Processes = ALONE,
    order: Sequence[str] = (),
) -> ActionScores | None:
    """Recognise every video by all of its views, in evaluation mode and without gradients.

    A video's probabilities are the mean of the softmax over its views, as SlowFast and the non-local networks are
    scored.

    Args:
        model: Clips (B, 3, T, H, W) to logits (B, classes); its mode is put back afterwards.
        batches: Videos of several views, (B, views, 3, T, H, W), or of one, (B, 3, T, H, W).
        device: Where the model is.
        stop: Asked after each batch; when it says so, the answer is None, in all processes.
        processes: Those that score together; all of them get the scores of all videos.
        order: Names of the videos in the order in which several processes put them together.

    Raises:
        DataError: there are no videos, or they have no labels.
    """
    parts = processes.gather(_scores(model, batches, device, stop))
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    if not any(part.ids for part in whole):
        raise DataError("no video of the data set can be read", "`nlprobe data check` names what is wrong with each")
    return whole[0] if len(whole) == 1 else ActionScores.joined(whole, order)


def _scores(model: nn.Module, batches: Iterable[Batch], device: torch.device, stop: Stop) -> ActionScores | None:
    training = model.training
    model.eval()
    ids: list[str] = []
    ranks: list[Tensor] = []
    clip_ranks: list[Tensor] = []
    classes = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                if batch.labels is None:
                    raise DataError(
                        f"`{batch.ids[0]}` and the others have no labels", "accuracy needs the class of each video"
                    )
                views = batch.images if batch.images.dim() == 6 else batch.images.unsqueeze(1)
                labels = batch.labels.to(device)
                probabilities = _probabilities(model, views, device)
                classes = probabilities.shape[2]
                ids += batch.ids
                ranks.append(rank_of_label(probabilities.mean(1), labels))
                count = views.shape[1]
                by_clip = rank_of_label(probabilities.flatten(0, 1), labels.repeat_interleave(count))
                clip_ranks.append(by_clip.view(-1, count))
                if stop():
                    return None
    finally:
        model.train(training)
    if not ids:
        return ActionScores([], np.empty(0, np.int64), np.empty((0, 1), np.int64), 0)
    return ActionScores(ids, torch.cat(ranks).cpu().numpy(), torch.cat(clip_ranks).cpu().numpy(), classes)


def _probabilities(
    model: nn.Module, views: Float[Tensor, "b views c t h w"], device: torch.device
) -> Float[Tensor, "b views classes"]:
    """The softmax of every view, a few views at a time."""
    clips = views.flatten(0, 1)
    parts = [model(part.to(device, non_blocking=True)).float().softmax(1) for part in clips.split(TOGETHER)]
    return torch.cat(parts).view(*views.shape[:2], -1)


class Action(Classification):
    """The task of `recipe.task` "action_recognition": classification of clips; see `training.task.Task`."""


def check_videos(training: ImageDataset, validation: ImageDataset, batch_size: int) -> None:
    """Make sure that action recognition can be trained and scored on the two.

    Raises:
        DataError: they hold no videos, or are none that classification could be learnt from.
    """
    for dataset in (training, validation):
        if dataset.holds != "videos":
            raise DataError(
                f"`{dataset.root}` ({dataset.kind}) holds no videos",
                "action recognition needs a data set like Kinetics, or a folder of videos for each class",
            )
    check_data(training, validation, batch_size)
