"""Section 12.3 : la quantification après l'apprentissage, poids et activations."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ..activation import listen
from ..histogram import ActivationHistogram
from ..layers import (
    ActivationQuantizer,
    CompactSVDLinear,
    FactorizedLinear,
    QATLowRankLinear,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedLowRankLinear,
    QuantizedTTLinear,
    SVDCompressedLinear,
    TruncatedSVDLinear,
    TTLinear,
)
from ..layers.base import copy_bias
from ..quantizers import CLIPPINGS, PerChannel, PerTensor, UniformQuantizer
from ..validation import check_bits, check_choice, check_percentile
from .batches import check_batches, run_batches
from .method import CompressionMethod, Task

FACTORED = (FactorizedLinear, SVDCompressedLinear, TruncatedSVDLinear, CompactSVDLinear)
CALIBRATIONS = (*CLIPPINGS, "entropy")


class PTQCompression(CompressionMethod):
    """Les poids, et les entrées, des nn.Linear et des nn.Conv2d sur quelques bits, sans apprentissage.

    Les entrées d'une couche prennent une seule échelle, fixée par la calibration, qui ne les garde pas : leur
    histogramme suffit (:class:`~lrq.ActivationHistogram`). Une couche linéaire déjà écrite en deux ou trois facteurs,
    ou en train de tenseurs, voit quantifier ses facteurs, et non ses entrées ; une convolution factorisée et une couche
    à plusieurs étages restent telles quelles.

    Parameters
    ----------
    config : dict, optionnel
        ``bits`` (8) ; ``calibration_method`` ("min_max", "percentile", "mse" ou "entropy"), où s'arrêtent les grilles
        des entrées et celles des poids (pour "entropy", les poids prennent "mse") ; ``percentile`` (99,9) ;
        ``per_channel`` (False), une échelle par sortie plutôt qu'une par couche ; ``activations`` (True), faux pour
        ne quantifier que les poids, et se passer de calibration ; ``embeddings`` (False), vrai pour quantifier aussi
        les nn.Embedding. Et les clés communes, ``layers``, ``exclude``, ``progress``.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "bits": 8,
        "calibration_method": "min_max",
        "percentile": 99.9,
        "per_channel": False,
        "activations": True,
        "embeddings": False,
    }

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        """Les sortes de couches traitées : celles que veut la configuration."""
        plain = (nn.Linear, nn.Conv2d, *FACTORED, TTLinear)
        return (*plain, nn.Embedding) if self.config["embeddings"] else plain

    def validate_config(self) -> None:
        super().validate_config()
        bits, method = self.config["bits"], self.config["calibration_method"]
        check_choice(method, "calibration_method", CALIBRATIONS)
        per_channel = PerChannel(0) if self.config["per_channel"] else PerTensor()
        clipping = method if method in CLIPPINGS else "mse"
        check_percentile(self.config["percentile"], "percentile")
        self.quantizer = UniformQuantizer(
            check_bits(bits, "bits"), granularity=per_channel, clipping=clipping, percentile=self.config["percentile"]
        )

    @property
    def observes(self) -> bool:
        return bool(self.config["activations"])

    def observe(self, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
        names = [self.names_of_layers(model, task) for task in tasks]
        histograms = {
            name: ActivationHistogram()
            for task, group in zip(tasks, names, strict=True)
            for name, layer in zip(group, task.layers, strict=True)
            if not task.note and isinstance(layer, nn.Linear | nn.Conv2d)
        }
        if not self.observes or not histograms:
            return
        check_batches(train_loader, why=" de calibration : ils fixent les grilles des entrées")

        def receive(name: str, x: Tensor) -> None:
            histograms[name].update(x)

        listen(model, list(histograms), lambda: run_batches(model, train_loader), receive)
        for task, group in zip(tasks, names, strict=True):
            task.seen = [histograms.get(name) for name in group]

    def compress_layer(self, layer: nn.Module, seen: ActivationHistogram | None = None) -> nn.Module:
        """La couche quantifiée ; ses entrées aussi, si l'on en donne l'histogramme.

        Parameters
        ----------
        layer : nn.Linear, nn.Conv2d, nn.Embedding, ou une couche factorisée ou en train de tenseurs
        seen : ActivationHistogram, optionnel

        Returns
        -------
        nn.Module
        """
        q = self.quantizer
        if isinstance(layer, nn.Embedding):
            return QuantizedEmbedding.from_embedding(layer, quantizer=q)
        if isinstance(layer, QATLowRankLinear):
            raise TypeError("layer : reçu QATLowRankLinear, dont l'arrondi s'est appris ; appelez to_quantized().")
        if isinstance(layer, FACTORED):
            smaller = QuantizedLowRankLinear.from_weight_matrix(layer.reconstruct_weight(), layer.rank, quantizer=q)
            smaller.bias = copy_bias(layer)
            return smaller
        if isinstance(layer, TTLinear):
            return QuantizedTTLinear.from_tt(layer, q.n_bits, clipping=q.clipping)
        quantize = QuantizedConv2d.from_conv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear.from_linear
        return self.round_inputs(quantize(layer, quantizer=q), seen)  # type: ignore[arg-type]

    def share(self, compressed: nn.Module, layer: nn.Module, seen: Any = None) -> nn.Module:
        return self.round_inputs(super().share(compressed, layer, seen), seen)

    def round_inputs(self, layer: Any, seen: ActivationHistogram | None) -> nn.Module:
        """La couche quantifiée `layer`, à qui l'on ajoute la grille de ses entrées, tirée de l'histogramme `seen`."""
        if seen is not None:
            low, high = seen.range(self.config["calibration_method"], self.config["bits"], self.config["percentile"])
            layer.input_quantizer = ActivationQuantizer(self.config["bits"], low, high, layer.packed.packed.device)
        return layer
