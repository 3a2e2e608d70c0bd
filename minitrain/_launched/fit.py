"""``fit()`` where another launcher has started the processes: each of them is its rank.

Rank 0 makes the run's directory and does what the driver does elsewhere; restarts are the
launcher's, and go on from the newest checkpoint.
"""

from __future__ import annotations

import os
import pickle
import queue
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitrain import _env
from minitrain._driver.controller import shut_down
from minitrain._driver.home import Home, newest_record
from minitrain._driver.job import Job
from minitrain._driver.local import heeding_sigterm, installed, logged, note_end
from minitrain._driver.run import (
    Ending,
    result_if_over,
    result_of,
    set_up_console,
    take_up,
    with_datasets,
    write_ending,
)
from minitrain._driver.starting import start_order
from minitrain._driver.traffic import Traffic
from minitrain._launched.follower import Follower
from minitrain._launched.leader import Leader, status_of
from minitrain._launched.letters import Present, RunTold
from minitrain._launched.meeting import Mail, answer, gather, refuse
from minitrain._launched.post import Post
from minitrain._launched.runs import find_run, location_of, make_run, name_of_launch
from minitrain._launched.session import LaunchedSession, packed
from minitrain._launched.surroundings import completed, own_gpus, reachable, settle
from minitrain._launched.workers import EveryRank
from minitrain._logging import logger
from minitrain._os.launchers import Launched, detect
from minitrain._session import StopTraining, context_of
from minitrain._storage.arrow import ArrowDisk
from minitrain._storage.disk import LocalDisk
from minitrain._storage.layout import RunLayout
from minitrain._storage.record import Attempt, RunRecord
from minitrain._storage.run_storage import RunStorage
from minitrain._wire.messages import Place, Returned, Train
from minitrain.exceptions import ControllerError
from minitrain.result import Result

__all__ = ["fit", "launched_by_others"]

_launched: Launched | None = None
_owner_pid = 0
_num_runs = 0


def launched_by_others() -> Launched | None:
    """Return what another launcher says of this process; None if none has started it.

    It is asked once: afterwards the variables also hold what was filled in here.

    Raises:
        ConfigurationError: The launcher says too little, or nonsense.
    """
    global _launched, _owner_pid
    if _owner_pid != os.getpid():
        found = detect(os.environ)
        _launched, _owner_pid = reachable(found) if found is not None else None, os.getpid()
    return _launched


def fit(job: Job, restored: Home | None, launched: Launched) -> Result:
    """Do this rank's part of a job, or go on with it.

    Args:
        job: What to do, the same in all ranks.
        restored: Where the run is that goes on; None for a new one, or one that is looked for.
        launched: Which rank this is.

    Raises:
        ConfigurationError: It cannot be done here; nothing was trained.
        LaunchError: There is no way from rank to rank.
        TrainingFailedError: It failed, in this rank or another one.
        PreemptionError: The machine is being taken away.
        KeyboardInterrupt: The user pressed Ctrl-C; what was reported is kept.
    """
    global _num_runs  # noqa: PLW0603 - all ranks count the same
    _env.check()
    set_up_console(job)
    post = Post(launched, _num_runs)
    launch = name_of_launch(launched, _num_runs)
    _num_runs += 1
    with closing(post):
        if launched.rank == 0:
            return _lead(job, restored, launched, launch, post)
        return _follow(job, restored, launched, post)


# ---------------------------------------------------------------- rank 0
def _lead(job: Job, restored: Home | None, launched: Launched, launch: str, post: Post) -> Result:
    mail: Mail = queue.SimpleQueue()
    post.listen(
        lambda sender, message: mail.put((sender, message)), lambda error: mail.put((0, error))
    )
    try:
        outcome = _lead_all(job, restored, launched, launch, post, mail)
    except BaseException as error:
        reason = error if isinstance(error, Exception) else ControllerError(repr(error))
        with suppress(ControllerError):
            refuse(post, mail, launched.world_size, reason)
        raise
    if isinstance(outcome, BaseException):
        raise outcome.with_traceback(None)  # it tells where this rank happened to be
    return outcome


def _lead_all(
    job: Job, restored: Home | None, launched: Launched, launch: str, post: Post, mail: Mail
) -> Result | BaseException:
    """Return what came of the run; raise what kept it from being one."""
    peers = gather(post, mail, launched, _folder(job, restored, launched))
    home = restored or find_run(job, launched, launch)
    if home is not None and (over := result_if_over(home, job.sync)) is not None:
        _tell(post, _told(home, newest_record(home), None, peers, {}))
        return over
    job = with_datasets(job)  # every rank does it for itself
    job.datasets.say_what_is_dropped(launched.world_size)
    if home is None:
        home = make_run(job, launched, launch)
        record = RunRecord.load(home.layout)
    else:
        record = take_up(job, home)
        record.launch = launch
        job = replace(job, run_id=record.run_id)
    launched = _at_home(launched, peers)
    _say_who_decides(job, launched, home)
    gpus = own_gpus(job.scaling, launched)
    return _lead_run(_Run(job, home, launched, gpus, post), record, post, mail, peers)


def _folder(job: Job, restored: Home | None, launched: Launched) -> str | None:
    """Return the directory of this host that the other ranks must see."""
    if restored is not None:
        return restored.storage.root if restored.storage.is_local else None
    location = location_of(job, launched)
    return location.root if location.is_local else None


def _at_home(launched: Launched, peers: tuple[Present, ...]) -> Launched:
    """Return all there is to know of this rank, and make it known to libraries."""
    complete = completed(launched, peers)
    settle(complete, peers)
    return complete


def _say_who_decides(job: Job, launched: Launched, home: Home) -> None:
    size, failures = launched.world_size, job.failures
    logger.info(
        "%s: %d processes of %s, results in %s", home.name, size, launched.kind, home.storage.root
    )
    ours = []
    if job.scaling.num_workers != size:
        ours.append(f"num_workers={job.scaling.num_workers}")
    if failures.max_failures:
        ours.append(f"max_failures={failures.max_failures}")
    if failures.hang_timeout_s is not None:
        ours.append(f"hang_timeout_s={failures.hang_timeout_s:g}")
    if ours:
        logger.info(
            "%s: not heeded here: %s has started the processes, and starts them again",
            ", ".join(ours),
            launched.kind,
        )


def _tell(post: Post, letter: RunTold) -> None:
    for rank in range(1, len(letter.peers)):
        post.send(rank, letter)
    post.flush()


def _told(
    home: Home,
    record: RunRecord,
    order: Train | None,
    peers: tuple[Present, ...],
    layouts: dict[str, str],
) -> RunTold:
    """Return what others must know; without an order there is nothing to train."""
    checkpoint = pickle.loads(order.checkpoint) if order and order.checkpoint else None
    folder, _, name = checkpoint.path.rpartition("/") if checkpoint else ("", "", "")
    return RunTold(
        name=home.name,
        run_id=record.run_id,
        root=home.storage.root,
        home=str(home.layout.root),
        is_local=home.storage.is_local,
        is_over=order is None,
        attempt=len(record.attempts) - 1,
        checkpoint=name if folder == home.storage.root else None,
        iterations=order.iterations if order else 0,
        time_total_s=order.time_total_s if order else 0.0,
        peers=peers,
        positions=dict(order.positions) if order else {},
        layouts=layouts,
    )


def _lead_run(
    run: _Run, record: RunRecord, post: Post, mail: Mail, peers: tuple[Present, ...]
) -> Result | BaseException:
    job, home = run.job, run.home
    record.attempts.append(Attempt(len(peers), workers=_processes(peers)))
    home.layout.logs(len(record.attempts) - 1).mkdir(parents=True, exist_ok=True)
    ending = Ending("failed")
    with closing(Traffic(job, home, record, waits=False, pack=packed)) as traffic:
        traffic.save_record()
        leader = Leader(job, home, record, traffic, post, peers)
        traffic.begin(leader)
        order = start_order(job, home, traffic.checkpoints)
        _tell(post, _told(home, record, order, peers, job.datasets.layouts()))
        with leader.serving(mail):
            ending = _train_and_lead(run, leader, order, len(record.attempts) - 1)
            note_end(record.attempts[-1], ending.error)
            traffic.end_attempt()
            if ending.error is None and traffic.stopped:
                ending = replace(ending, status="stopped")
            write_ending(home, job.sync, record, ending)
            if ending.error is None:
                leader.say_over(ending.status)
            run.shut_down()
            leader.await_farewells()
    if ending.error is not None:
        logger.info("%s: %s; what it left is in %s", home.name, ending.status, home.storage.root)
        return ending.error
    return result_of(home, ending)


def _processes(peers: tuple[Present, ...]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "pid": peer.pid, "hostname": peer.hostname}
        for rank, peer in enumerate(peers)
    ]


def _train_and_lead(run: _Run, leader: Leader, order: Train, attempt: int) -> Ending:
    try:
        with heeding_sigterm(
            run.job.failures.preemption_grace_s, leader.take_sigterm, leader.grace_is_over
        ):
            _, value = run.train(leader, order, attempt)
            leader.await_others()
    except BaseException as raised:  # noqa: BLE001 - also SystemExit: the rank did not return
        error = leader.fail(raised)
        return Ending(status_of(error), error)
    return Ending("finished", return_value=value)


# ---------------------------------------------------------------- every other rank
def _follow(job: Job, restored: Home | None, launched: Launched, post: Post) -> Result:
    mail: Mail = queue.SimpleQueue()
    follower = Follower(launched.rank, post, mail)
    post.listen(follower.take, follower.lose)
    told = answer(post, mail, launched)
    follower.join(told.root, told.peers)
    home = Home(told.name, RunLayout(Path(told.home)), _storage(job, restored, launched, told))
    if told.is_over:
        return Result._of(home.storage)  # noqa: SLF001 - its own package
    job = replace(job, run_id=told.run_id)
    launched = _at_home(launched, told.peers)
    run = _Run(job, home, launched, own_gpus(job.scaling, launched), post)
    try:
        with heeding_sigterm(
            job.failures.preemption_grace_s, follower.take_sigterm, follower.grace_is_over
        ):
            run.job = with_datasets(job)
            run.job.datasets.check_layouts(told.layouts)
            session, _ = run.train(follower, _order(job, home, told), told.attempt)
            follower.send(Returned(session.num_reports, None))
            ended = follower.await_end()
    except BaseException as raised:  # noqa: BLE001 - also SystemExit: the rank did not return
        error = follower.fail(raised, str(home.layout.log(told.attempt, launched.rank)))
        run.shut_down()
        raise error.with_traceback(None) from error.__cause__
    run.shut_down()
    follower.leave()
    try:
        return Result._of(home.storage)  # noqa: SLF001 - its own package
    except (OSError, ValueError):  # what lies on rank 0's host, say
        return Result(ended.row, None, None, told.root)


def _storage(job: Job, restored: Home | None, launched: Launched, told: RunTold) -> RunStorage:
    """Return the run's storage as this rank reaches it: filesystems do not travel."""
    if told.is_local:
        return RunStorage(LocalDisk(told.root))
    if restored is not None:
        return RunStorage(ArrowDisk(restored.storage.filesystem, told.root))
    filesystem = location_of(job, launched).filesystem
    assert filesystem is not None, "rank 0 has another storage_path"
    return RunStorage(ArrowDisk(filesystem, told.root))


def _order(job: Job, home: Home, told: RunTold) -> Train:
    checkpoint = job.resume_from
    if told.checkpoint is not None:
        checkpoint = home.storage.checkpoint(told.checkpoint)
    pickled = pickle.dumps(checkpoint) if checkpoint is not None else None
    return Train(pickled, told.iterations, told.time_total_s, positions=told.positions)


# ---------------------------------------------------------------- all of them
class _Run:
    """A rank's part of a run.

    Args:
        job: What to do.
        home: The run's directories.
        launched: Which rank this is.
        gpus: Its own.
        post: The way to other ranks.
    """

    def __init__(
        self, job: Job, home: Home, launched: Launched, gpus: tuple[int, ...], post: Post
    ) -> None:
        self.job = job
        self.home = home
        self._rank = launched.rank
        self._backend = job.backend_config.backend_cls()
        self._workers = EveryRank(launched.rank, launched.world_size, job.resources, post)
        self._facts = job.facts(home)
        assert launched.local_rank is not None
        assert launched.local_world_size is not None
        assert launched.node_rank is not None
        place = Place(
            launched.rank,
            launched.world_size,
            launched.local_rank,
            launched.local_world_size,
            launched.node_rank,
        )
        self._context = context_of(self._facts, place, working_dir=str(Path.cwd()), gpus=gpus)

    def train(
        self, inbox: Leader | Follower, order: Train, attempt: int
    ) -> tuple[LaunchedSession, Any]:
        """Run the train function; return its session and what it returned."""
        session = LaunchedSession(inbox, self._context, self._facts, order, self.job.datasets)
        with installed(self._context, session), self._logged(attempt), closing(session):
            value = self._call()
            session.settle()
        return session, value

    def _call(self) -> Any:
        config = self.job.backend_config
        self._backend.on_start(self._workers, config)
        self._backend.on_training_start(self._workers, config)
        with config.train_func_context(), suppress(StopTraining):
            return self.job.function(*self.job.arguments)

    def _logged(self, attempt: int) -> AbstractContextManager[None]:
        """Write what is printed to the run's directory, if that can be seen from here."""
        log = self.home.layout.log(attempt, self._rank)
        return logged(log) if log.parent.is_dir() else nullcontext()

    def shut_down(self) -> None:
        """Let the backend end its own."""
        shut_down(self._backend, self._workers, self.job.backend_config)
