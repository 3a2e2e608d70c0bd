"""``fit()`` in processes that another launcher has started."""

from __future__ import annotations

import json
import os
import signal

import pytest

from minitrain import Result
from minitrain.exceptions import PreemptionError

TRAIN = """
    import os, signal, sys, tempfile, time
    from pathlib import Path

    import minitrain
    from minitrain import (
        Checkpoint, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig, collective,
    )
    from minitrain.torch import TorchTrainer
    from minitrain.trainer import DataParallelTrainer

    folder = Path(__file__).parent
    context = minitrain.get_context

    def tell(rank, *words):
        # In one piece: ranks share the console.
        sys.stdout.write(" ".join([f"<{rank}>", *map(str, words)]) + "\\n")
        sys.stdout.flush()

    def say(*words):
        tell(context().get_world_rank(), *words)

    def report(step, mode=None, **metrics):
        rank = context().get_world_rank()
        path = tempfile.mkdtemp(dir=folder)
        Path(path, f"step_{rank}").write_text(str(step))
        options = {} if mode is None else {"checkpoint_upload_mode": mode}
        minitrain.report({"step": step, **metrics}, Checkpoint.from_directory(path), **options)

    def first_step():
        checkpoint = minitrain.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as path:
            return 1 + int(Path(path, f"step_{context().get_world_rank()}").read_text())

    def fit(train, name="run", trainer=DataParallelTrainer, **options):
        grace = FailureConfig(preemption_grace_s=20)
        run_config = RunConfig(name=name, storage_path=folder, failure_config=grace, **options)
        scaling = ScalingConfig(num_workers=7)
        return trainer(train, scaling_config=scaling, run_config=run_config).fit()
"""


def lines(script_or_text, rank):
    text = getattr(script_or_text, "output", script_or_text)
    return [line.partition("> ")[2] for line in text.splitlines() if line.startswith(f"<{rank}>")]


def record(folder, name="run"):
    return json.loads((folder / name / "run.json").read_text())


@pytest.mark.campaign
def test_under_torchrun_everything_works_as_it_does_anywhere(torchrun, tmp_path):
    script = torchrun(
        TRAIN
        + """
    def train():
        import torch

        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        rank = context().get_world_rank()
        say("sum", total.item(), context().get_world_size(), context().get_local_rank())
        say(collective.broadcast_from_rank_zero({"of": rank}))
        say(collective.broadcast_from_rank_zero(("no JSON", rank)))
        collective.barrier()
        say(minitrain.get_preemption_info())
        minitrain.report({"step": 0, "rank": rank})
        report(1)
        report(2, CheckpointUploadMode.ASYNC)
        say([one.checkpoint.path[-1] for one in minitrain.get_all_reported_checkpoints()])
        return "value"

    def failing():
        report(0)
        if context().get_world_rank() == 1:
            raise ValueError("of rank 1")
        collective.barrier()

    def endless():
        step = first_step()
        while True:
            minitrain.report({"step": step})
            step += 1

    result = fit(train, trainer=TorchTrainer)
    rank = os.environ["RANK"]
    tell(rank, result.metrics["step"], result.checkpoint.path, result.return_value)
    try:
        fit(failing, "second")
    except minitrain.TrainingFailedError as error:
        tell(rank, "ValueError: of rank 1" in str(error))
    result = fit(endless, "second", stop={"step": 3})  # a run that is not over goes on
    tell(rank, result.metrics["step"], result.path, result.error)
    """
    )
    assert script.wait() == 0, script.output
    for rank in range(2):
        assert lines(script, rank) == [
            f"sum 2.0 2 {rank}",
            "{'of': 0}",
            "('no JSON', 0)",
            "None",
            "['0', '1']",
            f"2 {tmp_path}/run/checkpoint_000001 {None if rank else 'value'}",
            "True",
            f"3 {tmp_path}/second None",
        ], script.output
    assert "num_workers=7: not heeded here" in script.output
    rows = Result.from_path(tmp_path / "second").metrics_dataframe
    assert list(rows["step"]) == [0, 1, 2, 3]
    assert not (tmp_path / "second" / "error.txt").exists()
    result = Result.from_path(tmp_path / "run")
    assert list(result.metrics_dataframe["rank"].dropna()) == [0], "the rows are rank 0's"
    assert list(result.metrics_dataframe["step"]) == [0, 1, 2]
    assert {path.name for path in tmp_path.glob("run/checkpoint_*/step_*")} == {"step_0", "step_1"}
    for rank in range(2):
        log = (tmp_path / "run" / "logs" / "attempt_0" / f"rank_{rank}.log").read_text()
        assert "sum 2.0 2" in log
    assert [worker["rank"] for worker in record(tmp_path)["attempts"][0]["workers"]] == [0, 1]
    assert (record(tmp_path)["status"], record(tmp_path, "second")["status"]) == (
        "finished",
        "stopped",
    )


@pytest.mark.campaign
def test_what_torchrun_starts_again_goes_on_with_the_run(torchrun, tmp_path):
    script = torchrun(
        TRAIN
        + """
    def train():
        first = first_step()
        say("from", first, "restarts", os.environ["TORCHELASTIC_RESTART_COUNT"])
        for step in range(first, 6):
            report(step)
            if step == 3 and first == 0 and context().get_world_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    def again():
        say("second", first_step())

    one = fit(train, name=None)
    two = fit(again, name=None)
    tell(os.environ['RANK'], one.path != two.path, one.metrics["step"])
    """,
        options=("--max-restarts=1",),
    )
    assert script.wait() == 0, script.output
    for rank in range(2):
        assert lines(script, rank) == [
            "from 0 restarts 0",
            "from 4 restarts 1",
            "second 0",
            "True 5",
        ], script.output
    (run, _) = sorted(tmp_path.glob("DataParallelTrainer_*"))
    rows = [json.loads(line) for line in (run / "result.json").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["training_iteration"] for row in rows] == list(range(1, 7))
    attempts = record(tmp_path, run.name)["attempts"]
    assert [attempt["world_size"] for attempt in attempts] == [2, 2]
    assert attempts[1]["outcome"] == "returned"


@pytest.mark.campaign
def test_a_run_that_was_over_before_the_restart_is_not_trained_again(torchrun, tmp_path):
    script = torchrun(
        TRAIN
        + """
    def first():
        say("first")
        report(0)

    def second():
        say("second", first_step())
        report(first_step())
        if minitrain.get_context().get_world_rank() == 1 and first_step() == 1:
            raise ValueError("once")

    one, two = fit(first, "one"), fit(second, "two")
    tell(os.environ['RANK'], one.metrics["step"], two.metrics["step"])
    """,
        options=("--max-restarts=1",),
    )
    assert script.wait() == 0, script.output
    for rank in range(2):
        assert lines(script, rank) == ["first", "second 0", "second 1", "0 1"], script.output
    assert not (tmp_path / "one_1").exists()


FAILING = (
    TRAIN
    + """
    def train():
        first = first_step()
        say("from", first)
        for step in range(first, 4):
            report(step)
            if step == 1 and first == 0 and context().get_world_rank() == int(sys.argv[1]):
                raise ValueError("of rank " + sys.argv[1])
        collective.barrier()

    fit(train)
    tell(0, "done")
    """
)


@pytest.mark.campaign
@pytest.mark.parametrize("guilty", [0, 1])
def test_without_a_launcher_to_restart_it_a_failed_run_goes_on_under_its_name(
    guilty, start_ranks, by_hand, tmp_path
):
    """As in a pod of Kubernetes, which is told nothing of the one before it."""
    ranks = start_ranks(FAILING, str(guilty), environ_of=by_hand)
    assert [rank.wait() for rank in ranks] == [1, 1], [rank.output for rank in ranks]
    own, other = ranks[guilty].output, ranks[1 - guilty].output
    assert f"Training failed: rank {guilty} on" in own
    assert f"ValueError: of rank {guilty}" in own
    assert f"ValueError: of rank {guilty}" in other
    assert record(tmp_path)["status"] == "failed"
    error = (tmp_path / "run" / "error.txt").read_text()
    assert f"rank {guilty} on" in error
    assert "raise ValueError" in error, "the user's own line"
    assert Result.from_path(tmp_path / "run").error is not None
    again = start_ranks(FAILING, str(guilty), environ_of=by_hand)
    assert [rank.wait() for rank in again] == [0, 0], [rank.output for rank in again]
    assert lines(again[1], 1)[0] == "from 2"
    assert record(tmp_path)["status"] == "finished"
    assert not (tmp_path / "run" / "error.txt").exists()


PREEMPTED = (
    TRAIN
    + """
    def train():
        first = first_step()
        for step in range(first, first + 3 if first else 1_000_000):
            info = minitrain.get_preemption_info()
            if info is not None:
                report(step)
                say("told", info.preempted_ranks)
                return
            minitrain.report({"step": step})
            say("step", step)
            time.sleep(0.01)

    fit(train)
    """
)


@pytest.mark.campaign
@pytest.mark.parametrize("told", [1, 0])
def test_sigterm_for_any_rank_tells_all_and_ends_the_run_in_a_way_that_goes_on(
    told, start_ranks, by_hand, tmp_path
):
    ranks = start_ranks(PREEMPTED, environ_of=by_hand)
    ranks[0].wait_for("step 3")
    ranks[told].process.send_signal(signal.SIGTERM)
    codes = [rank.wait() for rank in ranks]
    assert codes == [PreemptionError.EXIT_STATUS] * 2, [rank.output for rank in ranks]
    for number, rank in enumerate(ranks):
        assert "told [0, 1]" in lines(rank, number)
        assert "Traceback" not in rank.output
    assert record(tmp_path)["status"] == "preempted"


@pytest.mark.campaign
def test_a_rank_that_is_killed_ends_the_others_also_without_a_launcher(
    start_ranks, by_hand, tmp_path
):
    ranks = start_ranks(PREEMPTED, environ_of=by_hand)
    ranks[0].wait_for("step 3")
    os.kill(ranks[1].process.pid, signal.SIGKILL)
    assert ranks[0].wait() == 1, ranks[0].output
    assert "rank 1 on" in ranks[0].output
    assert "the process is gone" in ranks[0].output
    assert record(tmp_path)["status"] == "failed"


@pytest.mark.campaign
def test_when_rank_0_is_killed_the_others_say_so(start_ranks, by_hand):
    ranks = start_ranks(PREEMPTED, environ_of=by_hand)
    ranks[1].wait_for("step 3")
    os.kill(ranks[0].process.pid, signal.SIGKILL)
    assert ranks[1].wait() == 1, ranks[1].output
    assert "the store through which ranks speak to each other is gone" in ranks[1].output


def slurm(rank):
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }


def open_mpi(rank):
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"prterun-{os.getpid()}@1",
    }


@pytest.mark.campaign
@pytest.mark.parametrize("environ_of", [slurm, open_mpi])
def test_in_processes_of_schedulers_libraries_find_torchruns_variables(
    environ_of, start_ranks, tmp_path
):
    ranks = start_ranks(
        TRAIN
        + """
    def train():
        import torch.distributed as dist

        names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"
        say(*[os.environ[name] for name in names], os.environ["GLOO_SOCKET_IFNAME"])
        dist.barrier()
        minitrain.report({"a": 1})

    for number in range(5):  # all in one store
        fit(train, trainer=TorchTrainer)
    """,
        environ_of=environ_of,
    )
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    for number, rank in enumerate(ranks):
        assert lines(rank, number) == [f"{number} 2 {number} 2 0 lo"] * 5
    assert record(tmp_path)["launch"].endswith("/0")
    assert record(tmp_path, "run_4")["status"] == "finished"


@pytest.mark.campaign
def test_a_run_that_is_kept_elsewhere_is_the_same(start_ranks, by_hand, tmp_path):
    ranks = start_ranks(
        TRAIN
        + """
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    os.environ["MINITRAIN_CACHE"] = str(folder / "cache")
    elsewhere = SubTreeFileSystem(str(folder / "elsewhere"), LocalFileSystem())
    (folder / "elsewhere").mkdir(exist_ok=True)

    def train():
        first = first_step()
        say("from", first, type(context().get_storage().storage_filesystem).__name__)
        for step in range(first, first + 2):
            report(step)
        if first == 0:
            raise ValueError("once")

    def run():
        config = RunConfig(name="run", storage_path="runs", storage_filesystem=elsewhere)
        return DataParallelTrainer(train, run_config=config).fit()

    try:
        run()
    except minitrain.TrainingFailedError as error:
        tell(os.environ['RANK'], str(error).splitlines()[0][:16])
    result = run()
    tell(os.environ['RANK'], result.metrics["step"], result.path, result.checkpoint.path)
    """,
        environ_of=by_hand,
    )
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    for number, rank in enumerate(ranks):
        assert lines(rank, number)[0] == "from 0 SubTreeFileSystem"
        assert lines(rank, number)[2:] == [
            "from 2 SubTreeFileSystem",
            "3 runs/run runs/run/checkpoint_000003",
        ]
    assert not list((tmp_path / "cache").iterdir())
    folder = tmp_path / "elsewhere" / "runs"
    assert record(folder)["status"] == "finished"
    assert (folder / "run" / "logs" / "attempt_1" / "rank_1.log").exists()


@pytest.mark.campaign
def test_a_backend_of_ones_own_finds_out_what_its_functions_return_elsewhere(
    start_ranks, by_hand, tmp_path
):
    ranks = start_ranks(
        TRAIN
        + """
    from minitrain.backend import Backend, BackendConfig

    class Ring(Backend):
        def on_start(self, workers, config):
            pids = workers.execute(os.getpid)
            first = workers.execute_single(1, lambda: [context().get_world_rank()])
            os.environ["RING"] = f"{len(workers)} {len(set(pids))} {first}"

    class RingConfig(BackendConfig):
        backend_cls = Ring

    def train():
        say(os.environ["RING"])

    config = RunConfig(name="run", storage_path=folder)
    DataParallelTrainer(train, backend_config=RingConfig(), run_config=config).fit()
    """,
        environ_of=by_hand,
    )
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    for number, rank in enumerate(ranks):
        assert lines(rank, number) == ["2 2 [1]"]
