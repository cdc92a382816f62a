"""Files that cannot be read, flags that beat keys, TLS files, and input that is out to hurt."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from exporter_proxy.config import (
    ConfigError,
    ExternalUrl,
    ListenAddress,
    Overrides,
    Problem,
    load_config,
    parse_config,
)

GOOD = b"exporters: {a: {url: http://127.0.0.1:9100/metrics}}\n"


def problems(data: bytes, overrides: Overrides | None = None, base_dir: Path | str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.yml", overrides or Overrides(), base_dir)
    return [str(problem) for problem in caught.value.problems]


def file_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    (problem,) = caught.value.problems
    assert (problem.source, problem.line, problem.column, problem.key_path) == (str(path), None, None, "")
    assert str(problem) == f"{path}: {problem.message}"
    return problem.message


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A file that the test may not read; root may read everything, so root becomes nobody for a while."""
    file = tmp_path / "locked"
    file.touch(mode=0)
    if os.geteuid() != 0:
        yield file
        return
    os.seteuid(65534)
    try:
        yield file
    finally:
        os.seteuid(0)


def test_problem_reads_as_file_line_column_key_message() -> None:
    problem = Problem("config.yml", 14, 14, "exporters.node_exporter.timeout", "expected a duration")
    assert str(problem) == "config.yml:14:14: exporters.node_exporter.timeout: expected a duration"
    assert str(Problem("config.yml", 3, 1, "", "not valid YAML")) == "config.yml:3:1: not valid YAML"


def test_load_reads_the_file_and_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(GOOD)
    assert load_config(str(path)) == parse_config(GOOD, str(path))


def test_missing_file(tmp_path: Path) -> None:
    assert file_problem(tmp_path / "config.yml") == (
        "no such file; name the right one with --config.file, or start from config.example.yml"
    )


def test_directory(tmp_path: Path) -> None:
    assert file_problem(tmp_path) == "is a directory; name the file in it with --config.file"


def test_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert file_problem(tmp_path / "file" / "config.yml").startswith("not readable (Not a directory)")


def test_name_that_cannot_be_one(tmp_path: Path) -> None:
    assert file_problem(tmp_path / "a\0b").startswith("not the name of a file")


def test_unreadable_file(locked: Path) -> None:
    assert file_problem(locked) == (
        "not readable (permission denied); make it readable for the user that runs exporter_proxy"
    )


def test_file_without_end() -> None:
    assert file_problem(Path("/dev/zero")) == "larger than 16 MiB; this is not a configuration file"


def test_not_utf8() -> None:
    assert problems(b"# caf\xe9\n" + GOOD) == [
        "config.yml: not UTF-8 (byte 0xe9 in line 1); save it as UTF-8"
    ]
    assert problems("exporters: {}".encode("utf-16")) == [
        "config.yml: not UTF-8 (byte 0xff in line 1); save it as UTF-8"
    ]


def test_byte_order_mark_moves_no_column() -> None:
    assert problems(b"\xef\xbb\xbflisten: x\n" + GOOD)[0].startswith("config.yml:1:9: listen: ")
    assert parse_config(b"\xef\xbb\xbf" + GOOD, "config.yml").exporters


def test_columns_count_characters() -> None:
    assert problems("exporters: {ü: {url: http://h}, a: 5}".encode())[1].startswith(
        "config.yml:1:36: exporters.a: "
    )


@pytest.mark.parametrize(
    ("overrides", "listen", "prefix"),
    [
        (Overrides(), (ListenAddress("127.0.0.1", 1), ListenAddress("127.0.0.1", 2)), "/file"),
        (Overrides(listen=(":3", ":0", ":0")), (ListenAddress("", 3), *[ListenAddress("", 0)] * 2), "/file"),
        (
            Overrides(route_prefix="/flag/"),
            (ListenAddress("127.0.0.1", 1), ListenAddress("127.0.0.1", 2)),
            "/flag",
        ),
        (Overrides(listen=("[::1]:4",), route_prefix="/"), (ListenAddress("::1", 4),), ""),
        (
            Overrides(listen=(":3",), external_url="https://example.org/vm1/"),
            (ListenAddress("", 3),),
            "/file",
        ),
    ],
)
def test_flag_beats_its_key(overrides: Overrides, listen: tuple[ListenAddress, ...], prefix: str) -> None:
    data = b'listen: ["127.0.0.1:1", "127.0.0.1:2"]\nroute_prefix: /file\n' + GOOD
    config = parse_config(data, "config.yml", overrides)
    assert config.listen == listen
    assert config.route_prefix == prefix


@pytest.mark.parametrize(
    ("url", "route_prefix", "external", "text", "prefix"),
    [
        ("https://a.b/vm1/", None, ExternalUrl("https", "a.b", "/vm1"), "https://a.b/vm1", "/vm1"),
        ("https://a.b/vm1", "/", ExternalUrl("https", "a.b", "/vm1"), "https://a.b/vm1", ""),
        ("http://h:8080/a/b", "/p", ExternalUrl("http", "h:8080", "/a/b"), "http://h:8080/a/b", "/p"),
        ("HTTP://[::1]:80", None, ExternalUrl("http", "[::1]", ""), "http://[::1]", ""),
    ],
)
def test_the_route_prefix_is_by_default_the_path_of_the_external_url(
    url: str, route_prefix: str | None, external: ExternalUrl, text: str, prefix: str
) -> None:
    config = parse_config(GOOD, "config.yml", Overrides(external_url=url, route_prefix=route_prefix))
    assert config.external_url == external
    assert config.route_prefix == prefix
    assert str(external) == text


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("vm1", 'it must begin with "http://" or "https://"'),
        ("https:/h", '"//" must follow the scheme'),
        ("http+unix:///run/x.sock:/", 'it must begin with "http://" or "https://"'),
        ("https://u:s3cr3t@h/", "a user name and password do not belong in a URL"),
        ("https://h/?a=b", 'there is no "?" in it'),
        ("https://h/a//b", '"//" would not survive on the way through most clients'),
        ("https://h/%41", "a path is matched as it is written, without percent-encoding"),
    ],
)
def test_an_external_url_that_is_none(url: str, why: str) -> None:
    (problem,) = problems(GOOD, Overrides(external_url=url))
    expected = '--web.external-url: expected a URL such as "https://example.org/exporters", got '
    assert problem.startswith(expected)
    assert problem.endswith(f": {why}")
    assert "s3cr3t" not in problem


def test_problems_of_flags_come_with_those_of_the_file() -> None:
    overrides = Overrides(listen=("9099", ":1", ":1", "http://u:s3cr3t@h"), route_prefix="flag")
    expected = 'expected an address such as "0.0.0.0:9099", ":9099" or "[::1]:9099", got'
    assert problems(b"listen: x\n" + GOOD, overrides) == [
        f'--web.listen-address: {expected} "9099": the colon is missing, did you mean ":9099"?',
        f'--web.listen-address: {expected} "http://***@h": '
        "it takes an address only, without a scheme or a path",
        '--web.listen-address: ":1" is given twice',
        '--web.route-prefix: expected "/" or a path such as "/exporters", got "flag": it must begin with "/"',
        f'config.yml:1:9: listen: {expected} "x": the port is missing',
    ]
    assert problems(b"[", overrides)[-1].startswith("config.yml:2:1: not valid YAML: ")


def test_bad_flag_alone_is_a_problem() -> None:
    assert len(problems(GOOD, Overrides(listen=("",)))) == 1


def test_one_mistake_behind_many_aliases_is_shown_once() -> None:
    data = b"exporters:\n  a: &a {url: http://h, timeout: 5, path: /a}\n" + b"".join(
        b"  b%d: {<<: *a, path: /b%d}\n" % (number, number) for number in range(100)
    )
    assert problems(data) == [
        'config.yml:2:34: exporters.a.timeout: expected a duration such as "10s", got the number 5: '
        "the unit is missing"
    ]


TLS = b"tls: {certfile: server.crt, keyfile: server.key}\n" + GOOD


@pytest.fixture(scope="module")
def issued() -> tuple[bytes, bytes, bytes]:
    """A certificate, its key, and the key of another."""
    authority = trustme.CA()
    first, second = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in first.cert_chain_pems)
    return chain, first.private_key_pem.bytes(), second.private_key_pem.bytes()


def encrypted(key: bytes) -> bytes:
    """The key behind a password."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


def test_certificate_and_key_that_belong_together(tmp_path: Path, issued: tuple[bytes, bytes, bytes]) -> None:
    certificate, key, _ = issued
    (tmp_path / "server.crt").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    assert parse_config(TLS, "config.yml", base_dir=tmp_path).tls is not None


def test_certificate_and_key_in_one_file(tmp_path: Path, issued: tuple[bytes, bytes, bytes]) -> None:
    (tmp_path / "server.pem").write_bytes(issued[0] + issued[1])
    data = b"tls: {certfile: server.pem, keyfile: server.pem}\n" + GOOD
    assert parse_config(data, "config.yml", base_dir=tmp_path).tls is not None


NO_CERTIFICATE = (
    'config.yml:1:17: tls.certfile: no PEM certificate in this file (it begins "-----BEGIN CERTIFICATE-----")'
)
NO_KEY = (
    'config.yml:1:38: tls.keyfile: no PEM private key in this file (it begins "-----BEGIN PRIVATE KEY-----")'
)
NOT_ITS_KEY = "config.yml:1:38: tls.keyfile: this key does not belong to the certificate in tls.certfile"
PASSWORD = (
    "config.yml:1:38: tls.keyfile: this key is protected by a password, which is not supported, "
    "store it without"
)


@pytest.mark.parametrize(
    ("certificate", "key", "expected"),
    [
        ("certificate", "other key", NOT_ITS_KEY),
        ("certificate", "encrypted key", PASSWORD),
        ("certificate", "certificate", NO_KEY),
        ("certificate", "text", NO_KEY),
        ("certificate", "broken key", NO_KEY),
        ("key", "key", NO_CERTIFICATE),
        ("text", "key", NO_CERTIFICATE),
        ("empty", "empty", NO_CERTIFICATE),
        ("broken certificate", "key", NO_CERTIFICATE),
    ],
)
def test_bad_pair(
    tmp_path: Path, issued: tuple[bytes, bytes, bytes], certificate: str, key: str, expected: str
) -> None:
    contents = {
        "certificate": issued[0],
        "key": issued[1],
        "other key": issued[2],
        "encrypted key": encrypted(issued[1]),
        "text": b"hello\n",
        "empty": b"",
        "broken certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "broken key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    }
    (tmp_path / "server.crt").write_bytes(contents[certificate])
    (tmp_path / "server.key").write_bytes(contents[key])
    assert problems(TLS, base_dir=tmp_path) == [expected]


def test_tls_files_that_cannot_be_read(locked: Path) -> None:
    data = b"tls: {keyfile: /, certfile: locked}\n" + GOOD
    assert problems(data, base_dir=locked.parent) == [
        'config.yml:1:16: tls.keyfile: "/": not a regular file',
        'config.yml:1:29: tls.certfile: "locked": not readable (permission denied), make it readable '
        "for the user that runs exporter_proxy",
    ]


def test_aliases_of_aliases_end_in_a_message() -> None:
    """Nine aliases a level, each of nine, stand for more values than there is memory."""
    merges = b"".join(
        b"  e%d: &e%d {<<: [%s], url: http://h}\n" % (level, level, b", ".join([b"*e%d" % (level - 1)] * 9))
        for level in range(1, 20)
    )
    data = b"exporters:\n  e0: &e0 {url: http://h}\n" + merges
    assert len(parse_config(data, "config.yml").exporters) == 20
    lists = b"".join(
        b"x%d: &x%d [%s]\n" % (level, level, b", ".join([b"*x%d" % (level - 1)] * 9))
        for level in range(1, 20)
    )
    started = time.process_time()
    assert len(problems(b"x0: &x0 [a]\n" + lists + GOOD)) == 20
    many = b"exporters:\n  a: &a {url: http://h, headers: {%s}}\n" % b", ".join(
        b"h%d: x" % n for n in range(1000)
    )
    many += b"".join(b"  b%d: {<<: *a, path: /b%d}\n" % (n, n) for n in range(1000))
    assert problems(many) == ["config.yml: its aliases stand for more than 500000 values"]
    assert time.process_time() - started < 30


@pytest.mark.parametrize("unit", [b"[", b"- ", b"{a: ", b"? "])
def test_deep_nesting_ends_in_a_message_quickly(unit: bytes) -> None:
    """libyaml's composer would overrun the C stack; its scanner takes time quadratic in the depth."""
    started = time.process_time()
    (problem,) = problems(unit * 200_000)
    assert problem.endswith(": nested more than 64 levels deep")
    assert time.process_time() - started < 10


def test_long_chain_of_merges() -> None:
    """Each merges the one before, in places where nothing looks before the end needs them."""
    chain = b"".join(b"? &c%d {<<: *c%d}\n: x\n" % (n, n - 1) for n in range(1, 3000))
    data = b"? &c0 {timeout: 5s}\n: x\n" + chain + b"exporters: {a: {<<: *c2999, url: http://h}}\n"
    assert all("a key must be text, got a mapping" in problem for problem in problems(data))


def test_thousand_exporters_load_quickly() -> None:
    """The budget is 2 s for all of ``check``; it takes 0.1 s on an idle machine."""
    data = b"exporters:\n" + b"".join(
        b"  e%d:\n    url: http://127.0.0.1:9100/metrics\n    timeout: 5s\n    params: {module: [x]}\n"
        % number
        for number in range(1000)
    )
    started = time.process_time()
    config = parse_config(data, "config.yml")
    assert time.process_time() - started < 2
    assert len(config.exporters) == 1000


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/bin/sh -c true", '"/bin/sh": write each argument as an item of its own'),
        (
            "/no/such -c true",
            '"/no/such": there is no such program, install it or write each argument as an item of its own',
        ),
    ],
)
def test_a_command_with_its_arguments_in_one_item(command: str, says: str) -> None:
    (problem,) = problems(f"exporters: {{a: {{command: [{command}]}}}}".encode())
    assert problem == f"config.yml:1:26: exporters.a.command: {says}"
