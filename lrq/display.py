"""Ce que le livre montre : des nombres à la française, et le code de lrq à côté de la formule."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def fr(value: float, digits: int | None = None) -> str:
    """Un nombre à la française : virgule décimale, milliers séparés par une espace fine insécable.

    Parameters
    ----------
    value : int ou float
    digits : int, optionnel
        Nombre de décimales ; par défaut, aucune pour un entier et le strict nécessaire pour un réel.

    Returns
    -------
    str
        Par exemple « 10 616 832 », « 0,954 » ou « −3 ».
    """
    text = f"{value:,}" if digits is None else f"{value:,.{digits}f}"
    return text.translate({ord(","): "\u202f", ord("."): ",", ord("-"): "−"})


class Source:
    """Du code, sans ses docstrings : ce qu'on lit à côté de la formule.

    Parameters
    ----------
    code : str
    """

    def __init__(self, code: str):
        self.code = code

    def __repr__(self) -> str:
        return self.code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"


def source(*objects: Callable[..., Any] | type) -> Source:
    """Le code de fonctions, de classes ou de méthodes de lrq, tel qu'il s'exécute.

    Parameters
    ----------
    *objects : fonctions, classes ou méthodes
        Montrées l'une après l'autre.

    Returns
    -------
    Source
        Affichable dans un notebook et dans la page.
    """
    files = dict.fromkeys(f"# {inspect.getmodule(obj).__name__.replace('.', '/')}.py" for obj in objects)  # type: ignore[union-attr]
    codes = [without_docstrings(textwrap.dedent(inspect.getsource(obj))) for obj in objects]
    return Source("\n".join(files) + "\n" + "\n\n".join(codes))


def without_docstrings(code: str) -> str:
    """Le même code Python, ses docstrings retirées.

    Parameters
    ----------
    code : str
    """
    lines = code.rstrip().splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for i in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[i] = "\0"
    return "\n".join(line for line in lines if line != "\0")
