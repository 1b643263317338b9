"""Les figures matplotlib du livre : un style, une couleur par notion, des axes nommés et des nombres à la française."""

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
from .spectrum import break_even_rank, cumulative_energy, rank_for_energy, truncation_errors

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
    """Gradue les axes à la française, avec `x` et `y` décimales (None : on ne touche pas à cet axe)."""
    for axis, digits in ((axes.xaxis, x), (axes.yaxis, y)):
        if digits is not None:
            axis.set_major_formatter(FuncFormatter(lambda value, _, d=digits: fr(value, d)))


def label(
    axes: Axes, text: str, x: float, y: float, colour: str, dx: float = 0, dy: float = 6, ha: str = "left"
) -> None:
    """Écrit `text` près du point (x, y), décalé de (dx, dy) points, sur un halo qui l'isole des courbes."""
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
    colours = iter([RANK, BUDGET, ERROR, BITS])
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


def plot_truncation(S: Tensor, m: int, n: int, title: str) -> Figure:
    """Énergie gardée et erreur relative à chaque rang, avec le rang d'équilibre r* et la zone où l'on perd.

    Parameters
    ----------
    S : Tensor, (p,)
    m, n : int
        Dimensions de la matrice.
    title : str

    Returns
    -------
    Figure
    """
    figure, axes = plt.subplots()
    ranks = torch.arange(1, len(S) + 1)
    threshold = rank_for_energy(S, 0.99)
    axes.plot(ranks, 100 * cumulative_energy(S), color=RANK)
    axes.plot(ranks, 100 * truncation_errors(S), color=ERROR)
    quarter = len(S) // 4
    label(axes, "énergie gardée", quarter, 100 * float(cumulative_energy(S)[quarter]), RANK, dy=-18)
    label(axes, "erreur relative", quarter, 100 * float(truncation_errors(S)[quarter]), ERROR, dy=8)
    mark_break_even(axes, m, n)
    axes.plot([threshold], [99], "o", color=RANK)
    label(axes, f"99 % au rang {threshold}", threshold, 99, RANK, dx=8, dy=-16)
    axes.set(xlabel="rang r", ylabel="en %", title=title, xlim=(0, len(S)), ylim=(0, 105))
    return figure


def mark_break_even(axes: Axes, m: int, n: int) -> None:
    """Trace r* en tirets et hachure ce qui est au-delà : des facteurs plus lourds que la matrice."""
    limit = break_even_rank(m, n)
    axes.axvline(limit, color=THEORY, linestyle="--", linewidth=1.2)
    axes.axvspan(limit, min(m, n), facecolor="none", edgecolor="#d4d9df", hatch="//", linewidth=0)
    text = f"r* = {fr(limit, 0 if limit == int(limit) else 1)}\nau-delà : plus lourd que W"
    label(axes, text, limit, 50, THEORY, dx=8)


def show_images(images: Mapping[str, Tensor], columns: int = 3) -> Figure:
    """Des images en niveaux de gris côte à côte, chacune sous son titre.

    Parameters
    ----------
    images : dict titre → (h, l), dans [0, 1]
    columns : int

    Returns
    -------
    Figure
    """
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.8, 2.15 * rows), dpi=110, squeeze=False)
    cells: list[Any] = list(grid.flat)
    for axes in cells:
        axes.axis("off")
    for axes, (title, image) in zip(cells, images.items(), strict=False):
        axes.imshow(image.clamp(0, 1).cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, size=8, pad=4)
    return figure
