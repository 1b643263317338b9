"""Les figures matplotlib du livre : un style, une couleur par notion, des axes nommés et des nombres à la française."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from .display import fr

RANK = "#2d6be4"  # signal, rang
ERROR = "#d14300"
BUDGET = "#064a25"  # taille, budget
BITS = "#74108a"
THEORY = "#5c6570"  # bornes, hasard, limites : toujours en tirets
INK = "#1c2127"


def use_style() -> None:
    """Applique le style du livre aux figures à venir."""
    plt.style.use(Path(__file__).parent / "livre.mplstyle")


def french_axis(axes: Axes, x: int | None = None, y: int | None = None) -> None:
    """Gradue les axes à la française.

    Parameters
    ----------
    axes : Axes
    x, y : int, optionnels
        Combien de décimales ; None ne touche pas à cet axe.
    """
    for axis, digits in ((axes.xaxis, x), (axes.yaxis, y)):
        if digits is not None:
            axis.set_major_formatter(FuncFormatter(lambda value, _, d=digits: fr(value, d)))


def label(
    axes: Axes, text: str, x: float, y: float, colour: str, dx: float = 0, dy: float = 6, ha: str = "left"
) -> None:
    """Écrit un texte près d'un point, sur un halo qui l'isole des courbes.

    Parameters
    ----------
    axes : Axes
    text : str
    x, y : float
        Le point, dans les unités des axes.
    colour : str
    dx, dy : float
        Le décalage du texte, en points.
    ha : "left", "center" ou "right"
        Quel bord du texte est au point.
    """
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    axes.annotate(
        text,
        (x, y),
        xytext=(dx, dy),
        textcoords="offset points",
        color=colour,
        ha=ha,
        path_effects=halo,
        annotation_clip=False,
    )


def plot_spectra(spectra: Mapping[str, Tensor], title: str, dashed: Sequence[str] = ()) -> Figure:
    """Plusieurs spectres σᵢ/σ₁ sur un même graphique, contre la part du rang i/p.

    Parameters
    ----------
    spectra : dict nom → valeurs singulières (p,)
    title : str
    dashed : noms à tracer en tirets (le hasard, une théorie)

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots()
    colours = itertools.cycle([RANK, BUDGET, ERROR, BITS])
    for name, S in spectra.items():
        values = (S / S[0]).clamp_min(1e-5).cpu()
        share = torch.arange(1, len(S) + 1) / len(S)
        theory = name in dashed
        colour = THEORY if theory else next(colours)
        axes.semilogy(share, values, color=colour, linestyle="--" if theory else "-")
        middle = int(0.62 * len(S))
        label(axes, name, float(share[middle]), float(values[middle]), colour, dx=4, dy=8)
    axes.set(
        title=title,
        xlabel="part du rang, i / p",
        ylabel="σᵢ / σ₁ (échelle logarithmique)",
        ylim=(1e-4, 1.3),
        xlim=(0, 1),
    )
    french_axis(axes, x=1)
    return figure


def plot_report(report: Sequence[Any]) -> Figure:
    """Ce que chaque couche pèse avant (en tirets) et après, et l'erreur de ses poids, l'une sous l'autre.

    Parameters
    ----------
    report : suite de LayerReport

    Returns
    -------
    Figure
    """
    figure, (sizes, errors) = plt.subplots(1, 2, sharey=True, figsize=(7.2, max(2.4, 0.24 * len(report) + 1)))
    rows = range(len(report))
    before, after = ([getattr(line, size) / 1000 for line in report] for size in ("dense_nbytes", "nbytes"))
    sizes.barh(rows, before, fill=False, edgecolor=THEORY, linestyle="--")
    sizes.barh(rows, after, color=BUDGET)
    errors.barh(rows, [100 * line.error for line in report], color=ERROR)
    sizes.set(xlabel="ko, avant (tirets) et après", yticks=rows)
    sizes.set_yticklabels([line.name for line in report], fontsize=7)
    sizes.margins(y=0.01)
    sizes.invert_yaxis()
    errors.set(xlabel="erreur des poids, en %")
    shrunk = fr(sum(before) / sum(after), 1) if sum(after) else "–"
    figure.suptitle(f"{len(report)} couches, {shrunk} fois moins d'octets", fontsize=11)
    return figure
