"""``include``: which files are read, in which order, and where the mistakes and clashes in them are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter_proxy.config import Config, ConfigError, load_config

MAIN = "include: [conf.d/*.yml]\nexporters: {own: {url: http://127.0.0.1:9100/metrics}}\n"


def entry(name: str, further: str = "") -> str:
    return f"exporters:\n  {name}: {{url: http://127.0.0.1:9100/metrics{further}}}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def load(directory: Path, main: str = MAIN, **files: str) -> Config:
    """``files`` are those in conf.d, without their ``.yml``."""
    (directory / "config.yml").write_text(main)
    for name, text in files.items():
        (directory / "conf.d" / f"{name}.yml").write_text(text)
    return load_config(str(directory / "config.yml"))


def names(config: Config) -> list[str]:
    return [exporter.name for exporter in config.exporters]


def problems(directory: Path, main: str = MAIN, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, main, **files)
    return str(caught.value).replace(f"{directory}/", "").splitlines()


def test_files_come_in_the_order_of_their_names_after_ones_own(directory: Path) -> None:
    files = {"b": entry("b"), "a": entry("z"), "c": "", "d": "# nothing\n", "e": "exporters: {}\n"}
    assert names(load(directory, **files)) == ["own", "z", "b"]
    (directory / "conf.d" / ".hidden.yml").write_text("not: read")
    (directory / "conf.d" / "b.yml.dpkg-old").write_text("not: read")
    assert names(load(directory)) == ["own", "z", "b"]


def test_the_list_comes_before_the_names_and_no_file_twice(directory: Path) -> None:
    main = MAIN.replace("[conf.d/*.yml]", "[conf.d/b.yml, conf.d/*.yml, conf.d/a.yml]")
    assert names(load(directory, main, a=entry("a"), b=entry("b"))) == ["own", "b", "a"]


def test_a_directory_without_files_is_no_mistake(directory: Path) -> None:
    assert names(load(directory)) == ["own"]
    assert names(load(directory, MAIN.replace("[conf.d/*.yml]", "[]"), a="not: read")) == ["own"]


def test_they_are_found_from_wherever_the_configuration_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(directory, a=entry("a"))
    for place, name in (
        (directory, "config.yml"),
        (directory, "./config.yml"),
        (directory / "conf.d", "../config.yml"),
        (Path("/"), str(directory / "config.yml")),
    ):
        monkeypatch.chdir(place)
        assert names(load_config(name)) == ["own", "a"]
    assert names(load(directory, MAIN.replace("conf.d", str(directory / "conf.d")))) == ["own", "a"]


def test_the_defaults_apply_to_them_and_they_have_none(directory: Path) -> None:
    config = load(
        directory, f"defaults: {{timeout: 3s}}\n{MAIN}", a=entry("a"), b=entry("b", ", timeout: 1s")
    )
    assert [exporter.timeout_seconds for exporter in config.exporters] == [3.0, 3.0, 1.0]
    assert problems(directory, a=f"defaults: {{timeout: 1s}}\n{entry('a')}", b="include: [x]\n") == [
        "conf.d/a.yml:1:1: defaults: unknown key, the keys here are exporters",
        "conf.d/b.yml:1:1: include: unknown key, the keys here are exporters",
    ]


def test_all_mistakes_are_told_file_by_file(directory: Path) -> None:
    found = problems(
        directory,
        f"lisen: x\n{MAIN}",
        a=f"{entry('b', ', timeout: 5')}  b: {{}}\n",
        b="[a]",
        c="exporters: {",
        d="exporters: [a]",
        e=entry("e", ", tiemout: 5s"),
    )
    assert [line.partition(", ")[0] for line in found] == [
        "config.yml:1:1: lisen: unknown key",
        'conf.d/a.yml:2:52: exporters.b.timeout: expected a duration such as "10s"',
        "conf.d/a.yml:3:3: exporters.b: duplicate key",
        'conf.d/b.yml:1:1: expected the key "exporters"',
        'conf.d/c.yml:2:1: not valid YAML: quote text that begins with "[" or "{" or has a "," in it '
        "(while parsing a flow node that begins at 2:1)",
        "conf.d/d.yml:1:12: exporters: expected a mapping from names to exporters",
        "conf.d/e.yml:2:43: exporters.e.tiemout: unknown key",
    ]


def test_clashes_are_told_with_both_places(directory: Path) -> None:
    found = problems(directory, a=entry("own"), b=entry("b", ", path: /x"), c=entry("c", ", path: /x"))
    assert found == [
        "conf.d/a.yml:2:3: exporters.own: there is one already at config.yml:2:13, "
        "give one of them another name",
        'conf.d/c.yml:2:49: exporters.c.path: "/x" is already the path of exporters.b at conf.d/b.yml:2:49',
    ]
    two = f"{entry('c', ', path: /y')}{entry('d', ', path: /y')[11:]}"
    assert problems(directory, a="", b="", c=two) == [
        'conf.d/c.yml:3:49: exporters.d.path: "/y" is already the path of exporters.c at 2:49'
    ]


@pytest.mark.parametrize(
    ("include", "says"),
    [
        ("[no.d/*.yml]", '"no.d/*.yml": "no.d" cannot be read (No such file or directory)'),
        ("[conf.d/a.yml]", '"conf.d/a.yml": no such file'),
        ("[conf.d]", '"conf.d": is a directory; name the files in it, as in "conf.d/*.yml"'),
        ("[conf.d/]", '"conf.d/": is a directory; name the files in it, as in "conf.d/*.yml"'),
        ('["c*/*.yml"]', '"c*/*.yml": wildcards can stand in the name of the file only'),
        ('["*.yml"]', '"*.yml": it includes this file itself'),
        ("conf.d/*.yml", "expected a list, each item the path of a file, got text"),
        ("[5]", "expected the path of a file, got the number 5"),
    ],
)
def test_what_cannot_be_included(directory: Path, include: str, says: str) -> None:
    (found,) = problems(directory, MAIN.replace("[conf.d/*.yml]", include))
    assert says in found
    assert found.startswith("config.yml:1:1")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pipe", "not a regular file"),
        ("directory", "is a directory; move it, or have the pattern match files only"),
        ("link", "is a link to a file that is not there"),
    ],
)
def test_what_is_no_file_is_named_and_not_waited_for(directory: Path, kind: str, says: str) -> None:
    odd = directory / "conf.d" / "b.yml"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "directory":
        odd.mkdir()
    else:
        odd.symlink_to("nowhere.yml")
    # The path is cut where it is long.
    (told,) = problems(directory, a=entry("a"), c=entry("c"))
    assert told.startswith("config.yml:1:10: include: ")
    assert told.endswith(f": {says}")
    assert "*" not in told


def test_there_must_be_an_exporter_somewhere(directory: Path) -> None:
    main = "include: [conf.d/*.yml]\n"
    assert names(load(directory, main, a=entry("a"))) == ["a"]
    for text in (main, f"{main}exporters: {{}}\n"):
        (found,) = problems(directory, text, a="exporters: {}")
        assert "nothing to serve" in found
        assert found.endswith("here or in a file that include names")


def test_the_digest_is_that_of_all_files(directory: Path) -> None:
    digests = [
        load(directory).sha256,
        load(directory, a=entry("a")).sha256,
        load(directory, a=entry("b")).sha256,
        load(directory, b="# x").sha256,
    ]
    assert len(set(digests)) == 4
    assert load(directory).sha256 == digests[-1]


def test_passed_credentials_are_told_where_they_are(directory: Path) -> None:
    (directory / "tokens").write_text("a-token\n")
    main = f"bearer_tokens_file: {directory}/tokens\n{MAIN}"
    (found,) = problems(directory, main, a=entry("a", ", pass_headers: [Authorization]"))
    assert found.startswith("conf.d/a.yml:2:57: exporters.a.pass_headers: Authorization carries")


def test_module_route_knows_the_exporters_of_all_files(directory: Path) -> None:
    main = f"module_route: {{path: /p, default_module: a}}\n{MAIN}"
    config = load(directory, main, a=entry("a"))
    assert config.module_route is not None
    assert config.module_route.default_module == "a"
    assert problems(directory, main, a=entry("b", ", path: /p")) == [
        'config.yml:1:22: module_route.path: "/p" is already the path of exporters.b at conf.d/a.yml:2:49',
        'config.yml:1:42: module_route.default_module: there is no exporter "a"',
    ]
