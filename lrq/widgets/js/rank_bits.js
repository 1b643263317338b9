// Rang et bits à la fois : la carte des erreurs, ce que pèse chaque paire et, à poids égal, les deux autres façons.
import {
  analysed,
  bytes,
  clamp,
  codePanel,
  curve,
  element,
  explorer,
  fr,
  grip,
  keeper,
  listSlider,
  logarithmic,
  menu,
  pickable,
  possible,
  powers,
  set,
  settle,
  slider,
  textWidth,
} from "./figure.js";
import { bestWithin, breakEvenRank, factorBits, paretoFront, storedBits } from "./numerics.js";

const HEIGHT = 344;
const MAP = { left: 24, right: 4, top: 62, bottom: 46 };
const SIDE_BY_SIDE = 680; // largeur à partir de laquelle la carte et les trois façons tiennent côte à côte
const ROWS = { top: 76, step: 88 }; // des trois façons
const [BITS, ALONE_BITS] = [
  [2, 3, 4, 5, 6, 7, 8],
  [1, 2, 3, 4, 5, 6, 7, 8],
];
const RESIDUAL_BITS = 8;
const BUDGETS = [1, 40]; // en centièmes de W
const [LEAST, MOST] = [0.003, 1]; // l'échelle des erreurs : au-dessous, la couleur ne change plus

const ORDERS = {
  low_rank: "Rang faible quantifié",
  alone: "Quantification seule",
  residual: "Quantification + résidu",
};

const octets = (bits) => bytes(bits);
const plural = (count, word) => `${fr(count)}\u00a0${word}${count > 1 ? "s" : ""}`;
const pair = ({ rank, bits }) => `r\u00a0=\u00a0${fr(rank)}, ${plural(bits, "bit")}`;
/** Une erreur, à trois chiffres environ. */
const inPercent = (share) =>
  share > 0 && share < 5e-5 ? "moins de 0,01\u00a0%" : `${fr(100 * share, share < 0.1 ? 2 : 1)}\u00a0%`;
/** Le rang d'équilibre : entier, sauf s'il est petit. */
const breakEven = (rank) => fr(rank, rank < 20 ? 1 : 0, 0);
/** Combien de fois plus. */
const times = (ratio) => `${fr(ratio, ratio < 10 ? 2 : 0, 0)}\u00a0fois`;
/** Une taille ronde. */
const roundSize = (size) =>
  size < 1e3 ? `${size}\u00a0octets` : size < 1e6 ? `${fr(size / 1e3)}\u00a0ko` : `${fr(size / 1e6)}\u00a0Mo`;
/** L'encre d'une case : plus l'erreur est grande, plus la couleur est forte, en clair comme en sombre. Le carré étale les
 *  grandes erreurs, les plus nombreuses. */
const strength = logarithmic([LEAST, MOST], [0, 1]);
const shade = (error) => (0.04 + 0.86 * strength(error) ** 2).toFixed(3);
/** De plusieurs valeurs, la plus proche. */
const closest = (values, wanted) =>
  values.reduce((found, value) => (Math.abs(value - wanted) < Math.abs(found - wanted) ? value : found));

const sharingWord = (group) => (group ? `par groupe de ${group}` : "par ligne");
const sharingCode = (group) => (group ? `lrq.PerGroup(${group})` : "lrq.PerChannel(0)");

/** Les réglages d'une matrice, dans l'ordre de la table, chacun avec son erreur et son poids en bits. */
function analyse(choice, values) {
  const { rows: m, columns: n, ranks, residualRanks, groups } = choice;
  const all = {
    low_rank: ranks.flatMap((rank) => BITS.map((bits) => ({ rank, bits, size: factorBits(m, n, rank, bits, m + n) }))),
    alone: [],
    residual: [],
  };
  for (const group of groups)
    for (const bits of ALONE_BITS) {
      const size = storedBits(m * n, bits, group ? (m * n) / group : m, true);
      all.alone.push({ group, bits, size });
      for (const rank of residualRanks)
        all.residual.push({ group, bits, rank, size: size + factorBits(m, n, rank, RESIDUAL_BITS, m + n) });
    }
  let place = 0;
  for (const candidates of Object.values(all)) for (const candidate of candidates) candidate.error = values[place++];
  const columns = (candidates) => [candidates.map(({ error }) => error), candidates.map(({ size }) => size)];
  return {
    ...choice,
    pairs: all.low_rank,
    front: paretoFront(...columns(all.low_rank)).map((i) => all.low_rank[i]),
    lightest: Object.fromEntries(
      Object.entries(all).map(([order, candidates]) => [order, Math.min(...candidates.map(({ size }) => size))]),
    ),
    /** Le plus fidèle de chaque façon dans ce budget, s'il y en a un. */
    within: (limit) =>
      Object.fromEntries(
        Object.entries(all).map(([order, candidates]) => [
          order,
          candidates[bestWithin(...columns(candidates), limit)],
        ]),
      ),
  };
}

const count = ({ ranks, groups, residualRanks }) =>
  ranks.length * BITS.length + groups.length * ALONE_BITS.length * (1 + residualRanks.length);

/** Ce qui distingue un candidat de sa façon, en quelques mots. */
function described(order, { rank, bits, group }) {
  if (order === "low_rank") return pair({ rank, bits });
  const shared = `${plural(bits, "bit")} ${sharingWord(group)}`;
  return order === "alone" ? shared : `${shared}, rang\u00a0${rank}`;
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ lightest }, limit, best, winner) {
  const budget = [octets(limit), "budget"];
  const others = ["alone", "residual"].filter((order) => best[order]);
  const error = (order) => [inPercent(best[order].error), "error"];
  const parts = best.low_rank
    ? [
        "Dans ",
        budget,
        ", la meilleure paire est ",
        [`r\u00a0=\u00a0${fr(best.low_rank.rank)}`, "rank"],
        " sur ",
        [plural(best.low_rank.bits, "bit"), "bits"],
        "\u00a0: ",
        error("low_rank"),
        " d’erreur. ",
      ]
    : ["Aucune paire ne tient dans ", budget, `\u00a0: la plus légère pèse ${octets(lightest.low_rank)}. `];
  if (!winner) return [...parts, "W quantifiée non plus n’y tient pas."];
  if (winner === "low_rank") {
    if (!others.length) return [...parts, "Rien d’autre ne tient dans ce budget\u00a0: W quantifiée pèse davantage."];
    const second = others.reduce((found, order) => (best[order].error < best[found].error ? order : found));
    const leaves = second === "alone" ? "quantification seule en laisse " : "quantification et son résidu en laissent ";
    return [...parts, `C’est la plus fidèle des trois façons\u00a0: la ${leaves}`, error(second), "."];
  }
  const { bits, rank } = best[winner];
  return [
    ...parts,
    "Mieux vaut quantifier W sur ",
    [plural(bits, "bit"), "bits"],
    ...(winner === "alone" ? [", sans rang faible"] : [", et y ajouter un résidu de ", [`rang\u00a0${rank}`, "rank"]]),
    "\u00a0: ",
    error(winner),
    ".",
  ];
}

/** Ce qu'on dit du point choisi, à côté de la meilleure paire. */
function comparison(point, best, limit) {
  const parts = [
    "Votre point, ",
    [`r\u00a0=\u00a0${fr(point.rank)}`, "rank"],
    " sur ",
    [plural(point.bits, "bit"), "bits"],
    "\u00a0: ",
    [inPercent(point.error), "error"],
    ` d’erreur pour ${octets(point.size)}`,
  ];
  if (point === best) return [...parts, ". C’est la meilleure paire du budget."];
  const heavy = point.size > limit;
  if (!best) return [...parts, ", hors budget."];
  const ratio = point.error === best.error ? 1 : point.error / best.error;
  const error =
    ratio === Infinity
      ? "davantage que la meilleure paire, qui n’en fait aucune"
      : ratio > 1.005
        ? `${times(ratio)} celle de la meilleure paire`
        : ratio < 0.995
          ? `${times(1 / ratio)} moins que la meilleure paire`
          : "autant que la meilleure paire";
  return [...parts, heavy ? `, hors budget\u00a0; ${error}.` : `, soit ${error}.`];
}

/** Le code qui retrouve ces nombres : ceux du point et, s'il y en a une, ceux de la façon la plus fidèle. */
function snippet({ code }, point, best, winner) {
  const pairCode = ({ rank, bits }) =>
    `lrq.QuantizedLowRankLinear.from_linear(linear, ${rank}, ${bits}, granularity=lrq.PerChannel(0), rotate=True)`;
  const says = (name, { error, size }) => [
    `print(f"{100 * ${name}.reconstruction_error(W):.2f} %,", ${name}.nbytes(), "octets")`,
    `${(100 * error).toFixed(2)} %, ${size / 8} octets`,
  ];
  const lines = [
    ...(code.includes("import torch\n") ? [] : ["import torch"]),
    "import lrq",
    code,
    "m, n = W.shape",
    "linear = torch.nn.Linear(n, m, bias=False)",
    "linear.weight.data = W",
    "",
    "# le point choisi",
    `layer = ${pairCode(point)}`,
    says("layer", point),
  ];
  if (!winner || (winner === "low_rank" && best.low_rank === point)) return lines;
  const { rank, bits, group } = best[winner];
  const shared = `granularity=${sharingCode(group)}`;
  const made = {
    low_rank: () => pairCode(best.low_rank),
    alone: () => `lrq.QuantizedLinear.from_linear(linear, ${bits}, ${shared})`,
    residual: () => `lrq.QuantizedResidualLinear.from_linear(linear, ${rank}, ${bits}, ${shared})`,
  };
  return [
    ...lines,
    "",
    "# la plus fidèle des trois façons, dans le budget",
    `best = ${made[winner]()}`,
    says("best", best[winner]),
  ];
}

function build(root, model) {
  const choices = model.get("_choices");
  const analyses = analysed(model, count, analyse);
  const keep = keeper(model);
  const current = () => analyses.get(model.get("matrix"));

  // Les réglages.
  const matrix = menu(
    "matrix",
    "Matrice W",
    choices.map(({ name }) => [name, name]),
    (name) => keep({ rank: closest(analyses.get(name).ranks, model.get("rank")), matrix: name }),
  );
  const shape = element("span", { class: "lrq-value", "data-readout": "shape" });
  const head = element(
    "div",
    { class: "lrq-head lrq-stacked" },
    ...(choices.length > 1 ? matrix.node.childNodes : [element("strong", {}, choices[0].name)]),
    shape,
  );
  const prompt = element("p", { class: "lrq-prompt lrq-long lrq-roomy" });
  const sentence = element("p", { class: "lrq-verdict lrq-long lrq-roomy", "data-readout": "verdict" });
  const budgetSlider = slider("budget", "Budget", 5, (budget) => keep({ budget }));
  const rankSlider = slider("listed-rank", "Rang r", 2, (place) => keep({ rank: current().ranks[place] }));
  const bitsSlider = listSlider("n_bits", "Bits b", BITS, (n_bits) => keep({ n_bits }));
  budgetSlider.node.classList.add("of-budget");
  bitsSlider.node.classList.add("of-bits");
  const panel = element("div", { class: "lrq-settings" }, rankSlider.node, bitsSlider.node);
  const told = element("p", { class: "lrq-told", "data-readout": "point" });
  const jump = element("button", { type: "button", "data-control": "best" }, "Aller à la meilleure paire");

  // La carte.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const line = (kind) => element("path", { class: `lrq-curve ${kind}` });
  const axes = element("g", silent);
  const cells = element("g", { class: "error", ...silent });
  const border = element("rect", { class: "lrq-frame" });
  const sizes = element("g", silent);
  const lines = { even: line("theory"), under: line("lrq-under"), budget: line("budget") };
  const dots = element("g", silent);
  const best = element(
    "g",
    { class: "budget lrq-best", ...silent },
    element("circle", { class: "lrq-ring lrq-under", r: 13 }),
    element("circle", { class: "lrq-ring", r: 13 }),
    element("circle", { class: "lrq-dot", r: 5 }),
  );
  const labels = {
    budget: text("budget"),
    even: text("theory"),
    best: text("budget"),
    here: text("rank"),
    front: text(""),
  };
  const handle = grip(
    "map-point",
    "Paire choisie sur la carte (à gauche et à droite, le rang ; en haut et en bas, les bits)",
    "rank",
    { "aria-valuemin": 1 },
  );
  const plot = element(
    "svg",
    { class: "lrq-plot lrq-map", height: HEIGHT, role: "group" },
    cells,
    border,
    axes,
    sizes,
    ...Object.values(lines),
    dots,
    best,
    handle,
    ...Object.values(labels),
  );

  // Les trois façons, sur une échelle d'erreurs qui est aussi la légende de la carte.
  const orders = element("svg", { class: "lrq-plot lrq-histogram", height: HEIGHT, role: "img" });

  const code = codePanel();
  const note = element("p", { class: "lrq-note lrq-long" });
  root.append(
    head,
    prompt,
    sentence,
    element("div", { class: "lrq-pair" }, plot, orders),
    budgetSlider.node,
    panel,
    element("div", { class: "lrq-beside" }, told, jump),
    note,
    code.node,
  );

  let frame = null; // de la carte présente : rang et bits → pixels
  let target = null; // la meilleure paire
  jump.addEventListener("click", () => target && keep({ rank: target.rank, n_bits: target.bits }));
  pickable(
    plot,
    handle,
    (x, y) => keep(frame.invert(x, y)),
    () => {
      const before = { rank: model.get("rank"), n_bits: model.get("n_bits") };
      return () => keep(before);
    },
  );
  handle.addEventListener("keydown", (event) => {
    const { ranks } = current();
    const [place, bits] = [ranks.indexOf(model.get("rank")), model.get("n_bits")];
    const moved = (columns, rows) => ({
      rank: ranks[clamp(place + columns, 0, ranks.length - 1)],
      n_bits: clamp(bits + rows, BITS[0], BITS.at(-1)),
    });
    const next = {
      ArrowLeft: () => moved(-1, 0),
      ArrowRight: () => moved(1, 0),
      ArrowUp: () => moved(0, 1),
      ArrowDown: () => moved(0, -1),
      Home: () => ({ rank: ranks[0], n_bits: BITS[0] }),
      End: () => ({ rank: ranks.at(-1), n_bits: BITS.at(-1) }),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    keep(next());
  });

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);
  const title = (attributes, ...words) => element("text", { class: "lrq-title", ...attributes }, ...words);

  /** Où tombent, sur la carte, un rang et un nombre de bits quelconques. Une case va jusqu'à mi-chemin des voisines. */
  function geometry(width, { ranks }) {
    const [left, right, top, bottom] = [MAP.left, width - MAP.right, MAP.top, HEIGHT - MAP.bottom];
    const high = (bottom - top) / BITS.length;
    const borders = [
      Math.SQRT1_2,
      ...ranks.slice(1).map((rank, i) => Math.sqrt(rank * ranks[i])),
      ranks.at(-1) * 2 ** 0.25,
    ];
    const x = logarithmic([borders[0], borders.at(-1)], [left, right]);
    const y = (bits) => bottom - high * (bits - BITS[0] + 0.5);
    const invert = (px, py) => ({
      rank: ranks[
        clamp(
          borders.findLastIndex((border) => x(border) <= px),
          0,
          ranks.length - 1,
        )
      ],
      n_bits: clamp(BITS[0] + Math.floor((bottom - py) / high), BITS[0], BITS.at(-1)),
    });
    return { left, right, top, bottom, high, borders, x, y, invert };
  }

  /** Tous les (rang, bits) qui pèsent `size` bits, du bas de la carte vers le haut : des [x, y]. */
  function contour({ rows: m, columns: n }, size) {
    const found = [];
    for (let bits = BITS[0] - 0.5; bits <= BITS.at(-1) + 0.501; bits += 0.05) {
      const rank = (size - 32 * (m + n)) / ((m + n) * bits);
      if (rank <= 0) continue;
      if (rank >= frame.borders[0] && rank <= frame.borders.at(-1)) found.push([frame.x(rank), frame.y(bits)]);
    }
    return found;
  }

  const path = (points) =>
    curve(
      points.map(([x]) => x),
      points.map(([, y]) => y),
    );

  function drawMap(width, matrix, point, limit) {
    frame = geometry(width, matrix);
    const { left, right, top, bottom, high, borders, x, y } = frame;
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    cells.replaceChildren(
      ...matrix.pairs.map(({ rank, bits, error }) => {
        const [start, end] = [0, 1].map((side) => x(borders[matrix.ranks.indexOf(rank) + side]));
        return element("rect", {
          class: "lrq-cell",
          x: (start + 0.5).toFixed(1),
          y: (y(bits) - high / 2 + 0.5).toFixed(1),
          width: (end - start - 1).toFixed(1),
          height: (high - 1).toFixed(1),
          "fill-opacity": shade(error),
        });
      }),
    );
    set(border, { x: left, y: top, width: right - left, height: bottom - top });
    let last = right + 20; // de droite à gauche : le plus grand rang est toujours nommé
    const named = matrix.ranks.toReversed().filter((rank) => {
      const half = (fr(rank).length * 7.4) / 2;
      const free = x(rank) + half < last - 5;
      if (free) last = x(rank) - half;
      return free;
    });
    axes.replaceChildren(
      title({ x: 0, y: 14, class: "lrq-title bits" }, "bits b"),
      title({ x: right, y: HEIGHT - 6, "text-anchor": "end", class: "lrq-title rank" }, "rang r (log)"),
      ...BITS.map((bits) => tick({ x: left - 8, y: y(bits) + 4, "text-anchor": "end" }, bits)),
      ...named.map((rank) => tick({ x: x(rank), y: bottom + 18, "text-anchor": "middle" }, fr(rank))),
    );

    const budget = contour(matrix, limit);
    const even = breakEvenRank(matrix.rows, matrix.columns);
    const evenX = x(even);
    const vertical = [
      [evenX, top],
      [evenX, bottom],
    ];
    const front = matrix.front.map(({ rank, bits }) => [x(rank), y(bits)]);
    set(lines.budget, { d: path(budget) });
    set(lines.under, { d: path(budget) });
    set(lines.even, { d: path(vertical) });
    dots.replaceChildren(
      ...front.map(([cx, cy]) => element("circle", { class: "lrq-dot", r: 3.6, cx: cx.toFixed(1), cy: cy.toFixed(1) })),
    );
    set(best, {
      transform: target && `translate(${x(target.rank).toFixed(1)} ${y(target.bits).toFixed(1)})`,
      visibility: target ? null : "hidden",
    });
    set(handle, { transform: `translate(${x(point.rank).toFixed(1)} ${y(point.bits).toFixed(1)})` });

    // Les étiquettes : celles des lignes au-dessus de la carte, celles des points auprès d'eux.
    const box = (rank, bits, r) => ({ left: x(rank) - r, right: x(rank) + r, top: y(bits) - r, bottom: y(bits) + r });
    const around = {
      bounds: { left: 0, right: width, top: 16, bottom: bottom - 1 },
      points: [...front, ...budget.filter((_, i) => i % 3 === 0)],
      taken: [box(point.rank, point.bits, 13), ...(target ? [box(target.rank, target.bits, 15)] : [])],
    };
    /** Pose le premier de ces mots qui trouve une place libre, ou le dernier s'il ne couvre aucune étiquette. */
    const place = (label, words, places) => {
      let crowd = 1000;
      const others = around.taken;
      for (const word of places.length ? words : []) {
        around.taken = [...others]; // un premier essai manqué n'encombre pas le second
        crowd = settle([label], [word], places, around);
        if (crowd === 0) break;
      }
      set(label, { visibility: crowd >= 1000 ? "hidden" : null });
    };
    const above = (px, py) => [-30, 0, 30].map((shift) => [px + shift, py, "middle"]);
    const edges = (py) => [
      [left, py, "start"],
      [right, py, "end"],
    ];
    const end = budget.at(-1);
    const reaches = end && end[1] < top + 2;
    place(
      labels.budget,
      [`budget\u00a0: ${octets(limit)}`],
      !end ? [] : reaches ? [...above(end[0], 34), ...edges(34)] : [[right - 4, end[1] - 8, "end"], ...edges(34)],
    );
    place(
      labels.even,
      [`r*\u00a0=\u00a0${breakEven(even)}`],
      [...above(evenX, 34), [right, 34, "end"], ...above(evenX, 52), [right, 52, "end"]],
    );
    const beside = (rank, bits, gap) => {
      const [px, py] = [x(rank), y(bits)];
      return [
        [px + gap, py + 5, "start"],
        [px - gap, py + 5, "end"],
        [px, py - gap - 3, "middle"],
        [px, py + gap + 13, "middle"],
        [px + gap, py - 14, "start"],
        [px - gap, py - 14, "end"],
        [px + gap, py + 24, "start"],
        [px - gap, py + 24, "end"],
        [px - gap, py + 40, "end"],
        [px + gap, py + 40, "start"],
      ];
    };
    const inside = { ...around.bounds, left: left + 2, right: right - 2, top: top - 4 };
    const outside = around.bounds;
    around.bounds = inside;
    const told_ = (name, error) => [`${name}\u00a0: ${inPercent(error)}`, inPercent(error)];
    place(
      labels.best,
      target ? told_("meilleure", target.error) : [],
      target ? beside(target.rank, target.bits, 18) : [],
    );
    place(labels.here, point === target ? [] : told_("votre point", point.error), beside(point.rank, point.bits, 15));
    place(
      labels.front,
      ["points\u00a0: front de Pareto", "front de Pareto"],
      front.flatMap(([px, py]) => [
        [px + 8, py + 24, "start"],
        [px + 12, py + 5, "start"],
        [px - 12, py + 5, "end"],
        [px - 8, py - 14, "end"],
      ]),
    );
    around.bounds = outside;
    const smallest = Math.min(...matrix.pairs.map(({ size }) => size)) / 8;
    const largest = Math.max(...matrix.pairs.map(({ size }) => size)) / 8;
    sizes.replaceChildren(
      ...powers(smallest, largest, 4).flatMap((size) => {
        const points = contour(matrix, 8 * size);
        if (points.length < 2) return [];
        const drawn = element("path", { class: "lrq-curve lrq-iso", d: path(points) });
        const word = tick({}, roundSize(size));
        const [px, py] = points.at(-1);
        if (py > top + 2) return [drawn];
        const crowd = settle([word], [roundSize(size)], [[px, 52, "middle"]], around);
        return crowd >= 1000 ? [drawn] : [drawn, word];
      }),
    );
  }

  function drawOrders(width, matrix, found, winner) {
    const [left, right] = [8, width - 8];
    const x = logarithmic([LEAST, MOST], [left, right]);
    set(orders, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    const steps = 48;
    const slice = (right - left) / steps;
    const bar = Array.from({ length: steps }, (_, i) =>
      element("rect", {
        class: "lrq-cell error",
        x: (left + i * slice).toFixed(2),
        y: 24,
        width: (slice + 0.1).toFixed(2),
        height: 12,
        "fill-opacity": shade(LEAST * (MOST / LEAST) ** ((i + 0.5) / steps)),
      }),
    );
    const nodes = [
      title({ x: 0, y: 14 }, "Erreur relative (log), couleur de la carte"),
      ...bar,
      element("rect", { class: "lrq-frame", x: left, y: 24, width: right - left, height: 12 }),
      ...[0.01, 0.1, 1].flatMap((value) => [
        element("line", { class: "lrq-grid", x1: x(value), x2: x(value), y1: 36, y2: HEIGHT - 12 }),
        tick(
          { x: value === 1 ? width : x(value), y: 51, "text-anchor": value === 1 ? "end" : "middle" },
          `${fr(100 * value)}\u00a0%`,
        ),
      ]),
    ];
    const words = [];
    for (const [i, [order, name]] of Object.entries(ORDERS).entries()) {
      const y = ROWS.top + i * ROWS.step;
      const [best, chosen] = [found[order], order === winner];
      nodes.push(element("text", { class: "lrq-label", x: 0, y: y + 8 }, name));
      if (chosen)
        nodes.push(
          element("text", { class: "lrq-label budget", x: width, y: y + 8, "text-anchor": "end" }, "la plus fidèle"),
        );
      if (!best) {
        const lightest = octets(matrix.lightest[order]);
        nodes.push(tick({ x: 0, y: y + 34 }, `hors budget\u00a0: ${lightest} au moins`));
        words.push(`${name} : hors budget, ${lightest} au moins`);
        continue;
      }
      const [px, py] = [x(best.error), y + 30];
      const flip = px + 17 + textWidth(inPercent(best.error)) > right;
      nodes.push(element("line", { class: "lrq-track", x1: left, x2: right, y1: py, y2: py }));
      nodes.push(
        element("circle", { class: "lrq-dot error", r: 6, cx: px, cy: py }),
        ...(chosen ? [element("circle", { class: "lrq-ring budget", r: 10, cx: px, cy: py })] : []),
        element(
          "text",
          {
            class: "lrq-label error",
            x: flip ? px - 15 : px + 15,
            y: py + 4,
            "text-anchor": flip ? "end" : "start",
          },
          inPercent(best.error),
        ),
        tick({ x: 0, y: y + 54 }, `${described(order, best)}\u00a0: ${octets(best.size)}`),
      );
      words.push(`${name} : ${inPercent(best.error)}, ${described(order, best)}, ${octets(best.size)}`);
    }
    orders.replaceChildren(...nodes);
    set(orders, { "aria-label": `Trois façons de tenir dans le budget. ${words.join(". ")}.` });
  }

  const write = (node, parts) =>
    node.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );

  let spoken = null;
  return (width) => {
    const matrixShown = current();
    const { rows: m, columns: n, ranks } = matrixShown;
    const rank = possible(model, "rank", (value) => closest(ranks, value));
    const bits = possible(model, "n_bits", (value) => clamp(value, BITS[0], BITS.at(-1)));
    const budget = possible(model, "budget", (value) => clamp(value, ...BUDGETS));
    const limit = (32 * m * n * budget) / 100;
    const point = matrixShown.pairs.find((candidate) => candidate.rank === rank && candidate.bits === bits);
    const found = matrixShown.within(limit);
    target = found.low_rank ?? null;
    const winner = Object.keys(ORDERS)
      .filter((order) => found[order])
      .reduce((least, order) => (least && found[least].error <= found[order].error ? least : order), null);

    const left = width >= SIDE_BY_SIDE ? Math.round(0.57 * width) : width;
    drawMap(left, matrixShown, point, limit);
    drawOrders(width >= SIDE_BY_SIDE ? width - left - 20 : width, matrixShown, found, winner);

    write(sentence, verdict(matrixShown, limit, found, winner));
    write(told, comparison(point, target, limit));
    const said = `${sentence.textContent} ${told.textContent}`;
    matrix.update(matrixShown.name);
    budgetSlider.update(budget, ...BUDGETS, `${fr(budget)}\u00a0% de W, ${octets(limit)}`);
    rankSlider.update(ranks.indexOf(rank), 0, ranks.length - 1, fr(rank));
    bitsSlider.update(bits, fr(bits));
    jump.disabled = !target || target === point;
    shape.textContent = `${fr(m)}\u00a0×\u00a0${fr(n)}, ${octets(32 * m * n)} en float32`;
    prompt.textContent = matrixShown.prompt;
    prompt.hidden = !matrixShown.prompt;
    note.textContent =
      `Tirets, r*\u00a0= ${breakEven(breakEvenRank(m, n))}\u00a0: à droite, à bits égaux, les facteurs pèsent plus que W. Traits fins\u00a0: ` +
      "mêmes octets, codes et échelles comptés. La carte n’essaie que ces rangs-là. Facteurs tournés, une échelle par ligne\u00a0; W, une par ligne ou par " +
      `groupe\u00a0; résidu sur ${RESIDUAL_BITS}\u00a0bits.`;
    set(plot, { "aria-label": `Carte de l’erreur selon le rang et les bits. ${sentence.textContent}` });
    set(handle, {
      "aria-valuenow": 1 + matrixShown.pairs.indexOf(point),
      "aria-valuemax": matrixShown.pairs.length,
      "aria-valuetext": `${pair(point)} : ${inPercent(point.error)} d’erreur, ${octets(point.size)}`,
    });
    code.update(snippet(matrixShown, point, found, winner));
    const announced = spoken === matrixShown.name ? said : `${matrixShown.name}, ${shape.textContent}. ${said}`;
    spoken = matrixShown.name;
    return announced;
  };
}

export default explorer({
  kind: "rank-bits",
  label: "Rang et bits : l’erreur à taille égale",
  traits: ["matrix", "rank", "n_bits", "budget"],
  build,
});
