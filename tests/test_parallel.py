"""Plusieurs couches à la fois, et un cache : le même réseau au bit près, et rien de refait qui ne soit à refaire."""

import copy
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import joblib
import pytest
import torch
from test_methods import DONE, METHODS, Network, every_true_one, loader, network, picture, tokens, untouched  # noqa: F401
from torch import nn

from lrq import (
    BudgetCompression,
    CompressionCache,
    CompressionPipeline,
    GPTQCompression,
    LoRACompression,
    ParallelCompression,
    PTQCompression,
    SVDCompression,
    TensorTrainCompression,
)
from lrq.compression.cache import task_keys


class Watched(SVDCompression):
    """Tient le journal des couches qu'elle traite ; se tue sur celle qui commence par 7 si le fichier `flag` existe."""

    defaults: ClassVar[dict[str, Any]] = SVDCompression.defaults | {"log": "", "flag": ""}

    def compress_layer(self, layer, seen=None):
        mark = float(layer.weight[0, 0].detach())
        with open(self.config["log"], "a") as file:
            file.write(f"{mark}\n")
        if mark == 7 and os.path.exists(self.config["flag"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compress_layer(layer, seen)


@pytest.fixture
def watched(tmp_path):
    """Une méthode qui tient son journal, et de quoi le lire (puis le vider)."""

    def make(**config):
        return Watched({"rank": 4, "log": str(tmp_path / "journal"), "flag": str(tmp_path / "mort")} | config)

    def done():
        path = tmp_path / "journal"
        marks = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(map(float, marks))

    return make, done, tmp_path / "mort"


@pytest.fixture
def numbered(linear):
    """Un réseau dont la couche i a i + 5 pour premier poids."""
    model = nn.Sequential(*(linear(16, 16) for _ in range(6)))
    with torch.no_grad():
        for i, layer in enumerate(model):
            layer.weight[0, 0] = i + 5
    return model


def identical(model, other):
    assert repr(model) == repr(other)
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, t in model.state_dict().items():
        assert t.dtype == other.state_dict()[name].dtype
        assert torch.equal(t, other.state_dict()[name]), name


def lines(report):
    return [(line.name, line.shape, line.rank, line.bits, line.nbytes, line.error, line.note) for line in report]


# --- le même résultat -------------------------------------------------------------------------------------------------


@every_true_one
def test_any_number_of_workers_gives_the_same_network(make, network, loader, tokens):  # noqa: F811
    before, results, reports, threads = picture(network), [], [], torch.get_num_threads()
    for workers in (1, 2):
        method = make()
        results.append(ParallelCompression().compress_parallel(network, method, workers, loader, [tokens]))
        reports.append(method.report)
    untouched(network, before)
    assert torch.get_num_threads() == threads
    for other, report in zip(results[1:], reports[1:], strict=True):
        identical(other, results[0])
        assert lines(report) == lines(reports[0])
        assert report.output_error == reports[0].output_error
        assert other.twice is other.again
        assert torch.equal(other.left.reconstruct_weight(), other.right.reconstruct_weight())
        assert other.head.weight is other.embedding.weight
        with torch.no_grad():
            for t in [*other.left.parameters(), *other.left.buffers()]:
                t.zero_()
        assert not other.right.reconstruct_weight().any()
    method = make()
    alone = method.compress(network, loader)  # sur un seul fil aussi, dans ces tests : la même chose
    if threads == 1:
        identical(alone, results[0])


@pytest.mark.parametrize("cached", [False, True])
def test_methods_follow_each_other(cached, network, loader, tokens, tmp_path):  # noqa: F811
    alone, shared = ([SVDCompression({"rank": 6}), PTQCompression({"bits": 6})] for _ in range(2))
    alone, shared = CompressionPipeline(alone), CompressionPipeline(shared)
    before, expected = picture(network), alone.compress(network, loader, [tokens])
    tool = ParallelCompression(CompressionCache(tmp_path) if cached else None)
    for _ in range(1 + cached):
        found = tool.compress_parallel(network, shared, 2, iter(loader), [tokens])
        assert [line[:5] for line in lines(shared.report)] == [line[:5] for line in lines(alone.report)]
        torch.testing.assert_close(found(tokens), expected(tokens))
        assert shared.report.output_error == pytest.approx(alone.report.output_error)
    untouched(network, before)


def test_layers_come_back_in_order(numbered, watched):
    make, done, _ = watched
    method = make()
    compressed = ParallelCompression().compress_parallel(numbered, method, 3)
    assert [line.name for line in method.report] == list("012345")
    assert done() == [5, 6, 7, 8, 9, 10]
    for layer, source in zip(compressed, numbered, strict=True):
        assert torch.equal(
            layer.reconstruct_weight(), SVDCompression({"rank": 4}).compress_layer(source).reconstruct_weight()
        )


def test_training_and_adapters_work_too(network, loader, tokens):  # noqa: F811
    settings = {"rank": 2, "layers": ["body.*"], "train_after_compression": True, "epochs": 2}
    alone = TensorTrainCompression(settings).compress(network, loader)
    together = ParallelCompression().compress_parallel(network, TensorTrainCompression(settings), 2, loader)
    if torch.get_num_threads() == 1:
        identical(together, alone)
    adapted = ParallelCompression().compress_parallel(network, LoRACompression({"target_modules": ["body"]}), 2)
    torch.testing.assert_close(adapted(tokens), network(tokens))  # B = 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_comes_back_with_its_layer(workers, network):  # noqa: F811
    with torch.no_grad():
        network.twice.weight[0, 0] = math.nan
    method, before = SVDCompression({"rank": 4}), picture(network)
    with pytest.raises(ValueError, match="NaN ou infini") as refusal:
        ParallelCompression().compress_parallel(network, method, workers)
    assert "Couche refusée : 'twice'." in refusal.value.__notes__
    assert method.report == []
    assert picture(network)[:3] == before[:3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "compression_method : reçu NoneType, attendu CompressionMethod ou"),
        ((SVDCompression(), 0), ValueError, "num_workers : reçu 0, attendu un entier ≥ 1"),
        ((SVDCompression(), -1), ValueError, "num_workers : reçu -1"),
        ((SVDCompression(), 2.0), TypeError, "num_workers : reçu 2.0"),
        ((GPTQCompression(), 2), ValueError, "train_loader : reçu None"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message, network):  # noqa: F811
    with pytest.raises(error, match="^" + re.escape(message)):
        ParallelCompression().compress_parallel(network, *arguments)
    with pytest.raises(TypeError, match=r"^cache : reçu str, attendu une CompressionCache"):
        ParallelCompression("dossier")


def test_a_cache_does_not_hide_what_is_no_loader(tmp_path):
    """Les lots sont parcourus une fois de plus, pour la clé : un tenseur s'y lirait ligne à ligne."""
    tool = ParallelCompression(CompressionCache(tmp_path))
    for bad in (torch.ones(5, 16), 5):
        with pytest.raises(TypeError, match=rf"^train_loader : reçu {type(bad).__name__}, attendu un DataLoader"):
            tool.compress_parallel(nn.Sequential(nn.Linear(16, 4)), GPTQCompression(), 1, train_loader=bad)


# --- un ouvrier qui meurt ---------------------------------------------------------------------------------------------


def test_a_dead_worker_is_told_and_the_work_goes_on(numbered, watched, tmp_path):
    """L'erreur nomme la couche ; le réseau est intact ; la seconde fois, seul ce qui manque est fait."""
    make, done, flag = watched
    before, cache = picture(numbered), CompressionCache(tmp_path / "cache")
    flag.touch()
    method = make()
    with pytest.raises(RuntimeError, match=r"^Un ouvrier est mort pendant la compression de .*'2'") as death:
        ParallelCompression(cache).compress_parallel(numbered, method, 2)
    assert str(death.value).endswith("le réseau n'a pas changé, les couches déjà faites sont dans le cache.")
    assert death.value.__cause__ is not None
    assert method.report == []
    untouched(numbered, before)
    first = done()
    assert 7 in first
    flag.unlink()
    again = make()
    compressed = ParallelCompression(cache).compress_parallel(numbered, again, 2)
    second = done()
    assert 7 in second
    assert len(second) < 6, "rien n'a été repris du cache"
    assert set(first) | set(second) == {5, 6, 7, 8, 9, 10}
    assert [line.seconds > 0 for line in again.report].count(True) == len(second)
    identical(compressed, ParallelCompression().compress_parallel(numbered, make(), 1))


# --- le cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    def draw(method, model, batches=None):
        return task_keys(method, model, method.select(model), batches)

    return draw


def test_what_is_in_the_cache_is_not_done_again(numbered, watched, tmp_path):
    make, done, _ = watched
    cache = CompressionCache(tmp_path / "cache")
    first = ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    assert done() == [5, 6, 7, 8, 9, 10]
    method = make(progress=True)
    second = ParallelCompression(CompressionCache(tmp_path / "cache")).compress_parallel(numbered, method, 2)
    assert done() == []
    identical(second, first)
    assert [line.seconds for line in method.report] == [0] * 6
    with torch.no_grad():
        first[0].U.zero_()
    third = ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    identical(third, second)  # le cache ne partage rien
    with torch.no_grad():
        numbered[3].weight[1, 1] += 1e-6
    ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    assert done() == [8]
    ParallelCompression(cache).compress_parallel(numbered[:2], make(layers=["0"]), 1)
    assert done() == []  # la même couche, dans un autre réseau
    ParallelCompression(cache).compress_parallel(numbered, make(rank=5), 1)
    assert done() == [5, 6, 7, 8, 9, 10]
    cache.clear()
    ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    assert done() == [5, 6, 7, 8, 9, 10]


@every_true_one
def test_the_cache_gives_back_the_same_network(make, network, loader, tokens, tmp_path):  # noqa: F811
    cache = CompressionCache(tmp_path)
    first, second = (
        ParallelCompression(cache).compress_parallel(network, make(), 1, data) for data in (loader, iter(loader))
    )
    identical(second, first)
    assert second.twice is second.again
    with torch.no_grad():
        for t in [*second.left.parameters(), *second.left.buffers()]:
            t.zero_()
    assert not second.right.reconstruct_weight().any()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.twice.weight[0, 0] += 1
    third = ParallelCompression(cache).compress_parallel(other, make(), 1, loader)
    assert not torch.equal(third.twice.reconstruct_weight(), first.twice.reconstruct_weight())


def test_a_key_is_made_of_bytes_and_settings(keys, network, loader):  # noqa: F811
    def key(config, model=network, kind=SVDCompression, batches=None):
        return keys(kind(config), model, batches)[0]

    base = key({"rank": 4, "error_threshold": 0.1})
    assert key({"error_threshold": 0.1, "rank": 4}) == base
    assert key({"error_threshold": 0.1, "rank": 4, "progress": True, "layers": ["body.0"]}) == base
    assert len({base, key({"rank": 5, "error_threshold": 0.1}), key({"rank": 4, "error_threshold": 0.2})}) == 3
    assert keys(Watched({"rank": 4}), network)[0] != keys(SVDCompression({"rank": 4}), network)[0]
    all_keys = keys(SVDCompression(), network)
    assert len(set(all_keys)) == len(all_keys)
    for change in (
        lambda layer: layer.weight.data.view(torch.int32).bitwise_xor_(torch.eye(24, 16, dtype=torch.int32)),
        lambda layer: layer.bias.data.neg_(),
        lambda layer: layer.double(),
        lambda layer: layer.train(),
    ):
        other = copy.deepcopy(network)
        change(other.body[0])
        assert key({"rank": 4, "error_threshold": 0.1}, other) != base


def test_a_key_of_a_method_that_listens_depends_on_the_network_and_the_data(keys, network, loader):  # noqa: F811
    def key(model=network, batches=loader, **config):
        return keys(GPTQCompression({"group_size": 8} | config), model, batches)[0]

    other = copy.deepcopy(network)
    with torch.no_grad():
        other.embedding.weight[3, 3] += 1e-6  # une autre couche : ce qu'entend la première a changé
    quicker = copy.deepcopy(network)
    quicker.body[1] = nn.ReLU()  # les mêmes nombres, un autre calcul
    found = [
        key(),
        key(other),
        key(quicker),
        key(batches=loader[:2]),
        key(batches=[loader[0] + 0, loader[1], loader[2].int()]),
        key(batches=loader[::-1]),
        key(layers=["body.*"]),
        key(batches=[{"tokens": x} for x in loader]),
        key(batches=[(x, None, 1.5, "a", True) for x in loader]),
    ]
    assert len(set(found)) == len(found)
    assert key(batches=[x.clone() for x in loader]) == found[0]
    assert (
        keys(GPTQCompression({"rounding": "nearest"}), other)[0]
        == keys(GPTQCompression({"rounding": "nearest"}), network)[0]
    )
    with pytest.raises(TypeError, match=r"^train_loader : reçu un Module, dont on ne sait pas tirer une clé"):
        key(batches=[nn.Module()])


PRINT = """
import torch
from torch import nn
from lrq import BudgetCompression, GPTQCompression, PTQCompression, SVDCompression
from lrq.compression.cache import task_keys
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4))
batches = [{"b": torch.ones(2, 8), "a": torch.zeros(1)}]
for method in (SVDCompression({"rank": 2, "exclude": {"2"}}), GPTQCompression({"group_size": 2, "bits": 3}),
               PTQCompression(), BudgetCompression({"budget": 99, "bit_choices": [2, 3]})):
    print(*task_keys(method, model, method.select(model), batches if method.observes else None))
"""


def test_a_key_is_the_same_in_another_process():
    runs = [
        subprocess.run(
            [sys.executable, "-c", PRINT],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == 7


@pytest.mark.parametrize(
    ("harm", "workers"), [("truncate", 1), ("truncate", 2), ("empty", 1), ("garbage", 1), ("metadata", 1)]
)
def test_a_damaged_entry_is_done_again(harm, workers, numbered, watched, tmp_path, capfd, caplog):
    make, done, _ = watched
    cache = CompressionCache(tmp_path / "cache")
    first = ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    assert len(done()) == 6
    for path in list(cache.folder.rglob("output.pkl"))[:2]:
        content = path.read_bytes()
        if harm == "metadata":
            path.with_name("metadata.json").write_text("{")
        else:
            path.write_bytes({"truncate": content[: len(content) // 2], "empty": b"", "garbage": os.urandom(99)}[harm])
    second = ParallelCompression(cache).compress_parallel(numbered, make(), workers)
    assert len(done()) == (0 if harm == "metadata" else 2)
    identical(second, first)
    ParallelCompression(cache).compress_parallel(numbered, make(), 1)
    assert done() == []
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


TOGETHER = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from lrq import CompressionCache, ParallelCompression, SVDCompression
torch.manual_seed(3)
model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(20)))
folder = Path(sys.argv[1])
(folder / sys.argv[2]).touch()
while len(list(folder.glob("prêt*"))) < 2:
    time.sleep(0.01)
for _ in range(3):
    together = ParallelCompression(CompressionCache(folder / "cache"))
    found = together.compress_parallel(model, SVDCompression({"rank": 5}), 1)
print(sum(float(t.double().sum()) for t in found.state_dict().values()))
"""


def test_two_processes_share_a_folder(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path), f"prêt{i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(list((tmp_path / "cache").rglob("output.pkl"))) == 20


def test_a_budget_shares_nothing_it_should_not(network, loader, tmp_path):  # noqa: F811
    """Ce qu'une couche reçoit d'un budget dépend des autres : un autre budget, une autre clé."""
    cache, sizes = CompressionCache(tmp_path), []
    for budget in (1500, 3000):
        method = BudgetCompression({"budget": budget, "group_size": 8, "clipping": "min_max"})
        ParallelCompression(cache).compress_parallel(network, method, 1, loader)
        sizes.append(sum(line.nbytes for line in method.report if line.compressed))
    assert sizes[0] <= 1500 < sizes[1] <= 3000


def test_the_cache_says_what_it_is(tmp_path):
    cache = CompressionCache(tmp_path / "neuf")
    assert repr(cache) == f"CompressionCache({str(tmp_path / 'neuf')!r})"
    assert cache.get("absente") is None
    assert isinstance(cache.folder, Path)


# --- une grappe -------------------------------------------------------------------------------------------------------


def test_the_same_call_on_a_cluster(network, loader, tmp_path):  # noqa: F811
    distributed = pytest.importorskip("distributed")
    expected = ParallelCompression().compress_parallel(network, PTQCompression({"bits": 5}), 1, loader)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path)}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend="dask"):
            found = ParallelCompression().compress_parallel(network, PTQCompression({"bits": 5}), 2, loader)
            cached = ParallelCompression(CompressionCache(tmp_path / "cache"))
            again = cached.compress_parallel(network, PTQCompression({"bits": 5}), 2, loader)
        assert len(list((tmp_path / "cache").rglob("output.pkl"))) == len(DONE)
    identical(found, expected)
    identical(again, expected)


def test_a_method_of_the_reader_is_known_by_its_code(network, tokens, tmp_path):  # noqa: F811
    def make(factor):
        code = (
            "class Scaled(SVDCompression):\n"
            "    def compress_layer(self, layer, seen=None):\n"
            "        smaller = SVDCompression.compress_layer(self, layer, seen)\n"
            f"        smaller.S.data.mul_({factor})\n"
            "        return smaller\n"
        )
        namespace = {"__name__": "__main__", "SVDCompression": SVDCompression}
        exec(code, namespace)
        return namespace["Scaled"]({"rank": 3})

    parallel = ParallelCompression(CompressionCache(tmp_path))
    outputs = [parallel.compress_parallel(network, make(factor), 1)(tokens) for factor in (1.0, 100.0, 1.0)]
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1])
