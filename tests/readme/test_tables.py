"""README.md's tables, lists and numbers are those of the program: nothing is missing, nothing is made up."""

from __future__ import annotations

import re
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from exporter_proxy.cli import COMMANDS, DEFAULT_CONFIG_FILES
from exporter_proxy.config import Config, ConfigError, Exporter, parse_config
from exporter_proxy.config.exporters import DEFAULTS_KEYS, EXPORTER_KEYS
from exporter_proxy.config.load import ACCESS_LOG_KEYS, ERROR_LOG_KEYS, TLS_KEYS, TOP_KEYS
from exporter_proxy.config.pushprox import PUSHPROX_KEYS, PushProx
from exporter_proxy.config.schema import ACCESS_LOG_FIELDS, DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
from exporter_proxy.config.sources import COMMAND_KEYS, FILE_KEYS
from exporter_proxy.daemon import LAG_SAMPLES
from exporter_proxy.discover.candidates import EXPORTER_PORTS
from exporter_proxy.discover.recognise import known_ports
from exporter_proxy.observe.recent import RECENT_SCRAPES
from exporter_proxy.pages import PAGES
from exporter_proxy.pushprox.scrape import MAX_BODY_BYTES, MAX_HELD_BYTES
from exporter_proxy.reasons import ADVICE, DENIAL_STATUS, RETRY_AFTER_SECONDS, SCRAPE_ERROR_STATUS, Reason
from exporter_proxy.scrape.exposition.merge import MAX_BYTES as MERGED_MAX_BYTES
from exporter_proxy.scrape.headers import FORWARDED, SCRAPE_TIMEOUT_HEADER
from exporter_proxy.scrape.verified import HOLD_BYTES
from exporter_proxy.upstreams.connection import MAX_HEAD_BYTES
from exporter_proxy.upstreams.file import MAX_FILES
from exporter_proxy.upstreams.pushprox import FORGOTTEN_SECONDS
from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.processes import MODULE
from tests.fakes.exporter import FakeExporter
from tests.readme.document import README, blocks, code_words, sections, table

SECTION_KEYS = {"tls": TLS_KEYS, "access_log": ACCESS_LOG_KEYS, "error_log": ERROR_LOG_KEYS}
EXPORTER = {"url": "http://127.0.0.1:9100/metrics"}
ENTRIES: dict[str, dict[str, Any]] = {
    **{key: {"file": "/x.prom"} for key in FILE_KEYS},
    **{key: {"command": ["/bin/sh"]} for key in COMMAND_KEYS},
}
"""What a key stands beside, where that is no url."""


def key_rows(number: int) -> list[tuple[str, str]]:
    """Key and default of each row of a table of keys; a row may be for several keys."""
    rows = table("Configuration keys", "Key", number).rows
    return [(key, default) for keys, default, _ in rows for key in code_words(keys)]


def daemon_config(text: str = "") -> Config:
    return replace(parse_config(f"{text}\nexporters: {{x: {EXPORTER}}}".encode(), "config.yml"), sha256="")


def exporter_config(**entry: Any) -> Exporter:
    return parse_config(f"exporters: {{x: {entry}}}".encode(), "config.yml").exporters[0]


def value_of(parsed: object, key: str) -> object:
    """What ``key`` has become; attributes carry their unit or that they are a path."""
    candidates = (key, f"{key}_seconds", f"{key}_path", f"{key}_file", key.removesuffix("_config_file"))
    if isinstance(parsed, Exporter) and key in ENTRIES:
        parsed = parsed.source
    names = [name for name in candidates if hasattr(parsed, name)]
    assert names, f"{type(parsed).__name__} has nothing called like {key}"
    return getattr(parsed, names[0])


def test_the_keys_of_the_daemon_are_all_there() -> None:
    dotted = [f"{section}.{key}" for section, keys in SECTION_KEYS.items() for key in keys]
    plain = [key for key in TOP_KEYS if key not in SECTION_KEYS]
    assert sorted(key for key, _ in key_rows(0)) == sorted(dotted + plain)


def test_the_keys_of_an_exporter_are_all_there_and_the_first_are_those_of_defaults() -> None:
    keys = [key for key, _ in key_rows(1)]
    assert sorted(keys) == sorted(EXPORTER_KEYS)
    assert tuple(keys[: len(DEFAULTS_KEYS)]) == DEFAULTS_KEYS
    assert len(DEFAULTS_KEYS) == 7
    assert "first seven" in sections()["Configuration keys"]


@pytest.mark.parametrize(("key", "default"), key_rows(0))
def test_defaults_of_the_daemon_are_what_they_are_said_to_be(key: str, default: str) -> None:
    section, _, leaf = key.rpartition(".")
    values = code_words(default)
    if default == "required":
        with pytest.raises(ConfigError, match=rf"{key}: nothing to serve"):
            parse_config(b"listen: ':9099'", "config.yml")
    elif values:
        with_value = f"{section}: {{{leaf}: {values[0]}}}" if section else f"{key}: {values[0]}"
        assert daemon_config(with_value) == daemon_config(f"{section}: {{}}" if section else "")
    elif section == "access_log":
        assert default == ("see below" if leaf == "fields" else "stdout")
        assert leaf == "fields" or value_of(daemon_config("access_log: {}").access_log, leaf) is None
    elif key != "defaults":  # a section like the exporters', none of its own
        assert value_of(daemon_config(), section or key) is None


PUSHPROX = {"proxy_url": "http://127.0.0.1:8080/"}
PUSHPROX_ROWS = [(code_words(key)[0], default) for key, default, _ in table("Behind NAT", "Key").rows]


def pushprox_config(**keys: Any) -> PushProx:
    parsed = daemon_config(f"pushprox: {keys}").pushprox
    assert parsed is not None
    return parsed


def test_the_keys_of_pushprox_are_all_there() -> None:
    assert sorted(key for key, _ in PUSHPROX_ROWS) == sorted(PUSHPROX_KEYS)


@pytest.mark.parametrize(("key", "default"), PUSHPROX_ROWS)
def test_defaults_of_pushprox_are_what_they_are_said_to_be(key: str, default: str) -> None:
    values = code_words(default)
    if default == "required":
        with pytest.raises(ConfigError, match=rf"pushprox.{key}: missing"):
            daemon_config("pushprox: {fqdn: x}")
    elif key == "map_ports":
        assert not pushprox_config(**PUSHPROX).map_ports
        assert values == ["false"]
    elif key == "allow_exporters":
        assert default == "all without `allow_clients`"
        pushprox = pushprox_config(**PUSHPROX)
        assert pushprox.allows(exporter_config(**EXPORTER))
        assert not pushprox.allows(exporter_config(**EXPORTER, allow_clients=["127.0.0.1"]))
    else:
        assert value_of(pushprox_config(**PUSHPROX), key) is None


@pytest.mark.parametrize(("key", "default"), key_rows(1))
def test_defaults_of_an_exporter_are_what_they_are_said_to_be(key: str, default: str) -> None:
    values = code_words(default)
    entry = ENTRIES.get(key, EXPORTER)
    if default == "required":
        with pytest.raises(ConfigError, match=rf"exporters.x.{key}: missing"):
            exporter_config(path="/x")
    elif values:
        text = f"exporters: {{x: {{{str(entry)[1:-1]}, {key}: {values[0].replace('NAME', 'x')}}}}}"
        assert parse_config(text.encode(), "config.yml").exporters == (exporter_config(**entry),)
    else:
        assert value_of(exporter_config(**entry), key) in (None, ())


def test_the_status_table_has_every_reason_with_its_status() -> None:
    rows = table("Reasons", "Reason").rows
    expected = {
        **{reason: str(status) for reason, status in {**DENIAL_STATUS, **SCRAPE_ERROR_STATUS}.items()},
        Reason.BAD_REQUEST: "400 or 431",
        Reason.UPSTREAM_STATUS: "the exporter's",
    }
    assert sorted(row[0] for row in rows) == sorted(f"`{reason}`" for reason in Reason)
    assert {row[0].strip("`"): row[1] for row in rows} == expected
    assert all(row[2] for row in rows)
    advice = {row[0].strip("`"): row[3].replace("`", "") for row in rows}
    assert {reason: advice[reason] for reason in SCRAPE_ERROR_STATUS} == ADVICE


def test_every_503_has_a_retry_after_that_is_always_the_same() -> None:
    """That of a 429 depends on the limit."""
    assert "Every 503 and 429 has a `Retry-After`" in " ".join(README.split())
    statuses = {**DENIAL_STATUS, **SCRAPE_ERROR_STATUS}
    assert {reason for reason, status in statuses.items() if status == 503} == set(RETRY_AFTER_SECONDS)


def test_the_metrics_table_has_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    """Over TLS, for the metric of its certificate, and with a file, for that of its time."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    both = str(tmp_path / "both.pem")
    (tmp_path / "x.prom").write_text("x 1\n")
    own = {
        "tls": {"certfile": both, "keyfile": both},
        "pushprox": {"proxy_url": "http://127.0.0.1:1/", "fqdn": "x"},
    }
    with (
        FakeExporter() as fake,
        Daemon(
            {**own, "exporters": {"x": {"url": fake.url()}, "f": {"file": f"{tmp_path}/x.prom"}}}
        ) as daemon,
    ):
        for name in "xf":
            daemon.get(f"/{name}/metrics", tls=trusting).expect_ok()
        up = ("exporter_proxy_exporter_up", frozenset({("exporter", "x")}))
        wait_until(lambda: daemon.metrics(tls=trusting).get(up) == 1, "the exporter is up")
        page = daemon.get("/metrics", tls=trusting).expect_ok().body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    actual = set()
    for name, kind in types.items():
        if not name.startswith("process_"):
            sample = re.search(rf"^{name}(?:_bucket)?(?:\{{(.*)\}})? ", page, re.MULTILINE)
            assert sample is not None, name
            labels = re.findall(r'(\w+)="', sample[1] or "")
            actual.add((name, kind, tuple(sorted(label for label in labels if label != "le"))))
    assert any(name.startswith("process_") for name in types)
    rows = table("Own metrics", "Metric").rows
    assert rows[-1][0] == "`process_*`"
    shown = [
        (name.strip("`"), kind, tuple(sorted(code_words(labels)))) for name, kind, labels, _ in rows[:-1]
    ]
    assert sorted(shown) == sorted(actual)


def help_of(*command: str) -> str:
    result = subprocess.run(
        [*MODULE, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=True
    )
    return result.stdout


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*", text)) - {"--help"}


def test_the_synopsis_has_every_command_and_flag() -> None:
    synopsis = next(block.text for block in blocks() if block.section == "Command line")
    helps = {command: help_of(command) for command in COMMANDS}
    assert flags_in(synopsis) == flags_in(help_of() + "".join(helps.values()))
    for command in COMMANDS:
        # A line that is indented goes on with the one above it.
        entries = re.findall(rf"^exporter_proxy \[?{command}\b.*(?:\n .*)*", synopsis, re.MULTILINE)
        assert entries, f"{command} is missing"
        if command != "serve":
            assert flags_in(entries[0]) == flags_in(helps[command])
        for choices in re.findall(r"\{([a-z,-]+)\}", helps[command]):
            assert choices.replace(",", "|") in entries[0]
    assert set(DEFAULT_CONFIG_FILES) <= set(code_words(sections()["Command line"]))


def test_the_log_fields_are_all_there_in_their_order() -> None:
    paragraph = paragraph_of("Behaviour", "**Logs.**")
    assert [word for word in code_words(paragraph) if word in ACCESS_LOG_FIELDS] == list(ACCESS_LOG_FIELDS)


def test_the_headers_that_pass_are_all_there() -> None:
    paragraph = paragraph_of("Behaviour", "**What passes.**")
    passing = paragraph[paragraph.index("To the exporter go") : paragraph.index("and the query")]
    named = {word.lower().encode() for word in code_words(passing)}
    assert named == FORWARDED | {SCRAPE_TIMEOUT_HEADER}


def paragraph_of(section: str, start: str) -> str:
    return next(text for text in sections()[section].split("\n\n") if text.lstrip().startswith(start))


@pytest.mark.parametrize("path", [path for path in PAGES if path != "/"])
def test_every_page_is_named(path: str) -> None:
    assert f"`{path}`" in README or f"{path}\n" in README


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (r"It is (\d+) s where neither is", [DEFAULT_TIMEOUT_SECONDS]),
        (r"and (\d+) minutes at most", [MAX_TIMEOUT_SECONDS / 60]),
        (r"each exporter's last (\d+) scrapes", [RECENT_SCRAPES]),
        (r"holds back up to (\d+) KiB", [HOLD_BYTES / 1024]),
        (r"headers over (\d+) KiB", [MAX_HEAD_BYTES / 1024]),
        (r"text format, (\d+) MiB and (\d+) files at most", [MERGED_MAX_BYTES / 2**20, MAX_FILES]),
        (r"worst delay of the event loop in (\d+) s", [LAG_SAMPLES]),
        (
            r"one of more than (\d+) MiB, or all together more than (\d+) MiB",
            [MAX_BODY_BYTES / 2**20, MAX_HELD_BYTES / 2**20],
        ),
        (r"has forgotten is noticed after (\d+) s", [FORGOTTEN_SECONDS]),
        (r"sockets on ports (\d+) to (\d+)", [EXPORTER_PORTS[0], EXPORTER_PORTS[-1]]),
    ],
)
def test_numbers_in_the_text_are_the_programs(words: str, numbers: list[float]) -> None:
    found = re.search(words, " ".join(README.split()))
    assert found is not None
    assert [float(number) for number in found.groups()] == numbers


def test_the_picture_shows_exporters_at_their_ports() -> None:
    picture = next(block.text for block in blocks() if block.section == "")
    exporters = re.findall(r"/(\w+)/metrics +--> +127\.0\.0\.1:(\d+)", picture)
    assert len(exporters) == 3
    assert {name for name, _ in exporters} == {known_ports()[int(port)].name for _, port in exporters}


def test_links_within_it_lead_to_its_sections() -> None:
    """As GitHub makes anchors of headings: dots and the like are left out, blanks become hyphens."""
    anchors = {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in sections()}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= anchors


def test_links_lead_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (REPOSITORY / link).exists()] == []
