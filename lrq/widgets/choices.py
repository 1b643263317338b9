"""Les matrices réelles que le livre donne à explorer, chacune avec ce qu'on peut y découvrir."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..models import load_minilm_weights
from .explorer import YOURS


@dataclass(frozen=True)
class Choice:
    """Une matrice à explorer.

    Parameters
    ----------
    W : Tensor, (m, n)
    prompt : str
        Une phrase qui invite à une découverte.
    code : str
        Les lignes qui définissent ``W``, montrées par « Voir le code ».
    """

    W: Tensor = field(repr=False)
    prompt: str = ""
    code: str = YOURS


MINILM = {  # nom → clé dans les poids, lignes gardées (None : toutes), invitation
    "query, bloc 1": (
        "encoder.layer.0.attention.self.query.weight",
        None,
        "Amenez la coupe à 99 % de l’énergie : où tombe-t-elle ?",
    ),
    "value, bloc 1": (
        "encoder.layer.0.attention.self.value.weight",
        None,
        "Coupez à la moitié de la taille, puis revenez à « query » : laquelle le supporte le mieux ?",
    ),
    "dense 1, bloc 1": (
        "encoder.layer.0.intermediate.dense.weight",
        None,
        "Rectangulaire : son rang d’équilibre est plus élevé. Y garde-t-on 99 % de l’énergie ?",
    ),
    "dense 2, bloc 1": (
        "encoder.layer.0.output.dense.weight",
        None,
        "La première valeur singulière est seule devant. Un unique poids, sur 589 824, l’explique : W.abs().max().",
    ),
    "vecteurs de position": (
        "embeddings.position_embeddings.weight",
        None,
        "Celle-ci se coupe bien : cherchez le rang où l’erreur passe sous 10 %, et ce que pèsent alors les facteurs.",
    ),
    "2 000 premiers jetons": (
        "embeddings.word_embeddings.weight",
        2000,
        "Posez la coupe au rang 1 : qu’a-t-on déjà gardé ? Près de la moitié de ces lignes sont des jetons "
        "« [unused…] », qui se ressemblent presque tous.",
    ),
    "pooler": (
        "pooler.dense.weight",
        None,
        "Le modèle de phrases ne se sert jamais de cette matrice : comparez-la à la courbe du hasard.",
    ),
}

GAUSSIAN = "import torch\n\nW = torch.randn(384, 384, generator=torch.Generator().manual_seed(0))"


def minilm_choices(prompts: Mapping[str, str] | None = None) -> dict[str, Choice]:
    """Sept matrices de MiniLM et, pour témoin, une matrice gaussienne.

    Parameters
    ----------
    prompts : dict nom → invitation, optionnel
        Ne garde que les matrices qu'il nomme, dans son ordre, avec ces invitations-là.

    Returns
    -------
    dict nom → Choice
    """
    weights = load_minilm_weights()
    choices = {}
    for name, (key, rows, prompt) in MINILM.items():
        part = "" if rows is None else f"[:{rows}]"
        code = f'from lrq import models\n\nW = models.load_minilm_weights()["{key}"]{part}'
        choices[name] = Choice(weights[key][:rows], prompt, code)
    W = torch.randn(384, 384, generator=torch.Generator().manual_seed(0))
    prompt = "Du bruit. Que garde-t-il à la moitié de la taille ? Comparez à « query »."
    choices["hasard gaussien"] = Choice(W, prompt, GAUSSIAN)
    if prompts is None:
        return choices
    return {name: replace(choices[name], prompt=prompt) for name, prompt in prompts.items()}
