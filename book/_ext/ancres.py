"""Les liens `carnet.ipynb#cible` : MyST n'y reconnaît que les titres ; ici, aussi les cibles écrites `(cible)=`.

Écrits ainsi, ils mènent au bon fichier dans JupyterLab et au bon endroit dans le livre.
"""

from __future__ import annotations

from typing import Any


def _add_targets(app: Any, doctree: Any) -> None:
    metadata = app.env.metadata[app.env.docname]
    slugs = dict(metadata.get("myst_slugs", {}))
    for name, explicit in doctree.nametypes.items():
        identifier = doctree.nameids.get(name)
        if explicit and identifier:
            slugs.setdefault(name, (0, identifier, name))  # (ligne, identifiant, texte par défaut)
    metadata["myst_slugs"] = slugs


def setup(app: Any) -> dict[str, Any]:
    """Complète les cibles de chaque page, une fois lue."""
    app.connect("doctree-read", _add_targets)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
