"""Whatever a client or an exporter says, a log line stays one line with the fields it should have."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter_proxy.config import AccessLog
from exporter_proxy.config.schema import ACCESS_LOG_FIELDS, ACCESS_LOG_FORMATS
from exporter_proxy.observe.accesslog import access_log_formatter
from exporter_proxy.observe.daemonlog import LOG_FORMATS
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason

fuzz = settings(max_examples=150, deadline=None)

NASTY = [
    b"",
    b"-",
    b"\t",
    b"a\nstatus:200",
    b"a\tstatus:200",
    b"a\\tb",
    b"\\",
    b'" status="200',
    b'","status":"200',
    b"a status=200",
    b"=",
    b"\x1b[31mred\x1b[0m",
    b"\x7f\x80\x85\x9b",
    b"caf\xe9",
    b"\\x1b",
    b"\r",
    b"\0",
    b"%0a",
]
BYTES = st.one_of(
    st.sampled_from(NASTY), st.binary(max_size=30), st.lists(st.sampled_from(NASTY), max_size=3).map(b"".join)
)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "M-SEARCH", "a\tb", 'x"y z', ""]))
    exchange = Exchange(
        draw(st.sampled_from(["127.0.0.1", "2001:db8::1", "unix"])), method, draw(BYTES), draw(BYTES), 0.0
    )
    exchange.user_agent = draw(BYTES)
    exchange.status = draw(st.sampled_from([0, 200, 404, 499, 599]))
    exchange.reason = draw(st.sampled_from([None, *Reason]))
    exchange.sent_bytes = draw(st.integers(0, 1 << 40))
    exchange.total_seconds = draw(st.floats(0, 200))
    exchange.timeout_seconds = draw(st.floats(0, 120))
    exchange.exporter, exchange.backend = draw(st.sampled_from([("", ""), ("node_exporter", "[::1]:9100")]))
    return exchange


def parse_ltsv(line: str) -> dict[str, str]:
    """As the format's own site has it; the escapes are ours."""
    pairs = [field.partition(":") for field in line.split("\t")]
    assert all(colon for _, colon, _ in pairs)
    names = [name for name, _, _ in pairs]
    assert len(set(names)) == len(names)
    return {name: unescape(value) for name, _, value in pairs}


def unescape(value: str) -> str:
    known = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}
    return re.sub(
        r"\\x([0-9a-f]{2})|\\.", lambda match: chr(int(match[1], 16)) if match[1] else known[match[0]], value
    )


LOGFMT_PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |\Z)')


def parse_logfmt(line: str) -> dict[str, str]:
    """Strictly: pairs from end to end with one blank between."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(line):
        pair = LOGFMT_PAIR.match(line, at)
        assert pair, f"no pair at {line[at:]!r}"
        name, value = pair.groups()
        assert name not in fields
        fields[name] = json.loads(value) if value[0] == '"' else value
        at = pair.end()
    return fields


def parse_json(line: str) -> dict[str, str]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, str]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name: str(value) for name, value in pairs}

    parsed: dict[str, str] = json.loads(line, object_pairs_hook=unique)
    return parsed


PARSERS: dict[str, Callable[[str], dict[str, str]]] = {
    "ltsv": parse_ltsv,
    "json": parse_json,
    "logfmt": parse_logfmt,
}


def check_is_one_line(line: str) -> str:
    """``line`` without its newline."""
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    for character in line[:-1]:
        if character != "\t":  # LTSV's own; the parser counts the fields
            assert unicodedata.category(character) not in ("Cc", "Zl", "Zp"), f"U+{ord(character):04X}"
    return line[:-1]


@pytest.mark.parametrize("format_name", ACCESS_LOG_FORMATS)
@fuzz
@given(exchange=exchanges())
def test_access_log(format_name: str, exchange: Exchange) -> None:
    line = access_log_formatter(AccessLog(format_name, None, ACCESS_LOG_FIELDS))(exchange)
    fields = PARSERS[format_name](check_is_one_line(line))
    assert tuple(fields) == ACCESS_LOG_FIELDS
    assert fields["path"] == exchange.path.decode("latin-1")
    assert fields["query"] == exchange.query.decode("latin-1")
    assert fields["user_agent"] == exchange.user_agent.decode("latin-1")
    assert fields["method"] == exchange.method
    assert fields["status"] == str(exchange.status)
    assert fields["reason"] == (exchange.reason or "")
    assert fields["size"] == str(exchange.sent_bytes)
    assert fields["remote"] == exchange.remote
    assert fields["exporter"] == exchange.exporter
    assert fields["backend"] == exchange.backend
    assert float(fields["timeout"]) == pytest.approx(exchange.timeout_seconds, abs=0.001)
    assert int(fields["reqtime_nsec"]) == pytest.approx(exchange.total_seconds * 1e9, abs=1)


TEXT = st.one_of(
    st.text(max_size=30),
    st.text('\n\r\t"\\= \x00\x1b\x7f\x85\u2028\u2029\ud800aé', max_size=12),
    st.sampled_from(NASTY).map(lambda raw: raw.decode("latin-1")),
)


@pytest.mark.parametrize("format_name", sorted(LOG_FORMATS))
@fuzz
@given(msg=TEXT, error=TEXT, number=st.integers())
@example(msg="\x7f", error="", number=0)
@example(msg="\u2028", error="\x85", number=0)
def test_daemon_log(format_name: str, msg: str, error: str, number: int) -> None:
    line = LOG_FORMATS[format_name]({"msg": msg, "error": error, "number": number})
    fields = PARSERS[format_name](check_is_one_line(line))
    assert fields == {"msg": msg, "error": error, "number": str(number)}
