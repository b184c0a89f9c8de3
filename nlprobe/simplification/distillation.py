"""Training new blocks alone, to give what the old ones give on the same inputs."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from nlprobe.blocks import ContextBlock
from nlprobe.simplification.network import block_at

Forward = Callable[[], object]
"""One forward call of the network with the old blocks."""


def distilled(
    model: nn.Module,
    blocks: Mapping[str, ContextBlock],
    calls: Iterable[Forward],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    tell: Callable[[int, float], object] = lambda step, loss: None,
) -> dict[str, ContextBlock]:
    """The blocks after a step of Adam for each forward call; the network itself is not changed.

    Least Σ_sites ‖y′ − y‖² / ‖y‖², y and y′ what the old and the new block add to the same input, over the batch.

    Args:
        model: The network with the old blocks, in evaluation mode.
        blocks: The new blocks by site.
        calls: Forward calls of `model`, in order; each is one step.
        steps: How many calls there are.
        learning_rate: Adam's at the beginning; it falls to zero with a half-cosine.
        tell: Gets the number of each step and its mean loss over the sites.
    """
    students = {site: _copy(block) for site, block in blocks.items()}
    losses: dict[str, Tensor] = {}
    handles = []
    for site, student in students.items():

        def compare(
            _: nn.Module, args: tuple[Tensor, ...], z: Tensor, site: str = site, student: nn.Module = student
        ) -> None:
            x, z = args[0].detach(), z.detach()
            with torch.enable_grad():
                losses[site] = (student(x) - z).square().sum() / (z - x).square().sum().clamp(min=1e-12)

        handles.append(block_at(model, site)[1].register_forward_hook(compare))
    parameters = [parameter for student in students.values() for parameter in student.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    try:
        for step, call in enumerate(calls):
            with torch.no_grad():
                call()
            loss = torch.stack(list(losses.values())).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            tell(step, float(loss.detach()))
    finally:
        for handle in handles:
            handle.remove()
    return {site: student.eval() for site, student in students.items()}


def _copy(block: ContextBlock) -> ContextBlock:
    copied = ContextBlock(block.channels, block.config)
    parameter = next(block.parameters())
    copied.load_state_dict(block.state_dict())
    return copied.to(parameter.device, parameter.dtype).train()
