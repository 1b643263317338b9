// 11.0 : lire un spectre, passer de l'énergie à l'erreur, peser des facteurs et des codes.
import { fr } from "./figure.js";
import {
  cumulativeEnergy,
  factorBits,
  frobeniusNorm,
  rankForEnergy,
  storedBits,
  truncationErrors,
} from "./numerics.js";
import { bars, decimal, integer, joined, pick, rectangle, selfTest, share, sum, symbol } from "./self_test.js";

const sigma = symbol("σ", "<var>i</var>");
const squares = `${sigma}<sup>2</sup>`;

const spectrum = {
  title: "Lire un spectre",
  draw(random) {
    const S = [integer(random, 40, 90)];
    while (S.length < 7) S.push(Math.round(S.at(-1) * (0.45 + 0.45 * random())));
    const threshold = pick(random, [80, 85, 90, 95, 99]);
    const close = cumulativeEnergy(S).some((energy) => Math.abs(100 * energy - threshold) < 0.2);
    return close || S.some((value, i) => value < 1 || value === S[i - 1]) ? null : { S, threshold };
  },
  ask: ({ S, threshold }) =>
    `<p>Voici toutes les valeurs singulières d’une matrice.</p>${bars(S)}<p>Quel est le plus petit rang qui garde au moins ${threshold} % de l’énergie ?</p>`,
  answer: ({ S, threshold }) => rankForEnergy(cumulativeEnergy(S), threshold / 100),
  faults({ S, threshold }, rank) {
    const energy = cumulativeEnergy(S);
    const plain = S.map((_, i) => sum(S.slice(0, i + 1)) / sum(S));
    const strict = 1 - (1 - threshold / 100) ** 2;
    return [
      [
        rankForEnergy(plain, threshold / 100),
        `Vous avez additionné les ${sigma} : l’énergie additionne leurs carrés, et les grandes valeurs y pèsent bien davantage.`,
      ],
      [
        rank - 1,
        `Pas tout à fait : au rang ${rank - 1}, il n’y a encore que ${share(energy[rank - 2])} de l’énergie. (La première case d’un tableau, d’indice nul, est celle du rang un.)`,
      ],
      [
        rankForEnergy(energy, strict),
        `Vous avez demandé une erreur de ${100 - threshold} %, c’est-à-dire ${share(strict, 2)} de l’énergie : l’erreur est la racine de ce qui manque à l’énergie.`,
      ],
    ];
  },
  label: (rank) => `rang ${rank}`,
  apart: 0,
  work({ S, threshold }, rank) {
    const energy = cumulativeEnergy(S);
    const kept = energy.slice(0, rank).map((part, i) => `${share(part)} au rang ${i + 1}`);
    return `<p>Σ ${squares} = ${joined(
      S.map((value) => value ** 2),
      " + ",
    )} = ${fr(sum(S.map((value) => value ** 2)))}. Énergie gardée : ${kept.join(" ; ")}. C’est le premier rang où elle atteint ${threshold} %.</p>`;
  },
};

const energyToError = {
  title: "De l’énergie à l’erreur",
  draw: (random) => ({ energy: decimal(random, 62, 99.6) }),
  ask: ({ energy }) =>
    `<p>Une SVD tronquée garde ${fr(energy, 1, 0)} % de l’énergie d’une matrice. Quelle est son erreur relative, en norme de Frobenius ?</p>`,
  answer: ({ energy }) => truncationErrors([Math.sqrt(energy / 100), Math.sqrt(1 - energy / 100)])[0],
  faults: ({ energy }) => [
    [
      1 - energy / 100,
      "C’est la part d’énergie perdue. L’énergie est un carré : l’erreur en est la racine, bien plus grande.",
    ],
    [
      1 - Math.sqrt(energy / 100),
      "La racine se prend sur ce qui est perdu, non sur ce qui est gardé : ce sont les carrés des normes qui s’ajoutent.",
    ],
    [Math.sqrt(energy / 100), "C’est la norme de ce que l’on garde ; l’erreur est la norme de ce que l’on jette."],
  ],
  label: (error) => share(error),
  work: ({ energy }, error) =>
    `<p><var>ε</var> = √(1 − <var>E</var>) = √(1 − ${fr(energy / 100, 3, 0)}) = √${fr(1 - energy / 100, 3, 0)} = ${fr(error, 3)}, soit ${share(error)}.</p>`,
};

const size = {
  title: "Plus légère, ou plus lourde ?",
  draw(random) {
    const { m, n } = rectangle(random);
    return { m, n, r: 4 * integer(random, 8, Math.min(m, n) / 4 - 1) };
  },
  ask: ({ m, n, r }) =>
    `<p>Une matrice de ${m} × ${n} nombres demande le rang ${r} pour garder 99 % de son énergie. À ce rang, que pèsent ses deux facteurs ?</p>`,
  answer: ({ m, n, r }) => factorBits(m, n, r) / (32 * m * n),
  faults: ({ m, n, r }) => [
    [
      r / Math.min(m, n),
      `C’est la part des composantes que l’on garde, <var>r</var>/<var>p</var>. Mais chacune coûte <var>m</var> + <var>n</var> nombres, et la matrice n’en a que <var>mn</var>.`,
    ],
    [r / Math.max(m, n), "Vous n’avez compté qu’un facteur, le plus petit des deux."],
    [(2 * r) / Math.min(m, n), "Cette formule est celle d’une matrice carrée ; celle-ci ne l’est pas."],
  ],
  label: (ratio) => `${share(ratio)} de la taille de <var>W</var>${ratio > 1 ? " (plus lourds)" : ""}`,
  work: ({ m, n, r }, ratio) =>
    `<p><var>r</var>(<var>m</var> + <var>n</var>) = ${r} × ${fr(m + n)} = ${fr(r * (m + n))} nombres, au lieu de <var>mn</var> = ${fr(m * n)} : ${share(ratio)}. Le rang d’équilibre, <var>mn</var>/(<var>m</var> + <var>n</var>), est ${fr((m * n) / (m + n), 1)}.</p>`,
};

const octets = {
  title: "Des bits et des échelles",
  draw: (random) => ({ ...rectangle(random), bits: integer(random, 2, 6) }),
  ask: ({ m, n, bits }) =>
    `<p>On range une matrice de poids, ${m} lignes et ${n} colonnes, en codes serrés de ${bits} bits, avec une échelle float32 par ligne. Combien d’octets pèse-t-elle ?</p>`,
  answer: ({ m, n, bits }) => storedBits(m * n, bits, m, true) / 8,
  faults: ({ m, n, bits }) => [
    [storedBits(m * n, bits, 0, true) / 8, "Les échelles sont oubliées : sans elles, les codes ne se relisent pas."],
    [storedBits(m * n, bits, n, true) / 8, "Vous avez compté une échelle par colonne."],
    [
      storedBits(m * n, 8, m, true) / 8,
      `Vous avez donné un octet à chaque code : serrés, ils n’en occupent que ${bits} bits.`,
    ],
  ],
  label: (count) => `${fr(count)} octets`,
  apart: 0,
  work: ({ m, n, bits }, count) =>
    `<p>Les codes : ${m} × ${n} × ${bits} / 8 = ${fr((m * n * bits) / 8)} octets. Les échelles : ${m} × 4 = ${fr(4 * m)} octets. En tout, ${fr(count)} octets, ${fr((4 * m * n) / count, 2)} fois moins qu’en float32.</p>`,
};

const stable = {
  title: "Le rang stable",
  draw(random) {
    const S = Array.from({ length: 4 }, () => integer(random, 1, 20)).sort((a, b) => b - a);
    return new Set(S).size < 4 ? null : { S };
  },
  ask: ({ S }) =>
    `<p>Une matrice a pour valeurs singulières non nulles ${joined(S, " ; ")}. Quel est son rang stable, ‖<var>W</var>‖<sub>F</sub><sup>2</sup> / ‖<var>W</var>‖<sub>2</sub><sup>2</sup> ?</p>`,
  answer: ({ S }) => (frobeniusNorm(S) / S[0]) ** 2,
  faults: ({ S }) => [
    [sum(S) / S[0], `Vous avez additionné les ${sigma}. La norme de Frobenius additionne leurs carrés.`],
    [S.length, "C’est le rang tout court. Le rang stable ne compte presque pas les petites valeurs."],
    [frobeniusNorm(S) / S[0], "C’est le rapport des normes ; le rang stable est celui de leurs carrés."],
  ],
  label: (value) => fr(value, 2),
  entry: { name: "Rang stable", relative: 0.01 },
  work: ({ S }, value) =>
    `<p>‖<var>W</var>‖<sub>F</sub><sup>2</sup> = Σ ${squares} = ${joined(
      S.map((x) => x ** 2),
      " + ",
    )} = ${fr(sum(S.map((x) => x ** 2)))}, et ‖<var>W</var>‖<sub>2</sub> = ${symbol("σ", 1)} = ${S[0]}, dont le carré est ${fr(S[0] ** 2)}. Leur rapport : ${fr(value, 2)}.</p>`,
};

export const questions = [spectrum, energyToError, size, octets, stable];

export default selfTest("11.0", questions);
