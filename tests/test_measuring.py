"""Calling networks on inputs of any form."""

import pytest
import torch
from torch import Tensor, nn

from nlprobe.blocks import NonLocal, NonLocalConfig
from nlprobe.errors import CaptureError, DataError
from nlprobe.measuring import described, differences, forward, measure_network
from nlprobe.stats.records import to_frame


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def forward(self, *arguments: object, **named: object) -> None:
        self.arguments, self.named = arguments, named


class Refusing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


def test_inputs_are_given_as_they_are_and_moved_to_the_device(device: torch.device) -> None:
    recorder = Recorder()
    image = torch.ones(2, 3)
    forward(recorder, image, device)
    assert recorder.arguments[0].device.type == device.type
    forward(recorder, (image, [image, 3], "word"), device)
    assert recorder.arguments[1][0].device.type == device.type
    assert recorder.arguments[1:] == ([recorder.arguments[1][0], 3], "word")
    forward(recorder, {"pixels": image, "use_cache": False}, device)
    assert recorder.arguments == ()
    assert recorder.named["pixels"].device.type == device.type
    assert recorder.named["use_cache"] is False


def test_inputs_are_described_by_names_and_shapes() -> None:
    image = torch.ones(2, 3)
    assert described(image) == "(2, 3)"
    assert described({"pixels": image, "masks": (image, None)}) == "pixels (2, 3), masks (2, 3), None"


@pytest.mark.parametrize("error", [TypeError("no such argument\nat all"), ValueError("bad"), AssertionError()])
def test_a_network_that_refuses_its_inputs_is_an_error_in_words(error: Exception) -> None:
    with pytest.raises(DataError, match=r"`Refusing` does not take the inputs \(2, 3\): ") as caught:
        forward(Refusing(error), torch.ones(2, 3))
    assert caught.value.__cause__ is error
    assert "at all" not in caught.value.cause


def test_errors_of_the_probe_are_not_blamed_on_the_inputs() -> None:
    error = CaptureError("no")
    with pytest.raises(CaptureError) as caught:
        forward(Refusing(error), torch.ones(2, 3))
    assert caught.value is error
    block = NonLocal(4)
    block.register_forward_hook(lambda *_: to_frame([{"view": None}]))
    with pytest.raises(TypeError, match="int"):
        forward(block, torch.ones(1, 4, 2, 2))


def test_out_of_memory_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        forward(Refusing(RuntimeError("can't allocate memory")), torch.ones(2, 3))


def test_paired_differences_are_over_the_positions_that_were_summarised() -> None:
    config = NonLocalConfig(zero_init=False)
    torch.manual_seed(0)
    networks = [NonLocal(8, config=config) for _ in range(2)]
    images = torch.randn(3, 8, 4, 4)

    def measured(network: nn.Module, label: str, positions: str):
        (found,) = measure_network(
            network,
            lambda start, step: [(images, ["a", "b", "c"])][start::step],
            label=label,
            positions=positions,
            rectangle=(slice(0, 4), slice(0, 9)),
        )
        return found

    for positions, count in (("all", 16), ("rectangle", 4)):
        first, second = (measured(network, str(at), positions) for at, network in enumerate(networks))
        assert first.row.n_queries == (count, count)
        found = differences(first, second)["att"]
        expected = first.row.quantities["att"].mean - second.row.quantities["att"].mean
        assert found.mean == pytest.approx(expected)
        assert found.n == 3


def test_no_input_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="the data hold nothing"):
        measure_network(NonLocal(4), lambda start, step: [], label="x")
