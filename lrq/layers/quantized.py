"""Deux facteurs de rang r, quantifiés et rangés bit contre bit : sections 11.0 et 11.4."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration
from ..gauge import rotate_factors
from ..integer import LONGEST, has_integer_products, integer_low_rank, integer_pays
from ..quantizers import Granularity, UniformQuantizer, check_quantizer
from ..validation import check_input, check_linear
from .base import LowRankLinear, copy_bias, in_dtype_of
from .factorized import FactorizedLinear
from .packed import PackedTensor
from .svd_compressed import SVDCompressedLinear


def check_centred(quantizer: UniformQuantizer) -> UniformQuantizer:
    """Rend une grille centrée sur zéro : les facteurs n'ont pas de point zéro.

    Raises
    ------
    TypeError
        Ce n'est pas un UniformQuantizer.
    ValueError
        Elle est asymétrique, ou n'a pas de codes négatifs.
    """
    if not (check_quantizer(quantizer).symmetric and quantizer.signed):
        raise ValueError(f"quantizer : reçu {quantizer}, attendu une grille symétrique et signée.")
    return quantizer


class QuantizedFactors(LowRankLinear):
    """Ce que partagent les couches de rang r dont les facteurs U et V se gardent en codes serrés.

    Tant que :meth:`quantize_weights` n'a pas été appelée, la couche calcule avec ses facteurs flottants ; ensuite ils
    sont libérés, et seuls restent les codes et les échelles.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    n_bits : int, entre 1 et 8
    bias : bool
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle ; par défaut, tout un facteur.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    quantizer : UniformQuantizer, optionnel
        À la place de `n_bits`, `granularity` et `clipping` ; symétrique et signé.
    quantized : bool
        Des codes nuls, à remplir, au lieu de facteurs flottants.
    """

    U_packed: PackedTensor | None
    V_packed: PackedTensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        n_bits: int = 8,
        bias: bool = False,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantizer: UniformQuantizer | None = None,
        quantized: bool = False,
    ):
        if quantizer is None:
            quantizer = UniformQuantizer(n_bits, granularity=granularity, clipping=clipping)
        self.quantizer = check_centred(quantizer)
        # de simples formes, sur meta, si des codes prendront la place des facteurs : rien n'est tiré au hasard
        super().__init__(in_features, out_features, rank, False, "meta" if quantized else device, dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        for name, shape in self.shape_factors().items():
            self.quantizer.granularity.scale_shape(torch.Size(shape))  # refuse des groupes qui ne tombent pas juste
            self.register_module(f"{name}_packed", None)
        if quantized:
            self.hold_codes(self.blank_codes(device))

    @property
    def n_bits(self) -> int:
        return self.quantizer.n_bits

    @property
    def dtype(self) -> torch.dtype:
        return super().dtype if self.U_packed is None else self.U_packed.dtype

    @property
    def quantized(self) -> bool:
        return self.U_packed is not None

    @torch.no_grad()
    def quantize_weights(self) -> None:
        """Remplace les facteurs flottants par leurs codes ; un second appel ne change rien."""
        if not self.quantized:
            self.hold_codes({name: PackedTensor.from_tensor(t, self.quantizer) for name, t in self.factors().items()})

    def factors(self) -> dict[str, Tensor]:
        """Les facteurs sous leur nom, flottants ou déquantifiés."""
        if self.U_packed is None or self.V_packed is None:
            return {name: getattr(self, name) for name in self.shape_factors()}
        return {"U": self.U_packed.dequantize(), "V": self.V_packed.dequantize()}

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """U et V tels que la couche les applique : déquantifiés ou, avant la quantification, flottants."""
        U, V = self.factors().values()
        return U, V

    def hold_codes(self, packed: dict[str, PackedTensor] | None = None) -> None:
        """Met des codes à la place des facteurs flottants : ceux donnés ou, par défaut, des codes nuls à remplir."""
        for name, tensor in (self.blank_codes(self.get_parameter("U").device) if packed is None else packed).items():
            setattr(self, f"{name}_packed", tensor)
            setattr(self, name, None)

    def blank_codes(self, device: torch.device | str | None = None) -> dict[str, PackedTensor]:
        """Des codes nuls, de la forme et du type des facteurs flottants, sur `device`."""
        dtype, shapes = self.get_parameter("U").dtype, self.shape_factors().items()
        return {name: PackedTensor(self.quantizer, shape, device, dtype) for name, shape in shapes}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}U_packed.packed" in state_dict and not self.quantized:  # des codes attendent une couche quantifiée
            codes = self.blank_codes(self.get_parameter("U").device)
            for name, packed in codes.items():
                for key, t in packed.state_dict(prefix=f"{prefix}{name}_packed.").items():
                    found = getattr(state_dict.get(key), "shape", None)
                    if found != t.shape and not t.is_meta:  # refuser avant que les facteurs flottants ne soient perdus
                        received = "rien" if found is None else tuple(found)
                        args[-1].append(f"{key} : reçu {received}, attendu la forme {tuple(t.shape)}.")
                        return
            self.hold_codes(codes)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _packed(self, name: str) -> PackedTensor:
        if not self.quantized:
            raise RuntimeError(f"{name} : la couche n'est pas quantifiée, appelez d'abord quantize_weights().")
        return getattr(self, f"{name}_packed")

    @property
    def U_q(self) -> Tensor:
        """Codes de U, int8."""
        return self._packed("U").codes()

    @property
    def V_q(self) -> Tensor:
        """Codes de V, int8."""
        return self._packed("V").codes()

    @property
    def U_scale(self) -> Tensor:
        """Échelles de U ; un scalaire, sauf autre granularité."""
        return self._packed("U").scale

    @property
    def V_scale(self) -> Tensor:
        """Échelles de V."""
        return self._packed("V").scale

    @property
    def U_zero_point(self) -> Tensor:
        """Point zéro de U : nul, puisque la grille est symétrique."""
        return torch.zeros_like(self.U_scale, dtype=torch.int32)

    @property
    def V_zero_point(self) -> Tensor:
        """Point zéro de V, nul aussi."""
        return torch.zeros_like(self.V_scale, dtype=torch.int32)

    def count_parameters(self) -> int:
        return self.rank * (self.in_features + self.out_features)

    def compression_ratio(self) -> float:
        """Octets de W en float32 divisés par ceux des facteurs tels qu'ils sont rangés, échelles comprises."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return 4 * self.in_features * self.out_features / (self.nbytes() - bias)

    @classmethod
    def from_weight_matrix(  # type: ignore[override]
        cls,
        W: Tensor,
        rank: int,
        n_bits: int = 8,
        calibration: Tensor | Calibration | None = None,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        rotate: bool = False,
        quantizer: UniformQuantizer | None = None,
    ) -> Self:
        """SVD tronquée de W, puis quantification des deux facteurs ; sans biais.

        Parameters
        ----------
        W : Tensor, (out, in)
        rank : int, entre 1 et min(in, out)
        n_bits : int, entre 1 et 8
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            La meilleure approximation pour les sorties de ces entrées, et non pour les poids.
        granularity : Granularity, optionnel
        clipping : str
        rotate : bool
            Répartir d'abord l'énergie entre les colonnes (:func:`~lrq.rotate_factors`), pour mieux quantifier.
        quantizer : UniformQuantizer, optionnel
            À la place de `n_bits`, `granularity` et `clipping` ; symétrique et signé.

        Returns
        -------
        La couche, déjà quantifiée.
        """
        if quantizer is None:
            quantizer = UniformQuantizer(n_bits, granularity=granularity, clipping=clipping)
        check_centred(quantizer)
        layer = super().from_weight_matrix(W, rank, calibration)
        layer.quantizer = quantizer
        if rotate:
            layer.rotate()
        layer.quantize_weights()
        return layer

    @classmethod
    def from_linear(  # type: ignore[override]
        cls,
        linear_layer: nn.Linear,
        rank: int,
        n_bits: int = 8,
        calibration: Tensor | Calibration | None = None,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        rotate: bool = False,
    ) -> Self:
        """SVD tronquée puis quantification des deux facteurs, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(in, out)
        n_bits : int, entre 1 et 8
        calibration, granularity, clipping, rotate : optionnels
            Comme pour :meth:`from_weight_matrix`.

        Returns
        -------
        La couche, déjà quantifiée.
        """
        W = check_linear(linear_layer).weight
        layer = cls.from_weight_matrix(W, rank, n_bits, calibration, granularity, clipping, rotate)
        layer.bias = copy_bias(linear_layer)
        return layer

    def _check_float(self, action: str) -> None:
        if self.quantized:
            raise RuntimeError(f"{action} : la couche est déjà quantifiée, ses facteurs flottants n'existent plus.")

    def rotate(self) -> None:
        """Répartit l'énergie entre les colonnes des facteurs (:func:`~lrq.rotate_factors`) ; Ŵ ne change pas."""
        raise TypeError(f"{type(self).__name__} doit définir rotate().")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bits={self.n_bits}"


class QuantizedLowRankLayer(QuantizedFactors, SVDCompressedLinear):
    """Couche linéaire W = U V dont les facteurs sont gardés sur `n_bits` bits (section 11.0).

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    n_bits : int, entre 1 et 8
    bias : bool
    granularity, clipping : optionnels
        Voir :class:`~lrq.UniformQuantizer`.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r), ou None une fois quantifiée
    V : Parameter, (r, in), ou None une fois quantifiée
    U_q, V_q : Tensor, int8
        Les codes ; RuntimeError avant :meth:`quantize`.
    U_scale, V_scale : Tensor
    """

    def quantize(self) -> None:
        """Remplace les facteurs flottants par leurs codes ; un second appel ne change rien."""
        self.quantize_weights()

    def forward(self, x: Tensor) -> Tensor:
        """y = (x Vᵀ) Uᵀ + b, avec les facteurs flottants ou, après quantize(), déquantifiés."""
        return self.forward_quantized(x) if self.quantized else super().forward(x)

    def forward_quantized(self, x: Tensor) -> Tensor:
        """La sortie, par les facteurs déquantifiés : les bits économisent la mémoire, pas les calculs."""
        check_input(x, self.in_features)
        U = self._packed("U").dequantize().to(x.dtype)  # (m, r)
        V = self._packed("V").dequantize().to(x.dtype)  # (r, n)
        h = F.linear(x, V)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, U, in_dtype_of(x, self.bias))  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        U, V = self.dequantize()
        return U @ V  # (m, r) @ (r, n) -> (m, n)

    def rotate(self) -> None:
        self._check_float("rotate")
        U, V = rotate_factors(self.U, self.V.T)
        self.U, self.V = nn.Parameter(U), nn.Parameter(V.T.contiguous())


class QuantizedLowRankLinear(QuantizedFactors, FactorizedLinear):
    """Couche linéaire W = U Vᵀ dont les facteurs sont gardés sur `n_bits` bits (section 11.4).

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    n_bits : int, entre 1 et 8
    bias : bool
    granularity, clipping : optionnels
        Voir :class:`~lrq.UniformQuantizer`.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r), ou None une fois quantifiée
    V : Parameter, (in, r), ou None une fois quantifiée
    U_q, V_q : Tensor, int8
        Les codes ; RuntimeError avant :meth:`quantize_weights`.
    U_scale, V_scale, U_zero_point, V_zero_point : Tensor
    integer : bool
        Une fois quantifiée, multiplier en entiers de 8 bits, les entrées arrondies à la volée, là où le processeur sait
        le faire et où il y gagne. Faux par défaut : la sortie est alors exactement celle de Ŵ. Un fichier ne le garde
        pas.
    """

    integer = False

    def forward(self, x: Tensor) -> Tensor:
        """y = (x V) Uᵀ + b, avec les facteurs flottants, déquantifiés, ou leurs codes si `integer`."""
        check_input(x, self.in_features)
        u, v = self.U_packed, self.V_packed
        if u is None or v is None:
            return super().forward(x)
        if self.integer and self._integer_pays(x, u.scale, v.scale):
            y = integer_low_rank(x, (v.codes(), v.scale), (u.codes(), u.scale))
            return y if self.bias is None else y + self.bias.to(y.dtype)
        h = x @ v.dequantize().to(x.dtype)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, u.dequantize().to(x.dtype), in_dtype_of(x, self.bias))  # (..., r) @ (r, m) -> (..., m)

    def _integer_pays(self, x: Tensor, *scales: Tensor) -> bool:
        return (
            integer_pays(x.shape[:-1].numel(), self.rank, self.count_parameters())
            and self.in_features <= LONGEST
            and has_integer_products(x.device)
            and not (torch.is_grad_enabled() and x.requires_grad)  # un arrondi n'a pas de gradient
            and all(scale.ndim < 2 or 1 in scale.shape for scale in scales)  # pas de groupes dans une ligne
        )

    def reconstruct_weight(self) -> Tensor:
        U, V = self.dequantize()
        return U @ V.T  # (m, r) @ (r, n) -> (m, n)

    def rotate(self) -> None:
        self._check_float("rotate")
        U, V = rotate_factors(self.U, self.V)
        self.U, self.V = nn.Parameter(U), nn.Parameter(V)
