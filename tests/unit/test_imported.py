"""exporter_exporter's configuration made ours: what is written, what is told, what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trustme
import yaml

from exporter_proxy.config import Config, ConfigError, parse_config
from exporter_proxy.config.expexp import HttpModule, read_expexp
from exporter_proxy.import_once import read, write
from exporter_proxy.imported import Imported

TESTDATA = Path(__file__).parents[1] / "testdata" / "expexp"
SECRET = "S3CR3T"
PACKAGED = Path("/etc/prometheus/exporter-exporter.yml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test data in a directory of its own, which is the working directory."""
    for file in TESTDATA.rglob("*"):
        copy = tmp_path / file.relative_to(TESTDATA)
        if file.is_dir():
            copy.mkdir(exist_ok=True)
        else:
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(file.read_text().replace("DIRECTORY", str(tmp_path)))
    authority = trustme.CA()
    client = authority.issue_cert("client.example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    return tmp_path


def imported(here: Path, text: str) -> Imported:
    (here / "expexp.yml").write_text(text)
    return read(["expexp.yml"])


def module(here: Path, entry: str) -> Imported:
    """Of one module that is called x."""
    return imported(here, f"modules: {{x: {{{entry}}}}}")


def loaded(result: Imported) -> Config:
    return parse_config(result.text.encode(), "config.yml")


def refusal(*paths: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(paths)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("paths", [("debian.yml",), ("all.yml", "all.d")], ids=lambda paths: paths[0])
def test_what_is_written_and_what_is_told(here: Path, paths: tuple[str, ...]) -> None:
    result = read(paths)
    stem = Path(paths[0]).stem
    assert result.text == (here / f"{stem}.config.yml").read_text()
    assert [str(note) for note in result.notes] == (here / f"{stem}.txt").read_text().splitlines()
    config = loaded(result)
    assert tuple(exporter.name for exporter in config.exporters) == result.names


def test_the_packages_file_is_what_is_tested() -> None:
    if not PACKAGED.exists():
        assert os.environ.get("CI") != "true", "prometheus-exporter-exporter is not installed"
        pytest.skip("prometheus-exporter-exporter is not installed")
    assert yaml.safe_load(PACKAGED.read_text()) == yaml.safe_load((TESTDATA / "debian.yml").read_text())


@pytest.mark.parametrize("file", sorted((TESTDATA / "bad").glob("*.yml")), ids=lambda file: file.stem)
def test_mistakes_are_told_all_at_once_with_their_places(here: Path, file: Path) -> None:
    lines = refusal(f"bad/{file.name}")
    assert lines == (here / "bad" / f"{file.stem}.txt").read_text().splitlines()


def test_no_secret_is_told(here: Path) -> None:
    assert SECRET in read(["all.yml"]).text
    told = [str(note) for note in read(["all.yml"]).notes]
    told += [line for file in (here / "bad").glob("*.yml") for line in refusal(str(file))]
    assert len(told) > 20
    assert not [line for line in told if SECRET in line]
    assert SECRET not in repr(read_expexp(["all.yml"]))


def test_directories_alone_will_do_and_a_name_is_there_once(here: Path) -> None:
    assert read(["all.d"]).names == ("added", "odd_name")
    (here / "more.d").mkdir()
    (here / "more.d" / "added.yml").write_text("method: http\nhttp: {port: 1}\n")
    assert refusal("all.d", "more.d") == [
        'more.d/added.yml:1:1: there is a module "added" already in all.d/added.yaml'
    ]
    (here / "expexp.yml").write_text("modules: {added: {method: http, http: {port: 1}}}")
    assert refusal("expexp.yml", "more.d") == [
        'more.d/added.yml:1:1: there is a module "added" already in expexp.yml'
    ]


def test_mistakes_of_all_files_are_told_together(here: Path) -> None:
    (here / "bad.d").mkdir()
    (here / "bad.d" / "a.yml").write_text("method: http\n")
    (here / "bad.d" / "b.yml").write_text("")
    (here / "bad.d" / "c.yml").write_text("- x\n")
    assert refusal("nowhere.yml", "bad.d") == [
        "nowhere.yml: no such file; name the right one with exporter_proxy import",
        'bad.d/a.yml:1:1: http: missing, "method: http" needs it',
        'bad.d/b.yml: the file is empty; a module has at least "method"',
        'bad.d/c.yml:1:1: expected keys such as "timeout", got a list',
    ]


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("node", "node"),
        ("node-1.x", "node-1.x"),
        ("_", "_"),
        ("9100", "_9100"),
        ("-", "_-"),
        ("a b/c", "a_b_c"),
        ("metrics", "metrics"),
        ("\u00fc", "_"),
        ("x" * 120, "x" * 100),
    ],
)
def test_names_stay_where_they_can(here: Path, name: str, becomes: str) -> None:
    result = imported(here, yaml.safe_dump({"modules": {name: {"method": "http", "http": {"port": 1}}}}))
    assert result.names == (becomes,)
    assert (result.notes == ()) is (name == becomes)
    assert [exporter.name for exporter in loaded(result).exporters] == [becomes]


def test_names_that_become_the_same_are_told_apart(here: Path) -> None:
    entry = "{method: http, http: {port: 1}}"
    names = imported(here, f"modules: {{'a b': {entry}, a_b: {entry}, 'a/b': {entry}, a_b_2: {entry}}}").names
    assert names == ("a_b_3", "a_b", "a_b_4", "a_b_2")


@pytest.mark.parametrize("again", ["all.d", "all.d/", "./all.d", "link.d"])
def test_a_path_that_is_given_twice_is_told(here: Path, again: str) -> None:
    (here / "link.d").symlink_to("all.d")
    told = f'{again}: it is read already, as "all.d"; name each file and directory once'
    assert refusal("all.d", again) == [told]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("1s", 1.0),
        ("1m30s", 90.0),
        ("0.5s", 0.5),
        ("5000000000", 5.0),
        ("1500000", 0.0015),
        ("0", None),
        ("0s", None),
        ("~", None),
        ("2m", 120.0),
        ("1h", 120.0),
    ],
)
def test_timeouts(here: Path, given: str, seconds: float | None) -> None:
    result = module(here, f"method: http, timeout: {given}, http: {{port: 1}}")
    (exporter,) = loaded(result).exporters
    assert exporter.timeout_seconds == seconds
    assert [note.key_path for note in result.notes] == (["modules.x.timeout"] if given == "1h" else [])


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        ("", "http://localhost:1/metrics"),
        ("scheme: https", "https://localhost:1/metrics"),
        ("scheme: '', path: '', address: ''", "http://localhost:1/metrics"),
        ("address: 10.0.0.5", "http://10.0.0.5:1/metrics"),
        ("address: '::1'", "http://[::1]:1/metrics"),
        ("address: '[::1]'", "http://[::1]:1/metrics"),
        ("path: /a?b=c&d=%20", "http://localhost:1/a?b=c&d=%20"),
        ("path: '?b=c'", "http://localhost:1/?b=c"),
        ("path: '/a:'", "http://localhost:1/a:"),
    ],
)
def test_urls(here: Path, keys: str, url: str) -> None:
    (exporter,) = loaded(module(here, f"method: http, http: {{port: 1, {keys}}}")).exporters
    assert str(exporter.url) == url


@pytest.mark.parametrize("verify", [True, False])
def test_verification_is_on_unless_it_is_off(here: Path, verify: bool) -> None:
    keys = "" if verify else ", verify: false"
    (exporter,) = loaded(module(here, f"method: http, http: {{port: 1{keys}}}")).exporters
    assert exporter.verify is verify


def test_the_default_module_goes_by_its_name_here(here: Path) -> None:
    entry = "modules: {'a b': {method: http, http: {port: 1}}}"
    found = loaded(imported(here, f"defaultModule: a b\n{entry}")).module_route
    assert found is not None
    assert (found.path, found.default_module) == ("/proxy", "a_b")
    result = imported(here, f"defaultModule: nobody\n{entry}")
    assert str(result.notes[0]) == (
        "expexp.yml:1:16: defaultModule: there is no such module here, so none is the default"
    )
    found = loaded(result).module_route
    assert found is not None
    assert found.default_module is None


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ("method: http, http: {port: 1}", False),
        ("method: http, http: {port: 1, headers: {X: y}}", True),
        ("method: http, http: {port: 1, basic_auth_username: u, basic_auth_password: p}", True),
        ("method: http, http: {port: 1, path: '/x?token=y'}", True),
        ("method: exec, exec: {command: /bin/true}", False),
        ("method: exec, exec: {command: /bin/true, args: [x]}", True),
        ("method: exec, exec: {command: /bin/true, env: {X: y}}", True),
        ("method: file, file: {path: /x.prom}", False),
    ],
)
def test_what_may_hold_secrets_is_the_owners_alone(here: Path, entry: str, holds: bool) -> None:
    result = module(here, entry)
    assert result.may_hold_secrets is holds
    umask = os.umask(0o022)
    try:
        done = write(result, "config.yml")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((here / "config.yml").stat().st_mode) == (0o600 if holds else 0o644)
    assert done.startswith("config.yml: written with 1 exporter")
    assert ("0600" in done) is holds
    assert (here / "config.yml").read_text() == result.text


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_there_is_left_alone(here: Path, kind: str) -> None:
    target = here / "config.yml"
    if kind == "file":
        target.write_text("mine")
    elif kind == "link":
        target.symlink_to("elsewhere.yml")
    else:
        target.mkdir()
    with pytest.raises(ConfigError, match=r"config.yml: it exists already and is left as it is"):
        write(read(["debian.yml"]), "config.yml")
    assert not (here / "elsewhere.yml").exists()
    assert target.is_dir() or target.is_symlink() or target.read_text() == "mine"


def test_a_file_that_cannot_be_written_is_an_error(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/config.yml: not written: No such file or directory"):
        write(read(["debian.yml"]), "nowhere/config.yml")
    with pytest.raises(ConfigError, match=r"/dev/full: it exists already"):
        write(read(["debian.yml"]), "/dev/full")


def test_texts_are_those_of_the_file_whatever_is_in_them(here: Path) -> None:
    texts = [
        "yes",
        "1",
        "a: b",
        "#",
        "'\"\\",
        "{}",
        "-",
        "%",
        "a\nb",
        "\u00fc",
        "",
        " x ",
        "\t",
        "null",
        "!x",
        "*x",
    ]
    entry = {"command": "/bin/true", "args": texts, "env": {f"E{n}": text for n, text in enumerate(texts)}}
    result = imported(
        here, yaml.safe_dump({"modules": {"x": {"method": "exec", "exec": entry}}}, sort_keys=False)
    )
    (exporter,) = loaded(result).exporters
    assert exporter.command is not None
    assert list(exporter.command.arguments) == texts
    assert [value for _, value in exporter.command.env] == texts


def test_numbers_and_booleans_are_texts_where_go_takes_them_for_that(here: Path) -> None:
    result = module(here, "method: exec, exec: {command: /bin/true, args: [1, true, 0x10], env: {A: 1.50}}")
    (exporter,) = loaded(result).exporters
    assert exporter.command is not None
    assert exporter.command.arguments == ("1", "true", "0x10")
    assert exporter.command.env == (("A", "1.50"),)


def test_anchors_and_merges_are_followed(here: Path) -> None:
    text = "modules:\n  a: &a {method: http, timeout: 1s, http: {port: 1}}\n  b: {<<: *a, http: {port: 2}}\n"
    (a, b) = loaded(imported(here, text)).exporters
    assert (a.timeout_seconds, b.timeout_seconds) == (1.0, 1.0)
    assert [str(one.url) for one in (a, b)] == ["http://localhost:1/metrics", "http://localhost:2/metrics"]


def test_what_was_read_is_known_with_its_place(here: Path) -> None:
    (node, *_) = read_expexp(["debian.yml"]).modules
    assert isinstance(node.source, HttpModule)
    assert (node.place.line, node.place.column) == (3, 3)
    assert (node.at("http.port").line, node.at("http.port").column) == (6, 13)
    assert node.at("http.path") == node.place
