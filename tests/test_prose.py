"""Les nombres des pages qui ne sont pas des carnets : chacun est dans une phrase qu'un `assert` vérifie.

La convention est celle des cellules cachées (`book/_ext/preuves.py`) : `test_glossaire` prouve `book/glossaire.md`, et
la page des preuves le cite. Les errata ont leurs propres tests, qui vérifient tous leurs nombres ; les pages pour qui
contribue n'ont que des versions et des réglages.
"""

import inspect
import math
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import lrq
from lrq.models import encoder_linears, load_minilm, load_minilm_weights

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from affirmations import POINTS  # noqa: E402
from preuves import missing, uncovered  # noqa: E402

OTHERWISE = {"errata", "api", "architecture", "enseigner", "parcours"}
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("book/*.md") if path.stem not in OTHERWISE)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_number_of_the_pages_is_proved(path):
    bare = [f"{path.name} : {n.text} sans preuve dans « {n.sentence} »" for n in uncovered(path)]
    lost = [f"{path.name} : « {p.phrase} » n'est pas dans la prose" for p in missing(path)]
    assert not bare + lost, "\n".join(bare + lost)


def python_version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]


def test_readme():
    query = load_minilm_weights()["encoder.layer.0.attention.self.query.weight"]
    half = int(lrq.break_even_rank(*query.shape) / 2)
    kept = float(lrq.cumulative_energy(lrq.singular_values(query))[half - 1])
    assert round(100 * kept, 1) == 78.6, "coupée à la moitié de sa taille garde 78,6 % de son énergie"
    assert python_version() == ">=3.11", "Python 3.11"


def test_index():
    model = load_minilm()
    weights = [model.get_submodule(name).weight for name in encoder_linears(model)]
    loads = [lrq.rank_for_energy(lrq.singular_values(W), 0.99) / lrq.break_even_rank(*W.shape) for W in weights]
    assert min(loads) > 1, "à quel rang une de ses matrices garde-t-elle 99 % de son énergie"
    assert python_version() == ">=3.11", "Python 3.11"


def test_glossaire():
    words = load_minilm_weights()["embeddings.word_embeddings.weight"]
    assert words.shape[1] == 384, "un vecteur de dimension 384"
    assert math.isclose(math.sqrt(1 - 0.99), 0.10), "garder 99 % de l’énergie laisse une erreur de 10 %"
    analyze = lrq.LowRankAnalysis.analyze_weight_matrix
    assert inspect.signature(analyze).parameters["threshold"].default == 0.99, "99 % par défaut dans le cours"
    assert math.isclose(-20 * math.log10(0.10), 20), "Une erreur de 10 % vaut 20 dB"
    assert round(20 * math.log10(2), 1) == 6.0, "ajoute environ 6 dB"


def test_notation():
    w = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([3.0])]).requires_grad_()
    fake = lrq.FakeQuantizeModule(n_bits=3, clipping="mse")
    scale, _ = fake.quantizer.compute_scale_zero_point(w)
    held = (w / scale).round().abs() <= 2**2 - 1
    assert set(held.tolist()) == {True, False}
    fake(w).sum().backward()
    assert torch.equal(w.grad, held.float()), "1 là où la grille contient $w$, 0 là où elle l’écrête | 0 ou 1"


def test_affirmations():
    assert sum(POINTS.values()) == 36, "Les 36 points clés"
