"""Entraîne les deux réseaux des chiffres et écrit leurs poids à côté de ce fichier.

    python -m lrq.data.train_digits

Une dizaine de secondes par réseau sur deux cœurs. La graine est fixée ; d'une version de PyTorch ou d'un processeur à
l'autre, les poids peuvent différer dans les derniers chiffres : le livre s'appuie donc sur les fichiers du dépôt.
"""

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ..models import DATA, DIGITS_NETWORKS, accuracy, load_digits_data

SEED = 0
EPOCHS = 60
BATCH = 64


def train(kind: str) -> nn.Module:
    """AdamW, taux d'apprentissage en cosinus ; les images sont décalées d'un pixel au plus, pour la généralisation."""
    (x, y), _ = load_digits_data()
    torch.manual_seed(SEED)
    network = DIGITS_NETWORKS[kind]()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            dy, dx = (int(i) for i in torch.randint(-1, 2, (2,)))
            shifted = F.pad(x[batch], (1, 1, 1, 1))[..., 1 + dy : 9 + dy, 1 + dx : 9 + dx]
            loss = F.cross_entropy(network(shifted), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


if __name__ == "__main__":
    _, test = load_digits_data()
    for kind in DIGITS_NETWORKS:
        network = train(kind)
        save_file(network.state_dict(), DATA / f"digits_{kind}.safetensors")
        print(f"{kind} : {accuracy(network, *test):.2%} de bonnes réponses sur le jeu de test")
