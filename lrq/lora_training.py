"""Section 11.3 : entraîner des adaptateurs ; B plus vite que A (LoRA+) ; des rangs qui suivent les gradients."""

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapters import lora_layers
from .layers import LoRAAdapter
from .peft_files import save_adapter
from .storage import read_safetensors, write_whole
from .training import check_loader, pairs, progress_bar
from .validation import check_integer, check_positive

Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]


def active_adapters(model: nn.Module) -> dict[str, LoRAAdapter]:
    """L'adaptateur actif de chaque couche, par nom de couche ; plusieurs actifs ont chacun leur nom.

    Raises
    ------
    TypeError, ValueError
        Réseau sans adaptateur, sans adaptateur actif, ou fusionné.
    """
    layers = lora_layers(model)
    if any(layer.merged for layer in layers.values()):
        raise ValueError("lora_model : ses adaptateurs sont fusionnés ; appelez d'abord unmerge_adapters.")
    found = {f"{key}.{name}": layer.adapter(name) for key, layer in layers.items() for name in layer.active}
    if not found:
        raise ValueError("lora_model : aucun adaptateur actif à entraîner ; appelez d'abord set_adapter.")
    return found


def adam(lora_model: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam, au même pas pour A et pour B."""
    return torch.optim.Adam([p for adapter in active_adapters(lora_model).values() for p in adapter.parameters()], lr)


class LoRAPlus(torch.optim.Adam):
    """LoRA+ : Adam, où le pas de B est un multiple de celui de A.

    Parameters
    ----------
    lora_model : nn.Module
        Ses adaptateurs actifs sont ce que l'on entraîne.
    lr : float
        Le pas de A.
    ratio : float
        Le pas de B, divisé par celui de A ; 16 dans l'article.
    **options
        Celles de ``torch.optim.Adam``.

    References
    ----------
    Hayou, Ghosh et Yu (2024).
    """

    def __init__(self, lora_model: nn.Module, lr: float = 1e-4, ratio: float = 16.0, **options: Any):
        lr, ratio = check_positive(lr, "lr"), check_positive(ratio, "ratio")
        adapters = active_adapters(lora_model).values()
        slow = {"params": [adapter.A for adapter in adapters], "lr": lr}
        fast = {"params": [adapter.B for adapter in adapters], "lr": ratio * lr}
        super().__init__([slow, fast], lr=lr, **options)


class LoRATrainer:
    """Entraîne les adaptateurs actifs d'un réseau, et eux seuls.

    La base reste en mode évaluation : ni son dropout ni ses statistiques de lots ne bougent, et le fichier de
    l'adaptateur suffit à retrouver le réseau.

    Parameters
    ----------
    lora_model : nn.Module
        Entraîné sur place.
    train_loader, val_loader : lots (entrées, cibles)
        Les entrées sont un tenseur, un tuple ou un dictionnaire d'arguments. Sans `val_loader` (None), on garde les
        derniers adaptateurs, et non les meilleurs.
    lr : float
    loss : fonction (sorties, cibles) → scalaire moyen
        L'entropie croisée par défaut.
    optimizer : fonction (réseau, lr) → optimiseur
        Adam par défaut ; :class:`LoRAPlus` convient.
    max_norm : float
        Norme au-delà de laquelle le gradient est ramené à elle.
    verbose : bool
        Une barre de progression.

    Attributes
    ----------
    history : list[dict]
        Par époque : ``epoch``, ``train_loss``, ``val_loss`` (None sans `val_loader`).

    Raises
    ------
    TypeError, ValueError
        Réseau sans adaptateur actif, ou fusionné ; chargeur qui s'épuise ; `lr` ou `max_norm` impossibles.
    """

    def __init__(
        self,
        lora_model: nn.Module,
        train_loader: Batches,
        val_loader: Batches | None,
        lr: float = 1e-4,
        loss: Loss = F.cross_entropy,
        optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None,
        max_norm: float = 1.0,
        verbose: bool = False,
    ):
        check_loader(train_loader, "train_loader")
        if val_loader is not None:
            check_loader(val_loader, "val_loader")
        self.model, self.train_loader, self.val_loader = lora_model, train_loader, val_loader
        self.adapters = active_adapters(lora_model)
        self.lr, self.max_norm = check_positive(lr, "lr"), check_positive(max_norm, "max_norm")
        self.loss, self.verbose = loss, verbose
        self.make_optimizer = optimizer or adam
        self.optimizer = self.make_optimizer(lora_model, self.lr)
        self.history: list[dict[str, Any]] = []
        self.least = math.inf
        self.best = self.last = self.snapshot()

    def parameters(self) -> list[nn.Parameter]:
        """A et B de chaque adaptateur entraîné."""
        return [p for adapter in self.adapters.values() for p in (adapter.A, adapter.B)]

    def train_epoch(self) -> float:
        """Un passage sur `train_loader` ; rend la perte moyenne, ou NaN si une perte ou un gradient n'est pas fini.

        Un passage NaN ou interrompu n'a rien changé, ni aux adaptateurs ni à l'optimiseur.
        """
        before, moments = self.snapshot(), copy.deepcopy(self.optimizer.state_dict())
        loss = math.nan
        try:
            loss = self.pass_over_data()
        finally:
            if math.isfinite(loss):
                self.last = self.snapshot()
                self.best = self.last if self.val_loader is None else self.best
            else:
                self.restore(before)
                self.optimizer.load_state_dict(moments)
        return loss

    def pass_over_data(self) -> float:
        """Le passage lui-même ; interrompu, il laisse tout à mi-chemin."""
        self.model.eval()
        for adapter in self.adapters.values():
            adapter.train()
        total, count = 0.0, 0
        try:
            for inputs, targets in pairs(self.train_loader, "train_loader"):
                if len(targets) == 0:
                    continue
                loss = self.loss(call(self.model, inputs), targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.after_backward()
                norm = nn.utils.clip_grad_norm_(self.parameters(), self.max_norm)
                if not math.isfinite(float(loss.detach()) + float(norm)):
                    return math.nan
                self.optimizer.step()
                total, count = total + float(loss.detach()) * len(targets), count + len(targets)
        finally:
            self.model.eval()
        if count == 0:
            raise ValueError("train_loader : aucun exemple, attendu au moins un lot.")
        return total / count

    @torch.no_grad()
    def validate(self) -> float:
        """La perte moyenne sur `val_loader`, en mode évaluation.

        Raises
        ------
        ValueError
            Pas de `val_loader`, ou aucun exemple dedans.
        """
        if self.val_loader is None:
            raise ValueError("val_loader : reçu None, attendu des lots pour valider.")
        self.model.eval()
        total, count = 0.0, 0
        for inputs, targets in pairs(self.val_loader, "val_loader"):
            if len(targets):
                total += float(self.loss(call(self.model, inputs), targets)) * len(targets)
                count += len(targets)
        if count == 0:
            raise ValueError("val_loader : aucun exemple, attendu au moins un lot.")
        return total / count

    def train(self, epochs: int) -> list[dict[str, Any]]:
        """Entraîne `epochs` époques de plus, en repartant des dernières valeurs ; laisse au réseau les meilleures.

        Deux appels valent un seul de la somme de leurs époques, si `train_loader` donne les mêmes lots. Une perte ou
        un gradient NaN arrête l'entraînement, avec un avertissement ; une interruption garde les meilleures.

        Returns
        -------
        list[dict]
            `history`.
        """
        epochs = check_integer(epochs, "epochs", minimum=0)
        if active_adapters(self.model) != self.adapters:
            raise ValueError("lora_model : d'autres adaptateurs sont actifs ; faites un LoRATrainer après set_adapter.")
        self.restore(self.last)
        bar = progress_bar(epochs) if self.verbose else None
        try:
            if self.val_loader is not None and not self.history:
                self.best, self.least = self.last, self.validate()
            for _ in range(epochs):
                loss = self.train_epoch()
                if math.isfinite(loss):
                    self.after_epoch()
                score = None if self.val_loader is None else self.validate()
                if not math.isfinite(loss + (score or 0.0)):
                    warnings.warn(
                        f"époque {len(self.history) + 1} : la perte ou son gradient n'est plus fini ; l'entraînement "
                        "s'arrête et garde les meilleurs adaptateurs d'avant. Essayez un lr plus petit.",
                        stacklevel=2,
                    )
                    self.last = self.best
                    break
                self.history.append({"epoch": len(self.history) + 1, "train_loss": loss, "val_loss": score})
                if score is not None and score < self.least:
                    self.best, self.least = self.last, score
                if bar is not None:
                    bar.set_postfix(perte=f"{loss:.4f}", **({} if score is None else {"validation": f"{score:.4f}"}))
                    bar.update()
        finally:
            if bar is not None:
                bar.close()
            self.restore(self.best)
        return self.history

    def after_backward(self) -> None:
        """Le gradient vient d'être calculé ; une sous-classe l'observe."""

    def after_epoch(self) -> None:
        """Une époque vient de finir, et n'est pas encore jugée ; une sous-classe y change les rangs."""

    # --- reprendre plus tard ------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Tensor]:
        """Copie de A et B, adaptateur par adaptateur."""
        both = (
            (f"{key}.{factor}", p) for key, adapter in self.adapters.items() for factor, p in adapter.named_parameters()
        )
        return {name: p.detach().clone() for name, p in both}

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Rend à A et B les valeurs `values` ; au même rang, les paramètres restent les mêmes objets."""
        for key, adapter in self.adapters.items():
            for factor, p in list(adapter.named_parameters()):
                replace_factor(adapter, factor, values[f"{key}.{factor}"].to(p, copy=True))

    def save_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Écrit l'adaptateur seul dans `folder`, au format de PEFT : voir :func:`~lrq.save_adapter`."""
        save_adapter(self.model, folder)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Écrit dans `path` de quoi reprendre : adaptateurs, derniers et meilleurs, état de l'optimiseur, historique.

        Un seul fichier safetensors, sans la base. Le fichier n'apparaît que complet.
        """
        from safetensors.torch import save

        state = self.optimizer.state_dict()
        tensors = {f"last.{name}": t for name, t in self.last.items()}
        tensors |= {f"best.{name}": t.clone() for name, t in self.best.items()}
        tensors |= {
            f"state.{i}.{name}": t.clone() for i, values in state["state"].items() for name, t in values.items()
        }
        told = self.progress() | {"groups": state["param_groups"]}
        write_whole({Path(path): save(tensors, {"lrq": json.dumps(told)})})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Reprend ce que :meth:`save` a écrit dans `path`, pour un réseau et un optimiseur de même structure.

        Raises
        ------
        FileNotFoundError, ValueError
            Fichier absent, tronqué, d'autres adaptateurs ou d'un autre optimiseur. Rien n'a changé.
        """
        tensors, metadata = read_safetensors(Path(path))
        try:
            told = json.loads(metadata["lrq"])
            groups = told.pop("groups")
            told = {key: told[key] for key in self.progress()}
            parts: dict[str, dict[str, Tensor]] = {"last": {}, "best": {}, "state": {}}
            for name, t in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = t
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} : attendu un fichier de {type(self).__name__}.save.") from None
        self.check_snapshot(path, parts["last"])
        self.check_snapshot(path, parts["best"])
        current = self.optimizer.state_dict()["param_groups"]
        if [(group["params"], sorted(group)) for group in groups] != [(g["params"], sorted(g)) for g in current]:
            raise ValueError(f"{path} : reçu l'état d'un autre optimiseur, attendu {type(self.optimizer).__name__}.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, t in parts["state"].items():
            index, _, statistic = name.partition(".")
            state.setdefault(int(index), {})[statistic] = t
        self.last, self.best = parts["last"], parts["best"]
        vars(self).update(told)
        self.restore(self.best)
        self.optimizer = self.make_optimizer(self.model, self.lr)  # d'un autre rang, ce sont d'autres paramètres
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def progress(self) -> dict[str, Any]:
        """Où en est l'entraînement, hors des tenseurs : ce que JSON sait écrire."""
        return {"history": self.history, "least": self.least}

    def check_snapshot(self, path: str | os.PathLike[str], values: Mapping[str, Tensor]) -> None:
        """Exige de `values`, lues dans `path`, les adaptateurs du réseau ; leurs rangs, eux, peuvent être autres.

        Raises
        ------
        ValueError
            D'autres adaptateurs, ou d'autres formes.
        """

        def shape(name: str, t: Tensor) -> tuple[int, ...]:
            return tuple(t.shape[1:] if name.endswith(".A") else (*t.shape[:1], *t.shape[2:]))

        found = {name: shape(name, t) for name, t in values.items()}
        expected = {name: shape(name, t) for name, t in self.last.items()}
        if found != expected:
            names = sorted(found.keys() ^ expected.keys()) or sorted(k for k in found if found[k] != expected[k])
            raise ValueError(f"{path} : {names[0]} ne correspond pas aux adaptateurs du réseau.")


class AdaptiveLoRA(LoRATrainer):
    """LoRA dont les rangs suivent les gradients, sous un budget total de paramètres.

    Retirer la composante k d'un adaptateur, b_k a_kᵀ, change la perte, au premier ordre, de −⟨b_k, ∂L/∂b_k⟩. Pendant
    l'échauffement, on somme les valeurs absolues de ces nombres, lot après lot ; à sa fin, chaque couche garde sa
    composante la plus importante, puis le budget va aux plus importantes de toutes, à taille égale. L'optimiseur
    repart alors à neuf.

    Parameters
    ----------
    lora_model, train_loader, val_loader, lr, **options : ceux de :class:`LoRATrainer`
    budget : int, optionnel
        Nombre de paramètres gardés en tout ; par défaut, la moitié de ceux du départ.
    warmup : int, au moins 1
        Nombre d'époques de l'échauffement.

    Attributes
    ----------
    importance : dict couche → Tensor (r,)

    References
    ----------
    Zhang et al. (2023) pour des rangs qui suivent l'importance ; Molchanov et al. (2019) pour ce premier ordre.
    """

    def __init__(
        self,
        lora_model: nn.Module,
        train_loader: Batches,
        val_loader: Batches | None,
        lr: float = 1e-4,
        budget: int | None = None,
        warmup: int = 1,
        **options: Any,
    ):
        super().__init__(lora_model, train_loader, val_loader, lr, **options)
        sizes = {key: self.component_size(adapter) for key, adapter in self.adapters.items()}
        whole = sum(size * self.adapters[key].rank for key, size in sizes.items())
        self.budget = check_integer(whole // 2 if budget is None else budget, "budget", minimum=sum(sizes.values()))
        self.warmup = check_integer(warmup, "warmup")
        self.importance = {key: torch.zeros(adapter.rank) for key, adapter in self.adapters.items()}

    @staticmethod
    def component_size(adapter: LoRAAdapter) -> int:
        """Nombre de paramètres d'une composante de `adapter` : in + out."""
        return (adapter.A.numel() + adapter.B.numel()) // adapter.rank

    def ranks(self) -> dict[str, int]:
        """Le rang de chaque adaptateur."""
        return {key: adapter.rank for key, adapter in self.adapters.items()}

    def train_epoch(self) -> float:
        before, loss = {key: scores.clone() for key, scores in self.importance.items()}, math.nan
        try:
            loss = super().train_epoch()
        finally:
            if not math.isfinite(loss):
                self.importance = before
        return loss

    def progress(self) -> dict[str, Any]:
        return super().progress() | {"importance": {key: scores.tolist() for key, scores in self.importance.items()}}

    def load(self, path: str | os.PathLike[str]) -> None:
        super().load(path)
        self.importance = {key: torch.tensor(scores) for key, scores in self.importance.items()}

    def after_backward(self) -> None:
        if len(self.history) < self.warmup:
            for key, adapter in self.adapters.items():
                if adapter.B.grad is not None:  # une couche dont le réseau ne s'est pas servi
                    slope = (adapter.B.detach() * adapter.B.grad).flatten(1).sum(0)  # (out, r) -> (r,)
                    self.importance[key] += slope.abs().cpu()

    def after_epoch(self) -> None:
        if len(self.history) + 1 == self.warmup:
            self.prune()

    def prune(self) -> dict[str, int]:
        """Ne garde que les composantes les plus importantes, à l'intérieur du budget ; rend les rangs."""
        sizes = {key: self.component_size(adapter) for key, adapter in self.adapters.items()}
        kept = {key: [int(scores.argmax())] for key, scores in self.importance.items()}
        left = self.budget - sum(sizes.values())
        others = [
            (float(score) / sizes[key], key, k)
            for key, scores in self.importance.items()
            for k, score in enumerate(scores)
            if k not in kept[key]
        ]
        for _, key, k in sorted(others, key=lambda other: -other[0]):
            if sizes[key] <= left:
                kept[key].append(k)
                left -= sizes[key]
        for key, adapter in self.adapters.items():
            A, B = adapter.blocks()  # (g, r, n), (g, out/g, r)
            keep = sorted(kept[key])
            replace_factor(adapter, "A", A.detach()[:, keep].reshape(-1, *adapter.A.shape[1:]))
            replace_factor(adapter, "B", B.detach()[:, :, keep].reshape(len(adapter.B), -1, *adapter.B.shape[2:]))
            self.importance[key] = self.importance[key][keep]
        self.optimizer = self.make_optimizer(self.model, self.lr)
        self.least, self.last = math.inf, self.snapshot()
        self.best = self.last
        return self.ranks()


def replace_factor(adapter: LoRAAdapter, factor: str, value: Tensor) -> None:
    """Change A ou B ; d'une autre forme, c'est un autre paramètre, qu'un graphe encore en vie ne connaît pas."""
    p = adapter.get_parameter(factor)
    if p.shape == value.shape:
        p.data, p.grad = value, None
    else:
        setattr(adapter, factor, nn.Parameter(value, p.requires_grad))


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Appelle un réseau sur un tenseur, un tuple ou un dictionnaire d'arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
