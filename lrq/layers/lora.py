"""Section 11.3 : l'adaptateur LoRA, W = W₀ + s B A, dont seuls A et B s'entraînent."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration, decompose, output_energy
from ..quantizers import Granularity
from ..svd import share_singular_values, working_dtype
from ..validation import (
    check_choice,
    check_conv,
    check_dropout,
    check_finite_number,
    check_input,
    check_integer,
    check_linear,
    check_rank,
    is_finite,
)
from .base import CompressedLinear, copy_bias
from .conv import check_images
from .packed import row_quantizer
from .quantized_linear import QuantizedLinear

ADAPTABLE = (nn.Linear, nn.Conv2d, CompressedLinear)
Adaptable = nn.Linear | nn.Conv2d | CompressedLinear

SCALINGS: dict[str, Callable[[float, int], float]] = {
    "alpha": lambda alpha, rank: alpha,  # celle du cours
    "alpha/r": lambda alpha, rank: alpha / rank,  # Hu et al. (2022)
    "alpha/sqrt(r)": lambda alpha, rank: alpha / math.sqrt(rank),  # Kalajdzievski (2023)
}


def blocks_shape(layer: nn.Module) -> tuple[int, int, int]:
    """Nombre de groupes, et forme (out/g, in/g·kh·kw) de la matrice de chacun ; (1, out, in) sans convolution."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups, layer.out_channels // layer.groups, layer.weight[0].numel()
    return 1, layer.out_features, layer.in_features  # type: ignore[return-value]


def dense_weight(layer: nn.Module) -> Tensor:
    """Les poids d'une couche, rendus denses si elle est comprimée."""
    return layer.reconstruct_weight() if isinstance(layer, CompressedLinear) else layer.weight  # type: ignore[return-value]


def max_rank(layer: nn.Module) -> int:
    """Le plus grand rang d'un adaptateur de cette couche, adaptée ou non."""
    return min(blocks_shape(layer.original if isinstance(layer, LoRALayer) else layer)[1:])


def check_adapter_name(name: Any) -> str:
    """Rend un nom d'adaptateur : un texte sans point, qui n'est pas celui d'une méthode de nn.ModuleDict."""
    if not isinstance(name, str):
        raise TypeError(f"name : reçu {name!r}, attendu le nom d'un adaptateur.")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"name : reçu {name!r}, attendu un nom sans point, qui ne soit pas celui d'une méthode.")
    return name


def adapter_weights(name: Any) -> dict[str, Any]:
    """Nom → poids, d'un nom seul, de poids 1, ou d'un dictionnaire."""
    if isinstance(name, Mapping):
        return dict(name)
    if not isinstance(name, str):
        raise TypeError(f"name : reçu {name!r}, attendu le nom d'un adaptateur, ou un dictionnaire nom → poids.")
    return {name: 1.0}


class LoRAAdapter(nn.Module):
    """Une mise à jour de rang r : ΔW = s B A, un produit par groupe.

    Parameters
    ----------
    A : Tensor, (r, in), ou (g·r, in/g, kh, kw) pour une convolution
    B : Tensor, (out, r), ou (out, r, 1, 1)
    scale : float
        Le facteur s.
    dropout : float, dans [0, 1[
        Part des entrées de A mises à zéro pendant l'entraînement.

    Raises
    ------
    ValueError
        L'échelle déborde de la précision de calcul.
    """

    A_0: Tensor | None
    B_0: Tensor | None

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        if abs(scale) > torch.finfo(working_dtype(A)).max:
            raise ValueError(
                f"alpha : l'échelle {scale:g} ne tient pas en {working_dtype(A)}, attendu une plus petite."
            )
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.scale, self.dropout = scale, dropout
        self.register_buffer("A_0", None)  # ce qui fut retiré de la couche gelée : voir LoRALayer.from_pissa
        self.register_buffer("B_0", None)

    @property
    def rank(self) -> int:
        """Le rang r, par groupe."""
        return self.B.shape[1]

    @torch.no_grad()
    def start(self, U: Sequence[Tensor], V: Sequence[Tensor]) -> None:
        """Part de s B A = U Vᵀ, pour chaque groupe, au lieu de B = 0.

        Parameters
        ----------
        U : suite de Tensor (out/g, r), un par groupe
        V : suite de Tensor (n, r), un par groupe

        Raises
        ------
        ValueError
            L'échelle s est nulle, ou si petite que B déborde.
        """
        if self.scale == 0:
            raise ValueError("alpha : reçu 0, attendu un nombre non nul.")
        B = torch.cat([u / self.scale for u in U]).to(self.B.dtype)
        if not is_finite(B):
            raise ValueError(
                f"alpha : l'échelle {self.scale:g} est trop petite, B = U/s déborde ; attendu un plus grand."
            )
        self.A.copy_(torch.cat([v.T for v in V]).view_as(self.A))  # (g·r, n)
        self.B.copy_(B.view_as(self.B))  # (out, r)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A et B, lus dans leur dictionnaire, plus vite que par attribut."""
        return tuple(self._parameters.values())  # type: ignore[return-value]

    def blocks(self) -> tuple[Tensor, Tensor]:
        """A et B comme matrices, un bloc par groupe : (g, r, n) et (g, out/g, r)."""
        groups = len(self.A) // self.rank
        return self.A.reshape(groups, self.rank, -1), self.B.reshape(groups, -1, self.rank)

    def drop(self, x: Tensor) -> Tensor:
        """Les entrées x, dont une part est mise à zéro pendant l'entraînement."""
        return F.dropout(x, self.dropout, self.training)

    def delta(self) -> Tensor:
        """ΔW, de la forme (out, in) ou (out, in/g·kh·kw), en précision de calcul."""
        A, B = (block.to(working_dtype(block)) for block in self.blocks())
        return self.scale * (B @ A).flatten(0, 1)  # (g, out/g, r) @ (g, r, n)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


class LoRALayer(nn.Module):
    """Une couche gelée et ses adaptateurs : W = W₀ + Σ_k w_k s_k B_k A_k.

    Elle naît avec un adaptateur, ``default``, où B = 0 : elle rend exactement ce que rendait l'originale. On lui en
    ajoute d'autres, de rangs quelconques ; `set_adapter` dit lesquels comptent, et pour combien. Ni l'échelle ni ce
    choix ne sont dans ``state_dict`` : pour échanger un adaptateur, :func:`~lrq.save_adapter`.

    Parameters
    ----------
    original_layer : nn.Linear, nn.Conv2d, ou couche linéaire comprimée
        Gardée telle quelle (sans copie) et gelée.
    rank : int, entre 1 et min(in, out)
        Pour une convolution, entre 1 et min(in/g·kh·kw, out/g), par groupe.
    alpha : float
    dropout : float, dans [0, 1[
    scaling : "alpha", "alpha/r" ou "alpha/sqrt(r)"
        Comment l'échelle s se tire de α : celle du cours, celle de LoRA (et de PEFT), celle de rsLoRA.

    Attributes
    ----------
    original : la couche gelée
    adapters : nn.ModuleDict, nom → LoRAAdapter
    active : dict nom → poids w
        Seuls les adaptateurs actifs comptent, et s'entraînent.

    References
    ----------
    Hu et al. (2022).
    """

    _saved_weight: Tensor | None  # les poids d'avant la fusion, pour la défaire au bit près

    def __init__(
        self,
        original_layer: Adaptable,
        rank: int = 16,
        alpha: float = 1.0,
        dropout: float = 0.0,
        scaling: str = "alpha",
    ):
        super().__init__()
        self._wrap(original_layer)
        self.add_adapter("default", rank, alpha, dropout, scaling)
        self.set_adapter("default")
        original_layer.requires_grad_(False)  # en dernier : un refus n'a rien changé

    def _wrap(self, layer: Adaptable) -> None:
        if not isinstance(layer, ADAPTABLE):
            expected = "nn.Linear, nn.Conv2d ou une couche linéaire comprimée"
            raise TypeError(f"original_layer : reçu {type(layer).__name__}, attendu {expected}.")
        if isinstance(layer, nn.Conv2d):
            check_conv(layer, "original_layer")
        elif not isinstance(layer, CompressedLinear):
            check_linear(layer, "original_layer")
        self.original = layer
        self.adapters = nn.ModuleDict()
        self.active: dict[str, float] = {}
        self.enabled = True
        self.register_buffer("_saved_weight", None)

    @classmethod
    def around(cls, original_layer: Adaptable) -> Self:
        """La couche, sans aucun adaptateur encore : elle rend ce que rendait l'originale."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._wrap(original_layer)
        return layer

    # --- calculer -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y = x W₀ᵀ + b + Σ_k w_k s_k (x A_kᵀ) B_kᵀ ; une fois fusionnée, la couche d'origine suffit."""
        layer, saved, adapters = self._parts()
        conv = isinstance(layer, nn.Conv2d)
        x = check_images(x, layer.in_channels) if conv else check_input(x, layer.in_features)
        if saved is not None:
            return layer(x) if self.enabled else self._dense(x, saved)
        y = layer(x)
        if self.enabled:
            if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                y = y.clone()  # d'autres ont vu y, que l'on va changer
            add = self._add_conv if conv else self._add_linear
            for name, weight in self.active.items():
                y = add(y, x, adapters[name], weight)
        return y

    def _parts(self) -> tuple[Any, Tensor | None, dict[str, Any]]:
        """Ce dont un appel se sert, lu dans les dictionnaires : par attribut, cela coûterait le dixième de l'appel."""
        modules = self._modules
        return modules["original"], self._buffers["_saved_weight"], modules["adapters"]._modules  # type: ignore[union-attr]

    def _add_linear(self, y: Tensor, x: Tensor, adapter: LoRAAdapter, weight: float) -> Tensor:
        """Y + w s (x Aᵀ) Bᵀ, sur place : r (in + out) produits par exemple, au lieu des in · out de x ΔWᵀ."""
        A, B = adapter.factors()
        h = F.linear(adapter.drop(x) if adapter.dropout else x, A)  # (..., n) @ (n, r) -> (..., r)
        if not y.dtype == h.dtype == B.dtype:  # sous torch.autocast
            h, B = h.to(y.dtype), B.to(y.dtype)
        if y.ndim == 2:
            return y.addmm_(h, B.T, alpha=weight * adapter.scale)  # (N, r) @ (r, m) -> (N, m)
        m, r = B.shape
        return y.reshape(-1, m).addmm_(h.reshape(-1, r), B.T, alpha=weight * adapter.scale).view(y.shape)

    def _add_conv(self, y: Tensor, x: Tensor, adapter: LoRAAdapter, weight: float) -> Tensor:
        """De même : r filtres par groupe, puis une convolution 1×1."""
        conv: nn.Conv2d = self.original  # type: ignore[assignment]
        h = conv._conv_forward(adapter.drop(x), adapter.A, None)  # (N, in, H, W) -> (N, g·r, H', W')
        return y.add_(F.conv2d(h, adapter.B, groups=conv.groups), alpha=weight * adapter.scale)

    def _dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """La couche d'origine, avec d'autres poids."""
        if isinstance(self.original, nn.Conv2d):
            return self.original._conv_forward(x, weight, self.original.bias)
        return F.linear(x, weight, self.bias)

    def base_weight(self) -> Tensor:
        """W₀, même après une fusion."""
        if self._saved_weight is not None:
            return self._saved_weight
        return dense_weight(self.original)

    def reconstruct_weight(self) -> Tensor:
        """W₀ + Σ_k w_k s_k B_k A_k, sans terme croisé entre adaptateurs ; un seul arrondi, à la fin."""
        return self._sum() if self.enabled else self.base_weight()

    def _sum(self) -> Tensor:
        W = self.base_weight()
        total = W.to(working_dtype(W))
        for name, weight in self.active.items():
            total = total + weight * self.adapter(name).delta().view(W.shape)
        return total.to(W.dtype)

    @property
    def weight(self) -> Tensor:
        """Les poids que la couche applique : PyTorch en lit parfois sans appeler la couche."""
        return self.reconstruct_weight()

    @property
    def bias(self) -> Tensor | None:
        """Le biais de la couche d'origine, (out,), ou None."""
        return self.original.bias  # type: ignore[return-value]

    def _own_weight(self) -> Tensor:
        """Les poids de la couche gelée, à réécrire ; refuse ceux qu'elle comprime, ou recalcule à chaque appel."""
        W = None if isinstance(self.original, CompressedLinear) else self.original._parameters.get("weight")
        if W is None:
            kind = type(self.original).__name__
            raise TypeError(f"original : {kind} garde des poids comprimés ou paramétrés, où rien ne peut se fondre.")
        return W

    # --- fusionner ----------------------------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Vrai si les adaptateurs actifs sont fondus dans les poids d'origine."""
        return self._saved_weight is not None

    @torch.no_grad()
    def merge_weights(self) -> None:
        """Ajoute ΔW aux poids d'origine ; une seconde fusion ne change rien et avertit.

        Raises
        ------
        TypeError
            La couche d'origine est comprimée ou paramétrée (``weight_norm``) : ses poids ne s'écrivent pas en dense.
        ValueError
            ΔW contient NaN ou l'infini, ou déborde du dtype des poids. Ils n'ont pas changé.
        """
        if self.merged:
            warnings.warn("adaptateur déjà fusionné : rien n'a changé.", stacklevel=3)
            return
        W, merged = self._own_weight(), self._sum()
        if not torch.isfinite(merged).all():
            raise ValueError("lora_A, lora_B : reçu NaN ou l'infini dans W + s B A, la fusion est refusée.")
        self._saved_weight = W.detach().clone()
        W.copy_(merged)

    @torch.no_grad()
    def unmerge_weights(self) -> None:
        """Rend aux poids d'origine leur valeur d'avant la fusion, au bit près."""
        if self._saved_weight is None:
            warnings.warn("adaptateur non fusionné : rien n'a changé.", stacklevel=3)
            return
        self.original.weight.copy_(self._saved_weight)  # type: ignore[operator]
        self._saved_weight = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # la couche prend l'état du fichier, fusionné ou non : sinon l'adaptateur compterait deux fois, ou zéro
        saved, own = (state_dict.get(f"{prefix}{name}") for name in ("_saved_weight", "original.weight"))
        if own is not None:
            if {getattr(t, "shape", None) for t in (own, saved) if t is not None} == {self.base_weight().shape}:
                self._saved_weight = None if saved is None else torch.empty_like(self.base_weight())
        elif self._saved_weight is not None and any(key.startswith(f"{prefix}adapters.") for key in state_dict):
            self.unmerge_weights()  # d'autres adaptateurs, seuls : W₀ ne doit plus contenir les anciens
        super()._load_from_state_dict(state_dict, prefix, *args)

    # --- plusieurs adaptateurs ----------------------------------------------------------------------------------------

    def add_adapter(
        self, name: str, rank: int = 16, alpha: float = 1.0, dropout: float = 0.0, scaling: str = "alpha"
    ) -> None:
        """Ajoute l'adaptateur `name`, inactif et nul (B = 0) ; les autres arguments sont ceux du constructeur.

        Raises
        ------
        TypeError, ValueError
            Nom déjà pris, vide ou avec un point ; rang, α, dropout ou échelle impossibles. La couche n'a pas changé.
        """
        check_choice(scaling, "scaling", list(SCALINGS))
        alpha, dropout = check_finite_number(alpha, "alpha"), check_dropout(dropout, "dropout")
        W, (groups, m, n) = self.base_weight(), blocks_shape(self.original)
        rank = check_rank(rank, m, n)
        ones = (1,) * (W.ndim - 2)  # une convolution 1×1, ou rien
        A = torch.randn(groups * rank, *W.shape[1:], device=W.device, dtype=W.dtype) / math.sqrt(n)
        B = torch.zeros(len(W), rank, *ones, device=W.device, dtype=W.dtype)
        self.insert_adapter(name, LoRAAdapter(A, B, SCALINGS[scaling](alpha, rank), dropout))

    def insert_adapter(self, name: str, adapter: LoRAAdapter) -> None:
        """Range `adapter`, inactif, sous le nom `name`.

        Raises
        ------
        TypeError, ValueError
            Nom déjà pris, vide ou avec un point.
        """
        if check_adapter_name(name) in self.adapters:
            raise ValueError(f"name : l'adaptateur {name!r} existe déjà.")
        self.adapters[name] = adapter.requires_grad_(False).train(self.training)

    def set_adapter(self, name: str | Mapping[str, float]) -> None:
        """Choisit l'adaptateur qui compte, ou plusieurs avec leurs poids ; eux seuls s'entraînent.

        Parameters
        ----------
        name : str, ou dict nom → poids
            Un nom seul a le poids 1 ; un dictionnaire vide éteint tout.

        Raises
        ------
        TypeError, ValueError
            Adaptateur inconnu, poids qui n'est pas un nombre fini, ou couche fusionnée. Rien n'a changé.
        """
        self.active = self.check_weights(name)
        for each, adapter in self.adapters.items():
            adapter.requires_grad_(each in self.active)

    def check_weights(self, name: str | Mapping[str, float]) -> dict[str, float]:
        """Le poids de chaque adaptateur, tel que ``set_adapter(name)`` va le retenir.

        Raises
        ------
        TypeError, ValueError
            Ceux de :meth:`set_adapter`.
        """
        if self.merged:
            raise ValueError("merged : l'adaptateur est fusionné ; appelez d'abord unmerge_weights().")
        weights = adapter_weights(name)
        for each in weights:
            self.adapter(each)
        return {each: check_finite_number(weight, f"poids de {each!r}") for each, weight in weights.items()}

    def delete_adapter(self, name: str) -> None:
        """Supprime l'adaptateur `name`, inactif.

        Raises
        ------
        ValueError
            Inconnu, ou actif : on en active d'abord un autre.
        """
        self.adapter(name)
        if name in self.active:
            raise ValueError(f"name : l'adaptateur {name!r} est actif ; activez-en d'abord un autre (set_adapter).")
        del self.adapters[name]

    def discard_adapter(self, name: str) -> None:
        """Supprime l'adaptateur `name`, même actif, s'il existe."""
        if name in self.adapters:
            del self.adapters[name]
        self.active.pop(name, None)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Le temps d'un bloc ``with``, la couche d'origine seule, fusionnée ou non."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def adapter(self, name: str) -> LoRAAdapter:
        """L'adaptateur `name`.

        Raises
        ------
        ValueError
            Il n'y en a pas de ce nom.
        """
        if name not in list(self.adapters):
            raise ValueError(f"name : pas d'adaptateur {name!r} ; noms : {', '.join(self.adapters) or 'aucun'}.")
        return self.adapters[name]  # type: ignore[return-value]

    def _only(self) -> LoRAAdapter:
        if len(self.active) != 1:
            raise ValueError(f"active : {len(self.active)} adaptateurs actifs, attendu un seul ; lisez adapters[nom].")
        return self.adapter(next(iter(self.active)))

    @property
    def lora_A(self) -> nn.Parameter:
        """Le facteur A de l'adaptateur actif, (r, in) ou (g·r, in/g, kh, kw) ; ValueError s'il n'y en a pas un seul.

        Gaussien au départ, d'écart type 1/√n, où n est la longueur d'une ligne.
        """
        return self._only().A

    @property
    def lora_B(self) -> nn.Parameter:
        """Le facteur B de l'adaptateur actif, (out, r) ou (out, r, 1, 1) ; ValueError s'il n'y en a pas un seul."""
        return self._only().B

    @property
    def rank(self) -> int:
        """Le rang de l'adaptateur actif."""
        return self._only().rank

    @property
    def scale(self) -> float:
        """L'échelle s de l'adaptateur actif."""
        return self._only().scale

    # --- compter ------------------------------------------------------------------------------------------------------

    def trainable_parameters(self) -> int:
        """Nombre de paramètres entraînés : r (in + out) par adaptateur actif."""
        return sum(p.numel() for name in self.active for p in self.adapters[name].parameters())

    def total_parameters(self) -> int:
        """Nombre de paramètres en tout : ceux de la couche d'origine et de tous les adaptateurs."""
        return sum(p.numel() for p in self.parameters())

    # --- partir d'ailleurs que de B = 0 -------------------------------------------------------------------------------

    @classmethod
    def _to_be_filled(cls, layer: Adaptable, rank: int, alpha: float, **options: Any) -> Self:
        """La couche, dont A et B seront remplacés : le générateur global est rendu tel qu'il était."""
        devices = {t.device for t in (*layer.parameters(), *layer.buffers()) if t.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):
            return cls(layer, rank, alpha, **options)

    @classmethod
    def from_pissa(cls, layer: nn.Linear | nn.Conv2d, rank: int = 16, alpha: float = 1.0, **options: Any) -> Self:
        """PiSSA : l'adaptateur prend les r premiers triplets singuliers de W, la couche gelée garde le reste.

        Parameters
        ----------
        layer : nn.Linear ou nn.Conv2d
            Copiée, laissée intacte.
        rank : int
        alpha : float
            Pas nul.
        **options
            Celles du constructeur : ``dropout``, ``scaling``.

        Returns
        -------
        LoRALayer
            La même fonction que `layer`, aux arrondis près.

        Raises
        ------
        TypeError, ValueError
            Ceux du constructeur ; `layer` est comprimée ou paramétrée.

        References
        ----------
        Meng, Wang et Zhang (2024).
        """
        lora = cls._to_be_filled(copy.deepcopy(layer), rank, alpha, **options)
        adapter, W = lora._only(), lora._own_weight().detach()
        groups = len(adapter.A) // rank
        blocks = W.flatten(1).chunk(groups)  # (out/g, n) : une SVD par groupe
        pairs = [share_singular_values(*decompose(block, rank, None)) for block in blocks]
        adapter.start([U for U, _ in pairs], [V for _, V in pairs])
        adapter.A_0, adapter.B_0 = adapter.A.detach().clone(), adapter.B.detach().clone()
        with torch.no_grad():
            W -= adapter.delta().view(W.shape).to(W.dtype)
        return lora

    @classmethod
    def from_quantized(
        cls,
        layer: nn.Linear,
        rank: int = 16,
        n_bits: int = 4,
        alpha: float = 1.0,
        calibration: Tensor | Calibration | None = None,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        iterations: int = 1,
        **options: Any,
    ) -> Self:
        """La couche quantifiée, et un adaptateur qui part de ce que la quantification a perdu (LoftQ, en esprit).

        Tour à tour, Q quantifie W − s B A, puis s B A prend la meilleure approximation de rang r de W − Q.

        Parameters
        ----------
        layer : nn.Linear
            Laissée intacte.
        rank : int
        alpha : float
            Pas nul.
        **options
            Celles du constructeur : ``dropout``, ``scaling``.
        n_bits : int, entre 1 et 8
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            L'adaptateur est alors celui qui rapproche le plus les sorties de ces entrées.
        granularity, clipping : optionnels
            Ceux de :class:`~lrq.QuantizedLinear`.
        iterations : int, au moins 1
            Une seule suffit souvent. Un tour peut éloigner de W, ses extrêmes élargissant la grille : le meilleur est
            gardé.

        Returns
        -------
        LoRALayer

        References
        ----------
        Li et al. (2023).
        """
        W, iterations = check_linear(layer, "layer").weight.detach(), check_integer(iterations, "iterations")
        seen = Calibration.from_inputs(calibration) if isinstance(calibration, Tensor) else calibration
        quantizer, low, turns = row_quantizer(n_bits, granularity, clipping), torch.zeros_like(W), []
        for _ in range(iterations):
            stored = quantizer.compress(W - low)
            lost = W - stored.dequantize()
            U, V = share_singular_values(*decompose(lost, rank, seen))  # (out, r), (in, r)
            low = (U @ V.T).to(W.dtype)
            turns.append((output_energy(lost - low, seen), stored, U, V))
        _, stored, U, V = min(turns, key=lambda turn: turn[0])
        lora = cls._to_be_filled(QuantizedLinear.hold(stored, copy_bias(layer)), rank, alpha, **options)
        lora._only().start([U], [V])
        return lora

    def extra_repr(self) -> str:
        merged = ", merged" if self.merged else ""
        return f"active={self.active}{merged}"
