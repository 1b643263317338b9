"""L'orthographe de la prose : pages, carnets et docstrings, relus par hunspell.

Les mots justes que son dictionnaire ignore sont dans `dictionnaire.txt`. Là où hunspell ou son dictionnaire français
manque, ces tests sont sautés, sauf si la variable d'environnement CI est définie : ils échouent alors.
"""

import ast
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
DICTIONARY = Path(__file__).with_name("dictionnaire.txt")
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *ROOT.glob("book/*.md")]
NOTEBOOKS = [path for path in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]
MODULES = [*ROOT.glob("lrq/**/*.py")]

LETTER = "A-Za-zÀ-ÖØ-öø-ÿŒœ"
WORD = re.compile(rf"(?<![\w./@\\^])[{LETTER}]+(?:[’'-][{LETTER}]+)*(?!\w|[=(/]|\.\w)")
ELISION = re.compile(r"^(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu)'", re.IGNORECASE)

# Ce qui n'est pas de la prose, dans l'ordre où on l'ôte.
NOT_PROSE = [
    re.compile(
        r"(?ms)^(?P<fence>[`~]{3,})\{(?:math|bibliography|eval-rst|code|code-block|preuves|etages)\b.*?^(?P=fence)"
    ),
    re.compile(r"(?ms)^ *(?P<fence>[`~]{3,})(?!\{)[^\n]*\n.*?^ *(?P=fence)"),
    re.compile(r"(?s)<!--.*?-->|<(code|pre|kbd)\b.*?</\1>|<[^<>]+>"),
    re.compile(r"(?s)\$\$.*?\$\$|(?<!\\)\$[^$]+\$"),
    re.compile(r"(?m)^:{3,}\{[\w:-]+\}|^[`~]{3,}\{[\w:-]+\}|^ *:[\w-]+:.*$|^\([\w-]+\)=$"),
    re.compile(r"\{(?:cite|numref|eq|ref|doc|term|prf:ref)[\w:-]*\}`[^`]*`"),
    re.compile(r"\{[\w:-]+\}(?=`)"),
    re.compile(r"(`+)(?:(?!\1).)+?\1", re.DOTALL),
    re.compile(r"(?<=\])\([^()\s]*(?:\([^()]*\))?[^()]*\)|https?://\S+"),
    re.compile(r"\{[^{}\n]*\}"),  # attributs
]
ENGLISH_TERM = re.compile(r"(?m)^  \*[^*]+\*")  # le glossaire ouvre chaque définition par le mot anglais, en italique
# Dans une docstring : titres des rubriques et type de ce qui est rendu ou levé, paramètres, rôles, lignes de code.
DOCSTRING = [
    re.compile(r"(?m)^(?:Returns|Raises|Warns|Yields)\n-+\n.*$"),
    re.compile(r"(?m)^(?:Parameters|Attributes|Notes|Examples|References)\n-+$"),
    re.compile(r"(?m)^\w+(?:Error|Warning|Exception)$|^[\w*, ]+ : .*$|^ *>>>.*$"),
    re.compile(r":\w+:`[^`]*`"),
]


def cleaned(markdown):
    """Le texte, sans code, formules, adresses, rôles ni clés ; les lignes restent à leur place."""
    for pattern in NOT_PROSE:
        markdown = pattern.sub(lambda found: "\n" * found[0].count("\n") or " ", markdown)
    return markdown.replace("*", "")


def words(text):
    """Les mots d'un texte, l'apostrophe droite ; un nom comme PyTorch ou SVD ne s'épelle pas."""
    for found in WORD.finditer(text):
        word = found[0].replace("’", "'")
        if len(word) > 1 and not re.search(r"[A-Z]", ELISION.sub("", word)[1:]):
            yield word


def documents():
    """Chaque texte à relire, sous son nom."""
    for path in sorted(PAGES):
        text = path.read_text(encoding="utf-8")
        yield str(path.relative_to(ROOT)), cleaned(ENGLISH_TERM.sub("", text) if path.stem == "glossaire" else text)
    for path in sorted(NOTEBOOKS):
        for index, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "markdown":
                yield f"{path.relative_to(ROOT)}, cellule {index}", cleaned(cell.source)
            else:
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                yield f"{path.relative_to(ROOT)}, cellule {index}, texte de remplacement", alt
    for path in sorted(MODULES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                for pattern in DOCSTRING:
                    text = pattern.sub("", text)
                yield f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}", cleaned(text)


@cache
def known():
    """Les mots du dictionnaire du livre."""
    lines = (line.partition("#")[0].strip() for line in DICTIONARY.read_text(encoding="utf-8").splitlines())
    return frozenset(filter(None, lines))


@pytest.fixture(scope="module")
def misspelt():
    """Les mots que ni hunspell ni le dictionnaire du livre ne connaissent, parmi ceux qu'on lui donne."""

    def absent(reason):
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, et CI est défini : apt install hunspell hunspell-fr", pytrace=False)
        pytest.skip(f"{reason} : l'orthographe n'est pas vérifiée (apt install hunspell hunspell-fr)")

    program = shutil.which("hunspell")
    if program is None:
        absent("hunspell n'est pas installé")

    def run(language, given):
        command = [program, "-i", "utf-8", "-d", language, "-l"]
        return subprocess.run(command, input="\n".join(given), capture_output=True, encoding="utf-8", timeout=60)

    # Un mot juste et un mot faux : un dictionnaire absent n'en dit rien, un dictionnaire anglais les refuse tous deux.
    probe = ["apprentissage", "aprentissage"]
    languages = ["fr", "fr_FR", "fr-toutesvariantes", "fr-classique"]
    language = next((name for name in languages if run(name, probe).stdout.split() == probe[1:]), None)
    if language is None:
        absent("le dictionnaire français de hunspell n'est pas installé")

    def check(given):
        given = sorted({word for word in given if not right(word)})
        return {word for word in run(language, given).stdout.split() if not right(word)}

    return check


def right(word):
    """Vrai d'un mot du dictionnaire du livre, élidé (« l'anywidget »), composé ou capitalisé compris."""
    bare = ELISION.sub("", word)
    forms = {word, bare, word[:1].lower() + word[1:], bare[:1].lower() + bare[1:]}
    return bool(forms & known())


def test_prose_is_well_spelt(misspelt):
    places = {}
    for name, text in documents():
        for word in words(text):
            places.setdefault(word, set()).add(name)
    wrong = misspelt(places)
    report = [
        f"{word} : {', '.join(sorted(places[word])[:3])}" for word in sorted(wrong, key=str.lower) if word in places
    ]
    assert report == [], "corrigez, ou ajoutez à tests/dictionnaire.txt :\n" + "\n".join(report)


@pytest.mark.parametrize(
    "text",
    ["Une aproximation de rang faible.", "l’énergy gardée", "Les valeurs singulieres", "**Quantifer**, puis compter."],
)
def test_a_misspelt_word_is_noticed(misspelt, text):
    assert misspelt(words(cleaned(text)))


def test_what_is_not_prose_is_not_read(misspelt):
    text = """
(exercice-xyz)=
# Le rang

Voir {cite}`ekcart1936` et {prf:ref}`thm-xyz`, la [page](qwerty.md#azerty) et `trunkated_svd` : $\\sigmma_1 = qsd$.

```python
impotr = "faux"
```

:::{dropdown} Un indice
:class: qsdf
Une phrase juste.
:::
"""
    assert misspelt(words(cleaned(text))) == set()
    assert {"indice", "phrase", "juste", "page"} <= set(words(cleaned(text)))


def test_dictionary_is_sorted():
    """Chaque section commence par un titre ; ses mots sont dans l'ordre, et aucun n'est écrit deux fois."""
    found, sections = [], DICTIONARY.read_text(encoding="utf-8").split("# --- ")[1:]
    for section in sections:
        listed = [line for line in section.splitlines()[1:] if line]
        assert listed == sorted(listed, key=str.lower), section.splitlines()[0]
        found += listed
    assert len(found) == len(set(found))
    assert set(found) == known()
