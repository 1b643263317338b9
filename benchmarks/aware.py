"""La SVD consciente des entrées, sur MiniLM deux fois plus petit : ce qu'il reste du sens des phrases."""

from collections.abc import Iterator

from torch import nn

from lrq import Calibration, CompactSVDLinear, break_even_rank, calibrate, models, replace_linears

from .table import Row, number

TARGET = 0.75
QUICK_SENTENCES = 100


def measure(quick: bool) -> Iterator[Row]:
    """Les 36 couches de l'encodeur à la moitié de leurs paramètres, calibrées sur des phrases, jugées sur d'autres."""
    encoder = models.load_minilm()
    names = models.encoder_linears(encoder)[: 6 if quick else None]  # en bref, le premier bloc
    sentences = models.load_sentences("calibration"), models.load_sentences("test")
    learned, judged = (part[:QUICK_SENTENCES] if quick else part for part in sentences)
    seen = calibrate(encoder, names, lambda: encoder.encode(learned, batch_size=1))  # une à une : pas de remplissage
    target = encoder.encode(judged)

    def fidelity(calibration: dict[str, Calibration]) -> float:
        """Le cosinus moyen avec le réseau d'origine ; une couche sans calibration suit la SVD ordinaire."""
        convert = {name: lambda layer, name=name: halve(layer, calibration.get(name)) for name in names}
        return models.mean_cosine(replace_linears(encoder, convert).encode(judged), target)

    aware, plain = fidelity(seen), fidelity({})
    yield Row(
        f"MiniLM, {len(names)} couches à moitié, {len(judged)} phrases : cosinus moyen, contre la SVD des poids",
        number(aware),
        number(plain),
        f"+{number(aware - plain)}",
        "—" if quick else f"≥ {number(TARGET, 2)}",
        None if quick else aware >= TARGET,
    )


def halve(layer: nn.Linear, calibration: Calibration | None) -> CompactSVDLinear:
    """La couche de rang r*/2."""
    rank = int(break_even_rank(layer.out_features, layer.in_features) / 2)
    return CompactSVDLinear.from_linear(layer, rank, calibration)
