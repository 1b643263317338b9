"""Le livre construit, en un fichier à lire hors ligne : `make zip`.

L'archive est reproductible : un même livre donne les mêmes octets, quels que soient l'heure, la machine et l'ordre où
son disque range les fichiers.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from lrq.version import __version__

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build"
LICENSES = ("LICENSE", "LICENCES.md")
# L'inventaire pour d'autres livres, les notes de Sphinx à lui-même, ce qui ne sert qu'à déboguer le thème, ses mots
# dans d'autres langues, et les polices que tout navigateur remplace par leur version woff2.
USELESS = ("objects.inv", ".buildinfo*", "*.map", "*webpack-macros.html", "_static/locales/*", "*.ttf")
DATE = (1980, 1, 1, 0, 0, 0)  # la plus ancienne qu'un zip sache écrire
README = """\
Compresser les réseaux de neurones : rang faible et quantification
Version {version}

Ouvrez index.html dans un navigateur. Ni serveur ni connexion : les figures, les formules et la recherche
marchent depuis ce dossier, où que vous le posiez, pourvu qu'il reste entier.

Code : licence MIT (LICENSE). Prose et figures : CC BY 4.0. Poids et données : LICENCES.md.
"""


def pack(book: Path, target: Path, extra: dict[str, bytes]) -> Path:
    """Écrit `target`, dont l'unique dossier porte le nom et réunit les fichiers de `book` et ceux de `extra`.

    Raises
    ------
    FileNotFoundError
        Si `book` n'est pas un livre construit : il n'y a pas d'`index.html`.
    """
    if not (book / "index.html").is_file():
        raise FileNotFoundError(f"book : reçu {str(book)!r}, attendu le dossier d'un livre construit (make livre).")
    found = {path.relative_to(book).as_posix(): path for path in book.rglob("*") if path.is_file()}
    useful = {name: path for name, path in found.items() if not any(fnmatch(name, kind) for kind in USELESS)}
    written = target.with_suffix(".partiel")
    with ZipFile(written, "w") as archive:
        for name in sorted(useful | extra):
            info = ZipInfo(f"{target.stem}/{name}", DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16  # lisible de tous, même écrit sous Windows
            info.compress_type = ZIP_DEFLATED
            archive.writestr(info, extra[name] if name in extra else useful[name].read_bytes(), compresslevel=9)
    return written.replace(target)


def extras() -> dict[str, bytes]:
    """Ce qui accompagne le livre dans son dossier : le mode d'emploi et les licences."""
    licenses = {name: (ROOT / name).read_bytes() for name in LICENSES}
    return {"LISEZMOI.txt": README.format(version=__version__).encode()} | licenses


def main() -> int:
    """Range `_build/html` dans `_build/lrq-livre-<version>.zip` et dit où ; rend le code de sortie."""
    try:
        target = pack(BUILD / "html", BUILD / f"lrq-livre-{__version__}.zip", extras())
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Le livre en un fichier : {target} ({round(target.stat().st_size / 1e6)} Mo)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
