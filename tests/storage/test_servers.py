"""The storage servers that other tests break: they answer, die at once, and come back."""

from __future__ import annotations

import pytest
from pyarrow.fs import FileSystem, FileType

from minitrain._os.processes import is_alive
from tests import servers


def write(server, name: str, data: bytes) -> None:
    with server.filesystem().open_output_stream(server.path(name)) as stream:
        stream.write(data)


def test_what_is_written_can_be_read_by_uri(storage_server):
    write(storage_server, "here/file", b"123")
    filesystem, path = FileSystem.from_uri(storage_server.uri("here/file"))
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"123"


@pytest.mark.campaign
def test_a_killed_server_comes_back_on_its_ports_with_its_data(storage_server):
    write(storage_server, "kept", b"123")
    (pid,) = servers.server_pids() & {storage_server._process.pid}
    ports = storage_server.ports
    storage_server.kill()
    assert not is_alive(pid)
    assert pid not in servers.server_pids()
    storage_server.start_again()
    assert storage_server.ports == ports
    info = storage_server.filesystem().get_file_info(storage_server.path("kept"))
    assert (info.type == FileType.File) is storage_server.keeps_data


@pytest.mark.campaign
def test_a_port_that_is_taken_is_replaced_by_another(tmp_path, monkeypatch, gcs):
    offered = iter([gcs.ports, servers._free_ports(1)])
    monkeypatch.setattr(servers, "_free_ports", lambda _number: next(offered))
    with servers.serving(servers.FakeGCS, tmp_path) as server:
        assert server.ports != gcs.ports
        assert server.filesystem().get_file_info(servers.BUCKET).type == FileType.Directory


def test_a_server_that_cannot_start_says_what_it_printed(tmp_path):
    class Broken(servers.FakeGCS):
        def command(self):
            return [*super().command(), "-no-such-option"]

    with pytest.raises(RuntimeError, match="no-such-option"), servers.serving(Broken, tmp_path):
        pass
