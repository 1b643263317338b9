"""Section 11.4 : rang faible et quantification, dans un ordre ou dans l'autre, sur toutes les couches d'un réseau."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from ..activation import Calibration
from ..layers import (
    CompressedLinear,
    FactorizedLinear,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    linear_names,
    meta_copy,
    replace_linears,
)
from ..layers.base import copy_bias
from ..quantizers import Granularity, UniformQuantizer
from ..validation import check_bits, check_integer, check_names
from .impact import stored_bytes
from .method import read_elsewhere, twin_of
from .report import CompressionReport, LayerReport, ranks_and_bits

Compress = Callable[[nn.Linear, int, Calibration | None], CompressedLinear]


class CombinedCompressionPipeline:
    """Les trois façons de réunir rang faible et quantification, appliquées à un réseau entier.

    Chaque méthode rend une copie comprimée du réseau, laissé intact, et range dans `report` ce que chaque couche est
    devenue. Un rang trop grand pour une couche y est ramené à min(out, in). Une couche dont un autre module lit le
    poids sans l'appeler est laissée telle quelle ; une couche dont un autre module garde le poids, dense, est comprimée
    à part. Le rapport le dit.

    Parameters
    ----------
    model : nn.Module

    Attributes
    ----------
    report : CompressionReport
        Une ligne par couche ; vide avant le premier appel.

    Raises
    ------
    TypeError, ValueError
        `model` n'est pas un nn.Module, ou n'a aucune nn.Linear.
    """

    def __init__(self, model: nn.Module):
        if not linear_names(model):
            raise ValueError("model : aucune nn.Linear à comprimer.")
        self.model = model
        self.report = CompressionReport()

    def apply_low_rank_then_quantize(
        self,
        rank: int = 64,
        n_bits: int = 8,
        names: Collection[str] | None = None,
        calibration: Mapping[str, Calibration] | None = None,
        **options: Any,
    ) -> nn.Module:
        """SVD tronquée de chaque couche, puis quantification de ses deux facteurs.

        Parameters
        ----------
        rank : int
        n_bits : int, entre 1 et 8
        names : noms complets, optionnel
            Toutes les nn.Linear par défaut.
        calibration : dict nom → Calibration, optionnel
            La SVD consciente des entrées, pour les couches qu'il nomme.
        **options
            ``granularity``, ``clipping``, ``rotate`` : voir :meth:`~lrq.QuantizedLowRankLinear.from_weight_matrix`.

        Returns
        -------
        nn.Module
        """

        def compress(layer: nn.Linear, rank: int, seen: Calibration | None) -> CompressedLinear:
            return QuantizedLowRankLinear.from_linear(layer, rank, n_bits, seen, **options)

        check_bits(n_bits)
        return self._apply(compress, rank, names, calibration)

    def apply_quantize_then_low_rank(
        self,
        rank: int = 64,
        n_bits: int = 8,
        names: Collection[str] | None = None,
        calibration: Mapping[str, Calibration] | None = None,
        requantize: bool = True,
        **options: Any,
    ) -> nn.Module:
        """Quantification de chaque couche, puis SVD tronquée des poids quantifiés.

        Cette SVD rend des nombres quelconques, hors de la grille : sans `requantize`, les facteurs restent flottants et
        la quantification n'a rien fait gagner. Avec, ils sont quantifiés à leur tour, et la taille est celle de l'autre
        ordre.

        Parameters
        ----------
        rank : int
        n_bits : int, entre 1 et 8
        names, calibration : optionnels
        requantize : bool
        **options
            Comme pour :meth:`apply_low_rank_then_quantize` ; ``granularity`` et ``clipping`` servent aux deux fois.

        Returns
        -------
        nn.Module
        """
        recipe = {name: options[name] for name in ("granularity", "clipping") if name in options}
        quantizer = UniformQuantizer(n_bits, **recipe)
        unused = sorted(options.keys() - recipe.keys())
        if unused and not requantize:
            raise TypeError(f"{unused[0]} : sans effet quand requantize est faux.")

        def compress(layer: nn.Linear, rank: int, seen: Calibration | None) -> CompressedLinear:
            W = quantizer.quantize_dequantize(layer.weight)
            if requantize:
                smaller: FactorizedLinear = QuantizedLowRankLinear.from_weight_matrix(W, rank, n_bits, seen, **options)
            else:
                smaller = FactorizedLinear.from_weight_matrix(W, rank, seen)
            smaller.bias = copy_bias(layer)
            return smaller

        return self._apply(compress, rank, names, calibration)

    def apply_quantize_plus_low_rank(
        self,
        rank: int = 8,
        n_bits: int = 4,
        names: Collection[str] | None = None,
        calibration: Mapping[str, Calibration] | None = None,
        **options: Any,
    ) -> nn.Module:
        """Quantification de chaque couche, plus un résidu de rang faible : ce qu'elle a perdu.

        Parameters
        ----------
        rank : int
        n_bits : int, entre 1 et 8
        names, calibration : optionnels
            Comme pour :meth:`apply_low_rank_then_quantize`.
        **options
            ``granularity``, ``clipping``, ``factor_bits`` : voir :meth:`~lrq.QuantizedResidualLinear.from_linear`.

        Returns
        -------
        nn.Module
        """

        def compress(layer: nn.Linear, rank: int, seen: Calibration | None) -> CompressedLinear:
            return QuantizedResidualLinear.from_linear(layer, rank, n_bits, seen, **options)

        check_bits(n_bits)
        return self._apply(compress, rank, names, calibration)

    def _apply(
        self,
        compress: Compress,
        rank: int,
        names: Collection[str] | None,
        calibration: Mapping[str, Calibration] | None,
    ) -> nn.Module:
        present = linear_names(self.model)
        chosen = present if names is None else names
        check_names(chosen, present, "une nn.Linear")
        check_names(() if calibration is None else calibration, present, "une nn.Linear")
        check_integer(rank, "rank")
        same = same_layers(self.model)
        notes = {name: read_elsewhere(self.model, same[name]) for name in chosen}
        converted = [other for name in chosen if not notes[name] for other in same[name]]
        lines: dict[str, LayerReport] = {}
        for name in filter(notes.get, chosen):
            layer: Any = self.model.get_submodule(name)
            if lines.keys().isdisjoint(same[name]):
                shape = (layer.out_features, layer.in_features)
                lines[name] = LayerReport.left(name, shape, stored_bytes(layer), notes[name])

        def change(name: str) -> Callable[[nn.Linear], CompressedLinear]:
            twin = twin_of(self.model, converted, self.model.get_submodule(name).weight)  # type: ignore[arg-type]
            note = "" if twin is None else f"le poids dense demeure : {twin!r} a le même"

            def convert(layer: nn.Linear) -> CompressedLinear:
                shape = (layer.out_features, layer.in_features)
                kept = min(rank, *shape)
                try:
                    smaller = compress(layer, kept, None if calibration is None else calibration.get(name))
                except (TypeError, ValueError) as refusal:
                    refusal.add_note(f"Couche refusée : {name!r}.")
                    raise
                dense, bits = sum(p.nbytes for p in layer.parameters()), ranks_and_bits(smaller)[1]
                error = smaller.reconstruction_error(layer.weight)
                lines[name] = LayerReport(
                    name, shape, kept, kept < rank, smaller.nbytes(), dense, error, bits, note=note
                )
                return smaller

            return convert

        compressed = replace_linears(self.model, {name: change(name) for name in chosen if not notes[name]})
        self.report = CompressionReport(lines[name] for name in chosen if name in lines)
        return compressed


def same_layers(model: nn.Module) -> dict[str, list[str]]:
    """Tous les noms de chaque nn.Linear : une couche partagée en a plusieurs."""
    layers = {name: model.get_submodule(name) for name in linear_names(model)}
    return {name: [other for other, twin in layers.items() if twin is layer] for name, layer in layers.items()}


def analyze_combined_compression(
    original_model: nn.Module,
    rank: int,
    n_bits: int,
    granularity: Granularity | None = None,
    verbose: bool = False,
) -> float:
    """Combien de fois un réseau maigrit, compté en octets tels qu'ils seraient rangés.

    Tout compte, des deux côtés : échelles, biais, couches qui restent denses. Rien n'est décomposé : les formes
    suffisent.

    Parameters
    ----------
    original_model : nn.Module
    rank : int
        Ramené à min(out, in) dans les couches qui n'en permettent pas tant.
    n_bits : int, entre 1 et 8
    granularity : Granularity, optionnel
        Qui partage une échelle ; par défaut, tout un facteur.
    verbose : bool
        Imprime le détail.

    Returns
    -------
    float
        Octets de l'original divisés par ceux du réseau comprimé.

    Raises
    ------
    TypeError, ValueError
        `original_model` n'est pas un nn.Module ou n'a aucune nn.Linear, rang ou bits impossibles.
    """
    check_integer(rank, "rank")
    check_bits(n_bits)
    names = linear_names(original_model)
    if not names:
        raise ValueError("original_model : aucune nn.Linear à comprimer.")

    def convert(layer: nn.Linear) -> nn.Module:
        n, m = layer.in_features, layer.out_features
        bias, dtype = layer.bias is not None, layer.weight.dtype
        empty = QuantizedLowRankLinear(n, m, min(rank, m, n), n_bits, bias, granularity, device="meta", dtype=dtype)
        empty.hold_codes()
        return empty

    blank = meta_copy(original_model)
    free = [name for name, same in same_layers(blank).items() if not read_elsewhere(blank, same)]
    before, after = (
        stored_bytes(blank),
        stored_bytes(replace_linears(blank, convert, free)),
    )
    if verbose:
        linears = nn.ModuleList(blank.get_submodule(name) for name in names)  # un poids partagé n'y compte qu'une fois
        print(f"original : {before} octets, dont {before - stored_bytes(linears)} hors des couches linéaires")
        print(f"comprimé : {after} octets, {before / after:.2f} fois moins")
    return before / after
