"""Until when certificates are valid: compared with openssl's own output, and what is no certificate."""

from __future__ import annotations

import base64
import datetime
import subprocess
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config import not_after_timestamp_seconds

AUTHORITY = trustme.CA()
PEM = AUTHORITY.issue_cert("localhost").cert_chain_pems[0].bytes()
DER = x509.load_pem_x509_certificate(PEM).public_bytes(Encoding.DER)


def issued(expires: datetime.datetime) -> bytes:
    return AUTHORITY.issue_cert("localhost", not_after=expires).cert_chain_pems[0].bytes()


def armoured(der: bytes, label: str = "CERTIFICATE") -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def date(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"{text}+00:00")


@pytest.mark.parametrize(
    "end",
    [
        "2030-01-02T03:04:05",
        "2049-12-31T23:59:59",  # the last that is a UTCTime
        "2050-01-01T00:00:00",
        "2400-02-29T12:00:00",
        "9999-12-31T23:59:59",  # RFC 5280: no well-defined end
    ],
)
def test_the_time_is_the_one_that_was_asked_for(end: str) -> None:
    assert not_after_timestamp_seconds(issued(date(end))) == date(end).timestamp()


@pytest.mark.parametrize("key", ["rsa:2048", "ec", "ed25519"])
@pytest.mark.parametrize("form", ["", "-x509v1"])
def test_it_is_what_openssl_says(key: str, form: str, tmp_path: Path) -> None:
    """Also of certificates without a version, which have no extensions."""
    kind = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if key == "ec" else [key]
    command = ["openssl", "req", "-newkey", *kind, "-nodes", "-subj", "/CN=a/O=b", "-keyout", "key"]
    if form:
        subprocess.run([*command, "-out", "csr"], cwd=tmp_path, capture_output=True, timeout=60, check=True)
        command = ["openssl", "x509", "-req", "-in", "csr", "-signkey", "key"]
    else:
        command.append("-x509")
    command += ["-days", "77", "-out", "cert"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    show = ["openssl", "x509", "-in", "cert", "-noout", "-enddate", "-dateopt", "iso_8601"]
    shown = subprocess.run(show, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    end = datetime.datetime.fromisoformat(shown.strip().removeprefix("notAfter="))
    assert not_after_timestamp_seconds((tmp_path / "cert").read_bytes()) == end.timestamp()


def test_of_several_the_first_to_expire_counts() -> None:
    dates = [date(f"{year}-06-01T00:00:00") for year in (2040, 2030, 2035)]
    key = AUTHORITY.private_key_pem.bytes()
    pem = b"some text\n" + key + b"".join(issued(one).replace(b"\n", b"\r\n") for one in dates)
    assert not_after_timestamp_seconds(pem) == dates[1].timestamp()


@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"])
def test_every_name_that_openssl_takes(label: str) -> None:
    assert not_after_timestamp_seconds(armoured(DER, label)) == not_after_timestamp_seconds(PEM)


@pytest.mark.parametrize(
    "pem",
    [b"", b"garbage", AUTHORITY.private_key_pem.bytes(), PEM[:-20]],
    ids=["empty", "garbage", "key", "cut"],  # not the bytes: they are others in each process of pytest-xdist
)
def test_without_a_certificate_there_is_no_time(pem: bytes) -> None:
    assert not_after_timestamp_seconds(pem) is None


@pytest.mark.parametrize(
    "pem",
    [
        armoured(b""),
        armoured(b"\x30"),
        armoured(b"\x30\x80\x00\x00"),
        armoured(b"\x30\x85\x00\x00\x00\x00\x01\x00"),
        armoured(DER[:100]),
        armoured(DER[:-1]),
        armoured(DER.replace(b"\x17\x0d", b"\x04\x0d")),
        PEM.replace(b"\nMII", b"\nM*I"),
        PEM + armoured(b"\x02\x01\x00"),
    ],
    ids=range(9),
)
def test_a_certificate_that_is_none_is_an_error(pem: bytes) -> None:
    assert pem != PEM
    with pytest.raises(ValueError, match=r"."):
        not_after_timestamp_seconds(pem)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DER) - 1), st.binary(max_size=4))
def test_a_damaged_certificate_gives_a_time_or_a_value_error(at: int, put: bytes) -> None:
    try:
        end = not_after_timestamp_seconds(armoured(DER[:at] + put + DER[at + len(put) :]))
    except ValueError:
        return
    assert end is not None
    assert 0 <= abs(end) < 1e12
