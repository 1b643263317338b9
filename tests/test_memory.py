"""Comprimer en place : le même résultat, un réseau qui marche quoi qu'il arrive, et une mémoire mesurée."""

import copy
import math
import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from test_methods import DONE, METHODS, Network, every_true_one, loader, network, picture, tokens  # noqa: F401
from torch import nn

from lrq import (
    CompressionPipeline,
    GPTQCompression,
    LoRACompression,
    LoRALayer,
    MemoryEfficientCompression,
    PTQCompression,
    QuantizedLowRankLinear,
    SVDCompression,
    TensorTrainCompression,
    TruncatedSVDLinear,
)

compress_inplace = MemoryEfficientCompression.compress_inplace


@every_true_one
def test_in_place_is_the_same_as_on_a_copy(make, network, loader, tokens):  # noqa: F811
    method, other = make(), make()
    expected = method.compress(network, loader)
    kept = network.encoder.linear1
    assert compress_inplace(network, other, loader) is network
    assert not isinstance(network.twice, nn.Linear)
    assert network.encoder.linear1 is kept
    assert network.twice is network.again
    assert torch.equal(network(tokens), expected(tokens))
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in network.state_dict().items())
    assert [line.name for line in other.report] == [line.name for line in method.report]
    assert [line.nbytes for line in other.report] == [line.nbytes for line in method.report]


def chained():
    return CompressionPipeline([SVDCompression({"rank": 6}), PTQCompression({"bits": 6})])


def test_methods_follow_each_other_in_place(network, loader, tokens):  # noqa: F811
    pipeline, other = chained(), chained()
    expected = pipeline.compress(network, iter(loader))
    assert compress_inplace(network, other, iter(loader)) is network
    assert isinstance(network.twice, QuantizedLowRankLinear)
    assert torch.equal(network(tokens), expected(tokens))
    assert [(line.name, line.nbytes) for line in other.report] == [(line.name, line.nbytes) for line in pipeline.report]


def test_the_method_that_stops_a_pipeline_is_named(network):  # noqa: F811
    """La première est passée, le réseau marche encore."""
    with pytest.raises(ValueError, match="train_loader : reçu None") as refusal:
        compress_inplace(network, CompressionPipeline([SVDCompression({"layers": ["body.*"]}), GPTQCompression()]))
    assert refusal.value.__notes__[-1] == "Méthode en cause : GPTQCompression({}), 2 sur 2."
    assert isinstance(network.body[0], TruncatedSVDLinear)


def test_a_network_that_is_one_layer_is_replaced_by_the_value(linear, randn):
    layer, x = linear(8, 6), randn(3, 8)
    smaller = compress_inplace(layer, SVDCompression({"rank": 6}))
    assert smaller is not layer
    torch.testing.assert_close(smaller(x), layer(x), rtol=1e-4, atol=1e-4)


def test_adapters_are_added_in_place(network, tokens):  # noqa: F811
    y = network(tokens)
    compress_inplace(network, METHODS["lora"]())
    assert isinstance(network.twice, LoRALayer)
    torch.testing.assert_close(network(tokens), y)  # B = 0 ; le biais ne s'ajoute pas au même moment
    free = [name for name, p in network.named_parameters() if p.requires_grad]
    assert free
    assert all(".adapters." in name for name in free)


@pytest.mark.parametrize("make", [METHODS["svd"], METHODS["tt"], METHODS["au plus près"]])
def test_a_failure_on_the_way_leaves_a_network_that_works(make, network, tokens):  # noqa: F811
    """Ce qui est fait l'est, le reste est intact, et l'erreur dit lesquelles."""
    method, before = make(), copy.deepcopy(network)
    with torch.no_grad():
        network.twice.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN ou infini") as refusal:
        compress_inplace(network, method)
    assert refusal.value.__notes__ == [
        "Couche refusée : 'twice'.",
        "Couches déjà comprimées (2 sur 9) : 'body.0', 'body.3'. Les autres sont intactes.",
    ]
    assert [line.name for line in method.report] == DONE[:2]
    assert not isinstance(network.body[0], nn.Linear)
    assert isinstance(network.twice, nn.Linear)
    assert network.twice is network.again
    for name in ("left", "right", "head", "encoder.linear1"):
        assert torch.equal(network.get_submodule(name).weight, before.get_submodule(name).weight)
    with torch.no_grad():
        network.twice.weight[0, 0] = before.twice.weight[0, 0]
    expected = copy.deepcopy(before)
    partial = make(layers=["body.*"]).compress(before)
    expected.body = partial.body
    assert torch.equal(network(tokens), expected(tokens))
    compress_inplace(network, make(exclude=["head", "attention*", "encoder*"]))  # on reprend où l'on en était
    assert not isinstance(network.twice, nn.Linear)


def test_an_interruption_says_so_too(network, monkeypatch):  # noqa: F811
    method = SVDCompression({"rank": 4})
    whole = SVDCompression.compress_layer

    def interrupted(self, layer, seen=None):
        if layer is network.body[0]:
            raise KeyboardInterrupt
        return whole(self, layer, seen)

    monkeypatch.setattr(SVDCompression, "compress_layer", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        compress_inplace(network, method)
    assert stop.value.__notes__ == ["Couches déjà comprimées (0 sur 9) : aucune. Les autres sont intactes."]
    assert method.report == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "compression_method : reçu NoneType, attendu CompressionMethod ou"),
        ((SVDCompression,), TypeError, "compression_method : reçu ABCMeta"),
        (
            (CompressionPipeline([SVDCompression(), TensorTrainCompression({"train_after_compression": True})]), [1]),
            ValueError,
            "compression_method : TensorTrainCompression({'train_after_compression': True}) apprend de l'original",
        ),
        ((METHODS["gptq"](),), ValueError, "train_loader : reçu None"),
        ((SVDCompression({"layers": ["corps"]}),), ValueError, "layers : le motif 'corps' ne désigne aucune couche"),
        (
            (TensorTrainCompression({"train_after_compression": True}), [1]),
            ValueError,
            "compression_method : TensorTrainCompression({'train_after_compression': True}) apprend de l'original",
        ),
    ],
    ids=lambda value: None,
)
def test_what_cannot_be_done_is_refused_before_anything_changes(arguments, error, message, network):  # noqa: F811
    before = picture(network)
    with pytest.raises(error, match="^" + re.escape(message)):
        compress_inplace(network, *arguments)
    assert picture(network)[:3] == before[:3]
    with pytest.raises(TypeError, match=r"^model : reçu str, attendu nn\.Module"):
        compress_inplace("réseau", LoRACompression())


# --- la mémoire -------------------------------------------------------------------------------------------------------


def test_a_finished_layer_is_held_by_nobody(linear, randn):
    """Quand vient le tour d'une couche, les poids des précédentes n'existent plus, ni ce que l'on en avait entendu."""
    model, alive = nn.Sequential(*(linear(8, 8) for _ in range(5))), []
    weights = [weakref.ref(layer.weight) for layer in model]
    heard = []

    class Counting(SVDCompression):
        def observe(self, model, tasks, train_loader):
            super().observe(model, tasks, train_loader)
            heard.extend(weakref.ref(task.seen[0]) for task in tasks)

        def compress_layer(self, layer, seen=None):
            alive.append([sum(ref() is not None for ref in refs) for refs in (weights, heard)])
            return super().compress_layer(layer, seen)

    compress_inplace(model, Counting({"rank": 3, "activation_aware": True}), [randn(30, 8)])
    assert alive == [[5 - done, 5 - done] for done in range(5)]


# Le travail d'une couche est ce que coûte, en plus du réseau, de la comprimer, elle seule : on le mesure dans un
# processus à part, où malloc rend au système tout ce qu'on lui rend. Une première compression, non mesurée, charge ce
# qui ne l'est qu'une fois.
MEASURE = """
import resource, sys, threading, time
import torch
from torch import nn
from lrq import GPTQCompression, MemoryEfficientCompression, SVDCompression

def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def peak(work):
    highest, over = [now()], threading.Event()
    def watch():
        while not over.is_set():
            highest[0] = max(highest[0], now())
            time.sleep(0.002)
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return highest[0]

torch.manual_seed(0)
torch.set_num_threads(1)
make = {
    "svd": lambda: SVDCompression({"rank": 64}),
    "arrondi": lambda: GPTQCompression({"rounding": "nearest", "clipping": "min_max"}),
}[sys.argv[1]]
size, count = int(sys.argv[2]), int(sys.argv[3])
make().compress(nn.Sequential(nn.Linear(size, size)))
model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(count)))
start = now()
highest = peak(lambda: MemoryEfficientCompression.compress_inplace(model, make()))
print(start, highest, now())
"""
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="la mémoire se lit dans /proc")
@pytest.mark.parametrize(("method", "size"), [("svd", 640), ("arrondi", 1536)])
def test_memory_holds_the_network_and_the_work_of_one_layer(method, size):
    def measure(count):
        command = [sys.executable, "-c", MEASURE, method, str(size), str(count)]
        run = subprocess.run(command, env=os.environ | PAGES, capture_output=True, text=True, check=True, timeout=120)
        return map(int, run.stdout.split())

    layer = 4 * size**2
    start, highest, _ = measure(1)
    work = highest - start
    assert work > layer / 2, "la mesure ne voit rien"
    start, highest, end = measure(8)
    sizes = {"couche": layer, "travail": work, "pic": highest - start, "fin": end - start}
    print(", ".join(f"{name} {size / 1e6:.1f} Mo" for name, size in sizes.items()))  # que montre pytest -s
    assert highest - start < 1.3 * work
    assert end < start - 5 * layer, "les couches faites sont encore tenues"
