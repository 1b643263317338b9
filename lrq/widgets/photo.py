"""Une image vue comme une matrice, reconstruite au rang que choisit le lecteur."""

from typing import Any, Self

import torch
import traitlets
from torch import Tensor
from torch.nn import functional as F

from ..display import fr
from ..models import load_photograph
from ..svd import working_dtype
from ..validation import check_matrix
from .explorer import YOURS, Explorer, esm, relative_to_first, to_bytes

MAX_BYTES = 79_000  # ce que la page transporte de l'image : un octet par point, deux par coordonnée des vecteurs
MAX_SIDE = 16_000  # points d'un côté : un navigateur ne dessine guère au-delà


class PhotoExplorer(Explorer):
    """Une image en niveaux de gris, sa SVD tronquée et ce qu'elle perd.

    Parameters
    ----------
    image : Tensor (h, l)
        Toute matrice réelle convient : son minimum se peint en noir, son maximum en blanc.
    name : str
        Ce que l'image montre, pour les légendes.
    rank : int
        Le rang montré d'abord, ramené au besoin à min(h, l).
    code : str
        Les lignes qui définissent ``W``, montrées par « Voir le code ».

    Attributes
    ----------
    rank : int
    code : str
        Les lignes qui définissent l'image explorée, réduction comprise.
    image : Tensor
        L'image explorée : celle qu'on a donnée ou, si elle est trop grande pour la page, :func:`shrink` de celle-ci.

    Raises
    ------
    TypeError, ValueError
        L'image n'est pas une matrice réelle, non vide et finie.

    Notes
    -----
    La page reçoit l'image sur 8 bits et ses vecteurs singuliers gauches sur 16 ; les erreurs affichées viennent, elles,
    des valeurs singulières en float32.
    """

    _esm = esm("photo.js")

    _name = traitlets.Unicode().tag(sync=True)
    _code = traitlets.Unicode().tag(sync=True)
    _rows = traitlets.Int().tag(sync=True)
    _columns = traitlets.Int().tag(sync=True)
    _range: traitlets.List[float] = traitlets.List().tag(sync=True)
    _pixels = traitlets.Bytes().tag(sync=True)
    _vectors = traitlets.Bytes().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(self, image: Tensor, name: str = "image", rank: int = 20, code: str = YOURS):
        given = check_image(image)
        self.image = shrink(given)
        m, n = self.image.shape
        note = ""
        if self.image.shape != given.shape:
            code = f"import lrq.widgets\n{code}\nW = lrq.widgets.shrink(W)"
            size = f"{fr(given.shape[0])} × {fr(given.shape[1])}"
            note = f"Image réduite de {size} à {m} × {n} points pour tenir dans la page."
        unit = float(self.image.abs().max()) or 1.0
        W = self.image.to(working_dtype(self.image)) / unit  # ni débordement ni zéro, quelle que soit l'unité
        U, S, _ = torch.linalg.svd(W, full_matrices=False)
        low, high = float(W.min()), float(W.max())
        levels = (255 * (W - low) / ((high - low) or 1.0)).round()
        self._spectrum = S.cpu().double() * unit
        self.code = code
        super().__init__(
            rank=min(rank, m, n) if isinstance(rank, int) else rank,
            _name=name,
            _code=code,
            _note=note,
            _rows=m,
            _columns=n,
            _range=[low, high],
            _pixels=levels.to(torch.uint8).cpu().numpy().tobytes(),
            _vectors=(32767 * U).round().to(torch.int16).cpu().numpy().astype("<i2").tobytes(),
            _values=to_bytes([relative_to_first(S)]),
        )

    @classmethod
    def of_photograph(cls, rank: int = 20) -> Self:
        """La photographie du livre.

        Parameters
        ----------
        rank : int
        """
        code = "from lrq import models\n\nW = models.load_photograph()"
        return cls(load_photograph(), "photographie", rank, code)

    def shown(self) -> tuple[str, tuple[int, int], Tensor]:
        return self._name, (self._rows, self._columns), self._spectrum


def check_image(image: Any) -> Tensor:
    """Rend l'image, une matrice ; d'une image en couleurs, dit comment en faire une."""
    if getattr(image, "ndim", 0) == 3:
        channels = 0 if image.shape[0] <= 4 < image.shape[-1] else -1
        raise ValueError(
            f"image : reçu la forme {tuple(image.shape)}, attendu (h, l). Pour une image en couleurs, "
            f"prenez la moyenne de ses canaux, image.mean({channels})."
        )
    return check_matrix(image, "image")


def shrink(image: Tensor) -> Tensor:
    """Réduit une image, par moyennes de points voisins, à ce qu'une page peut transporter ; sinon la rend telle quelle.

    Parameters
    ----------
    image : Tensor, (h, l)

    Returns
    -------
    Tensor, (h', l')
        Mêmes proportions : h'·l' + 2·h'·min(h', l') tient dans 79 000 octets, et un côté dans 16 000 points.
    """
    image = check_image(image)
    m, n = (min(side, MAX_SIDE) for side in image.shape)
    while (size := m * n + 2 * m * min(m, n)) > MAX_BYTES:
        scale = (MAX_BYTES / size) ** 0.5
        m, n = max(1, int(m * scale)), max(1, int(n * scale))
    if (m, n) == tuple(image.shape):
        return image
    return F.interpolate(image[None, None].double(), (m, n), mode="area")[0, 0].to(image.dtype)
