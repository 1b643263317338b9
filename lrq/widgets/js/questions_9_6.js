// 9.6 : les rangs d'un train, ses nombres, un produit de Kronecker, le bruit de d cœurs, Tucker arrondi.
import { fr } from "./figure.js";
import { bondRanks, kroneckerRank, quadrature, storedBits, trainBits } from "./numerics.js";
import { decimal, integer, joined, pick, product, selfTest, sum, symbol } from "./self_test.js";

const dims = (random, count, low, high) => Array.from({ length: count }, () => integer(random, low, high));
const cut = (sizes) => joined(sizes, " · ");
const multiplied = (sizes) => (sizes.length > 1 ? `${cut(sizes)} = ` : "") + fr(product(sizes));

const bond = {
  title: "Le rang permis d’un lien",
  draw(random) {
    const d = integer(random, 3, 4);
    const data = {
      inputs: dims(random, d, 2, 8),
      outputs: dims(random, d, 2, 8),
      rank: pick(random, [24, 32, 48, 64, 96, 100, 128, 200, 256]),
      k: integer(random, 1, d - 1),
    };
    return new Set(limits(data)).size < 4 ? null : data;
  },
  ask: ({ inputs, outputs, rank, k }) =>
    `<p>On met en train une matrice dont les entrées se découpent en ${cut(inputs)} et les sorties en ${cut(outputs)}, en demandant le rang ${rank} à tous les liens. Quel rang garde au plus le lien ${k}, entre les cœurs ${k} et ${k + 1} ?</p>`,
  answer: ({ inputs, outputs, rank, k }) => bondRanks(inputs, outputs, rank)[k - 1],
  faults(data, answer) {
    const [left, right, entries] = limits(data);
    return [
      [
        data.rank,
        `C’est le rang demandé ; le dépliement de ce lien n’a que ${fr(left)} lignes et ${fr(right)} colonnes, et son rang ne dépasse ni l’un ni l’autre.`,
      ],
      [
        left,
        `C’est ce que permettent les cœurs de gauche ; il faut aussi regarder ceux de droite, ${fr(right)}, et le rang demandé, ${data.rank}.`,
      ],
      [
        right,
        `C’est ce que permettent les cœurs de droite ; il faut aussi regarder ceux de gauche, ${fr(left)}, et le rang demandé, ${data.rank}.`,
      ],
      [entries, "Vous n’avez compté que les chiffres des entrées. Chaque cœur porte aussi ceux des sorties."],
    ].filter(([value]) => value !== answer);
  },
  label: (rank) => fr(rank),
  work(data, answer) {
    const [left, right] = limits(data);
    return `<p>À gauche du lien, ${multiplied(sizes(data).slice(0, data.k))} valeurs ; à droite, ${multiplied(sizes(data).slice(data.k))}. Le rang est au plus min(${data.rank}, ${fr(left)}, ${fr(right)}) = ${fr(answer)}.</p>`;
  },
};

/** Ce que porte chaque cœur : ses chiffres d'entrée et de sortie. */
const sizes = ({ inputs, outputs }) => inputs.map((n, i) => n * outputs[i]);

/** Ce que permettent la gauche du lien, sa droite, et les seules entrées ; puis ce qui est demandé. */
function limits({ inputs, outputs, rank, k }) {
  const all = sizes({ inputs, outputs });
  const entries = Math.min(rank, product(inputs.slice(0, k)), product(inputs.slice(k)));
  return [product(all.slice(0, k)), product(all.slice(k)), entries, rank];
}

const train = {
  title: "Les nombres d’un train",
  draw(random) {
    const data = { inputs: dims(random, 3, 3, 9), outputs: dims(random, 3, 3, 9), rank: integer(random, 2, 9) };
    return bondRanks(data.inputs, data.outputs, data.rank).every((rank) => rank === data.rank) ? data : null;
  },
  ask: ({ inputs, outputs, rank }) =>
    `<p>Une matrice de ${fr(product(inputs))} entrées, ${cut(inputs)}, et ${fr(product(outputs))} sorties, ${cut(outputs)}, est mise en un train de trois cœurs, dont les deux liens ont le rang ${rank}. Combien de nombres a-t-il ?</p>`,
  answer: ({ inputs, outputs, rank }) => sum(trainBits(inputs, outputs, rank, 32)) / 32,
  faults: ({ inputs, outputs, rank }) => {
    const [first, middle, last] = sizes({ inputs, outputs });
    const [one, two, three] = inputs.map((n, i) => n + outputs[i]);
    return [
      [
        rank ** 2 * (first + middle + last),
        "Les cœurs des bouts n’ont qu’un lien : <var>r</var><sub>0</sub> = <var>r</var><sub>3</sub> = 1.",
      ],
      [
        rank * (one + rank * two + three),
        "Chaque cœur a un nombre par <em>paire</em> de chiffres : in et out se multiplient.",
      ],
      [rank * (first + middle + last), "Le cœur du milieu a deux liens, donc le carré du rang."],
    ];
  },
  label: (count) => fr(count),
  entry: { name: "Nombres du train" },
  work({ inputs, outputs, rank }, count) {
    const [first, middle, last] = sizes({ inputs, outputs });
    return `<p>Le cœur <var>k</var> a la forme (<var>r</var><sub><var>k</var>−1</sub>, in<sub><var>k</var></sub>, out<sub><var>k</var></sub>, <var>r<sub>k</sub></var>) : ${first} × ${rank} + ${rank} × ${middle} × ${rank} + ${rank} × ${last} = ${fr(count)} nombres, au lieu de ${fr(first * middle * last)}.</p>`;
  },
};

const kronecker = {
  title: "Un train de rang un",
  draw(random) {
    const sides = dims(random, 3, 3, 5);
    return { sides, ranks: sides.map((side) => integer(random, 2, side)) };
  },
  ask: ({ sides, ranks }) =>
    `<p>Un train dont tous les liens ont le rang 1 a trois cœurs, qui se lisent comme des matrices carrées de côtés ${joined(sides, ", ")}, de rangs ${joined(ranks, ", ")}. Quel est le rang de la matrice qu’il décrit ?</p>`,
  answer: ({ ranks }) => kroneckerRank(ranks),
  faults: ({ ranks }) => [
    [1, "1 est le rang des liens du train. La matrice est un produit de Kronecker, et son rang est tout autre."],
    [
      sum(ranks),
      "Les rangs ne s’ajoutent pas : une valeur singulière du tout est un <em>produit</em> de valeurs singulières, une par cœur.",
    ],
    [
      Math.min(...ranks),
      "Ce serait le rang, au plus, d’un produit ordinaire de matrices. C’est ici un produit de Kronecker.",
    ],
  ],
  label: (rank) => fr(rank),
  work: ({ sides, ranks }, rank) =>
    `<p><var>W</var> = ${[1, 2, 3].map((k) => symbol("G", k)).join(" ⊗ ")}, de rang ${joined(ranks, " × ")} = ${fr(rank)}, pour ${joined(
      sides.map((side) => side ** 2),
      " + ",
    )} = ${fr(sum(sides.map((side) => side ** 2)))} nombres. Un train resserre une répétition, non un petit nombre de directions.</p>`,
};

const noise = {
  title: "Le bruit d’une chaîne",
  draw: (random) => ({ d: integer(random, 3, 9), error: decimal(random, 1, 12) }),
  ask: ({ d, error }) =>
    `<p>Un train de ${d} cœurs, orthonormés à gauche, est arrondi cœur par cœur, d’une erreur relative de ${fr(error, 1)} % pour chacun. Si ces erreurs sont indépendantes, quelle est, au premier ordre, celle du tenseur ?</p>`,
  answer: ({ d, error }) => quadrature(Array(d).fill(error)),
  faults: ({ d, error }) => [
    [
      d * error,
      "C’est la somme des erreurs, ce que la borne répond du pire. Des erreurs indépendantes ajoutent leurs carrés.",
    ],
    [error, "Chaque cœur apporte la sienne : elles ne se compensent pas."],
    [
      Math.sqrt(d - 1) * error,
      `√(<var>d</var> − 1) est le facteur de TT-SVD, qui coupe ${d - 1} liens. On arrondit ici ${d} cœurs.`,
    ],
  ],
  label: (error) => `${fr(error, 1)} %`,
  work: ({ d, error }, total) =>
    `<p>Orthonormé, chaque cœur contribue autant : <var>η</var>√<var>d</var> = ${fr(error, 1)} % × √${d} = ${fr(total, 1)} %. Dans une jauge quelconque, rien ne le garantit.</p>`,
};

const tucker = {
  title: "Tucker, le noyau et les facteurs",
  draw(random) {
    const n = dims(random, 3, 8, 48);
    return { n, r: n.map((size) => integer(random, 3, Math.floor(size / 2))), bits: pick(random, [2, 3, 4, 5, 6, 8]) };
  },
  ask: ({ n, r, bits }) =>
    `<p>Un tenseur de ${joined(n, " × ")} nombres est mis sous forme de Tucker, de rangs ${joined(r, ", ")}. On range le noyau en codes serrés de ${bits} bits, avec une échelle float32, et l’on oublie d’arrondir les facteurs, restés en float32. Combien d’octets ?</p>`,
  answer: ({ n, r, bits }) => core({ r, bits }) / 8 + 4 * factorsOf({ n, r }),
  faults: ({ n, r, bits }) => [
    [
      (core({ r, bits }) + sum(n.map((size, k) => storedBits(size * r[k], bits, 1, true)))) / 8,
      "C’est ce que pèserait le tout si les facteurs étaient arrondis eux aussi.",
    ],
    [4 * (product(r) + factorsOf({ n, r })), "Vous avez tout compté en float32 : le noyau, lui, est arrondi."],
    [core({ r, bits }) / 8, "Les facteurs sont oubliés : sans eux, le noyau ne dit rien du tenseur."],
  ],
  label: (octets) => `${fr(octets)} octets`,
  work: ({ n, r, bits }, octets) =>
    `<p>Le noyau : ${joined(r, " × ")} = ${fr(product(r))} codes de ${bits} bits et une échelle, ${fr(core({ r, bits }) / 8)} octets. Les facteurs : ${n.map((size, k) => `${size} × ${r[k]}`).join(" + ")} = ${fr(factorsOf({ n, r }))} nombres, ${fr(4 * factorsOf({ n, r }))} octets. En tout, ${fr(octets)} : il faut arrondir les deux.</p>`,
};

/** Bits du noyau arrondi, nombres des facteurs. */
const core = ({ r, bits }) => storedBits(product(r), bits, 1, true);
const factorsOf = ({ n, r }) => sum(n.map((size, k) => size * r[k]));

export const questions = [bond, train, kronecker, noise, tucker];

export default selfTest("9.6", questions);
