"""Bring a framework of your own: k-means in numpy, with an all-reduce over a ring of sockets.

    python examples/custom_backend.py

minitrain knows nothing of this framework, and torch has no part in it. What a framework needs is
a `BackendConfig`, which says what its settings are, and a `Backend`, which says what is done
around the train function: here, connecting the workers to a ring before, and closing the sockets
after. In between, each worker assigns its share of scikit-learn's handwritten digits to the
nearest centres and the ring adds up the sums. Pixels are whole numbers, whose sums are exact: the
centres must be those of one process with all the data, to the last bit.
"""

import select
import socket
import sys
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

import minitrain
from minitrain import ScalingConfig
from minitrain.backend import Backend, BackendConfig
from minitrain.trainer import DataParallelTrainer

NUM_WORKERS = 3
NUM_CLUSTERS = 10
MAX_ROUNDS = 100


# ---------------------------------------------------------------- the framework
class Ring:
    """Connects a worker with the next one, to which it sends, and the previous one.

    Args:
        rank: Of this worker.
        size: The number of workers.
        timeout_s: How long the neighbours may keep it waiting.
    """

    def __init__(self, rank, size, timeout_s):
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._next = self._previous = None

    def connect(self, addresses):
        """Connect to the next worker; all of them listen already, so that none must wait."""
        self._next = socket.create_connection(
            addresses[(self.rank + 1) % self.size], self.timeout_s
        )
        self._listener.settimeout(self.timeout_s)
        self._previous, _ = self._listener.accept()
        self._listener.close()
        self._next.settimeout(0)
        self._previous.settimeout(0)

    def close(self):
        for end in (self._listener, self._next, self._previous):
            if end is not None:
                end.close()

    def all_reduce(self, array):
        """Return the sum of the arrays of all workers.

        A chunk travels round the ring and grows by each worker's part until it is whole; the
        whole chunks then travel on to everybody else. Every worker sends less than twice the
        array, however many there are.
        """
        chunks = np.array_split(array.ravel().copy(), self.size)
        for step in range(self.size - 1):
            part = self._exchange(chunks, sent=self.rank - step)
            chunks[(self.rank - step - 1) % self.size] += part
        for step in range(self.size - 1):
            whole = self._exchange(chunks, sent=self.rank + 1 - step)
            chunks[(self.rank - step) % self.size][:] = whole
        return np.concatenate(chunks).reshape(array.shape)

    def _exchange(self, chunks, sent):
        """Send a chunk on and return the one before it, which the previous worker sends."""
        outgoing = memoryview(chunks[sent % self.size].tobytes())
        expected = chunks[(sent - 1) % self.size]
        received = bytearray(expected.nbytes)
        incoming = memoryview(received)
        while outgoing or incoming:  # both at once: if all only sent, all would wait for ever
            readable, writable, _ = select.select(
                [self._previous] if incoming else [],
                [self._next] if outgoing else [],
                [],
                self.timeout_s,
            )
            if not readable and not writable:
                raise TimeoutError(f"no neighbour of rank {self.rank} did anything")
            if writable:
                outgoing = outgoing[self._next.send(outgoing) :]
            if readable:
                count = self._previous.recv_into(incoming)
                if count == 0:
                    raise ConnectionError(f"the worker before rank {self.rank} is gone")
                incoming = incoming[count:]
        return np.frombuffer(received, dtype=expected.dtype)


ring = None  # of this worker process


def listen(timeout_s):
    global ring  # noqa: PLW0603 - a worker is a process of its own
    context = minitrain.get_context()
    ring = Ring(context.get_world_rank(), context.get_world_size(), timeout_s)
    return ring.address


def connect(addresses):
    ring.connect(addresses)


def hang_up():
    global ring  # noqa: PLW0603 - a worker is a process of its own
    if ring is not None:
        ring.close()
        ring = None


@dataclass
class RingConfig(BackendConfig):
    """The framework's settings: how long a worker waits for its neighbours."""

    timeout_s: float = 30.0

    @property
    def backend_cls(self):
        return RingBackend


class RingBackend(Backend):
    """What the driver does around the train function."""

    def on_start(self, worker_group, backend_config):
        addresses = worker_group.execute(listen, backend_config.timeout_s)
        worker_group.execute(connect, addresses)

    def on_shutdown(self, worker_group, backend_config):  # noqa: ARG002 - this one needs no settings
        worker_group.execute(hang_up)


# ---------------------------------------------------------------- k-means with it
def first_centres(images):
    chosen = np.random.default_rng(0).choice(len(images), NUM_CLUSTERS, replace=False)
    return images[chosen]


def assign(images, centres):
    """Return the nearest centre of every image and the squared distance to it."""
    distances = ((images[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1)


def k_means(images, centres, all_reduce, report):
    """Move every centre to the mean of its images, of all workers, until none moves."""
    for _ in range(MAX_ROUNDS):
        nearest, distances = assign(images, centres)
        members = np.eye(len(centres))[nearest]
        sums = np.column_stack([members.T @ images, members.sum(axis=0)])
        total = all_reduce(sums)
        counts = np.maximum(total[:, -1:], 1)
        moved = np.where(total[:, -1:] > 0, total[:, :-1] / counts, centres)
        shift = np.abs(moved - centres).max()
        report({"inertia": all_reduce(distances.sum(keepdims=True))[0], "shift": shift})
        centres = moved
        if shift == 0:
            return centres
    return centres


def train():
    images = load_digits().data
    context = minitrain.get_context()
    mine = images[context.get_world_rank() :: context.get_world_size()]
    return k_means(mine, first_centres(images), ring.all_reduce, minitrain.report)


def main():
    trainer = DataParallelTrainer(
        train,
        backend_config=RingConfig(timeout_s=20.0),
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
    )
    result = trainer.fit()

    digits = load_digits()
    alone = []
    centres = k_means(digits.data, first_centres(digits.data), np.copy, alone.append)
    nearest, _ = assign(digits.data, result.return_value)
    counts = [np.bincount(digits.target[nearest == cluster]) for cluster in range(NUM_CLUSTERS)]
    purity = sum(count.max() for count in counts if len(count)) / len(nearest)

    same = np.array_equal(result.return_value, centres)

    print(f"""{NUM_WORKERS} workers on a ring, against one process:
  rounds    {len(result.metrics_dataframe)}, {len(alone)}
  inertia   {result.metrics["inertia"]:.6g}, {alone[-1]["inertia"]:.6g}
  centres   {"the same, to the last bit" if same else "NOT the same"}
In a cluster, {purity:.1%} of the images are the same digit.
Every round is a row of {result.path}/progress.csv""")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    # What a script defines is sent to workers by value, each time with variables of its own. A
    # framework keeps its state in a module that workers import: so does this file.
    import custom_backend

    custom_backend.main()
