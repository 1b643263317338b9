"""Des pages légères : les seules icônes dont le livre se sert, des images qui attendent qu'on arrive à elles, aucun
script ni aucune figure que la page ne montre, rien qui retienne son texte. Et une construction légère, elle aussi.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ICON_RULE = re.compile(r'((?:\.fa-[\w-]+::?before,?)+)\{content:"\\([0-9a-f]+)"\}')
ESCAPE = re.compile(r'"\\([ef][0-9a-f]{3})"')
PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
IMAGE = re.compile(r'<img (?![^>]*\bloading=)([^>]*\bsrc="(?!data:|https?:)([^"]+\.png)"[^>]*?) ?/?>')
# Le thème charge la recherche et son index dans chaque page, pour une recherche à la frappe que ce livre n'a pas.
SEARCH = re.compile(
    r'\s*<script src="[^"]*(?:_static/searchtools|_static/language_data|searchindex)\.js[^"]*"></script>'
)
# Seul documentation_options.js doit précéder le script, écrit dans la page, qui le complète.
BLOCKING = re.compile(r'<script (?=(?:data-[\w-]+="[^"]*" )?src="(?![^"]*documentation_options))')
# Ce que myst-nb écrit des contrôles d'un carnet : l'état de tous, et la place de ceux que la page montre.
STATE = re.compile(r'(?s)(<script type="application/vnd\.jupyter\.widget-state\+json">)(.*?)(?=</script>)')
VIEW = re.compile(r'(?s)<script type="application/vnd\.jupyter\.widget-view\+json">(.*?)</script>')
LEAST_SEEN = 8  # sur 255 niveaux : un écart de couleur que l'œil ne voit pas
_MENUS: dict[tuple[Any, ...], str] = {}
MODEL = re.compile(r"IPY_MODEL_(\w+)")


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


def shrink_image(path: Path) -> None:
    """Range une image opaque sur 256 couleurs, si l'œil n'y voit rien : trois fois moins d'octets."""
    import numpy as np
    from PIL import Image

    image: Image.Image = Image.open(path)
    if image.mode not in ("RGB", "RGBA") or (image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255):
        return
    image = image.convert("RGB")
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    gap = np.abs(np.asarray(palette.convert("RGB"), dtype=int) - np.asarray(image, dtype=int))
    if gap.max() <= LEAST_SEEN:
        palette.save(path, optimize=True)


def lighten_scripts(text: str) -> str:
    """Une page, hors celle de la recherche, sans les scripts de celle-ci ; les autres laissent passer le texte."""
    return BLOCKING.sub("<script defer ", SEARCH.sub("", text))


def drop_hidden_figures(text: str) -> str:
    """Une page sans l'état des figures qu'elle ne montre pas : celles que créent les preuves, cellules cachées."""

    def prune(found: re.Match[str]) -> str:
        saved = json.loads(found[2])
        models = saved["state"]
        named = {key: set(MODEL.findall(json.dumps(model["state"]))) for key, model in models.items()}
        shown: set[str] = set()
        waiting = [json.loads(view)["model_id"] for view in VIEW.findall(text)]
        while waiting:
            if (key := waiting.pop()) in models and key not in shown:
                shown.add(key)
                waiting += named[key]
        # Un lien entre deux figures montrées ne se montre pas lui-même.
        shown |= {
            key for key, model in models.items() if model["model_name"].endswith("LinkModel") and named[key] <= shown
        }
        saved["state"] = {key: model for key, model in models.items() if key in shown}
        return found[1] + json.dumps(saved)

    return STATE.sub(prune, text)


def defer_images(text: str, page: Path) -> str:
    """Charge chaque image quand on s'en approche ; ses dimensions, écrites, lui gardent sa place."""
    from PIL import Image

    def defer(match: re.Match[str]) -> str:
        file = page.parent / unquote(match[2])
        if not file.is_file() or "width" in match[1] or "style=" in match[1]:
            return f'<img loading="lazy" {match[1]}>'
        width, height = Image.open(file).size
        return f'<img loading="lazy" width="{width}" height="{height}" {match[1]}>'

    return IMAGE.sub(defer, text)


def _share_menu(app: Any, pagename: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Dessine une seule fois le menu des pages du code, qui n'y figurent pas : d'un même dossier, c'est le même."""
    if pagename.startswith("_modules/"):
        menu = context["toctree"]

        def shared(**options: Any) -> str:
            key = (pagename.count("/"), *sorted(options.items()))
            if key not in _MENUS:
                _MENUS[key] = menu(**options)
            return _MENUS[key]

        context["toctree"] = shared


def _lighten(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir)
        subset_icons(folder)
        for image in folder.glob("_images/*.png"):
            shrink_image(image)
        for page in folder.rglob("*.html"):
            text = defer_images(drop_hidden_figures(page.read_text(encoding="utf-8")), page)
            page.write_text(text if page.name == "search.html" else lighten_scripts(text), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Allège le livre une fois construit."""
    app.connect("builder-inited", lambda app: _MENUS.clear())
    app.connect("html-page-context", _share_menu)
    app.connect("build-finished", _lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
