"""Les boutons du dépôt, tirés d'une seule adresse : `repository.url`, dans `_config.yml`. Vide, il n'y en a aucun.

Toute adresse de GitHub ou de GitLab donne « dépôt », « modifier » et « signaler ». Une adresse de GitHub donne aussi
Binder et Colab, qui y lisent les carnets, et le livre entier, que `.github/workflows/livre.yml` publie.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.errors import ConfigError

ADDRESS = re.compile(r"https://[\w.-]*(?:github|gitlab)[\w.-]*(?:/[\w.-]+){2,}")
GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")
BOOK = "lrq-livre.zip"  # au pied du site publié


def site(address: str) -> str | None:
    """L'adresse du livre publié par GitHub Pages ; None si le dépôt n'est pas sur GitHub."""
    if (found := GITHUB.fullmatch(address)) is None:
        return None
    owner, name = found[1].lower(), found[2]
    home = f"{owner}.github.io"
    return f"https://{home}/" if name.lower() == home else f"https://{home}/{name}/"


def _set_buttons(app: Any, config: Any) -> None:
    """Règle le thème d'après l'adresse."""
    options = config.html_theme_options
    received = options.get("repository_url") or ""
    if not received:
        return
    address = received.rstrip("/").removesuffix(".git")
    if not ADDRESS.fullmatch(address):
        raise ConfigError(
            f"repository.url : reçu {received!r}, attendu l'adresse d'un dépôt GitHub ou GitLab "
            "(https://github.com/compte/depot), ou rien."
        )
    options["repository_url"] = address
    options |= dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), True)
    if GITHUB.fullmatch(address):
        options["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }


def _offer_the_book(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Ajoute le livre entier au menu « télécharger » des pages."""
    address = site(app.config.html_theme_options.get("repository_url") or "")
    menus = [button for button in context["header_buttons"] if button["label"] == "download-buttons"]
    if address and menus:
        menus[0]["buttons"].append(
            {
                "type": "link",
                "url": address + BOOK,
                "text": "Livre entier (.zip)",
                "tooltip": "Télécharger le livre entier, à lire hors ligne",
                "icon": "fas fa-book",
                "label": "download-book-button",
            }
        )


def setup(app: Any) -> dict[str, Any]:
    """Règle le thème avant qu'il ne lise ses options, et complète son menu une fois qu'il l'a fait."""
    app.connect("config-inited", _set_buttons)
    app.connect("html-page-context", _offer_the_book, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
