// Un budget pour tout un réseau : les bits et le rang que reçoit chaque couche, et la carte de toutes les recettes.
import {
  clamp,
  closest,
  codePanel,
  curve,
  decode,
  element,
  explorer,
  fr,
  grip,
  listSlider,
  logarithmic,
  pickable,
  possible,
  set,
  settle,
} from "./figure.js";
import { bestWithin } from "./numerics.js";

const HEIGHT = 380;
const MARGIN = { left: 52, right: 10, top: 36, bottom: 46 };
const LOST = [1.2e-5, 1]; // 1 − fidélité, du haut en bas de la carte
const SIZES = [2.8e6, 23e6]; // en octets
const LEVELS = [0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999];
const COLUMNS = ["query", "key", "value", "sortie", "dense 1", "dense 2"];
const SHARED = "budget"; // la famille de la répartition

/** Les familles de recettes : leur nom, le mot qui suit leurs points, leur notion, leur marque. */
const FAMILIES = {
  [SHARED]: { name: "Budget réparti", word: "réparti", kind: "budget", mark: "circle" },
  gptq: { name: "GPTQ, pareil partout", word: "pareil partout", kind: "bits", mark: "diamond" },
  nearest: { name: "Arrondi au plus près", word: "arrondi au plus près", kind: "bits", mark: "square" },
  activations: { name: "Entrées aussi sur 8\u00a0bits", word: "entrées aussi", kind: "error", mark: "triangle" },
  elsewhere: { name: "D’autres bibliothèques", word: "ailleurs", kind: "theory", mark: "cross" },
  low_rank: { name: "Rang faible ou tenseurs", word: "rang faible ou tenseurs", kind: "rank", mark: "square" },
};
const MARKS = {
  square: "M-4 -4h8v8h-8z",
  circle: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
  triangle: "M0 -5.4L5 3.9H-5z",
  diamond: "M0 -5.8L5.8 0L0 5.8L-5.8 0z",
  cross: "M-5 -1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
};

const megabytes = (octets) => `${fr(octets / 1e6, octets < 1e7 ? 2 : 1)}\u00a0Mo`;
/** Une fidélité : trois décimales, ou de quoi garder deux chiffres à ce qui lui manque. */
const fidelity = (cosine) => fr(cosine, cosine > 0.9985 ? 5 : cosine > 0.985 ? 4 : 3);
const unbroken = (label) => label.replace(/(\d) (bits?)/g, "$1\u00a0$2").replace(/résidu (\d)/, "résidu\u00a0$1");

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ weights }, { bytes: size, cosine, uniform }) {
  const [label, other, reached] = uniform;
  const alike = size === other && cosine === reached;
  const head = [
    [megabytes(size), "budget"],
    `, ${fr((8 * size) / weights, 2)}\u00a0bits par poids, ${fr((4 * weights) / size, 1)}\u00a0fois moins que l’original\u00a0: fidélité `,
    [fidelity(cosine), "budget"],
  ];
  if (alike) return [...head, `, celle de ${unbroken(label)} partout\u00a0: rien ne reste à répartir.`];
  return [
    ...head,
    `. Sans peser plus, la meilleure recette pareille partout, ${unbroken(label)}, donne `,
    [fidelity(reached), "bits"],
    cosine > reached
      ? `\u00a0: répartir ôte ${fr(100 * (1 - (1 - cosine) / (1 - reached)))}\u00a0% de ce qui lui manque.`
      : "\u00a0: la répartition s’est trompée.",
  ];
}

/** Le code qui retrouve cette répartition. */
function snippet({ bias }, { budget, bytes: size, predicted, bits, ranks }) {
  const list = (values) => `[${values.join(", ")}]`;
  return [
    "import lrq",
    "from lrq.widgets.budget import load_options",
    "",
    "# ce que chaque réglage de chaque couche pèse et coûte, mesuré une fois",
    "settings, options = load_options()",
    `chosen = lrq.allocate_budget(options, ${budget})`,
    "size, loss = map(sum, zip(*(options[name][i] for name, i in chosen.items())))",
    [`print(f"{size} octets, {100 * loss**0.5:.2f} % d'erreur prévue")`, `${size} octets, ${(100 * predicted).toFixed(2)} % d'erreur prévue`],
    "bits, ranks = zip(*(settings[i] for i in chosen.values()))",
    ["print(list(bits[:6]), sum(bits))", `${list(bits.slice(0, 6))} ${bits.reduce((a, b) => a + b)}`],
    ["print(list(ranks[:6]), sum(ranks))", `${list(ranks.slice(0, 6))} ${ranks.reduce((a, b) => a + b)}`],
    "",
    "# tout refaire, sur MiniLM et ses phrases de calibration (trois minutes)\u00a0:",
    `# recipe = {"budget": ${budget + bias}, "layers": "bert.encoder.*", "probe_batches": 64}  # biais compris`,
    "# lrq.BudgetCompression(recipe).compress(encoder, batches)",
  ];
}

function build(root, model) {
  const network = model.get("_network");
  const count = network.names.length;
  const lines = model.get("_lines");
  const given = decode(model.get("_given"), Uint8Array, 2 * count * lines.length);
  const row = (kind, place) => Array.from(given.subarray((kind * lines.length + place) * count, (kind * lines.length + place + 1) * count));
  const states = lines.map((line, place) => ({ ...line, bits: row(0, place), ranks: row(1, place) }));
  const budgets = states.map(({ budget }) => budget);
  const points = {
    [SHARED]: states.map(({ budget, bytes: size, cosine }) => ({ budget, label: "", size, cosine })),
  };
  const recipes = model.get("_recipes").map(([label, family, size, cosine, front]) => ({ label, family, size, cosine, front }));
  for (const family of Object.keys(FAMILIES))
    if (family !== SHARED) points[family] = recipes.filter((recipe) => recipe.family === family);
  const front = recipes.filter((recipe) => recipe.front).sort((a, b) => a.size - b.size);
  const keep = (budget) => {
    model.set("budget", budget);
    model.save_changes();
  };

  const prompt = element(
    "p",
    { class: "lrq-prompt" },
    "Baissez le budget, cran après cran\u00a0: quelles couches gardent leurs bits le plus longtemps\u00a0? Et pourquoi " +
      "répartir gagne-t-il plus à 6,64\u00a0Mo qu’à 5,81\u00a0?",
  );
  const sentence = element("p", { class: "lrq-verdict lrq-shared", "data-readout": "verdict" });
  const budgetSlider = listSlider("listed-budget", "Budget", budgets, keep);
  budgetSlider.node.classList.add("of-budget");

  // La grille des couches : un tableau, qu'un lecteur d'écran parcourt.
  const cells = network.names.map(() => element("td"));
  const blocks = Array.from({ length: count / COLUMNS.length }, (_, block) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, fr(block + 1)),
      ...cells.slice(block * COLUMNS.length, (block + 1) * COLUMNS.length),
    ),
  );
  const grid = element(
    "table",
    { class: "lrq-shares", "data-readout": "layers", "aria-label": "Bits de chaque couche, et rang de son résidu" },
    element("thead", {}, element("tr", {}, ...["Bloc", ...COLUMNS].map((word) => element("th", { scope: "col" }, word)))),
    element("tbody", {}, ...blocks),
  );
  const legend = element(
    "p",
    { class: "lrq-note lrq-legend" },
    "Dans chaque case, ",
    element("strong", { class: "bits" }, "les bits"),
    " de la couche et, si elle en a un, +\u00a0le rang de son résidu.",
  );

  // La carte.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const background = element("g", silent);
  const paths = {
    front: element("path", { class: "lrq-curve theory", ...silent }),
    [SHARED]: element("path", { class: "lrq-curve budget", ...silent }),
  };
  const cut = element("line", { class: "lrq-budget-line budget faded", ...silent });
  const dots = element("g", silent);
  const labels = Object.fromEntries([
    ["here", text("budget")],
    ["uniform", text("bits")],
    ...Object.entries(FAMILIES).map(([key, { kind }]) => [key, text(`${kind} lrq-light`)]),
    ["front", text("theory lrq-light")],
  ]);
  const handle = grip(
    "budget-point",
    "Budget choisi sur la carte",
    "budget",
    { "aria-valuemin": 1, "aria-valuemax": budgets.length },
  );
  const plot = element(
    "svg",
    { class: "lrq-plot", height: HEIGHT, role: "group" },
    background,
    paths.front,
    cut,
    paths[SHARED],
    dots,
    handle,
    ...Object.values(labels),
  );

  // Le tableau des familles, qui est aussi la légende des marques.
  const told = {};
  const rows = Object.entries(FAMILIES).map(([key, { name, kind, mark }]) => {
    const glyph = element(
      "svg",
      { width: 14, height: 14, viewBox: "-7 -7 14 14", ...silent },
      element("path", { class: `lrq-mark ${kind}`, d: MARKS[mark] }),
    );
    const detail = element("span", { class: "lrq-value" });
    const numbers = [element("td"), element("td")];
    const head = element("th", { scope: "row" }, element("div", {}, glyph, element("span", {}, name, " ", detail)));
    told[key] = { line: element("tr", {}, head, ...numbers), detail, numbers };
    return told[key].line;
  });
  const table = element(
    "table",
    { class: "lrq-recipes lrq-families", "data-readout": "recipes", "aria-label": "La plus fidèle de chaque famille, dans le budget" },
    element("thead", {}, element("tr", {}, ...["Dans ce budget", "Mo", "fidélité"].map((word) => element("th", { scope: "col" }, word)))),
    element("tbody", {}, ...rows),
  );
  const note = element(
    "p",
    { class: "lrq-note" },
    "Octets des 36\u00a0couches de l’encodeur, échelles comprises, biais ôtés. Fidélité\u00a0: cosinus moyen, sur 400\u00a0phrases, " +
      "avec le réseau d’origine\u00a0; vers le haut de la carte, ce qui lui manque est divisé par dix à chaque étage. torchao garde " +
      "ses codes de 4\u00a0bits sur un octet.",
  );
  const code = codePanel();
  root.append(prompt, sentence, budgetSlider.node, grid, legend, plot, table, note, code.node);

  let shown = []; // les points de la répartition, avec leur place
  pickable(
    plot,
    handle,
    (x) => keep(shown.reduce((found, point) => (Math.abs(point.x - x) < Math.abs(found.x - x) ? point : found)).budget),
    () => {
      const budget = model.get("budget");
      return () => keep(budget);
    },
  );
  handle.addEventListener("keydown", (event) => {
    const place = budgets.indexOf(model.get("budget"));
    const target = {
      ArrowLeft: place - 1,
      ArrowDown: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place + 1,
      PageDown: place - 2,
      PageUp: place + 2,
      Home: 0,
      End: budgets.length - 1,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    keep(budgets[clamp(target, 0, budgets.length - 1)]);
  });

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);
  const title = (attributes, word) => element("text", { class: "lrq-title", ...attributes }, word);

  function drawMap(width, state) {
    const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom];
    const x = logarithmic(SIZES, [left, right]);
    const down = logarithmic(LOST, [top, bottom]);
    const y = (cosine) => down(1 - cosine);
    const at = (point) => ({ ...point, x: x(point.size), y: y(point.cosine) });
    const path = (all) =>
      curve(
        all.map((point) => point.x),
        all.map((point) => point.y),
      );
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    background.replaceChildren(
      ...LEVELS.flatMap((level) => [
        element("line", { class: "lrq-grid", x1: left, x2: right, y1: y(level), y2: y(level) }),
        tick({ x: left - 6, y: y(level) + 4, "text-anchor": "end" }, fr(level, 5, 0)),
      ]),
      ...[3, 4, 5, 6, 8, 10, 15, 20].map((size) => tick({ x: x(size * 1e6), y: bottom + 18, "text-anchor": "middle" }, fr(size))),
      title({ x: 0, y: 14 }, "Fidélité"),
      title({ x: right, y: HEIGHT - 6, "text-anchor": "end" }, "Mo (échelle logarithmique)"),
    );
    const placed = Object.fromEntries(Object.keys(FAMILIES).map((key) => [key, points[key].map(at)]));
    shown = placed[SHARED];
    const here = shown.find(({ budget }) => budget === state.budget);
    const [label, size, cosine] = state.uniform;
    const other = at({ label, size, cosine });
    const stairs = front.map(at).flatMap((point, i, all) => (i ? [{ x: point.x, y: all[i - 1].y }, point] : [point]));
    set(paths.front, { d: path(stairs) });
    set(paths[SHARED], { d: path(shown) });
    set(cut, { x1: here.x.toFixed(1), x2: here.x.toFixed(1), y1: top, y2: bottom });
    const mark = (key, point, scale) =>
      element("path", {
        class: `lrq-mark ${FAMILIES[key].kind}`,
        d: MARKS[FAMILIES[key].mark],
        transform: `translate(${point.x.toFixed(1)} ${point.y.toFixed(1)}) scale(${scale})`,
      });
    dots.replaceChildren(
      ...Object.keys(FAMILIES)
        .toReversed()
        .flatMap((key) => placed[key].map((point) => mark(key, point, key === SHARED ? 0.75 : 0.85))),
      element("circle", { class: "lrq-ring bits", r: 8, cx: other.x.toFixed(1), cy: other.y.toFixed(1) }),
    );
    set(handle, { transform: `translate(${here.x.toFixed(1)} ${here.y.toFixed(1)})` });

    // Les étiquettes.
    const along = (all) =>
      all.slice(1).flatMap((b, i) => {
        const a = all[i];
        const parts = Math.max(1, Math.ceil(Math.hypot(b.x - a.x, b.y - a.y) / 9));
        return Array.from({ length: parts }, (_, k) => [a.x + ((b.x - a.x) * k) / parts, a.y + ((b.y - a.y) * k) / parts]);
      });
    const every = Object.values(placed).flat();
    const around = {
      bounds: { left: left + 2, right: right + 2, top: top - 26, bottom: bottom - 2 },
      points: [
        ...along(stairs),
        ...along(shown),
        ...every.flatMap((point) => [-5, 0, 5].flatMap((dx) => [-5, 0, 5].map((dy) => [point.x + dx, point.y + dy]))),
      ],
      taken: [here, other].map((point) => ({ left: point.x - 11, right: point.x + 11, top: point.y - 11, bottom: point.y + 11 })),
    };
    const beside = (point, gap) => [
      [point.x - gap, point.y + 5, "end"],
      [point.x - gap, point.y - 10, "end"],
      [point.x + gap, point.y + 5, "start"],
      [point.x + gap, point.y + 18, "start"],
      [point.x, point.y - gap - 2, "middle"],
      [point.x, point.y + gap + 13, "middle"],
      [point.x - gap, point.y - 26, "end"],
      [point.x + gap, point.y + 34, "start"],
      [point.x + gap, point.y - 12, "start"],
      [point.x - gap, point.y + 20, "end"],
    ];
    /** Pose le premier de ces mots qui trouve une place libre ; à défaut, rien : la phrase et le tableau le disent. */
    const place = (node, words, places, tolerance) => {
      let crowd = Infinity;
      const before = around.taken;
      for (const word of places.length ? words : []) {
        around.taken = [...before];
        crowd = settle([node], [word], places, around);
        if (crowd <= tolerance) break;
        around.taken = before;
      }
      set(node, { visibility: crowd > tolerance ? "hidden" : null });
    };
    place(labels.here, [fidelity(state.cosine)], beside(here, 14), 999);
    place(labels.uniform, [unbroken(label), fidelity(cosine)], beside(other, 13).reverse(), 2);
    for (const key of Object.keys(FAMILIES).toReversed())
      place(
        labels[key],
        [FAMILIES[key].word],
        (key === SHARED ? shown : placed[key]).toReversed().flatMap((point) => beside(point, 9)),
        0,
      );
    place(labels.front, ["le front des autres", "front"], stairs.flatMap((point) => beside(point, 10)), 0);
  }

  const write = (node, parts) =>
    node.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );

  return (width) => {
    const budget = possible(model, "budget", (wanted) => closest(budgets, wanted));
    const state = states[budgets.indexOf(budget)];
    budgetSlider.update(budget, megabytes(budget));
    write(sentence, verdict(network, state));
    cells.forEach((cell, i) => {
      const rank = state.ranks[i];
      cell.style.setProperty("--bits", state.bits[i]);
      cell.replaceChildren(
        element("span", {}, fr(state.bits[i])),
        ...(rank ? [element("span", { class: "lrq-value" }, `+${fr(rank)}`)] : []),
      );
    });
    drawMap(width, state);
    for (const [key, { line, detail, numbers }] of Object.entries(told)) {
      const all = points[key];
      const best = all[bestWithin(all.map(({ cosine }) => 1 - cosine), all.map(({ size }) => size), budget)];
      set(line, { class: key === SHARED ? "lrq-shown" : null });
      detail.textContent = key === SHARED ? "" : best ? unbroken(best.label) : `dès ${megabytes(Math.min(...all.map(({ size }) => size)))}`;
      numbers[0].textContent = best ? fr(best.size / 1e6, 2) : "–";
      numbers[1].textContent = best ? fidelity(best.cosine) : "–";
    }
    const said = sentence.textContent;
    set(plot, { "aria-label": `Fidélité selon les octets, ${recipes.length + states.length}\u00a0recettes mesurées. ${said}` });
    set(handle, {
      "aria-valuenow": 1 + budgets.indexOf(budget),
      "aria-valuetext": `${megabytes(state.bytes)} : fidélité ${fidelity(state.cosine)}`,
    });
    code.update(snippet(network, state));
    return said;
  };
}

export default explorer({
  kind: "budget",
  label: "Un budget pour tout un réseau : ce que chaque couche en reçoit",
  traits: ["budget"],
  build,
});
