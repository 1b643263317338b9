"""Ce que le public de lrq dit de lui-même est entier : arguments, résultat, erreurs, source, en français."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap

import lrq

MODULES = [lrq, *(importlib.import_module(f"lrq.{name}") for name in ("display", "exercises", "models", "plots"))]
MODULES += [importlib.import_module("lrq.widgets")]
TITLE = re.compile(r"(?m)^(\w+)\n-{3,}\n")
KNOWN = {"", "Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns", "Notes", "References", "Examples"}
SPEAK_FOR_THEMSELVES = (".forward", ".extra_repr")
# Une première ligne qui commence ainsi nomme le résultat ; celle qui commence par un verbe dit seulement ce qu'on fait.
RESULT = re.compile(
    r"(L[ea]s?|Un|Une|Des|Du|Deux|Trois|Quatre|Plusieurs|Ce|Celle|Celui|Vrai|Faux|Où|Combien|Comment|Pour|Par|Comme|"
    r"Nombre|Noms?|Octets|Bits|Part|Rang|Copie|Erreur|Dimensions|Dossier)\b|[LD]['’]|\W|\w{1,2}\b|.*\brend\b"
)


def public():
    """Chaque objet public, sous son nom : les fonctions, les classes, et ce que celles-ci définissent."""
    for module in MODULES:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            value, path = getattr(module, name), f"{module.__name__}.{name}"
            if name.startswith("_") or not callable(value):
                continue
            yield path, value
            for method, member in vars(value).items() if inspect.isclass(value) else ():
                written = method == "__init__" and not dataclasses.is_dataclass(value)
                if (written or not method.startswith("_")) and inspect.isfunction(unwrapped(member)):
                    yield f"{path}.{method}", member


def unwrapped(member):
    """La fonction derrière une méthode de classe, une propriété ou un gestionnaire de contexte."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
    return inspect.unwrap(member) if callable(member) else member


PUBLIC = dict(public())
FUNCTIONS = [path for path, value in PUBLIC.items() if not inspect.isclass(value)]


def class_of(path):
    """La classe d'une méthode, ou None."""
    return PUBLIC.get(path.rpartition(".")[0])


def docs(path):
    """Les docstrings qui parlent d'un objet : la sienne ou celle dont il hérite, puis celles de sa classe."""
    value, owner = PUBLIC[path], class_of(path)
    if inspect.isclass(value):
        return [inspect.getdoc(base) or "" for base in value.__mro__ if base.__module__.startswith("lrq")]
    if owner is None:
        return [inspect.getdoc(value) or ""]
    name = path.rpartition(".")[2]
    inherited = [inspect.getdoc(vars(base)[name]) or "" for base in owner.__mro__ if name in vars(base)]
    return inherited + docs(path.rpartition(".")[0])


def sections(doc):
    """Les sections numpy d'une docstring, par titre ; le début sous le titre vide."""
    parts = TITLE.split(doc)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section):
    """Les noms que décrit une section : « a, b : float » en décrit deux."""
    lines = [line.partition(" :")[0] for line in section.splitlines() if line and not line[0].isspace()]
    return {name.strip().lstrip("*") for line in lines for name in line.split(",")}


def described(path):
    found = set()
    for doc in docs(path):
        parts = sections(doc)
        found |= entries(parts.get("Parameters", "")) | entries(parts.get("Attributes", ""))
    return found


def raised(function):
    """Les exceptions que lève le corps d'une fonction, sans compter celles des vérifications qu'elle appelle."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    errors = [
        getattr(node.exc, "func", node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc
    ]
    return {error.id for error in errors if isinstance(error, ast.Name) and error.id.endswith("Error")}


def said(path):
    """Les exceptions que nomme la documentation d'un objet."""
    return set(re.findall(r"\w+Error", "\n".join(docs(path))))


def returns(function):
    annotation = inspect.signature(function).return_annotation
    return annotation not in (None, "None", inspect.Signature.empty)


def test_the_public_is_not_empty():
    assert {"lrq.truncated_svd", "lrq.LoRALayer.merge_weights", "lrq.models.fit", "lrq.LoRALayer.merged"} <= set(PUBLIC)
    assert len(PUBLIC) > 500


def test_everything_public_is_documented():
    """Une méthode peut tenir sa docstring de celle qu'elle remplace."""
    assert [path for path in PUBLIC if not docs(path)[0]] == []


def test_sections_are_those_of_numpy():
    wrong = []
    for path, value in PUBLIC.items():
        doc = inspect.getdoc(value) or ""
        parts = sections(doc)
        uneven = any(len(title) != len(dashes) for title, dashes in re.findall(r"(?m)^(\w+)\n(-{3,})$", doc))
        if uneven or not set(parts) <= KNOWN or any(not part.strip() for part in parts.values()):
            wrong.append(path)
    assert wrong == []


def test_every_argument_is_described():
    """Dans Parameters ; pour une méthode, la phrase peut suffire, si elle le nomme."""
    missing = {}
    for path, value in PUBLIC.items():
        built = getattr(value.__init__, "__module__", "") if inspect.isclass(value) else "lrq"
        if path.endswith(".__init__") or not built.startswith("lrq"):
            continue  # sa classe répond pour lui ; ou le constructeur vient d'ailleurs
        known, text = described(path), "\n".join(docs(path)) if class_of(path) else ""
        for name in inspect.signature(value if inspect.isclass(value) else unwrapped(value)).parameters:
            if name not in {"self", "cls"} | known and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                missing.setdefault(path, []).append(name)
    assert missing == {}


def test_every_result_is_described():
    """Dans Returns, ou par une première ligne qui le nomme ; une propriété ne peut que se nommer."""
    silent = []
    for path in FUNCTIONS:
        doc = docs(path)[0]
        named = doc if isinstance(PUBLIC[path], property) else {"Returns", "Yields"} & set(sections(doc))
        if returns(unwrapped(PUBLIC[path])) and not path.endswith(SPEAK_FOR_THEMSELVES):
            silent += [] if named or RESULT.match(doc) else [path]
    assert silent == []


def test_every_error_raised_is_said():
    missing = {path: raised(unwrapped(PUBLIC[path])) - said(path) for path in FUNCTIONS}
    assert {path: errors for path, errors in missing.items() if errors} == {}
