"""`torchrun -m nlprobe stats` and `eval` with real processes: the same bits from 1, 2 and 3, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint
from PIL import Image
from sklearn.datasets import load_sample_images

from nlprobe.data import open_dataset, write_miniature_cityscapes, write_miniature_imagenet
from nlprobe.data.cityscapes import CLASSES
from nlprobe.training import recipe

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

UNREADABLE = ("0-a.png", "0-b.png", "03a.png", "03b.png")


def start(
    folder: Path,
    *arguments: object,
    processes: int,
    threads: int | None = 1,
    program: tuple[str, ...] = ("-m", "nlprobe"),
) -> subprocess.Popen:
    """The command in `folder`, in so many processes; by plain python where it is one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(torchrun if processes > 1 else [sys.executable]), *program, *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", str(HERE.parent.parent))])
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def done(folder: Path, *arguments: object, **how: object) -> tuple[str, str]:
    """Stdout and stderr of a command that succeeds."""
    code, out, err = finish(start(folder, *arguments, **how))
    assert code == 0, err
    return out, err


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_command(folder: Path) -> dict[str, bytes]:
    """The same, but for the command line in `results.json`, which has `--resume` in it."""
    found = files(folder)
    payload = json.loads(found["results.json"])
    payload["command"] = [word for word in payload["command"] if word != "--resume"]
    return found | {"results.json": json.dumps(payload).encode()}


def slow_program(where: Path) -> tuple[str, ...]:
    """nlprobe with a state saved after each batch, and batches that take their time: so that there is some."""
    path = where / "slow_nlprobe.py"
    path.write_text(
        "import time\n"
        "from nlprobe import measuring\n"
        "from nlprobe.cli import main\n"
        "from nlprobe.models import ResNet\n"
        "measuring.SECONDS_BETWEEN_SAVES = 0.0\n"
        "measuring.SHARE_OF_SAVING = float('inf')\n"
        "forward = ResNet.forward\n"
        "def slow(self, images):\n"
        "    time.sleep(0.5)\n"
        "    return forward(self, images)\n"
        "ResNet.forward = slow\n"
        "main()\n"
    )
    return (str(path),)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pieces of photographs; in batches of two the first and the fourth batch hold nothing that can be read."""
    folder = tmp_path_factory.mktemp("pictures")
    first, second = load_sample_images().images
    for number in range(11):
        source = (first, second)[number % 2]
        Image.fromarray(source[20 * number : 20 * number + 120, 30 * number : 30 * number + 150]).save(
            folder / f"{number:02d}.png"
        )
    for name in UNREADABLE:
        (folder / name).write_bytes(b"gone")
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them, with everything that sums over the data set."""
    folder = tmp_path_factory.mktemp("whole")
    done(folder, *everything(checkpoint, pictures), processes=1)
    return folder / "measured"


def everything(checkpoint: Path, pictures: Path) -> list[object]:
    arguments = ["stats", "--ckpt", checkpoint, "--data", pictures, "--out", "measured", "--batch-size", 2]
    arguments += ["--baseline", "init-block", "--baseline", "init-all", "--draws", 2, "--centred", "--device", "cpu"]
    return [*arguments, "--format", "csv"]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_leave_the_files_of_one_bit_by_bit(
    checkpoint: Path, pictures: Path, whole: Path, tmp_path: Path, processes: int
) -> None:
    out, err = done(tmp_path, *everything(checkpoint, pictures), processes=processes)
    assert files(tmp_path / "measured") == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["measured"]
    assert out == (whole / "table.csv").read_text()
    assert err.count("wrote measured") == 1
    # Two networks with two passes each, all shown by process 0 up to the last image.
    assert err.count("15/15 images") == 4
    assert err.count("left out: `03b.png`") == 1


def test_what_is_compared_holds_all_of_it(whole: Path) -> None:
    payload = json.loads((whole / "results.json").read_text())
    records = pd.read_csv(whole / "records.csv")
    assert list(records["image"].unique()) == [f"{number:02d}.png" for number in range(11)]
    assert records["centred_dist"].notna().any()
    assert {(row.kind, row.draw) for row in records.itertuples()} == {
        ("trained", 0),
        ("init-block", 0),
        ("init-block", 1),
        ("init-all", 0),
    }
    assert sum(payload["sites"][0]["energy"].values()) == pytest.approx(1)
    assert payload["audit"][0]["calls"] == 8 - 2
    assert payload["threads"] == 1
    assert payload["not_measured"] == [f"image {name} could not be read and is left out" for name in UNREADABLE]


def test_more_processes_than_batches_with_heads_of_another_library(pictures: Path, tmp_path: Path) -> None:
    arguments = ["stats", "--model", "timm:vit_tiny_patch16_224", "--data", pictures, "--limit", 3, "--batch-size", 2]
    arguments += ["--out", "measured", "--by-head", "--metric", "sink_mass", "--device", "cpu"]
    for count in (1, 3):
        done(tmp_path / str(count), *arguments, processes=count)
    one, three = (files(tmp_path / str(count) / "measured") for count in (1, 3))
    assert len(pd.read_csv(tmp_path / "3" / "measured" / "records.csv")["image"].unique()) == 2  # and one unreadable
    assert one == three


def test_attention_that_is_found_while_it_runs_and_batches_of_own_code(tmp_path: Path) -> None:
    arguments = ["stats", "--model", "python:own_networks:pooled", "--data", "python:own_networks:noise"]
    arguments += ["--out", "measured", "--device", "cpu"]
    for count in (1, 2, 3):
        done(tmp_path / str(count), *arguments, processes=count)
    one, two, three = (files(tmp_path / str(count) / "measured") for count in (1, 2, 3))
    assert one == two == three
    assert json.loads(one["results.json"])["data"]["images"] == 5


def test_the_bits_are_those_of_as_many_threads_and_the_numbers_those_of_any(
    checkpoint: Path, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """`torchrun` gives each process one thread where nothing else is asked for."""
    for name, count, threads in (("one", 1, 2), ("two", 2, 2), ("unset", 2, None)):
        done(tmp_path / name, *everything(checkpoint, pictures), processes=count, threads=threads)
    one, two, unset = (files(tmp_path / name / "measured") for name in ("one", "two", "unset"))
    assert one == two
    assert unset == files(whole)
    assert json.loads(one["results.json"])["threads"] == 2
    first, second = (pd.read_csv(folder / "records.csv") for folder in (tmp_path / "one" / "measured", whole))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4, atol=1e-7)


def wait_for_state(process: subprocess.Popen, state: Path) -> None:
    """Wait until something was kept."""
    deadline = time.monotonic() + 120
    while not list(state.glob("*.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.7)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(pair for pair in pairs if pair.startswith(b"RANK=")).decode().removeprefix("RANK=")


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_ctrl_c_leaves_what_any_number_of_processes_completes_to_the_same_bits(
    checkpoint: Path, pictures: Path, whole: Path, tmp_path: Path, before: int, after: int
) -> None:
    arguments = everything(checkpoint, pictures)
    process = start(tmp_path / "run", *arguments, processes=before, program=slow_program(tmp_path))
    wait_for_state(process, tmp_path / "run" / "measured.partial")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code != 0
    assert out == ""
    assert err.count("go on with the same command and --resume") == 1
    assert err.count("error: interrupted") == 1
    assert "lost another one" not in err
    assert not (tmp_path / "run" / "measured").exists()
    _, err = done(tmp_path / "run", *arguments, "--resume", processes=after)
    assert err.count("going on after") == 1
    assert without_command(tmp_path / "run" / "measured") == without_command(whole)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["measured"]


def test_a_killed_process_ends_the_others_in_words_and_the_rest_is_measured_later(
    checkpoint: Path, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = everything(checkpoint, pictures)
    process = start(tmp_path / "run", *arguments, processes=2, program=slow_program(tmp_path))
    wait_for_state(process, tmp_path / "run" / "measured.partial")
    (victim,) = [pid for pid in children(process.pid) if rank_of(pid) == "1"]
    os.kill(victim, signal.SIGKILL)
    code, out, err = finish(process)
    assert code != 0
    assert out == ""
    assert "error: process 0 of 2 lost another one while measuring" in err
    assert "go on with the same command and --resume" in err
    done(tmp_path / "run", *arguments, "--resume", processes=2)
    assert without_command(tmp_path / "run" / "measured") == without_command(whole)


BROKEN = """
import os
from nlprobe.blocks import NonLocal
from nlprobe.cli import main
forward = NonLocal.forward
def broken(self, x):
    if int(os.environ["RANK"]) in {ranks}:
        {action}
    return forward(self, x)
NonLocal.forward = broken
main()
"""


@pytest.mark.parametrize(
    ("ranks", "action", "code", "message"),
    [
        ((1,), "return forward(self, x) + 0.1 * x", 3, "is off by"),
        ((0, 1), "return forward(self, x) + 0.1 * x", 3, "is off by"),
        ((1,), "raise KeyError('unforeseen')", 1, "KeyError: 'unforeseen'"),
    ],
)
def test_an_error_in_one_process_ends_all_with_its_code_and_one_message(
    checkpoint: Path, pictures: Path, tmp_path: Path, ranks: tuple[int, ...], action: str, code: int, message: str
) -> None:
    program = tmp_path / "broken_nlprobe.py"
    program.write_text(BROKEN.format(ranks=ranks, action=action))
    arguments = ["stats", "--ckpt", checkpoint, "--data", pictures, "--batch-size", 2, "--device", "cpu"]
    arguments += ["--out", "measured"]
    returned, out, err = finish(start(tmp_path / "run", *arguments, processes=2, program=(str(program),)))
    assert returned != 0
    assert out == ""
    assert err.count("error: ") == 1, err
    assert message in err
    assert f"exitcode  : {code} " in err
    assert not (tmp_path / "run" / "measured").exists()


def test_missing_data_and_an_occupied_folder_are_told_once(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["stats", "--ckpt", checkpoint, "--device", "cpu", "--data"]
    _, _, err = finish(start(tmp_path, *arguments, "nowhere", processes=2))
    assert err.count("error: `nowhere` is not there") == err.count("error: ") == 1
    assert "exitcode  : 4 " in err
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious.txt").write_text("keep me")
    _, _, err = finish(start(tmp_path, *arguments, pictures, "--out", "there", processes=2))
    assert err.count("is already there") == err.count("error: ") == 1
    assert "exitcode  : 2 " in err


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=10, val=30)
    for bad in sorted(root.glob("val/*/*"))[8:13]:
        bad.write_bytes(b"gone")
    return root


def test_eval_prints_the_same_table_from_any_number_of_processes(labelled: Path, tmp_path: Path) -> None:
    known = write_checkpoint(tmp_path / "best.safetensors", classes=open_dataset(labelled).classes)
    arguments = ["eval", "--ckpt", known, "--data", labelled, "--device", "cpu", "--format", "json", "--batch-size", 4]
    outs = {}
    for count in (1, 2, 3):
        outs[count], err = done(tmp_path, *arguments, processes=count)
        assert err.count("30/30 images") == 1
        assert err.count("left out: ") == 5
    assert outs[1] == outs[2] == outs[3]
    (row,) = json.loads(outs[1])
    assert (row["images"], row["unreadable"]) == (25, 5)


def test_eval_ends_in_all_processes_where_one_fails(labelled: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["eval", "--ckpt", checkpoint, "--data", labelled, "--device", "cpu"]
    _, out, err = finish(start(tmp_path, *arguments, processes=2))
    assert out == ""
    assert err.count("they differ, for one in") == err.count("error: ") == 1
    assert "exitcode  : 4 " in err


def test_eval_of_segmentation_has_the_same_bits_and_pictures_from_any_number_of_processes(tmp_path: Path) -> None:
    root = write_miniature_cityscapes(tmp_path / "data", train=2, val=5)
    settings = recipe("miniature-cityscapes")
    described = {"recipe": settings.as_dict(), "preprocessing": settings.preprocessing.as_dict()}
    known = write_checkpoint(
        tmp_path / "best.safetensors", "miniature-cityscapes/resnet-gc", classes=list(CLASSES), **described
    )
    arguments = ["eval", "--ckpt", known, "--data", root, "--device", "cpu", "--format", "json", "--by-class"]
    outs, pictures = {}, {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        outs[count], _ = done(folder, *arguments, "--flip", "--predictions", "predicted", processes=count)
        pictures[count] = {path.name: path.read_bytes() for path in (folder / "predicted").rglob("*.png")}
    assert outs[1] == outs[2]
    assert json.loads(outs[1])[-1]["class"] == "mean"
    assert pictures[1] == pictures[2]
    assert len(pictures[1]) == 2 * 5
