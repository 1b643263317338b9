"""Le train de tenseurs sur cinq matrices : ce qu'il perd selon le découpage, le rang et les bits, à côté de la SVD.

``python -m benchmarks.tt_study`` écrit ``lrq/data/tensor_train.json``, que montre l'explorateur de la section 9.6 ; il
faut moins d'une minute, à un fil. Rien n'y est tiré au hasard, sauf la matrice gaussienne, dont le code de la table
fixe la graine.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrq
from lrq.gauge import regauge, rotate_factors
from lrq.svd import share_singular_values, truncated_svd
from lrq.tensor_train import clamped_ranks, tt_matrix_contract, tt_matrix_svd
from lrq.widgets.choices import GAUSSIAN
from lrq.widgets.tensor_train import BITS, FLOAT, rank_within, train_nbytes

TABLE = Path(lrq.__file__).parent / "data" / "tensor_train.json"
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
EXACT = 5e-5  # un train sans arrondi qui perd moins est exact, aux float32 près : monter le rang n'y ajouterait rien
MINILM = 'from lrq import models\n\nW = models.load_minilm_weights()["encoder.layer.0.{}.weight"]'
CONVOLUTION = """from lrq import models

kernels = models.load_digits_network("cnn").conv2.weight.detach()  # (64, 32, 3, 3)
W = kernels.permute(0, 2, 3, 1).flatten(1)  # sortie | hauteur, largeur, entrée"""
SMOOTH = "import torch\n\ni = torch.arange(384.0)\nW = torch.exp(-(i[:, None] - i).abs() / 50)"
SQUARE = (((16, 24), (16, 24)), ((6, 8, 8), (6, 8, 8)), ((4, 4, 4, 6), (4, 4, 4, 6)))
MATRICES = {  # nom → le code qui définit W, ses découpages (entrées, sorties)
    "query, bloc 1": (MINILM.format("attention.self.query"), SQUARE),
    "dense 2, bloc 1": (
        MINILM.format("output.dense"),
        (((32, 48), (16, 24)), ((12, 8, 16), (6, 8, 8)), ((4, 6, 8, 8), (4, 4, 4, 6))),
    ),
    "noyaux de convolution": (
        CONVOLUTION,
        (((1, 288), (64, 1)), ((1, 9, 32), (64, 1, 1)), ((1, 3, 3, 32), (64, 1, 1, 1))),
    ),
    "noyau lisse": (SMOOTH, SQUARE),
    "hasard gaussien": (GAUSSIAN, SQUARE),
}
NUMBERS = re.compile(r"\[\s+([\d\s.,e+-]+?)\s+\]")
NOTES = {
    "commande": "python -m benchmarks.tt_study",
    "contenu": "erreurs relatives (Frobenius), arrondies à 1e-6",
    "bits": "32 : des float32",
    "trains": "lrq.QuantizedTTLinear, cœurs équilibrés et tournés, une échelle par cœur ; une ligne par rang, ramené "
    "lien par lien à ce que permettent les dimensions",
    "svd": "lrq.QuantizedLowRankLinear, rotate=True, une échelle par facteur ; parmi ses rangs, ceux qui pèsent autant "
    "qu'un train, ou juste moins",
    "seule": "lrq.QuantizedLinear, une échelle par ligne",
}


def load(code: str) -> Tensor:
    """La matrice que définit le code."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names["W"].contiguous()


def relative(W: Tensor, approximation: Tensor) -> float:
    """‖W − Ŵ‖/‖W‖ (Frobenius), arrondie à six décimales."""
    return round(float((W - approximation).norm(dtype=torch.float64) / W.norm(dtype=torch.float64)), 6)


def train_errors(W: Tensor, inputs: tuple[int, ...], outputs: tuple[int, ...], rank: int) -> list[float]:
    """L'erreur du train de ce rang, sur chaque nombre de bits : une TT-SVD, une jauge, puis les arrondis."""
    cores = tt_matrix_svd(W, inputs, outputs, rank)
    rotated = regauge(cores, "rotated")
    asked = clamped_ranks(inputs, outputs, rank)
    if lrq.tt_ranks(rotated) != asked:
        raise ValueError(f"rank : reçu {rank}, attendu des liens {asked} dont aucun ne soit superflu.")
    quantized = [lrq.TTQuantizer(bits).quantizer for bits in BITS if bits != FLOAT]
    rounded = [tt_matrix_contract([quantizer.quantize_dequantize(G) for G in rotated]) for quantizer in quantized]
    return [relative(W, approximation) for approximation in [*rounded, tt_matrix_contract(cores)]]


def train_study(W: Tensor, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict[str, Any]:
    """Les mesures d'un découpage, jusqu'au rang où tous les liens sont au plus haut, ou le train déjà exact."""
    highest = max(clamped_ranks(inputs, outputs, W.numel()))
    ranks, rows = [], []
    for rank in (*(r for r in RANKS if r < highest), highest):
        ranks.append(rank)
        rows.append(train_errors(W, inputs, outputs, rank))
        if rows[-1][-1] < EXACT:
            break
    return {"entrées": inputs, "sorties": outputs, "rangs": ranks, "erreurs": rows}


def svd_errors(W: Tensor, factors: tuple[Tensor, Tensor], rank: int) -> list[float]:
    """L'erreur de la SVD de ce rang, sur chaque nombre de bits."""
    U, V = (factor[:, :rank] for factor in factors)
    rotated = rotate_factors(U, V)
    found = []
    for bits in BITS:
        if bits == FLOAT:
            found.append(relative(W, U @ V.T))
        else:
            quantizer = lrq.UniformQuantizer(bits)
            X, Y = (quantizer.quantize_dequantize(factor) for factor in rotated)
            found.append(relative(W, X @ Y.T))
    return found


def study(W: Tensor, splits: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> dict[str, Any]:
    """Toutes les mesures d'une matrice."""
    m, n = W.shape
    trains = [train_study(W, *split) for split in splits]
    budgets = [
        (bits, sum(train_nbytes(inputs, outputs, rank, bits)))
        for train, (inputs, outputs) in zip(trains, splits, strict=True)
        for rank in train["rangs"]
        for bits in BITS
    ]
    same = {rank_within(m, n, bits, size) for bits, size in budgets} - {0}
    ranks = sorted({*same, *(rank for rank in RANKS if rank < min(m, n)), min(m, n)})
    factors = share_singular_values(*truncated_svd(W, min(m, n)))
    alone = [lrq.UniformQuantizer(bits, granularity=lrq.PerChannel(0)) for bits in BITS if bits != FLOAT]
    return {
        "forme": [m, n],
        "trains": trains,
        "svd": {"rangs": ranks, "erreurs": [svd_errors(W, factors, rank) for rank in ranks]},
        "seule": [relative(W, quantizer.quantize_dequantize(W)) for quantizer in alone],
    }


def write(table: dict[str, Any], path: Path = TABLE) -> None:
    """Écrit la table, un rang par ligne."""
    text = json.dumps(table, ensure_ascii=False, indent=1)
    path.write_text(NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n", encoding="utf-8")


def main() -> None:
    """Mesure toutes les matrices, et récrit la table."""
    torch.set_num_threads(1)
    records = []
    for name, (code, splits) in MATRICES.items():
        print(name, file=sys.stderr)
        records.append({"nom": name, "code": code, **study(load(code), splits)})
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    told = {"versions": versions, "fils": 1, "graine": 0, "réglages": {"n_bits": BITS, "rangs": RANKS}}
    write({**NOTES, **told, "matrices": records})


if __name__ == "__main__":
    main()
