"""Chaque entrée de book/errata.md a ici son test : l'erreur du cours est reproduite, puis lrq répond juste.

Les lignes du cours s'exécutent depuis des chaînes, que le formateur de code laisse telles quelles ; le peu qui les
entoure est écrit pour ces tests. Chaque nombre de la page est formé à partir de la valeur mesurée.
"""

import contextlib
import copy
import inspect
import io
import math
import re
import textwrap
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrq import (
    ActivationHistogram,
    ActivationQuantizer,
    CombinedCompressionPipeline,
    CompactSVDLinear,
    FactorizedLinear,
    FakeQuantizeModule,
    LoRACompression,
    LoRALayer,
    LowRankAnalysis,
    MemoryEfficientCompression,
    MultiStageFactorizedLinear,
    ParallelCompression,
    PerChannel,
    PTQCompression,
    QATLowRankLinear,
    QATTTLinear,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedTTLinear,
    SVDCompressedLinear,
    SVDCompression,
    TensorTrainCompression,
    TruncatedSVDLinear,
    TTLinear,
    TTQuantizer,
    TuckerQuantizer,
    UniformQuantizer,
    analyze_combined_compression,
    analyze_cumulative_error,
    analyze_forward_error,
    analyze_svd_approximation_error,
    analyze_tn_quantization_impact,
    balanced_factors,
    break_even_rank,
    combined_error_analysis,
    compare_factorized_vs_standard,
    compression_error_tradeoff,
    convert_model_to_lora,
    energy_analysis,
    find_optimal_rank,
    quantize_symmetric,
    replace_linears,
    singular_values,
    stored_bytes,
    train_qat_low_rank,
    truncated_svd,
    tt_product,
    tt_svd,
    tucker_contract,
)
from lrq.models import (
    accuracy,
    encoder_linears,
    load_digits_data,
    load_digits_network,
    load_minilm,
    load_minilm_weights,
)

PAGE = Path(__file__).parents[1] / "book" / "errata.md"
TEST_NAME = re.compile(r"test_e(\d+)_(\d+)_(\d+)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NATURES = ["exception", "silence", "énoncé", "coût"]
PARTS = ["Le cours écrit|Le cours annonce|La ligne piège", "Ce que cela donne", "Ce que fait `lrq`"]


# --- La page ----------------------------------------------------------------------------------------------------------


def words(text):
    """Le texte, où toute suite d'espaces (insécables et fines comprises) devient une espace."""
    return " ".join(text.split())


def entries():
    """{« E11.0-1 » : texte de l'entrée, titre compris}."""
    sections = re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {match[0]: text for text in sections if (match := re.match(r"E[\d.]+-\d+", text))}


def natures(entry):
    """Ce que l'entrée annonce entre parenthèses : « exception », « silence »…"""
    found = re.search(r"^\*\*Ce que cela donne \(([^)]+)\)\.\*\*", entries()[entry], re.MULTILINE)
    return found[1].split(", ") if found else []


def reproductions():
    """{« E11.0-1 » : fonction test_e11_0_1}."""
    found = {TEST_NAME.fullmatch(name): test for name, test in globals().items()}
    return {"E{}.{}-{}".format(*match.groups()): test for match, test in found.items() if match}


SAID, STOPPED = [], []


def stops(error, match=None):
    """`pytest.raises` pour les lignes du cours : l'entrée doit annoncer une exception."""
    STOPPED.append(error)
    return pytest.raises(error, match=match)


def says(entry, text):
    """L'entrée de la page contient ce texte, aux espaces près, et pas seulement au milieu d'un autre nombre."""
    text = words(text)
    whole = rf"(?<!\w)(?<!\d[, ]){re.escape(text)}(?!\w|[, ]\d)"
    assert re.search(whole, words(entries()[entry])), f"{entry} ne dit pas « {text} »"
    SAID.append(whole)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """De petites matrices : plusieurs fils d'exécution coûtent plus qu'ils ne rapportent, surtout à plusieurs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_number_is_said(request):
    """Une fois les textes vérifiés retirés de l'entrée, il n'y reste aucun nombre ; elle dit si le cours s'arrête."""
    SAID.clear()
    STOPPED.clear()
    yield
    if match := TEST_NAME.fullmatch(request.node.name):
        entry = "E{}.{}-{}".format(*match.groups())
        assert bool(STOPPED) == ("exception" in natures(entry)), f"{entry} : {natures(entry)}, arrêts vus : {STOPPED}"
        prose = words(FENCE.sub("", entries()[entry]))
        said = sorted(SAID, key=len, reverse=True)  # le plus long d'abord : un texte peut en contenir un autre
        for whole in [r"^E[\d.]+-\d+", *said, r"E11\.\d-\d+", r"section 11\.\d", r"`[^`]*`"]:
            prose = re.sub(whole, "", prose)
        assert not re.search(r"(?<!\w)\d.{,20}", prose), f"nombre sans mesure dans : {prose}"


def fr(value, digits=0):
    """Un nombre à la française : −1 234,5."""
    return f"{value:,.{digits}f}".translate(str.maketrans(",.-", " ,−"))


def test_entries_and_tests_are_the_same():
    assert entries().keys() == reproductions().keys()
    assert entries()
    titles = re.findall(r"^### (E[\d.]+-\d+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(titles) == len(set(titles)), "deux entrées portent le même numéro"


def test_the_summary_counts_the_entries():
    """Le tableau de tête, recompté : une ligne par section, une colonne par nature."""
    page = PAGE.read_text(encoding="utf-8")
    found = {entry: natures(entry) for entry in entries()}
    assert {nature for said in found.values() for nature in said} <= set(NATURES)
    assert all(found.values()), f"sans nature : {[entry for entry, said in found.items() if not said]}"
    sections = re.findall(r"^## Section ([\d.]+)", page, re.MULTILINE)
    lines = [(name, f"E{name}-") for name in sections] + [("Toutes", "E")]
    for shown, prefix in lines:
        kept = [said for entry, said in found.items() if entry.startswith(prefix)]
        row = [shown, len(kept), *(sum(nature in said for said in kept) for nature in NATURES)]
        assert "| " + " | ".join(map(str, row)) + " |" in page, f"la ligne attendue du tableau : {row}"


def source_of(test):
    """Le texte d'un test, et des fonctions de ce fichier qu'il appelle."""
    called = [globals().get(name) for name in test.__code__.co_names]
    return "\n".join(inspect.getsource(f) for f in (test, *called) if getattr(f, "__module__", None) == __name__)


@pytest.mark.parametrize("entry", entries() if PAGE.exists() else [])
def test_what_is_quoted_is_what_runs(entry):
    text = entries()[entry]
    assert [part for part in PARTS if re.search(rf"^\*\*({part})", text, re.MULTILINE)] == PARTS
    quoted, ours = [code.strip().splitlines() for _, code in FENCE.findall(text)]
    assert len(quoted) <= 2, "une citation du cours tient en deux lignes"
    assert len(ours) == 1
    source = {words(line) for line in source_of(reproductions()[entry]).splitlines()}
    assert {words(line) for line in quoted} <= source
    assert words(ours[0].split("  #")[0]) in source


# --- Oracles et lignes du cours ---------------------------------------------------------------------------------------


def course(code, **names):
    """Exécute des lignes du cours ; ce qu'elles définissent devient des attributs, ce qu'elles impriment `printed`."""
    namespace = {"torch": torch, "nn": nn, "np": np, **names}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(textwrap.dedent(code), namespace)
    return SimpleNamespace(**namespace, printed=printed.getvalue())


def relative(W, approximation):
    """‖W − Ŵ‖/‖W‖ en float64, par NumPy."""
    W, approximation = (t.detach().double().numpy() for t in (W, approximation))
    return np.linalg.norm(W - approximation) / np.linalg.norm(W)


def energies(W):
    """Les σ², en décroissant : valeurs propres de la matrice de Gram, en float64, par NumPy et sans SVD."""
    W = W.detach().double().numpy()
    gram = W @ W.T if len(W) <= W.shape[1] else W.T @ W
    return np.linalg.eigvalsh(gram)[::-1].clip(0)


def eckart_young(W, rank):
    """La plus petite erreur relative possible au rang `rank`."""
    return np.sqrt(energies(W)[rank:].sum() / energies(W).sum())


def smallest_rank(W, target_error):
    """Le premier rang dont l'erreur ne dépasse pas la cible."""
    s2 = energies(W)
    return next(r for r in range(1, len(s2) + 1) if s2[r:].sum() <= target_error**2 * s2.sum())


def energy_rank(W, threshold):
    """Le premier rang dont l'énergie atteint le seuil."""
    s2 = energies(W)
    return int(np.argmax(np.cumsum(s2) / s2.sum() >= threshold)) + 1


def true_rank(W):
    """Le nombre de valeurs singulières au-dessus du bruit d'arrondi."""
    s2 = energies(W)
    return int((s2 > 1e-10 * s2[0]).sum())


# --- Section 11.0 -----------------------------------------------------------------------------------------------------


def test_e11_0_1():
    lines = course("""
        def factors(W, rank):
            U, S, Vt = torch.svd(W)
            Vt_r = Vt[:rank, :]
            root = torch.diag(torch.sqrt(S[:rank]))
            return U[:, :rank] @ root, root @ Vt_r
    """)
    torch.manual_seed(0)
    rank = 64
    wide, square, tall = nn.Linear(1024, 512), nn.Linear(512, 512), nn.Linear(256, 512)

    U, V = lines.factors(wide.weight.data, rank)
    with stops(RuntimeError):
        torch.randn(1, 1024) @ V.T @ U.T
    says("E11.0-1", f"rang {rank}")
    says("E11.0-1", f"{wide.in_features} → {wide.out_features}")
    says("E11.0-1", f"« {wide.weight.numel() / (U.numel() + V.numel()):.2f}x »")
    layer = SVDCompressedLinear.from_linear(wide, rank)
    assert relative(wide.weight, layer.reconstruct_weight()) == pytest.approx(eckart_young(wide.weight, rank), rel=1e-5)
    says("E11.0-1", f"×{fr(layer.compression_ratio(), 2)}")
    for linear in (square, tall):
        U, V = lines.factors(linear.weight.data, rank)
        error = relative(linear.weight, U @ V)
        best = eckart_young(linear.weight, rank)
        says("E11.0-1", f"{linear.in_features} → {linear.out_features}")
        says("E11.0-1", f"{fr(error, 2)} au lieu de {fr(best, 2)}")
        assert error > relative(linear.weight, torch.zeros_like(linear.weight)) > best
    says("E11.0-1", f"zéros donnerait {fr(relative(tall.weight, torch.zeros_like(tall.weight)))}")

    for linear in (square, tall):
        layer = SVDCompressedLinear.from_linear(linear, rank=64)
        best = eckart_young(linear.weight, rank)
        assert relative(linear.weight, layer.reconstruct_weight()) == pytest.approx(best, rel=1e-5)
        assert layer.reconstruction_error(linear.weight) == pytest.approx(best, rel=1e-5)


def test_e11_0_2():
    lines = course("""
        class Adapter(nn.Module):
            def __init__(self, original, lora_A, lora_B, alpha=1.0):
                super().__init__()
                self.original, self.lora_A, self.lora_B, self.alpha = original, lora_A, lora_B, alpha

            def forward(self, x):
                return self.original(x) + self.alpha * (x @ self.lora_A.T @ self.lora_B.T)

            def merge_weights(self):
                delta_W = self.alpha * (self.lora_B @ self.lora_A)
                self.original.weight.data += delta_W
    """)
    torch.manual_seed(0)
    linear, x = nn.Linear(768, 768), torch.randn(32, 768)
    lora_layer = LoRALayer(copy.deepcopy(linear), rank=16)
    nn.init.normal_(lora_layer.lora_B)
    theirs = lines.Adapter(copy.deepcopy(linear), lora_layer.lora_A, lora_layer.lora_B)
    update = (lora_layer.lora_B @ lora_layer.lora_A).detach()  # l'oracle : W₀ + BA, une fois

    @torch.no_grad()
    def times_counted(layer):
        shift, once = layer(x) - linear(x), x @ update.T
        return float((shift * once).sum() / (once * once).sum())

    theirs.merge_weights()
    says("E11.0-2", f"compte {fr(times_counted(theirs), 2)} fois")
    theirs.merge_weights()
    says("E11.0-2", f"{fr(times_counted(theirs), 2)} fois après deux")

    before = lora_layer(x)
    lora_layer.merge_weights()
    torch.testing.assert_close(lora_layer(x), before, rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="fusionné"):
        lora_layer.merge_weights()
    says("E11.0-2", f"compte {fr(times_counted(lora_layer), 2)} fois")
    lora_layer.unmerge_weights()
    assert torch.equal(lora_layer.original.weight, linear.weight)


def test_e11_0_3():
    lines = course("""
        def quantize_tensor(t, n_bits):
            scale = t.abs().max() / (2 ** (n_bits - 1) - 1)
            q = torch.round(t / scale)
            return q, scale

        original_size = 1024 * 512 * 4
        compressed_size = (64 * (1024 + 512)) * 1  # int8 bytes
    """)
    torch.manual_seed(0)
    says("E11.0-3", f"{fr(lines.compressed_size / 1024)} Kio")
    says("E11.0-3", f"×{fr(lines.original_size / lines.compressed_size, 1)}")
    for n_bits in (4, 8):
        factors = [torch.randn(512, 64), torch.randn(64, 1024)]
        codes = [lines.quantize_tensor(t, n_bits)[0] for t in factors]
        assert {q.dtype for q in codes} == {torch.float32}
        held = sum(t.nbytes for t in codes + factors)
        says("E11.0-3", f"{fr(held / 1024)} Kio")
        says("E11.0-3", f"×{fr(lines.original_size / held, 1)}")

        layer = QuantizedLowRankLayer(1024, 512, rank=64, n_bits=n_bits)
        layer.quantize()
        size, ratio = layer.nbytes(), layer.compression_ratio()
        assert size == sum(t.nbytes for t in layer.state_dict().values())
        assert size == 64 * (1024 + 512) * n_bits // 8 + 2 * 4  # les codes serrés, deux échelles float32
        assert ratio == lines.original_size / size
        says("E11.0-3", f"{fr(size)} octets à {n_bits} bits (×{fr(ratio, 1)})")


def test_e11_0_4():
    lines = course("""
        class Compressed(nn.Module):
            def __init__(self, U, V):
                super().__init__()
                self.U, self.V = U, V

            def forward(self, x):
                return x @ self.V.T @ self.U.T
    """)
    network, (_, (x, y)) = load_digits_network("mlp"), load_digits_data()

    def theirs(linear):  # au rang plein, avec la bonne SVD : il ne manque que le biais
        U, V = balanced_factors(linear.weight, min(linear.weight.shape))
        return lines.Compressed(U, V.T)

    def ours(linear):
        rank = min(linear.weight.shape)
        compressed = SVDCompressedLinear.from_linear(linear, rank)
        assert torch.equal(compressed.bias, linear.bias)
        assert compressed.bias.data_ptr() != linear.bias.data_ptr()
        return compressed

    says("E11.0-4", f"{len(y)} images")
    says("E11.0-4", f"de {fr(100 * accuracy(network, x, y), 1)} %")
    says("E11.0-4", f"à {fr(100 * accuracy(replace_linears(network, theirs), x, y), 1)} %")
    compressed = replace_linears(network, ours)
    torch.testing.assert_close(compressed(x), network(x), rtol=1e-3, atol=1e-3)


def test_e11_0_5():
    lines = course("""
        class Quantized(nn.Module):
            def __init__(self, in_features, out_features, rank):
                super().__init__()
                self.U = nn.Parameter(torch.randn(out_features, rank))
                self.V = nn.Parameter(torch.randn(rank, in_features))
    """)
    torch.manual_seed(0)
    theirs, x = lines.Quantized(1024, 512, 64), torch.randn(2000, 1024)
    spread = float((x @ theirs.V.T @ theirs.U.T).detach().std())
    assert spread == pytest.approx((1024 * 64) ** 0.5, rel=0.05)  # n termes, puis r termes, de variance 1
    says("E11.0-5", f"écart type d'environ {fr(spread)}")
    says("E11.0-5", f"{fr(float(QuantizedLowRankLayer(1024, 512, 64)(x).detach().std()), 2)} dans `lrq`")

    linear = nn.Linear(1024, 512)
    linear.weight.data = torch.randn(512, 64) @ torch.randn(64, 1024) / 256  # de rang 64 exactement
    layer = QuantizedLowRankLayer.from_linear(linear, rank=64, n_bits=8)
    error = relative(linear.weight, layer.reconstruct_weight())
    says("E11.0-5", "de rang 64")
    says("E11.0-5", f"à {fr(100 * error, 1)} % près sur 8 bits")
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=6 * error * float(linear(x).detach().std()))


def test_e11_0_6():
    lines = course("""
        class Quantized(nn.Module):
            def __init__(self, n_bits=8):
                super().__init__()
                self.n_bits = n_bits
                self.U, self.V = nn.Parameter(torch.randn(512, 64)), nn.Parameter(torch.randn(64, 1024))

            def quantize(self):
                quantize_tensor = lambda t, n_bits: (torch.round(t * 30), torch.tensor(1 / 30))
                self.U_q, self.U_scale = quantize_tensor(self.U.data, self.n_bits)

            def forward_quantized(self, x):
                return x @ self.V.T @ (self.U_q * self.U_scale).T
    """)
    torch.manual_seed(0)
    x, theirs = torch.randn(3, 1024), lines.Quantized()
    with stops(AttributeError):
        theirs.forward_quantized(x)
    theirs.quantize()
    with stops(NotImplementedError):
        nn.Sequential(theirs)(x)
    assert set(theirs.state_dict()) == {"U", "V"}
    says("E11.0-6", f"{fr(sum(t.nbytes for t in theirs.state_dict().values()))} octets")

    layer = QuantizedLowRankLayer(1024, 512, rank=64, n_bits=8)
    exact = x @ layer.V.detach().T @ layer.U.detach().T
    layer.quantize()
    y = layer(x)
    assert relative(exact, y) < 0.02
    assert torch.equal(nn.Sequential(layer)(x), y)
    saved, reloaded = layer.state_dict(), QuantizedLowRankLayer(1024, 512, rank=64, n_bits=8)
    says("E11.0-6", f"{fr(sum(t.nbytes for t in saved.values()))} octets")
    reloaded.quantize()
    reloaded.load_state_dict(saved)
    assert torch.equal(reloaded(x), y)


def test_e11_0_7():
    lines = course("""
        def quantize_tensor(t, n_bits):
            scale = t.abs().max() / (2 ** (n_bits - 1) - 1)
            return torch.round(t / scale), scale

        def analyze(S):
            total_energy, cumulative_energy = (S ** 2).sum(), torch.cumsum(S ** 2, dim=0)
            ratios = cumulative_energy / total_energy
            effective_rank = min(torch.searchsorted(ratios, torch.tensor(0.99)).item() + 1, len(S))
            return {
                'effective_rank': effective_rank,
                'energy_captured': (cumulative_energy[effective_rank-1] / total_energy).item()
            }
    """)
    torch.manual_seed(0)
    zero, t = torch.zeros(8, 6), torch.randn(8, 6)
    assert torch.isnan(lines.quantize_tensor(zero, 8)[0]).all()
    q, scale = lines.quantize_tensor(t, 1)
    assert torch.isinf(scale)
    assert torch.isnan(q * scale).all()
    theirs = lines.analyze(torch.zeros(6))
    assert np.isnan(theirs["energy_captured"])
    says("E11.0-7", f"rang {theirs['effective_rank']} sur {min(zero.shape)}")
    says("E11.0-7", "1 bit")

    q, scale = quantize_symmetric(zero, n_bits=8)
    assert torch.equal(q * scale, zero)
    q, scale = quantize_symmetric(t, n_bits=1)
    np.testing.assert_allclose(q * scale, np.sign(t.numpy()) * np.abs(t.numpy()).mean(), rtol=1e-6)
    analysis = LowRankAnalysis.analyze_weight_matrix(zero)
    assert analysis["energy_captured"] == 1.0
    says("E11.0-7", f"rang {analysis['effective_rank']}")


def test_e11_0_8():
    lines = course("""
        def singular_values(W):
            U, S, Vt = torch.svd(W)
            return {
                'singular_values': S.numpy(),
            }
    """)
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    with stops(RuntimeError, match="requires grad"):
        lines.singular_values(linear.weight)
    for dtype in (torch.float16, torch.bfloat16):
        with stops(RuntimeError):  # NotImplementedError en est une
            lines.singular_values(linear.weight.detach().to(dtype))

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        linear = linear.to(dtype)
        analysis = LowRankAnalysis.analyze_weight_matrix(linear.weight)
        oracle = np.linalg.svd(linear.weight.detach().double().numpy(), compute_uv=False)
        np.testing.assert_allclose(analysis["singular_values"], oracle, rtol=1e-4)
        assert analysis["effective_rank"] == energy_rank(linear.weight, 0.99)


def test_e11_0_9():
    lines = course("""
        class Adapter(nn.Module):
            def __init__(self, original, rank):
                super().__init__()
                self.original, in_features, out_features = original, original.in_features, original.out_features
                self.lora_A = nn.Parameter(torch.randn(rank, in_features) / np.sqrt(in_features))
                self.lora_B = nn.Parameter(torch.zeros(out_features, rank))

            def forward(self, x):
                return self.original(x) + x @ self.lora_A.T @ self.lora_B.T
    """)
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float64):
        linear, x = nn.Linear(64, 32, dtype=dtype), torch.randn(3, 64, dtype=dtype)
        with stops(RuntimeError):
            lines.Adapter(linear, 4)(x)
        adapter = LoRALayer(linear, rank=4)
        assert torch.equal(adapter(x), linear(x))
        assert {p.dtype for p in adapter.parameters()} == {dtype}


def test_e11_0_10():
    torch.manual_seed(0)
    W = torch.randn(1024, 512)
    rank = energy_rank(W, 0.99)
    lines = course(
        """
        analysis = {'compression_ratio': W.numel() / (rank * (W.shape[0] + W.shape[1]))}
        print(f"  Compression: {analysis['compression_ratio']:.2f}x")
        """,
        W=W,
        rank=rank,
    )
    m, n = W.shape
    says("E11.0-10", f"{m} × {n}")
    says("E11.0-10", f"{fr(99)} % de l'énergie demandent le rang {rank}")
    says("E11.0-10", f"« {words(lines.printed)} »")
    says("E11.0-10", f"{fr(rank * (m + n))} nombres au lieu de {fr(m * n)}")
    says("E11.0-10", f"{fr(100 * (rank * (m + n) / (m * n) - 1))} % de plus")
    says("E11.0-10", f"{fr(n * (m + n))} nombres au rang plein {n}")

    limit = LowRankAnalysis.analyze_weight_matrix(W)["break_even_rank"]
    assert limit == m * n / (m + n)
    assert energy_analysis(W) == rank > limit
    says("E11.0-10", f"rang {fr(limit, 2)}")


def test_e11_0_11():
    lines = course("""
        def analyze(S, threshold):
            cumulative_energy, total_energy = torch.cumsum(S ** 2, dim=0), (S ** 2).sum()
            # Rang effectif (capture threshold% de l'énergie)
            rank = torch.searchsorted(cumulative_energy / total_energy, torch.tensor(threshold)).item() + 1
            return min(rank, len(S))

        def title(energy_threshold):
            print(f"Analyse d'Énergie ({energy_threshold*100:.0f}%):")

        title(99)
    """)
    torch.manual_seed(0)
    W = torch.randn(256, 128)
    S = torch.linalg.svdvals(W)
    says("E11.0-11", f"{W.shape[0]} × {W.shape[1]}")
    says("E11.0-11", f"rang {lines.analyze(S, 99)} sur {len(S)}")
    says("E11.0-11", f"« {words(lines.printed)} »")

    says("E11.0-11", "refuse 99")
    with pytest.raises(ValueError, match=r"energy_threshold : reçu 99, attendu un nombre dans \]0, 1\]"):
        energy_analysis(W, energy_threshold=99)
    with pytest.raises(ValueError, match="threshold : reçu 99"):
        LowRankAnalysis.analyze_weight_matrix(W, threshold=99)
    rank = energy_analysis(W, energy_threshold=0.99)
    assert rank == energy_rank(W, 0.99)
    says("E11.0-11", f"rang {rank}")


def test_e11_0_12():
    base_layer = nn.Linear(768, 768)
    lines = course(
        """
        print(f"Paramètres totaux: {base_layer.weight.numel() + base_layer.bias.numel():,}")
        """,
        base_layer=base_layer,
    )
    base = int(re.sub(r"\D", "", lines.printed))
    adapter = LoRALayer(base_layer, rank=16)
    trained = adapter.lora_A.numel() + adapter.lora_B.numel()
    assert adapter.trainable_parameters() == trained == 16 * (768 + 768)
    assert adapter.total_parameters() == base + trained
    says("E11.0-12", f"{fr(base)} est celui")
    says("E11.0-12", f"{fr(trained)} de plus, soit {fr(base + trained)} (+{fr(100 * trained / base, 2)} %)")
    says("E11.0-12", f"« Réduction: {1 - trained / base:.2%} »")
    share = adapter.trainable_parameters() / adapter.total_parameters()
    assert share == trained / sum(p.numel() for p in adapter.parameters())
    says("E11.0-12", f"{fr(100 * share, 2)} %")


def test_e11_0_13():
    lines = course("""
        def quantize_tensor(t, n_bits):
            q = torch.round(t / (t.abs().max() / (2 ** (n_bits - 1) - 1)))
            free = q
            q = torch.clamp(q, -2**(n_bits-1), 2**(n_bits-1)-1)
            return q, free
    """)
    generator = torch.Generator().manual_seed(0)
    for n_bits in range(2, 9):
        top = 2 ** (n_bits - 1) - 1
        for _ in range(200):
            t = torch.randn(300, generator=generator)
            q, free = lines.quantize_tensor(t, n_bits)
            assert torch.equal(q, free)
            assert q.min() >= -top
            codes, scale = quantize_symmetric(t, n_bits=n_bits)
            assert torch.equal(codes.float(), q)
            assert float((codes * scale - t).abs().max()) <= float(scale) * 0.5001  # l'oracle : un demi-pas
        if n_bits == 2:
            says("E11.0-13", f"{n_bits} bits, {len(q.unique())} valeurs servent sur {2**n_bits}")
    lines = course("""
        def codes(t, scale, q_max):
            return torch.round(t / scale).clamp(-q_max, q_max)
    """)  # la borne de la section 11.4
    assert torch.equal(lines.codes(t, t.abs().max() / top, top), q)
    says("E11.0-13", f"8 bits, le code −{2**7}")
    says("E11.0-13", f"de −{top} à {top}")


def test_e11_0_14():
    lines = course("""
        original_size = 1024 * 512 * 4  # float32 bytes
        print(f"Taille originale: {original_size / 1024:.1f} KB")
    """)
    shown = lines.printed.split(": ")[1].strip()
    layer = nn.Linear(1024, 512, bias=False)
    size = stored_bytes(layer)
    assert size == lines.original_size
    assert float(shown.removesuffix(" KB")) * 1024 == size
    says("E11.0-14", f"par {fr(1024)}")
    says("E11.0-14", f"Diviser par {fr(1024)}")
    says("E11.0-14", f"« {shown} » sont {fr(size)} octets, ou {fr(size / 1000, 1)} ko")
    says("E11.0-14", f"{fr(100 * (1024 / 1000 - 1), 1)} % de plus")
    says("E11.0-14", f"en cachent {fr(100 * ((1024 / 1000) ** 2 - 1), 1)} %")


def test_e11_0_15():
    """
    Cette propriété permet des compressions significatives tout en préservant les performances.
    """
    ranks, weights, halves, ratios, errors = [], [], [], [], []
    model = load_minilm()
    for linear in map(model.get_submodule, encoder_linears(model)):
        W = linear.weight.detach()
        m, n = W.shape
        ranks.append(energy_rank(W, 0.99))
        weights.append(ranks[-1] / break_even_rank(m, n))
        halves.append(eckart_young(W, int(break_even_rank(m, n) / 2)))
        layer = QuantizedLinear.from_linear(linear, n_bits=8)
        ratios.append(layer.compression_ratio())
        errors.append(relative(W, layer.reconstruct_weight()))
    assert min(weights) >= 1
    says("E11.0-15", f"Sur les {len(ranks)} couches")
    says("E11.0-15", f"99 % de l'énergie demandent de {min(ranks)} à {max(ranks)} rangs")
    says("E11.0-15", f"de {fr(min(weights), 2)} à {fr(max(weights), 2)} fois")
    says("E11.0-15", f"se trompent de {fr(100 * min(halves))} % à {fr(100 * max(halves))} %")
    says(
        "E11.0-15",
        f"sur 8 bits, une échelle par ligne, ×{fr(min(ratios), 2)} à ×{fr(max(ratios), 2)} "
        f"pour {fr(100 * max(errors), 1)} % d'erreur au plus",
    )


# --- Section 11.1 -----------------------------------------------------------------------------------------------------


def test_e11_1_1():
    lines = course("""
        def errors(weight_matrix, ranks):
            U, S, Vt = torch.svd(weight_matrix)
            for r in ranks:
                Vt_r = Vt[:r, :]
                W_reconstructed = U[:, :r] @ torch.diag(S[:r]) @ Vt_r
                yield (torch.norm(weight_matrix - W_reconstructed) / torch.norm(weight_matrix)).item()
    """)
    torch.manual_seed(0)
    W = torch.randn(1024, 512)
    m, n = W.shape
    ranks = [1, 2, 3, *range(8, 513, 24)]
    errors = list(lines.errors(W, ranks))
    assert min(errors) > 0.05
    assert (np.diff(errors) > 0).all()
    chosen = ranks[np.argmin(np.abs(np.array(errors) - 0.05))]  # le repli du cours
    says("E11.1-1", f"{m} × {n}")
    says("E11.1-1", f"{fr(5)} % d'erreur")
    says("E11.1-1", f"rang {chosen} (erreur {fr(errors[0], 2)})")
    says("E11.1-1", f"« {m * n / (chosen * (m + n)):.2f}x »")
    says("E11.1-1", f"rang plein {n}, son erreur vaut encore {fr(errors[-1], 2)}")
    with stops(RuntimeError):
        list(lines.errors(W.T, [1]))

    rank = find_optimal_rank(W, target_error=0.05)
    assert eckart_young(W, rank) <= 0.05 < eckart_young(W, rank - 1)
    says("E11.1-1", f"rang {rank}, soit ×{fr(m * n / (rank * (m + n)), 2)}")
    low = torch.randn(256, 10) @ torch.randn(10, 128)
    assert min(lines.errors(low, range(1, 129))) > 0.05
    assert find_optimal_rank(low.T, target_error=1e-4) == 10
    assert find_optimal_rank(low, target_error=1e-4) == 10
    says("E11.1-1", f"exactement de rang {true_rank(low)}")


def test_e11_1_2():
    lines = course("""
        class FactorizedLinear(nn.Module):
            pass

        @classmethod
        def from_linear_svd(cls, linear_layer, rank):
            return cls()

        @staticmethod
        def from_linear_random(linear_layer, rank):
            return FactorizedLinear()
    """)
    torch.manual_seed(0)
    linear = nn.Linear(96, 64)
    with stops(AttributeError):
        lines.FactorizedLinear.from_linear_svd(linear, rank=16)
    with stops(AttributeError):
        lines.FactorizedLinear.from_linear_random(linear, rank=16)
    with stops(TypeError, match="not callable"):
        lines.from_linear_svd(lines.FactorizedLinear, linear, rank=16)
    assert isinstance(lines.from_linear_random(linear, rank=16), lines.FactorizedLinear)

    layer = FactorizedLinear.from_linear_svd(linear, rank=16)
    best = eckart_young(linear.weight, 16)
    assert relative(linear.weight, layer.reconstruct_weight()) == pytest.approx(best, rel=1e-5)
    assert FactorizedLinear.from_linear_random(linear, rank=16)(torch.randn(3, 96)).shape == (3, 64)


def test_e11_1_3():
    lines = course("""
        class Factorized(nn.Module):
            def __init__(self, U, V, bias):
                super().__init__()
                self.U, self.V, self.bias = nn.Parameter(U), nn.Parameter(V), nn.Parameter(bias)

            def forward(self, x):
                intermediate = x @ self.V
                output = intermediate @ self.U.T
                return output
    """)
    torch.manual_seed(0)
    linear, x = nn.Linear(1024, 512), torch.randn(100, 1024)
    theirs = lines.Factorized(*balanced_factors(linear.weight, 512), linear.bias.detach().clone())
    y = theirs(x)
    y.sum().backward()
    assert theirs.bias.grad is None
    assert theirs.U.grad is not None
    m, n = linear.weight.shape
    says("E11.1-3", f"{n} → {m}")
    says("E11.1-3", f"rang plein {min(m, n)}")
    says("E11.1-3", f"{fr(100 * relative(linear(x), y), 1)} %")

    layer = FactorizedLinear.from_linear_svd(linear, rank=512)
    layer(x).sum().backward()
    np.testing.assert_allclose(layer.bias.grad, np.full(m, len(x)))
    oracle = x.double() @ linear.weight.double().T + linear.bias.double()
    assert relative(oracle, layer(x)) < 1e-5


def test_e11_1_4():
    lines = course("""
        class MultiStage(nn.Module):
            def __init__(self, in_features, out_features, ranks):
                super().__init__()
                self.factors = nn.ModuleList()
                prev_dim = in_features
                for i, rank in enumerate(ranks):
                    next_dim = rank
                    if i == len(ranks) - 1:
                        next_dim = out_features
                    self.factors.append(nn.Linear(prev_dim, next_dim, bias=False))
                    prev_dim = next_dim

            def count_parameters(self):
                return sum(f.weight.numel() for f in self.factors)
    """)
    counts = {last: lines.MultiStage(1024, 512, [256, last]).count_parameters() for last in (256, 1)}
    assert len(set(counts.values())) == 1
    says("E11.1-4", f"{fr(counts[1])} paramètres")
    dense = lines.MultiStage(1024, 512, [64]).count_parameters()
    assert dense == 1024 * 512
    says("E11.1-4", f"{fr(dense)} paramètres, ×{fr(1024 * 512 / dense, 2)}")
    assert len(lines.MultiStage(1024, 512, []).factors) == 0

    layer = MultiStageFactorizedLinear(1024, 512, ranks=[256])
    assert layer.count_parameters() == 256 * (1024 + 512) == counts[256]
    says("E11.1-4", f"{layer.in_features} → {layer.ranks[0]} → {layer.out_features}")
    narrow = MultiStageFactorizedLinear(1024, 512, ranks=[64])
    assert true_rank(narrow.reconstruct_weight()) == 64
    says("E11.1-4", f"{fr(narrow.count_parameters())} avec `ranks=[64]`")
    last = MultiStageFactorizedLinear(1024, 512, ranks=[256, 1])
    assert true_rank(last.reconstruct_weight()) == 1
    with pytest.raises(ValueError, match="liste non vide"):
        MultiStageFactorizedLinear(1024, 512, ranks=[])


def test_e11_1_5():
    lines = course("""
        def fallback(errors, target_error):
            ranks = range(1, len(errors) + 1)
            best_rank_idx = np.argmin(np.abs(np.array(errors) - target_error))
            best_rank = ranks[best_rank_idx]
            print(f"Rang optimal (approximatif): {best_rank} (erreur: {errors[best_rank_idx]:.6f})")
            return best_rank
    """)
    torch.manual_seed(0)
    W = torch.randn(256, 128)
    m, n = W.shape
    chosen = lines.fallback([eckart_young(W, r) for r in range(1, 11)], 0.05)
    assert chosen == 10
    says("E11.1-5", f"{m} × {n}")
    says(
        "E11.1-5", f"rang {chosen}, dont l'erreur est {fr(eckart_young(W, chosen), 2)} pour une cible de {fr(0.05, 2)}"
    )
    zero = torch.zeros(256, 128)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        lines.fallback([float("nan")] * 128, 0.05)
    assert torch.isnan(torch.norm(zero - zero) / torch.norm(zero))  # ce que le cours compare à la cible
    says("E11.1-5", f"« {words(printed.getvalue())} »")

    needed = smallest_rank(W, 0.05)
    with pytest.warns(UserWarning, match=f"il faudrait le rang {needed}"):
        rank = find_optimal_rank(W, max_rank=10, target_error=0.05)
    assert rank == 10
    says("E11.1-5", f"il faudrait le rang {needed}")
    assert find_optimal_rank(zero, target_error=0.05) == 1


def test_e11_1_6():
    network = load_digits_network("mlp")
    torch.manual_seed(0)
    lines = course(
        """
        standard = nn.Linear(in_features, out_features)
        """,
        in_features=256,
        out_features=256,
    )
    fresh = compare_factorized_vs_standard(256, 256, rank=24, num_tests=5000, linear_layer=lines.standard)
    result = compare_factorized_vs_standard(256, 256, rank=24, num_tests=5000, linear_layer=network.fc2)
    assert fresh["compression"] == result["compression"] == 256 * 256 / (24 * (256 + 256))
    for linear, measured in ((lines.standard, fresh), (network.fc2, result)):
        W, b = linear.weight.detach().double(), linear.bias.detach().double()
        s2 = torch.linalg.svdvals(W) ** 2
        expected = float((s2[24:].sum() / (s2.sum() + (b**2).sum())).sqrt())  # E‖Ex‖² = ‖E‖² pour x gaussien
        assert measured["error"] == pytest.approx(expected, rel=0.03)
    says("E11.1-6", f"{network.fc2.in_features} → {network.fc2.out_features}")
    says("E11.1-6", f"rang 24 (×{fr(result['compression'], 2)})")
    says("E11.1-6", f"{fr(fresh['error'], 2)} sur la couche tirée au hasard et {fr(result['error'], 2)} sur celle")


def test_e11_1_7():
    lines = course("""
        class Factorized(nn.Module):
            def __init__(self, in_features, out_features, rank):
                super().__init__()
                self.rank = rank
                self.U = nn.Parameter(torch.randn(out_features, rank))
                self.V = nn.Parameter(torch.randn(in_features, rank))
    """)
    torch.manual_seed(0)
    theirs = lines.Factorized(8, 8, rank=100)
    size = theirs.U.numel() + theirs.V.numel()
    says("E11.1-7", f"{theirs.U.shape[0]} × {theirs.V.shape[0]}")
    says("E11.1-7", f"{fr(size)} nombres au lieu de {8 * 8}")
    says("E11.1-7", f"rang {true_rank(theirs.U @ theirs.V.T)}")
    U, V = balanced_factors(nn.Linear(8, 8).weight, 8)
    theirs.U.data, theirs.V.data = U[:, :100], V[:, :100]  # la troncature du cours
    says("E11.1-7", f"`rank` vaut {theirs.rank} pour {theirs.U.shape[1]} colonnes")

    with pytest.raises(ValueError, match=r"rank : reçu 100, attendu au plus min\(m, n\) = 8"):
        FactorizedLinear(8, 8, rank=100)
    with pytest.raises(ValueError, match="rank : reçu 100"):
        FactorizedLinear.from_linear_svd(nn.Linear(8, 8), rank=100)


def test_e11_1_8():
    lines = course("""
        def energy_analysis(S, energy_threshold):
            total_energy = (S ** 2).sum().item()
            cumulative_energy = torch.cumsum(S ** 2, dim=0)
            energy_ratios = cumulative_energy / total_energy
            return min(torch.searchsorted(energy_ratios, torch.tensor(energy_threshold)).item() + 1, len(S))
    """)
    exponent, base, digits = 20, 0.95, 7
    W = 10.0**exponent * torch.eye(8)
    theirs = lines.energy_analysis(W.diagonal(), 0.45)
    rank = energy_analysis(W, energy_threshold=0.45)
    assert rank == energy_rank(W, 0.45)
    says("E11.1-8", f"$10^{{{exponent}}}\\,I$, de taille {len(W)}")
    says("E11.1-8", f"{fr(45)} % de l'énergie demandent le rang {rank} et le cours rend {theirs}")

    W = torch.diag(torch.tensor([base**k for k in range(200)]))
    threshold = 1 - 10.0**-digits
    oracle = energy_rank(W, threshold)
    assert energy_analysis(W, energy_threshold=threshold) == oracle
    says("E11.1-8", f"$\\sigma_k = {fr(base, 2).replace(',', '{,}')}^k$")
    says("E11.1-8", f"$1 - 10^{{-{digits}}}$")
    says("E11.1-8", f"rend {lines.energy_analysis(W.diagonal(), threshold)} au lieu de {oracle}")


def test_e11_1_9():
    lines = course("""
        def find_optimal_rank(weight_matrix, U, S, Vt, target_error):
            for r in range(1, len(S) + 1):
                U_r, S_r, Vt_r = U[:, :r], S[:r], Vt[:r, :]
                W_reconstructed = U_r @ torch.diag(S_r) @ Vt_r
                error = torch.norm(weight_matrix - W_reconstructed, 'fro')
                if error / torch.norm(weight_matrix, 'fro') <= target_error:
                    return r
    """)
    torch.manual_seed(0)
    W = torch.randn(256, 128)
    m, n = W.shape
    U, S, Vh = truncated_svd(W, n)
    with FlopCounterMode(display=False) as theirs:
        reconstructions = lines.find_optimal_rank(W, U, S, Vh, 0.05)
    with FlopCounterMode(display=False) as ours:
        rank = find_optimal_rank(W, target_error=0.05)
    assert rank == reconstructions == smallest_rank(W, 0.05)
    assert theirs.get_total_flops() == sum(2 * m * r * r + 2 * m * r * n for r in range(1, rank + 1))
    assert ours.get_total_flops() == 0
    says("E11.1-9", f"{m} × {n} et {fr(5)} % d'erreur")
    says("E11.1-9", f"{reconstructions} reconstructions")
    says("E11.1-9", f"{fr(theirs.get_total_flops() / 1e6)} millions d'opérations")


def test_e11_1_10():
    claim = """
    Pour $m=1024, n=512$ : compression bénéfique si $r < 341$
    """
    m, n, bound = map(int, re.search(r"m=(\d+), n=(\d+).*r < (\d+)", claim).groups())
    assert bound * (m + n) < m * n < (bound + 1) * (m + n)
    says("E11.1-10", f"rang {bound} est encore bénéfique")
    says("E11.1-10", f"{fr(bound * (m + n))} nombres au lieu de {fr(m * n)}")
    says("E11.1-10", f"rang {bound + 1} qui coûte plus, avec {fr((bound + 1) * (m + n))}")
    limit = break_even_rank(1024, 512)
    assert limit == m * n / (m + n)
    assert bound < limit < bound + 1
    says("E11.1-10", f"$r < {fr(limit, 2).replace(',', '{,}')}$")
    says("E11.1-10", f"$r \\leq {bound}$")


def test_e11_1_11():
    lines = course("""
        class Factorized(nn.Module):
            def __init__(self, in_features, out_features, rank):
                super().__init__()
                self.U = nn.Parameter(torch.randn(out_features, rank))
                self.V = nn.Parameter(torch.randn(in_features, rank))
                nn.init.xavier_uniform_(self.U)
                nn.init.xavier_uniform_(self.V)
    """)
    torch.manual_seed(0)
    linear = nn.Linear(1024, 512)
    state = torch.get_rng_state()
    theirs = lines.Factorized(1024, 512, 64)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    theirs = lines.Factorized(1024, 512, 64)
    torch.manual_seed(1)
    torch.randn(512, 64), torch.randn(1024, 64)
    alone = nn.init.xavier_uniform_(torch.empty(512, 64))
    assert torch.equal(theirs.U, alone)  # les tirages de randn ne servent qu'à avancer le générateur
    m, n = linear.weight.shape
    says("E11.1-11", f"{fr(theirs.U.numel() + theirs.V.numel())} tirages perdus pour une couche {n} → {m} de rang 64")

    torch.set_rng_state(state)
    layer = FactorizedLinear.from_linear_svd(linear, rank=64)
    compare_factorized_vs_standard(64, 32, rank=8)
    assert torch.equal(torch.get_rng_state(), state)
    best = eckart_young(linear.weight, 64)
    assert relative(linear.weight, layer.reconstruct_weight()) == pytest.approx(best, rel=1e-5)
    torch.manual_seed(1)
    ours = FactorizedLinear(1024, 512, rank=64)
    torch.manual_seed(1)
    assert torch.equal(ours.U, nn.init.xavier_uniform_(torch.empty(512, 64)))  # aucun tirage avant Xavier


def test_e11_1_12():
    """
    W = U1 @ U2 @ ... @ Uk
    """
    torch.manual_seed(0)
    chain = MultiStageFactorizedLinear(1024, 512, ranks=[256, 128])
    first, second, third = (factor.weight for factor in chain.factors)
    W = (third @ second @ first).detach()
    x = torch.randn(3, 1024)
    torch.testing.assert_close(chain(x), x @ W.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError):  # l'ordre annoncé
        first @ second @ third
    layer = FactorizedLinear.from_weight_matrix(W, rank=128)
    assert true_rank(W) == 128
    assert relative(W, layer.reconstruct_weight()) < 1e-5
    says("E11.1-12", f"1024 → {first.shape[0]} → {second.shape[0]} → {third.shape[0]}")
    says("E11.1-12", f"{fr(chain.count_parameters())} nombres font une matrice de rang {true_rank(W)}")
    says("E11.1-12", f"avec {fr(layer.count_parameters())}")


# --- Section 11.2 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def truncated():
    """Une matrice gaussienne, sa troncature au rang 32, par NumPy, et ses valeurs singulières."""
    torch.manual_seed(0)
    W, rank = torch.randn(256, 128, dtype=torch.float64), 32
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    return W, torch.tensor((U[:, :rank] * S[:rank]) @ Vh[:rank]), S, rank


def test_e11_2_1(truncated):
    """
    L'erreur est la somme des valeurs singulières abandonnées.
    """
    W, W_r, S, rank = truncated
    m, n = W.shape
    announced = S[rank:].sum() / np.linalg.norm(W)
    says("E11.2-1", f"{m} × {n} tronquée au rang {rank}")
    says("E11.2-1", f"annonce {fr(announced, 2)} fois la norme")
    says("E11.2-1", f"perdrait que {fr(relative(W, torch.zeros_like(W)), 2)} fois")
    error = analyze_svd_approximation_error(W)[rank - 1]["error"]
    assert error == pytest.approx(relative(W, W_r), rel=1e-9)
    says("E11.2-1", f"erreur mesurée est de {fr(relative(W, W_r), 2)}")


def test_e11_2_2(truncated):
    W, W_r, S, rank = truncated
    lines = course(
        """
        spectral_error = torch.norm(W - W_r, p=2)
        """,
        W=W,
        W_r=W_r,
    )
    theirs = float(lines.spectral_error)
    assert theirs == pytest.approx(np.linalg.norm(W - W_r), rel=1e-9)
    says("E11.2-2", f"elle rend {fr(theirs, 2)}")
    spectral_error = singular_values(W)[rank]
    true = np.linalg.norm((W - W_r).numpy(), 2)
    assert float(spectral_error) == pytest.approx(true, rel=1e-9)
    assert float(torch.linalg.norm(W - W_r, 2)) == pytest.approx(true, rel=1e-9)
    assert true == pytest.approx(S[rank], rel=1e-9)
    says("E11.2-2", f"$\\sigma_{{{rank + 1}}}$ = {fr(true, 2)}")


def test_e11_2_3():
    """
    La forme compacte économise du stockage.
    """
    torch.manual_seed(0)
    W = torch.randn(512, 1024)
    layer = CompactSVDLinear.from_weight_matrix(W, rank=64)
    kept = TruncatedSVDLinear.from_weight_matrix(W, rank=64)
    torch.testing.assert_close(layer.reconstruct_weight(), kept.reconstruct_weight(), rtol=1e-3, atol=1e-3)
    before, after = (sum(p.numel() for p in module.parameters()) for module in (kept, layer))
    assert before - after == layer.rank
    says("E11.2-3", f"{layer.in_features} → {layer.out_features} au rang {layer.rank}")
    says("E11.2-3", f"de {fr(before)} à {fr(after)} paramètres, soit {fr(100 * (1 - after / before), 2)} %")
    assert fr(W.numel() / before, 2) == fr(W.numel() / after, 2)
    says("E11.2-3", f"×{fr(W.numel() / after, 2)} dans les deux cas")


# --- Section 11.3 -----------------------------------------------------------------------------------------------------


def test_e11_3_1():
    lines = course("""
        def scaled(lora_A, lora_B, alpha):
            delta_W = alpha * (lora_B @ lora_A)
            return delta_W
    """)
    torch.manual_seed(0)
    linear, x, y = nn.Linear(768, 768), torch.randn(64, 768), torch.randn(64, 768)

    loss = ((linear(x) - y) ** 2).mean()
    (G,) = torch.autograd.grad(loss, linear.weight)

    def promised(rank, scaling, update=None):
        """La baisse de la perte, au premier ordre, d'un pas de descente de gradient de taux 1 à partir de B = 0."""
        total = 0.0
        for _ in range(30):  # en moyenne sur les tirages de A
            layer = LoRALayer(linear, rank, alpha=1.0, scaling=scaling)
            ((layer(x) - y) ** 2).mean().backward()
            A, B = layer.lora_A.detach(), -layer.lora_B.grad
            delta_W = layer.scale * (B @ A) if update is None else update(A, B, 1.0)
            total -= float((G * delta_W).sum())
        return total

    small, large = 4, 64
    theirs, ours, stable, divided = (
        promised(large, scaling, update) / promised(small, scaling, update)
        for scaling, update in (
            ("alpha", lines.scaled),
            ("alpha", None),
            ("alpha/sqrt(r)", None),
            ("alpha/r", None),
        )
    )
    assert theirs == pytest.approx(large / small, rel=0.1)
    assert ours == pytest.approx(theirs, rel=0.1)
    says("E11.3-1", f"{linear.in_features} → {linear.out_features}")
    says("E11.3-1", f"du rang {small} au rang {large}")
    says("E11.3-1", f"une baisse {fr(theirs)} fois plus forte")
    says("E11.3-1", f"avec α/√r, {fr(stable, 1)} fois")
    says("E11.3-1", f"avec α/r, {fr(1 / divided)} fois plus faible")
    layer = LoRALayer(linear, rank=64, scaling="alpha/sqrt(r)")
    assert layer.scale == 1 / 8


def test_e11_3_2():
    torch.manual_seed(0)
    model = load_minilm()
    dotted = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    theirs = course(
        """
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear): setattr(model, name, LoRALayer(module, rank=8))
        """,
        model=copy.deepcopy(model),
        LoRALayer=LoRALayer,
    ).model
    tokens = torch.randint(1000, 2000, (2, 8))

    def used(network):
        """Les adaptateurs créés, et ceux qu'un appel du réseau traverse."""
        layers = {id(module): module for module in network.modules() if isinstance(module, LoRALayer)}
        called = set()
        hooks = [layer.register_forward_hook(lambda layer, *_: called.add(id(layer))) for layer in layers.values()]
        network(tokens, torch.ones_like(tokens))
        for hook in hooks:
            hook.remove()
        return len(layers), len(called)

    created, called = used(theirs)
    assert created == len(dotted)
    says("E11.3-2", f"crée {created} adaptateurs, dont l'appel traverse {called}")
    adapters = sum(layer.trainable_parameters() for layer in theirs.modules() if isinstance(layer, LoRALayer))
    says("E11.3-2", f"annonce {fr(adapters)} paramètres")

    def without_list():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                setattr(model, name, LoRALayer(module, rank=8))

    with stops(RuntimeError, match="changed size"):
        without_list()
    model = load_minilm()
    adapted = convert_model_to_lora(model, rank=8)
    ours = used(adapted)
    assert ours[0] == created
    says("E11.3-2", f"`lrq` en traverse {ours[1]}")


def test_e11_3_3():
    torch.manual_seed(0)
    channels, rank = 32, 4
    conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
    x = torch.randn(2, channels, 32, 32)
    A, B = torch.randn(rank, channels), torch.randn(channels, rank)
    lines = course(
        """
        def adapt(x, lora_A, lora_B):
            lora_out = x @ lora_A.T @ lora_B.T
            return lora_out
        """
    )

    def shift_gap(added):
        """Ce qui change si l'on décale l'image d'une colonne avant plutôt qu'après."""
        before, after = added(x.roll(1, -1)), added(x).roll(1, -1)
        return float(torch.linalg.norm(before - after) / torch.linalg.norm(after))

    layer = LoRALayer(conv, rank=4)
    nn.init.normal_(layer.lora_B)
    assert lines.adapt(x, A, B).shape == conv(x).shape
    says("E11.3-3", f"avec {channels} canaux et des images {x.shape[-1]} × {x.shape[-1]}")
    says("E11.3-3", f"de {fr(100 * shift_gap(lambda t: lines.adapt(t, A, B)), 0)} %")
    with torch.no_grad():
        gap = shift_gap(lambda t: layer(t) - conv(t))
        says("E11.3-3", f"celle de `lrq`, de {fr(100 * gap, 0)} %")
        dense = copy.deepcopy(conv)
        dense.weight += (layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)).view(conv.weight.shape)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-3)


def test_e11_3_4():
    lines = course("""
        class Placeholder(nn.Module):
            def __init__(self, original, lora_A, lora_B):
                super().__init__()
                self.original, self.lora_A, self.lora_B = original, lora_A, lora_B

            def forward(self, x):
                if isinstance(self.original, nn.Conv2d):
                    return self.original(x)  # adaptateur : à faire
                return self.original(x) + x @ self.lora_A.T @ self.lora_B.T
    """)
    torch.manual_seed(0)
    conv = load_digits_network("cnn").conv2
    x = torch.randn(4, conv.in_channels, 8, 8)
    before = conv(x).detach()
    layer = LoRALayer(conv, rank=8)
    nn.init.normal_(layer.lora_B)
    theirs = lines.Placeholder(conv, nn.Parameter(layer.lora_A.detach()), nn.Parameter(layer.lora_B.detach()))
    y = theirs(x)
    announced = theirs.lora_A.numel() + theirs.lora_B.numel()
    assert not y.requires_grad  # la convolution est gelée, les facteurs sont absents du calcul
    says("E11.3-4", f"au rang 8, {fr(announced)} paramètres")
    says("E11.3-4", f"de {fr(100 * relative(before, y))} %")
    ours = layer(x)
    ours.sum().backward()
    assert all(factor.grad.norm() > 0 for factor in (layer.lora_A, layer.lora_B))
    assert relative(before, ours) > 0.1
    says("E11.3-4", f"aussi nombreux, {fr(layer.trainable_parameters())}")
    layer.merge_weights()
    torch.testing.assert_close(layer.original(x), ours, rtol=1e-4, atol=1e-3)


# --- Section 11.4 -----------------------------------------------------------------------------------------------------


def stored(module):
    """Octets de tout ce que garde un module : paramètres et tampons."""
    return sum(t.nbytes for t in [*module.parameters(), *module.buffers()])


def test_e11_4_1():
    lines = course("""
        def factors(linear_layer, rank):
            U, S, Vt = torch.svd(linear_layer.weight.data)
            sqrt_S = torch.sqrt(S[:rank])
            Vt_r = Vt[:rank, :]
            U_factored = U[:, :rank] @ torch.diag(sqrt_S)
            V_factored = (torch.diag(sqrt_S) @ Vt_r).T
            q_max = 127
            scales = [t.abs().max() / q_max for t in (U_factored, V_factored)]
            return [torch.round(t / scale) * scale for t, scale in zip((U_factored, V_factored), scales)]

        def show(original, U, V):
            print(f"  Compressé: {(U.numel() + V.numel()) * 1 / 1024:.1f} KB")
            print(f"  Compression: {original.weight.numel() * 4 / (64 * (1024 + 512)):.1f}x")
    """)
    torch.manual_seed(0)
    rank = 64
    wide, square, last = nn.Linear(1024, 512), nn.Linear(512, 512), nn.Linear(256, 10)

    U, V = lines.factors(wide, rank)
    with stops(RuntimeError):
        torch.randn(3, 1024) @ V @ U.T
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        lines.show(wide, U, V)
    small, ratio = (words(line) for line in printed.getvalue().splitlines())
    says("E11.4-1", f"{wide.in_features} → {wide.out_features} au rang {rank}")
    says("E11.4-1", f"« {small.split(': ')[1]} »")
    says("E11.4-1", f"« {ratio.split(': ')[1]} »")
    before, after = wide.weight.nbytes / 1024, float(re.search(r"[\d.]+", small)[0])
    says("E11.4-1", f"{fr(before)} Kio d'origine, soit {fr(before / after)} fois moins")
    says("E11.4-1", f"{V.shape[0]} lignes au lieu de {wide.in_features}")
    with stops(RuntimeError):
        lines.factors(last, rank)
    says("E11.4-1", f"{last.in_features} → {last.out_features}")

    linear = square
    layer = QuantizedLowRankLinear.from_linear(linear, rank=64, n_bits=8)
    U, V = lines.factors(square, rank)
    error, best = relative(square.weight, U @ V.T), eckart_young(square.weight, rank)
    assert relative(square.weight, layer.reconstruct_weight()) == pytest.approx(best, rel=1e-3)
    says("E11.4-1", f"{square.in_features} → {square.out_features}")
    says("E11.4-1", f"{fr(error, 2)} au lieu de {fr(best, 2)}")
    layer = QuantizedLowRankLinear.from_linear(wide, rank, n_bits=8)
    assert layer(torch.randn(3, 1024)).shape == (3, 512)
    codes = layer.U_q.nbytes + layer.V_q.nbytes
    says("E11.4-1", f"{fr(codes / 1024)} Kio de codes, et ×{fr(layer.compression_ratio(), 1)}")


def test_e11_4_2():
    lines = course("""
        class Quantized(nn.Module):
            def __init__(self, U, V):
                super().__init__()
                self.U, self.V = U, V

            def forward(self, x):
                U, V = self.U, self.V
                # y = x @ V @ U^T
                output = x @ V @ U.T
                return output
    """)
    network, (_, (x, y)) = load_digits_network("mlp"), load_digits_data()

    def theirs(linear):  # une SVD juste, des facteurs quantifiés comme le fait le cours : il ne manque que le biais
        factors = balanced_factors(linear.weight, min(linear.weight.shape))
        codes = [quantize_symmetric(t, n_bits=8) for t in factors]
        return lines.Quantized(*(q.float() * scale for q, scale in codes))

    def ours(linear):
        rank = min(linear.weight.shape)
        compressed = QuantizedLowRankLinear.from_linear(linear, rank, n_bits=8)
        assert torch.equal(compressed.bias, linear.bias)
        return compressed

    says("E11.4-2", f"sur {fr(8)} bits")
    says("E11.4-2", f"{len(y)} images")
    says("E11.4-2", f"de {fr(100 * accuracy(network, x, y), 1)} %")
    says("E11.4-2", f"à {fr(100 * accuracy(replace_linears(network, theirs), x, y), 1)} %")
    says("E11.4-2", f"en garde {fr(100 * accuracy(replace_linears(network, ours), x, y), 1)} %")


def test_e11_4_3():
    lines = course(
        """
        class Pipeline:
            def __init__(self, model):
                self.model = model

            def apply_low_rank_then_quantize(self, rank=64, n_bits=8):
                compressed_model = self.model
                for name, module in compressed_model.named_modules():
                    if isinstance(module, nn.Linear):
                        quantized_lr = from_linear(module, min(rank, *module.weight.shape), n_bits)
                        # Remplace dans le modèle
                return compressed_model

            def apply_quantize_then_low_rank(self, rank=64, n_bits=8):
                pass
        """,
        from_linear=QuantizedLowRankLinear.from_linear,
    )
    network, (_, (x, y)) = load_digits_network("mlp"), load_digits_data()
    before = stored(network)
    theirs = lines.Pipeline(network)
    assert theirs.apply_low_rank_then_quantize(rank=64, n_bits=8) is network
    assert [type(layer) for layer in network.children()] == 3 * [nn.Linear]
    assert stored(network) == before
    assert theirs.apply_quantize_then_low_rank() is None
    with stops(NameError, match="model"):
        course("pipeline = CombinedCompressionPipeline(model)", CombinedCompressionPipeline=lines.Pipeline)
    says("E11.4-3", f"{fr(before)} octets")

    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(rank=64, n_bits=8)
    reverse = CombinedCompressionPipeline(network).apply_quantize_then_low_rank(rank=64, n_bits=8)
    for smaller in (compressed, reverse):
        assert [type(layer) for layer in smaller.children()] == 3 * [QuantizedLowRankLinear]
        ranks = [min(64, *layer.weight.shape) for layer in network.children()]
        sizes = [
            rank * (layer.in_features + layer.out_features) + 2 * 4 + 4 * layer.out_features
            for layer, rank in zip(network.children(), ranks, strict=True)
        ]
        assert stored(smaller) == sum(sizes)  # les codes sur un octet, deux échelles et le biais de chaque couche
        assert fr(100 * accuracy(smaller, x, y)) == fr(100 * accuracy(network, x, y))
    assert stored(network) == before
    says("E11.4-3", f"au rang {max(ranks)} et sur {fr(8)} bits, {fr(stored(compressed))} octets")
    says("E11.4-3", f"(×{fr(before / stored(compressed), 2)})")
    says("E11.4-3", f"{fr(100 * accuracy(network, x, y))} % d'exactitude")


def test_e11_4_4():
    lines = course("""
        def analyze_combined_compression(original_model, rank, n_bits):
            total_original = sum(p.numel() * 4 for p in original_model.parameters())
            total_compressed = 0
            for module in original_model.modules():
                if isinstance(module, nn.Linear):
                    compressed_size = rank * (module.in_features + module.out_features) * 1
                    total_compressed += compressed_size
            compression_ratio = total_original / total_compressed
            return compression_ratio
    """)
    theirs = lines.analyze_combined_compression

    def oracle(model, rank, n_bits):  # chaque octet, compté à la main
        size = stored(model)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                m, n = layer.weight.shape
                size += -layer.weight.nbytes + 2 * 4
                size += sum(-(-min(rank, m, n) * k * n_bits // 8) for k in (m, n))
        return stored(model) / size

    for name, model, rank in (("MiniLM", load_minilm(), 64), ("réseau convolutif", load_digits_network("cnn"), 8)):
        for n_bits in (8, 4):
            assert theirs(model, rank, n_bits) == theirs(model, rank, 8)
            ratio = analyze_combined_compression(model, rank=rank, n_bits=n_bits)
            assert ratio == pytest.approx(oracle(model, rank, n_bits), rel=1e-12)
            if n_bits == 8:
                says("E11.4-4", f"au rang {rank} et sur {fr(8)} bits")
                says("E11.4-4", f"« {theirs(model, rank, 8):.1f}x »")
                says("E11.4-4", f"×{fr(ratio, 2)}")
                assert name in entries()["E11.4-4"]
    says("E11.4-4", f"{fr(4)} bits n'y change rien")

    half = load_digits_network("mlp").half()
    assert theirs(half, 64, 8) == theirs(load_digits_network("mlp"), 64, 8)
    ratio = analyze_combined_compression(half, rank=64, n_bits=8)
    compressed = CombinedCompressionPipeline(half).apply_low_rank_then_quantize(rank=64, n_bits=8)
    assert ratio == stored(half) / stored(compressed)
    says("E11.4-4", f"« {theirs(half, 64, 8):.1f}x », pour ×{fr(ratio, 2)} mesuré")
    with stops(ZeroDivisionError):
        theirs(nn.Sequential(nn.Conv2d(1, 2, 3)), 64, 8)
    with pytest.raises(ValueError, match=r"aucune nn\.Linear"):
        analyze_combined_compression(nn.Sequential(nn.Conv2d(1, 2, 3)), 64, 8)


def course_layer():
    """La couche quantifiée du cours : ses facteurs, ses tampons et ce que `quantize_weights` y range."""
    return course(
        """
        class QuantizedLowRankLinear(nn.Module):
            def __init__(self, in_features, out_features, rank, n_bits=8):
                super().__init__()
                self.in_features, self.out_features, self.rank, self.n_bits = in_features, out_features, rank, n_bits
                self.U = nn.Parameter(torch.randn(out_features, rank))
                self.V = nn.Parameter(torch.randn(in_features, rank))
                self.register_buffer('U_scale', torch.tensor(1.0))
                self.register_buffer('V_scale', torch.tensor(1.0))
                self.register_buffer('U_zero_point', torch.tensor(0, dtype=torch.int32))
                self.register_buffer('V_zero_point', torch.tensor(0, dtype=torch.int32))
                self.register_buffer('U_q', None)
                self.register_buffer('V_q', None)
                self.quantized = False

            def quantize_weights(self):
                q_max = 2 ** (self.n_bits - 1) - 1
                U_scale = self.U.data.abs().max().item() / q_max
                V_scale = self.V.data.abs().max().item() / q_max
                U_q = torch.round(self.U.data / U_scale).clamp(-q_max, q_max).to(torch.int8)
                V_q = torch.round(self.V.data / V_scale).clamp(-q_max, q_max).to(torch.int8)
                self.U_scale = torch.tensor(U_scale)
                self.V_scale = torch.tensor(V_scale)
                self.U_q = U_q
                self.V_q = V_q
                self.quantized = True

            def dequantize(self):
                U_deq = (self.U_q.float() - self.U_zero_point.float()) * self.U_scale
                V_deq = (self.V_q.float() - self.V_zero_point.float()) * self.V_scale
                return U_deq, V_deq

            def forward(self, x):
                if self.quantized:
                    U, V = self.dequantize()
                else:
                    U, V = self.U, self.V
                return x @ V @ U.T

            def compression_ratio(self):
                original_size = self.in_features * self.out_features * 4  # bytes
                compressed_size = (self.rank * (self.in_features + self.out_features)) * 1  # bytes
                return original_size / compressed_size
        """
    ).QuantizedLowRankLinear


def test_e11_4_5():
    Course = course_layer()
    torch.manual_seed(0)
    theirs, dense = Course(1024, 512, 64), 4 * 1024 * 512
    floats, announced = stored(theirs), theirs.compression_ratio()
    theirs.quantize_weights()
    assert stored(theirs) > floats
    says("E11.4-5", f"{theirs.in_features} → {theirs.out_features} au rang {theirs.rank}")
    says("E11.4-5", f"de {fr(floats)} à {fr(stored(theirs))} octets")
    says("E11.4-5", f"soit ×{fr(dense / stored(theirs), 2)} au lieu de ×{fr(dense / floats, 2)}")
    for n_bits in (8, 4, 2):
        narrow = Course(1024, 512, 64, n_bits)
        narrow.quantize_weights()
        assert narrow.compression_ratio() == announced
        assert stored(narrow) == stored(theirs)
    says("E11.4-5", f"« {announced:.1f}x »")
    says("E11.4-5", f"à {fr(8)}, {fr(4)} ou {fr(2)} bits")

    for n_bits in (8, 4):
        layer = QuantizedLowRankLinear(1024, 512, rank=64, n_bits=n_bits)
        layer.quantize_weights()
        size, ratio = layer.nbytes(), layer.compression_ratio()
        assert size == stored(layer) == 64 * (1024 + 512) * n_bits // 8 + 2 * 4
        assert ratio == dense / size
        says("E11.4-5", f"{fr(size)} octets à {n_bits} bits (×{fr(ratio, 1)})")


def test_e11_4_6():
    Course = course_layer()
    torch.manual_seed(0)
    first, theirs = nn.Linear(64, 256), Course(256, 10, 10)
    theirs.quantize_weights()
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), theirs)
    before = [p.detach().clone() for p in model.parameters()]
    train_qat_low_rank(model, [load_digits_data()[0]], epochs=3)
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [True, True, False, False]
    assert theirs.U.requires_grad
    assert theirs.U.grad is None
    assert theirs.V.grad is None
    count = sum(p.numel() for p in theirs.parameters())
    x = torch.randn(3, 256)
    y = theirs(x)
    nn.init.zeros_(theirs.U)
    assert torch.equal(theirs(x), y)
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()
    says("E11.4-6", f"{theirs.in_features} → {theirs.out_features} de rang {theirs.rank}")
    says("E11.4-6", f"{fr(count)} paramètres")

    linear = nn.Linear(256, 10)
    closed = QuantizedLowRankLinear.from_linear(linear, rank=8, n_bits=4)
    assert [p is closed.bias for p in closed.parameters()] == [True]
    closed.bias = None
    with pytest.raises(ValueError, match="aucun paramètre à entraîner"):
        train_qat_low_rank(closed, [(x, torch.zeros(3, dtype=torch.int64))], epochs=3)
    layer = QATLowRankLinear.from_linear(linear, rank=8, n_bits=4)
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in layer.parameters())


def course_qat(**names):
    """La couche du cours qui apprend quantifiée."""
    return course(
        """
        class QATLowRankLinear(nn.Module):
            def __init__(self, in_features, out_features, rank, n_bits=8):
                super().__init__()
                # Facteurs (entraînables en FP32)
                self.U = nn.Parameter(torch.randn(out_features, rank))
                self.V = nn.Parameter(torch.randn(in_features, rank))
                fake_quantize(self, n_bits)

            def forward(self, x):
                U_q = self.U_fake_quant(self.U)
                V_q = self.V_fake_quant(self.V)
                output = x @ V_q @ U_q.T
                return output
        """,
        **names,
    ).QATLowRankLinear


def fake_quantize(layer, n_bits):
    """Ce que l'import du cours aurait dû fournir."""
    layer.U_fake_quant, layer.V_fake_quant = FakeQuantizeModule(n_bits), FakeQuantizeModule(n_bits)


def test_e11_4_7():
    lines = course("""
        def fake_quantize(self, n_bits):
            from quantization import FakeQuantizeModule
            self.U_fake_quant = FakeQuantizeModule(n_bits=n_bits, symmetric=True)
    """)
    theirs = course_qat(fake_quantize=lines.fake_quantize)  # la définition passe
    with stops(ModuleNotFoundError, match="quantization"):
        theirs(64, 32, 8)

    torch.manual_seed(0)
    t = torch.randn(64, 32, requires_grad=True)
    fake = FakeQuantizeModule(n_bits=8, symmetric=True)
    rounded = fake(t)
    rounded.sum().backward()
    assert torch.equal(t.grad, torch.ones_like(t))  # aucun écrêtage : la grille va jusqu'aux extrêmes
    assert float((rounded - t).detach().abs().max()) <= float(t.detach().abs().max()) / 127 * 0.5001  # un demi-pas
    says("E11.4-7", f"{' × '.join(map(str, t.shape))}")
    says("E11.4-7", f"sur {fr(8)} bits, est rendu à {fr(100 * relative(t, rounded), 1)} % près")


def test_e11_4_8():
    Course = course_qat(fake_quantize=fake_quantize)
    torch.manual_seed(0)
    network, ((x, y), (x_test, y_test)) = load_digits_network("mlp"), load_digits_data()

    def theirs(linear):
        assert not hasattr(Course, "from_linear")
        return Course(linear.in_features, linear.out_features, min(32, *linear.weight.shape))

    def ours(linear):
        rank = min(32, *linear.weight.shape)
        layer = QATLowRankLinear.from_linear(linear, rank, n_bits=8)
        assert torch.equal(layer.bias, linear.bias)
        assert relative(linear.weight, layer.reconstruct_weight()) < 1.05 * eckart_young(linear.weight, rank) + 0.02
        return layer

    @torch.no_grad()
    def loss(model):
        return float(nn.functional.cross_entropy(model(x), y))

    random, start = replace_linears(network, theirs), replace_linears(network, ours)
    assert set(dict(theirs(network.fc1).named_parameters())) == {"U", "V"}
    says("E11.4-8", f"au rang {32} et sur {fr(8)} bits")
    assert loss(random) > 50_000 > 0.2 > loss(start)
    says("E11.4-8", f"une perte de {fr(loss(start), 2)}")
    says("E11.4-8", f"plus de {fr(50_000)}")
    says("E11.4-8", f"{fr(100 * accuracy(start, x_test, y_test))} % d'exactitude sur {len(y_test)} images")


def test_e11_4_9():
    lines = course("""
        class Quantized:
            def __init__(self, U, n_bits):
                self.U, self.n_bits = U, n_bits

            def round_trip(self):
                q_max = 2 ** (self.n_bits - 1) - 1
                U_scale = max(abs(self.U.data.min().item()), abs(self.U.data.max().item())) / q_max
                U_q = torch.round(self.U.data / U_scale).clamp(-q_max, q_max).to(torch.int8)
                return U_q.float() * U_scale
    """)
    torch.manual_seed(0)
    U = torch.randn(512, 64)
    says("E11.4-9", "{} × {}".format(*U.shape))
    errors = {n_bits: 100 * relative(U, lines.Quantized(U, n_bits).round_trip()) for n_bits in (8, 9, 10)}
    says("E11.4-9", f"à {fr(errors[8], 1)} % près sur {fr(8)} bits")
    says("E11.4-9", f"de {fr(errors[9])} % sur {fr(9)} bits")
    says("E11.4-9", f"de {fr(errors[10])} % sur {fr(10)} bits")
    with stops(ZeroDivisionError):
        lines.Quantized(U, 1).round_trip()
    says("E11.4-9", f"{fr(1)} bit donne `q_max` = {2 ** (1 - 1) - 1}")
    says("E11.4-9", "Au-delà de 8 bits")
    for n_bits in range(1, 9):
        QuantizedLowRankLinear(16, 8, rank=4, n_bits=n_bits).quantize_weights()
    with pytest.raises(ValueError, match="n_bits : reçu 10, attendu un entier entre 1 et 8"):
        QuantizedLowRankLinear(1024, 512, rank=64, n_bits=10)
    says("E11.4-9", "va de 1 à 8 bits")


def test_e11_4_10():
    Course = course_layer()
    torch.manual_seed(0)
    theirs, fresh = Course(1024, 512, 64), Course(1024, 512, 64)
    theirs.quantize_weights()
    state = theirs.state_dict()
    says("E11.4-10", f"{len(state)} tenseurs, {fr(sum(t.nbytes for t in state.values()))} octets")
    with stops(RuntimeError, match="Unexpected key"):
        fresh.load_state_dict(state)
    fresh.load_state_dict(state, strict=False)
    assert fresh.U_q is None
    assert not fresh.quantized
    x = torch.randn(3, 1024)
    assert torch.equal(fresh(x), x @ theirs.V @ theirs.U.T)  # avec les facteurs flottants
    assert not torch.equal(fresh(x), theirs(x))

    layer, reloaded = (QuantizedLowRankLinear(1024, 512, rank=64) for _ in range(2))
    layer.quantize_weights()
    reloaded.load_state_dict(layer.state_dict())
    assert reloaded.quantized
    assert torch.equal(reloaded(x), layer(x))
    says("E11.4-10", f"que {fr(sum(t.nbytes for t in layer.state_dict().values()))} octets")


def test_e11_4_11():
    Course = course_layer()
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x, converted = torch.randn(3, 64, dtype=dtype), Course(64, 32, 8).to(dtype)
        converted(x)
        converted.quantize_weights()
        after = Course(64, 32, 8)
        after.quantize_weights()
        for theirs in (converted, after.to(dtype)):
            with stops(RuntimeError, match="dtype"):
                theirs(x)

        linear = nn.Linear(64, 32).to(dtype)
        layer = QuantizedLowRankLinear.from_linear(linear, rank=32, n_bits=8)
        assert layer(x).dtype == dtype
        assert relative(linear(x), layer(x)) < 0.02
        later = QuantizedLowRankLinear.from_linear(linear.float(), rank=32, n_bits=8).to(dtype)
        assert relative(linear(x.float()), later(x)) < 0.02
    says("E11.4-11", f"à moins de {fr(2)} % près sur {fr(8)} bits")


def test_e11_4_12():
    lines = course("""
        def train(model, epochs=50):
            for epoch in range(epochs):
                model.train()
            return model
    """)
    network, (train_set, (x, y)) = load_digits_network("mlp"), load_digits_data()
    torch.manual_seed(0)
    dropout = [nn.Dropout(0.5), nn.Dropout(0.5)]
    layers = [network.fc1, nn.ReLU(), dropout[0], network.fc2, nn.ReLU(), dropout[1], network.fc3]
    model = lines.train(nn.Sequential(nn.Flatten(), *layers).eval())
    assert model.training
    calls = [accuracy(model, x, y) for _ in range(50)]
    assert len(set(calls)) > 1
    says("E11.4-12", f"{fr(100 * np.mean(calls))} % d'exactitude")
    model.eval()
    says("E11.4-12", f"{fr(100 * accuracy(model, x, y))} % avec les mêmes poids")

    train_loader = [train_set]
    trained = train_qat_low_rank(model, train_loader, epochs=1)
    assert not trained.training
    assert torch.equal(trained(x), trained(x))


def test_e11_4_13():
    network = load_digits_network("mlp")
    theirs = course_qat(fake_quantize=fake_quantize)(256, 256, 64)
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    assert not {"quantize", "quantize_weights", "to_quantized"} & set(dir(theirs))
    floats = sum(t.nbytes for t in theirs.state_dict().values())
    says("E11.4-13", f"{fr(floats)} octets pour une couche 256 → 256 au rang 64")

    torch.manual_seed(0)
    qat = QATLowRankLinear.from_linear(network.fc2, rank=64, n_bits=8)
    packed = qat.to_quantized()
    x = torch.randn(5, 256)
    assert torch.equal(packed(x), qat(x))
    assert packed.nbytes() == 64 * (256 + 256) + 2 * 4 + packed.bias.nbytes
    says("E11.4-13", f"les mêmes sorties au bit près et {fr(packed.nbytes())} octets")


def test_e11_4_14():
    r"""
    1. **Rang faible** : $W = U @ V^T$ → compression $\times r_1$
    **Total** : compression $\times (r_1 \times 4)$
    """
    W = load_minilm_weights()["encoder.layer.0.attention.self.query.weight"]
    m, n = W.shape
    rank = energy_rank(W, 0.99)
    low_rank = m * n / (rank * (m + n))
    linear = nn.Linear(n, m, bias=False)
    linear.weight.data = W
    both = QuantizedLowRankLinear.from_linear(linear, rank, n_bits=8)
    layer = QuantizedLinear.from_linear(linear, n_bits=8)
    assert both.compression_ratio() == pytest.approx(4 * low_rank, rel=1e-3)  # la règle, aux échelles près
    assert both.compression_ratio() < layer.compression_ratio() < 4
    errors = [relative(W, compressed.reconstruct_weight()) for compressed in (both, layer)]
    says("E11.4-14", f"{fr(4)} est le passage de `float32` à INT8")
    says("E11.4-14", f"{n} → {m}")
    says("E11.4-14", f"{fr(99)} % de l'énergie qu'au rang {rank}")
    says("E11.4-14", f"$r_1$ vaut {fr(low_rank, 2)}")
    says("E11.4-14", f"×{fr(both.compression_ratio(), 2)} et une erreur de {fr(100 * errors[0], 1)} %")
    says("E11.4-14", f"×{fr(layer.compression_ratio(), 2)} et {fr(100 * errors[1], 1)} %")
    assert low_rank < 1
    says("E11.4-14", f"dépasser {fr(1)}")
    says("E11.4-14", f"(r₁ × {fr(4)}) » peut valoir moins que ×{fr(4)}")
    says("E11.4-14", f"rang {fr(break_even_rank(m, n))}")


def test_e11_4_15():
    lines = course("""
        def round_trip(U, q_max):
            U_min, U_max = U.min().item(), U.max().item()
            U_scale = max(abs(U_min), abs(U_max)) / q_max
            U_q = torch.round(U / U_scale).clamp(-q_max, q_max)
            return U_q, U_q * U_scale
    """)
    linear, rank, n_bits = load_digits_network("mlp").fc2, 64, 4
    U, V = balanced_factors(linear.weight, rank)
    norms = U.norm(dim=0)
    (codes, U_hat), (_, V_hat) = (lines.round_trip(t, 2 ** (n_bits - 1) - 1) for t in (U, V))
    error = relative(linear.weight, U_hat @ V_hat.T)
    says("E11.4-15", f"au rang {rank}")
    says("E11.4-15", f"de {fr(float(norms[0]), 2)} à {fr(float(norms[-1]), 2)}")
    says("E11.4-15", f"Sur {fr(n_bits)} bits, {fr(100 * float((codes == 0).double().mean()))} % des codes de U")
    says("E11.4-15", f"l'erreur passe de {fr(eckart_young(linear.weight, rank), 2)} à {fr(error, 2)}")

    layer = QuantizedLowRankLinear.from_linear(linear, rank, n_bits=4, rotate=True)
    plain = QuantizedLowRankLinear.from_linear(linear, rank, n_bits=4)
    rows = QuantizedLowRankLinear.from_linear(linear, rank, n_bits=4, granularity=PerChannel(0))
    assert relative(linear.weight, plain.reconstruct_weight()) == pytest.approx(error, rel=1e-3)
    assert layer.nbytes() == plain.nbytes()
    turned, finer = (relative(linear.weight, t.reconstruct_weight()) for t in (layer, rows))
    assert finer < turned < error
    says("E11.4-15", f"{fr(turned, 2)} pour les mêmes {fr(layer.nbytes())} octets")
    says("E11.4-15", f"à {fr(finer, 2)} pour {fr(rows.nbytes())} octets")


def test_e11_4_16():
    lines = course("""
        def train(losses, train_loader, epochs=50):
            for epoch in range(epochs):
                total_loss = 0.0
                for loss in losses:
                    total_loss += loss
                if epoch % 10 == 0:
                    print(f'Epoch {epoch+1}: Loss={total_loss/len(train_loader):.4f}')
    """)
    train_set, val_set = load_digits_data()
    dataset = torch.utils.data.TensorDataset(*train_set)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=64)
    sizes = [len(y) for _, y in train_loader]
    weighted = [0.0] * (len(sizes) - 1) + [float(len(sizes))]  # seul le dernier lot a une perte
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        lines.train(weighted, train_loader)
    epochs = re.findall(r"Epoch (\d+): Loss=1\.0000", printed.getvalue())
    says("E11.4-16", f"{fr(50)} époques par défaut")
    says("E11.4-16", f"les époques {', '.join(epochs[:-1])} et {epochs[-1]}")
    says("E11.4-16", f"la dernière, la {fr(50)}ᵉ")
    says("E11.4-16", f"lots de {sizes[0]}, les {sizes[-1]} images du dernier")
    with stops(ZeroDivisionError):
        lines.train([], [])
    with stops(TypeError, match="has no len"):
        lines.train([0.1], (batch for batch in train_loader))

    val_loader = [val_set]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    start = copy.deepcopy(model)
    with pytest.raises(ValueError, match="train_loader : aucun exemple"):
        train_qat_low_rank(model, [], epochs=1)
    assert torch.equal(model[1].weight, start[1].weight)
    train_qat_low_rank(model, train_loader, epochs=1, val_loader=val_loader)
    worse = train_qat_low_rank(copy.deepcopy(model), train_loader, epochs=1, val_loader=val_loader, lr=100.0)
    assert torch.equal(worse[1].weight, model[1].weight)  # un pas qui nuit n'est pas gardé


# --- Section 11.5 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def query():
    """La première matrice de MiniLM."""
    return load_minilm_weights()["encoder.layer.0.attention.self.query.weight"]


def test_e11_5_1(query):
    """
    L'erreur combinée est à peu près la somme des deux erreurs.
    """
    W, rank, n_bits = query, 128, 4
    layer = QuantizedLowRankLinear.from_weight_matrix(W, rank, n_bits)
    layer.quantize_weights()
    U, V = balanced_factors(W, rank)
    dropped, moved = relative(W, U @ V.T), relative(W, W + U @ V.T - layer.reconstruct_weight())
    measured = relative(W, layer.reconstruct_weight())
    predicted = combined_error_analysis(W, rank, n_bits)["estimated_combined"]
    assert dropped == pytest.approx(eckart_young(W, rank), rel=1e-4)
    assert predicted == pytest.approx(measured, rel=1e-3)
    says("E11.5-1", f"au rang {rank} et sur {n_bits} bits, les deux erreurs sont de {fr(dropped, 3)} et {fr(moved, 3)}")
    says("E11.5-1", f"Leur somme annonce {fr(dropped + moved, 3)}")
    says("E11.5-1", f"la racine de la somme de leurs carrés, {fr(np.hypot(dropped, moved), 3)}")
    says("E11.5-1", f"L'erreur mesurée est de {fr(measured, 3)}")


def truncate(network, rank):
    """Le réseau des chiffres, chaque couche tronquée à ce rang, ou au sien s'il est plus petit."""
    return replace_linears(network, lambda layer: FactorizedLinear.from_linear(layer, min(rank, *layer.weight.shape)))


@torch.no_grad()
def test_e11_5_2():
    """
    L'erreur se propage linéairement à travers les couches.
    """
    network, (_, (x, _)), rank = load_digits_network("mlp"), load_digits_data(), 8
    compressed = truncate(network, rank)
    alone, after, bounds, bound = [], [], [], 0.0
    h = h_hat = x.flatten(1)
    for layer, twin in zip(network.children(), compressed.children(), strict=True):
        W_hat = twin.reconstruct_weight()
        own = np.linalg.norm(W_hat - layer.weight, 2) * float(h.norm(dim=-1).mean())
        bound = np.linalg.norm(W_hat, 2) * bound + own
        bounds.append(bound)
        alone.append(relative(layer(h), twin(h)))
        h, h_hat = layer(h), twin(h_hat)
        after.append(relative(h, h_hat))
        gap = float((h_hat - h).norm(dim=-1).mean())
        h, h_hat = h.relu(), h_hat.relu()
    layer_errors = analyze_cumulative_error(network, compressed, x)["layer_errors"]
    assert list(layer_errors.values()) == pytest.approx(after, rel=1e-4)
    assert gap < bounds[-1]
    says("E11.5-2", f"au rang {rank}, sur {len(x)} images")
    says("E11.5-2", f"de {fr(alone[0], 2)}, {fr(alone[1], 2)} et {fr(alone[2], 2)} : {fr(sum(alone), 2)} en tout")
    says("E11.5-2", f"de {fr(after[0], 2)}, puis {fr(after[1], 2)}, puis {fr(after[2], 2)}")
    says("E11.5-2", f"La borne passe de {fr(bounds[0], 1)} à {fr(bounds[1])} puis {fr(bounds[2])}")
    says("E11.5-2", f"écart final de {fr(gap, 1)} en moyenne")


@torch.no_grad()
def test_e11_5_3():
    network, (_, (images, _)), rank = load_digits_network("mlp"), load_digits_data(), 16
    layer, W, x = truncate(network, rank).fc2, network.fc2.weight, network.fc1(images.flatten(1)).relu()
    E = layer.reconstruct_weight() - W
    theirs = course(
        """
        error_bound = torch.norm(E, p=2) * x.norm(dim=-1).mean()
        """,
        E=E,
        x=x,
    ).error_bound
    error_bound = analyze_forward_error(layer, x, W)["error_bound"]
    length = float(x.norm(dim=-1).mean())
    assert float(theirs) == pytest.approx(np.linalg.norm(E) * length, rel=1e-4)
    assert error_bound == pytest.approx(np.linalg.norm(E, 2) * length, rel=1e-4)
    error = float((x @ E.T).norm(dim=-1).mean())
    assert error < error_bound
    says("E11.5-3", f"rang {rank}, avec les entrées qu'elle reçoit de {len(x)} images")
    says("E11.5-3", f"annonce {fr(float(theirs), 1)} ; la norme spectrale, {fr(error_bound, 1)}")
    says("E11.5-3", f"L'erreur moyenne est de {fr(error, 1)}")


@torch.no_grad()
def test_e11_5_4():
    """
    Le théorème d'Eckart–Young garantit l'optimalité.
    """
    network, ((images, _), (others, _)), rank = load_digits_network("mlp"), load_digits_data(), 16
    linear = network.fc2
    seen, judged = (network.fc1(part.flatten(1)).relu() for part in (images, others))
    plain = truncate(network, rank).fc2
    with pytest.warns(UserWarning, match="calibration"):  # toutes les directions ne sont pas vues
        layer = FactorizedLinear.from_linear(linear, rank, calibration=seen)
    weights = [relative(linear.weight, each.reconstruct_weight()) for each in (plain, layer)]
    assert weights[0] == pytest.approx(eckart_young(linear.weight, rank), rel=1e-4)
    outputs = [analyze_forward_error(each, judged, linear.weight)["mean_relative_error"] for each in (plain, layer)]
    y = judged @ linear.weight.T
    assert outputs == pytest.approx(
        [
            float(((judged @ each.reconstruct_weight().T - y).norm(dim=1) / y.norm(dim=1)).mean())
            for each in (plain, layer)
        ],
        rel=1e-3,
    )
    assert weights[0] < weights[1]
    assert outputs[0] > outputs[1]
    says("E11.5-4", f"au rang {rank}, la SVD tronquée laisse sur les poids une erreur de {fr(weights[0], 2)}")
    says("E11.5-4", f"{fr(len(seen))} images d'apprentissage de {fr(weights[1], 2)}")
    says(
        "E11.5-4",
        f"{len(judged)} autres images, c'est l'inverse : {fr(outputs[0], 2)} pour la première, {fr(outputs[1], 2)}",
    )


def test_e11_5_5(query):
    """
    Il existe un compromis optimal entre compression et erreur.
    """
    W, ranks, bits = query, [16, 32, 64, 128, 192, 256], [2, 3, 4, 6, 8]
    front = [pair for pair in compression_error_tradeoff(W, ranks, bits) if pair["optimal"]]
    points = []
    for rank in ranks:
        for n_bits in bits:
            layer = QuantizedLowRankLinear.from_weight_matrix(W, rank, n_bits)
            layer.quantize_weights()
            points.append((layer.nbytes(), layer.reconstruction_error(W), (rank, n_bits)))
    best = [pair for size, error, pair in points if not any(s <= size and e < error for s, e, _ in points)]
    assert {(pair["rank"], pair["n_bits"]) for pair in front} == set(best)
    says("E11.5-5", f"{len(ranks)} rangs et {len(bits)} nombres de bits font {len(points)} paires ; pour {len(front)}")
    ends = [pick(front, key=lambda pair: pair["compression_ratio"]) for pick in (min, max)]
    faithful, light = (
        f"×{fr(pair['compression_ratio'], 1)} pour une erreur de {fr(pair['actual_combined'], 2)}" for pair in ends
    )
    says("E11.5-5", f"de {faithful} à {light}")
    assert ends[1]["actual_combined"] > relative(W, torch.zeros_like(W))


# --- Section 9.6 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cores():
    """Les cœurs de l'exemple du cours."""
    torch.manual_seed(0)
    return [torch.randn(*shape) * 0.1 for shape in ((1, 16, 8), (8, 16, 4), (4, 16, 1))]


def test_e9_6_1(cores):
    lines = course("""
        def quantize(self):
            quantizer = UniformQuantizer(n_bits=self.n_bits,
                                        symmetric=self.symmetric)
            return quantizer
    """)
    with stops(NameError, match="UniformQuantizer"):
        lines.quantize(SimpleNamespace(n_bits=8, symmetric=True))
    quantizer = UniformQuantizer(n_bits=8, symmetric=True)
    worst = 0.0
    for core in cores:
        scale, zero_point = quantizer.compute_scale_zero_point(core)
        codes = quantizer.quantize(core, scale, zero_point)
        worst = max(worst, relative(core, quantizer.dequantize(codes, scale, zero_point)))
    says("E9.6-1", f"codés sur {fr(8)} bits, sont rendus à {fr(100 * worst, 1)} % près")


def test_e9_6_2(cores):
    def theirs(n_bits):
        codes = [UniformQuantizer(n_bits=n_bits).quantize(core) for core in cores]
        lines = course(
            """
            original_size = sum(c.numel() * 32 for c in cores_tt)
            quantized_size = sum(c.numel() * 8 for c in q_cores) + len(scales) * 32
            """,
            cores_tt=cores,
            q_cores=codes,
            scales=cores,  # une échelle par cœur
        )
        return lines.original_size / lines.quantized_size

    def ours(n_bits):
        size = sum(UniformQuantizer(n_bits=n_bits).compress(core).nbytes() for core in cores)
        assert size == sum(-(-core.numel() * n_bits // 8) + 4 for core in cores)  # les codes, et une échelle chacun
        return sum(core.nbytes for core in cores) / size

    assert theirs(8) == theirs(4)
    says("E9.6-2", "Le 8 est écrit d'avance")
    says("E9.6-2", f"affichée est de ×{fr(theirs(8), 2)} à {fr(8)} bits comme à {fr(4)} bits")
    says("E9.6-2", f"×{fr(ours(8), 2)} à {fr(8)} bits et de ×{fr(ours(4), 2)} à {fr(4)} bits")


def fr_shape(shape):
    """Une forme à la française : $8 × 8 × 8$, en TeX."""
    return "$" + r" \times ".join(map(str, shape)) + "$"


def tt_cores(dims, tt_ranks):
    """Les cœurs que le cours construit, sans la liste qui les refuse."""
    lines = course("""
        def build(input_dims, tt_ranks):
            cores, prev_rank = [], 1
            for i, dim in enumerate(input_dims):
                next_rank = tt_ranks[i] if i < len(tt_ranks) else 1
                core = nn.Parameter(torch.randn(prev_rank, dim, next_rank))
                cores.append(core)
                prev_rank = next_rank
            return cores
    """)
    return lines.build(dims, tt_ranks)


def test_e9_6_3():
    lines = course("""
        def contract(result, quantized_cores):
            for i, core in enumerate(quantized_cores):
                result = torch.tensordot(result, core, dims=([i+1], [1]))
            return result
    """)
    dims, batch = (8, 8, 8), 5
    x = torch.randn(batch, math.prod(dims))
    with stops(RuntimeError, match="contracted dimensions need to match"):
        lines.contract(x.view(batch, *dims), tt_cores(dims, (4, 4)))
    says("E9.6-3", f"Pour {x.shape[1]} entrées découpées en {fr_shape(dims)}, au rang 4")
    theirs = lines.contract(x.view(batch, *dims), tt_cores(dims, (8, 8)))
    says("E9.6-3", f"au rang 8, les tailles tombent juste par hasard, et la couche rend sans rien dire "
                   f"{fr(theirs.numel() // batch)} nombres par exemple")  # fmt: skip
    cores = list(QATTTLinear(dims, dims, tt_ranks=8).cores)
    y = tt_product(x, cores)
    W = torch.einsum("xioa,ajpb,bkqy->opqijk", *cores).reshape(512, 512)
    torch.testing.assert_close(y, x @ W.T, rtol=1e-4, atol=1e-4)
    says("E9.6-3", f"{x.shape[1]} entrées donnent {y.shape[1]} sorties")


def test_e9_6_4():
    lines = course("""
        class Layer:
            def __init__(self, input_dims, output_dims, tt_ranks, n_bits=8):
                self.cores, prev_rank = [], 1
                for dim, next_rank in zip(input_dims, (*tt_ranks, 1)):
                    core = nn.Parameter(torch.randn(prev_rank, dim, next_rank))
                    self.cores.append(core)
                    prev_rank = next_rank
    """)
    dims, counts, theirs = (8, 8, 8), [], []
    for output_dims in ((8, 8, 8), (2, 2, 2)):
        cores = lines.Layer(dims, output_dims, (8, 8)).cores
        theirs.append(sum(core.numel() for core in cores))
        layer = QATTTLinear((8, 8, 8), output_dims, tt_ranks=8)
        counts.append(layer.count_parameters())
        assert layer(torch.randn(3, math.prod(dims))).shape == (3, math.prod(output_dims))
    assert theirs[0] == theirs[1]
    says(
        "E9.6-4",
        f"De {math.prod(dims)} entrées vers {8**3} sorties, ou vers {2**3}, la couche a les mêmes {fr(theirs[0])}",
    )
    y = torch.einsum("zijk,xia,ajb,bky->zxy", torch.randn(5, *dims), *cores)
    says("E9.6-4", f"ses cœurs rendent {y[0].numel()} nombre par exemple")
    says("E9.6-4", f"au même rang 8, il y faut {fr(counts[0])} paramètres dans le premier cas et {fr(counts[1])}")


def test_e9_6_5():
    lines = course("""
        class Layer(nn.Module):
            def __init__(self, core):
                super().__init__()
                self.cores = nn.ModuleList()
                self.cores.append(core)
    """)
    with stops(TypeError, match="is not a Module subclass"):
        lines.Layer(tt_cores((4, 4, 4), (4, 4))[0])
    input_dims = output_dims = (4, 4, 4)
    layer = QATTTLinear(input_dims, output_dims, tt_ranks=4)
    assert isinstance(layer.cores, nn.ParameterList)
    assert len(list(layer.parameters())) == len(layer.state_dict()) == len(layer.cores)
    says("E9.6-5", f"les {len(layer.cores)} cœurs de la couche sont des paramètres")


def test_e9_6_6():
    lines = course("""
        def tensorize(self, x):
            result = x.view(x.shape[0], *self.input_dims)
            return result
    """)
    dims = (8, 8, 8)
    x = torch.randn(2, 5, math.prod(dims))
    with stops(AttributeError, match="input_dims"):
        lines.tensorize(SimpleNamespace(), x[0])
    repaired = SimpleNamespace(input_dims=dims)
    assert lines.tensorize(repaired, x[0]).shape == (5, *dims)
    with stops(RuntimeError, match="invalid for input of size"):
        lines.tensorize(repaired, x)
    says("E9.6-6", f"une entrée de forme {fr_shape(x.shape)}")
    layer = QATTTLinear(dims, dims, tt_ranks=4)
    y = layer(x)
    says("E9.6-6", f"les prend toutes, et rend {fr_shape(y.shape)}")


def test_e9_6_7():
    lines = course("""
        def impact(original_tn, quantized_tn):
            original_params = sum(p.numel() for p in original_tn.parameters())
            quantized_params = sum(p.numel() for p in quantized_tn.parameters())
            original_bits = original_params * 32
            quantized_bits = quantized_params * 8  # INT8
            return original_bits / quantized_bits
    """)
    torch.manual_seed(0)
    linear = nn.Linear(24, 24)
    original = TTLinear.from_linear(linear, (4, 6), (4, 6), 5)
    assert lines.impact(original, original) == lines.impact(original, copy.deepcopy(original).half())
    says("E9.6-7", f"toujours de ×{fr(lines.impact(original, original))}")
    says("E9.6-7", f"« {lines.impact(original, original):.2f}x »")
    assert analyze_tn_quantization_impact(original, original) == 1
    assert analyze_tn_quantization_impact(original, copy.deepcopy(original).half()) == 2
    with stops(ZeroDivisionError):
        lines.impact(original, QuantizedTTLinear.from_cores(original.cores, n_bits=4))
    quantized = QuantizedTTLinear.from_linear(linear, (4, 6), (4, 6), 5, n_bits=4)
    ratio = analyze_tn_quantization_impact(original, quantized)
    assert ratio == original.nbytes() / quantized.nbytes()
    says("E9.6-7", f"« {lines.impact(original, quantized):.2f}x », quand les octets rangés disent ×{fr(ratio, 2)}")


def test_e9_6_8():
    torch.manual_seed(0)
    dims, ranks, x = (8, 8, 8), (8, 8), torch.randn(64, 512)
    theirs, ours = [], []
    for _ in range(50):
        cores = [core[:, :, None] for core in tt_cores(dims, ranks)]  # une sortie, contractée comme il faut
        theirs.append(tt_product(x, cores).square().mean().item())
        ours.append(QATTTLinear(dims, dims, tt_ranks=8)(x).square().mean().item())
    says("E9.6-8", f"au rang 8, il y en a {math.prod(ranks)}")
    says("E9.6-8", f"Pour {x.shape[1]} entrées d'écart type unité")
    says(
        "E9.6-8", f"un écart type d'environ {fr(np.sqrt(np.mean(theirs)))}, contre {fr(np.sqrt(np.mean(ours)), 1)} dans"
    )
    input_dims = output_dims = dims
    linear = nn.Linear(512, 512)
    layer = QATTTLinear.from_linear(linear, input_dims, output_dims, tt_ranks=8)
    start = TTLinear.from_linear(linear, dims, dims, 8)
    assert relative(start.reconstruct_weight(), layer.reconstruct_weight()) < 0.02


def test_e9_6_9():
    dims = (8, 8, 8)
    assert tt_cores(dims, [4, 4, 2])[-1].shape == (4, 8, 2)
    says("E9.6-9", "finit par 2 au lieu de 1")
    assert [core.shape[2] for core in tt_cores(dims, [4])] == [4, 1, 1]
    says("E9.6-9", "le second lien vaut 1")
    for ranks in ([4, 4, 2], [4]):
        with pytest.raises(ValueError, match=r"^rank : reçu .*, attendu un entier, ou 2, un par lien"):
            QATTTLinear(dims, dims, ranks)
    T = torch.randn(dims)
    says("E9.6-9", f"demande {fr(sum(c.numel() for c in tt_cores(dims, [100, 100])))} paramètres")
    says("E9.6-9", f"qui n'a que {T.numel()} coefficients")
    cores = tt_svd(T, rank=100)
    says("E9.6-9", f"ici, {cores[0].shape[2]} et {cores[1].shape[2]}")


def test_e9_6_10():
    lines = course("""
        class Theirs:
            def quantize_tucker(self, q_core, q_factors):
                return {
                    'quantized_core': q_core,
                    'quantized_factors': q_factors,
                }
    """)
    assert [name for name in vars(lines.Theirs) if not name.startswith("_")] == ["quantize_tucker"]
    torch.manual_seed(0)
    core, factors = torch.randn(3, 4, 5), [torch.randn(8, r) for r in (3, 4, 5)]
    whole, quantizer = tucker_contract(core, factors), TuckerQuantizer()
    quantized = quantizer.quantize_tucker(core, factors, n_bits=4)
    says("E9.6-10", f"un noyau {fr_shape(core.shape)} et ses facteurs, codés sur {quantized['n_bits']} bits")
    core, factors = quantizer.dequantize_tucker(quantized)
    says("E9.6-10", f"rendent leur tenseur à {fr(100 * relative(whole, tucker_contract(core, factors)))} % près")


def test_e9_6_11(cores):
    lines = course(
        """
        import numpy as np
        class Theirs:
            def __init__(self):
                self.quantizers = {}  # Un quantifier par core

            def quantize_tt_cores(self, cores):
                quantizers = [UniformQuantizer(n_bits=8) for core in cores]
                return [q.quantize(core) for q, core in zip(quantizers, cores)]
        """,
        UniformQuantizer=UniformQuantizer,
    )
    theirs = lines.Theirs()
    theirs.quantize_tt_cores(cores)
    assert theirs.quantizers == {}
    with stops(NameError, match="nn"):
        exec("class QATTTLinear(nn.Module): pass", {"torch": torch, "np": np})
    cores_tt = cores
    q_cores, scales, zps = TTQuantizer(n_bits=8).quantize_tt_cores(cores_tt)
    assert len(q_cores) == len(scales) == len(zps) == len(cores)


def test_e9_6_12(cores):
    quantizer = UniformQuantizer(n_bits=8)
    lines = course(
        """
        original_size = sum(c.numel() * 32 for c in cores_tt)
        print(f"Compression TT: {original_size / quantized_size:.2f}x")
        """,
        cores_tt=cores,
        quantized_size=sum(core.numel() * 8 for core in cores) + 32 * len(cores),
    )
    shown = lines.printed.split()[-1]
    few, every = sum(core.numel() for core in cores), math.prod(core.shape[1] for core in cores)
    size = sum(quantizer.compress(core).nbytes() for core in cores)
    says("E9.6-12", f"« {shown} » affiché")
    says("E9.6-12", f"Les {few} nombres des trois cœurs décrivent un tenseur de {fr(every)} coefficients")
    says("E9.6-12", f"×{fr(every / few, 2)} par le train, ×{fr(4 * few / size, 2)} par les bits")
    says("E9.6-12", f"×{fr(4 * every / size, 1)} en tout")
    torch.manual_seed(0)
    input_dims = output_dims = (4, 4, 4)
    linear = nn.Linear(64, 64, bias=False)
    ratio = QuantizedTTLinear.from_linear(linear, input_dims, output_dims, 8, n_bits=8).compression_ratio()
    numbers = TTLinear.from_linear(linear, input_dims, output_dims, 8).count_parameters()
    assert ratio == pytest.approx(4 * linear.weight.numel() / (numbers + 4 * len(input_dims)))


# --- Section 12.3 -----------------------------------------------------------------------------------------------------


def put(model, name, layer):
    """Le `_replace_layer` que le cours appelle sans l'écrire : `layer` devient la sous-couche `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def course_ptq(bits=8, calibration_method="min_max", per_channel=False):
    """Le PTQCompression du cours, prêt à calibrer ; seules manquent les méthodes qu'il n'a pas écrites."""
    lines = course("""
        class Theirs:
            def __init__(self, config):
                self.bits = config.get('bits', 8)
                self.calibration_method = config.get('calibration_method', 'min_max')
                self.per_channel = config.get('per_channel', False)

            def _calibrate(self, model, calibration_data):
                model.eval()
                activation_stats = {}
                self.activation_stats = activation_stats

                def hook_fn(name):
                    def hook(module, input, output):
                        if name not in activation_stats:
                            activation_stats[name] = []
                        activation_stats[name].append(output.detach())
                    return hook

                hooks = []
                for name, module in model.named_modules():
                    if isinstance(module, (nn.Linear, nn.Conv2d)):
                        hooks.append(module.register_forward_hook(hook_fn(name)))
                with torch.no_grad():
                    for data in calibration_data:
                        _ = model(data)

                quantization_params = {}
                for name, activations in activation_stats.items():
                    all_acts = torch.cat(activations, dim=0)
                    if self.calibration_method == 'min_max':
                        min_val, max_val = all_acts.min().item(), all_acts.max().item()
                    elif self.calibration_method == 'percentile':
                        min_val = torch.quantile(all_acts, 0.01).item()
                        max_val = torch.quantile(all_acts, 0.99).item()
                    # Autres méthodes...
                    scale = (max_val - min_val) / (2 ** self.bits - 1)
                    zero_point = 0  # Symétrique
                    quantization_params[name] = {
                        'scale': scale,
                        'zero_point': zero_point
                    }
                for hook in hooks:
                    hook.remove()
                return quantization_params
    """)
    return lines.Theirs({"bits": bits, "calibration_method": calibration_method, "per_channel": per_channel})


def rounded(x, scale, zero_point, low, high):
    """x arrondi sur les codes low … high, puis relu."""
    return ((x / scale + zero_point).round().clamp(low, high) - zero_point) * scale


def digits():
    """Le réseau dense des chiffres, les images qui calibrent et celles qui jugent."""
    (images, _), (others, _) = load_digits_data()
    return load_digits_network("mlp"), images, others


def test_e12_3_1():
    network, images, _ = digits()
    theirs = course_ptq()
    params = theirs._calibrate(network, [images])["fc3"]
    x = theirs.activation_stats["fc3"][0]
    assert params["scale"] == pytest.approx(float(x.max() - x.min()) / 255)
    says("E12.3-1", f"vont de {fr(float(x.min()))} à {fr(float(x.max()))}")
    errors = [100 * relative(x, rounded(x, params["scale"], 0, low, low + 255)) for low in (-128, 0)]
    says("E12.3-1", f"{fr(errors[0], 1)} % d'erreur à des codes signés")
    says("E12.3-1", f"{fr(errors[1])} % aux autres")
    scale = float(images.max() - images.min()) / 255
    says("E12.3-1", f"les images, de {fr(float(images.min()))} à {fr(float(images.max()))}")
    says("E12.3-1", f"{fr(100 * relative(images, rounded(images, scale, 0, -128, 127)))} % aux codes signés")
    histogram = ActivationHistogram()
    histogram.update(x)
    activations = ActivationQuantizer(8, *histogram.range("min_max"))
    says("E12.3-1", f"l'erreur de ces sorties est de {fr(100 * relative(x, activations(x)), 1)} %")


def test_e12_3_2():
    lines = course("""
        class Theirs:
            @staticmethod
            def compress_inplace(model, compression_method):
                for name, module in model.named_modules():
                    if isinstance(module, nn.Linear):
                        compressed = compression_method.compress_layer(module)
                        module.weight.data = compressed.weight.data
                        if hasattr(compressed, 'bias') and compressed.bias is not None:
                            module.bias.data = compressed.bias.data
    """)

    class Dense(SVDCompression):
        """Ce qui rend le code du cours exécutable : une couche de rang faible, puis son poids dense."""

        def compress_layer(self, layer, seen=None):
            smaller = super().compress_layer(layer, seen)
            smaller.weight = nn.Parameter(smaller.reconstruct_weight())
            return smaller

    network, _, _ = digits()
    before = stored_bytes(network)
    for method in (SVDCompression({"rank": 8}), TensorTrainCompression({"rank": 8}), PTQCompression()):
        with stops(AttributeError, match="has no attribute 'weight'"):
            lines.Theirs.compress_inplace(copy.deepcopy(network), method)
    lines.Theirs.compress_inplace(network, Dense({"rank": 8}))
    assert true_rank(network.fc2.weight) == 8
    assert stored_bytes(network) == before
    says("E12.3-2", f"{fr(before)} octets avant, {fr(stored_bytes(network))} après")
    model, method = digits()[0], SVDCompression({"rank": 8})
    MemoryEfficientCompression.compress_inplace(model, method)
    says("E12.3-2", f"au rang {method.config['rank']}, il en reste {fr(stored_bytes(model))}")


def test_e12_3_3():
    lines = course("""
        from multiprocessing.pool import ThreadPool as Pool
        class Theirs:
            def compress_parallel(self, model, compression_method, num_workers=4):
                layers_to_compress = []
                for name, module in model.named_modules():
                    if isinstance(module, nn.Linear):
                        layers_to_compress.append((name, module))
                with Pool(num_workers) as pool:
                    compressed_layers = pool.starmap(
                        compression_method.compress_layer,
                        [(module,) for _, module in layers_to_compress]
                    )
                for (name, _), compressed in zip(layers_to_compress, compressed_layers):
                    self._replace_layer(model, name, compressed)
                return model
    """)
    done = []

    class Counted(SVDCompression):
        def compress_layer(self, layer, seen=None):
            done.append(layer)
            return super().compress_layer(layer, seen)

    model, method = digits()[0], Counted({"rank": 8})
    with stops(AttributeError, match="_replace_layer"):
        lines.Theirs().compress_parallel(model, method)
    says("E12.3-3", f"une fois les {len(done)} couches comprimées")
    lines.Theirs._replace_layer = staticmethod(put)
    assert lines.Theirs().compress_parallel(model, method) is model
    assert not any(isinstance(layer, nn.Linear) for layer in model.modules())
    model, method, num_workers = digits()[0], SVDCompression({"rank": 8}), 1
    compressed = ParallelCompression().compress_parallel(model, method, num_workers)
    assert isinstance(model.fc1, nn.Linear)
    assert isinstance(compressed.fc1, TruncatedSVDLinear)


def test_e12_3_4():
    network, images, _ = digits()
    theirs = course_ptq()
    params = theirs._calibrate(network, [images])
    assert params.keys() == {"fc1", "fc2", "fc3"}
    assert [len(found) for found in params.values()] == [2, 2, 2]  # rien des poids
    x = theirs.activation_stats["fc1"][0]
    torch.testing.assert_close(x, network.fc1(images.flatten(1)).detach())  # avant la ReLU
    says("E12.3-4", f"{fr(100 * float(-x.min() / (x.max() - x.min())))} % de la grille de la première")
    method = PTQCompression({"bits": 8})
    compressed = method.compress(network, [images])
    low = float(compressed.fc2.input_quantizer(torch.tensor([-1.0])))
    assert low == 0  # après la ReLU : aucun code pour les négatifs
    assert isinstance(compressed.fc1, QuantizedLinear)


def test_e12_3_5():
    network, images, _ = digits()
    theirs = course_ptq(calibration_method="percentile")
    theirs._calibrate(network, images.split(64))
    kept = sum(t.nbytes for found in theirs.activation_stats.values() for t in found)
    says("E12.3-5", f"{fr(len(images))} images de chiffres, déjà {fr(kept)} octets")
    limit = 2**24
    torch.quantile(torch.zeros(limit), 0.01)
    with stops(RuntimeError, match="input tensor is too large"):
        torch.quantile(torch.zeros(limit + 1), 0.01)
    says("E12.3-5", f"refuse plus de {fr(limit)} nombres")
    width = load_minilm_weights()["encoder.layer.0.intermediate.dense.weight"].shape[0]
    says("E12.3-5", f"ses {fr(width)} sorties par jeton, {fr(limit // width)} jetons suffisent")
    histogram = ActivationHistogram()
    for x in (*images.split(64), torch.ones(limit + 1)):
        histogram.update(x)
    assert histogram.count == images.numel() + limit + 1
    says("E12.3-5", f"{fr(histogram.counts.nbytes)} octets par couche")


def test_e12_3_6():
    model = nn.Sequential(nn.Linear(16, 16))
    sentences = [torch.randn(2, 5, 16), torch.randn(2, 7, 16)]
    with stops(RuntimeError, match="Sizes of tensors must match"):
        course_ptq()._calibrate(model, sentences)
    says("E12.3-6", f"{sentences[0].shape[1]} jetons et l'autre {sentences[1].shape[1]}")
    quantized = PTQCompression().compress(model, sentences)
    assert isinstance(quantized[0], QuantizedLinear)


def test_e12_3_7():
    network, images, _ = digits()
    x = network.fc1(images.flatten(1)).detach()
    histogram = ActivationHistogram()
    histogram.update(x)
    low, high = (torch.quantile(x.flatten()[: 2**24], p).item() for p in (0.01, 0.99))
    params = course_ptq(calibration_method="percentile")._calibrate(network, [images])["fc1"]
    assert params["scale"] == pytest.approx((high - low) / 255)
    outside = float(((x < low) | (x > high)).float().mean())
    says("E12.3-7", f"{fr(100 * outside)} % des valeurs")
    theirs = ActivationQuantizer(8, low, high)
    ours = ActivationQuantizer(8, *histogram.range("percentile", percentile=99.9))
    least = ActivationQuantizer(8, *histogram.range("mse"))
    errors = [100 * relative(x, q(x)) for q in (theirs, ours, least)]
    says("E12.3-7", f"une erreur de {fr(errors[0], 1)} %")
    says("E12.3-7", f"à 99,9 %, {fr(errors[1], 1)} %")
    says("E12.3-7", f"{fr(errors[2], 2)} %")
    method = PTQCompression({"calibration_method": "mse"})
    method.compress(network, [images])


def test_e12_3_8():
    network, images, _ = digits()
    for calibration_method in ("mse", "entropy", "minmax"):
        with stops(UnboundLocalError, match="cannot access local variable"):
            course_ptq(calibration_method=calibration_method)._calibrate(network, [images])
    method = PTQCompression({"calibration_method": "entropy"})
    method.compress(network, [images])
    with pytest.raises(ValueError, match=r"^calibration_method : reçu 'minmax', attendu"):
        PTQCompression({"calibration_method": "minmax"})


def test_e12_3_9():
    network, images, _ = digits()
    assert course_ptq(per_channel=True)._calibrate(network, [images]) == course_ptq()._calibrate(network, [images])
    errors = []
    for per_channel in (False, True):
        method = PTQCompression({"bits": 4, "per_channel": per_channel, "activations": False})
        method.compress(network)
        errors.append(max(line.error for line in method.report))
    says("E12.3-9", f"sur {method.config['bits']} bits")
    says("E12.3-9", f"de {fr(100 * errors[0])} % à {fr(100 * errors[1])} %")
    method = PTQCompression({"bits": 4, "per_channel": True})
    method.compress(network, [images])


def test_e12_3_10():
    with stops(ModuleNotFoundError, match="pquant"):
        course("from pquant.core.compression_method import CompressionMethod")
    lines = course("""
        class CompressionMethod:
            def __init__(self, config):
                self.config = config

        class SVDCompression(CompressionMethod):
            def compress(self, model, train_loader=None, val_loader=None):
                compressed_model = self._create_copy(model)
                return compressed_model

        class PTQCompression(CompressionMethod):
            def compress(self, model, train_loader=None, val_loader=None):
                if train_loader is None:
                    raise ValueError("PTQ requires calibration data")
                calibration_data = self._get_calibration_samples(train_loader)
                return calibration_data
    """)
    network, images, _ = digits()
    with stops(AttributeError, match="_create_copy"):
        lines.SVDCompression({}).compress(network)
    with stops(AttributeError, match="_get_calibration_samples"):
        lines.PTQCompression({}).compress(network, [images])
    assert not hasattr(lines.SVDCompression({}), "compress_layer")
    compressed = SVDCompression({"rank": 8}).compress(network)
    assert isinstance(compressed.fc1, TruncatedSVDLinear)


def course_loop(model, make):
    """La boucle que partagent les méthodes du cours."""
    lines = course(
        """
        def compress(compressed_model):
            for name, module in compressed_model.named_modules():
                if isinstance(module, nn.Linear):
                    put(compressed_model, name, make(module))
            return compressed_model
        """,
        put=put,
        make=make,
    )
    return lines.compress(copy.deepcopy(model))


def test_e12_3_11():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    theirs = course_loop(model, lambda layer: TruncatedSVDLinear.from_linear(layer, rank=2))
    assert isinstance(theirs[0], TruncatedSVDLinear)
    assert isinstance(theirs[2], nn.Linear)
    before, after = stored_bytes(model), stored_bytes(theirs)
    says("E12.3-11", f"{fr(before)} octets en deviennent {fr(after)}")
    compressed = SVDCompression({"rank": 2}).compress(model)
    assert compressed[0] is compressed[2]
    says("E12.3-11", f"il en reste {fr(stored_bytes(compressed))}")


def test_e12_3_12():
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(1, 3, 16)
    theirs = course_loop(block, lambda layer: TruncatedSVDLinear.from_linear(layer, rank=2))
    with stops(AttributeError, match="has no attribute 'weight'"):
        theirs(x)
    method = SVDCompression({"rank": 2})
    compressed = method.compress(block)
    torch.testing.assert_close(compressed(x), block(x))
    assert all("lit ses poids sans l'appeler" in line.note for line in method.report)


def test_e12_3_13():
    lines = course("""
        def factorize(n):
            factors = []
            d = 2
            while d * d <= n:
                while n % d == 0:
                    factors.append(d)
                    n //= d
                d += 1
            if n > 1:
                factors.append(n)
            return factors
        def _factorize_dimensions(in_features, out_features):
            input_factors = factorize(in_features)
            output_factors = factorize(out_features)
            return tuple(input_factors), tuple(output_factors)
    """)
    input_dims, output_dims = lines._factorize_dimensions(384, 1536)
    says("E12.3-13", f"384 entrées se coupent en {len(input_dims)} facteurs, 1 536 sorties en {len(output_dims)}")
    with pytest.raises(ValueError):
        TTLinear(input_dims, output_dims, 32)
    assert lines.factorize(1024) == [2] * 10
    says("E12.3-13", f"de 1 024, il fait {len(lines.factorize(1024))} fois le facteur {lines.factorize(1024)[0]}")
    in_features, out_features = 384, 1536
    input_dims, output_dims = TensorTrainCompression({"rank": 32}).dimensions(in_features, out_features)
    says("E12.3-13", f"{fr_shape(input_dims)} et {fr_shape(output_dims)}")
    TTLinear(input_dims, output_dims, 32)


def test_e12_3_14():
    lines = course("""
        def adapted(model, target_modules=['linear', 'attention']):
            names = []
            for name, module in model.named_modules():
                should_adapt = any(
                    target in name.lower() for target in target_modules
                )
                if should_adapt and isinstance(module, nn.Linear):
                    names.append(name)
            return names
    """)
    network, minilm = digits()[0], load_minilm()
    assert lines.adapted(network) == []
    every, found = encoder_linears(minilm), lines.adapted(minilm)
    assert set(found) < set(every)
    says("E12.3-14", f"{len(found)} des {len(every)} couches")
    assert lines.adapted(network, ["FC"]) == []  # la cible, elle, garde ses majuscules
    method = LoRACompression({"target_modules": ["FC"]})
    method.compress(network)
    says("E12.3-14", f"les {len(method.report)} couches de chiffres")
    with pytest.raises(ValueError, match="'linaire' ne désigne aucune couche"):
        LoRACompression({"target_modules": ["linaire"]}).compress(network)


def test_e12_3_15():
    lines = course(
        """
        def compress(lora_model, rank=16, alpha=1.0):
            for name, module in lora_model.named_modules():
                if isinstance(module, nn.Linear):
                    lora_module = LoRALayer(module, rank=rank, alpha=alpha)
                    put(lora_model, name, lora_module)
            return lora_model
        """,
        LoRALayer=LoRALayer,
        put=put,
    )
    network = load_digits_network("cnn")

    def trainable(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    theirs = lines.compress(copy.deepcopy(network), rank=8)
    lora_model = LoRACompression({"rank": 8}).compress(network)
    says("E12.3-15", f"laisse {fr(trainable(theirs))} nombres à apprendre")
    says("E12.3-15", f"{fr(trainable(lora_model))} seulement")
    assert trainable(theirs) - trainable(lora_model) == sum(
        p.numel() for conv in (network.conv1, network.conv2) for p in conv.parameters()
    )


def course_rank(weight_matrix, max_error=0.05):
    """Le `_find_optimal_rank` du cours."""
    lines = course("""
        def _find_optimal_rank(weight_matrix, max_error):
            U, S, Vt = torch.svd(weight_matrix)
            total_energy = (S ** 2).sum()
            for rank in range(1, len(S) + 1):
                error_energy = (S[rank:] ** 2).sum()
                relative_error = torch.sqrt(error_energy / total_energy)
                if relative_error <= max_error:
                    return rank
            return len(S)  # Utilise le rang complet si nécessaire
    """)
    return lines._find_optimal_rank(weight_matrix, max_error)


def test_e12_3_16():
    network, error_threshold = digits()[0], 0.05
    rank = course_rank(network.fc2.weight.data, error_threshold)
    m, n = network.fc2.weight.shape
    assert rank == smallest_rank(network.fc2.weight, error_threshold)
    says("E12.3-16", f"{n} → {m}")
    says("E12.3-16", f"le rang {rank} suffit")
    says("E12.3-16", f"au-delà du rang {int(break_even_rank(m, n))}")
    theirs = TruncatedSVDLinear.from_linear(network.fc2, rank)
    says("E12.3-16", f"{fr(stored_bytes(theirs) / stored_bytes(network.fc2), 2)} fois plus lourde")
    method = SVDCompression({"optimize_rank": True, "error_threshold": error_threshold})
    method.compress(network)
    assert "plus lourde qu'elle n'était" in {line.name: line for line in method.report}["fc2"].note


def test_e12_3_17():
    weight = torch.zeros(256, 128)
    says("E12.3-17", f"{weight.shape[1]} → {weight.shape[0]}")
    says("E12.3-17", f"rend {course_rank(weight)}")
    layer = nn.Linear(128, 256)
    nn.init.zeros_(layer.weight)
    smaller = SVDCompression({"optimize_rank": True}).compress_layer(layer)
    says("E12.3-17", f"`lrq` rend {smaller.rank}")
    assert smaller.reconstruction_error(layer.weight) == 0


def test_e12_3_18():
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(), nn.Linear(16, 4)).train()
    theirs = copy.deepcopy(model)
    course_ptq()._calibrate(theirs, [torch.randn(8, 16)])
    assert not theirs.training
    with pytest.raises(RuntimeError):
        course_ptq()._calibrate(theirs, [torch.randn(8, 5)])
    assert sum(len(layer._forward_hooks) for layer in theirs) == 2
    method = PTQCompression()
    quantized_model = method.compress(model, [torch.randn(8, 16)])
    assert model.training
    assert quantized_model.training
    with pytest.raises(ValueError, match="refuse des entrées de forme"):
        method.compress(model, [torch.randn(8, 5)])
    assert not any(layer._forward_hooks for layer in model.modules())


def test_e12_3_19():
    silent = nn.Linear(16, 4)
    for p in silent.parameters():
        nn.init.zeros_(p)
    params = course_ptq()._calibrate(nn.Sequential(silent), [torch.randn(8, 16)])["0"]
    assert params["scale"] == 0
    assert rounded(torch.zeros(3), params["scale"], 0, -128, 127).isnan().all()
    model = nn.Sequential(nn.Linear(16, 4))
    quantized = PTQCompression().compress(model, [torch.zeros(8, 16)])
    assert quantized(torch.zeros(2, 16)).isfinite().all()


def replacing_loop():
    """Le parcours du cours, qui remplace les couches pendant qu'il les énumère."""
    return course("""
        class Theirs:
            def compress(self, compressed_model, compress_layer):
                for name, module in compressed_model.named_modules():
                    if isinstance(module, nn.Linear):
                        compressed_layer = compress_layer(module)
                        self._replace_layer(compressed_model, name, compressed_layer)
                return compressed_model
    """)


def test_e12_3_20():
    lines = replacing_loop()

    def take_out_then_put(model, name, layer):
        parent, _, child = name.rpartition(".")
        delattr(model.get_submodule(parent), child)
        put(model, name, layer)

    lines.Theirs._replace_layer = staticmethod(take_out_then_put)
    with stops(RuntimeError, match="changed during iteration"):
        lines.Theirs().compress(
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)),
            lambda layer: TruncatedSVDLinear.from_linear(layer, rank=2),
        )
    lines.Theirs._replace_layer = staticmethod(put)

    class Watched(SVDCompression):
        """Compte, à chaque couche, les matrices d'origine encore en mémoire."""

        def compress_layer(self, layer, seen=None):
            alive.append(sum(weight() is not None for weight in originals))
            return super().compress_layer(layer, seen)

    def alive_at_the_last(run):
        nonlocal originals, alive
        model, method = digits()[0], Watched({"rank": 8})
        originals = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)]
        alive = []
        run(model, method)
        return alive[-1]

    originals, alive = [], []
    kept = alive_at_the_last(lambda model, method: lines.Theirs().compress(model, method.compress_layer))
    says("E12.3-20", f"quand vient la dernière, {kept} matrices d'origine")

    def ours(model, method):
        MemoryEfficientCompression.compress_inplace(model, method)

    says("E12.3-20", f"n'en garde plus que {alive_at_the_last(ours)}")


def test_e12_3_21():
    lines = replacing_loop()
    lines.Theirs._replace_layer = staticmethod(put)
    torch.manual_seed(0)
    model, x = nn.Linear(16, 16), torch.randn(3, 16)
    before = stored_bytes(model)
    theirs = lines.Theirs().compress(copy.deepcopy(model), lambda layer: TruncatedSVDLinear.from_linear(layer, rank=2))
    assert torch.equal(theirs(x), model(x))
    says("E12.3-21", f"{fr(stored_bytes(theirs))} octets au lieu de {fr(before)}")
    compressed = SVDCompression({"rank": 2}).compress(model)
    assert isinstance(compressed, TruncatedSVDLinear)
    says("E12.3-21", f"la couche neuve : {fr(stored_bytes(compressed))} octets")


def test_e12_3_22():
    lines = course("""
        class Theirs:
            def __init__(self, config):
                self.rank = config.get('rank', 64)
                self.optimize_rank = config.get('optimize_rank', False)
    """)
    rank = lines.Theirs({"ranks": 8}).rank
    says("E12.3-22", f"comprime au rang {rank}")
    network = digits()[0]
    m, n = network.fc2.weight.shape
    asked, received = (TruncatedSVDLinear.from_linear(network.fc2, r).count_parameters() for r in (8, rank))
    says("E12.3-22", f"{n} → {m}")
    says("E12.3-22", f"c'est {fr(received / asked)} fois plus")
    with pytest.raises(ValueError, match=r"ne connaît pas 'ranks'.* Vouliez-vous dire 'rank'"):
        SVDCompression({"ranks": 8})


def test_e12_3_23():
    lines = course(
        """
        class Theirs:
            def __init__(self, config):
                self.train_after = config.get('train_after_compression', False)

            def compress(self, compressed_model, train_loader=None):
                if self.train_after and train_loader is not None:
                    compressed_model = self._fine_tune(compressed_model, train_loader)
                return compressed_model
        """
    )
    network, images, _ = digits()
    _, (x_test, y_test) = load_digits_data()
    asked = {"rank": 8, "train_after_compression": True, "epochs": 20, "lr": 3e-3}
    decomposed = TensorTrainCompression({"rank": 8}).compress(network)
    theirs = lines.Theirs(asked).compress(decomposed)
    learned = TensorTrainCompression(asked).compress(network, images.split(64))
    scores = [100 * accuracy(model, x_test, y_test) for model in (theirs, learned)]
    says("E12.3-23", f"en trains de rang {asked['rank']}")
    says("E12.3-23", f"une exactitude de {fr(scores[0])} %")
    says("E12.3-23", f"de {fr(scores[1])} % après {asked['epochs']} passages")
    with pytest.raises(ValueError, match="train_loader : reçu None"):
        TensorTrainCompression({"rank": 8, "train_after_compression": True}).compress(network)
