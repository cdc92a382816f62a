"""What ``/`` is made of, without a daemon: which form is preferred, text made harmless, the page's files."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from exporter_proxy import pages
from exporter_proxy.pages.landing import HTML, JSON, TEXT, preferred_type
from exporter_proxy.pages.overview import MAX_TEXT_CHARS, one_line

FILES = resources.files(pages)
STYLE, SCRIPT, SKELETON = (
    FILES.joinpath(f"landing.{kind}").read_text("utf-8") for kind in ("css", "js", "html")
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, HTML),
        ("application/json", JSON),
        ("APPLICATION/JSON; charset=utf-8", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/html;q=0.5, application/json;q=0.9", JSON),
        ("text/html;q=0.9, application/json;q=0.5", HTML),
        ("text/plain, text/html", TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        (PROMETHEUS, TEXT),
        ("text/html;q=0", TEXT),
        ("text/html;q=nan", TEXT),
        ("text/html;q=x, application/json;q=0.1", JSON),
        ("text/html;q=9", TEXT),
        (";;;,,,q=", TEXT),
    ],
)
def test_the_form_is_the_one_that_accept_prefers(accept: str, kind: str) -> None:
    assert preferred_type(accept) == kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, caf\u00e9 \u05d0 \u4e2d", "plain, caf\u00e9 \u05d0 \u4e2d"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202egpj.exe\u2066\u200b", "\\u202egpj.exe\\u2066\\u200b"),
        ("\x9b31m", "\\x9b31m"),
        ("\udc9b", "\\udc9b"),
        ("x" * (MAX_TEXT_CHARS + 1), "x" * MAX_TEXT_CHARS + "..."),
    ],
)
def test_nothing_that_acts_on_a_screen_is_shown(text: str, shown: str) -> None:
    assert one_line(text) == shown


# -- Colours


def palettes() -> dict[str, dict[str, str]]:
    """The custom properties of both colour schemes."""
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text)) for text in (light, dark)]
    return {"light": found[0], "dark": found[1]}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


TEXT_ON = [
    *((text, ground) for text in ("text", "muted", "link") for ground in ("bg", "surface")),
    *((state, f"{state}-bg") for state in ("up", "down", "slow", "unknown")),
]
GRAPHICS_ON = [(name, "surface") for name in ("bar", "bar-failed", "muted", "down", "link")]


def test_the_measure_of_contrast_is_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: str) -> None:
    """4.5 for text (criterion 1.4.3), 3 for graphics and outlines (1.4.11)."""
    palette = palettes()[scheme]
    wanted = [(pair, 4.5) for pair in TEXT_ON] + [(pair, 3.0) for pair in GRAPHICS_ON]
    low = {
        pair: round(contrast(palette[pair[0]], palette[pair[1]]), 2)
        for pair, least in wanted
        if contrast(palette[pair[0]], palette[pair[1]]) < least
    }
    assert not low


def test_both_schemes_have_every_colour_and_there_are_no_others() -> None:
    light, dark = palettes()["light"], palettes()["dark"]
    assert light.keys() == dark.keys()
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert used == light.keys()
    elsewhere = re.sub(r"^\s+--[\w-]+: #[0-9a-f]{6};$", "", STYLE, flags=re.MULTILINE)
    assert not re.search(r":[^{};]*(#[0-9a-fA-F]{3,8}\b|\brgb|\bhsl)[^{};]*;", elsewhere)


# -- The files


def test_nothing_is_loaded_from_anywhere() -> None:
    for text in (SKELETON, STYLE, SCRIPT):
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text))
        assert urls <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in STYLE
    assert "url(" not in STYLE
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", SKELETON)


def test_the_script_makes_no_markup_of_strings() -> None:
    """Trusted Types in the page's policy would stop it, but not in every browser."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", SCRIPT)


def test_no_file_can_end_the_element_that_it_stands_in() -> None:
    assert "</" not in STYLE
    assert "</" not in SCRIPT
    assert "<!--" not in STYLE + SCRIPT
    for marker in ("/* landing.css */", "/* landing.js */", "<!-- table -->"):
        assert SKELETON.count(marker) == 1
        assert marker not in STYLE + SCRIPT
