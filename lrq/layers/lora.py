"""Section 11.0 : l'adaptateur LoRA, W = W₀ + α B A, dont seuls A et B s'entraînent."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..svd import working_dtype
from ..validation import check_finite_number, check_input, check_linear, check_rank


class LoRALayer(nn.Module):
    """Une couche gelée et son adaptateur de rang r.

    Au départ B = 0 : la couche adaptée rend exactement ce que rendait l'originale.

    Parameters
    ----------
    original_layer : nn.Linear
        Gardée telle quelle (sans copie) et gelée.
    rank : int, entre 1 et min(in, out)
    alpha : float
        Échelle α de l'adaptateur ; c'est celle du cours, sans division par r.

    Attributes
    ----------
    original : nn.Linear
    lora_A : Parameter, (r, in)
        Gaussienne, d'écart type 1/√in.
    lora_B : Parameter, (out, r)
    merged : bool
        Vrai quand α B A est déjà ajouté aux poids.
    """

    _saved_weight: Tensor | None  # les poids d'avant la fusion, pour la défaire au bit près

    def __init__(self, original_layer: nn.Linear, rank: int = 16, alpha: float = 1.0):
        super().__init__()
        weight = check_linear(original_layer, "original_layer").weight
        m, n = weight.shape
        self.rank = check_rank(rank, m, n)
        self.alpha = check_finite_number(alpha, "alpha")
        self.original = original_layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, n, device=weight.device, dtype=weight.dtype) / math.sqrt(n))
        self.lora_B = nn.Parameter(torch.zeros(m, rank, device=weight.device, dtype=weight.dtype))
        self.register_buffer("_saved_weight", None)

    @property
    def merged(self) -> bool:
        return self._saved_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """y = x W₀ᵀ + b + α (x Aᵀ) Bᵀ ; une fois fusionnée, la couche d'origine suffit."""
        y = self.original(check_input(x, self.original.in_features))  # (..., n) -> (..., m)
        if self.merged:
            return y
        h = F.linear(x, self.lora_A)  # (..., n) @ (n, r) -> (..., r)
        return y + self.alpha * F.linear(h, self.lora_B)  # (..., r) @ (r, m) -> (..., m)

    @torch.no_grad()
    def merge_weights(self) -> None:
        """Ajoute α B A aux poids d'origine ; une seconde fusion ne change rien et avertit."""
        if self.merged:
            warnings.warn("adaptateur déjà fusionné : rien n'a changé.", stacklevel=3)
            return
        W = self.original.weight
        dtype = working_dtype(W)  # un seul arrondi, à la fin
        merged = W.to(dtype) + self.alpha * (self.lora_B.to(dtype) @ self.lora_A.to(dtype))  # (m, r) @ (r, n)
        if not torch.isfinite(merged.to(W.dtype)).all():
            raise ValueError("lora_A, lora_B : reçu NaN ou l'infini dans W + α B A, la fusion est refusée.")
        self._saved_weight = W.detach().clone()
        W.copy_(merged)

    @torch.no_grad()
    def unmerge_weights(self) -> None:
        """Rend aux poids d'origine leur valeur d'avant la fusion, au bit près."""
        if self._saved_weight is None:
            warnings.warn("adaptateur non fusionné : rien n'a changé.", stacklevel=3)
            return
        self.original.weight.copy_(self._saved_weight)
        self._saved_weight = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # la couche prend l'état du fichier, fusionné ou non : sinon l'adaptateur compterait deux fois, ou zéro
        saved = state_dict.get(f"{prefix}_saved_weight")
        self._saved_weight = None if saved is None else torch.empty_like(self.original.weight)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def trainable_parameters(self) -> int:
        """Nombre de paramètres entraînés : r (in + out)."""
        return self.lora_A.numel() + self.lora_B.numel()

    def total_parameters(self) -> int:
        """Nombre de paramètres en tout : poids, biais et adaptateur."""
        return sum(p.numel() for p in self.parameters())

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, merged={self.merged}"
