"""Des pages légères : les seules icônes dont le livre se sert, et des images qui attendent qu'on arrive à elles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ICON_RULE = re.compile(r'((?:\.fa-[\w-]+::?before,?)+)\{content:"\\([0-9a-f]+)"\}')
ESCAPE = re.compile(r'"\\([ef][0-9a-f]{3})"')
PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
IMAGE = re.compile(r'<img (?![^>]*\bloading=)([^>]*\bsrc="(?!data:|https?:)([^"]+\.png)"[^>]*?) ?/?>')


def used_names(folder: Path) -> set[str]:
    """Les icônes que nomment les pages et les scripts."""
    scripts = [*folder.glob("_static/*.js"), *folder.glob("_static/scripts/*.js")]
    text = "".join(path.read_text(encoding="utf-8") for path in [*folder.rglob("*.html"), *scripts])
    return set(re.findall(r"\bfa-[\w-]+", text))


def subset_icons(folder: Path) -> None:
    """Ne garde des icônes, règles et polices (300 ko), que celles que le livre peut montrer."""
    from fontTools import subset

    names = used_names(folder)

    def keep(rule: re.Match[str]) -> str:
        return rule[0] if names & set(re.findall(r"fa-[\w-]+", rule[1])) else ""

    icons: set[int] = set()
    for sheet in [*folder.glob("_static/*.css"), *folder.glob("_static/styles/*.css")]:
        css = sheet.read_text(encoding="utf-8")
        if (lighter := ICON_RULE.sub(keep, css)) != css:
            sheet.write_text(lighter, encoding="utf-8")
        icons |= {int(code, 16) for code in ESCAPE.findall(lighter)} | {
            ord(char) for char in PRIVATE_USE.findall(lighter)
        }
    for path in folder.glob("_static/vendor/fontawesome/webfonts/*.woff2"):
        options = subset.Options(flavor="woff2")
        font = subset.load_font(str(path), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=icons)
        subsetter.subset(font)
        subset.save_font(font, str(path), options)


def defer_images(page: Path) -> None:
    """Charge chaque image quand on s'en approche ; ses dimensions, écrites, lui gardent sa place."""
    from PIL import Image

    def defer(match: re.Match[str]) -> str:
        file = page.parent / unquote(match[2])
        if not file.is_file() or "width" in match[1] or "style=" in match[1]:
            return f'<img loading="lazy" {match[1]}>'
        width, height = Image.open(file).size
        return f'<img loading="lazy" width="{width}" height="{height}" {match[1]}>'

    text = page.read_text(encoding="utf-8")
    page.write_text(IMAGE.sub(defer, text), encoding="utf-8")


def _lighten(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir)
        subset_icons(folder)
        for page in folder.rglob("*.html"):
            defer_images(page)


def setup(app: Any) -> dict[str, Any]:
    """Allège le livre une fois construit."""
    app.connect("build-finished", _lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
