"""Instances fraîches à chaque passage, rejouables : ``LRQ_GRAINE=123 pytest`` refait exactement les mêmes."""

import os
import random
import zlib

import numpy as np
import pytest
import torch

GRAINE = int(os.environ.get("LRQ_GRAINE") or random.SystemRandom().randrange(2**31))


def pytest_report_header():
    return f"graine des instances : LRQ_GRAINE={GRAINE}"


@pytest.fixture
def rng(request):
    """Générateur NumPy propre au test ; sa graine est imprimée, donc montrée en cas d'échec.

    Le générateur global de PyTorch, que suivent les constructeurs de modules, reçoit la même graine, puis est rendu.
    """
    print(f"pour rejouer : LRQ_GRAINE={GRAINE} pytest '{request.node.nodeid}'")
    seed = [GRAINE, zlib.crc32(request.node.nodeid.encode())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield np.random.default_rng(seed)


@pytest.fixture
def randn(rng):
    """Tenseur gaussien : ``randn(3, 4)``, float32 sauf demande contraire."""

    def draw(*shape, dtype=torch.float32):
        return torch.tensor(rng.standard_normal(shape), dtype=dtype)

    return draw


@pytest.fixture
def matrix(rng):
    """Matrice m×n de spectre donné (ou décroissant, tiré au hasard), de bases orthonormées quelconques."""

    def draw(m, n, spectrum=None, dtype=torch.float32):
        p = min(m, n)
        if spectrum is None:
            spectrum = np.sort(rng.random(p) * np.arange(1, p + 1, dtype=float) ** -1)[::-1]
        spectrum = np.concatenate([spectrum, np.zeros(p - len(spectrum))])
        left = np.linalg.qr(rng.standard_normal((m, p)))[0]
        right = np.linalg.qr(rng.standard_normal((n, p)))[0]
        return torch.tensor(left * spectrum @ right.T, dtype=dtype)

    return draw
