"""The examples, run as a user runs them: from a folder of the user's own, on real data."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from minitrain import Result
from minitrain.exceptions import PreemptionError

EXAMPLES = Path(__file__).parents[2] / "examples"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
GONE_WITHIN_S = 3.0
DEADLINE_S = 110.0

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def nothing_runs_on(storage):
    """Fail a test whose driver has ended while something that it started has not."""
    yield
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while left := [process for process in psutil.process_iter() if started_with(process, storage)]:
        assert time.monotonic() < deadline_s, f"still running: {left}"
        time.sleep(0.05)


def started_with(process, storage):
    try:
        return process.environ().get("MINITRAIN_STORAGE") == str(storage)
    except psutil.Error:  # ended meanwhile, or somebody else's
        return False


@pytest.fixture
def run_example(tmp_path):
    """Return a function that runs an example and gives its output."""
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()

    def run(name, *arguments, exit_code=0):
        ended = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            check=False,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert ended.returncode == exit_code, f"{ended.stdout}\n{ended.stderr}"
        assert list(cwd.iterdir()) == []  # a run goes to the storage, and nowhere else
        return ended.stderr if exit_code else ended.stdout

    return run


def found(pattern, text):
    """Return what the groups of a pattern match, as numbers."""
    match = re.search(pattern, text)
    assert match, f"no {pattern!r} in:\n{text}"
    return [float(group) for group in match.groups()]


def rows(run):
    return [json.loads(line) for line in Path(run, "result.json").read_text().splitlines()]


@pytest.mark.campaign
# ------------------------------------------------------------------ digits
@pytest.mark.slow
def test_digits_are_recognized_and_everything_it_names_is_there(run_example, storage):
    output = run_example("digits.py")
    assert found(r"on 4 workers in ([\d.]+) s", output)
    assert found(r"found by the workers: +([\d.]+)%", output)[0] >= 96
    assert found(r"found by the workers: +([\d.]+)%", output) == found(
        r"loaded back: +([\d.]+)%", output
    )

    [run] = storage.iterdir()
    named = {Path(path) for path in re.findall(rf"{re.escape(str(storage))}\S*", output)}
    [best] = {path for path in named if path.name.startswith("checkpoint_")}
    assert named == {run, run / "result.json", run / "progress.csv", run / "logs", best}
    assert all(path.exists() for path in named)
    assert f"tensorboard --logdir {run}\n" in output
    assert list(run.glob("events.out.tfevents.*"))
    logs = sorted(path.name for path in (run / "logs" / "attempt_0").iterdir())
    assert logs == [f"rank_{rank}.log" for rank in range(4)]

    reports = rows(run)
    assert [row["epoch"] for row in reports] == list(range(1, len(reports) + 1))
    assert len((run / "progress.csv").read_text().splitlines()) == 1 + len(reports)
    result = Result.from_path(run)
    assert result.best_checkpoints[-1][0].path == str(best)
    in_order = sorted(row["accuracy"] for row in reports)
    kept = [metrics["accuracy"] for _, metrics in result.best_checkpoints]
    assert kept == in_order[-2:]
    for checkpoint, _ in result.best_checkpoints:
        assert Path(checkpoint.path, ".manifest.json").is_file()
        assert Path(checkpoint.path, "model.pt").is_file()


@pytest.mark.campaign
# ------------------------------------------------------------------ Fashion-MNIST
@pytest.mark.slow
@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)
def test_clothes_are_recognized(run_example, storage):
    output = run_example(
        "fashion_mnist.py", "--limit", 20_000
    )  # of the 60,000: for the time's sake
    assert found(r"cnn: test accuracy ([\d.]+)%", output)[0] >= 78
    [run] = storage.iterdir()
    [row] = rows(run)
    assert row["config"] == {
        "model": "cnn",
        "data": str(FASHION_MNIST),
        "epochs": 1,
        "limit": 20_000,
    }
    assert f"checkpoint: {run}/checkpoint_000000\n" in output
    assert (run / "checkpoint_000000" / ".manifest.json").is_file()


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + array.tobytes())


@pytest.fixture
def bars(tmp_path):
    """A folder of idx files with noisy pictures whose class is the height of a bright bar."""
    folder = tmp_path / "bars"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, size in [("train", 700), ("t10k", 101)]:
        labels = (np.arange(size) % 10).astype(np.uint8)
        images = random.integers(0, 60, (size, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 6] += 150
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.mark.campaign
def test_any_folder_of_idx_files_will_do(run_example, storage, bars, monkeypatch):
    # By default the one worker has a thread for every core, which on a busy machine means that
    # they wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = run_example(
        "fashion_mnist.py",
        *("--data", os.path.relpath(bars, bars.parent / "elsewhere")),
        *("--epochs", 2, "--limit", 640, "--workers", 1),
    )
    assert found(r"cnn: test accuracy ([\d.]+)%", output)[0] >= 90
    [run] = storage.iterdir()
    assert [row["epoch"] for row in rows(run)] == [1, 2]
    assert Path(Result.from_path(run).checkpoint.path).name == "checkpoint_000001"


@pytest.mark.campaign
def test_a_resnet_loaded_back_is_as_accurate_as_all_ranks_said(start_script, bars, storage):
    script = start_script(
        """
        import sys

        import torch

        import fashion_mnist
        from minitrain import Result

        folder, storage = sys.argv[1:]
        sys.argv[1:] = ["--data", folder, "--model", "resnet18", "--limit", "256"]
        fashion_mnist.main()

        [run] = fashion_mnist.Path(storage).iterdir()
        result = Result.from_path(run)
        network = fashion_mnist.make_resnet18()
        assert sum(parameter.numel() for parameter in network.parameters()) == 11_175_370
        network.load_state_dict(torch.load(f"{result.checkpoint.path}/model.pt"))
        network.eval()
        images, labels = fashion_mnist.load(folder, "test")
        with torch.no_grad():
            guesses = network(fashion_mnist.as_input(images)).argmax(dim=1)
        accuracy = (guesses == labels).double().mean().item()
        assert abs(accuracy - result.metrics["accuracy"]) < 1e-6, (accuracy, result.metrics)
        """,
        str(bars),
        str(storage),
        env={"PYTHONPATH": str(EXAMPLES)},
    )
    assert script.wait(DEADLINE_S) == 0, script.output


@pytest.mark.campaign
def test_one_sentence_says_where_to_get_the_clothes(run_example, tmp_path, storage):
    error = run_example("fashion_mnist.py", "--data", tmp_path / "nowhere", exit_code=2)
    [sentence] = error.splitlines()
    assert str(tmp_path / "nowhere") in sentence
    assert "apt-get install dataset-fashion-mnist" in sentence
    assert "--data FOLDER" in sentence
    assert not storage.exists()


@pytest.mark.campaign
# ------------------------------------------------------------------ datasets
def test_raw_rows_are_scored_with_nothing_but_the_checkpoint(run_example, storage):
    output = run_example("tabular.py")
    [by_workers] = found(r"found by the workers: +([\d.]+)%", output)
    [by_checkpoint] = found(r"raw rows and checkpoint alone: +([\d.]+)%", output)
    assert by_workers == by_checkpoint >= 95
    [run] = storage.iterdir()
    [checkpoint] = Result.from_path(run).best_checkpoints
    scales = json.loads(checkpoint[0].get_metadata()["preprocessor"])
    assert "mean radius" in json.dumps(scales)


@pytest.mark.campaign
@pytest.mark.slow
def test_reviews_go_on_in_mid_epoch_after_a_worker_was_killed(start_script, storage):
    script = start_script(
        f"import runpy; runpy.run_path({str(EXAMPLES / 'text_classifier.py')!r}, "
        "run_name='__main__')"
    )
    script.wait_for("trains from step 1, in epoch 1\n")
    [number] = found(r"process (\d+) trains from step 1,", script.output)
    deadline_s = time.monotonic() + DEADLINE_S
    while not list(storage.glob("*/checkpoint_*/.manifest.json")):
        assert time.monotonic() < deadline_s, script.output
        time.sleep(0.01)
    os.kill(int(number), signal.SIGKILL)

    assert script.wait(DEADLINE_S) == 0, script.output
    [step] = found(r"trains from step (?!1,)(\d+), in epoch 1\n", script.output)
    assert 1 < step <= 157
    assert step % 40 == 1
    # As many steps as without the failure: no review came twice, and none was left out.
    ends = re.findall(r"epoch (\d), step (\d+): held out", script.output)
    assert ends == [("1", "157"), ("2", "314"), ("3", "471")]
    assert found(r"held out accuracy ([\d.]+)% after", script.output)[0] >= 85


@pytest.mark.campaign
# ------------------------------------------------------------------ the others
def test_the_regression_goes_on_where_it_stopped(run_example, storage):
    output = run_example("torch_linear.py")
    assert "training from epoch 1 to 50" in output
    assert "training from epoch 51 to 100" in output
    [ours] = found(r"minitrain +\S+ +(\S+)", output)
    [exact] = found(r"scikit-learn, exact +\S+ +(\S+)", output)
    assert ours == pytest.approx(exact, abs=0.01)
    first, second = sorted(storage.iterdir())
    assert [row["epoch"] for row in rows(first)] == list(range(1, 51))
    assert [row["epoch"] for row in rows(second)] == list(range(51, 101))
    assert f"checkpoint: {second}/checkpoint_000000\n" in output


@pytest.mark.campaign
@pytest.mark.slow
def test_two_workers_go_on_with_what_four_had_divided(run_example, storage):
    output = run_example("fsdp.py")
    assert "4 workers from step 0, rank 0 with 98,584 parameters" in output
    assert "2 workers from step 80, rank 0 with 197,168 parameters" in output
    [untrained] = found(r"untrained +(\S+)", output)
    [saved] = found(r"4 workers, saved +(\S+)", output)
    [loaded] = found(r"loaded by 2 workers +(\S+)", output)
    [trained] = found(r"120 steps +(\S+)", output)
    assert untrained > 5
    assert loaded == pytest.approx(saved, abs=1e-4)
    assert trained < saved < 3
    parts = found(r"wrote: (\S+) MB, (\S+) MB, (\S+) MB, (\S+) MB", output)
    assert max(parts) < 1.1 * min(parts)
    first, second = sorted(storage.iterdir())
    assert [row["step"] for row in rows(first)] == [20, 40, 60, 80]
    assert [row["step"] for row in rows(second)] == [100, 120]
    assert f"checkpoint: {second}/checkpoint_000000\n" in output


@pytest.mark.campaign
@pytest.mark.slow
def test_a_preempted_training_goes_on_where_it_was(start_script, storage):
    text = (
        f"import runpy; runpy.run_path({str(EXAMPLES / 'preemptible.py')!r}, run_name='__main__')"
    )
    first = start_script(text, "--seconds", "600")
    first.wait_for("step 500:")
    first.process.send_signal(signal.SIGTERM)
    assert first.wait(DEADLINE_S) == PreemptionError.EXIT_STATUS, first.output
    assert "Traceback" not in first.output

    run = storage / "preemptible"
    last = rows(run)[-1]
    assert "still training" not in (run / "error.txt").read_text(), "workers left by themselves"
    assert last["should_checkpoint"]
    again = start_script(text)
    again.wait_for(f"training from step {last['step'] + 1}\n")
    again.wait_for(f"step {last['step'] // 500 * 500 + 500}:")
    again.process.send_signal(signal.SIGTERM)
    assert again.wait(DEADLINE_S) == PreemptionError.EXIT_STATUS, again.output
    steps = [row["step"] for row in rows(run)]
    assert steps == sorted(set(steps))
    assert f"process {again.process.pid}, run {run}\n" in again.output
    Result.from_path(run).checkpoint.verify()


@pytest.mark.campaign
def test_a_training_whose_time_is_up_is_done_and_stays_so(run_example, storage):
    output = run_example("preemptible.py", "--seconds", 1)
    [step] = found(r"done at step (\d+)", output)
    [run] = storage.iterdir()
    assert rows(run)[-1]["step"] == step
    assert "training from" not in run_example("preemptible.py")
    assert rows(run)[-1]["step"] == step


@pytest.mark.campaign
def test_a_framework_from_outside_gives_what_one_process_gives(run_example, storage):
    output = run_example("custom_backend.py")
    assert "centres   the same, to the last bit" in output
    ours, alone = found(r"rounds +(\d+), (\d+)", output)
    [run] = storage.iterdir()
    assert ours == alone == len(rows(run))
    ours, alone = found(r"inertia +(\S+), (\S+)", output)
    assert ours == alone
    assert rows(run)[-1]["shift"] == 0
    assert f"{run}/progress.csv\n" in output


@pytest.mark.campaign
def test_the_ring_adds_up_arrays_of_any_size_and_closes_its_sockets(start_script):
    script = start_script(
        """
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        import psutil

        import minitrain
        from custom_backend import Ring, RingBackend, RingConfig
        from minitrain.trainer import DataParallelTrainer

        for size in (1, 2, 5):
            rings = [Ring(rank, size, timeout_s=20) for rank in range(size)]
            addresses = [ring.address for ring in rings]
            with ThreadPoolExecutor(size) as pool:
                list(pool.map(Ring.connect, rings, [addresses] * size))
                for length in (1, 4, 1_000_000):  # fewer than workers; more than a socket holds
                    arrays = [np.arange(length) * (rank + 1) for rank in range(size)]
                    for total in pool.map(Ring.all_reduce, rings, arrays):
                        assert np.array_equal(total, sum(arrays))
            for ring in rings:
                ring.close()
        assert not psutil.Process().net_connections("inet")

        counts = []

        def count():
            return len(psutil.Process().net_connections("inet"))

        class Watched(RingBackend):
            def on_shutdown(self, worker_group, backend_config):
                counts.append(worker_group.execute(count))
                super().on_shutdown(worker_group, backend_config)
                counts.append(worker_group.execute(count))

        class WatchedConfig(RingConfig):
            backend_cls = Watched

        DataParallelTrainer(
            lambda: None,
            backend_config=WatchedConfig(),
            scaling_config=minitrain.ScalingConfig(num_workers=2),
        ).fit()
        assert counts == [[2, 2], [0, 0]], counts
        """,
        env={"PYTHONPATH": str(EXAMPLES)},
    )
    assert script.wait(DEADLINE_S) == 0, script.output


@pytest.mark.campaign
def test_metrics_of_all_ranks_are_those_of_one_process(run_example, storage):
    output = run_example("metrics_across_ranks.py")
    [run] = storage.iterdir()
    last = rows(run)[-1]
    for name in ("accuracy", "f1", "auroc"):
        ours, one_process, _ = found(rf"{name} +(\S+) +(\S+) +(\S+)", output)
        assert ours == one_process == pytest.approx(last[name], abs=1e-6)
        assert ours > 0.9
    assert last["auroc"] != pytest.approx(last["mean_of_ranks"]["auroc"], abs=1e-5)


@pytest.mark.campaign
def test_the_notebook_runs_from_top_to_bottom(start_script, tmp_path, storage):
    source = EXAMPLES / "notebook.ipynb"
    for cell in json.loads(source.read_text())["cells"]:
        assert cell["id"]
        assert not cell.get("outputs"), "outputs are not kept in the repository"

    script = start_script(
        """
        import sys

        import nbformat
        from nbclient import NotebookClient

        source, cwd, executed = sys.argv[1:]
        notebook = nbformat.read(source, as_version=4)
        nbformat.validate(notebook)
        resources = {"metadata": {"path": cwd}}
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=90, resources=resources
        )
        client.execute()
        nbformat.write(notebook, executed)
        """,
        str(source),
        str(tmp_path),
        str(tmp_path / "executed.ipynb"),
    )
    assert script.wait(DEADLINE_S) == 0, script.output
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = {cell["id"]: json.dumps(cell["outputs"]) for cell in cells if "outputs" in cell}
    assert "rank 0 of 2 has trained 10 epochs" in outputs["fit"]
    assert "accuracy" in outputs["table"]
    assert "<table" in outputs["table"]
    assert found(r"([\d.]+)% of the wines", outputs["check"])[0] >= 90
    assert sorted(len(rows(run)) for run in storage.iterdir()) == [3, 10]
