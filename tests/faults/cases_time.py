"""Points 20 to 24: who leaves, who is asked again, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fakes.exporter import (
    Action,
    Script,
    chunk,
    close,
    drip,
    head,
    pause,
    reset,
    send,
    stall,
)
from tests.faults.case import (
    FILES_ARE_THERE,
    NO_HTTP,
    NOT_UNIX,
    PUSHPROX_WAITS,
    Case,
    Exporter,
    Reasons,
    Sends,
    get,
    whole,
)
from tests.faults.judges import (
    SCRAPE_TIMEOUT,
    after,
    all_of,
    asked,
    failed,
    first,
    in_time,
    left,
    refused,
    refused_like,
    served,
)
from tests.faults.points import COMMAND, FILE, PUSHPROX
from tests.faults.seen import Judge, Seen
from tests.faults.target import HURRIED, HURRIED_SECONDS, VOID, Page, Target

DRIP_SECONDS, DRIPS = 0.1, 25
"""Longer than any scraper here waits, and never so long without a byte that a read would time out."""
NO_CONNECT: Reasons = {FILE: "nothing is connected to", COMMAND: "nothing is connected to"}


def hurried(target: Target) -> bytes:
    """A scrape that has to be over soon."""
    return target.get((SCRAPE_TIMEOUT, f"{target.announced_seconds:g}"))


def announcing(seconds: str, **options: str) -> Sends:
    return get((SCRAPE_TIMEOUT, seconds), **options)


# What the exporter does


def opens(page: Page) -> bytes:
    """The head, and a first chunk."""
    return head(200, [*page.headers, ("Transfer-Encoding", "chunked")]) + chunk(page.half)


def then_stalls(page: Page) -> Sequence[Script]:
    return [[send(opens(page)), stall()]]


def never_answers(page: Page) -> Sequence[Script]:
    return [[stall()]]


def drips_head(page: Page) -> Sequence[Script]:
    return [[drip(opens(page)[:DRIPS], DRIP_SECONDS), stall()]]


def drips_1xx(page: Page) -> Sequence[Script]:
    return [[send(head(102, [])), pause(DRIP_SECONDS)] * DRIPS + [stall()]]


def drips_body(page: Page) -> Sequence[Script]:
    start = head(200, [*page.headers, ("Content-Length", str(len(page.body) + DRIPS))])
    return [[send(start), drip(page.body[:DRIPS], DRIP_SECONDS), stall()]]


def drips_chunks(page: Page) -> Sequence[Script]:
    return [[send(opens(page)), *[send(chunk(b"x")), pause(DRIP_SECONDS)] * DRIPS, stall()]]


def pours_and_drips(page: Page) -> Sequence[Script]:
    """More than anybody holds back, and then a byte now and then."""
    pour = send(opens(page) + chunk(b"x" * 2_000_000))
    return [[pour, *[send(chunk(b"x")), pause(DRIP_SECONDS)] * DRIPS, stall()]]


def later(seconds: float) -> Exporter:
    return lambda page: [[pause(seconds), *whole(page)[0]]]


def after_a_page(*scripts: Script) -> Exporter:
    """The page; then these; then the page again."""
    return lambda page: [*whole(page), *scripts, *whole(page)]


# Cases of one kind


def leaves(name: str, exporter: Exporter, command: str) -> Case:
    return Case(
        20,
        name,
        left,
        exporter=exporter,
        scene=Seen.leave,
        command=command,
        not_for={**FILES_ARE_THERE, **PUSHPROX_WAITS},
    )


def stale(name: str, end: Action) -> Case:
    """Closed while it was kept, as after the exporter's restart: the scrape succeeds all the same."""
    judge = all_of(first(served), served, asked(3))
    return Case(21, name, judge, exporter=after_a_page([end]), scene=Seen.ask_twice, not_for=NO_HTTP)


def not_again(name: str, judge: Judge, times: int, exporter: Exporter, twice: bool = True) -> Case:
    scene = Seen.ask_twice if twice else Seen.ask
    return Case(21, name, all_of(judge, asked(times)), exporter=exporter, scene=scene, not_for=NO_HTTP)


def endless(name: str, judge: Judge, exporter: Exporter, command: str = "") -> Case:
    """A byte now and then: it has to end in time all the same."""
    not_for = FILES_ARE_THERE if command else NO_HTTP
    return Case(22, name, all_of(judge, in_time), hurried, exporter, command=command, not_for=not_for)


def nonsense(value: str) -> Case:
    """It is ignored, and the exporter's own timeout holds."""
    judge = all_of(refused(504, "timeout"), after(HURRIED_SECONDS - 0.02, HURRIED_SECONDS + 1.5))
    return Case(
        23,
        f"ignored: {value}",
        judge,
        announcing(value, route=HURRIED),
        never_answers,
        command="exec sleep 30",
        not_for={**FILES_ARE_THERE, PUSHPROX: "the PushProx proxy itself reads that header"},
    )


NO_ANSWER = refused(504, "timeout")
LATE = refused_like(504, "timeout")
CUT = failed(504, "timeout")

TIME_CASES = (
    leaves("before an answer", never_answers, "exec sleep 30"),
    leaves("within the body", then_stalls, "cat $HALF; exec sleep 30"),
    stale("closed", close()),
    stale("reset", reset()),
    not_again("no second retry", refused(502, "connect"), 3, after_a_page([close()], [close()])),
    not_again(
        "not on a fresh one", refused(502, "connect"), 1, lambda page: [[close()], *whole(page)], twice=False
    ),
    not_again(
        "not once it has answered",
        refused(502, "connect", "protocol"),
        2,
        after_a_page([send(b"HTTP/1.1 2"), pause(0.05), close()]),
    ),
    endless("a head that drips", LATE, drips_head),
    endless("1xx without end", LATE, drips_1xx),
    endless(
        "a body that drips",
        CUT,
        drips_body,
        f'i=0; while [ $i -lt {DRIPS} ]; do echo "x{{i=\\"$i\\"}} 1"; i=$((i+1)); sleep {DRIP_SECONDS}; done',
    ),
    endless("chunks that drip", CUT, drips_chunks),
    endless("2 MB, then drips", CUT, pours_and_drips),
    Case(
        22,
        "a connection that hangs",
        all_of(LATE, in_time),
        lambda target: target.get((SCRAPE_TIMEOUT, f"{target.announced_seconds:g}"), route=VOID),
        not_for={**NO_CONNECT, **NOT_UNIX},
    ),
    Case(
        23,
        "before Prometheus gives up",
        all_of(NO_ANSWER, in_time),
        hurried,
        never_answers,
        command="exec sleep 30",
        not_for=FILES_ARE_THERE,
    ),
    Case(
        23,
        "not before it has to be",
        served,
        announcing("8"),
        later(0.8),
        command="sleep 0.8; cat $PAGE",
        not_for=FILES_ARE_THERE,
    ),
    Case(
        23,
        "a smaller one of the exporter's",
        all_of(NO_ANSWER, after(HURRIED_SECONDS - 0.02, HURRIED_SECONDS + 1.5)),
        announcing("5", route=HURRIED),
        never_answers,
        command="exec sleep 30",
        not_for=FILES_ARE_THERE,
    ),
    *(nonsense(value) for value in ("abc", "0", "nan")),
    Case(
        24,
        "before the headers",
        NO_ANSWER,
        hurried,
        never_answers,
        command="exec sleep 30",
        not_for=FILES_ARE_THERE,
    ),
    Case(
        24,
        "after them",
        CUT,
        hurried,
        then_stalls,
        command="cat $HALF; exec sleep 30",
        not_for=FILES_ARE_THERE,
    ),
)
