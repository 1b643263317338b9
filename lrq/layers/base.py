"""Les questions auxquelles répond toute couche comprimée."""

from torch import Tensor, nn


class CompressedLinear(nn.Module):
    """Une couche linéaire y = x Ŵᵀ + b dont les poids Ŵ (out, in) sont rangés autrement qu'en une matrice.

    Une sous-classe définit `forward`, `reconstruct_weight` et `count_parameters` ; les tailles s'en déduisent.

    Attributes
    ----------
    in_features, out_features : int
    """

    in_features: int
    out_features: int

    def reconstruct_weight(self) -> Tensor:
        """La matrice Ŵ (out, in) que la couche applique, rendue dense."""
        raise TypeError(f"{type(self).__name__} doit définir reconstruct_weight().")

    def count_parameters(self) -> int:
        """Nombre de nombres qui décrivent Ŵ ; le biais n'est pas compté, puisqu'il ne change pas."""
        raise TypeError(f"{type(self).__name__} doit définir count_parameters().")

    def compression_ratio(self) -> float:
        """Taille de la matrice dense divisée par celle de ses facteurs, à précision égale."""
        return self.in_features * self.out_features / self.count_parameters()

    def nbytes(self) -> int:
        """Octets réellement occupés : tous les paramètres et tampons, biais, échelles et points zéro compris."""
        return sum(t.nbytes for t in [*self.parameters(), *self.buffers()])
