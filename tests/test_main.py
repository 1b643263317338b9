"""La ligne de commande : ce qu'elle imprime, ce qu'elle écrit, ce qu'elle refuse, en français jusqu'au bout."""

import argparse
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from test_load_compressed import bert  # noqa: F401
from torch import nn
from transformers import BertModel

import lrq
from lrq import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedResidualLinear,
    TruncatedSVDLinear,
    TTLinear,
    break_even_rank,
    load_compressed,
    rank_for_energy,
    save_weights,
    singular_values,
    stable_rank,
)
from lrq.__main__ import main
from lrq.display import fr

ENGLISH = re.compile(
    r"(?<!--)\b(usage:|error|invalid|argument |expected|choose|required|show|exit|optional|unrecognized|the)\b"
)


@pytest.fixture
def model(bert, rng):  # noqa: F811
    return BertModel(bert).eval()


@pytest.fixture
def source(model, tmp_path):
    """Les poids de BERT, comme transformers les écrit : sans rien de lrq."""
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "poids.safetensors")
    return tmp_path / "poids.safetensors"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "petits.safetensors"


@pytest.fixture
def run(capsys):
    """Exécute une commande ; rend son code de sortie, ce qu'elle imprime, ce qu'elle dit sur la sortie d'erreur."""

    def call(*arguments):
        capsys.readouterr()  # ce que d'autres ont imprimé
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_spectra_are_those_of_the_matrices(run, source, model):
    code, out, err = run("spectrum", source)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["couche", "forme", "90", "%", "99", "%", "équilibre", "stable"]
    linears = {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    assert {line.split()[0] for line in lines} == linears
    for line in lines:
        name, shape, low, high, even, stable = line.split()
        W = model.get_submodule(name).weight.detach()
        S = singular_values(W)
        assert shape == f"{len(W)}×{W.shape[1]}"
        assert [int(low), int(high)] == [rank_for_energy(S, 0.9), rank_for_energy(S, 0.99)]
        assert even.replace(",", ".") == f"{break_even_rank(*W.shape):.1f}"
        assert stable.replace(",", ".") == f"{stable_rank(S):.1f}"
    assert len({len(line) for line in lines}) == 1, "les colonnes ne sont pas alignées"


def test_spectra_of_some_layers(run, source):
    code, out, _ = run("spectrum", source, "--layers", "*query", "pooler.dense")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "encoder.layer.0.attention.self.query",
        "pooler.dense",
    ]


@pytest.mark.parametrize(
    ("options", "kind", "embedded"),
    [
        ((), QuantizedLinear, QuantizedEmbedding),
        (("--bits", 3, "--group-size", 8), QuantizedLinear, QuantizedEmbedding),
        (("--group-size", 8, "--residual-rank", 2), QuantizedResidualLinear, QuantizedEmbedding),
        (("--method", "svd", "--rank", 4), TruncatedSVDLinear, nn.Embedding),
        (("--method", "svd", "--error", 0.3), TruncatedSVDLinear, nn.Embedding),
        (("--method", "tt", "--rank", 5), TTLinear, nn.Embedding),
    ],
)
def test_what_it_writes_is_a_network(options, kind, embedded, run, source, target, model, bert, rng):  # noqa: F811
    code, out, err = run("compress", source, target, *options)
    assert (code, err) == (0, "")
    found, ids = load_compressed(BertModel(bert), target), torch.tensor(rng.integers(0, 30, (2, 5)))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            assert type(found.get_submodule(name)) is kind, name
            assert torch.equal(found.get_submodule(name).bias, layer.bias)
        elif isinstance(layer, nn.Embedding):
            assert type(found.get_submodule(name)) is embedded
    y, z = (net(ids).last_hidden_state.detach() for net in (model, found))
    assert 0 < (y - z).norm() < 1.2 * y.norm(), "deux réseaux sans rapport s'écartent de √2 fois"
    W = model.pooler.dense.weight
    if "--rank" in options:
        layer = found.pooler.dense
        assert layer.rank == 4 if kind is TruncatedSVDLinear else max(layer.ranks) <= 5
    if "--error" in options:
        assert (found.pooler.dense.reconstruct_weight() - W).norm() <= 0.3 * W.norm()
    if "--bits" in options:
        assert found.pooler.dense.quantizer.n_bits == 3
        assert found.pooler.dense.packed.scale.shape == (16, 2)
    assert "pooler.dense" in out
    before, after = source.stat().st_size, target.stat().st_size
    assert out.splitlines()[-1] == f"{target} : {fr(after)} octets, {fr(before / after, 2)} fois moins que {source}."
    assert sorted(os.listdir(target.parent)) == sorted([source.name, target.name])
    save_weights(found, target.with_name("deux"))
    again = load_compressed(BertModel(bert), target.with_name("deux"))
    assert torch.equal(again(ids).last_hidden_state, z)


def test_what_is_excluded_is_kept(run, source, target, model, bert):  # noqa: F811
    options = ("--exclude", "*pooler*", "--layers", "*dense", "--group-size", 8)
    assert run("compress", source, target, *options)[0] == 0
    found = load_compressed(BertModel(bert), target)
    assert torch.equal(found.pooler.dense.weight, model.pooler.dense.weight)
    assert isinstance(found.encoder.layer[0].output.dense, QuantizedLinear)
    assert isinstance(found.encoder.layer[0].attention.self.query, nn.Linear)
    assert isinstance(found.embeddings.word_embeddings, nn.Embedding)


def test_embeddings_are_those_one_says(run, randn, tmp_path):
    tensors = {"table.weight": randn(12, 8), "suite.weight": randn(4, 8), "suite.bias": randn(4), "autre": randn(3)}
    tensors |= {"norme.weight": randn(8), "entiers.weight": torch.ones(2, 2, dtype=torch.int32)}
    save_file(tensors, tmp_path / "a")
    assert run("compress", tmp_path / "a", tmp_path / "b", "--embeddings", "table", "--group-size", 4)[0] == 0
    model = nn.ModuleDict(
        {"table": nn.Embedding(12, 8), "suite": nn.Linear(8, 4), "norme": nn.LayerNorm(8, bias=False)}
    )
    model.register_buffer("autre", torch.zeros(3))
    model["entiers"] = nn.Module()
    model["entiers"].register_buffer("weight", torch.zeros(2, 2, dtype=torch.int32))
    found = load_compressed(model, tmp_path / "b")
    assert isinstance(found["table"], QuantizedEmbedding)
    assert torch.equal(found.autre, tensors["autre"])
    assert torch.equal(found["entiers"].weight, tensors["entiers.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_precision(dtype, run, randn, tmp_path):
    save_file({"a.weight": randn(12, 8, dtype=dtype), "a.bias": randn(12, dtype=dtype)}, tmp_path / "a")
    for method in ("quantize", "svd", "tt"):
        assert run("compress", tmp_path / "a", tmp_path / method, "--method", method)[0] == 0
        found = load_compressed(nn.ModuleDict({"a": nn.Linear(8, 12, dtype=dtype)}), tmp_path / method)
        assert found["a"](randn(2, 8, dtype=dtype)).dtype == dtype
    assert run("spectrum", tmp_path / "a")[0] == 0


def test_a_file_of_save_weights(run, linear, tmp_path):
    """Ses tenseurs partagés ne sont écrits qu'une fois : celui que l'on comprime ne peut en être."""
    model = nn.ModuleDict({"a": linear(8, 8), "b": linear(8, 8), "c": linear(8, 8)})
    model["b"].weight = model["a"].weight
    save_weights(model, tmp_path / "source")
    code, _, err = run("compress", tmp_path / "source", tmp_path / "petit")
    assert (code, err) == (
        1,
        f"{tmp_path / 'source'} : b.weight est le même tenseur que a.weight ; donnez --exclude a.\n",
    )
    assert run("compress", tmp_path / "source", tmp_path / "petit", "--exclude", "a")[0] == 0
    found = load_compressed(model, tmp_path / "petit")
    assert found["a"].weight is found["b"].weight
    assert isinstance(found["c"], QuantizedLinear)
    code, _, err = run("compress", tmp_path / "petit", tmp_path / "encore")
    assert (code, err) == (1, f"{tmp_path / 'petit'} : ce réseau est déjà comprimé.\n")


# --- les refus --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["spectrum", "compress"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(command, kept, run, source, target):
    source.write_bytes(source.read_bytes()[: int(kept * source.stat().st_size)])
    code, out, err = run(command, source, *([target] if command == "compress" else []))
    assert (code, out) == (1, "")
    assert err.startswith(f"{source} : fichier tronqué ou qui n'est pas un safetensors")
    assert not target.exists()


def test_refusals_name_what_is_wrong(run, source, target, tmp_path, randn):
    save_file({"norme.weight": torch.ones(4), "conv.weight": torch.ones(2, 2, 3, 3)}, tmp_path / "sans")
    save_file({"a.weight": randn(4, 4) / 0}, tmp_path / "nan")
    full = tmp_path / "déjà"
    full.write_text("précieux")
    where = (source, target)
    cases = [
        (("compress", source, full), f"{full} existe déjà ; effacez-le, ou choisissez un autre nom."),
        (("compress", source, source), f"{source} existe déjà"),
        (("compress", tmp_path / "absent", target), f"{tmp_path / 'absent'} : fichier introuvable."),
        (("spectrum", tmp_path / "absent"), f"{tmp_path / 'absent'} : fichier introuvable."),
        (("spectrum", tmp_path), f"{tmp_path} : fichier introuvable."),
        (("compress", source, tmp_path / "nulle" / "part"), f"{tmp_path / 'nulle'} : dossier introuvable."),
        (("spectrum", tmp_path / "sans"), f"{tmp_path / 'sans'} : aucune matrice de poids"),
        (("compress", tmp_path / "sans", target), f"{tmp_path / 'sans'} : aucune matrice de poids"),
        (("spectrum", tmp_path / "nan"), "a : 16 élément(s) sur 16 sont NaN ou infinis"),
        (("compress", tmp_path / "nan", target), "16 élément(s) sur 16 sont NaN ou infinis"),
        (("spectrum", source, "--layers", "corps.*"), "le motif 'corps.*' ne désigne aucune couche ; noms : 'emb"),
        (("compress", *where, "--exclude", "corps.*"), "le motif 'corps.*' ne désigne aucune couche"),
        (("compress", *where, "--exclude", "*"), f"{source} : aucune matrice à comprimer par quantize."),
        (
            ("compress", *where, "--method", "svd", "--layers", "emb*"),
            f"{source} : aucune matrice à comprimer par svd.",
        ),
        (("compress", *where, "--bits", "9"), "bits : reçu 9, attendu un entier entre 1 et 8."),
        (("compress", *where, "--group-size", "0"), "group_size : reçu 0"),
        (("compress", *where, "--method", "svd", "--rank", "0"), "rank : reçu 0, attendu un entier ≥ 1."),
        (("compress", *where, "--method", "svd", "--error", "2"), "error_threshold : reçu 2.0"),
        (("compress", *where, "--rank", "4"), "--rank est une option de --method svd ou tt, pas de quantize."),
        (("compress", *where, "--error", "0.1"), "--error est une option de --method svd, pas de quantize."),
        (
            ("compress", *where, "--method", "tt", "--error", "0.1"),
            "--error est une option de --method svd, pas de tt.",
        ),
        (
            ("compress", *where, "--method", "svd", "--bits", "4"),
            "--bits est une option de --method quantize, pas de svd.",
        ),
        (
            ("compress", *where, "--method", "tt", "--residual-rank", "4"),
            "--residual-rank est une option de --method quan",
        ),
    ]
    before = sorted(os.listdir(tmp_path))
    for arguments, message in cases:
        code, _, err = run(*arguments)
        assert code == 1, arguments
        assert err.startswith(message) or message in err.splitlines()[0], err
        assert not ENGLISH.search(err), err
        assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == before
    assert full.read_text() == "précieux"


def test_a_refused_layer_is_named(run, randn, tmp_path):
    save_file({"a.weight": randn(4, 4), "b.weight": randn(4, 4) / 0}, tmp_path / "nan")
    assert "Couche refusée : 'b'." in run("compress", tmp_path / "nan", tmp_path / "sortie")[2]


def test_a_full_disk_leaves_nothing(run, source, target, monkeypatch):
    class Full:
        def __init__(self, path):
            self.file = open(path, "xb")  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, content):
            self.file.write(content[:100])
            raise OSError(28, "plus de place")

    whole = type(target).open
    monkeypatch.setattr(
        "pathlib.Path.open", lambda self, mode="r", **o: Full(self) if "x" in mode else whole(self, mode, **o)
    )
    code, _, err = run("compress", source, target)
    assert code == 1
    assert f"Rien n'a été écrit dans {target}" in err
    assert os.listdir(target.parent) == [source.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "il manque : commande"),
        (("dessine", "a"), "commande : reçu 'dessine', attendu l'un de 'spectrum', 'compress'"),
        (("spectrum",), "il manque : poids.safetensors"),
        (("compress", "a"), "il manque : petits.safetensors"),
        (("compress", "a", "b", "--bits", "quatre"), "--bits : reçu 'quatre', attendu un nombre (int)"),
        (("compress", "a", "b", "--bits"), "--bits : attend une valeur"),
        (("compress", "a", "b", "--exclude"), "--exclude : attend au moins une valeur"),
        (("compress", "a", "b", "--method", "gptq"), "--method : reçu 'gptq', attendu l'un de 'quantize', 'svd', 'tt'"),
        (("compress", "a", "b", "--rank", "4", "--error", "0.1"), "--error : ne va pas avec --rank"),
        (("compress", "a", "b", "--e", "0.1"), "--e peut abréger --error, --exclude, --embeddings"),
        (("spectrum", "a", "--rapide"), "arguments inconnus : --rapide"),
        (("spectrum", "a", "--help=3"), "n'attend pas de valeur, reçu '3'"),
    ],
)
def test_bad_command_lines_are_refused_in_french(arguments, message, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("usage : python -m lrq")
    assert not ENGLISH.search(err), err


@pytest.mark.parametrize(
    "foreign",
    ["", "[1, 2]" + 64 * "0", "rien de tel" + 64 * "0", '{"alias": 3}' + 64 * "0", '{"alias": {"b": 3}}' + 64 * "0"],
)
def test_metadata_of_another_tool_is_named(foreign, run, tmp_path):
    save_file({"a.weight": torch.eye(8)}, tmp_path / "a.safetensors", {"lrq": foreign})
    code, _, err = run("compress", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert code == 1
    assert "sa métadonnée « lrq » n'est pas de save_weights" in err
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"lrq {lrq.__version__}\n", "")


@pytest.mark.parametrize("arguments", [("--help",), ("spectrum", "-h"), ("compress", "--help")], ids=str)
def test_the_help_is_french_to_the_end(arguments, run):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage : python -m lrq")
    assert "montre cette aide" in out
    assert not ENGLISH.search(out), out
    assert not re.search(r"\w:$", out, re.MULTILINE), "un deux-points sans espace"


def test_argparse_is_left_as_it_was(run):
    before = argparse._
    run("--help")
    run("spectrum")
    assert argparse._ is before


# --- dans un autre processus ------------------------------------------------------------------------------------------

# La mémoire anonyme, celle que le programme s'alloue : les pages d'un fichier lu en place n'en sont pas.
MEASURE = """
import re, sys, threading, time
from lrq.__main__ import main

def now():
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(r"RssAnon:\\s*(\\d+)", file.read())[1])

source, target = sys.argv[1:]
main(["spectrum", source, "--layers", "0"])  # ce qui n'est chargé qu'une fois l'est
for arguments in (["spectrum", source], ["compress", source, target, "--method", "svd", "--rank", "8"]):
    start, highest, over = now(), [0], threading.Event()
    def watch():
        while not over.is_set():
            highest[0] = max(highest[0], now())
            time.sleep(0.002)
    watcher = threading.Thread(target=watch)
    watcher.start()
    code = main(arguments)
    over.set()
    watcher.join()
    print("mesure", code, highest[0] - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="la mémoire se lit dans /proc")
def test_tensors_are_read_one_after_the_other(randn, tmp_path):
    count, size = 60, 384
    save_file({f"{i}.weight": randn(size, size) for i in range(count)}, tmp_path / "gros")
    whole = 4 * count * size**2
    settings = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    program = [sys.executable, "-c", MEASURE, str(tmp_path / "gros"), str(tmp_path / "petit")]
    run = subprocess.run(program, env=settings, capture_output=True, text=True, check=True, timeout=120)
    measured = re.findall(r"^mesure (\d+) (\d+)$", run.stdout, re.MULTILINE)
    print(f"fichier {whole / 1e6:.1f} Mo ;", *(f"{int(peak) / 1e6:.1f} Mo" for _, peak in measured))
    assert [code for code, _ in measured] == ["0", "0"]
    assert all(int(peak) < whole / 2 for _, peak in measured)
    assert int(measured[1][1]) > (tmp_path / "petit").stat().st_size, "la mesure ne voit rien"


def test_it_runs_as_a_module(source, target):
    target.write_text("précieux")
    command = [sys.executable, "-m", "lrq", "compress", str(source), str(target)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"{target} existe déjà ; effacez-le, ou choisissez un autre nom.\n"
