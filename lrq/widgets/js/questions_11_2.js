// 11.2 : une racine et non une somme, une convolution couchée, les entrées, la SVD aléatoire, un budget de rangs.
import { fr } from "./figure.js";
import { bestPurchase, factorBits, frobeniusNorm, halkoBound, truncationErrors } from "./numerics.js";
import {
  decimal,
  integer,
  joined,
  largest,
  pick,
  rectangle,
  selfTest,
  share,
  sum,
  symbol,
  table,
} from "./self_test.js";

const sigma = symbol("σ", "<var>i</var>");

const root = {
  title: "Une racine, pas une somme",
  draw(random) {
    const S = Array.from({ length: 5 }, () => integer(random, 2, 30)).sort((a, b) => b - a);
    return new Set(S).size < 5 ? null : { S, r: integer(random, 1, 3) };
  },
  ask: ({ S, r }) =>
    `<p>Une matrice a pour valeurs singulières ${joined(S, " ; ")}. Quelle est l’erreur relative de sa SVD tronquée au rang ${r} ?</p>`,
  answer: ({ S, r }) => truncationErrors(S)[r - 1],
  faults: ({ S, r }, error) => [
    [
      sum(S.slice(r)) / frobeniusNorm(S),
      `Vous avez additionné les ${sigma} abandonnés. Cette somme est une norme, mais une autre : la norme nucléaire.`,
    ],
    [
      sum(S.slice(r)) / sum(S),
      "C’est l’erreur relative en norme nucléaire : la somme de ce qui manque, rapportée à la somme de tout.",
    ],
    [error ** 2, "C’est la part d’énergie perdue ; il manque la racine."],
  ],
  label: (error) => share(error),
  work({ S, r }, error) {
    const squared = S.map((value) => value ** 2);
    return `<p>√(${joined(squared.slice(r), " + ")}) / √(${joined(squared, " + ")}) = √(${fr(sum(squared.slice(r)))} / ${fr(sum(squared))}) = ${fr(error, 3)}, soit ${share(error)}.</p>`;
  },
};

const convolution = {
  title: "Une convolution couchée",
  draw: (random) => ({
    m: 16 * integer(random, 2, 12),
    c: 16 * integer(random, 1, 12),
    k: pick(random, [3, 5, 7]),
    r: 4 * integer(random, 1, 6),
  }),
  ask: ({ m, c, k, r }) =>
    `<p>Une convolution ${k} × ${k} va de ${c} canaux à ${m}. On couche ses noyaux en une matrice de ${m} lignes, et on la tronque au rang ${r}. Combien de nombres gardent les deux convolutions qui la remplacent ?</p>`,
  answer: ({ m, c, k, r }) => factorBits(m, c * k * k, r) / 32,
  faults: ({ m, c, k, r }) => [
    [r * (m + c), `La fenêtre est oubliée : la matrice couchée a ${c} × ${k} × ${k} colonnes.`],
    [r * (m + c) * k * k, `Une seule des deux convolutions est ${k} × ${k} ; l’autre, qui mélange, est 1 × 1.`],
    [r * (c + m * k * k), "La fenêtre accompagne les canaux d’entrée, non ceux de sortie."],
  ],
  label: (count) => fr(count),
  entry: { name: "Nombres gardés" },
  work: ({ m, c, k, r }, count) =>
    `<p>La matrice est ${m} × ${fr(c * k * k)}. Il reste ${r} filtres ${k} × ${k} de ${c} canaux, soit ${fr(r * c * k * k)} nombres, puis un mélange 1 × 1 de ${r} à ${m} canaux, soit ${fr(r * m)} : ${fr(count)} en tout, au lieu de ${fr(m * c * k * k)}.</p>`,
};

const aware = {
  title: "Vue par ses entrées",
  draw(random) {
    const [w1, w2] = [integer(random, 2, 9), integer(random, 1, 8)];
    const [c1, c2] = [integer(random, 1, 3) ** 2, integer(random, 2, 7) ** 2];
    return w1 > w2 && w1 ** 2 * c1 < w2 ** 2 * c2 ? { w1, w2, c1, c2 } : null;
  },
  ask: ({ w1, w2, c1, c2 }) =>
    `<p>Une couche <var>W</var> = diag(${w1}, ${w2}) reçoit des entrées de second moment <var>C</var> = diag(${c1}, ${c2}). La SVD consciente des entrées la ramène au rang 1. Quelle erreur relative reste-t-il <em>en sortie</em> ?</p>`,
  answer: ({ w1, w2, c1, c2 }) => truncationErrors([w2 * Math.sqrt(c2), w1 * Math.sqrt(c1)])[0],
  faults: ({ w1, w2, c1, c2 }) => [
    [
      (w2 * Math.sqrt(c2)) / Math.hypot(w1 * Math.sqrt(c1), w2 * Math.sqrt(c2)),
      "C’est ce que laisse la SVD des poids, qui garde le plus grand poids sans regarder ce qu’il reçoit.",
    ],
    [
      w1 / Math.hypot(w1, w2),
      "C’est l’erreur des poids. La couche calibrée en est plus loin, et c’est en sortie qu’elle gagne.",
    ],
    [
      (w1 * c1) / Math.hypot(w1 * c1, w2 * c2),
      "Vous avez pesé par <var>C</var> ; il faut sa racine, <var>C</var><sup>1/2</sup>, parce que <var>C</var> est déjà un carré.",
    ],
  ],
  label: (error) => share(error),
  work({ w1, w2, c1, c2 }, error) {
    const [one, two] = [w1 * Math.sqrt(c1), w2 * Math.sqrt(c2)];
    return `<p><var>W</var><var>C</var><sup>1/2</sup> = diag(${w1} × √${c1}, ${w2} × √${c2}) = diag(${one}, ${two}) : on garde la seconde direction. Il reste ${one} / √(${one}<sup>2</sup> + ${two}<sup>2</sup>) = ${share(error)}.</p>`;
  },
};

const random_svd = {
  title: "Ce que garantit la SVD aléatoire",
  draw: (random) => ({
    error: integer(random, 4, 35),
    r: pick(random, [16, 24, 32, 48, 64, 96, 128]),
    p: integer(random, 4, 14),
  }),
  ask: ({ error, r, p }) =>
    `<p>Au rang ${r}, la SVD tronquée d’une grande matrice laisse ${error} % d’erreur. Une SVD aléatoire, avec ${p} colonnes de plus que le rang et sans itération de puissance, laisse en moyenne au plus…</p>`,
  answer: ({ error, r, p }) => halkoBound(error / 100, r, p),
  faults: ({ error, r, p }) => [
    [
      Math.sqrt(1 + r / (p - 1)) * (error / 100),
      "C’est la borne avant de tronquer. Ramener la projection au rang <var>r</var> coûte un carré de l’erreur minimale en plus : 2 au lieu de 1 sous la racine.",
    ],
    [
      Math.sqrt(2 + r / p) * (error / 100),
      "Le dénominateur est <var>p</var> − 1 : c’est pourquoi il faut au moins deux colonnes de plus.",
    ],
    [(2 + r / (p - 1)) * (error / 100), "Il manque la racine : le théorème borne des carrés."],
  ],
  label: (bound) => share(bound),
  work: ({ error, r, p }, bound) =>
    `<p>√(2 + <var>r</var>/(<var>p</var> − 1)) × <var>ε</var>(<var>r</var>) = √(2 + ${r}/${p - 1}) × ${error} % = ${fr(bound / (error / 100), 2)} × ${error} % = ${share(bound)}.${bound > 1 ? " Cette borne-là n’apprend rien : rendre zéro ferait une erreur de 100 %." : ""}</p>`,
};

const NAMES = ["A", "B", "C"];

const budget = {
  title: "À qui donner le rang suivant ?",
  draw(random) {
    const layers = NAMES.map(() => ({
      ...rectangle(random, [128, 192, 256, 384, 512, 768, 1024, 1536]),
      s: decimal(random, 1, 9),
    }));
    const costs = layers.map(({ m, n }) => m + n);
    const gains = layers.map(({ s }, i) => s ** 2 / costs[i]).sort((a, b) => b - a);
    return gains[0] < 1.15 * gains[1] || new Set(costs).size < 3 ? null : { layers };
  },
  ask: ({ layers }) =>
    `<p>Trois couches se partagent un budget de nombres. Voici ce que vaut, pour chacune, la prochaine valeur singulière à garder.</p>${table(
      ["couche", "forme", "prochaine <var>σ</var>"],
      layers.map(({ m, n, s }, i) => [NAMES[i], `${m} × ${n}`, fr(s, 1)]),
    )}<p>Laquelle rapporte le plus d’énergie par nombre ?</p>`,
  answer: ({ layers }) =>
    bestPurchase(
      layers.map(({ s }) => s ** 2),
      layers.map(({ m, n }) => m + n),
    ),
  faults({ layers }) {
    const strong = largest(layers.map(({ s }) => s));
    const small = largest(layers.map(({ m, n }) => -m - n));
    return [
      [
        strong,
        `Sa valeur singulière est la plus grande, mais chaque rang y coûte ${fr(layers[strong].m + layers[strong].n)} nombres.`,
      ],
      [small, "C’est la couche où un rang coûte le moins ; ce qu’il y rapporte est trop petit."],
    ];
  },
  label: (place) => `la couche ${NAMES[place]}`,
  named: true,
  work: ({ layers }, place) =>
    `<p>On compare <var>σ</var><sup>2</sup>/(<var>m</var> + <var>n</var>), en millièmes : ${layers
      .map(({ m, n, s }, i) => `${fr((1000 * s ** 2) / (m + n), 1)} pour ${NAMES[i]}`)
      .join(", ")}. C’est ${NAMES[place]} qui est servie.</p>`,
};

export const questions = [root, convolution, aware, random_svd, budget];

export default selfTest("11.2", questions);
