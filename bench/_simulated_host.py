"""What a transport starts on a simulated host: it gives its standard streams to the one process
that plays the agents of all hosts, and lasts as long as the agent does.

Nothing is imported that need not be, since there are a thousand of these at once.
"""

import _socket
import posix
import sys

STREAMS = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1))

agents = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
agents.connect(sys.argv[1])
agents.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, STREAMS)])
for stream in (0, 1):
    posix.close(stream)
agents.recv(1)
