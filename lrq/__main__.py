"""La ligne de commande : les spectres d'un fichier de poids, et sa version comprimée.

    python -m lrq spectrum poids.safetensors
    python -m lrq compress poids.safetensors petits.safetensors --bits 4

Les tenseurs se lisent l'un après l'autre : le fichier n'est jamais tout entier en mémoire.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .compression import CompressionMethod, CompressionReport, GPTQCompression, SVDCompression, TensorTrainCompression
from .compression.method import Task
from .display import fr
from .spectrum import break_even_rank, rank_for_energy, stable_rank
from .storage import describe, layouts, opened, sealed, write_whole
from .svd import singular_values
from .validation import listed
from .version import __version__

EMBEDDINGS = ("*embed*", "*wte*", "*wpe*")
FRENCH = {
    "usage: ": "usage : ",
    "positional arguments": "arguments ",  # suivis de deux-points
    "options": "options ",
    "show this help message and exit": "montre cette aide",
    "%(prog)s: error: %(message)s\n": "%(prog)s : %(message)s\n",
    "argument %(argument_name)s: %(message)s": "%(argument_name)s : %(message)s",
    "the following arguments are required: %s": "il manque : %s",
    "unrecognized arguments: %s": "arguments inconnus : %s",
    "invalid choice: %(value)r (choose from %(choices)s)": "reçu %(value)r, attendu l'un de %(choices)s",
    "invalid %(type)s value: %(value)r": "reçu %(value)r, attendu un nombre (%(type)s)",
    "expected one argument": "attend une valeur",
    "expected at least one argument": "attend au moins une valeur",
    "not allowed with argument %s": "ne va pas avec %s",
    "ambiguous option: %(option)s could match %(matches)s": "%(option)s peut abréger %(matches)s",
    "ignored explicit argument %r": "n'attend pas de valeur, reçu %r",
}
EXCLUSIVE = {"bits": "quantize", "group_size": "quantize", "residual_rank": "quantize", "error": "svd"}


@contextlib.contextmanager
def french() -> Iterator[None]:
    """Fait parler français à argparse."""
    kept = argparse._  # type: ignore[attr-defined]
    argparse._ = lambda text: FRENCH.get(text, text)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        argparse._ = kept  # type: ignore[attr-defined]


def parser() -> argparse.ArgumentParser:
    """Les commandes, leurs options et leur aide."""
    top = argparse.ArgumentParser(
        prog="python -m lrq", description="Les spectres d'un fichier de poids, et sa version comprimée."
    )
    top.add_argument("--version", action="version", version=f"lrq {__version__}", help="montre la version")
    commands = top.add_subparsers(required=True, metavar="commande", dest="commande")

    spectrum = commands.add_parser(
        "spectrum",
        help="le spectre de chaque matrice",
        description=(
            "Pour chaque matrice : les rangs qui gardent 90 et 99 % de l'énergie, celui au-delà duquel deux facteurs "
            "pèsent plus qu'elle, et son rang stable."
        ),
    )
    spectrum.set_defaults(run=show_spectra)
    spectrum.add_argument("entree", type=Path, metavar="poids.safetensors")

    compress = commands.add_parser(
        "compress",
        help="une version comprimée",
        description=(
            "Comprime les matrices d'un fichier, sans calibration, et garde le reste tel quel. lrq.load_compressed "
            "refait ensuite le réseau. Un fichier qui existe déjà n'est pas remplacé."
        ),
    )
    compress.set_defaults(run=compress_file)
    compress.add_argument("entree", type=Path, metavar="poids.safetensors")
    compress.add_argument("sortie", type=Path, metavar="petits.safetensors")
    compress.add_argument("--method", choices=["quantize", "svd", "tt"], default="quantize", help="quantize par défaut")
    compress.add_argument("--bits", type=int, metavar="BITS", help="quantize : bits par poids (4)")
    compress.add_argument("--group-size", type=int, metavar="TAILLE", help="quantize : poids par échelle (64)")
    compress.add_argument("--residual-rank", type=int, metavar="RANG", help="quantize : rang du résidu (0)")
    choice = compress.add_mutually_exclusive_group()
    choice.add_argument("--rank", type=int, metavar="RANG", help="svd, tt : rang (64)")
    choice.add_argument(
        "--error", type=float, metavar="ERREUR", help="svd : l'erreur relative à ne pas dépasser, au lieu d'un rang"
    )
    compress.add_argument("--exclude", nargs="+", default=[], metavar="MOTIF", help="couches à laisser")
    compress.add_argument(
        "--embeddings",
        nargs="+",
        default=EMBEDDINGS,
        metavar="MOTIF",
        help=(f"les matrices qui sont des plongements ({', '.join(EMBEDDINGS)}) : quantifiées, mais ni svd, ni tt"),
    )
    for command in (spectrum, compress):
        command.add_argument("--layers", nargs="+", default=["*"], metavar="MOTIF", help="couches à regarder (toutes)")
    return top


def method_for(options: argparse.Namespace) -> CompressionMethod:
    """La méthode que demandent les options ; refuse celles qui sont d'une autre."""
    for name, method in EXCLUSIVE.items():
        if getattr(options, name) is not None and options.method != method:
            raise ValueError(
                f"--{name.replace('_', '-')} est une option de --method {method}, pas de {options.method}."
            )
    if options.method == "quantize":
        if options.rank is not None:
            raise ValueError("--rank est une option de --method svd ou tt, pas de quantize.")
        given = {name: getattr(options, name) for name in ("bits", "group_size", "residual_rank")}
        settings = {name: value for name, value in given.items() if value is not None}
        return GPTQCompression({"rounding": "nearest", "embeddings": True} | settings)
    if options.error is not None:
        return SVDCompression({"optimize_rank": True, "error_threshold": options.error})
    kind = SVDCompression if options.method == "svd" else TensorTrainCompression
    return kind({"rank": 64 if options.rank is None else options.rank})


def matrices(file: Any, options: argparse.Namespace) -> list[str]:
    """Les couches dont le poids est une matrice de flottants, et que retiennent les motifs."""
    names = [
        key.removesuffix(".weight")
        for key in file.keys()  # noqa: SIM118
        if key.endswith(".weight")
        and len(file.get_slice(key).get_shape()) == 2
        and file.get_slice(key).get_dtype() in ("F64", "F32", "F16", "BF16")
    ]
    if not names:
        raise ValueError(f"{options.entree} : aucune matrice de poids (« ….weight », à deux dimensions).")
    for pattern in (*options.layers, *getattr(options, "exclude", ())):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"le motif {pattern!r} ne désigne aucune couche ; noms : {listed(names)}.")
    return [
        name
        for name in names
        if any(fnmatchcase(name, p) for p in options.layers)
        and not any(fnmatchcase(name, p) for p in getattr(options, "exclude", ()))
    ]


def show_spectra(options: argparse.Namespace) -> None:
    """Imprime une ligne par matrice."""
    with opened(options.entree) as file:
        names = matrices(file, options)
        width = max(map(len, names), default=6)
        print(f"{'couche':{width}}  {'forme':>12}  {'90 %':>6}  {'99 %':>6}  {'équilibre':>9}  {'stable':>7}")
        for name in watched(names):
            W = file.get_tensor(f"{name}.weight")
            S = singular_values(W, name)
            m, n = W.shape
            ranks = "  ".join(f"{rank_for_energy(S, share):>6}" for share in (0.9, 0.99))
            others = f"{fr(break_even_rank(m, n), 1):>9}  {fr(stable_rank(S), 1):>7}"
            print(f"{name:{width}}  {f'{m}×{n}':>12}  {ranks}  {others}")


def compress_file(options: argparse.Namespace) -> None:
    """Écrit le fichier comprimé, puis imprime le tableau."""
    if options.sortie.exists():
        raise FileExistsError(f"{options.sortie} existe déjà ; effacez-le, ou choisissez un autre nom.")
    if not options.sortie.parent.is_dir():
        raise FileNotFoundError(f"{options.sortie.parent} : dossier introuvable.")
    method = method_for(options)
    tensors: dict[str, Tensor] = {}
    description: dict[str, Any] = {"alias": {}, "codes": {}, "layers": {}}
    report = CompressionReport()
    with opened(options.entree) as file:
        keys = set(file.keys())
        names = [n for n in matrices(file, options) if isinstance(shell(file, n, options), method.kinds)]
        if not names:
            raise ValueError(f"{options.entree} : aucune matrice à comprimer par {options.method}.")
        description["alias"] = aliases(file, options.entree, names)
        for name in watched(names):
            layer = shell(file, name, options)
            layer.weight = nn.Parameter(file.get_tensor(f"{name}.weight"), requires_grad=False)
            used = {f"{name}.weight"}
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias = nn.Parameter(file.get_tensor(f"{name}.bias"), requires_grad=False)
                used.add(f"{name}.bias")
            result = method.run(Task([name], [layer]))
            smaller = result.layers[0]
            tensors |= {f"{name}.{key}": t.detach() for key, t in smaller.state_dict().items()}
            description["layers"][name] = describe(smaller)
            description["codes"] |= {f"{name}.{key}".rstrip("."): text for key, text in layouts(smaller).items()}
            report.append(result.line)
            keys -= used
        for key in sorted(keys):
            tensors[key] = file.get_tensor(key)
    write_whole({options.sortie: sealed(tensors, description)})
    print(report)
    before, after = options.entree.stat().st_size, options.sortie.stat().st_size
    print(f"{options.sortie} : {fr(after)} octets, {fr(before / after, 2)} fois moins que {options.entree}.")


def aliases(file: Any, path: Path, names: Sequence[str]) -> dict[str, str]:
    """Les tenseurs qu'un fichier de save_weights n'a écrits qu'une fois : second nom → premier."""
    described = (file.metadata() or {}).get("lrq", "{}" + 64 * " ")[:-64]
    try:
        recorded = json.loads(described)
        found = recorded.get("alias", {})
        if not all(isinstance(name, str) for pair in found.items() for name in pair):
            raise TypeError
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} : sa métadonnée « lrq » n'est pas de save_weights.") from None
    if recorded.get("layers"):
        raise ValueError(f"{path} : ce réseau est déjà comprimé.")
    for second, first in found.items():
        if first.removesuffix(".weight") in names:
            raise ValueError(f"{path} : {second} est le même tenseur que {first} ; donnez --exclude {first[:-7]}.")
    return found


def shell(file: Any, name: str, options: argparse.Namespace) -> nn.Module:
    """La couche, sans ses nombres, que décrivent un poids et peut-être un biais."""
    m, n = file.get_slice(f"{name}.weight").get_shape()
    if any(fnmatchcase(name, pattern) for pattern in options.embeddings):
        return nn.Embedding(m, n, device="meta")
    bias = f"{name}.bias" in file.keys() and file.get_slice(f"{name}.bias").get_shape() == [m]  # noqa: SIM118
    return nn.Linear(n, m, bias=bias, device="meta")


def watched(names: Sequence[str]) -> Iterator[str]:
    """Les noms, une barre de progression au-dessus si quelqu'un regarde."""
    from tqdm import tqdm

    return iter(tqdm(names, unit="couche", disable=not sys.stderr.isatty()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exécute une commande ; rend 0, ou 1 si elle est refusée, et dit alors pourquoi sur la sortie d'erreur."""
    with french():
        options = parser().parse_args(arguments)
    try:
        with torch.no_grad():
            options.run(options)
    except (OSError, TypeError, ValueError) as refusal:
        print("\n".join([str(refusal), *getattr(refusal, "__notes__", ())]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
