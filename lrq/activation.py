"""SVD consciente des entrées : la couche de rang r dont les *sorties* sont les plus proches, et non les poids.

La SVD tronquée minimise ‖W − Ŵ‖, comme si les entrées allaient également dans toutes les directions. Les vraies, non.
Avec X leur matrice, (N, n), et C = XᵀX/N leur second moment, ‖X(W − Ŵ)ᵀ‖²/N = ‖(W − Ŵ) C^½‖² : on tronque donc W C^½
(c'est blanchir les entrées), et l'on revient aux poids.
"""

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .svd import to_dtype, truncated_svd, working_dtype
from .validation import check_matrix, check_names, check_rank, check_tensor, is_finite, outside

CHUNK = 2048  # entrées mises en attente avant d'être multipliées : un grand produit coûte moins que mille petits
FLOOR = 1e-12  # part de la plus grande variance au-dessous de laquelle une direction compte comme jamais vue


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ce qu'une couche a vu passer : le second moment de ses entrées.

    Attributes
    ----------
    second_moment : Tensor, (n, n), float64
        C = XᵀX / N.
    count : int
        N, le nombre d'entrées.
    """

    second_moment: Tensor
    count: int

    @classmethod
    def from_inputs(cls, X: Tensor) -> "Calibration":
        """Le second moment d'entrées.

        Parameters
        ----------
        X : Tensor, (..., n)

        Raises
        ------
        TypeError
            X n'est pas un tenseur de nombres réels.
        ValueError
            X est vide, contient NaN ou l'infini, ou n'a que des zéros.
        """
        if check_tensor(X, "calibration").ndim == 0 or X.numel() == 0:
            raise ValueError(f"calibration : reçu la forme {tuple(X.shape)}, attendu au moins une entrée (..., n).")
        x = X.detach().reshape(-1, X.shape[-1]).double()  # (N, n)
        return cls.from_sum(x.T @ x, len(x), "calibration")

    @classmethod
    def from_sum(cls, total: Tensor, count: int, name: str) -> "Calibration":
        """Le second moment, tiré de `total` = XᵀX et de `count` = N.

        Parameters
        ----------
        total : Tensor, (n, n)
        count : int
        name : str
            Comment un refus nomme les entrées.

        Raises
        ------
        ValueError
            NaN ou infini dans les entrées, ou rien que des zéros.
        """
        if not is_finite(total):  # un seul NaN de X en laisse dans XᵀX
            raise ValueError(f"{name} : NaN ou infini dans les entrées, attendu des nombres finis.")
        if not total.any():
            raise ValueError(f"{name} : toutes les entrées sont nulles, elles ne disent rien de la couche.")
        return cls(total / count, count)

    @cached_property
    def root(self) -> Tensor:
        """Une racine R de C = R Rᵀ, (n, n) : C^½ à une rotation près, qui ne change ni σ ni les vecteurs gauches de WR.

        Une direction jamais vue n'y est pas tout à fait nulle ; un avertissement le dit.
        """
        variances, directions = torch.linalg.eigh(self.second_moment)
        floor = FLOOR * (variances[-1] if variances[-1] > 0 else 1.0)
        known = int((variances > floor).sum())
        if known < len(variances):
            warnings.warn(
                f"calibration : ses {self.count} entrées n'occupent que {known} direction(s) sur {len(variances)} ; "
                "hors d'elles, rien ne guide l'approximation.",
                stacklevel=outside(),
            )
        return directions * variances.clamp_min(floor).sqrt()


def calibrate(model: nn.Module, names: Collection[str], run: Callable[[], object]) -> dict[str, Calibration]:
    """Fait passer des données dans un réseau, et retient le second moment des entrées de quelques couches.

    Parameters
    ----------
    model : nn.Module
        Seulement écouté ; à mettre d'abord en ``eval()``, sans quoi ``BatchNorm`` et ``Dropout`` agissent.
    names : noms de modules
    run : fonction sans argument
        Fait passer les données de calibration ; par exemple ``lambda: model(x)``.

    Returns
    -------
    dict nom → Calibration

    Raises
    ------
    ValueError
        Un nom ne désigne aucun module, ou une couche n'a reçu aucune entrée.
    """
    modules_of(model, names)  # refuse d'abord
    waiting: dict[str, list[Tensor]] = {name: [] for name in names}
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(waiting, 0)

    def fold(name: str) -> None:
        x = torch.cat(waiting[name]).double()  # (N, n)
        totals[name] = totals.get(name, 0) + x.T @ x
        counts[name] += len(x)
        waiting[name].clear()

    def receive(name: str, x: Tensor) -> None:
        waiting[name].append(x.reshape(-1, x.shape[-1]).clone())  # le réseau peut réécrire x sur place
        if sum(map(len, waiting[name])) >= CHUNK:
            fold(name)

    listen(model, names, run, receive)
    for name, inputs in waiting.items():
        if inputs:
            fold(name)
    return {name: Calibration.from_sum(totals[name], counts[name], f"run, couche {name!r}") for name in waiting}


def modules_of(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """Tous les modules d'un réseau, par nom, une fois vérifié que `names` en désigne."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    modules = dict(model.named_modules(remove_duplicate=False))
    check_names(names, modules, "un module")
    return modules


def listen(
    model: nn.Module, names: Collection[str], run: Callable[[], object], receive: Callable[[str, Tensor], None]
) -> None:
    """Appelle ``receive(nom, entrée)`` à chaque entrée que reçoivent les modules nommés pendant ``run()``.

    Raises
    ------
    ValueError
        Un nom ne désigne aucun module, ou une couche n'a reçu aucune entrée.
    """
    modules = modules_of(model, names)
    if not callable(run):
        raise TypeError(f"run : reçu {type(run).__name__}, attendu une fonction sans argument : lambda: model(x).")
    silent = set(names)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hear(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, Tensor):
                raise TypeError(f"names : {name!r} reçoit {type(x).__name__} pour première entrée, attendu un tenseur.")
            if x.numel():
                silent.discard(name)
                receive(name, x.detach())

        return hear

    hooks = [modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in dict.fromkeys(names)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in hooks:
            handle.remove()
    if silent:
        raise ValueError(f"run : la couche {next(name for name in names if name in silent)!r} n'a reçu aucune entrée.")


def activation_aware_svd(W: Tensor, rank: int, calibration: Tensor | Calibration) -> tuple[Tensor, Tensor, Tensor]:
    """La matrice Ŵ de rang r qui minimise ‖X(W − Ŵ)ᵀ‖, rendue par sa SVD.

    Avec U_r les premiers vecteurs singuliers gauches de W C^½, le minimum est atteint par Ŵ = U_r U_rᵀ W : une
    projection des sorties, sans rien inverser. Une direction d'entrée que la calibration n'a jamais vue ne compte que
    pour départager ; un avertissement le dit.

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)
    calibration : Tensor (..., n) d'entrées, ou Calibration

    Returns
    -------
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)
        Dans le dtype et sur l'appareil de W.

    Raises
    ------
    TypeError, ValueError
        Comme :func:`~lrq.truncated_svd` ; calibration d'une autre largeur que W, vide, nulle ou non finie.
    """
    W = check_matrix(W)
    rank = check_rank(rank, *W.shape)
    x = W.double()
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_inputs(calibration)
    width = len(calibration.second_moment)
    if width != W.shape[1]:
        raise ValueError(f"calibration : reçu des entrées de largeur {width}, attendu {W.shape[1]}.")
    U, _, _ = truncated_svd(x @ calibration.root.to(W.device), rank)  # (m, n) @ (n, n)
    projected, S, Vh = truncated_svd(U.T @ x, rank)  # (r, m) @ (m, n) : sa SVD donne celle de U Uᵀ W
    return (U @ projected).to(W.dtype), to_dtype(S, W.dtype), Vh.to(W.dtype)


def output_energy(W: Tensor, seen: Calibration | None) -> float:
    """L'énergie moyenne des sorties W x, tr(W C Wᵀ) ; sans calibration, celle des poids."""
    W = W.double()
    return max(0.0, float(((W if seen is None else W @ seen.second_moment.to(W.device)) * W).sum()))


def decompose(W: Tensor, rank: int, calibration: Tensor | Calibration | None) -> tuple[Tensor, Tensor, Tensor]:
    """SVD tronquée de W ou, si des entrées sont données, la SVD qui en tient compte ; en précision de calcul."""
    x = W.to(working_dtype(W))
    return truncated_svd(x, rank) if calibration is None else activation_aware_svd(x, rank, calibration)
