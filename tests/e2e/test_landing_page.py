"""The landing page in a real Chromium: what is seen, how it stays true, and what it can't be made to do.

Screenshots are left in pytest's temporary directory, for whoever wants to look at them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
import trustme

from tests.daemon import Daemon, wait_until
from tests.e2e.chromium import Chromium
from tests.fakes.exporter import PAGE, FakeExporter, pause, respond, wait_for
from tests.fakes.ports import refusing_port, reserved_port

# Chromium, its driver and the daemon share two cores with whatever else runs.
pytestmark = pytest.mark.timeout(300)

TAB = "\ue004"
MARKUP = b'<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\x1b[31m\xe2\x80\xae many\n'
NAMES = ("up", "down", "slow", "hostile", "flaky", "never")
ROW = """
    const row = [...document.querySelectorAll('#exporters tbody tr')].find(
        (row) => row.querySelector('th a')?.textContent === arguments[0]);
"""
GROUND_OF_SUMMARY = "return document.querySelector('#summary').className"
WIDTHS = (1200, 360)


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon with exporters of every kind: ``NAMES``; ``never`` is for one test to scrape."""

    daemon: Daemon
    slow_may_end: Event


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        up = stack.enter_context(FakeExporter(respond(body=PAGE * 500)))
        slow_may_end = Event()
        slow = stack.enter_context(
            FakeExporter([pause(2.6), *respond()], [wait_for(slow_may_end), *respond()])
        )
        hostile = stack.enter_context(FakeExporter(respond(body=MARKUP)))
        flaky = stack.enter_context(FakeExporter(*[respond()] * 3, respond(503), respond()))
        port = stack.enter_context(refusing_port())
        exporters = {
            "up": {"url": up.url()},
            "down": {"url": f"http://127.0.0.1:{port}/metrics"},
            "slow": {"url": slow.url(), "timeout": "5s"},
            "hostile": {"url": hostile.url(), "verify": True},
            "flaky": {"url": flaky.url()},
            "never": {"url": up.url()},
        }
        daemon = stack.enter_context(Daemon({"exporters": exporters}))
        daemon.get("/slow/metrics").expect_ok()
        for name in ("up", "down", "hostile", "flaky") * 6:
            daemon.get(f"/{name}/metrics")
        yield Site(daemon, slow_may_end)


def show(chromium: Chromium, site: Site) -> None:
    chromium.open(f"{site.daemon.url}/")
    chromium.wait_for_text("#summary", "fail")


def row_text(chromium: Chromium, name: str) -> list[str]:
    """The cells of an exporter's row, and of the one below it where there is one."""
    found = chromium.run(
        ROW + "const below = row.nextElementSibling;"
        "return [...row.cells, ...(below.hidden ? [] : below.cells)].map((cell) => cell.innerText)",
        name,
    )
    return [" ".join(str(text).split()) for text in found]


# -- What is seen


def test_every_state_is_shown(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    summary = chromium.text("#summary")
    assert "of 6 exporters fail: down (connect), hostile (malformed); slow: slow" in summary
    name, state, last, took, size, hour, _ = row_text(chromium, "up")
    assert (name, state, size, hour) == ("up /up/metrics", "up", "38.6 KiB", "100 % 6 of 6")
    assert re.fullmatch(r"\d+ s ago", last)
    assert re.fullmatch(r"[\d.]+ ms", took)
    down = row_text(chromium, "down")
    assert (down[1], down[4], down[5]) == ("down", "0 B", "0 % 0 of 6")
    assert re.fullmatch(
        r"connect: connection refused by \S+ after \S+ ms; is it running\? \(.*\) "
        r"start the exporter, or correct its url, file, tls or allow_upstreams; never succeeded",
        down[7],
        re.IGNORECASE,
    )
    slow = row_text(chromium, "slow")
    assert slow[1] == "slow"
    assert re.fullmatch(r"\d\.\d s of 5\.0 s", slow[3])
    assert row_text(chromium, "flaky")[5] == "83.3 % 5 of 6"
    assert "2 down" in chromium.run("return document.title")
    assert chromium.complaints() == []


def test_the_picture_has_a_bar_for_each_scrape(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    script = ROW + (
        "const count = (name) => row.querySelectorAll(`svg .${name}`).length;"
        "return [count('bar'), count('bar-failed'), row.querySelector('svg title').textContent]"
    )
    bars, failed, words = chromium.run(script, "flaky")
    assert (bars, failed) == (5, 2), "a failed scrape is drawn as an exclamation mark, of two pieces"
    assert re.fullmatch(r"6 recent scrapes, 1 failed, took [\d.]+ ms to [\d.]+ ms", words)


def test_the_daemon_is_described(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    shown = " ".join(chromium.text("#daemon").split())
    assert re.search(
        r"Version \S+ Configuration config\.yml, loaded \d+ s ago \(\S+Z\) Its hash [0-9a-f]{12} "
        r"Last reload succeeded Connections \d+ of at most 512",
        shown,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_it_fits_the_screen_in_both_schemes(
    chromium: Chromium, site: Site, tmp_path: Path, scheme: str, width: int
) -> None:
    chromium.resize(width)
    chromium.prefer(prefers_color_scheme=scheme)
    show(chromium, site)
    chromium.screenshot(tmp_path / f"{scheme}-{width}.png")
    assert chromium.sticking_out() == []
    assert chromium.run("return document.documentElement.scrollWidth") == width
    grounds = chromium.run(
        "return ['background-color', 'color'].map("
        "(name) => getComputedStyle(document.body).getPropertyValue(name))"
    )
    ground, text = (sum(map(int, re.findall(r"\d+", colour))) for colour in grounds)
    assert (ground > text) == (scheme == "light")


def test_motion_is_only_for_those_who_want_it(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    durations = []
    for preference in ("no-preference", "reduce"):
        chromium.prefer(prefers_reduced_motion=preference)
        durations.append(
            chromium.run(
                "return getComputedStyle(document.querySelector('#summary'))"
                ".transitionDuration.split(', ').map(parseFloat)"
            )
        )
    moving, still = durations
    assert max(moving) > 0
    assert max(still) == 0


def test_without_scripts_there_is_the_table(chromium: Chromium, site: Site) -> None:
    chromium.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(f"{site.daemon.url}/")
        chromium.wait_for_text("noscript pre", "2 of 6 exporters fail")
        assert "/flaky/metrics" in chromium.text("noscript pre")
    finally:
        chromium.devtools("Emulation.setScriptExecutionDisabled", value=False)


# -- How it stays true


def test_it_is_live(chromium: Chromium, site: Site) -> None:
    """A state changes, without the page being loaded anew, what has the focus losing it."""
    show(chromium, site)
    chromium.run(ROW + "row.querySelector('a').focus(); window.stillTheSamePage = row", "never")
    assert row_text(chromium, "never")[1] == "never scraped"
    said = chromium.text("#summary")
    assert "1 never scraped so far" in said
    site.daemon.get("/never/metrics").expect_ok()
    wait_until(lambda: row_text(chromium, "never")[1] == "up", "the page noticed", 15.0)
    assert "never scraped" not in chromium.text("#summary")
    assert chromium.run(
        ROW + "return row === window.stillTheSamePage && document.activeElement.textContent === 'never'",
        "never",
    )
    assert chromium.complaints() == []


def test_pause_and_go_on(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    state = "return document.querySelector('#pause').getAttribute('aria-pressed')"
    assert chromium.run(state) == "false"
    chromium.run("document.querySelector('#pause').click()")
    assert chromium.run(state) == "true"
    clicked = chromium.run(
        "const clicked = performance.now(); document.querySelector('#pause').click(); return clicked"
    )
    asked = (
        "return performance.getEntriesByType('resource').map((one) => one.startTime - arguments[0])"
        ".filter((after) => after >= 0)"
    )
    wait_until(lambda: bool(chromium.run(asked, clicked)), "it asked", 15.0)
    assert chromium.run(asked, clicked)[0] < 1000, "at once, and not when it is due again"


def test_a_daemon_that_is_gone_is_noticed_and_one_that_is_back_too(chromium: Chromium) -> None:
    with reserved_port() as port, FakeExporter() as exporter:
        config = {"listen": f"127.0.0.1:{port}", "exporters": {"x": {"url": exporter.url()}}}
        with Daemon(config) as daemon:
            chromium.open(f"{daemon.url}/")
            daemon.get("/x/metrics").expect_ok()
            chromium.wait_for_text("#summary", "The exporter answers")
            assert chromium.text("#trouble") == ""
            assert chromium.run(GROUND_OF_SUMMARY) == "up"
        chromium.wait_for_text("#trouble", "exporter_proxy does not answer")
        assert "answers" in chromium.text("#summary"), "what was known stays to be seen"
        assert chromium.run(GROUND_OF_SUMMARY) == "unknown", "but nothing says that all is well"
        with Daemon(config) as daemon:
            wait_until(lambda: chromium.text("#trouble") == "", "it was back", 15.0)
            daemon.get("/x/metrics").expect_ok()
            wait_until(lambda: chromium.run(GROUND_OF_SUMMARY) == "up", "all was well again", 15.0)
    chromium.complaints()


def test_a_failed_reload_is_seen_and_exporters_come_and_go(chromium: Chromium) -> None:
    with FakeExporter() as exporter:
        entry = {"url": exporter.url()}
        with Daemon({"exporters": {"a": entry, "b": entry}}) as daemon:
            chromium.open(f"{daemon.url}/")
            chromium.wait_for_text("#summary", "2 exporters")
            (daemon.directory / "config.yml").write_text("exporters: {c: {ulr: <b>x}}\n")
            daemon.reload()
            chromium.wait_for_text("#daemon", 'exporters.c.ulr: unknown key, did you mean "url"?')
            assert "the last reload failed" in chromium.text("#summary")
            listen = f"127.0.0.1:{daemon.port}"
            daemon.write_config({"listen": listen, "exporters": {"b": entry, "new": entry}})
            daemon.reload()
            chromium.wait_for_text("#exporters", "/new/metrics")
            names = chromium.run("return [...document.querySelectorAll('tbody th a')].map((a) => a.text)")
            assert names == ["b", "new"]
            assert "reload" not in chromium.text("#summary")
    assert chromium.complaints() == []


def test_a_certificate_that_is_due_is_seen(chromium: Chromium, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("prometheus@example.org", not_after=datetime.now(UTC) + timedelta(days=2.5))
    pem = str(tmp_path / "client.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(pem)
    entry = {"url": "https://127.0.0.1:1/metrics", "tls": {"cert_file": pem, "key_file": pem}}
    with Daemon({"exporters": {"x": entry}}) as daemon:
        chromium.open(f"{daemon.url}/")
        chromium.wait_for_text("#summary", "a certificate (exporter_client) expires within 3 d")
        assert re.search(r"renew exporter_client: until [\d-]{10}, 2 days left", chromium.text("#daemon"))
        assert chromium.run(GROUND_OF_SUMMARY) == "slow"
    assert chromium.complaints() == []


# -- For everybody


@pytest.mark.parametrize("width", WIDTHS)
def test_roles_and_names_are_those_of_a_table_with_a_status(
    chromium: Chromium, site: Site, width: int
) -> None:
    """What a screen reader is given; on a phone, too, where the table does not look like one."""
    chromium.resize(width)
    show(chromium, site)
    nodes = chromium.devtools("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            role = node["role"]["value"]
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert named["table"] == ["Exporters"]
    columns = ["Exporter", "State", "Last scrape", "Duration", "Size", "Last hour", "Recent scrapes"]
    assert named["columnheader"] == columns
    assert [name.split()[0] for name in named["rowheader"]] == list(NAMES)
    assert len(named["row"]) == 1 + len(NAMES) + 2  # the two that fail have one more
    (status,) = (node for node in nodes if node["role"]["value"] == "status")
    assert {"name": "live", "value": {"type": "token", "value": "polite"}} in status["properties"]
    assert named["button"] == ["Pause"]
    assert named["navigation"] == ["Pages"]
    assert {"main", "banner", "region"} <= named.keys()
    assert named["heading"][0].startswith("exporter_proxy")
    assert any("6 recent scrapes, 1 failed" in name for name in named.get("image", named.get("img", [])))
    assert all(named["link"])


def test_the_keyboard_reaches_everything_and_shows_where_it_is(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    reached = []
    pages = ["Own metrics", "Recent scrapes (JSON)", "Targets (JSON)"]
    for _ in range(len(pages) + 1 + len(NAMES)):
        chromium.press(TAB)
        text, outline = chromium.run(
            "const at = document.activeElement; const style = getComputedStyle(at);"
            "return [at.textContent, style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth)]"
        )
        reached.append(text)
        assert outline >= 2, f"{text} does not show that it has the focus"
    assert reached == [*pages, "Pause", *NAMES]


# -- What it can't be made to do


def test_what_an_exporter_says_stays_text(chromium: Chromium, site: Site) -> None:
    show(chromium, site)
    shown = row_text(chromium, "hostile")[7]
    assert '<img src=x onerror="window.hacked=1"><script>' in shown
    assert r"</script>\x1b[31m\u202e many" in shown
    assert chromium.run("return document.querySelectorAll('img, main script').length") == 0
    assert chromium.run("return window.hacked ?? null") is None
    assert chromium.complaints() == []


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        ("document.body.innerHTML = '<b>x</b>'", "TrustedHTML"),
        (
            "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))",
            "TrustedScript",
        ),
        (
            "document.body.append(Object.assign(document.createElement('style'), {textContent: 'a{}'}))",
            "style",
        ),
        ("document.body.append(Object.assign(new Image(), {src: '/image.png'}))", "img-src"),
        ("fetch('http://127.0.0.1:1/').catch(() => null)", "connect-src"),
        ("document.querySelector('a').setAttribute('style', 'color: red')", "style"),
    ],
)
def test_the_policy_stops_what_a_hole_in_the_page_would_allow(
    chromium: Chromium, site: Site, attempt: str, complaint: str
) -> None:
    show(chromium, site)
    chromium.run(f"try {{ {attempt} }} catch (error) {{ console.error(error.message) }}")
    complaints: list[str] = []

    def is_stopped() -> bool:
        complaints.extend(chromium.complaints())
        return any(complaint in text for text in complaints)

    wait_until(is_stopped, f"{complaint} was complained of", 5.0)
