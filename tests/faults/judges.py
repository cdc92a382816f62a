"""The judgements that cases are made of. Each looks at what was seen, and raises ``Violated``."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.points import PUSHPROX
from tests.faults.seen import CLOSED, Judge, Seen, Violated, expect
from tests.faults.target import HttpSource
from tests.wire import Reply

SCRAPE_TIMEOUT = "X-Prometheus-Scrape-Timeout-Seconds"


def all_of(*judges: Judge) -> Judge:
    def judge(seen: Seen) -> None:
        for one in judges:
            one(seen)

    return judge


def first(judge: Judge) -> Judge:
    """Of what was answered to the first request."""
    return lambda seen: judge(replace(seen, turns=seen.turns[:1]))


def shown(reply: Reply) -> str:
    """A reply in a few words."""
    ended = "" if reply.complete else f", cut by {reply.ended}"
    return f"{reply.status} with {len(reply.body)} bytes{ended}"


# What the scraper got


def served(seen: Seen) -> None:
    """The page, whole, with its headers."""
    for reply in seen.last:
        expect(reply.status == 200 and reply.complete, f"{shown(reply)} instead of the page")
        expect(reply.body == seen.target.page.body, f"another body than the exporter's: {shown(reply)}")
        expect(not seen.target.is_ours or reply.error is None, f"the error header says {reply.error}")


def refused(status: int, *reasons: str) -> Judge:
    """A whole answer with this status; the daemon's own has one of the reasons, too."""

    def judge(seen: Seen) -> None:
        for reply in seen.last:
            expect(reply.status == status and reply.complete, f"{shown(reply)} instead of a {status}")
            _expect_reason(seen, reply, reasons)

    return judge


def refused_like(status: int, *reasons: str) -> Judge:
    """As ``refused``; where the status is not the point, others may have another of its hundred."""

    def judge(seen: Seen) -> None:
        if seen.target.is_ours:
            refused(status, *reasons)(seen)
        for reply in seen.last:
            is_alike = reply.complete and reply.status // 100 == status // 100
            expect(is_alike, f"{shown(reply)} instead of a {status}")

    return judge


def failed(status: int, *reasons: str) -> Judge:
    """As ``refused_like``, or a 200 that is visibly cut; of others, a connection that ends says enough."""

    def judge(seen: Seen) -> None:
        if not seen.target.is_ours and seen.turns[-1] == [CLOSED]:
            return
        if any(reply.status != 200 for reply in seen.last):
            refused_like(status, *reasons)(seen)
        for reply in seen.last:
            expect(not reply.complete or reply.status != 200, f"{shown(reply)}, ended as if it were whole")

    return judge


def _expect_reason(seen: Seen, reply: Reply, reasons: tuple[str, ...]) -> None:
    if seen.target.is_ours and reasons:
        expect(reply.error in reasons, f"its reason is {reply.error} instead of {' or '.join(reasons)}")


def passed(status: int, *headers: tuple[str, str], body: bytes | None = None) -> Judge:
    """The exporter's own status, headers and body; ``None``: the page."""

    def judge(seen: Seen) -> None:
        wanted = seen.target.page.body if body is None else body
        for reply in seen.last:
            expect(reply.status == status and reply.complete, f"{shown(reply)} instead of the {status}")
            expect(reply.body == wanted, f"another body than the exporter's: {shown(reply)}")
        has(*headers)(seen)

    return judge


def has(*headers: tuple[str, str]) -> Judge:
    """Each header as often, with the values and in the order that these have."""

    def judge(seen: Seen) -> None:
        for reply in seen.last:
            for name, _ in headers:
                wanted = [value for other, value in headers if other.lower() == name.lower()]
                found = reply.get_all(name)
                expect(found == wanted, f"{name} is {_list(found)} instead of {_list(wanted)}")

    return judge


def lacks(*names: str) -> Judge:
    """None of these headers reach the scraper."""

    def judge(seen: Seen) -> None:
        for reply in seen.last:
            found = [name for name in names if reply.get_all(name)]
            expect(not found, f"{_list(found)} reaches the scraper")

    return judge


def has_length(seen: Seen) -> None:
    """HEAD says how long the page is."""
    if isinstance(seen.target.source, HttpSource):
        has(("Content-Length", str(len(seen.target.page.body))))(seen)


def no_1xx(seen: Seen) -> None:
    for reply in seen.last:
        statuses = ", ".join(map(str, reply.informational))
        expect(not statuses, f"{statuses} reaches the scraper")


def one_framing(seen: Seen) -> None:
    """A length or chunks, and not both."""
    for reply in seen.last:
        lines = reply.get_all("content-length") + reply.get_all("transfer-encoding")
        expect(len(lines) <= 1, f"both framings reach the scraper: {_list(lines)}")


def closed(seen: Seen) -> None:
    """Others may only say so: nginx reads on for a while, lest its answer be lost by a reset."""
    says_so = any((reply.header("connection") or "").lower() == "close" for reply in seen.last)
    expect(seen.is_closed or (says_so and not seen.target.is_ours), "the connection is kept open after it")


def in_time(seen: Seen) -> None:
    """Before the scraper gives up."""
    announced = seen.target.announced_seconds
    ended = ", ".join(one if isinstance(one, str) else shown(one) for one in seen.turns[-1])
    took = f"{ended} after {seen.took_seconds:.1f} s, to a scraper that waits {announced:g} s"
    expect(seen.took_seconds < announced, took)


def after(at_least_seconds: float, at_most_seconds: float) -> Judge:
    def judge(seen: Seen) -> None:
        for reply in seen.last:
            took = reply.ended_after_seconds
            expect(
                at_least_seconds < took < at_most_seconds + reply.stalled_seconds,
                f"{shown(reply)} after {took:.2f} s instead of {at_least_seconds:g} to {at_most_seconds:g} s",
            )

    return judge


def left(seen: Seen) -> None:
    expect(seen.was_left, "a second after the scraper left, the exporter still works on its answer")


# What the exporter got


def unread(seen: Seen) -> None:
    """A request's body is not taken on, nor waited for; others may refuse what has one."""
    for reply in seen.last:
        is_refused = 400 <= reply.status < 500 and not seen.target.is_ours
        expect(is_refused or reply.body == seen.target.page.body, f"{shown(reply)} instead of the page")
    expect(not seen.says_more, "what is in the body is answered")
    if isinstance(seen.target.source, HttpSource):
        expect(len(seen.requests) <= 1, f"the exporter was asked {len(seen.requests)} times")
        expect(not any(request.body for request in seen.requests), "the body reaches the exporter")


def untouched(seen: Seen) -> None:
    expect(not seen.target.source.asked, "the exporter was asked")


def asked(times: int) -> Judge:
    def judge(seen: Seen) -> None:
        found = seen.target.source.asked
        expect(found == times, f"the exporter was asked {found} times instead of {times}")

    return judge


def host_is_its_own(seen: Seen) -> None:
    found = seen.request.get_all("host")
    expect(found == [seen.target.exporter_host], f"the exporter sees Host: {_list(found)}")


def told_less_than(announced_seconds: float) -> Judge:
    """The exporter learns how long its answer may take: what is left of this."""

    def judge(seen: Seen) -> None:
        found = seen.request.get_all(SCRAPE_TIMEOUT)
        is_less = len(found) == 1 and 0 < float(found[0]) < announced_seconds
        expect(is_less, f"of {announced_seconds:g} s, the exporter is told {_list(found)}")

    return judge


def target_is(target: bytes) -> Judge:
    def judge(seen: Seen) -> None:
        found = seen.request.target
        expect(found == target, f"the exporter is asked for {_short(found)} instead of {_short(target)}")

    return judge


def exporter_sees(*headers: tuple[str, str]) -> Judge:
    """These headers, unchanged; lines of one name may have been made one."""

    def judge(seen: Seen) -> None:
        for name in {name for name, _ in headers}:
            wanted = ", ".join(value for other, value in headers if other == name)
            found = ", ".join(seen.request.get_all(name))
            expect(found == wanted, f"the exporter sees {name}: {found or 'none'}, instead of {wanted}")

    return judge


def exporter_lacks(*names: str) -> Judge:
    """None of these headers reach the exporter."""

    def judge(seen: Seen) -> None:
        found = [name for name in names if seen.request.get_all(name)]
        expect(not found, f"{_list(found)} reaches the exporter")

    return judge


def exporter_sees_only(*names: str) -> Judge:
    """No others but these, Host, and what a proxy says about its own connection."""
    known = {name.lower() for name in names} | {"host"}

    def judge(seen: Seen) -> None:
        for name, value in seen.request.headers:
            own = name == "connection" and value.lower() in ("close", "keep-alive")
            expect(name in known or own, f"{name}: {value} reaches the exporter")

    return judge


def unless_pushprox(judge: Judge) -> Judge:
    """What only holds where the answer goes out on the daemon's own connection."""

    def judged(seen: Seen) -> None:
        if seen.target.way != PUSHPROX:
            judge(seen)

    return judged


def if_ours(judge: Judge) -> Judge:
    """What is the daemon's own invention: others are not held to it."""

    def judged(seen: Seen) -> None:
        if seen.target.is_ours:
            judge(seen)

    return judged


def either(judge: Judge, other: Judge) -> Judge:
    """One of both; where neither holds, what the first one says."""

    def judged(seen: Seen) -> None:
        try:
            judge(seen)
        except Violated as violated:
            try:
                other(seen)
            except Violated:
                raise violated from None

    return judged


def _list(values: list[str]) -> str:
    return ", ".join(values) or "none"


def _short(target: bytes) -> str:
    text = target.decode("latin-1")
    return text if len(text) < 60 else f"{text[:57]}..."
