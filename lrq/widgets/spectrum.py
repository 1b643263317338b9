"""Le spectre singulier d'une matrice réelle, et la coupe que le lecteur y déplace."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import traitlets
from torch import Tensor

from ..display import fr
from ..spectrum import break_even_rank, relative_energies
from ..svd import singular_values
from ..validation import check_matrix, check_rank
from .choices import Choice, minilm_choices
from .explorer import Explorer, Text, esm, relative_to_first, to_bytes

MAX_VALUES = 8_000  # valeurs singulières en tout, 4 octets chacune et autant pour le hasard : 64 ko
MAX_MATRICES = 64
SEED = 20261121  # du témoin gaussien : ce n'est pas une graine qu'un lecteur donnerait à sa propre matrice


class SpectrumExplorer(Explorer):
    """Le spectre singulier d'une ou de plusieurs matrices, coupé au rang que choisit le lecteur.

    Parameters
    ----------
    matrices : Tensor (m, n), ou dict nom → Tensor ou :class:`Choice`
        Tout tableau réel à deux dimensions convient : une couche à vous, un tableau NumPy.
    matrix : str, optionnel
        Celle qu'on montre d'abord ; par défaut, la première.
    rank : int, optionnel
        Par défaut, celui qui réduit la taille de moitié.

    Attributes
    ----------
    rank : int
    matrix : str
        Le nom de la matrice montrée. Si elle en permet moins, le rang est ramené à son plus grand.

    Raises
    ------
    TypeError, ValueError
        Une matrice n'est pas à deux dimensions, est vide ou non finie, ou il n'y en a aucune.
    TraitError
        `matrix` ou `rank` impossible.

    Notes
    -----
    Les matrices ne sont pas transportées, seulement leurs valeurs singulières : 8 000 en tout. Au-delà, chaque matrice
    garde ses premières valeurs et l'énergie des autres ; l'erreur reste exacte, et la figure dit où elle s'arrête.
    """

    _esm = esm("spectrum.js")

    matrix = Text().tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)
    _chance = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        matrices: Tensor | Mapping[str, Tensor | Choice],
        matrix: str | None = None,
        rank: int | None = None,
    ):
        choices = named(matrices)
        limit = max(1, MAX_VALUES // len(choices))
        self._spectra = {name: singular_values(choice.W, name).cpu() for name, choice in choices.items()}
        self._shapes = {name: (choice.W.shape[0], choice.W.shape[1]) for name, choice in choices.items()}
        self._carried = {name: min(len(S), limit) for name, S in self._spectra.items()}
        records, values, chance = [], [], []
        for name, choice in choices.items():
            S, carried = self._spectra[name], self._carried[name]
            m, n = self._shapes[name]
            records.append(
                {
                    "name": name,
                    "rows": m,
                    "columns": n,
                    "carried": carried,
                    "top": float(S[0]),
                    "tail": float(relative_energies(S)[carried:].sum()),
                    "prompt": choice.prompt,
                    "code": choice.code,
                }
            )
            relative = relative_to_first(S)
            values.append(relative[:carried])
            chance.append(random_spectrum(m, n, relative)[:carried])
        first = check_name(next(iter(choices)) if matrix is None else matrix, choices)
        if rank is None:
            rank = max(1, min(int(break_even_rank(*self._shapes[first]) / 2), self._carried[first]))
        super().__init__(
            matrix=first,
            rank=rank,
            _choices=records,
            _values=to_bytes(values),
            _chance=to_bytes(chance),
            _note=self._left_out(),
        )

    def _left_out(self) -> str:
        cut = [name for name, S in self._spectra.items() if self._carried[name] < len(S)]
        if not cut:
            return ""
        names = ", ".join(f"« {name} » ({fr(self._carried[name])} sur {fr(len(self._spectra[name]))})" for name in cut)
        return (
            f"Trop de valeurs singulières pour la figure : elle montre les premières de {names}. "
            "Les autres comptent dans l’énergie et dans l’erreur."
        )

    @classmethod
    def of_minilm(cls, matrix: str | None = None, rank: int | None = None) -> Self:
        """Le spectre des matrices réelles du livre.

        Parameters
        ----------
        matrix : str, optionnel
            Un nom de :func:`minilm_choices`.
        rank : int, optionnel
        """
        return cls(minilm_choices(), matrix, rank)

    def shown(self) -> tuple[str, tuple[int, int], Tensor]:
        return self.matrix, self._shapes[self.matrix], self._spectra[self.matrix]

    def check_shown_rank(self, rank: Any) -> int:
        name = check_name(self.matrix, self._spectra)
        rank = check_rank(rank, *self._shapes[name])
        if rank > self._carried[name]:
            limit = self._carried[name]
            raise ValueError(f"rank : reçu {rank}, attendu au plus {limit}, ce que la figure montre de « {name} ».")
        return rank

    @traitlets.validate("matrix")
    def _check_matrix(self, proposal: Any) -> str:
        return check_name(proposal["value"], self._spectra)

    @traitlets.observe("matrix")
    def _keep_rank_possible(self, change: Any) -> None:
        self.rank = min(self.rank, self._carried[self.matrix])


def check_name(name: Any, known: Mapping[str, Any]) -> str:
    """Rend `name` s'il est l'un des noms connus.

    Raises
    ------
    TraitError
    """
    if not isinstance(name, str) or name not in known:
        expected = ", ".join(f"« {other} »" for other in known)
        raise traitlets.TraitError(f"matrix : reçu {name!r}, attendu l'un de ces noms : {expected}.")
    return name


def named(matrices: Any) -> dict[str, Choice]:
    """Les matrices reçues, vérifiées, sous leur nom ; une matrice seule s'appelle « W »."""
    items = matrices if isinstance(matrices, Mapping) else {"W": matrices}
    if not items:
        raise ValueError("matrices : reçu un dictionnaire vide, attendu au moins une matrice.")
    if len(items) > MAX_MATRICES:
        raise ValueError(f"matrices : reçu {len(items)} matrices, attendu au plus {MAX_MATRICES}.")
    choices: dict[str, Choice] = {}
    for name, item in items.items():
        choice = item if isinstance(item, Choice) else Choice(item)
        name = str(name)
        if name in choices:
            raise ValueError(f"matrices : deux matrices s'appellent « {name} », attendu des noms distincts.")
        choices[name] = Choice(check_matrix(choice.W, f"matrices[{name!r}]"), choice.prompt, choice.code)
    return choices


def random_spectrum(m: int, n: int, S: Tensor) -> Tensor:
    """Spectre d'une matrice gaussienne m×n de même norme de Frobenius que S : ce que montrerait le hasard."""
    noise = singular_values(torch.randn(m, n, generator=torch.Generator().manual_seed(SEED)))
    return noise * (S.double().norm() / noise.double().norm())
