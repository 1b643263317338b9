"""``python -m benchmarks`` : un tableau, et un code de sortie 1 si une cible est manquée."""

import argparse
import sys

import torch

from . import (
    aware,
    book,
    combined,
    convolution,
    errors,
    exact,
    forward,
    integer,
    large,
    lighthouse,
    lora,
    page,
    rank,
    startup,
    storage,
    tensor_train,
    whole_model,
)
from .table import render

MODULES = {
    "rank": rank,
    "forward": forward,
    "integer": integer,
    "convolution": convolution,
    "large": large,
    "aware": aware,
    "combined": combined,
    "lora": lora,
    "errors": errors,
    "tensor_train": tensor_train,
    "whole_model": whole_model,
    "exact": exact,
    "storage": storage,
    "startup": startup,
    "page": page,
    "lighthouse": lighthouse,
    "book": book,
}


def main() -> int:
    """Mesure tout, imprime le tableau, rend le code de sortie."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Mesure lrq à côté de ses références, dans la même exécution."
    )
    parser.add_argument("--rapide", action="store_true", help="moins de répétitions, sans les carnets ni le livre")
    parser.add_argument("--seulement", choices=MODULES, metavar="|".join(MODULES), help="une seule famille de mesures")
    options = parser.parse_args()
    chosen = [MODULES[options.seulement]] if options.seulement else MODULES.values()
    rows = []
    for module in chosen:
        print(f"… {(module.__doc__ or '').splitlines()[0]}", file=sys.stderr)
        rows += module.measure(options.rapide)
    if not rows:
        print("Aucune mesure.")
        return 0
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} fil(s) ; durées médianes, mesures entrelacées.\n")
    print(render(rows))
    missed = sum(row.held is False for row in rows)
    print(f"\n{missed} cible(s) manquée(s)." if missed else "\nToutes les cibles sont tenues.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
