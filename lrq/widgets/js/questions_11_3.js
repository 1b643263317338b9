// 11.3 : la mémoire de l'entraînement, l'échelle, le premier pas, la fusion, le prix d'un adaptateur.
import { fr } from "./figure.js";
import { factorBits, loraScale, reconstruct, trainingBytes } from "./numerics.js";
import { inBits, integer, matrix, pick, rectangle, selfTest, sum } from "./self_test.js";

const SCALES = {
  alpha: "<var>α</var>",
  "alpha/r": "<var>α</var>/<var>r</var>",
  "alpha/sqrt(r)": "<var>α</var>/√<var>r</var>",
};
const WHOSE = {
  alpha: "celle du cours",
  "alpha/r": "celle de l’article de LoRA, que suit PEFT",
  "alpha/sqrt(r)": "celle de rsLoRA",
};

const memory = {
  title: "Ce que LoRA économise",
  draw(random) {
    const { m, n } = rectangle(random, [256, 384, 512, 768, 1024, 1536, 2048]);
    const r = pick(random, [4, 8, 12, 16, 24, 32, 48, 64]);
    return r * (m + n) > 0.03 * m * n && r * (m + n) < 0.4 * m * n ? { m, n, r } : null;
  },
  ask: ({ m, n, r }) =>
    `<p>Une couche de ${m} × ${n} poids, gelée, reçoit un adaptateur de rang ${r}, entraîné par Adam ; tout est en float32. Par combien LoRA divise-t-il la mémoire des poids, des gradients et des moments, par rapport à un réglage de tous les poids ?</p>`,
  answer: ({ m, n, r }) => sum(trainingBytes(0, m * n)) / sum(trainingBytes(m * n, r * (m + n))),
  faults({ m, n, r }) {
    const adapter = r * (m + n);
    return [
      [(m * n) / adapter, "C’est le rapport des nombres appris. Mais les poids gelés restent en mémoire."],
      [
        4,
        "C’est la limite, quand l’adaptateur ne pèse rien. Le sien se compte aussi, avec ses gradients et ses moments.",
      ],
      [
        (4 * m * n) / (m * n + adapter),
        "L’adaptateur n’a pas que ses valeurs : il a aussi un gradient et deux moments par nombre.",
      ],
    ];
  },
  label: (ratio) => `par ${fr(ratio, 2)}`,
  work: ({ m, n, r }, ratio) =>
    `<p>Réglage complet : 16 octets par poids (valeur, gradient, deux moments), soit ${fr(16 * m * n)}. LoRA : 4 octets par poids gelé, et 16 pour chacun des ${fr(r * (m + n))} nombres de l’adaptateur, soit ${fr(4 * m * n)} + ${fr(16 * r * (m + n))}. Le rapport est ${fr(ratio, 2)}.</p>`,
};

const scale = {
  title: "Quelle échelle ?",
  draw: (random) => ({
    alpha: pick(random, [2, 4, 8, 12, 16, 24, 32, 64]),
    r: pick(random, [4, 8, 16, 25, 32, 36, 49, 64]),
    scaling: pick(random, Object.keys(SCALES)),
  }),
  ask: ({ alpha, r, scaling }) =>
    `<p>Un adaptateur de rang ${r} est réglé par <var>α</var> = ${alpha}. Par quelle échelle <var>s</var> multiplie-t-il <var>BA</var>, si la convention est ${WHOSE[scaling]} ?</p>`,
  answer: ({ alpha, r, scaling }) => loraScale(alpha, r, scaling),
  faults: ({ alpha, r, scaling }) => [
    ...Object.keys(SCALES)
      .filter((other) => other !== scaling)
      .map((other) => [
        loraScale(alpha, r, other),
        `C’est ${SCALES[other]}, l’échelle d’une autre convention : ${WHOSE[other]}.`,
      ]),
    [
      alpha * r,
      "Aucune convention ne multiplie par le rang : plus il est grand, plus l’échelle baisse, ou bien elle n’en dépend pas.",
    ],
  ],
  label: (s) => `<var>s</var> = ${fr(s, 4, 0)}`,
  work: ({ alpha, r, scaling }, s) =>
    `<p><var>s</var> = ${SCALES[scaling]}${{ alpha: "", "alpha/r": ` = ${alpha}/${r}`, "alpha/sqrt(r)": ` = ${alpha}/√${r}` }[scaling]} = ${fr(s, 4, 0)}. C’est ${WHOSE[scaling]}.</p>`,
};

/** Ce que vaut, à un facteur près, la baisse de la perte au premier pas. */
const fall = (r, scaling, adam) => r * loraScale(1, r, scaling) ** (adam ? 1 : 2);

const step = {
  title: "Le premier pas, et le rang",
  draw: (random) => {
    const from = integer(random, 1, 9);
    return {
      from,
      to: from * pick(random, [4, 9, 16, 25]),
      scaling: pick(random, Object.keys(SCALES)),
      adam: random() < 0.5,
    };
  },
  ask: ({ from, to, scaling, adam }) =>
    `<p>On passe un adaptateur du rang ${from} au rang ${to}, à l’échelle ${SCALES[scaling]} et au même pas. Au premier pas ${adam ? "d’Adam" : "d’une descente de gradient"}, la baisse de la perte, au premier ordre et en moyenne…</p>`,
  answer: ({ from, to, scaling, adam }) => fall(to, scaling, adam) / fall(from, scaling, adam),
  faults({ from, to }, answer) {
    const k = to / from;
    return [
      [k, "Ce serait vrai à l’échelle <var>α</var>, pour Adam comme pour la descente."],
      [Math.sqrt(k), "Ce serait vrai d’Adam à l’échelle <var>α</var>/√<var>r</var>."],
      [
        1,
        "Ce serait vrai d’Adam à l’échelle <var>α</var>/<var>r</var>, ou de la descente à l’échelle <var>α</var>/√<var>r</var>.",
      ],
      [1 / k, "Ce serait vrai de la descente à l’échelle <var>α</var>/<var>r</var>."],
    ].filter(([value]) => Math.abs(value - answer) > 1e-6);
  },
  label: (factor) =>
    Math.abs(factor - 1) < 1e-6
      ? "ne change pas"
      : factor > 1
        ? `est multipliée par ${fr(factor)}`
        : `est divisée par ${fr(1 / factor)}`,
  work({ from, to, scaling, adam }) {
    const law = adam ? "<var>s</var> <var>r</var>" : "<var>s</var><sup>2</sup> <var>r</var>";
    const grown = {
      alpha: "<var>r</var>",
      "alpha/r": adam ? "1" : "1/<var>r</var>",
      "alpha/sqrt(r)": adam ? "√<var>r</var>" : "1",
    };
    return `<p>La baisse est proportionnelle à ${law}, donc, avec <var>s</var> = ${SCALES[scaling]}, à ${grown[scaling]}. Le rang, lui, est multiplié par ${fr(to / from)}.</p>`;
  },
};

const merge = {
  title: "Fusionner",
  draw(random) {
    const number = () => pick(random, [-4, -3, -2, -1, 1, 2, 3, 4, 5]);
    const W = [number(), number(), number(), number()];
    const [row, column] = pick(random, [
      [1, 2],
      [2, 1],
    ]);
    return { W, A: [number(), number()], B: [number(), number()], s: pick(random, [0.5, 2, 3]), row, column };
  },
  ask: ({ W, A, B, s, row, column }) =>
    `<p><var>W</var><sub>0</sub> = ${matrix([W.slice(0, 2), W.slice(2)])}, <var>B</var> = ${matrix(B.map((b) => [b]))}, <var>A</var> = ${matrix([A])}, <var>s</var> = ${fr(s, 1, 0)}. On fusionne. Que vaut, dans la couche fusionnée, le coefficient de la ligne ${row}, colonne ${column} ?</p>`,
  answer: ({ W, A, B, s, row, column }) =>
    W[2 * row + column - 3] + s * reconstruct(B, A, 2, 2, 1)[2 * row + column - 3],
  faults({ W, A, B, s, row, column }) {
    const w = W[2 * row + column - 3];
    const ba = B[row - 1] * A[column - 1];
    return [
      [w + ba, "L’échelle <var>s</var> est oubliée."],
      [
        w + 2 * s * ba,
        "L’adaptateur est compté deux fois : fusionné dans les poids, et resté actif à côté. C’est le piège du cours.",
      ],
      [
        w + s * B[column - 1] * A[row - 1],
        "Ligne et colonne sont échangées : <var>B</var> donne la ligne, <var>A</var> la colonne.",
      ],
    ];
  },
  label: (value) => fr(value, 1, 0),
  apart: 0,
  work: ({ W, A, B, s, row, column }, value) =>
    `<p><var>W</var><sub>0</sub> + <var>s</var> <var>BA</var>, à cette place : ${fr(W[2 * row + column - 3])} + ${fr(s, 1, 0)} × ${signed(B[row - 1])} × ${signed(A[column - 1])} = ${fr(value, 1, 0)}. Une fois fusionné, l’adaptateur ne s’ajoute plus.</p>`,
};

/** Un facteur d'un produit : entre parenthèses s'il est négatif. */
const signed = (value) => (value < 0 ? `(${fr(value)})` : fr(value));

const price = {
  title: "Le prix d’un adaptateur",
  draw(random) {
    const { m, n } = rectangle(random, [256, 384, 512, 640, 768, 1024, 1536, 2048]);
    return { m, n, r: pick(random, [4, 6, 8, 12, 16, 24, 32]) };
  },
  ask: ({ m, n, r }) =>
    `<p>On répare une couche de ${m} × ${n} poids, gardés sur 3 bits, par un adaptateur de rang ${r} en float32. Combien de bits par poids de la couche cet adaptateur ajoute-t-il ?</p>`,
  answer: ({ m, n, r }) => factorBits(m, n, r) / (m * n),
  faults: ({ m, n, r }) => [
    [(r * (m + n)) / (m * n), "C’est le nombre de coefficients de l’adaptateur par poids ; chacun occupe 32 bits."],
    [(16 * r * (m + n)) / (m * n), "C’est ce qu’il ajouterait en float16, qui suffit souvent."],
    [(3 * r * (m + n)) / (m * n), "La couche est gardée sur 3 bits, non l’adaptateur."],
  ],
  label: (value) => inBits(value),
  entry: { name: "Bits par poids", relative: 0.02 },
  work: ({ m, n, r }, bits) =>
    `<p>32 <var>r</var>(<var>m</var> + <var>n</var>) / (<var>mn</var>) = 32 × ${fr(r * (m + n))} / ${fr(m * n)} = ${fr(bits, 2)}. Ce que l’on ajoute ainsi à 3 bits se compare à une quantification plus fine, sans adaptateur.</p>`,
};

export const questions = [memory, scale, step, merge, price];

export default selfTest("11.3", questions);
