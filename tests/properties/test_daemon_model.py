"""A daemon in a process of its own, asked, left, reloaded and signalled in any order.

After each step it has counted what the model says, and at the end nothing is left: no scrape in
flight, no connection, no descriptor, no process; and it stops with status 0.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.daemon import STARTED, wait_until
from tests.properties.conftest import MINUTES
from tests.properties.daemon_model import (
    AT_ONCE,
    DEAD,
    PAGES,
    WAITING,
    Said,
)
from tests.properties.driven_daemon import CONNECTIONS_AT_MOST, EXPORTERS, Client, DrivenDaemon, one_of
from tests.properties.many_exporters import CUT, failed

BAD_CONFIGS = {
    "exporters: [\n": 1,
    "exporters: {x: {url: 'ftp://h'}}\n": 1,
    "": 1,
    'listen: ":0"\nunknown: 1\n': 2,
}
"""How many problems each has."""
MALFORMED = (
    b"GET /plain/metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /plain/metrics HTTP/1.1\r\n\r\n",
    b"\x00\x01\x02\r\n\r\n",
    b"GET /plain/metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
)
MEANINGLESS = (signal.SIGCONT, signal.SIGPIPE, signal.SIGWINCH, signal.SIGCHLD)
SAID = st.one_of(
    st.builds(
        Said,
        exporter=st.sampled_from([*AT_ONCE, "large", "dead", "shared", "file", "command", "nowhere"]),
        method=st.sampled_from(["GET", "GET", "GET", "POST"]),
        token=st.sampled_from(["right", "right", "right", "wrong", "none"]),
        param=st.sampled_from(["", "", "", "x=1"]),
        variant=st.integers(0, 2),
    ),
    st.builds(
        Said,
        exporter=st.sampled_from(["plain", "gzip", "error", "dead", "garbage", "file", "command"]),
        method=st.just("HEAD"),
    ),
    st.builds(
        Said,
        path=st.sampled_from([*PAGES]),
        method=st.sampled_from(["GET", "HEAD", "POST"]),
        token=st.sampled_from(["right", "right", "wrong", "none"]),
    ),
)
# More often those for which it matters what others do.
LASTING = st.builds(
    Said, exporter=st.sampled_from([*WAITING, "limited", "limited", "flown"]), variant=st.integers(0, 1)
)
IMPATIENT = st.builds(
    Said, exporter=st.sampled_from(WAITING), variant=st.integers(0, 1), is_impatient=st.just(True)
)
"""Never sent ahead: while it waits for its turn its time runs."""
PICK = st.integers(0, CONNECTIONS_AT_MOST - 1)


class DaemonMachine(DrivenDaemon):
    """One daemon from its start to its end."""

    @initialize(is_tls=st.booleans(), ending=st.sampled_from(["quiet", "in flight", "cut"]))
    def start(self, is_tls: bool, ending: str) -> None:
        self.ending = ending
        self.set_up(is_tls)

    @precondition(lambda self: len(self.clients) < CONNECTIONS_AT_MOST)
    @rule()
    def connects(self) -> None:
        self.clients.append(Client(self.connect()))

    @precondition(lambda self: self.idle() or len(self.clients) < CONNECTIONS_AT_MOST)
    @rule(pick=PICK, said=SAID)
    def asks_once(self, pick: int, said: Said) -> None:
        self.say(self.idle_one(pick), [said])

    @precondition(lambda self: self.idle() or len(self.clients) < CONNECTIONS_AT_MOST)
    @rule(pick=PICK, said=LASTING | LASTING | IMPATIENT)
    def begins_a_scrape(self, pick: int, said: Said) -> None:
        self.say(self.idle_one(pick), [said])

    @precondition(lambda self: len(self.clients) < CONNECTIONS_AT_MOST - 1)
    @rule(said=st.sampled_from([Said("limited"), Said("flown")]), count=st.integers(2, 3))
    def several_begin_scrapes(self, said: Said, count: int) -> None:
        for _ in range(count):
            if self.idle() or len(self.clients) < CONNECTIONS_AT_MOST:
                self.say(self.idle_one(CONNECTIONS_AT_MOST), [said])

    @precondition(lambda self: self.idle() or len(self.clients) < CONNECTIONS_AT_MOST)
    @rule(pick=PICK, several=st.lists(SAID | LASTING, min_size=2, max_size=4))
    def asks_ahead(self, pick: int, several: list[Said]) -> None:
        self.say(self.idle_one(pick), several)

    @precondition(lambda self: self.idle() or len(self.clients) < CONNECTIONS_AT_MOST)
    @rule(pick=PICK, said=SAID, part=st.integers(1, 20))
    def sends_a_part(self, pick: int, said: Said, part: int) -> None:
        client = self.idle_one(pick)
        raw, ask = self.bytes_of(said)
        client.wire.send(raw[:part])
        client.unsent, client.ahead = raw[part:], [(said, ask)]

    @precondition(lambda self: any(client.unsent for client in self.clients))
    @rule(pick=PICK)
    def sends_the_rest(self, pick: int) -> None:
        client = one_of([client for client in self.clients if client.unsent], pick)
        client.wire.send(client.unsent)
        client.unsent = b""
        self.advance(client)

    @precondition(lambda self: self.idle() or len(self.clients) < CONNECTIONS_AT_MOST)
    @rule(pick=PICK, raw=st.sampled_from(MALFORMED))
    def sends_garbage(self, pick: int, raw: bytes) -> None:
        client = self.idle_one(pick)
        reply = client.wire.exchange(raw)
        assert (reply.status, reply.error, reply.header("connection")) == (400, "bad_request", "close")
        assert client.wire.closes_within(5)
        self.model.deny("bad_request")
        self.drop(client)

    @precondition(lambda self: self.trusting is None)  # a stopped daemon shakes no hands
    @rule(too_many=st.integers(0, 3))
    def a_crowd_comes(self, too_many: int) -> None:
        self.crowd_in(too_many)

    @precondition(lambda self: self.clients)
    @rule(pick=PICK, how=st.sampled_from(["close", "reset", "half-close"]))
    def leaves(self, pick: int, how: str) -> None:
        self.drop(one_of(self.clients, pick), how)

    @precondition(lambda self: self.waiting())
    @rule(pick=PICK, how=st.sampled_from(["close", "reset", "half-close"]))
    def leaves_the_queue(self, pick: int, how: str) -> None:
        self.drop(one_of(self.waiting(), pick), how)

    @precondition(lambda self: self.busy("gated", "limited", "flown"))
    @rule(pick=PICK)
    def exporter_goes_on(self, pick: int) -> None:
        self.let_go_on(one_of(self.busy("gated", "limited", "flown"), pick))

    @rule()
    def exporters_restart(self) -> None:
        cut = self.busy("gated", "limited")
        others = [(client, DEAD) for client in self.busy("stuck")]
        others += [(client, failed(502, "truncated")) for client in self.busy("flown")]
        self.exporters.restart()
        self.finish_all([(client, CUT) for client in cut] + others)

    @rule(
        what=st.sampled_from(["exporter", "exporter", "token", "address", "limits", "entries", "nothing"]),
        exporter=st.sampled_from(EXPORTERS),
        how=st.sampled_from(["SIGHUP", "POST", "PUT"]),
    )
    def reloads(self, what: str, exporter: str, how: str) -> None:
        changed = self.model.changed(what, exporter)
        self.daemon.write_config(self.config(changed))
        self.reload(how)
        self.model.apply(changed)

    @rule(text=st.sampled_from([*BAD_CONFIGS]), how=st.sampled_from(["SIGHUP", "POST"]))
    def reloads_what_is_bad(self, text: str, how: str) -> None:
        (self.daemon.directory / "config.yml").write_text(text)
        self.reload(how, BAD_CONFIGS[text])
        self.daemon.write_config(self.config(self.model.settings))

    @precondition(lambda self: self.trusting is not None)
    @rule(how=st.sampled_from(["SIGHUP", "POST", "the key is another's"]))
    def certificate_changes(self, how: str) -> None:
        if how in ("SIGHUP", "POST"):
            self.certificate = self.issue()
            self.reload(how)
            return
        key = self.site / "key.pem"
        right = key.read_bytes()
        key.write_bytes(self.authority.issue_cert("127.0.0.1").private_key_pem.bytes())
        self.reload("POST", problems=1)
        key.write_bytes(right)

    @rule(what=st.sampled_from([*MEANINGLESS, "log rotated"]))
    def something_else_happens(self, what: signal.Signals | str) -> None:
        if isinstance(what, signal.Signals):
            self.daemon.process.send_signal(what)
            return
        log = self.site / "access.log"
        if log.exists():  # it is made anew when there is something to write
            log.rename(self.site / f"access.log.{len(list(self.site.glob('access.log*')))}")
        self.reload("SIGHUP")

    # What holds after each step

    @invariant()
    def all_is_counted(self) -> None:
        if hasattr(self, "open_at_rest"):
            self.check_counts()
            self.exporters.expect_few_connections()

    # The end

    def teardown(self) -> None:
        with self.cleanup:
            if sys.exc_info()[0] is None and hasattr(self, "open_at_rest"):
                self.end()
                STARTED.remove(self.daemon)  # its log explains nothing any more

    def end(self) -> None:
        waiting = self.busy("gated") if self.ending == "in flight" else []
        if self.ending != "cut":
            for client in [client for client in self.clients if client not in waiting]:
                if client in self.clients:
                    self.drop(client)
            self.check_counts()
            self.check_all_is_served()
        if self.ending == "quiet":
            self.check_nothing_is_left()
        self.daemon.process.send_signal(signal.SIGTERM)
        self.daemon.wait_for_log("msg=stopping")
        if self.ending == "cut":
            self.daemon.process.send_signal(signal.SIGTERM)
        for client in waiting:
            assert client.scrape is not None
            assert client.scrape.held is not None
            client.scrape.held.gate.set()
            client.wire.read_reply().expect_ok(client.scrape.held.page)
            self.model.requests += 1
        assert self.daemon.process.wait(20) == 0
        for client in [*self.clients, self.watch]:
            client.wire.close()
        log = [line for line in self.daemon.log_lines if "Traceback" in line or "defect" in line]
        assert not log
        if self.ending != "cut":
            self.check_access_log()

    def check_all_is_served(self) -> None:
        """Each exporter once more, so that a slot that was lost on the way is missed."""
        for name in EXPORTERS:
            client = Client(self.connect())
            self.clients.append(client)
            self.say(client, [Said(name)])
            if client in self.busy("gated", "limited", "flown"):
                self.let_go_on(client)
            if client in self.clients:
                self.drop(client)
        self.check_counts()

    def check_nothing_is_left(self) -> None:
        self.exporters.restart()
        wait_until(lambda: self.descriptors() == self.open_at_rest, "descriptors were as at first", 10)
        children = Path(f"/proc/{self.daemon.process.pid}/task/{self.daemon.process.pid}/children")
        wait_until(lambda: not children.read_text(), "no process was left", 10)

    def check_access_log(self) -> None:
        lines = [
            json.loads(line) for log in self.site.glob("access.log*") for line in log.read_text().splitlines()
        ]
        assert len(lines) == self.model.requests


@pytest.mark.timeout(0 if MINUTES else 400)
def test_daemon_does_and_counts_what_the_model_says() -> None:
    # A daemon for each example: to shorten one that fails would take longer than to read it.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    run_state_machine_as_test(
        DaemonMachine,
        settings=settings(max_examples=10, stateful_step_count=40, deadline=None, phases=phases),
    )
