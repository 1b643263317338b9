// 11.5 : des carrés qui s'ajoutent, une borne qui enfle, des décibels, deux normes, des bits perdus.
import { fr } from "./figure.js";
import { extremes, frobeniusNorm, propagationBound, quadrature, wastedBits } from "./numerics.js";
import { decimal, inBits, integer, joined, pick, product, selfTest, sum } from "./self_test.js";

const combined = {
  title: "Tronquer et arrondir",
  draw: (random) => ({ truncation: decimal(random, 5, 60), rounding: decimal(random, 5, 60) }),
  ask: ({ truncation, rounding }) =>
    `<p>Une troncature laisse ${fr(truncation, 1)} % d’erreur. Pris seul, l’arrondi de ses facteurs en laisse ${fr(rounding, 1)} %. Quelle erreur prévoyez-vous pour les deux ensemble ?</p>`,
  answer: ({ truncation, rounding }) => quadrature([truncation, rounding]),
  faults: ({ truncation, rounding }) => [
    [
      truncation + rounding,
      "Vous avez additionné les erreurs. L’arrondi déplace la matrice dans des directions orthogonales à ce que la troncature a jeté : ce sont les carrés qui s’ajoutent.",
    ],
    [Math.max(truncation, rounding), "La plus grande domine, mais l’autre s’y ajoute, au carré."],
    [
      (truncation + rounding) / 2,
      "Deux erreurs qui s’ajoutent ne peuvent en faire une plus petite que la plus grande des deux.",
    ],
  ],
  label: (error) => `${fr(error, 1)} %`,
  apart: 0.03,
  work: ({ truncation, rounding }, error) =>
    `<p>√(${fr(truncation, 1)}<sup>2</sup> + ${fr(rounding, 1)}<sup>2</sup>) = √${fr(truncation ** 2 + rounding ** 2, 1)} = ${fr(error, 1)} %. La somme en annoncerait ${fr(truncation + rounding, 1)}.</p>`,
};

const propagation = {
  title: "Une borne, de couche en couche",
  draw: (random) => ({
    gains: Array.from({ length: 3 }, () => decimal(random, 0.5, 3)),
    own: Array.from({ length: 3 }, () => decimal(random, 0.2, 2)),
  }),
  ask: ({ gains, own }) =>
    `<p>Trois couches compressées ont pour normes spectrales ${joined(gains, " ; ", 1)}. Les écarts qu’elles ajoutent, ‖<var>E<sub>l</sub></var>‖<sub>2</sub> ‖<var>h</var><sub><var>l</var>−1</sub>‖, valent ${joined(own, " ; ", 1)}. Quelle borne la théorie donne-t-elle à l’erreur de sortie ?</p>`,
  answer: ({ gains, own }) => propagationBound(gains, own)[2],
  faults: ({ gains, own }) => [
    [
      sum(own),
      "Les écarts sont ajoutés tels quels : chacun est encore multiplié par les normes des couches qui suivent.",
    ],
    [
      own.reduce((bound, added, i) => gains[i] * (bound + added), 0),
      "Chaque écart est multiplié aussi par la norme de sa propre couche. Il naît à sa sortie : seules les couches suivantes l’amplifient.",
    ],
    [
      product(gains) * sum(own),
      "Toutes les normes sont appliquées à tous les écarts ; un écart ne traverse que les couches d’après la sienne.",
    ],
  ],
  label: (bound) => fr(bound, 2),
  apart: 0.03,
  work({ gains, own }, bound) {
    const [first, second] = propagationBound(gains, own);
    const g = (i) => fr(gains[i], 1, 0);
    const o = (i) => fr(own[i], 1, 0);
    return `<p><var>b</var><sub>1</sub> = ${fr(first, 2, 0)} (avant la première couche, il n’y a pas d’erreur). <var>b</var><sub>2</sub> = ${g(1)} × ${fr(first, 2, 0)} + ${o(1)} = ${fr(second, 2, 0)}. <var>b</var><sub>3</sub> = ${g(2)} × ${fr(second, 2, 0)} + ${o(2)} = ${fr(bound, 2)}. La première norme n’y sert pas.</p>`;
  },
};

const decibels = {
  title: "Des bits et des décibels",
  draw(random) {
    const from = integer(random, 3, 6);
    return { from, to: integer(random, from + 1, 8), ratio: decimal(random, 5, 25) };
  },
  ask: ({ from, to, ratio }) =>
    `<p>Sur une grille symétrique de ${from} bits, assez fine, le rapport du signal au bruit d’une matrice vaut ${fr(ratio, 1)} dB. Que prévoit la formule exacte à ${to} bits, si rien d’autre ne change ?</p>`,
  answer: ({ from, to, ratio }) => ratio + gained(from, to),
  faults: ({ from, to, ratio }) => [
    [
      ratio + 20 * Math.log10(2) * (to - from),
      "6,02 dB par bit est une limite. La grille symétrique perd un niveau, ce qui compte davantage quand il y en a peu : un bit de plus y gagne plus.",
    ],
    [
      ratio + gained(from, to) / 2,
      "Le pas est une amplitude : le rapport en décibels en prend 20 fois le logarithme, et non 10.",
    ],
    [
      ratio + 20 * Math.log10((2 ** to - 1) / (2 ** from - 1)),
      "Vous avez compté 2<sup><var>b</var></sup> − 1 pas. De chaque côté de zéro, il n’y en a que <var>q</var> = 2<sup><var>b</var>−1</sup> − 1.",
    ],
  ],
  label: (value) => `${fr(value, 1)} dB`,
  apart: 0.015,
  work({ from, to, ratio }, value) {
    const [few, many] = [from, to].map((bits) => extremes(bits, true)[1]);
    return `<p>Le pas est divisé par ${fr(many)}/${fr(few)} = ${fr(many / few, 2)}. Le rapport gagne 20 log<sub>10</sub> ${fr(many / few, 2)} = ${fr(gained(from, to), 1)} dB : ${fr(ratio, 1)} + ${fr(gained(from, to), 1)} ≈ ${fr(value, 1)} dB.</p>`;
  },
};

/** Ce que gagne le rapport du signal au bruit, en décibels, d'une grille symétrique à une autre. */
const gained = (from, to) => 20 * Math.log10(extremes(to, true)[1] / extremes(from, true)[1]);

const norms = {
  title: "Le pire, ou la moyenne",
  draw(random) {
    const S = Array.from({ length: 4 }, () => decimal(random, 0.2, 3)).sort((a, b) => b - a);
    return { S, length: integer(random, 2, 20), worst: random() < 0.5 };
  },
  ask: ({ S, length, worst }) =>
    `<p>L’écart <var>E</var> d’une couche, de ${S.length} × ${S.length} nombres, a pour valeurs singulières ${joined(S, " ; ", 1)}. Une entrée <var>x</var> de norme ${length} passe. ${worst ? "Jusqu’où peut aller ‖<var>Ex</var>‖ ?" : "Si la direction de <var>x</var> est quelconque (uniforme), que vaut ‖<var>Ex</var>‖, en moyenne quadratique ?"}</p>`,
  answer: ({ S, length, worst }) => length * (worst ? S[0] : frobeniusNorm(S) / Math.sqrt(S.length)),
  faults: ({ S, length, worst }) => [
    [
      length * frobeniusNorm(S),
      `C’est ‖<var>E</var>‖<sub>F</sub> ‖<var>x</var>‖, une borne trop large. (Le piège : pour une matrice, <code>torch.norm(E, p=2)</code> est la norme de Frobenius.)`,
    ],
    [length * sum(S), "La somme des valeurs singulières est la norme nucléaire : elle ne dit rien d’une entrée."],
    worst
      ? [
          (length * frobeniusNorm(S)) / Math.sqrt(S.length),
          "C’est la moyenne quadratique sur toutes les directions ; la pire entrée fait davantage.",
        ]
      : [
          length * S[0],
          "C’est la pire des entrées, alignée sur le premier vecteur singulier droit ; une entrée quelconque fait moins.",
        ],
  ],
  label: (value) => fr(value, 2),
  work({ S, length, worst }, value) {
    if (worst)
      return `<p>‖<var>Ex</var>‖ ≤ ‖<var>E</var>‖<sub>2</sub> ‖<var>x</var>‖ = <var>σ</var><sub>1</sub> ‖<var>x</var>‖ = ${fr(S[0], 1)} × ${length} = ${fr(value, 2)}, et le premier vecteur singulier droit l’atteint.</p>`;
    return `<p>La moyenne de ‖<var>Ex</var>‖<sup>2</sup> est ‖<var>E</var>‖<sub>F</sub><sup>2</sup> ‖<var>x</var>‖<sup>2</sup>/<var>n</var>. Ici ‖<var>E</var>‖<sub>F</sub> = √(${S.map((s) => `${fr(s, 1)}<sup>2</sup>`).join(" + ")}) = ${fr(frobeniusNorm(S), 3)} : ${fr(frobeniusNorm(S), 3)} × ${length} / √${S.length} = ${fr(value, 2)}.</p>`;
  },
};

const wasted = {
  title: "Des bits perdus",
  draw(random) {
    const data = { rate: decimal(random, 2, 7), error: decimal(random, 0.5, 40) };
    const lost = wastedBits(data.rate, data.error / 100);
    return lost > 0.2 && lost < 2.5 ? data : null;
  },
  ask: ({ rate, error }) =>
    `<p>Une recette garde ${fr(rate, 1)} bits par poids, échelles comprises, et laisse ${fr(error, 1)} % d’erreur relative. Combien de bits de trop dépense-t-elle, par rapport à la droite de Shannon des nombres gaussiens ?</p>`,
  answer: ({ rate, error }) => wastedBits(rate, error / 100),
  faults: ({ rate, error }) => [
    [
      -Math.log2(error / 100),
      "Ce sont les bits que la droite demande pour cette erreur ; il reste à les retrancher de ceux qu’on dépense.",
    ],
    [
      rate + 2 * Math.log2(error / 100),
      "La droite est 2<sup>−<var>R</var></sup> pour l’erreur ; 2<sup>−2<var>R</var></sup> est pour son carré.",
    ],
    [rate + Math.log(error / 100), "Les bits se comptent en logarithme de base deux."],
    [rate + Math.log10(error / 100), "Les bits se comptent en logarithme de base deux."],
  ],
  label: (value) => inBits(value),
  entry: { name: "Bits de trop", absolute: 0.05 },
  work: ({ rate, error }, bits) =>
    `<p>Cette erreur demande −log<sub>2</sub> ${fr(error / 100, 3)} = ${fr(-Math.log2(error / 100), 2)} bits. La recette en dépense ${fr(rate, 1)} : ${fr(rate, 1)} − ${fr(-Math.log2(error / 100), 2)} = ${fr(bits, 2)}.</p>`,
};

export const questions = [combined, propagation, decibels, norms, wasted];

export default selfTest("11.5", questions);
