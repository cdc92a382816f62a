"""The ``defaults`` and ``exporters`` sections: what is scraped, and by which rules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from exporter_proxy.config.addresses import EXPORTER_NAME, EXPORTER_PATH
from exporter_proxy.config.credentials import (
    check_one_authorization,
    read_basic_auth,
    read_bearer_token_file,
    read_client_tls,
)
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.schema import CommandSource, Exporter, FileSource, UpstreamUrl
from exporter_proxy.config.sections import Section
from exporter_proxy.config.sources import (
    COMMAND_KEYS,
    FILE_KEYS,
    SOURCE_KEYS,
    URL_EXAMPLE,
    URL_KEYS,
    check_verification,
    read_source,
)
from exporter_proxy.config.values import (
    BOOLEAN,
    CONTENT_TYPE,
    HEADER_VALUE,
    HOST_HEADER,
    LABEL_NAME,
    LABEL_VALUE,
    NETWORK,
    PARAM_NAME,
    PARAM_VALUE,
    PASSED_HEADER_NAME,
    SET_HEADER_NAME,
    duration,
    size,
    whole_number,
)

DEFAULTS_KEYS = (
    "timeout",
    "timeout_offset",
    "max_response_bytes",
    "max_concurrent",
    "verify",
    "share_for",
    "share_max_bytes",
)
EXPORTER_KEYS = (
    *SOURCE_KEYS,
    "path",
    *DEFAULTS_KEYS,
    "allow_clients",
    *URL_KEYS,
    "content_type",
    "labels",
    *FILE_KEYS,
    *COMMAND_KEYS,
)

SCRAPE_TIMEOUT = duration("2m")
TIMEOUT_OFFSET = duration("2m", zero=True)
RESPONSE_BYTES = size("1B", "1024GiB")
SHARE_FOR = duration("1h", zero=True)
SHARE_MAX_BYTES = size("1B", "1GiB")
CONCURRENT = whole_number(1, 1_000_000)

PASSED_CREDENTIALS = (
    "Authorization carries the credentials for this daemon (basic_auth_users or bearer_tokens_file), "
    "which no exporter may see: set the exporter's own under headers"
)


ReadExporter = tuple[Exporter, Section]
"""An exporter, and its entry for further problems with it."""


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What an exporter that does not say otherwise gets; as in ``Exporter``."""

    timeout_seconds: float | None = None
    timeout_offset_seconds: float = 0.5
    max_response_bytes: int = 64 * 2**20
    max_concurrent: int = 64
    verify: bool = False
    share_for_seconds: float = 0.0
    share_max_bytes: int = 8 * 2**20


def read_exporters(top: Section, included: Sequence[Section], base_dir: str) -> list[ReadExporter]:
    """The exporters that could be read, in the order of the files; the others left a problem behind.

    ``included`` are further files with exporters, to which the ``defaults`` of ``top`` apply, too.
    Relative paths of files are taken from ``base_dir``.
    """
    defaults_section = top.section("defaults", DEFAULTS_KEYS)
    defaults = _Defaults() if defaults_section is None else _read_limits(defaults_section, _Defaults())
    read: list[ReadExporter] = []
    name_taken_by: dict[str, Section] = {}
    path_taken_by: dict[str, tuple[str, Section]] = {}
    is_empty = True
    for file in (top, *included):
        section = file.section("exporters", None, "a mapping from names to exporters")
        if section is None:
            is_empty = is_empty and "exporters" not in file
            continue
        is_empty = is_empty and section.is_empty
        for name in section:
            named_well = section.check_key(name, EXPORTER_NAME)
            other = name_taken_by.setdefault(name, section)
            if other is not section:
                place = other.where_key(name, section)
                section.report_key(name, f"there is one already at {place}, give one of them another name")
            entry = section.section(name, EXPORTER_KEYS, 'a mapping with at least "url"')
            if entry is None:
                continue
            path = entry.get("path", EXPORTER_PATH, f"/{name}/metrics")
            first_name, first = path_taken_by.setdefault(path, (name, entry))
            if first_name != name:
                place = first.where("path", entry)
                entry.report("path", f'"{path}" is already the path of exporters.{first_name} at {place}')
            exporter = _read_exporter(name, path, entry, defaults, base_dir)
            if exporter is not None and named_well:
                read.append((exporter, entry))
    if is_empty:
        _report_nothing(top)
    return read


def _report_nothing(top: Section) -> None:
    message = f"nothing to serve, add at least one exporter with {_url_line()}"
    if "include" in top:
        message += ", here or in a file that include names"
    if "exporters" in top:
        top.report("exporters", message)
    else:
        top.report_missing("exporters", message)


def report_passed_credentials(read: Sequence[ReadExporter]) -> None:
    """A problem for each exporter that would see what scrapers show to this daemon itself."""
    for exporter, entry in read:
        if "authorization" in exporter.pass_headers:
            entry.report("pass_headers", PASSED_CREDENTIALS)


def exporter_sections(tops: Sequence[Section]) -> list[Section]:
    """The ``exporters`` of these files, without a further word on what is none."""
    found = [top.section("exporters", None) for top in tops if top.is_mapping("exporters")]
    return [section for section in found if section is not None]


def report_unknown_exporters(
    section: Section, key: str, names: Iterable[str], tops: Sequence[Section]
) -> None:
    """A problem with ``key`` for each of ``names`` that none of these files has an exporter for."""
    known = [name for exporters in exporter_sections(tops) for name in exporters]
    for name in dict.fromkeys(names if known else ()):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {quoted(near[0])}?" if near else ""
            section.report(key, f"there is no exporter {quoted(name)}{hint}")


def _url_line() -> str:
    return f'a line such as "url: {URL_EXAMPLE}"'


def _read_exporter(
    name: str, path: str, entry: Section, defaults: _Defaults, base_dir: str
) -> Exporter | None:
    source = read_source(entry, base_dir)
    url = source if isinstance(source, UpstreamUrl) else None
    is_url = source is None or url is not None
    if not is_url:
        # Nobody on this host need be asked twice at once, and no exporter has made this page.
        defaults = replace(defaults, max_concurrent=1, verify=True)
    limits = _read_limits(entry, defaults)
    allow_params = entry.get_list("allow_params", PARAM_NAME, None)
    params = _read_params(entry)
    pass_headers = entry.get_list("pass_headers", PASSED_HEADER_NAME, ())
    headers = _read_headers(entry)
    basic_auth = read_basic_auth(entry, base_dir)
    bearer_token_file = read_bearer_token_file(entry, base_dir)
    check_one_authorization(entry, headers)
    tls = read_client_tls(entry, url, base_dir)
    allow_clients = entry.get_list("allow_clients", NETWORK, None)
    insecure_skip_verify = entry.get("insecure_skip_verify", BOOLEAN, False)
    content_type = entry.get("content_type", CONTENT_TYPE, None)
    labels = _read_labels(entry)
    if source is None:
        return None
    if not isinstance(source, UpstreamUrl):
        check_verification(entry, limits.verify, source, content_type)
    return Exporter(
        name=name,
        path=path,
        url=url,
        timeout_seconds=limits.timeout_seconds,
        timeout_offset_seconds=limits.timeout_offset_seconds,
        max_response_bytes=limits.max_response_bytes,
        max_concurrent=limits.max_concurrent,
        verify=limits.verify,
        share_for_seconds=limits.share_for_seconds,
        share_max_bytes=limits.share_max_bytes,
        allow_clients=allow_clients,
        allow_params=None if allow_params is None and is_url else frozenset(allow_params or ()),
        params=params,
        pass_headers=tuple(dict.fromkeys(pass_headers)),
        headers=headers,
        basic_auth=basic_auth,
        bearer_token_file=bearer_token_file,
        tls=tls,
        insecure_skip_verify=insecure_skip_verify,
        content_type=content_type,
        labels=labels,
        file=source if isinstance(source, FileSource) else None,
        command=source if isinstance(source, CommandSource) else None,
    )


def _read_limits(section: Section, defaults: _Defaults) -> _Defaults:
    """The keys that ``defaults`` and an exporter have in common."""
    return _Defaults(
        timeout_seconds=section.get("timeout", SCRAPE_TIMEOUT, defaults.timeout_seconds),
        timeout_offset_seconds=section.get("timeout_offset", TIMEOUT_OFFSET, defaults.timeout_offset_seconds),
        max_response_bytes=section.get("max_response_bytes", RESPONSE_BYTES, defaults.max_response_bytes),
        max_concurrent=section.get("max_concurrent", CONCURRENT, defaults.max_concurrent),
        verify=section.get("verify", BOOLEAN, defaults.verify),
        share_for_seconds=section.get("share_for", SHARE_FOR, defaults.share_for_seconds),
        share_max_bytes=section.get("share_max_bytes", SHARE_MAX_BYTES, defaults.share_max_bytes),
    )


def _read_params(entry: Section) -> tuple[tuple[str, str], ...]:
    section = entry.section("params", known_keys=None)
    if section is None:
        return ()
    pairs: list[tuple[str, str]] = []
    for name in section:
        if section.check_key(name, PARAM_NAME):
            values = section.get_list(name, PARAM_VALUE, (), one_will_do=True)
            pairs.extend((name, value) for value in values)
    return tuple(pairs)


def _read_labels(entry: Section) -> tuple[tuple[str, str], ...]:
    section = entry.section("labels", known_keys=None)
    if section is None:
        return ()
    labels = [
        (name, section.get(name, LABEL_VALUE, "")) for name in section if section.check_key(name, LABEL_NAME)
    ]
    return tuple(labels)


def _read_headers(entry: Section) -> tuple[tuple[str, str], ...]:
    section = entry.section("headers", known_keys=None)
    if section is None:
        return ()
    pairs: dict[str, tuple[str, str]] = {}
    for name in section:
        if not section.check_key(name, SET_HEADER_NAME):
            continue
        first = pairs.get(name.lower())
        if first is not None:
            section.report(name, f'the same header as "{first[0]}", upper and lower case do not differ')
        value = section.get(name, HOST_HEADER if name.lower() == "host" else HEADER_VALUE, "")
        pairs[name.lower()] = (name, value)
    return tuple(pairs.values())
