"""What the playground's files promise before any browser reads them: alone, no markup from text, nothing inline."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dspark

FOLDER = Path(dspark.__file__).parent / "serving" / "playground"
MAX_LINES = 400
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody fetches

# Ways from a text to markup, code or a style that a strict policy would have to allow.
FORBIDDEN = {
    ".js": r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|setHTML|srcdoc"
    r"|\beval\b|\bFunction\(|DOMParser|importScripts|setAttribute\(\s*[\"'](?:on|style)|sessionStorage|indexedDB"
    r"|document\.cookie",
    ".css": r"url\(|@import|expression\(",
    ".html": r"\sstyle=|\son\w+=|<style|javascript:",
    ".svg": r"<script|\son\w+=|href",
}


class Reader(HTMLParser):
    """Elements with their attributes, ids, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        self.inline += data.strip() if self._in_script else ""

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def all(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def complaints(folder: Path) -> list[str]:
    """Everything that the files do and shouldn't."""
    found = []
    for path in sorted(folder.iterdir()):
        text = path.read_text(encoding="utf-8")
        if forbidden := FORBIDDEN.get(path.suffix):
            found += [f"{path.name}: {match.group().strip()}" for match in re.finditer(forbidden, text)]
        found += [
            f"{path.name}: {url}" for url in re.findall(r"[\w\"'(]*//[\w-]+\.\w[^\s\"'`]*", text.replace(NAMESPACE, ""))
        ]
        if len(text.splitlines()) > MAX_LINES:
            found.append(f"{path.name}: {len(text.splitlines())} lines, at most {MAX_LINES}")
        if path.suffix == ".html" and Reader(text).inline:
            found.append(f"{path.name}: an inline script")
        for name in re.findall(r'from "\./([^"]+)"', text):
            found += [] if (folder / name).exists() else [f"{path.name}: imports {name}, which is missing"]
    return found


@pytest.fixture(scope="module")
def index() -> Reader:
    return Reader((FOLDER / "index.html").read_text(encoding="utf-8"))


def test_the_files_stand_alone_and_make_no_markup_of_text() -> None:
    assert {"index.html", "app.js", "style.css"} <= {path.name for path in FOLDER.iterdir()}
    assert complaints(FOLDER) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.js", "node.innerHTML = text", "innerHTML"),
        ("a.js", 'node.setAttribute("style", x)', "setAttribute"),
        ("a.js", "document.cookie = key", "document.cookie"),
        ("a.js", 'fetch("https://cdn.example.com/x.js")', "//cdn.example.com"),
        ("a.js", 'import { x } from "./gone.js"', "gone.js, which is missing"),
        ("a.css", "@import 'x.css'", "@import"),
        ("a.css", "a { background: url(x.png) }", "url("),
        ("a.html", '<link href="//fonts.example.org/css">', "//fonts.example.org"),
        ("a.html", "<script>let x = 1</script>", "an inline script"),
        ("a.html", '<p style="color: red">', "style="),
        ("a.html", '<button onclick="x()">', "onclick="),
        ("a.svg", "<svg><script/></svg>", "<script"),
        ("a.js", "\n" * (MAX_LINES + 1), "401 lines"),
    ],
)
def test_control_a_file_that_does_is_caught(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = complaints(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


def test_what_the_page_names_is_there_and_relative(index: Reader) -> None:
    named = index.all("src") + [link for link in index.all("href") if not link.startswith("#")]
    assert len(named) >= 4
    for name in named:
        folder, _, file = name.partition("/")
        assert folder == "playground"
        assert (FOLDER / file).is_file()


def test_every_element_that_the_scripts_ask_for_is_on_the_page(index: Reader) -> None:
    ids = index.all("id")
    assert len(ids) == len(set(ids))
    scripts = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js"))
    asked = set(re.findall(r'(?:byId|new Gauge)\("([\w-]+)"', scripts))
    assert len(asked) > 20
    assert asked <= set(ids)
    pointed = index.all("for") + index.all("aria-controls") + index.all("aria-describedby")
    assert set(pointed) <= set(ids)


def test_the_page_itself_asks_for_a_strict_policy(index: Reader) -> None:
    policy = next(a["content"] for _, a in index.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
