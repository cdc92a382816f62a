"""Exporters added to the text of a configuration: what is there stays, or nothing is given back."""

from __future__ import annotations

import pytest
import yaml

from exporter_proxy.config import ConfigError
from exporter_proxy.config.additions import Addition, add_exporters, read_present
from tests.daemon import REPOSITORY

NEW = Addition("new", ("# found", "new:", "  url: http://127.0.0.1:1/metrics"))
LINES = "  # found\n  new:\n    url: http://127.0.0.1:1/metrics\n"


def add(text: str, *additions: Addition) -> str:
    return add_exporters(text.encode(), "config.yml", additions or [NEW]).decode()


@pytest.mark.parametrize(
    "text",
    [
        "exporters:\n  a: {url: x}\n@",
        "exporters:\n  a:\n    url: x # why\n@\n# end\nlisten: y\n",
        "exporters:\n  a:\n    url: x\n    #path: y\n\n  # b:\n@# end\n",
        "exporters:\n  a: {url: x,\n    path: y\n  }\n@z: 1\n",
        "x: &a {url: b}\nexporters:\n  q: *a\n@listen: y\n",
        "x: &a {q: {url: b}}\nexporters:\n  <<: *a\n@",
        "exporters:\n  q: |\n    text\n    b\n@# z\nlisten: y\n",
        "--- # d\nexporters:\n  a: {url: x}\n@...\n",
        "\ufeffexporters:\n  a: {url: x}\n@",
        "access_log:\n  format: json\nexporters:\n  a: {url: x}\n@",
        "access_log:\n  path: x\n\n# b\nexporters:\n  a:\n    env:\n      A: b\n@error_log:\n  path: x\n",
        "listen:\n- x\nexporters:\n  a:\n    command:\n    - x\n@pushprox:\n  fqdn: x\n",
    ],
)
def test_lines_are_added_at_the_end_of_the_section(text: str) -> None:
    """``@`` is where they go."""
    assert add(text.replace("@", "")) == text.replace("@", LINES)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("exporters:\n  a: {url: x}", "exporters:\n  a: {url: x}\n@"),
        ("listen: x\n", "listen: x\nexporters:\n@"),
        ("exporters: {}\n", "exporters:\n@"),
        ("exporters: {} # none\nlisten: x\n", "exporters: # none\n@listen: x\n"),
        ("exporters:\nlisten: x\n", "exporters:\n@listen: x\n"),
        ("exporters: ~\n", "exporters:\n@"),
        ("", "exporters:\n@"),
        ("# Ours.\n\n# listen: x", "# Ours.\n\n# listen: x\nexporters:\n@"),
        ("\ufeff# Ours.\n---\n", "\ufeff# Ours.\n---\nexporters:\n@"),
    ],
)
def test_a_section_without_entries_gets_them(before: str, after: str) -> None:
    assert add(before) == after.replace("@", LINES)


def test_indentation_and_line_ends_are_those_of_the_file() -> None:
    assert add("exporters:\r\n      a: {url: x}\r\nlisten: y\r\n") == (
        "exporters:\r\n      a: {url: x}\r\n      # found\r\n      new:\r\n"
        "        url: http://127.0.0.1:1/metrics\r\nlisten: y\r\n"
    )


def test_the_example_keeps_its_comments_and_order() -> None:
    text = (REPOSITORY / "config.example.yml").read_text()
    result = add(text)
    assert result.replace(LINES, "") == text
    assert list(yaml.safe_load(result)["exporters"]) == ["node_exporter", "new"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exporters: {a: {url: x}}\n", "it is not a mapping with one exporter a line"),
        ("exporters: [a]\n", "it is not a mapping with one exporter a line"),
        ("{exporters: }\n", "the file is not a mapping with one key a line"),
        ("- a\n", "the file is not a mapping with one key a line"),
        ("# a\n---\n...\n", "lines added there would change what it says"),
        ("x: &a\n  q: {url: b}\nexporters: *a\n", "lines added there would change what it says"),
        ("exporters:\n  null\nlisten: x\n", "lines added there would change what it says"),
        ("exporters: {\n}\n", "lines added there would change what it says"),
        ("exporters:\n  new: {url: x}\n", "lines added there would change what it says"),
        ("exporters: [\n", "not valid YAML"),
    ],
)
def test_where_nothing_can_be_added_one_line_says_why(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_present_is_read_whatever_else_is_wrong() -> None:
    text = """
        x: &x {url: "http://[::1]:9100/metrics"}
        exporters:
          a: *x
          b: {<<: *x, path: /other}
          c: {url: nonsense, no_such_key: 1}
          d: nonsense
    """
    present = read_present(text.encode(), "config.yml")
    assert present.names == {"a", "b", "c", "d"}
    assert present.paths == {"/a/metrics", "/other", "/c/metrics", "/d/metrics"}
    assert [url.backend for url in present.urls] == ["[::1]:9100", "[::1]:9100"]
