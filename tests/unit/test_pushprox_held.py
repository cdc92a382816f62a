"""What is held of answers through PushProx: pages of the daemon's own count as scrapes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.pushprox.judge import Place
from exporter_proxy.pushprox.messages import parse_request
from exporter_proxy.pushprox.scrape import MAX_HELD_BYTES, Answer, Held, answer
from tests.inprocess import Parts, parts, run

NAME = "vm1.example.org"
PUSHPROX = {"proxy_url": "http://proxy.test/", "fqdn": NAME}
EXPORTERS: dict[str, Any] = {f"x{number}": {"url": "http://127.0.0.1:1/metrics"} for number in range(40)}
"""So many that their metrics are more than finds room anyway."""


async def asked(made: Parts, path: str, held: Held) -> Answer:
    raw = f"GET http://{NAME}:9099{path} HTTP/1.1\r\nHost: {NAME}:9099\r\nId: 1\r\n\r\n"
    section = made.config.pushprox
    assert isinstance(section, PushProx)
    place = Place(NAME, frozenset((9099,)))
    return await answer(parse_request(raw.encode()), place, section, made.proxy, held)


def test_a_page_that_finds_no_room_is_refused_and_said_to_be(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with parts(tmp_path / "log", EXPORTERS, pushprox=PUSHPROX) as made:
            held = Held()
            page = await asked(made, "/metrics", held)
            size = held.n_bytes
            assert (page.status, sum(map(len, page.body))) == (200, size)

            taken = held.n_bytes = MAX_HELD_BYTES - size // 2
            refused = await asked(made, "/metrics", held)
            assert (refused.status, dict(refused.headers)[b"X-Exporter-Proxy-Error"]) == (502, b"too_large")
            assert b"waiting to be pushed" in b"".join(refused.body)
            assert (refused.exchange.status, refused.exchange.reason) == (502, "too_large")
            unknown = await asked(made, "/nothing", held)
            assert unknown.status == 404, "what is small finds room"
            for one in (refused, unknown):
                one.release()
            assert held.n_bytes == taken

            held.n_bytes = 0
            assert (await asked(made, "/metrics", held)).status == 200

    run(scenario)
    assert "defect" not in (tmp_path / "log").read_text()
