"""Close matches."""

import pytest

from nlprobe.suggestions import did_you_mean


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("batch_size", "did you mean `batch-size`?"),
        ("Limit", "did you mean `limit`?"),
        ("sed", "did you mean `seed`?"),
        ("xyz", "known: `batch-size`, `limit`, `seed`"),
    ],
)
def test_the_closest_names_are_offered(name: str, hint: str) -> None:
    assert did_you_mean(name, ["batch-size", "limit", "seed"]) == hint


def test_several_close_names_are_joined() -> None:
    hint = did_you_mean("resnet50-nl-", ["resnet50-nl", "resnet50-nl-c3", "resnet50-nl-c5"])
    assert hint == "did you mean `resnet50-nl`, `resnet50-nl-c5` or `resnet50-nl-c3`?"


def test_nothing_known_is_nothing_said() -> None:
    assert did_you_mean("a", []) == ""
