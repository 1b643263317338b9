"""Section 9.6 : quantifier un réseau de tenseurs, pièce par pièce, chacune avec sa grille."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .quantizers import Granularity, QuantizedTensor, UniformQuantizer
from .tensor_train import check_cores
from .tucker import check_tucker

TUCKER_KEYS = ["quantized_core", "quantized_factors", "core_scale", "core_zp", "factor_scales", "factor_zps", "n_bits"]


class TTQuantizer:
    """Quantifie les cœurs d'un train de tenseurs, chacun avec ses échelles.

    Parameters
    ----------
    n_bits : int, entre 1 et 8
    symmetric : bool
    granularity : PerTensor ou PerChannel, optionnel
        Qui partage une échelle ; par défaut, tout un cœur.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    """

    def __init__(
        self,
        n_bits: int = 8,
        symmetric: bool = True,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
    ):
        self.quantizer = UniformQuantizer(n_bits, symmetric, granularity=granularity, clipping=clipping)

    def quantize_tt_cores(self, cores: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Les codes, les échelles et les points zéro de chaque cœur.

        Parameters
        ----------
        cores : list de d Tensor, (r_{k−1}, n_k, r_k), ou (r_{k−1}, in_k, out_k, r_k)

        Returns
        -------
        quantized_cores : list de d Tensor, int8, de mêmes formes
        scales, zero_points : list de d Tensor
        """
        return quantize_pieces(self.quantizer, check_cores(cores))

    def dequantize_tt_cores(
        self, quantized_cores: Sequence[Tensor], scales: Sequence[Tensor], zero_points: Sequence[Tensor]
    ) -> list[Tensor]:
        """Les cœurs que représentent ces codes.

        Parameters
        ----------
        quantized_cores, scales, zero_points : trois listes de d Tensor
            Ce que rend :meth:`quantize_tt_cores`.

        Returns
        -------
        list de d Tensor
        """
        return check_cores(dequantize_pieces(self.quantizer, quantized_cores, scales, zero_points), "quantized_cores")

    def compress(self, cores: Iterable[Tensor]) -> list[QuantizedTensor]:
        """Les cœurs `cores` tels qu'on les garde, codes serrés et échelles : :func:`~lrq.stored_bytes` les pèse."""
        return [self.quantizer.compress(core) for core in check_cores(cores)]


class TuckerQuantizer:
    """Quantifie le noyau et les facteurs d'une décomposition de Tucker, chacun avec ses échelles.

    Parameters
    ----------
    symmetric : bool
    granularity, clipping : optionnels
        Voir :class:`~lrq.UniformQuantizer` ; par défaut, une échelle par pièce.
    """

    def __init__(self, symmetric: bool = True, granularity: Granularity | None = None, clipping: str = "min_max"):
        self.options: dict[str, Any] = {"symmetric": symmetric, "granularity": granularity, "clipping": clipping}
        UniformQuantizer(**self.options)  # refuse dès maintenant

    def quantize_tucker(self, core: Tensor, factors: Sequence[Tensor], n_bits: int = 8) -> dict[str, Any]:
        """Les codes, les échelles et les points zéro du noyau et des facteurs.

        Parameters
        ----------
        core : Tensor, (r₁, …, r_d)
        factors : list de d Tensor, (n_k, r_k)
        n_bits : int, entre 1 et 8

        Returns
        -------
        dict
            ``quantized_core``, ``core_scale``, ``core_zp`` ; ``quantized_factors``, ``factor_scales``, ``factor_zps``,
            des listes ; ``n_bits``.
        """
        core, factors = check_tucker(core, factors)
        codes, scales, zero_points = quantize_pieces(UniformQuantizer(n_bits, **self.options), [core, *factors])
        return {
            "quantized_core": codes[0],
            "quantized_factors": codes[1:],
            "core_scale": scales[0],
            "core_zp": zero_points[0],
            "factor_scales": scales[1:],
            "factor_zps": zero_points[1:],
            "n_bits": n_bits,
        }

    def dequantize_tucker(self, quantized: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Le noyau et les facteurs que représentent ces codes.

        Parameters
        ----------
        quantized : dict
            Ce que rend :meth:`quantize_tucker`.

        Returns
        -------
        core : Tensor, (r₁, …, r_d)
        factors : list de d Tensor, (n_k, r_k)

        Raises
        ------
        ValueError
            `quantized` n'a pas les clés de :meth:`quantize_tucker`.
        """
        if not isinstance(quantized, Mapping) or not set(TUCKER_KEYS) <= set(quantized):
            raise ValueError(
                f"quantized : attendu ce que rend quantize_tucker, un dict de clés {', '.join(TUCKER_KEYS)}."
            )
        pieces = [
            [quantized["quantized_core"], *quantized["quantized_factors"]],
            [quantized["core_scale"], *quantized["factor_scales"]],
            [quantized["core_zp"], *quantized["factor_zps"]],
        ]
        core, *factors = dequantize_pieces(UniformQuantizer(quantized["n_bits"], **self.options), *pieces)
        return check_tucker(core, factors)

    def compress(self, core: Tensor, factors: Sequence[Tensor], n_bits: int = 8) -> list[QuantizedTensor]:
        """Le noyau `core`, puis les facteurs `factors`, sur `n_bits` bits, tels qu'on les garde."""
        core, factors = check_tucker(core, factors)
        quantizer = UniformQuantizer(n_bits, **self.options)
        return [quantizer.compress(piece) for piece in (core, *factors)]


def quantize_pieces(
    quantizer: UniformQuantizer, pieces: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Codes, échelles et points zéro de chaque pièce."""
    grids = [quantizer.compute_scale_zero_point(piece) for piece in pieces]
    codes = [quantizer.quantize(piece, *grid) for piece, grid in zip(pieces, grids, strict=True)]
    return codes, [scale for scale, _ in grids], [zero_point for _, zero_point in grids]


def dequantize_pieces(
    quantizer: UniformQuantizer, codes: Sequence[Tensor], scales: Sequence[Tensor], zero_points: Sequence[Tensor]
) -> list[Tensor]:
    """Les pièces que représentent ces codes."""
    if not len(codes) == len(scales) == len(zero_points):
        raise ValueError(
            f"scales, zero_points : reçu {len(scales)} et {len(zero_points)}, attendu {len(codes)}, un par pièce."
        )
    return [quantizer.dequantize(*piece) for piece in zip(codes, scales, zero_points, strict=True)]
