"""Section 11.4 : entraîner un réseau dont les facteurs passent par une fausse quantification."""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .validation import check_integer, check_positive, is_finite

Loader = Iterable[tuple[Tensor, Tensor]]


def train_qat_low_rank(
    model: nn.Module,
    train_loader: Loader,
    epochs: int = 50,
    val_loader: Loader | None = None,
    lr: float = 1e-3,
    verbose: bool = False,
) -> nn.Module:
    """Entraîne sur place un classifieur : Adam, entropie croisée ; seuls bougent les paramètres non gelés.

    Parameters
    ----------
    model : nn.Module
        Des entrées (B, ...) vers des scores (B, classes) ; par exemple un réseau de :class:`~lrq.QATLowRankLinear`.
    train_loader : lots (entrées, étiquettes)
        Parcouru `epochs` fois.
    epochs : int, au moins 0
    val_loader : lots, optionnel
        Garde les poids dont la perte y est la plus petite, ceux du départ compris ; sinon, les derniers.
    lr : float
    verbose : bool
        Une barre de progression, avec les pertes.

    Returns
    -------
    nn.Module
        `model`, en mode évaluation.

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module, ou un chargeur ne se parcourt pas plusieurs fois.
    ValueError
        Un chargeur sans aucun lot, rien à entraîner, `epochs` ou `lr` impossibles. Le réseau n'a pas changé.

    Warns
    -----
    UserWarning
        Une perte ou un gradient NaN ou infini : l'entraînement s'arrête et rend les meilleurs poids d'avant.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    epochs, lr = check_integer(epochs, "epochs", minimum=0), check_positive(lr, "lr")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model : aucun paramètre à entraîner, attendu au moins un requires_grad.")
    check_loader(train_loader, "train_loader")
    if val_loader is not None:
        check_loader(val_loader, "val_loader")
    optimizer = torch.optim.Adam(trained, lr)
    modes = {module: module.training for module in model.modules()}
    bar = progress_bar(epochs) if verbose else None
    best, least = copy.deepcopy(model.state_dict()), math.inf
    try:
        if val_loader is not None:
            least = mean_loss(model, val_loader, "val_loader")
        for epoch in range(epochs):
            loss = train_epoch(model, train_loader, optimizer)
            score = loss if val_loader is None else mean_loss(model, val_loader, "val_loader")
            if not math.isfinite(loss + score):
                warnings.warn(
                    f"époque {epoch + 1} : la perte ou son gradient vaut {loss + score:g} ; l'entraînement s'arrête et "
                    "garde les meilleurs poids d'avant. Essayez un lr plus petit.",
                    stacklevel=2,
                )
                break
            if val_loader is None or score < least:  # sans juge, la dernière époque
                best, least = copy.deepcopy(model.state_dict()), score
            if bar is not None:
                bar.set_postfix(perte=f"{loss:.4f}", **({} if val_loader is None else {"validation": f"{score:.4f}"}))
                bar.update()
    except BaseException:
        for module, mode in modes.items():
            module.training = mode
        raise
    finally:
        if bar is not None:
            bar.close()
        model.load_state_dict(best)
    return model.eval()


def check_loader(loader: Any, name: str) -> None:
    """Exige des lots que l'on puisse parcourir plusieurs fois."""
    if isinstance(loader, Iterator):  # sans appeler iter(), qui ferait tirer au hasard un DataLoader
        raise TypeError(f"{name} : reçu un itérateur, qui s'épuise ; attendu un DataLoader ou une liste de lots.")
    if isinstance(loader, Tensor | str | Mapping) or not isinstance(loader, Iterable):
        raise TypeError(f"{name} : reçu {type(loader).__name__}, attendu un DataLoader ou une liste de lots.")


def pairs(loader: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """Les lots, après avoir exigé que chacun soit une paire (entrées, étiquettes)."""
    for index, batch in enumerate(loader):
        if not isinstance(batch, tuple | list):
            raise TypeError(f"{name} : lot {index} : reçu {type(batch).__name__}, attendu (entrées, étiquettes).")
        if len(batch) != 2:
            raise ValueError(f"{name} : lot {index} : reçu {len(batch)} élément(s), attendu (entrées, étiquettes).")
        yield batch[0], batch[1]


def train_epoch(model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer) -> float:
    """Un passage ; rend la perte moyenne, par exemple, ou la première qui n'est pas finie (NaN : son gradient)."""
    model.train()
    total, count = 0.0, 0
    for x, y in pairs(loader, "train_loader"):
        if len(y) == 0:
            continue
        loss = F.cross_entropy(model(x), y)
        if not torch.isfinite(loss):
            return float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        if not all(
            is_finite(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ):
            return math.nan
        optimizer.step()
        total, count = total + float(loss.detach()) * len(y), count + len(y)
    if count == 0:
        raise ValueError("train_loader : aucun exemple, attendu au moins un lot.")
    return total / count


@torch.no_grad()
def mean_loss(model: nn.Module, loader: Loader, name: str) -> float:
    """Entropie croisée moyenne, par exemple, en mode évaluation ; `name` nomme le chargeur dans un refus."""
    model.eval()
    total, count = 0.0, 0
    for x, y in pairs(loader, name):
        total, count = total + float(F.cross_entropy(model(x), y, reduction="sum")), count + len(y)
    if count == 0:
        raise ValueError(f"{name} : aucun exemple, attendu au moins un lot.")
    return total / count


def progress_bar(epochs: int) -> Any:
    """Une barre qui avance d'une époque à l'autre."""
    from tqdm.auto import tqdm

    return tqdm(total=epochs, desc="époques")
