// 11.1 : jusqu'où un rang allège, ce que coûte un produit, et quel rang une erreur demande.
import { fr } from "./figure.js";
import { breakEvenRank, factorBits, rankForEnergy, rankWithin } from "./numerics.js";
import { decimal, integer, pick, rectangle, selfTest, share, symbol, table } from "./self_test.js";

const factors = "<var>r</var>(<var>m</var> + <var>n</var>)";

const lightest = {
  title: "Jusqu’où le rang allège",
  draw: (random) => rectangle(random, [96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048]),
  ask: ({ m, n }) =>
    `<p>Une couche dense a ${n} entrées et ${m} sorties. Quel est le plus grand rang auquel ses deux facteurs comptent strictement moins de nombres qu’elle ?</p>`,
  answer: ({ m, n }) => Math.ceil(breakEvenRank(m, n)) - 1,
  faults: ({ m, n }, r) => [
    [
      r + 1,
      `Ce rang-là n’allège plus : ${fr(r + 1)} × ${fr(m + n)} = ${fr((r + 1) * (m + n))}, et la matrice n’a que ${fr(m * n)} nombres. On arrondit vers le bas.`,
    ],
    [Math.floor(Math.min(m, n) / 2), "La moitié de la plus petite dimension est l’équilibre d’une matrice carrée."],
    [
      Math.min(m, n),
      "C’est le plus grand rang possible : à ce rang, les facteurs pèsent toujours plus que la matrice.",
    ],
  ],
  label: (r) => fr(r),
  entry: { name: "Rang" },
  work: ({ m, n }, r) =>
    `<p><var>r</var>* = <var>mn</var>/(<var>m</var> + <var>n</var>) = ${fr(m * n)} / ${fr(m + n)} = ${fr(breakEvenRank(m, n), 2, 0)}. Le plus grand entier strictement au-dessous est ${r} : ${r} × ${fr(m + n)} = ${fr(r * (m + n))} nombres.</p>`,
};

const constrained = {
  title: "Le rang sous une contrainte de taille",
  draw: (random) => ({ ...rectangle(random), c: pick(random, [2, 3, 4, 5, 6, 8, 10]) }),
  ask: ({ m, n, c }) =>
    `<p>Une matrice de ${m} × ${n} nombres doit devenir au moins ${c} fois plus petite. Jusqu’à quel rang peut-on monter ?</p>`,
  answer: ({ m, n, c }) => rankWithin(m, n, 32, (32 * m * n) / c),
  faults: ({ m, n, c }, r) => [
    [
      r + 1,
      `Vous avez arrondi vers le haut : ${r + 1} × ${fr(m + n)} = ${fr((r + 1) * (m + n))} nombres, plus que les ${fr((m * n) / c, 1, 0)} permis.`,
    ],
    [
      Math.floor(Math.min(m, n) / c),
      `Diviser le plus grand rang par ${c} ne divise pas la taille d’autant : chaque composante coûte <var>m</var> + <var>n</var> nombres.`,
    ],
    [Math.floor(breakEvenRank(m, n)), `C’est le rang d’équilibre, où l’on ne gagne rien : le facteur ${c} est oublié.`],
  ],
  label: (r) => `rang ${fr(r)}`,
  apart: 0,
  work: ({ m, n, c }, r) =>
    `<p>Il faut ${factors} ≤ <var>mn</var>/${c}, donc <var>r</var> ≤ ${fr(m * n)} / (${c} × ${fr(m + n)}) = ${fr((m * n) / c / (m + n), 2, 0)} : le plus grand entier permis est ${r}.</p>`,
};

const products = {
  title: "L’ordre des produits",
  draw(random) {
    const { m, n } = rectangle(random, [128, 256, 384, 512, 768, 1024, 1536]);
    const r = pick(random, [4, 8, 16, 24, 32, 48, 64]);
    return r < breakEvenRank(m, n) / 2 ? { m, n, r, lot: pick(random, [8, 16, 20, 32, 50, 64]) } : null;
  },
  ask: ({ m, n, r, lot }) =>
    `<p>Un lot de ${lot} entrées traverse une couche factorisée au rang ${r}, de ${n} entrées et ${m} sorties, dans le bon ordre. Combien de multiplications ?</p>`,
  answer: ({ m, n, r, lot }) => (lot * factorBits(m, n, r)) / 32,
  faults: ({ m, n, r, lot }) => [
    [lot * m * n, "C’est ce que coûte la couche d’origine."],
    [
      r * m * n + lot * m * n,
      "Vous avez reformé <var>UV</var><sup>⊤</sup> avant de l’appliquer : on paie alors la couche entière, et le produit des facteurs en plus.",
    ],
    [r * (m + n), `C’est ce que coûte une entrée ; le lot en a ${lot}.`],
  ],
  label: (count) => fr(count),
  work: ({ m, n, r, lot }, count) =>
    `<p>D’abord <var>xV</var> : ${n} × ${r} par entrée ; puis (<var>xV</var>)<var>U</var><sup>⊤</sup> : ${r} × ${m}. Soit ${factors} = ${fr(r * (m + n))} par entrée, et ${fr(count)} pour ${lot}. La couche d’origine en ferait ${fr(lot * m * n)}.</p>`,
};

const stages = {
  title: "Trois facteurs, ou deux",
  draw(random) {
    const { m, n } = rectangle(random);
    const [first, second] = [8 * integer(random, 2, 12), 8 * integer(random, 2, 12)];
    return first === second ? null : { m, n, first, second };
  },
  ask: ({ m, n, first, second }) =>
    `<p>Une couche enchaîne trois facteurs, sans non-linéarité : ${n} → ${first} → ${second} → ${m}. La plus petite couche à deux facteurs qui calcule toujours la même fonction a combien de nombres ?</p>`,
  answer: ({ m, n, first, second }) => factorBits(m, n, Math.min(first, second)) / 32,
  faults: ({ m, n, first, second }) => [
    [
      Math.max(first, second) * (m + n),
      "Vous avez pris le maillon le plus large. Le rang d’un produit est limité par le plus étroit.",
    ],
    [
      n * first + first * second + second * m,
      "C’est la taille de la chaîne à trois facteurs ; deux suffisent, et pèsent moins.",
    ],
    [(first + second) * (m + n), "Les rangs d’un produit ne s’ajoutent pas : le plus étroit décide."],
  ],
  label: (count) => fr(count),
  work: ({ m, n, first, second }, count) =>
    `<p>Le produit est de rang au plus min(${first}, ${second}) = ${Math.min(first, second)}. Deux facteurs de ce rang ont ${Math.min(first, second)} × (${m} + ${n}) = ${fr(count)} nombres ; la chaîne en a ${fr(n * first + first * second + second * m)}.</p>`,
};

const demanded = {
  title: "Le rang que demande une erreur",
  draw(random) {
    const step = pick(random, [8, 16, 24, 32, 40, 48, 64]);
    const speed = decimal(random, 0.25, 0.7, 2);
    const ranks = Array.from({ length: 8 }, (_, i) => step * (i + 1));
    const energies = ranks.map((_, i) => Math.round(1000 * (1 - Math.exp(-speed * (i + 1)))) / 10);
    const error = pick(random, [10, 15, 20, 25, 30]);
    const limits = [100 - error ** 2 / 100, 100 - error, (100 - error) ** 2 / 100];
    const close = energies.some((energy) => limits.some((limit) => Math.abs(energy - limit) < 0.15));
    return close || energies.at(-1) < limits[0] ? null : { ranks, energies, error };
  },
  ask: ({ ranks, energies, error }) =>
    `<p>Voici l’énergie que gardent quelques rangs d’une couche.</p>${table(
      ["rang <var>r</var>", "énergie <var>E</var>(<var>r</var>)"],
      ranks.map((rank, i) => [rank, `${fr(energies[i], 1)} %`]),
    )}<p>Lequel de ces rangs est le plus petit dont l’erreur relative ne dépasse pas ${error} % ?</p>`,
  answer: ({ ranks, energies, error }) => ranks[rankForEnergy(parts(energies), 1 - (error / 100) ** 2) - 1],
  faults({ ranks, energies, error }, rank) {
    const reaching = (kept) => ranks[rankForEnergy(parts(energies), kept) - 1];
    const before = ranks.indexOf(rank) - 1;
    const left = Math.sqrt(1 - energies[before] / 100);
    return [
      [
        reaching(1 - error / 100),
        `Vous avez cherché ${100 - error} % d’énergie. Ce serait une erreur de ${share(Math.sqrt(error / 100))} : l’énergie perdue est le carré de l’erreur.`,
      ],
      [ranks[before], `Un rang trop tôt : l’énergie y vaut ${fr(energies[before], 1)} %, et l’erreur, ${share(left)}.`],
      [
        reaching((1 - error / 100) ** 2),
        "Vous avez pris (1 − <var>ε</var>)<sup>2</sup> pour 1 − <var>ε</var><sup>2</sup> : c’est l’erreur que l’on met au carré.",
      ],
    ];
  },
  label: (rank) => `rang ${rank}`,
  apart: 0,
  work({ ranks, energies, error }, rank) {
    const kept = energies[ranks.indexOf(rank)];
    return `<p>Il faut <var>E</var>(<var>r</var>) ≥ 1 − <var>ε</var><sup>2</sup> = 1 − ${fr(error / 100, 2)}<sup>2</sup> = ${fr(100 - error ** 2 / 100, 2, 0)} %. Le premier rang qui y arrive est ${rank}, avec ${fr(kept, 1)} % : ${symbol("ε")} = √${fr(1 - kept / 100, 3)} = ${share(Math.sqrt(1 - kept / 100))}.</p>`;
  },
};

/** Des pourcentages, en parts de 0 à 1. */
const parts = (percentages) => percentages.map((percentage) => percentage / 100);

export const questions = [lightest, constrained, products, stages, demanded];

export default selfTest("11.1", questions);
