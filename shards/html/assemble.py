"""assemble: makes one HTML file of data, scripts and styles. Pure, but for reading package data.

All text of models and data is in `data`; scripts show it with `textContent`, so it is escaped once, by the browser. A
policy in the page forbids every request, and every script and style but these, which are named by their sha256.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

BASE_STYLE, BASE_SCRIPT = "style.css", "base.js"

_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What ends a script or a line in one, and halves of characters, which UTF-8 does not have."""


def package_text(package: str, file: str) -> str:
    """A text file that is part of a package."""
    return files(package).joinpath(file).read_text(encoding="utf-8")


def assemble(
    title: str,
    *,
    data: Any,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    blobs: Mapping[str, bytes] | None = None,
    body: str = "",
) -> str:
    """The whole page.

    title     any text
    data      a JSON value; scripts find it as `page.data`
    scripts, styles   contents of files, in order; base.js and style.css come before them
    blobs     name -> zlib-compressed bytes that scripts ask for with `page.blob(name)`; names of letters, digits and -
    body      HTML of our own, which comes before the sections of the scripts
    """
    all_styles = [package_text(__package__, BASE_STYLE), *styles]
    all_scripts = [package_text(__package__, BASE_SCRIPT), *scripts, "page.start();"]
    policy = (
        f"default-src 'none'; script-src {_digests(all_scripts)}; style-src {_digests(all_styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        *(f"<style>{style}</style>" for style in all_styles),
    ]
    end = [
        f'<script type="application/json" id="data">{embedded_json(data)}</script>',
        *(_blob(name, content) for name, content in (blobs or {}).items()),
        *(f"<script>{script}</script>" for script in all_scripts),
    ]
    missing = "<noscript><p>This page needs JavaScript. It makes no request.</p></noscript>"
    top = f"<header><h1>{escape(title)}</h1></header>"
    return (
        "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en"><head>',
                *head,
                "</head><body>",
                top,
                missing,
                body,
                "<main></main>",
                *end,
            ]
        )
        + "\n</body></html>\n"
    )


def embedded_json(value: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _digests(texts: Iterable[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _blob(name: str, content: bytes) -> str:
    assert re.fullmatch(r"[A-Za-z0-9-]+", name), name
    return f'<script type="application/octet-stream" id="{name}">{base64.b64encode(content).decode()}</script>'
