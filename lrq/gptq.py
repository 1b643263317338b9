"""GPTQ : arrondir une colonne après l'autre, en reportant l'erreur de chacune sur celles qui restent.

Ce que la couche perd, ‖X(W − Ŵ)ᵀ‖²/N, vaut tr((W − Ŵ) C (W − Ŵ)ᵀ) : chaque ligne de W s'arrondit sans les autres, et C
dit quelles entrées vont ensemble. Quand la colonne j est arrondie, d'une erreur e, le mieux que les colonnes encore
libres F puissent faire est de bouger de −e (H⁻¹)_jF / (H⁻¹)_jj, où H est C réduite à j et F. Avec H⁻¹ = Tᵀ T, T
triangulaire supérieure, toutes ces réductions sont déjà là : c'est −e T_jF / T_jj.
"""

import torch
from torch import Tensor

from .activation import Calibration
from .quantizers import QuantizedTensor, UniformQuantizer, check_quantizer
from .validation import check_matrix, check_positive

BLOCK = 128  # colonnes dont les reports vers la droite attendent d'être faits d'un seul produit


@torch.no_grad()
def gptq(
    W: Tensor, calibration: Tensor | Calibration, quantizer: UniformQuantizer, damping: float = 0.01
) -> QuantizedTensor:
    """Quantifie W pour que les *sorties* bougent le moins possible, sur la grille que `quantizer` lui trouve.

    Les échelles sont celles de l'arrondi au plus près ; seuls les codes changent. Les colonnes passent par énergie
    d'entrée décroissante : les plus vues d'abord, tant qu'il en reste beaucoup pour rattraper.

    Parameters
    ----------
    W : Tensor, (m, n)
    calibration : Tensor (..., n) d'entrées, ou Calibration
    quantizer : UniformQuantizer
    damping : float, positif
        Ce qui s'ajoute à la diagonale de C, en part de sa moyenne : une direction peu vue ne rattrape pas tout.

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    TypeError, ValueError
        Poids ou calibration impossibles, ou d'une autre largeur ; grille qui ne découpe pas W ; `damping` ≤ 0 ou trop
        petit.

    References
    ----------
    Frantar et al. (2023) ; la compensation d'une seule colonne, Hassibi et Stork (1993).
    """
    W, quantizer = check_matrix(W), check_quantizer(quantizer)
    scale, zero_point = quantizer.compute_scale_zero_point(W)
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_inputs(calibration)
    C = calibration.second_moment.to(W.device)  # (n, n)
    if len(C) != W.shape[1]:
        raise ValueError(f"calibration : reçu des entrées de largeur {len(C)}, attendu {W.shape[1]}.")
    order = C.diagonal().argsort(descending=True, stable=True)
    H = (C / C.diagonal().mean())[order][:, order]  # à l'échelle 1 : rien ne déborde ni ne s'annule en float32
    H.diagonal().add_(check_positive(damping, "damping"))
    T = inverse_root(H, damping).to(scale.dtype)

    # une colonne de W par ligne, pour la vitesse : (n, m)
    left = W.T[order].to(scale.dtype)  # ce qu'il reste à arrondir, reports compris
    steps = quantizer.spread(scale, W.shape).expand_as(W).T[order]
    zeros = quantizer.spread(zero_point, W.shape, "zero_point").expand_as(W).T[order]
    codes = torch.empty_like(left)
    for start in range(0, len(H), BLOCK):
        stop = min(start + BLOCK, len(H))
        errors = torch.empty_like(left[start:stop])  # (k, m)
        for j in range(start, stop):
            codes[j] = quantizer.codes(left[j], steps[j], zeros[j])
            e = (left[j] - (codes[j] - zeros[j]) * steps[j]) / T[j, j]
            left[j:stop] -= torch.outer(T[j, j:stop], e)
            errors[j - start] = e
        left[stop:] -= T[start:stop, stop:].T @ errors  # (reste, k) @ (k, m)
    found = torch.empty_like(W, dtype=quantizer.code_dtype)
    found[:, order] = codes.T.to(found.dtype)
    return quantizer.pack(found, scale, zero_point, W.dtype)


def inverse_root(H: Tensor, damping: float) -> Tensor:
    """T, triangulaire supérieure, telle que H⁻¹ = Tᵀ T ; refuse un amortissement trop faible pour inverser H."""
    try:
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise ValueError(
            f"damping : reçu {damping:g}, trop petit ; des entrées ne vont jamais dans certaines directions."
        ) from None
