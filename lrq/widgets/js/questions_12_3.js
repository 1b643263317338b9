// 12.3 : les octets d'un réseau, la couche à servir d'abord, le front, le point zéro, des bits selon la sensibilité.
import { fr } from "./figure.js";
import { bestPurchase, paretoFront, quantizeUniform, storedBits, waterFilling } from "./numerics.js";
import { decimal, inBits, integer, largest, pick, rectangle, selfTest, table } from "./self_test.js";

const NAMES = ["A", "B", "C", "D"];

const octets = {
  title: "Les octets d’un réseau",
  draw: (random) => ({
    layers: integer(random, 4, 40),
    ...rectangle(random, [256, 384, 512, 768, 1024, 1536]),
    bits: integer(random, 2, 6),
    g: pick(random, [16, 32, 64, 128]),
  }),
  ask: ({ layers, m, n, bits, g }) =>
    `<p>Un réseau a ${layers} couches de ${m} × ${n} poids, sans biais. Chaque poids est gardé sur ${bits} bits ; chaque groupe de ${g} a une échelle bfloat16 et un point zéro d’un octet. Combien d’octets en tout ?</p>`,
  answer: ({ layers, m, n, bits, g }) => weighed(layers * m * n, bits, g, 24),
  faults: ({ layers, m, n, bits, g }) => [
    [weighed(layers * m * n, bits, g, 0), "Il n’y a là que les codes : échelles et points zéro se rangent aussi."],
    [weighed(layers * m * n, bits, g, 16), "Le point zéro de chaque groupe est oublié."],
    [weighed(layers * m * n, bits, g, 40), "Les échelles sont comptées en float32 ; bfloat16 tient sur deux octets."],
  ],
  label: (count) => `${fr(count)} octets`,
  apart: 0,
  work: ({ layers, m, n, bits, g }, count) =>
    `<p>Par poids : ${bits} + (16 + 8)/${g} = ${inBits(bits + 24 / g, 4)}. Le réseau a ${layers} × ${m} × ${n} = ${fr(layers * m * n)} poids : ${fr(count)} octets.</p>`,
};

/** Octets de `count` poids, dont chaque groupe de `g` a `extra` bits de plus. */
const weighed = (count, bits, g, extra) => (storedBits(count, bits, 0, true) + (count / g) * extra) / 8;

const slopes = {
  title: "Quelle couche servir d’abord ?",
  draw(random) {
    const layers = NAMES.map(() => {
      const loss = integer(random, 20, 160);
      return { loss, after: Math.round(loss * (0.2 + 0.5 * random())), cost: integer(random, 10, 90) };
    });
    const slope = layers.map(({ loss, after, cost }) => (loss - after) / cost).sort((a, b) => b - a);
    const once = (values) => new Set(values).size === 4;
    const single =
      once(layers.map(({ loss }) => loss)) &&
      once(layers.map(({ loss, after }) => loss - after)) &&
      once(layers.map(({ cost }) => cost));
    return single && slope[0] > 1.1 * slope[1] ? { layers } : null;
  },
  ask: ({ layers }) =>
    `<p>Quatre couches sont sur 3 bits. Voici ce que chacune coûte au réseau (en dix-millièmes), ce qu’elle lui coûterait sur 4 bits, et les kilo-octets qu’il faudrait payer.</p>${table(
      ["couche", "3 bits", "4 bits", "prix"],
      layers.map(({ loss, after, cost }, i) => [NAMES[i], loss, after, `${cost} ko`]),
    )}<p>Laquelle améliorer d’abord ?</p>`,
  answer: ({ layers }) =>
    bestPurchase(
      layers.map(({ loss, after }) => loss - after),
      layers.map(({ cost }) => cost),
    ),
  faults({ layers }) {
    const widest = largest(layers.map(({ loss, after }) => loss - after));
    const cheapest = largest(layers.map(({ cost }) => -cost));
    const worst = largest(layers.map(({ loss }) => loss));
    return [
      [
        widest,
        `C’est elle qui gagne le plus, mais elle coûte ${layers[widest].cost} ko : avec autant d’octets, on gagne davantage ailleurs.`,
      ],
      [
        cheapest,
        "C’est la moins chère, mais elle rapporte peu : ce n’est pas le prix qui décide, c’est le gain par octet.",
      ],
      [
        worst,
        "C’est elle qui perd le plus aujourd’hui ; ce qui compte est ce qu’un octet de plus lui ferait regagner.",
      ],
    ];
  },
  label: (place) => `la couche ${NAMES[place]}`,
  named: true,
  work: ({ layers }, place) =>
    `<p>Le gain par kilo-octet : ${layers
      .map(
        ({ loss, after, cost }, i) => `(${loss} − ${after})/${cost} = ${fr((loss - after) / cost, 2)} pour ${NAMES[i]}`,
      )
      .join(" ; ")}. La pente de ${NAMES[place]} est la plus forte.</p>`,
};

const front = {
  title: "Le front de Pareto",
  draw(random) {
    const sizes = NAMES.map(() => decimal(random, 4, 20));
    const losses = NAMES.map(() => decimal(random, 0.2, 9));
    const apart = (values) =>
      values.every((a, i) => values.every((b, j) => i === j || Math.abs(a - b) > 0.06 * Math.max(...values)));
    return apart(sizes) && apart(losses) && paretoFront(losses, sizes).length === 3 ? { sizes, losses } : null;
  },
  ask: ({ sizes, losses }) =>
    `<p>Quatre recettes ont été mesurées : leur taille, et ce que perd le réseau.</p>${scatter(sizes, losses)}${table(
      ["recette", "taille", "perte"],
      sizes.map((size, i) => [NAMES[i], `${fr(size, 1)} Mo`, `${fr(losses[i], 1)} %`]),
    )}<p>Laquelle n’a jamais lieu d’être choisie ?</p>`,
  answer: ({ sizes, losses }) => NAMES.findIndex((_, i) => !paretoFront(losses, sizes).includes(i)),
  faults: ({ sizes, losses }) =>
    paretoFront(losses, sizes).map((i, place) => [
      i,
      [
        "C’est la plus légère : qui n’a pas plus d’octets n’a pas d’autre choix.",
        "Les recettes plus légères perdent davantage, et celles qui perdent moins sont plus lourdes : elle est sur le front.",
        "C’est elle qui perd le moins : qui a les octets la choisit.",
      ][place],
    ]),
  label: (place) => `la recette ${NAMES[place]}`,
  named: true,
  work({ sizes, losses }, place) {
    const better = NAMES.findIndex((_, i) => sizes[i] < sizes[place] && losses[i] < losses[place]);
    return `<p>${NAMES[better]} est à la fois plus légère (${fr(sizes[better], 1)} contre ${fr(sizes[place], 1)} Mo) et plus fidèle (${fr(losses[better], 1)} contre ${fr(losses[place], 1)} % de perte) que ${NAMES[place]}. Les trois autres forment le front : aucune n’est battue sur les deux tableaux.</p>`;
  },
};

/** Les recettes, en points : la taille vers la droite, la perte vers le haut. */
function scatter(sizes, losses) {
  const [width, height, margin] = [280, 150, 26];
  const x = (size) => margin + ((width - 2 * margin) * size) / 20;
  const y = (loss) => height - margin - ((height - 2 * margin) * loss) / 9;
  const points = sizes.map(
    (size, i) =>
      `<circle class="lrq-dot bits" cx="${x(size)}" cy="${y(losses[i])}" r="5"/><text class="lrq-label" x="${x(size) + 8}" y="${y(losses[i]) + 4}">${NAMES[i]}</text>`,
  );
  const axes = `<path class="lrq-grid" fill="none" d="M${margin} 8V${height - margin}H${width - 8}"/>`;
  const names = `<text class="lrq-tick" x="${margin + 6}" y="16">perte</text><text class="lrq-tick" text-anchor="end" x="${width - 8}" y="${height - 9}">taille</text>`;
  return `<svg class="lrq-drawn" aria-hidden="true" width="${width}" height="${height}">${axes}${names}${points.join("")}</svg>`;
}

const zero = {
  title: "Le point zéro",
  draw(random) {
    const data = { low: -decimal(random, 0.5, 6), high: decimal(random, 0.5, 9), bits: pick(random, [4, 5, 6, 7, 8]) };
    const place = (-data.low / (data.high - data.low)) * (2 ** data.bits - 1);
    return Math.abs((place % 1) - 0.5) < 0.1 ? null : data;
  },
  ask: ({ low, high, bits }) =>
    `<p>Une grille asymétrique de ${bits} bits, de codes 0 à 2<sup>${bits}</sup> − 1, doit couvrir les activations de ${fr(low, 1)} à ${fr(high, 1)}. Quel est son point zéro ?</p>`,
  answer: ({ low, high, bits }) =>
    quantizeUniform(Float32Array.of(low, high), bits, 1, false).zeros[0] + 2 ** (bits - 1),
  faults({ low, high, bits }, z) {
    const steps = 2 ** bits - 1;
    return [
      [
        0,
        "C’est ce que garde le cours : sa grille ne couvre alors pas ce qui est négatif, qu’elle avait pourtant mesuré.",
      ],
      [z - 2 ** (bits - 1), "C’est le point zéro de codes signés ; ceux-ci commencent à 0."],
      [
        Math.round((-low / high) * steps),
        `L’échelle partage toute l’étendue, <var>β</var> − <var>α</var> = ${fr(high - low, 1)}, et non <var>β</var> seul.`,
      ],
    ];
  },
  label: (code) => fr(code),
  work({ low, high, bits }, z) {
    const step = (high - low) / (2 ** bits - 1);
    return `<p><var>Δ</var> = (${fr(high, 1)} + ${fr(-low, 1)})/${2 ** bits - 1} = ${fr(step, 4)}. Le point zéro est l’entier le plus proche de −<var>α</var>/<var>Δ</var> = ${fr(-low, 1)}/${fr(step, 4)} = ${fr(-low / step, 2)} : ${fr(z)}.</p>`;
  },
};

const sensitive = {
  title: "Des bits selon la sensibilité",
  draw(random) {
    const data = { loss: integer(random, 6, 96), weights: integer(random, 2, 8) };
    return data.loss > 1.5 * data.weights ? data : null;
  },
  ask: ({ loss, weights }) =>
    `<p>À nombre de bits égal, la couche A coûte au réseau ${loss} fois plus que la couche B, et elle a ${weights} fois plus de poids. À l’équilibre, combien de bits de plus un poids de A reçoit-il qu’un poids de B ? (Les bits peuvent être fractionnaires.)</p>`,
  answer({ loss, weights }) {
    const [, one, other] = waterFilling([Math.sqrt(loss / weights), 1], 8); // deux directions, la plus sensible d'abord
    return one - other;
  },
  faults: ({ loss, weights }) => [
    [
      Math.log2(loss / weights),
      "Un bit de plus divise l’erreur par deux, donc son carré par quatre : il manque un demi devant le logarithme.",
    ],
    [
      Math.log2(loss) / 2,
      `Le nombre de poids est oublié : un bit de plus coûte ${weights} fois plus d’octets dans A que dans B.`,
    ],
    [
      Math.log2(loss * weights) / 2,
      "Les poids sont comptés à l’envers : plus une couche en a, plus un bit y coûte cher, et moins elle en reçoit.",
    ],
    [Math.log(loss / weights) / 2, "Les bits se comptent en logarithme de base deux."],
  ],
  label: (value) => inBits(value),
  entry: { name: "Bits de plus", absolute: 0.05 },
  work: ({ loss, weights }, bits) =>
    `<p>½ log<sub>2</sub> (${loss}/${weights}) = ½ log<sub>2</sub> ${fr(loss / weights, 2, 0)} = ${fr(bits, 2)}. Quatre fois plus sensible par poids, un bit de plus.</p>`,
};

export const questions = [octets, slopes, front, zero, sensitive];

export default selfTest("12.3", questions);
