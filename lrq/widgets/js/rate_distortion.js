// Débit et distorsion : l'erreur de chaque recette selon ses bits par poids, et les deux bornes de la théorie.
import {
  analysed,
  clamp,
  codePanel,
  curve,
  element,
  explorer,
  fr,
  grip,
  keeper,
  linear,
  logarithmic,
  menu,
  pickable,
  possible,
  powers,
  quantity,
  set,
  settle,
  slider,
} from "./figure.js";
import {
  bestWithin,
  factorBits,
  shannonError,
  storedBits,
  truncationErrors,
  wastedBits,
  waterFilling,
} from "./numerics.js";

const HEIGHT = 416;
const MARGIN = { left: 46, right: 8, top: 46, bottom: 46 };
const [LEAST, MOST] = [7e-4, 1]; // l'échelle des erreurs
const WIDEST = 10.4; // celle des bits
const TENTHS = [5, 100]; // le budget, en dixièmes de bit
const RESIDUAL_BITS = 8; // des facteurs d'un résidu
const BEST = "best";

/** Les recettes : leur nom, le mot qui suit leur courbe, leur notion, la marque de leurs points. */
const RECIPES = {
  tensor: { name: "Échelle unique", word: "échelle unique", kind: "bits", mark: "square" },
  row: { name: "Échelle par ligne", word: "par ligne", kind: "bits", mark: "circle" },
  group: { name: "Par groupe", word: "par groupe", kind: "bits", mark: "triangle" },
  mse: { name: "Moindre carré", word: "moindre carré", kind: "bits", mark: "diamond" },
  low_rank: { name: "Rang faible quantifié", word: "rang faible quantifié", kind: "rank", mark: "circle" },
  float32: { name: "Rang faible, float32", word: "rang faible, float32", kind: "rank", mark: "square" },
  residual: { name: "Avec un résidu", word: "avec un résidu", kind: "", mark: "cross" },
};
/** Les marques, autour de l'origine. */
const MARKS = {
  square: "M-4 -4h8v8h-8z",
  circle: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
  triangle: "M0 -5.4L5 3.9H-5z",
  diamond: "M0 -5.8L5.8 0L0 5.8L-5.8 0z",
  cross: "M-5 -1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
};
/** Les colonnes du tableau, et celles dont on se passe à l'étroit. */
const COLUMNS = [["erreur"], ["bits", "lrq-fairly-wide"], ["écart"], ["décibels", "lrq-wide"]];

const plural = (count, word, digits = 0) => `${fr(count, digits)}\u00a0${word}${count < 2 ? "" : "s"}`;
/** Une erreur, à trois chiffres environ. */
const inPercent = (share) =>
  share > 0 && share < 5e-5 ? "moins de 0,01\u00a0%" : `${fr(100 * share, share < 0.1 ? 2 : 1)}\u00a0%`;
const signed = (value) => (value < 0 ? "" : "+") + fr(value, Math.abs(value) < 10 ? 2 : 1);
const inDecibels = (error) => `${fr(-20 * Math.log10(error), 1)}\u00a0dB`;

/** Les points d'une matrice, par recette : bits, rang, échelles de W, erreur, taille en bits et bits par poids. */
function analyse(choice, values) {
  const { rows: m, columns: n, points } = choice;
  const p = Math.min(m, n);
  const S = values.subarray(0, p);
  const rated = (point, size) => ({ ...point, size, rate: size / (m * n) });
  const found = {};
  let place = p;
  // Dans l'ordre de Python : l'état d'une page construite a ses clés triées.
  for (const recipe of Object.keys(RECIPES).filter((name) => points[name]))
    found[recipe] = points[recipe].map(([bits, rank, blocks]) => {
      const base = blocks ? storedBits(m * n, bits, blocks, true) : 0;
      const factors = rank ? factorBits(m, n, rank, blocks ? RESIDUAL_BITS : bits, m + n) : 0;
      return rated({ bits, rank, blocks, error: values[place++] }, base + factors);
    });
  found.float32 = Array.from(truncationErrors(S), (error, k) =>
    rated({ bits: 32, rank: k + 1, blocks: 0, error }, factorBits(m, n, k + 1)),
  );
  const known = Object.keys(RECIPES).filter((recipe) => found[recipe]?.length);
  const water = new Map();
  return {
    ...choice,
    p,
    known,
    points: found,
    lightest: Object.fromEntries(known.map((recipe) => [recipe, Math.min(...found[recipe].map(({ rate }) => rate))])),
    /** Combien de voisins partagent une échelle ; 0 pour toute une ligne, −1 pour toute la matrice. */
    sharing: ({ blocks }) => (blocks === m && m > 1 ? 0 : blocks === 1 ? -1 : (m * n) / blocks),
    /** Le plus fidèle de chaque recette, à ces dixièmes de bit par poids au plus. */
    within: (tenths) =>
      Object.fromEntries(
        known.map((recipe) => {
          const all = found[recipe];
          const [errors, sizes] = [all.map(({ error }) => error), all.map(({ size }) => 10 * size)];
          return [recipe, all[bestWithin(errors, sizes, tenths * m * n)]];
        }),
      ),
    /** Le remplissage d'eau : l'erreur, et combien de directions reçoivent des bits. */
    water: (bits) => {
      if (!water.has(bits)) {
        const [error, ...allocation] = waterFilling(S, bits);
        water.set(bits, { error, kept: allocation.filter((share) => share > 0).length });
      }
      return water.get(bits);
    },
  };
}

const count = ({ rows, columns, points }) =>
  Math.min(rows, columns) + Object.values(points).reduce((sum, settings) => sum + settings.length, 0);

/** Qui partage une échelle de W, en français puis en code. */
const sharingWord = (size) => (size < 0 ? "à une échelle" : size ? `par groupe de ${size}` : "par ligne");
const sharingCode = (size) => (size < 0 ? "lrq.PerTensor()" : size ? `lrq.PerGroup(${size})` : "lrq.PerChannel(0)");

/** Qui partage une échelle : la recette le dit, sauf pour les groupes et la base d'un résidu. */
const shared = ({ rows, columns, sharing }, recipe, point) =>
  ({ tensor: -1, row: 0, mse: 0, group: (rows * columns) / point.blocks })[recipe] ?? sharing(point);

/** Le réglage d'un point, en peu de mots. */
function described(matrix, recipe, point) {
  const { bits, rank } = point;
  const r = `r\u00a0=\u00a0${fr(rank)}`;
  if (recipe === "float32") return r;
  if (recipe === "low_rank") return `${r}, ${plural(bits, "bit")}`;
  if (recipe === "residual") return `${plural(bits, "bit")} ${sharingWord(shared(matrix, recipe, point))}, ${r}`;
  if (recipe === "group") return `de ${shared(matrix, recipe, point)}, ${plural(bits, "bit")}`;
  if (recipe === "mse") return `par ligne, ${plural(bits, "bit")}`;
  return plural(bits, "bit");
}

/** Ce que fait une recette, dans la phrase du verdict. */
function deed(matrix, recipe, point) {
  const bits = [plural(point.bits, "bit"), "bits"];
  const rank = [`r\u00a0=\u00a0${fr(point.rank)}`, "rank"];
  const group = shared(matrix, recipe, point);
  return {
    tensor: () => ["quantifier W sur ", bits, ", une seule échelle"],
    row: () => ["quantifier W sur ", bits, ", une échelle par ligne"],
    group: () => ["quantifier W sur ", bits, ` par groupes de ${group}`],
    mse: () => ["quantifier W sur ", bits, ", chaque ligne écrêtée au moindre carré"],
    low_rank: () => ["garder le rang ", rank, ", facteurs sur ", bits],
    float32: () => ["garder le rang ", rank, ", en float32"],
    residual: () => ["quantifier W sur ", bits, " et y ajouter un résidu de rang ", rank],
  }[recipe]();
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict(matrix, budget, found, winner) {
  const { p, lightest, known } = matrix;
  const { error, kept } = matrix.water(budget);
  const allowed = [plural(budget, "bit", 1), "budget"];
  const water = [
    kept < p
      ? `Le remplissage d’eau donnerait 0\u00a0bit à ${fr(p - kept)} ${p - kept > 1 ? "directions" : "direction"} sur ${fr(p)}\u00a0: `
      : `Le remplissage d’eau servirait ${p > 1 ? `les ${fr(p)}\u00a0directions` : "l’unique direction"}\u00a0: `,
    [inPercent(error), "theory"],
    ".",
  ];
  if (!winner) {
    const least = Math.min(...known.map((recipe) => lightest[recipe]));
    return [
      "Rien ne tient dans ",
      allowed,
      ` par poids\u00a0: il en faut au moins ${fr(Math.ceil(10 * least) / 10, 1)}. `,
      ...water,
    ];
  }
  const point = found[winner];
  const head = [
    "À ",
    allowed,
    " par poids, mieux vaut ",
    ...deed(matrix, winner, point),
    "\u00a0: ",
    [inPercent(point.error), "error"],
    ` d’erreur, pour ${plural(point.rate, "bit", 2)}`,
  ];
  if (point.error === 0) return [...head, ". ", ...water];
  const wasted = wastedBits(point.rate, point.error);
  const line =
    wasted < 0
      ? [", soit ", [plural(-wasted, "bit", 2), "error"], " de moins qu’un bruit blanc n’en demande. "]
      : [", soit ", [plural(wasted, "bit", 2), "error"], " de plus que la droite de Shannon. "];
  return [...head, ...line, ...water];
}

/** Le code qui retrouve ces nombres : ceux de la recette mise en avant, et ceux de la théorie. */
function snippet(matrix, budget, recipe, point) {
  const { code } = matrix;
  const { error: least, kept } = matrix.water(budget);
  const lines = [
    ...(point && point.error > 0 ? ["import math"] : []),
    ...(code.includes("import torch\n") || !point ? [] : ["import torch"]),
    "import lrq",
    code,
  ];
  if (point) {
    const { bits, rank } = point;
    const granularity = `granularity=${sharingCode(shared(matrix, recipe, point))}`;
    const made = {
      low_rank: `QuantizedLowRankLinear.from_linear(linear, ${rank}, ${bits}, granularity=lrq.PerChannel(0), rotate=True)`,
      float32: `SVDCompressedLinear.from_linear(linear, ${rank})`,
      residual: `QuantizedResidualLinear.from_linear(linear, ${rank}, ${bits}, ${granularity})`,
      mse: `QuantizedLinear.from_linear(linear, ${bits}, ${granularity}, clipping="mse")`,
    }[recipe];
    const found = `${(100 * point.error).toFixed(2)} %, ${point.rate.toFixed(2)} bits`;
    const shown = 'f"{100 * error:.2f} %, {rate:.2f} bits';
    const wasted = wastedBits(point.rate, point.error);
    lines.push(
      "m, n = W.shape",
      "linear = torch.nn.Linear(n, m, bias=False)",
      "linear.weight.data = W",
      "",
      `layer = lrq.${made ?? `QuantizedLinear.from_linear(linear, ${bits}, ${granularity})`}`,
      "error, rate = layer.reconstruction_error(W), 8 * layer.nbytes() / W.numel()",
      point.error > 0
        ? [`print(${shown}, {rate + math.log2(error):+.2f}")`, `${found}, ${wasted < 0 ? "" : "+"}${wasted.toFixed(2)}`]
        : [`print(${shown}")`, found],
    );
  }
  return [
    ...lines,
    "",
    "# la théorie, si tout le budget y passe",
    `best, bits = lrq.water_filling(lrq.singular_values(W), ${budget.toFixed(1)})`,
    [
      `print(f"{100 * 2**-${budget.toFixed(1)}:.2f} %, {100 * best:.2f} %, {int((bits > 0).sum())} directions")`,
      `${(100 * shannonError(budget)).toFixed(2)} %, ${(100 * least).toFixed(2)} %, ${kept} directions`,
    ],
  ];
}

function build(root, model) {
  const choices = model.get("_choices");
  const analyses = analysed(model, count, analyse);
  const keep = keeper(model);
  const toBudget = (tenths) => keep({ budget: clamp(tenths, ...TENTHS) / 10 });

  // Les réglages.
  const matrix = menu(
    "matrix",
    "Matrice W",
    choices.map(({ name }) => [name, name]),
    (name) => keep({ matrix: name }),
  );
  const shape = element("span", { class: "lrq-value", "data-readout": "shape" });
  const head = element(
    "div",
    { class: "lrq-head lrq-stacked" },
    ...(choices.length > 1 ? matrix.node.childNodes : [element("strong", {}, choices[0].name)]),
    shape,
  );
  const prompt = element("p", { class: "lrq-prompt lrq-long lrq-roomy" });
  const sentence = element("p", { class: "lrq-verdict lrq-long lrq-roomy lrq-three", "data-readout": "verdict" });
  const budgetSlider = slider("budget", "Budget, bits par poids", 10, toBudget);
  budgetSlider.node.classList.add("of-budget");
  const recipe = menu(
    "recipe",
    "Mettre en avant",
    [[BEST, "La plus fidèle"], ...Object.entries(RECIPES).map(([key, { name }]) => [key, name])],
    (key) => keep({ recipe: key }),
  );

  // Le dessin.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const line = (kind) => element("path", { class: `lrq-curve ${kind}`, ...silent });
  const background = element("g", silent);
  const theory = { shannon: line("theory"), water: line("theory edge") };
  const drawn = element("g", silent);
  const cut = element("line", { class: "lrq-budget-line budget", ...silent });
  const gap = line("error lrq-gap");
  const marks = element("g", silent);
  const labels = {
    gap: text("error"),
    budget: text("budget"),
    shannon: text("theory"),
    water: text("theory"),
    ...Object.fromEntries(Object.entries(RECIPES).map(([key, { kind }]) => [key, text(kind)])),
  };
  const handle = grip(
    "rate-point",
    "Budget, en bits par poids, choisi sur le dessin",
    "budget",
    { "aria-valuemin": TENTHS[0] / 10, "aria-valuemax": TENTHS[1] / 10 },
  );
  const plot = element(
    "svg",
    { class: "lrq-plot", height: HEIGHT, role: "group" },
    background,
    ...Object.values(theory),
    drawn,
    cut,
    gap,
    marks,
    handle,
    ...Object.values(labels),
  );

  // Le tableau des recettes, qui est aussi la légende des marques.
  const cells = {};
  const lines = Object.entries(RECIPES).map(([key, { name, kind, mark }]) => {
    const glyph = element(
      "svg",
      { width: 14, height: 14, viewBox: "-7 -7 14 14", ...silent },
      element("path", { class: `lrq-mark ${kind}`, d: MARKS[mark] }),
    );
    const detail = element("span", { class: "lrq-value" });
    const label = element("div", {}, glyph, element("span", {}, name, " ", detail));
    const title = element("th", { scope: "row" }, label);
    const numbers = COLUMNS.map(([, wanted]) => element("td", { class: wanted }));
    const row = element("tr", {}, title, ...numbers);
    cells[key] = { row, detail, numbers };
    return row;
  });
  const titles = [["Recette"], ...COLUMNS].map(([title, wanted]) =>
    element("th", { scope: "col", class: wanted }, title),
  );
  const table = element(
    "table",
    { class: "lrq-recipes", "data-readout": "recipes", "aria-label": "Chaque recette, dans le budget" },
    element("thead", {}, element("tr", {}, ...titles)),
    element("tbody", {}, ...lines),
  );

  const note = element("p", { class: "lrq-note" });
  const code = codePanel();
  root.append(
    head,
    prompt,
    sentence,
    plot,
    element("div", { class: "lrq-settings" }, budgetSlider.node, recipe.node),
    table,
    note,
    code.node,
  );

  let across = null; // bits par poids → abscisse, pour la largeur présente
  pickable(
    plot,
    handle,
    (x) => toBudget(Math.round(10 * across.invert(x))),
    () => {
      const budget = model.get("budget");
      return () => keep({ budget });
    },
  );
  handle.addEventListener("keydown", (event) => {
    const tenths = Math.round(10 * model.get("budget"));
    const target = {
      ArrowLeft: tenths - 1,
      ArrowDown: tenths - 1,
      ArrowRight: tenths + 1,
      ArrowUp: tenths + 1,
      PageDown: tenths - 10,
      PageUp: tenths + 10,
      Home: TENTHS[0],
      End: TENTHS[1],
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    toBudget(target);
  });

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);
  const title = (attributes, word) => element("text", { class: "lrq-title", ...attributes }, word);
  const steps = Array.from({ length: 10 * WIDEST + 1 }, (_, i) => i / 10);

  function drawPlot(width, current, budget, found, shown) {
    const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
    const x = linear([0, WIDEST], [MARGIN.left, right]);
    const y = logarithmic([LEAST, MOST], [bottom, MARGIN.top]);
    across = x;
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    background.replaceChildren(
      ...powers(LEAST, MOST).flatMap((value) => [
        element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
        tick({ x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, `${quantity(100 * value)}\u00a0%`),
      ]),
      ...Array.from({ length: 11 }, (_, bits) =>
        tick({ x: x(bits), y: bottom + 26, "text-anchor": "middle" }, fr(bits)),
      ),
      title({ x: 0, y: 14 }, "Erreur relative (log)"),
      title({ x: right, y: HEIGHT - 1, "text-anchor": "end" }, "bits par poids, échelles comprises"),
    );

    // Les courbes ; ce qui est trop petit ou trop lourd pour le cadre s'y arrête.
    const inside = (points) =>
      points
        .filter(({ rate, error }) => rate <= WIDEST && error >= LEAST)
        .map(({ rate, error }) => [x(rate), y(error)]);
    const path = (places) =>
      curve(
        places.map(([px]) => px),
        places.map(([, py]) => py),
      );
    const bounds = {
      shannon: inside(steps.map((rate) => ({ rate, error: shannonError(rate) }))),
      water: inside(steps.map((rate) => ({ rate, error: current.water(rate).error }))),
    };
    for (const [name, places] of Object.entries(bounds)) set(theory[name], { d: path(places) });
    const places = Object.fromEntries(current.known.map((key) => [key, inside(current.points[key])]));
    const order = [...current.known.filter((key) => key !== shown), ...(places[shown] ? [shown] : [])];
    const faded = (key) => (key === shown ? "" : " faded");
    const mark = (key, [px, py], size) =>
      element("path", {
        class: `lrq-mark ${RECIPES[key].kind}${faded(key)}`,
        d: MARKS[RECIPES[key].mark],
        transform: `translate(${px.toFixed(1)} ${py.toFixed(1)}) scale(${size})`,
      });
    drawn.replaceChildren(
      ...order.flatMap((key) => [
        element("path", {
          class: `lrq-curve ${RECIPES[key].kind}${faded(key)}${key === "float32" ? " lrq-thin" : ""}`,
          d: path(places[key]),
        }),
        ...(RECIPES[key].kind === "bits" ? places[key].map((place) => mark(key, place, 0.55)) : []),
      ]),
    );
    const bests = order.filter((key) => found[key]).map((key) => [key, [x(found[key].rate), y(found[key].error)]]);
    const water = [x(budget), y(current.water(budget).error)];
    const dot = element("circle", { class: "lrq-ring lrq-thin theory", r: 5, cx: water[0], cy: water[1] });
    marks.replaceChildren(
      ...(current.water(budget).error >= LEAST ? [dot] : []),
      ...bests.map(([key, place]) => mark(key, place, key === shown ? 1.25 : 0.95)),
    );
    set(cut, { x1: x(budget), x2: x(budget), y1: MARGIN.top, y2: bottom });
    set(handle, { transform: `translate(${x(budget).toFixed(1)} ${bottom})` });

    // De la recette mise en avant à la droite : les bits de trop.
    const point = found[shown];
    const needed = point && clamp(-Math.log2(point.error), 0, WIDEST);
    const visible = point && point.error >= LEAST && point.error < 1;
    const level = point && y(point.error);
    set(gap, {
      d: visible ? `M${x(needed).toFixed(1)} ${(level - 6).toFixed(1)}v12m0 -6H${x(point.rate).toFixed(1)}` : null,
    });

    // Les étiquettes : chacune sa place, loin des courbes.
    const along = (all) =>
      all.slice(1).flatMap(([bx, by], i) => {
        const [ax, ay] = all[i];
        const parts = Math.max(1, Math.ceil(Math.hypot(bx - ax, by - ay) / 9));
        return Array.from({ length: parts }, (_, k) => [ax + ((bx - ax) * k) / parts, ay + ((by - ay) * k) / parts]);
      });
    const traced = Object.fromEntries(
      [...Object.entries(places), ...Object.entries(bounds)].map(([k, v]) => [k, along(v)]),
    );
    const column = Array.from({ length: 40 }, (_, i) => [x(budget), MARGIN.top + ((bottom - MARGIN.top) * i) / 40]);
    const around = {
      bounds: { left: MARGIN.left + 2, right, top: 18, bottom: bottom - 12 },
      points: [...Object.values(traced).flat(), ...column],
      taken: [
        ...bests.map(([, [px, py]]) => ({ left: px - 6, right: px + 6, top: py - 6, bottom: py + 6 })),
        { left: x(budget) - 12, right: x(budget) + 12, top: bottom - 12, bottom: bottom + 12 },
      ],
    };
    /** Pose le premier de ces mots qui trouve une place libre ; à défaut, rien : le tableau dit quelle marque est à qui. */
    const place = (label, words, spots, tolerance = 2) => {
      let crowd = Infinity;
      const others = around.taken;
      for (const word of spots.length ? words : []) {
        around.taken = [...others]; // un premier essai manqué n'encombre pas le second
        crowd = settle([label], [word], spots, around);
        if (crowd <= tolerance) break;
        around.taken = others;
      }
      set(label, { visibility: crowd > tolerance ? "hidden" : null });
    };
    place(
      labels.budget,
      [plural(budget, "bit", 1)],
      [
        [x(budget), MARGIN.top - 14, "middle"],
        [right, MARGIN.top - 14, "end"],
        [MARGIN.left + 2, MARGIN.top - 14, "start"],
      ],
      999,
    );
    const middle = visible ? (x(needed) + x(point.rate)) / 2 : 0;
    const wasted = point ? wastedBits(point.rate, point.error) : 0;
    place(
      labels.gap,
      [`${plural(Math.abs(wasted), "bit", 2)} ${wasted < 0 ? "de moins" : "de plus"}`],
      visible
        ? [
            [Math.min(x(needed), x(point.rate)) - 8, level + 5, "end"],
            [middle, level + 20, "middle"],
            [middle, level - 10, "middle"],
            [Math.max(x(needed), x(point.rate)) + 14, level + 5, "start"],
            [Math.min(x(needed), x(point.rate)) - 8, level + 22, "end"],
            [Math.max(x(needed), x(point.rate)) + 14, level - 12, "start"],
            [Math.max(x(needed), x(point.rate)) + 14, level + 22, "start"],
          ]
        : [],
      999,
    );
    const near = (all, gaps) =>
      all.flatMap(([px, py], i) => (i % 4 ? [] : gaps.map(([dx, dy, anchor]) => [px + dx, py + dy, anchor])));
    const below = [
      [-9, 6, "end"],
      [-9, 16, "end"],
    ];
    const above = [
      [9, -4, "start"],
      [9, 5, "start"],
      [0, -10, "middle"],
      [4, 18, "start"],
      [-9, 16, "end"],
    ];
    const low = (all) => all.filter(([, py]) => py > (MARGIN.top + bottom) / 2);
    const name = (key, tolerance) =>
      place(
        labels[key],
        [RECIPES[key].word],
        [...near(places[key].slice(-1), [...above, ...below]), ...near(traced[key], [...above, ...below])],
        tolerance,
      );
    if (places[shown]) name(shown, 999);
    place(labels.shannon, ["droite de Shannon", "Shannon"], near(low(traced.shannon), [...below, ...above]).reverse());
    place(labels.water, ["remplissage d’eau", "eau"], near(low(traced.water), [...below, ...above]).reverse());
    for (const key of order.toReversed()) if (key !== shown) name(key, 1);
    for (const key of Object.keys(RECIPES)) if (!places[key]) set(labels[key], { visibility: "hidden" });
    for (const key of order)
      set(labels[key], { class: `lrq-label ${RECIPES[key].kind}${key === shown ? "" : " lrq-light"}` });
  }

  function drawTable(current, found, winner, shown) {
    for (const [key, { row, detail, numbers }] of Object.entries(cells)) {
      const point = found[key];
      const [error, rate, wasted, decibels] = numbers;
      set(row, {
        class: [key === winner ? "lrq-winner" : "", key === shown ? "lrq-shown" : ""].join(" ").trim() || null,
      });
      detail.textContent = point
        ? described(current, key, point)
        : current.known.includes(key)
          ? `dès ${plural(Math.ceil(10 * current.lightest[key]) / 10, "bit", 1)}`
          : "impossible ici";
      error.textContent = point ? inPercent(point.error).replace("moins de", "<") : "–";
      rate.textContent = point ? fr(point.rate, 2) : "–";
      wasted.textContent = point && point.error > 0 ? signed(wastedBits(point.rate, point.error)) : "–";
      decibels.textContent = point && point.error > 0 ? inDecibels(point.error) : "–";
    }
  }

  let spoken = null;
  return (width) => {
    const current = analyses.get(model.get("matrix"));
    const budget = possible(model, "budget", (value) => clamp(Math.round(10 * value), ...TENTHS) / 10);
    const chosen = possible(model, "recipe", (value) => (value in RECIPES ? value : BEST));
    const { rows: m, columns: n, known, p } = current;
    const tenths = Math.round(10 * budget);
    const found = current.within(tenths);
    const winner = known
      .filter((key) => found[key])
      .reduce((least, key) => (least && found[least].error <= found[key].error ? least : key), null);
    const shown = chosen === BEST ? winner : chosen;

    drawPlot(width, current, budget, found, shown);
    drawTable(current, found, winner, shown);
    sentence.replaceChildren(
      ...verdict(current, budget, found, winner).map((part) =>
        Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part,
      ),
    );
    const said = sentence.textContent;
    matrix.update(current.name);
    recipe.update(chosen);
    budgetSlider.update(tenths, ...TENTHS, fr(budget, 1));
    shape.textContent = `${fr(m)}\u00a0×\u00a0${fr(n)}, 32\u00a0bits par poids`;
    prompt.textContent = current.prompt;
    prompt.hidden = !current.prompt;
    note.textContent =
      "Écart\u00a0: bits de trop par rapport à la droite de Shannon, 2⁻ᴿ, exacte pour un bruit blanc gaussien (6,02\u00a0dB par bit)\u00a0; négatif, W n’est " +
      `pas blanche. Remplissage d’eau\u00a0: la borne pour ce spectre-ci si les ${fr(p)}\u00a0directions ne coûtaient rien\u00a0; il tronque le rang et répartit ` +
      "les bits d’un même geste. Rang faible quantifié et résidu\u00a0: le meilleur réglage de chaque taille.";
    const point = found[shown];
    set(plot, { "aria-label": `Erreur de ${known.length}\u00a0recettes selon leurs bits par poids. ${said}` });
    set(handle, {
      "aria-valuenow": budget,
      "aria-valuetext": `${plural(budget, "bit", 1)} par poids${point ? ` : ${inPercent(point.error)} d’erreur` : ""}`,
    });
    code.update(snippet(current, budget, shown, point));
    const announced = spoken === current.name ? said : `${current.name}, ${shape.textContent}. ${said}`;
    spoken = current.name;
    return announced;
  };
}

export default explorer({
  kind: "rate-distortion",
  label: "Débit et distorsion : l’erreur par bit",
  traits: ["matrix", "budget", "recipe"],
  build,
});
