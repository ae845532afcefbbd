"""The error of one process ends all processes, on all machines, and rank 0 prints it. Loads no torch.

Each process has a TCP connection to rank 0. It carries the message of an error. It breaks if the process is killed.
"""

import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
import traceback
from typing import Protocol

from runtime.errors import InputError
from runtime.ranks import rank, world_size
from runtime.script import error_message

START_SECONDS = 300  # until all processes have started
END_SECONDS = 10  # until a process ends whose main thread waits or computes
_READY, _GO, _DONE, _FAILED = b"ready\n", b"g", b"d", b"f"


class ProcessError(InputError):
    """Another process has ended, or cannot be reached."""


class Store(Protocol):
    """The part of torch's TCPStore that is used here. `get` waits for the key."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


class ErrorChannel:
    """The connections between rank 0 and the other processes. Made in the main thread, which is ended by SIGUSR1."""

    def __init__(self, store: Store) -> None:
        self._program, self._stderr = os.path.basename(sys.argv[0]), sys.stderr
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}  # at rank 0: all other ranks; elsewhere: rank 0
        self._ready_ranks: set[int] = set()
        self._all_connected, self._all_ready = threading.Event(), threading.Event()
        self._has_failed = threading.Event()  # an error is reported, so this process ends without a message
        self._is_closed = threading.Event()
        self._earlier_handler = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(2))
        if rank() == 0:
            token = secrets.token_hex(16)
            self._server = _listening_socket()
            store.set("error_channel", f"{token} {_own_address()} {self._server.getsockname()[1]}")
            _start_thread(self._accept, token.encode())
        else:
            try:
                token, host, port = store.get("error_channel").decode().split()
            except RuntimeError:  # of torch
                raise ProcessError(f"process 0 has not started within {START_SECONDS} s; see its output") from None
            try:
                self._peers[0] = socket.create_connection((host, int(port)), timeout=START_SECONDS)
            except OSError as error:
                raise ProcessError(f"process 0 at {host}:{port} cannot be reached ({error})") from None
            self._peers[0].settimeout(None)
            _keep_alive(self._peers[0])
            self._peers[0].sendall(f"{token} {rank()} {socket.gethostname()}\n".encode())
            _start_thread(self._follow_rank_zero)

    def wait_for_all(self) -> None:
        """Waits until all processes call this. Raises ProcessError after `START_SECONDS`."""
        if rank() == 0:
            self._add_ready(0)
        else:
            self._send(_READY)
        if not self._all_ready.wait(START_SECONDS):
            raise ProcessError(
                f"not all processes have started within {START_SECONDS} s; see the output of each machine"
            )

    def report(self, error: BaseException) -> bool:
        """Ends all processes because of an error. Returns whether this process prints the error itself.

        Rank 0 prints its own error. The other processes send theirs to rank 0, unless it ends in the next second:
        usually it has the same error.
        """
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._has_failed.wait(3 if isinstance(error, ProcessError) else 1 if rank() > 0 else 0)
        if rank() == 0:
            self._all_connected.wait(END_SECONDS)  # after an error in the flags
            prints = self._claim()
            self._send(_FAILED)
            return prints
        if not self._has_failed.is_set():
            self._send(_described(error).encode("utf-8", "replace"))
            with contextlib.suppress(OSError):
                self._peers[0].shutdown(socket.SHUT_WR)
            self._has_failed.wait(END_SECONDS)
        return not self._has_failed.is_set()

    def close(self, is_done: bool) -> None:
        """Ends the connections. `is_done`: this process has ended without an error."""
        with self._lock:
            self._is_closed.set()
        signal.signal(signal.SIGUSR1, self._earlier_handler)
        if is_done:
            self._send(_DONE)
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        if rank() == 0:
            self._server.close()

    def _send(self, message: bytes) -> None:
        for peer in [*self._peers.values()]:
            with contextlib.suppress(OSError):
                peer.sendall(message)

    def _accept(self, token: bytes) -> None:
        """A thread of rank 0. The token keeps connections from outside the job out."""
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                _start_thread(self._follow, connection, token)

    def _follow(self, connection: socket.socket, token: bytes) -> None:
        """A thread of rank 0 for each of the other processes."""
        _keep_alive(connection)
        message = b""
        with connection.makefile("rb") as stream:
            hello = stream.readline(1000).split()
            if len(hello) != 3 or not secrets.compare_digest(hello[0], token):
                return connection.close()
            number, host = int(hello[1]), hello[2].decode()
            self._peers[number] = connection
            if len(self._peers) == world_size() - 1:
                self._all_connected.set()
            with contextlib.suppress(OSError):  # its machine cannot be reached
                first_line = stream.readline()
                if first_line == _READY:
                    self._add_ready(number)
                    first_line = b""
                message = first_line + stream.read()
        if message == _DONE:
            return
        if not message:
            self._is_closed.wait(1)  # torchrun may be ending this process too
            message = b"it ended without an error message, or cannot be reached; see torchrun's output there"
        start = f"{self._program}: error: process {number} on {host}: "
        if self._claim("\n" * self._stderr.isatty() + start + message.decode("utf-8", "replace")):
            self._send(_FAILED)
            self._end_main()

    def _add_ready(self, number: int) -> None:
        with self._lock:
            self._ready_ranks.add(number)
            if len(self._ready_ranks) == world_size():
                self._send(_GO)
                self._all_ready.set()

    def _follow_rank_zero(self) -> None:
        """A thread of the other processes."""
        try:
            told = self._peers[0].recv(1)
            if told == _GO:
                self._all_ready.set()
                told = self._peers[0].recv(1)
        except OSError:
            told = b""
        if told == _DONE or (not told and self._is_closed.wait(1)):
            return
        if not told and os.environ["LOCAL_RANK"] == "0":
            print(f"{self._program}: error: process 0 has ended without an error message", file=self._stderr)
        self._has_failed.set()
        self._end_main()

    def _claim(self, message: str = "") -> bool:
        """Prints a message if no error is reported yet. Returns whether this is the first one."""
        with self._lock:
            is_first = not self._has_failed.is_set() and not self._is_closed.is_set()
            self._has_failed.set()
            if is_first and message:
                print(message, file=self._stderr, flush=True)
        return is_first

    def _end_main(self) -> None:
        """Raises SystemExit in the main thread. If that waits for a GPU or for an ended process, ends the process."""
        with self._lock:
            if self._is_closed.is_set():
                return
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        if not self._is_closed.wait(END_SECONDS):
            os._exit(2)


def _described(error: BaseException) -> str:
    if isinstance(error, (InputError, OSError)):
        return error_message(error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "stopped by a signal"
    return "".join(traceback.format_exception(error)).rstrip()


def _start_thread(function, *args: object) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _listening_socket() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 is turned off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    return socket.create_server(("", 0), backlog=1000)


def _own_address() -> str:
    """Returns the address at which the other machines reach this process, which has rank 0.

    It is that of the network in which MASTER_ADDR is. Usually MASTER_ADDR is this machine.
    """
    master = os.environ["MASTER_ADDR"]
    for family, *_, address in socket.getaddrinfo(master, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing; fails if there is no IPv6
            own = probe.getsockname()[0]
            return master if ipaddress.ip_address(own).is_loopback else own
    return master


def _keep_alive(connection: socket.socket) -> None:
    """Lets the connection break within half a minute if the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds_or_count in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds_or_count)
