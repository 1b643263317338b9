// 11.4 : peser des facteurs de b bits, comparer deux compressions, arrondir un poids, réparer, compter le réseau entier.
import { fr } from "./figure.js";
import { bestWithin, dequantize, factorBits, quantizeSymmetric, storedBits } from "./numerics.js";
import { decimal, inBits, integer, pick, rectangle, selfTest } from "./self_test.js";

const NAMES = ["A", "B", "C"];
const octets = (bits) => `${fr(bits / 8)} octets`;

const factors = {
  title: "Deux facteurs de quelques bits",
  draw(random) {
    const { m, n } = rectangle(random);
    return { m, n, r: 8 * integer(random, 2, Math.min(m, n) / 16), bits: integer(random, 2, 6) };
  },
  ask: ({ m, n, r, bits }) =>
    `<p>Une matrice de ${m} × ${n} poids est tronquée au rang ${r}, puis ses deux facteurs sont arrondis sur ${bits} bits, avec une échelle float32 par ligne de chaque facteur. Que pèse le tout ?</p>`,
  answer: ({ m, n, r, bits }) => factorBits(m, n, r, bits, m + n),
  faults: ({ m, n, r, bits }) => [
    [factorBits(m, n, r, bits, 0), `Les échelles sont oubliées : il y en a ${m} + ${n}, de quatre octets chacune.`],
    [
      factorBits(m, n, r, bits, 2 * r),
      `Vous avez compté une échelle par colonne, 2 × ${r}. Les lignes de <var>U</var> et de <var>V</var> sont ${m} et ${n}.`,
    ],
    [
      factorBits(m, n, r, 8, m + n),
      `Vous avez donné un octet à chaque code : serrés, ils n’en occupent que ${bits} bits.`,
    ],
  ],
  label: octets,
  apart: 0,
  work: ({ m, n, r, bits }, size) =>
    `<p>Les codes : ${bits} × ${r} × (${m} + ${n}) / 8 = ${octets(bits * r * (m + n))}. Les échelles : 4 × (${m} + ${n}) = ${octets(32 * (m + n))}. En tout, ${octets(size)}, ${fr((32 * m * n) / size, 2)} fois moins qu’en float32.</p>`,
};

const lighter = {
  title: "La plus légère",
  draw(random) {
    const { m, n } = rectangle(random, [256, 384, 512, 768, 1024, 1536]);
    const [ra, rb] = [4 * integer(random, 2, 16), 8 * integer(random, 3, 24)];
    const data = { m, n, ra, rb, bits: integer(random, 2, 5), g: pick(random, [16, 32, 64]) };
    const ordered = sizes(data).sort((a, b) => a - b);
    return ra < rb && ordered[2] < 2 * ordered[0] && ordered[1] > 1.04 * ordered[0] ? data : null;
  },
  ask: ({ m, n, ra, rb, bits, g }) =>
    `<p>Trois façons de ranger une matrice de ${m} × ${n} poids. Laquelle pèse le moins ?</p><p>A : deux facteurs de rang ${ra}, en float32.<br>B : deux facteurs de rang ${rb}, sur 8 bits, une échelle float32 par ligne.<br>C : tous les poids sur ${bits} bits, une échelle float32 par groupe de ${g}.</p>`,
  answer: (data) => bestWithin(sizes(data), sizes(data), Infinity),
  faults(data, best) {
    const all = sizes(data);
    const traps = [
      `le plus petit rang n’est pas le moins lourd quand chaque nombre garde 32 bits`,
      `8 bits ne suffisent pas quand le rang est si grand`,
      `peu de bits par poids, mais tous les poids, et une échelle pour ${data.g} d’entre eux`,
    ];
    return [0, 1, 2]
      .filter((i) => i !== best)
      .map((i) => [i, `${octets(all[i])} pour ${NAMES[i]}, ${octets(all[best])} pour ${NAMES[best]} : ${traps[i]}.`]);
  },
  label: (i) => NAMES[i],
  named: true,
  work({ m, n, ra, rb, bits, g }) {
    return `<p>A : ${ra} × ${fr(m + n)} × 4 octets. B : ${rb} × ${fr(m + n)} octets, et 4 × ${fr(m + n)} d’échelles. C : ${fr(m * n)} × ${bits} / 8 octets, et 4 × ${fr(m * n)} / ${g} d’échelles. Soit ${sizes(
      { m, n, ra, rb, bits, g },
    )
      .map((size, i) => `${octets(size)} pour ${NAMES[i]}`)
      .join(", ")}.</p>`;
  },
};

/** Bits des trois façons. */
const sizes = ({ m, n, ra, rb, bits, g }) => [
  factorBits(m, n, ra),
  factorBits(m, n, rb, 8, m + n),
  storedBits(m * n, bits, (m * n) / g, true),
];

const grid = {
  title: "Arrondir un poids",
  draw(random) {
    const [top, bits] = [decimal(random, 0.6, 4), integer(random, 3, 5)];
    const w = decimal(random, -0.95 * top, 0.95 * top, 2);
    const place = Math.abs((w / top) * (2 ** (bits - 1) - 1));
    return Math.abs((place % 1) - 0.5) < 0.08 || Math.abs(w) < 0.1 ? null : { top, bits, w };
  },
  ask: ({ top, bits, w }) =>
    `<p>Des poids dont la plus grande valeur absolue est ${fr(top, 1)} sont arrondis à la grille symétrique de ${bits} bits. Que devient le poids ${fr(w, 2)} ?</p>`,
  answer({ top, bits, w }) {
    const { codes, scales } = quantizeSymmetric(Float32Array.of(top, w), bits);
    return dequantize(codes, scales)[1];
  },
  faults({ top, bits, w }) {
    const q = 2 ** (bits - 1) - 1;
    const rounded = (step) => Math.round(w / step) * step;
    const code = (w / top) * q;
    const other = Math.round(code) + (code > Math.round(code) ? 1 : -1);
    return [
      [
        rounded(top / 2 ** (bits - 1)),
        `Vous avez divisé par 2<sup><var>b</var>−1</sup> = ${q + 1}. La grille symétrique, qui contient zéro, n’a que <var>q</var> = ${q} pas de chaque côté.`,
      ],
      [
        rounded(top / (2 ** bits - 1)),
        `Vous avez divisé par 2<sup><var>b</var></sup> − 1 = ${2 ** bits - 1}, comme si tous les codes étaient du même côté de zéro : ils vont de −${q} à ${q}.`,
      ],
      [
        (other * top) / q,
        `C’est le niveau d’à côté : <var>w</var>/<var>Δ</var> = ${fr(code, 2)} s’arrondit à l’entier le plus proche.`,
      ],
    ];
  },
  label: (value) => fr(value, 3),
  work({ top, bits, w }, value) {
    const q = 2 ** (bits - 1) - 1;
    return `<p><var>q</var> = 2<sup>${bits - 1}</sup> − 1 = ${q}, donc <var>Δ</var> = ${fr(top, 1)}/${q} = ${fr(top / q, 4)}. Le code est l’arrondi de ${fr(w, 2)}/${fr(top / q, 4)} = ${fr((w * q) / top, 2)}, soit ${fr(Math.round((value * q) / top))}, et l’on relit ${fr(value, 3)}.</p>`;
  },
};

const repair = {
  title: "Le prix d’une réparation",
  draw(random) {
    const { m, n } = rectangle(random, [256, 384, 512, 768, 1024, 1536]);
    return { m, n, bits: integer(random, 2, 5), g: pick(random, [16, 32, 64]), r: pick(random, [8, 12, 16, 24, 32]) };
  },
  ask: ({ m, n, bits, g, r }) =>
    `<p>Une matrice de ${m} × ${n} poids est gardée sur ${bits} bits, avec une échelle float32 par groupe de ${g}, et réparée par un résidu de rang ${r} sur 8 bits, dont on néglige les échelles. Combien de bits par poids en tout ?</p>`,
  answer: ({ m, n, bits, g, r }) => (storedBits(m * n, bits, (m * n) / g, true) + factorBits(m, n, r, 8, 0)) / (m * n),
  faults: ({ m, n, bits, g, r }) => [
    [bits + (8 * r * (m + n)) / (m * n), `Les échelles sont oubliées : 32/${g} = ${inBits(32 / g)} par poids.`],
    [bits + 32 / g, `Le résidu est oublié : huit bits pour ${r} × (${m} + ${n}) nombres.`],
    [bits + 32 / g + (32 * r * (m + n)) / (m * n), "Le résidu est compté en float32 ; il est gardé sur 8 bits."],
  ],
  label: (value) => inBits(value),
  entry: { name: "Bits par poids", relative: 0.01 },
  work: ({ m, n, bits, g, r }, value) =>
    `<p>Les codes, ${bits} ; les échelles, 32/${g} = ${fr(32 / g, 2, 0)} ; le résidu, 8 × ${r} × (${m} + ${n}) / (${m} × ${n}) = ${fr((8 * r * (m + n)) / (m * n), 3)}. En tout, ${inBits(value)}.</p>`,
};

const network = {
  title: "Du rapport d’une couche à celui du réseau",
  draw(random) {
    const { m, n } = rectangle(random, [256, 384, 512, 768, 1024]);
    const data = {
      layers: integer(random, 4, 24),
      m,
      n,
      r: 8 * integer(random, 4, 16),
      bits: pick(random, [4, 8]),
      words: 1000 * integer(random, 4, 40),
    };
    const table = data.words * n;
    const share = table / (table + data.layers * m * n);
    return share > 0.15 && share < 0.75 && factorBits(m, n, data.r, data.bits) < 16 * m * n ? data : null;
  },
  ask: ({ layers, m, n, r, bits, words }) =>
    `<p>Un réseau a ${layers} couches de ${m} × ${n} poids, et une table de ${fr(words)} mots de ${n} nombres. Chaque couche est tronquée au rang ${r}, puis ses facteurs sont arrondis sur ${bits} bits, avec une échelle float32 par facteur ; la table reste en float32. Combien de fois moins d’octets pèse le réseau ?</p>`,
  answer: ({ layers, m, n, r, bits, words }) =>
    (32 * (layers * m * n + words * n)) / (layers * factorBits(m, n, r, bits) + 32 * words * n),
  faults({ layers, m, n, r, bits, words }) {
    const [linear, table] = [layers * m * n, words * n];
    const alone = (32 * m * n) / factorBits(m, n, r, bits);
    return [
      [alone, "C’est le rapport d’une couche. La table, restée dense, n’a pas maigri."],
      [
        (linear * alone + table) / (linear + table),
        "Vous avez fait la moyenne des rapports ; ce sont les octets qui s’ajoutent, non les rapports.",
      ],
      [
        (32 * (linear + table)) / (layers * factorBits(m, n, r, bits)),
        "La table est comptée avant la compression, et oubliée après.",
      ],
    ];
  },
  label: (ratio) => `${fr(ratio, 2)} fois`,
  work: ({ layers, m, n, r, bits, words }, ratio) =>
    `<p>Avant : ${layers} × ${fr(4 * m * n)} + ${fr(4 * words * n)} octets. Après : ${layers} × ${fr(factorBits(m, n, r, bits) / 8)} + ${fr(4 * words * n)}. Chaque couche maigrit de ${fr((32 * m * n) / factorBits(m, n, r, bits), 2)} fois, le réseau de ${fr(ratio, 2)} : plus les couches maigrissent, plus ce qui reste dense compte.</p>`,
};

export const questions = [factors, lighter, grid, repair, network];

export default selfTest("11.4", questions);
