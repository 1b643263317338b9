"""Quantification uniforme : des nombres réels vers une grille de 2^b niveaux, par une échelle et un point zéro.

code = arrondi(t / échelle) + point zéro, borné à la grille ; en retour, t̂ = (code − point zéro) · échelle.
"""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .packing import pack_bits, unpack_bits
from .svd import norm, relative, working_dtype
from .validation import check_bits, check_bool, check_choice, check_integer, check_percentile, check_tensor, is_finite

CHUNK = 2**17  # nombres dont on cherche la grille à la fois
CLIPPINGS = ("min_max", "percentile", "mse")


# --- qui partage une échelle ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Granularity(ABC):
    """Comment un tenseur se découpe en blocs dont chacun a son échelle ; ses sous-classes le disent."""

    @abstractmethod
    def blocks(self, t: Tensor) -> Tensor:
        """Les éléments de `t`, un bloc par ligne : (blocs, éléments)."""

    @abstractmethod
    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """La forme des échelles d'un tenseur de forme `shape`."""

    def arrange(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Une valeur par bloc, (blocs,), rangée dans la forme des échelles."""
        return values.view(self.scale_shape(shape))

    def spread(self, scale: Tensor) -> Tensor:
        """Les échelles `scale`, prêtes à multiplier le tenseur."""
        return scale


@dataclass(frozen=True)
class PerTensor(Granularity):
    """Une échelle pour tout le tenseur, de forme ()."""

    def blocks(self, t: Tensor) -> Tensor:
        return t.reshape(1, -1)

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class PerChannel(Granularity):
    """Une échelle par indice de la dimension `dim` : par ligne si `dim` = 0. Forme (1, …, C, …, 1).

    Parameters
    ----------
    dim : int
        Négatif, il compte depuis la fin.
    """

    dim: int = 0

    def axis(self, ndim: int) -> int:
        """La dimension d'un tenseur qui en a `ndim`, comptée depuis le début.

        Raises
        ------
        TypeError, ValueError
            Le tenseur n'a pas cette dimension.
        """
        if ndim == 0:
            raise ValueError(f"dim : reçu {self.dim!r} pour un scalaire, qui n'a pas de dimension : PerTensor().")
        return check_integer(self.dim, "dim", -ndim, ndim - 1) % ndim

    def blocks(self, t: Tensor) -> Tensor:
        axis = self.axis(t.ndim)
        return t.movedim(axis, 0).reshape(t.shape[axis], -1)

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        axis = self.axis(len(shape))
        return tuple(size if i == axis else 1 for i, size in enumerate(shape))


@dataclass(frozen=True)
class PerGroup(Granularity):
    """Une échelle par groupe de `size` voisins de la dernière dimension. Forme (…, n / `size`).

    Parameters
    ----------
    size : int
        Doit diviser n ; ValueError sinon.
    """

    size: int = 32

    def blocks(self, t: Tensor) -> Tensor:
        self.scale_shape(t.shape)  # refuse une taille qui ne divise pas
        return t.reshape(-1, self.size)

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        size = check_integer(self.size, "size")
        if len(shape) == 0 or shape[-1] % size:
            raise ValueError(
                f"size : reçu {size}, attendu un diviseur de la dernière dimension d'un tenseur {tuple(shape)}."
            )
        return *shape[:-1], shape[-1] // size

    def spread(self, scale: Tensor) -> Tensor:
        return scale.repeat_interleave(self.size, -1)


# --- le quantificateur ------------------------------------------------------------------------------------------------


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """Vaut exactement `value`, et laisse passer le gradient comme si c'était `x` (Bengio et al., 2013)."""
    value = value.detach()
    return value + (x - x.detach()) if x.requires_grad else value


class UniformQuantizer:
    """Quantificateur uniforme : une grille de 2^b niveaux régulièrement espacés.

    Symétrique, la grille est centrée sur zéro et le point zéro est nul : −q … q avec q = 2^(b−1) − 1, ou 0 … 2^b − 1
    si elle n'est pas signée (les négatifs y tombent à zéro). Asymétrique, elle couvre [min, max], étendu à zéro, qui
    reste toujours exact. À 1 bit symétrique, deux niveaux, ±Δ, avec Δ = moyenne de abs(t), qui minimise l'erreur
    quadratique.

    Parameters
    ----------
    n_bits : int, entre 1 et 8
    symmetric, signed : bool
    granularity : PerTensor, PerChannel ou PerGroup
        Qui partage une échelle ; tout le tenseur par défaut.
    clipping : "min_max", "percentile" ou "mse"
        Où s'arrête la grille : aux extrêmes ; aux centiles ; ou là où l'erreur quadratique est la plus petite parmi
        cent réductions régulières des extrêmes.
    percentile : float, dans ]0, 100]
        Part centrale des valeurs, en %, que garde ``clipping="percentile"`` (de leurs valeurs absolues si la grille
        est symétrique et signée).
    scale_dtype : torch.bfloat16, optionnel
        Garder chaque échelle sur deux octets, et non quatre : par groupes de 32, un demi-bit de moins par nombre. Les
        codes visent l'échelle déjà arrondie, à 0,4 % près. (float16 annulerait de petites échelles.)

    Raises
    ------
    TypeError, ValueError
        `n_bits` hors de 1 … 8, écrêtage inconnu (le message énumère les noms), `percentile` hors de ]0, 100],
        `granularity` d'une autre classe, autre `scale_dtype`.
    """

    def __init__(
        self,
        n_bits: int = 8,
        symmetric: bool = True,
        signed: bool = True,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        percentile: float = 99.9,
        scale_dtype: torch.dtype | None = None,
    ):
        self.n_bits = check_bits(n_bits)
        self.symmetric, self.signed = check_bool(symmetric, "symmetric"), check_bool(signed, "signed")
        self.granularity = check_granularity(PerTensor() if granularity is None else granularity)
        self.clipping = check_choice(clipping, "clipping", CLIPPINGS)
        self.percentile = check_percentile(percentile, "percentile")
        if scale_dtype not in (None, torch.bfloat16):
            raise ValueError(f"scale_dtype : reçu {scale_dtype!r}, attendu torch.bfloat16 ou None.")
        self.scale_dtype = scale_dtype
        self.binary = self.symmetric and self.signed and self.n_bits == 1
        half = 2 ** (self.n_bits - 1)
        self.low = (1 - half if self.symmetric else -half) if self.signed else 0  # les codes extrêmes
        self.high = half - 1 if self.signed else 2 * half - 1

    @torch.no_grad()
    def compute_scale_zero_point(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """L'échelle et le point zéro de chaque bloc de `t`.

        Parameters
        ----------
        t : Tensor

        Returns
        -------
        scale : Tensor, float32 (float64 si t l'est), forme des échelles
            Nulle pour un bloc nul, qui reste nul.
        zero_point : Tensor, int32, même forme

        Raises
        ------
        TypeError
            `t` n'est pas un tenseur de nombres réels.
        ValueError
            `t` est vide ou non fini, ou ne se découpe pas ainsi.
        """
        x = check_values(t)
        blocks = self.granularity.blocks(x)
        if self.binary:
            scale, zero_point = self._kept(mean_magnitude(blocks)), torch.zeros(len(blocks), device=x.device)
        else:
            # par paquets de lignes, dont les intermédiaires tiennent dans le cache du processeur
            fitted = [self._fit(some) for some in blocks.split(max(1, CHUNK // blocks.shape[1]))]
            scale, zero_point = (torch.cat(parts) for parts in zip(*fitted, strict=True))
        return self.granularity.arrange(scale, x.shape), self.granularity.arrange(zero_point.int(), x.shape)

    def _fit(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Échelle et point zéro de chaque ligne, (blocs,) et (blocs,), selon l'écrêtage."""
        low, high = self._bounds(blocks)
        if self.clipping != "mse":
            return self._grid(low, high)
        peak = divisor(torch.maximum(high, -low))[:, None]  # l'erreur en part du pic : son carré ne déborde pas
        shares = torch.linspace(1, 0.01, 100, device=blocks.device)[:, None]  # à égalité, la grille la plus large
        scales, zero_points = self._grid(low * shares, high * shares)  # (100, blocs)
        errors = torch.stack([self._lost(blocks, peak, *grid) for grid in zip(scales, zero_points, strict=True)])
        least = errors.argmin(0, keepdim=True)
        return scales.gather(0, least)[0], zero_points.gather(0, least)[0]

    def _lost(self, blocks: Tensor, peak: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Le carré de l'erreur de chaque ligne, (blocs,) ; sur place, car on l'essaie cent fois."""
        scale, zero_point = scale[:, None], zero_point[:, None]
        steps = (blocks * divisor(scale).reciprocal()).round_().clamp_(self.low - zero_point, self.high - zero_point)
        return steps.mul_(scale).sub_(blocks).div_(peak).square_().sum(1)

    def _bounds(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Ce que la grille de chaque ligne doit couvrir : (blocs,) et (blocs,), zéro compris."""
        centred = self.symmetric and self.signed
        values = blocks.abs() if centred else blocks
        if self.clipping == "percentile":
            tail = (100 - self.percentile) / 100
            ordered = values.sort(1).values
            low = quantile(ordered, 0 if centred else tail / 2)
            high = quantile(ordered, 1 - (tail if centred else tail / 2))
        else:
            low, high = values.aminmax(dim=1)
        low, high = low.clamp_max(0), high.clamp_min(0)
        return (-high if centred else torch.zeros_like(low) if self.symmetric else low), high

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """La grille qui va de `low` à `high`."""
        steps = self.high - self.low
        scale = self._kept(high / steps - low / steps)  # dans cet ordre, rien ne déborde
        if self.symmetric:
            zero_point = torch.zeros_like(scale)
        else:
            zero_point = (self.low - low / divisor(scale)).round().clamp(self.low, self.high)
        farthest = torch.maximum(self.high - zero_point, zero_point - self.low)  # en pas
        return self._finite(scale, farthest), zero_point  # le dernier niveau reste fini

    def _finite(self, scale: Tensor, farthest: Tensor) -> Tensor:
        """Les échelles, réduites là où un niveau à `farthest` pas de zéro déborderait."""
        most = torch.finfo(scale.dtype).max / farthest
        return torch.where(scale <= most, scale, self._kept(most * (1 - self._grain())))

    def _kept(self, scale: Tensor) -> Tensor:
        """Les échelles telles qu'elles seront rangées, dans leur précision de calcul."""
        if self.scale_dtype is None:
            return scale
        kept = scale.to(self.scale_dtype).to(scale.dtype)
        last = kept.isinf() & (
            scale <= torch.finfo(torch.float32).max
        )  # les derniers float32 s'arrondiraient à l'infini
        return torch.where(last, torch.finfo(self.scale_dtype).max, kept)

    def _grain(self) -> float:
        """L'arrondi relatif d'une échelle rangée."""
        return 0.0 if self.scale_dtype is None else torch.finfo(self.scale_dtype).eps

    def codes(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Les codes de `x` pour `scale` et `zero_point`, en flottants ; le gradient passe où la grille n'écrête pas."""
        v = x * divisor(scale).reciprocal()  # comme torch.fake_quantize_* : multiplier par l'inverse, au bit près
        v = v.clamp(torch.finfo(v.dtype).min, torch.finfo(v.dtype).max)  # infini, il s'écrête comme un autre
        if self.binary:
            return straight_through(torch.where(x < 0, -1.0, 1.0).to(v.dtype), v.clamp(-1, 1))
        return (straight_through(v.round(), v) + zero_point).clamp(self.low, self.high)

    def fake_quantize(self, t: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """`t` arrondi à la grille de `scale` et `zero_point`, en flottants ; dérivable par rapport à `t` et à `scale`.

        Le gradient en `t` passe tel quel là où le code est dans la grille, et s'annule où elle l'écrête ; celui en
        `scale` vaut q − t/Δ, puis, écrêté, q, avec q = code − point zéro.
        """
        scale, zero_point = self.spread(scale, t.shape), self.spread(zero_point, t.shape, "zero_point")
        return (self.codes(t, scale, zero_point) - zero_point) * scale

    def spread(self, values: Tensor, shape: torch.Size, name: str = "scale") -> Tensor:
        """Les échelles ou points zéro `values`, prêts à rencontrer un tenseur de forme `shape`, et lui seul.

        `name` les nomme dans le refus : ValueError, s'ils n'ont pas la forme qu'il faut.
        """
        expected = self.granularity.scale_shape(shape)
        if check_tensor(values, name).shape != expected:
            raise ValueError(
                f"{name} : reçu la forme {tuple(values.shape)}, attendu {expected} pour un tenseur {tuple(shape)} et "
                f"{self.granularity}."
            )
        return self.granularity.spread(values)

    @torch.no_grad()
    def quantize(self, t: Tensor, scale: Tensor | None = None, zero_point: Tensor | None = None) -> Tensor:
        """Les codes de `t`.

        Parameters
        ----------
        t : Tensor
        scale, zero_point : Tensor, optionnels
            Par défaut, ceux que :meth:`compute_scale_zero_point` tire de `t` ; une échelle seule a un point zéro nul.

        Returns
        -------
        Tensor, forme de t, int8 (uint8 si les codes ne sont pas signés)
        """
        x = check_values(t)
        if scale is None:
            if zero_point is not None:
                raise ValueError("zero_point : reçu sans scale, attendu les deux, ou aucun.")
            scale, zero_point = self.compute_scale_zero_point(t)
        if not check_tensor(scale, "scale").is_floating_point():
            raise TypeError(f"scale : reçu des éléments {scale.dtype}, attendu des flottants.")
        if not (scale >= 0).all() or not is_finite(scale):  # NaN échoue aussi
            raise ValueError(
                f"scale : reçu un minimum de {scale.min()}, attendu des échelles positives ou nulles, et finies."
            )
        zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
        codes = self.codes(x, self.spread(scale, x.shape), self.spread(zero_point, x.shape, "zero_point"))
        return codes.to(self.code_dtype)

    @torch.no_grad()
    def dequantize(self, q: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """Les nombres réels que les codes représentent : (q − point zéro) · échelle.

        Parameters
        ----------
        q : Tensor de codes
        scale, zero_point : Tensor
            Ceux de :meth:`compute_scale_zero_point` ; sans point zéro, zéro.

        Returns
        -------
        Tensor, forme de q
        """
        shape = check_tensor(q, "q").shape
        scale = self.spread(scale, shape)
        codes = q.to(scale.dtype)
        return (codes if zero_point is None else codes - self.spread(zero_point, shape, "zero_point")) * scale

    def quantize_dequantize(self, t: Tensor) -> Tensor:
        """`t` arrondi à la grille : ce qu'il en reste, dans son dtype (float32 pour des entiers)."""
        scale, zero_point = self.compute_scale_zero_point(t)
        return restore(self.dequantize(self.quantize(t, scale, zero_point), scale, zero_point), t.dtype)

    def quantization_error(self, t: Tensor) -> float:
        """Erreur relative ‖t − t̂‖/‖t‖ (Frobenius) ; 0 pour un tenseur nul."""
        x = check_tensor(t, "t").detach().double()
        return relative(norm(self.quantize_dequantize(t).double() - x), norm(x))

    def compress(self, t: Tensor, scale: Tensor | None = None) -> "QuantizedTensor":
        """`t` tel qu'on le garde : codes serrés, échelles et, si la grille est asymétrique, points zéro.

        Parameters
        ----------
        t : Tensor
        scale : Tensor, optionnel
            Des échelles apprises, d'une grille symétrique ; sinon, celles que `t` demande.

        Returns
        -------
        QuantizedTensor
        """
        if scale is None:
            scale, zero_point = self.compute_scale_zero_point(t)
        elif self.symmetric:
            scale, zero_point = self._kept(check_tensor(scale, "scale").detach().to(working_dtype(t), copy=True)), None
        else:
            raise ValueError("scale : reçu pour une grille asymétrique, dont les points zéro manqueraient.")
        return self.pack(self.quantize(t, scale, zero_point), scale, zero_point, t.dtype)

    def pack(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> "QuantizedTensor":
        """Le tenseur rangé : codes serrés, échelles et points zéro.

        Parameters
        ----------
        codes : Tensor, int8, ou uint8 s'ils ne sont pas signés
        scale, zero_point : Tensor
            Tels que les rend :meth:`compute_scale_zero_point`.
        dtype : torch.dtype
            Celui des nombres à rendre.
        """
        packed = pack_bits(codes - self.stored_low, self.n_bits, self.stored_signed)
        # un point zéro est un code : un octet
        kept = None if self.symmetric or zero_point is None else zero_point.to(codes.dtype)
        return QuantizedTensor(self, packed, scale.to(self.scale_dtype or scale.dtype), kept, codes.shape, dtype)

    @property
    def code_dtype(self) -> torch.dtype:
        """Le type des codes, un octet."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def stored_signed(self) -> bool:
        """Vrai si les codes se rangent signés ; sur 1 bit, {−1, 0} ne le peut pas, ce bit signé y vaut ±1."""
        return self.signed and (self.binary or self.n_bits > 1)

    @property
    def stored_low(self) -> int:
        """Ce qu'on retranche aux codes avant de les ranger."""
        return self.low if self.signed and not self.stored_signed else 0

    def recipe(self) -> dict[str, Any]:
        """Les arguments qui le refont."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        kind = f"{'symmetric' if self.symmetric else 'asymmetric'}, {'signed' if self.signed else 'unsigned'}"
        kept = "" if self.scale_dtype is None else f", scale_dtype={self.scale_dtype}"
        return f"UniformQuantizer(n_bits={self.n_bits}, {kind}, {self.granularity}, clipping={self.clipping!r}{kept})"


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Un tenseur quantifié, tel qu'il occupe la mémoire.

    Attributes
    ----------
    quantizer : UniformQuantizer
    packed : Tensor, (⌈numel · b / 8⌉,), uint8
    scale : Tensor, float32 ou float64, ou `quantizer.scale_dtype`
    zero_point : Tensor d'octets, ou None si la grille est symétrique
    shape : torch.Size
    dtype : torch.dtype
    """

    quantizer: UniformQuantizer
    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    shape: torch.Size
    dtype: torch.dtype

    def codes(self) -> Tensor:
        """Les codes, de forme `shape`, int8 (uint8 s'ils ne sont pas signés)."""
        quantizer = self.quantizer
        codes = unpack_bits(self.packed, quantizer.n_bits, self.shape, quantizer.stored_signed)
        return codes.to(torch.int8) + quantizer.stored_low if quantizer.stored_low else codes

    def dequantize(self) -> Tensor:
        """Le tenseur arrondi à la grille, de forme `shape`."""
        scale = self.scale.to(torch.float64 if torch.float64 in (self.scale.dtype, self.dtype) else torch.float32)
        return restore(self.quantizer.dequantize(self.codes(), scale, self.zero_point), self.dtype)

    def nbytes(self) -> int:
        """Octets occupés : codes, échelles et points zéro."""
        kept = (self.packed, self.scale, self.zero_point)
        return sum(t.nbytes for t in kept if t is not None)


def check_values(t: Tensor) -> Tensor:
    """Rend `t` en float32 (ou float64), après avoir exigé un tenseur réel, non vide et fini."""
    if check_tensor(t, "t").numel() == 0 or not is_finite(t):
        raise ValueError(f"t : reçu un tenseur {tuple(t.shape)} vide ou non fini, attendu des nombres finis.")
    return t.detach().to(working_dtype(t))


def check_granularity(granularity: Granularity) -> Granularity:
    """Rend `granularity`, après avoir exigé une façon de découper, et non son nom."""
    if not isinstance(granularity, Granularity):
        raise TypeError(f"granularity : reçu {granularity!r}, attendu PerTensor(), PerChannel(dim) ou PerGroup(size).")
    return granularity


def check_quantizer(quantizer: Any) -> UniformQuantizer:
    """Rend `quantizer`, après avoir exigé une grille, et non son nombre de bits."""
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"quantizer : reçu {quantizer!r}, attendu un UniformQuantizer.")
    return quantizer


def restore(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` dans le dtype d'où il vient, borné à ses nombres finis ; ce qui vient d'entiers reste flottant.

    Un niveau de la grille dépasse parfois d'un demi-pas les valeurs qu'elle couvre : 65 504 déborderait en float16.
    """
    if x.dtype == dtype or not dtype.is_floating_point:
        return x
    return x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)


def mean_magnitude(blocks: Tensor) -> Tensor:
    """Moyenne de abs(t) de chaque ligne, sommée en float64 : en float32, la somme de grands nombres déborde."""
    return blocks.abs().mean(1, dtype=torch.float64).to(blocks.dtype)


def divisor(scale: Tensor) -> Tensor:
    """L'échelle, ou 1 là où elle est nulle ou si petite que son inverse déborderait : ce qu'elle divise devient 0."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, 1)


def quantile(ordered: Tensor, share: float) -> Tensor:
    """Quantile de chaque ligne triée, par interpolation linéaire ; torch.quantile refuse les grands tenseurs."""
    position = share * (ordered.shape[1] - 1)
    below = min(int(position), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return 2 * torch.lerp(ordered[:, below] / 2, ordered[:, above] / 2, position - below)  # l'écart ne déborde pas


# --- la grille symétrique, en deux fonctions --------------------------------------------------------------------------


def quantize_symmetric(t: Tensor, n_bits: int = 8, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Quantifie `t` sur la grille symétrique Δ·{−q, …, q}, avec q = 2^(b−1) − 1 et Δ = max abs(t) / q.

    À 1 bit, la grille n'a que deux niveaux, ±Δ, et Δ = moyenne de abs(t) minimise l'erreur quadratique.

    Parameters
    ----------
    t : Tensor
    n_bits : int, entre 1 et 8
    dim : int, optionnel
        Une échelle par indice de cette dimension (0 : une par ligne) ; sinon une seule pour tout le tenseur.

    Returns
    -------
    codes : Tensor, forme de t, int8
    scale : Tensor
        Scalaire, ou de taille 1 hors de `dim` : ``codes * scale`` approche t. Un tenseur nul reste nul.

    Raises
    ------
    TypeError
        `t` n'est pas un tenseur de nombres réels.
    ValueError
        `n_bits` hors de 1 … 8, `dim` hors du tenseur, tenseur vide ou non fini.
    """
    quantizer = UniformQuantizer(n_bits, granularity=PerTensor() if dim is None else PerChannel(dim))
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    return quantizer.quantize(t, scale, zero_point), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Les nombres réels que représentent des codes symétriques : codes × échelle.

    Parameters
    ----------
    codes : Tensor, int8
    scale : Tensor
        Tels que les rend :func:`quantize_symmetric`.

    Returns
    -------
    Tensor, de la forme de `codes`

    Raises
    ------
    TypeError, ValueError
        Pas des tenseurs de nombres réels, ou une échelle d'une autre forme.
    """
    t = check_tensor(codes, "codes")
    if check_tensor(scale, "scale").ndim > t.ndim or any(
        own not in (1, size) for own, size in zip(scale.shape[::-1], t.shape[::-1], strict=False)
    ):
        raise ValueError(
            f"scale : reçu la forme {tuple(scale.shape)}, attendu un scalaire ou de quoi couvrir {tuple(t.shape)}."
        )
    return t * scale
