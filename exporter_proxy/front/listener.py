"""Listening sockets: who is let in, in which order that is asked, and what if nothing is left.

Connections are accepted here rather than by the event loop's server, so that the address
rule and the connection limit come before the TLS handshake, and so that running out of file
descriptors is something to recover from.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time

from exporter_proxy.access import is_allowed, plain_address
from exporter_proxy.front.protocol import ScraperProtocol
from exporter_proxy.front.refusal import MAX_REFUSALS_AT_ONCE, RefusingProtocol
from exporter_proxy.front.sockets import Bound
from exporter_proxy.front.state import FrontState
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Denied, Reason

ACCEPT_AT_ONCE = 64
"""Connections accepted before the loop turns to others again."""
RETRY_SECONDS = 0.2
RECOVERED_SECONDS = 1.0
ROOM_AT_LEAST = 8
"""Idle connections closed at once when descriptors run out; or a quarter of all, if that is more."""
TELL_SECONDS = 10.0
LEAST_HANDSHAKE_SECONDS = 0.1
"""For who begins at the last moment: the event loop takes no handshake without any time."""
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Listener:
    """One listening socket."""

    def __init__(self, bound: Bound, state: FrontState) -> None:
        self.bound = bound
        self.socket = bound.socket
        self._state = state
        self._turn_began_at = 0.0
        """When the loop last came round to this socket: who was let in since has had no chance to ask."""
        self._telling: set[asyncio.Task[None]] = set()
        self._is_short = False
        """Whether descriptors have run out, and that they have not any more is still to be said."""
        self._retry: asyncio.TimerHandle | None = None
        self._recovery: asyncio.TimerHandle | None = None
        """Runs while the last shortage is not long enough ago to be over."""
        self._told_at = -TELL_SECONDS
        self._untold = 0

    @property
    def address(self) -> str:
        """``host:port`` as bound, the port that the kernel chose included, or ``unix:/path``."""
        return str(self.bound.address)

    def start(self) -> None:
        """Begin to accept."""
        self._state.loop.add_reader(self.socket.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more. Who has been accepted goes on."""
        for timer in (self._retry, self._recovery):
            if timer is not None:
                timer.cancel()
        if self.socket.fileno() >= 0:
            self._state.loop.remove_reader(self.socket.fileno())
            self.bound.close()

    def give_up(self) -> None:
        """Drop those who are being told why they are not let in."""
        for task in self._telling:
            task.cancel()

    def _accept(self) -> None:
        self._turn_began_at = time.monotonic()
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, peer = self.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(error)
                return
            connection.setblocking(False)
            self._admit(connection, peer[0] if isinstance(peer, tuple) else None)

    def _pause(self, error: OSError) -> None:
        """Out of file descriptors: make room and come back, rather than spin on a readable socket."""
        loop = self._state.loop
        loop.remove_reader(self.socket.fileno())
        for _ in range(max(ROOM_AT_LEAST, len(self._state.connections) // 4)):
            if not self._make_room():
                break
        if self._recovery is not None:
            self._recovery.cancel()
        self._retry = loop.call_later(RETRY_SECONDS, self._resume)
        if not self._is_short:
            self._is_short = True
            self._state.log.error(
                "cannot accept connections for now",
                error=error.strerror,
                hint="raise LimitNOFILE or lower max_connections",
            )

    def _resume(self) -> None:
        """Only from now on may it be over: a late loop would else say so before it has tried again."""
        self.start()
        self._recovery = self._state.loop.call_later(RECOVERED_SECONDS, self._say_recovered)

    def _say_recovered(self) -> None:
        self._is_short = False
        self._state.log.info("accepting connections again", address=self.address)

    def _admit(self, connection: socket.socket, host: str | None) -> None:
        """``host`` is the peer's; ``None`` for a unix socket's, for whom its mode has decided."""
        state = self._state
        limits = state.limits
        address = None if host is None else plain_address(host)
        remote = "unix" if address is None else str(address)
        if not is_allowed(address, limits.allow_clients):
            self._refuse(
                connection, Denied(Reason.FORBIDDEN, f"{remote} may not scrape here (allow_clients)"), remote
            )
            return
        if len(state.admitted) >= limits.max_connections and not self._make_room():
            denied = Denied(
                Reason.CONNECTION_LIMIT, f"{limits.max_connections} connections are in use (max_connections)"
            )
            self._refuse(connection, denied, remote)
            return
        accepted_at = time.monotonic()
        protocol = ScraperProtocol(state, address, accepted_at, limits.allow_clients)
        task = state.loop.create_task(self._serve(connection, protocol, accepted_at))
        state.admitted.enter(protocol, task)
        task.add_done_callback(lambda done: _close_if_not_begun(done, connection))

    async def _serve(self, connection: socket.socket, protocol: ScraperProtocol, accepted_at: float) -> None:
        state = self._state
        context = state.ssl_context  # a reload may bring or end TLS while the client has yet to speak
        try:
            left_seconds = None
            if context is not None:
                left_seconds = await _wait_for_hello(connection, state.limits.read_header_timeout_seconds)
            await state.loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=left_seconds,
            )
        except (OSError, asyncio.CancelledError) as error:
            connection.close()
            if protocol in state.connections:
                # Given up in the very turn in which it was established: uvloop tells nobody of its end.
                protocol.connection_lost(None)
            denied = _handshake_problem(error)
            if denied is None:
                state.log.debug("connection not established", error=repr(error))
            else:
                state.record_denial(denied, Exchange(protocol.remote, "", b"", b"", accepted_at))
                self._tell_of_handshake(denied, protocol.remote)

    def _tell_of_handshake(self, denied: Denied, remote: str) -> None:
        """The client is told by TLS alone, which says little; too many lines would say no more."""
        now = time.monotonic()
        if now - self._told_at < TELL_SECONDS:
            self._untold += 1
            return
        more = {"more_since_the_last_line": self._untold} if self._untold else {}
        self._state.log.info("TLS handshake failed", remote=remote, error=denied.message, **more)
        self._told_at, self._untold = now, 0

    def _make_room(self) -> bool:
        """Close whoever has idled longest without a complete request.

        Not one of this turn: the kernel says that descriptors are out before it looks whether anyone
        waits, so the last one to fit in would always be the one to go.
        """
        return self._state.admitted.close_longest_idle(before=self._turn_began_at)

    def _refuse(self, connection: socket.socket, denied: Denied, remote: str) -> None:
        state = self._state
        state.record_denial(denied, Exchange(remote, "", b"", b"", time.monotonic()))
        if state.ssl_context is not None or state.refusals_open + len(self._telling) >= MAX_REFUSALS_AT_ONCE:
            # No handshake for someone who is not let in: that is the costly part.
            connection.close()
            return
        task = state.loop.create_task(self._tell(connection, denied))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        task.add_done_callback(lambda done: _close_if_not_begun(done, connection))

    async def _tell(self, connection: socket.socket, denied: Denied) -> None:
        try:
            await self._state.loop.connect_accepted_socket(
                lambda: RefusingProtocol(self._state, denied), connection
            )
        except (OSError, asyncio.CancelledError):
            connection.close()


def _close_if_not_begun(task: asyncio.Task[None], connection: socket.socket) -> None:
    """One that is cancelled before its first step has no chance to do it itself."""
    if task.cancelled():
        connection.close()


async def _wait_for_hello(connection: socket.socket, timeout_seconds: float) -> float:
    """Wait until a client begins its handshake; how much of the time is left for the rest of it.

    TLS has buffers of some 300 KiB for each connection. A crowd that says nothing is not to have them.
    Raises ConnectionAbortedError, as the event loop does where a handshake takes too long, and
    ConnectionResetError where the client left.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_seconds
    while not _has_spoken(connection):
        if loop.time() >= until:
            raise ConnectionAbortedError
        readable = loop.create_future()
        loop.add_reader(connection.fileno(), _set_once, readable)
        timer = loop.call_at(until, _set_once, readable)
        try:
            await readable
        finally:
            timer.cancel()
            loop.remove_reader(connection.fileno())
    return max(until - loop.time(), LEAST_HANDSHAKE_SECONDS)


def _has_spoken(connection: socket.socket) -> bool:
    """Raises ConnectionResetError where it has left without a word, and other OSErrors."""
    try:
        if not connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError
    except BlockingIOError:
        return False
    return True


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _handshake_problem(error: BaseException) -> Denied | None:
    """What a failed TLS handshake counts as; ``None`` where the client just left, or we closed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Denied(Reason.UNAUTHORIZED, f"the client's certificate: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return Denied(
                Reason.UNAUTHORIZED, "the client showed no certificate (client_auth_type wants one)"
            )
        if error.reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):
            return Denied(Reason.BAD_REQUEST, "the client does not speak TLS; it should use https://")
        return Denied(Reason.BAD_REQUEST, f"{error.reason or error}")
    if isinstance(error, ConnectionAbortedError):  # the event loop's word for a handshake that takes too long
        return Denied(Reason.HEADER_TIMEOUT, "not complete within read_header_timeout")
    return None
