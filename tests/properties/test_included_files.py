"""``include``: it makes no difference in which file an exporter stands, and any file is read or refused.

And ``discover --write``, which adds to files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config import Config, ConfigError, load_config
from exporter_proxy.config.additions import Addition, add_exporters, read_present
from tests.properties.test_config_fuzz import GOOD, check_config

fuzz = settings(max_examples=100, deadline=None)
NAMES = ["a", "b", "c.d", "node_exporter"]
ENTRIES = st.fixed_dictionaries(
    {
        "url": st.sampled_from(
            ["http://127.0.0.1:9100/metrics", "https://[::1]:1/x?y", "http+unix:///run/x:/m"]
        )
    },
    optional={
        "timeout": st.sampled_from(["1s", "5m", "0s", 3]),
        "path": st.sampled_from(["/p", "/q", "/-/x", "p"]),
        "max_concurrent": st.integers(-1, 3),
        "labels": st.dictionaries(st.sampled_from(["team", "le-ft"]), st.text(max_size=3), max_size=1),
    },
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (directory := tmp_path_factory.mktemp("included")).joinpath("conf.d").mkdir()
    return directory


def load(directory: Path, own: bytes, included: list[bytes]) -> tuple[Config | None, list[str]]:
    """What these files make together, and what is wrong with them."""
    for old in directory.joinpath("conf.d").iterdir():
        old.unlink()
    (directory / "config.yml").write_bytes(own)
    for number, content in enumerate(included):
        (directory / "conf.d" / f"{number}.yml").write_bytes(content)
    try:
        config = load_config(str(directory / "config.yml"))
    except ConfigError as error:
        lines = str(error).splitlines()
        assert len(lines) == len(error.problems) > 0
        assert all(line.isprintable() for line in lines)
        return None, [problem.message for problem in error.problems]
    check_config(config)
    return config, []


@fuzz
@given(
    exporters=st.dictionaries(st.sampled_from(NAMES), ENTRIES, min_size=1),
    places=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_it_makes_no_difference_in_which_file_an_exporter_stands(
    directory: Path, exporters: dict[str, Any], places: list[int]
) -> None:
    split: list[dict[str, Any]] = [{}, {}, {}]
    for (name, entry), place in zip(exporters.items(), sorted(places), strict=False):
        split[place][name] = entry
    own = f"include: [conf.d/*.yml]\n{yaml.safe_dump({'exporters': split[0]})}".encode()
    together, problems_together = load(directory, yaml.safe_dump({"exporters": exporters}).encode(), [])
    apart, problems_apart = load(
        directory, own, [yaml.safe_dump({"exporters": one}).encode() for one in split[1:]]
    )
    assert (together is None) == (apart is None), (problems_together, problems_apart)
    if together is not None and apart is not None:
        by_name = {exporter.name: exporter for exporter in apart.exporters}
        assert by_name == {exporter.name: exporter for exporter in together.exporters}
        assert apart.listen == together.listen


PIECES = st.sampled_from(
    [
        *(
            b"exporters:\n",
            b"  a: {url: http://h}\n",
            b"  a:\n    url: http://h\n",
            b"include: [x]\n",
            b"---\n",
        ),
        *(
            b"exporters: {}\n",
            b"null\n",
            b"- a\n",
            b"*a\n",
            b"&a ",
            b"\xff",
            b"\t",
            b"listen: :1\n",
            b"!!x ",
            b"[" * 70,
        ),
    ]
)


@fuzz
@given(st.lists(st.lists(PIECES, max_size=4).map(b"".join) | st.binary(max_size=60), max_size=3))
def test_whatever_is_in_an_included_file(directory: Path, included: list[bytes]) -> None:
    load(directory, b"include: [conf.d/*.yml]\nexporters: {own: {url: http://h}}\n", included)


@fuzz
@given(st.data())
def test_what_discover_adds_is_there_and_all_else_as_before(data: st.DataObject) -> None:
    """``discover --write``, on files in any shape: either exactly that, or nothing and a reason."""
    text = data.draw(st.sampled_from(GOOD))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from(["\n", "  ", "# x\n", "\r\n", "exporters: {}\n", "...\n", "|\n", "\u2028", "é"])
        )
        text = text[:at] + piece + text[at:]
    addition = Addition("added_here", ("added_here:", "  url: http://127.0.0.1:9/metrics"))
    raw = text.encode()
    try:
        before = read_present(raw, "config.yml")
        result = add_exporters(raw, "config.yml", [addition])
    except ConfigError as error:
        assert str(error).isprintable() or len(str(error).splitlines()) == len(error.problems)
        return
    after = read_present(result, "config.yml")
    assert after.names == before.names | {"added_here"}
    assert after.paths >= before.paths
    kept = [line for line in text.splitlines() if line.strip() and "exporters:" not in line]
    lines = iter(result.decode().splitlines())
    assert all(line in lines for line in kept)
