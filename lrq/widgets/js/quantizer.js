// Des poids réels sur la grille d'un quantificateur : ce que chaque bit en garde, et ce qu'il coûte.
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
  textWidth,
  unique,
} from "./figure.js";
import {
  clippedShare,
  dequantize,
  extremes,
  quantizeUniform,
  relativeError,
  storedBits,
  uniformNoise,
} from "./numerics.js";

const HEIGHT = 268;
const HISTOGRAM = { left: 44, right: 8, top: 46, bottom: 54 };
const CURVE = { left: 32, right: 44, top: 46, bottom: 54 };
const SIDE_BY_SIDE = 600; // largeur à partir de laquelle les deux dessins tiennent côte à côte
const BITS = [1, 2, 3, 4, 5, 6, 7, 8];
const PER_BIT = 20 * Math.log10(2); // 6,02 dB
const GROUP = 32;

const GRANULARITIES = [
  ["tensor", "tout le tenseur", "lrq.PerTensor()"],
  ["row", "par ligne", "lrq.PerChannel(0)"],
  ["group", "par groupes de 32", "lrq.PerGroup(32)"],
];
const CLIPPINGS = [
  ["min_max", "aux extrêmes"],
  ["percentile", "aux centiles"],
  ["mse", "au moindre carré"],
];
const SYMMETRIES = [
  ["true", "symétrique"],
  ["false", "asymétrique"],
];

const OUTSIDE = "hors de la grille";

const levelCount = (count) => `${fr(count)}\u00a0niveau${count > 1 ? "x" : ""}`;
const plural = (count, word) => `${fr(count)}\u00a0${word}${count > 1 ? "s" : ""}`;
const decibels = (error) => -20 * Math.log10(error); // infini pour une erreur nulle
const inDecibels = (error) => (error > 0 ? `${fr(decibels(error), 1)}\u00a0dB` : "aucune erreur");
const inPercent = (share) => {
  const digits = share < 0.1 ? 2 : 1;
  return share > 0 && 100 * share < 0.005 ? `moins de 0,01\u00a0%` : `${fr(100 * share, digits)}\u00a0%`;
};
/** Un nombre de signe quelconque, à deux chiffres significatifs. */
const signed = (value) => `${value < 0 ? "−" : ""}${quantity(Math.abs(value), 2)}`;

/** Les poids d'une matrice, et ce que chaque réglage en fait, calculé la première fois qu'on le demande. */
function analyse(choice, x) {
  const { rows, columns } = choice;
  const counts = { tensor: 1, row: rows, group: (rows * columns) / GROUP };
  const known = new Map();
  const remember = (key, compute) => known.get(key) ?? known.set(key, compute()).get(key);
  const block = (granularity, place) => {
    const width = x.length / counts[granularity];
    return x.subarray(place * width, (place + 1) * width);
  };
  return {
    ...choice,
    x,
    counts,
    block,
    refused: columns % GROUP ? ["group"] : [],
    /** Le bloc dont le plus grand poids dépasse le plus sa valeur efficace. */
    stretched: (granularity) =>
      remember(granularity, () => {
        let [most, found] = [-1, 0];
        for (let place = 0; place < counts[granularity]; place++) {
          let [peak, power] = [0, 0];
          for (const value of block(granularity, place)) {
            peak = Math.max(peak, Math.abs(value));
            power += value ** 2;
          }
          const stretch = power > 0 ? peak / Math.sqrt(power) : 0;
          if (stretch > most) [most, found] = [stretch, place];
        }
        return found;
      }),
    /** Ce que donne ce réglage, de 1 à 8 bits. */
    measure: (granularity, symmetric, clipping) =>
      remember(`${granularity} ${symmetric} ${clipping}`, () =>
        BITS.map((bits) => {
          const rows = counts[granularity];
          const { codes, scales, zeros } = quantizeUniform(x, bits, rows, symmetric, clipping);
          return {
            bits,
            codes,
            scales,
            zeros,
            error: relativeError(x, dequantize(codes, scales, zeros)),
            clipped: clippedShare(x, bits, symmetric, scales, zeros),
            stored: storedBits(x.length, bits, rows, symmetric),
            predicted: uniformNoise(x, scales),
          };
        }),
      ),
  };
}

/** La grille d'un bloc : ses niveaux, ceux qui servent, et d'où à où elle n'écrête pas. */
function levels({ bits, codes, scales, zeros }, symmetric, place) {
  const [scale, zero] = [scales[place], zeros[place]];
  const width = codes.length / scales.length;
  const served = new Set(codes.subarray(place * width, (place + 1) * width));
  const [first, last] = extremes(bits, symmetric);
  const binary = first === last;
  const all = binary ? [-1, 1] : Array.from({ length: last - first + 1 }, (_, i) => first + i);
  return {
    scale,
    binary,
    served: served.size,
    all: all.map((code) => ({ value: (code - zero) * scale, used: served.has(code) })),
    ends: binary ? [-Infinity, Infinity] : [(first - zero - 0.5) * scale, (last - zero + 0.5) * scale],
  };
}

/** Graduations rondes de `low` à `high`, et leur nombre de décimales. */
function marks(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => (high - low) / x <= count);
  const first = Math.ceil(low / step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
  return values.map((value) => [
    value,
    step < 1e-4 || step >= 1e5 ? signed(value) : fr(value, value === 0 ? 0 : digits),
  ]);
}

/** Les graduations, au plus sept, que leurs étiquettes laissent respirer. */
function roomy(low, high, width) {
  const tried = [7, 5, 4, 3, 2].map((count) => marks(low, high, count));
  const fits = (all) => all.length * (Math.max(...all.map(([, word]) => textWidth(word))) + 8) <= width;
  return tried.find(fits) ?? tried.at(-1);
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ x, counts }, { granularity, symmetric }, { bits, error, clipped, stored }) {
  const many = counts[granularity] > 1;
  const scales = many ? "Échelles" : "Échelle";
  const kept = symmetric
    ? `${scales} ${many ? "comprises" : "comprise"}`
    : `${scales} et ${many ? "points" : "point"} zéro compris`;
  return [
    "À ",
    [plural(bits, "bit"), "bits"],
    ", l’erreur est de ",
    [inPercent(error), "error"],
    ...(error > 0 ? [", soit ", [inDecibels(error), "error"]] : []),
    ...(clipped > 0 ? [`\u00a0; `, [`${fr(100 * clipped, 2)}\u00a0%`, "error"], " des poids sont écrêtés"] : []),
    `. ${kept}, chaque poids pèse `,
    [`${fr(stored / x.length, 2)}\u00a0bits`, "bits"],
    ".",
  ];
}

/** Le code qui retrouve ces nombres. */
function snippet({ code, x }, { granularity, symmetric, clipping, place }, { bits, error, clipped, stored }, served) {
  const shared = GRANULARITIES.find(([name]) => name === granularity)[2];
  const kind = `symmetric=${symmetric ? "True" : "False"}, granularity=${shared}, clipping="${clipping}"`;
  const lines = [
    ...(error > 0 ? ["import math", ""] : []),
    "import lrq",
    code,
    `quantizer = lrq.UniformQuantizer(${bits}, ${kind})`,
    "error = quantizer.quantization_error(W)",
    ['print(f"{100 * error:.2f} %")', `${(100 * error).toFixed(2)} %`],
  ];
  if (error > 0) lines.push(['print(f"{-20 * math.log10(error):.1f} dB")', `${decibels(error).toFixed(1)} dB`]);
  lines.push(
    "size = quantizer.compress(W).nbytes()",
    ['print(size, "/", 4 * W.numel(), "octets")', `${stored / 8} / ${4 * x.length} octets`],
    ['print(f"{8 * size / W.numel():.2f} bits par poids")', `${(stored / x.length).toFixed(2)} bits par poids`],
  );
  if (clipped > 0)
    lines.push(
      "scale, zero_point = (quantizer.spread(t, W.shape) for t in quantizer.compute_scale_zero_point(W))",
      "codes = (W / scale).round() + zero_point",
      "clipped = (codes < quantizer.low) | (codes > quantizer.high)",
      ['print(f"{100 * clipped.double().mean():.2f} %")', `${(100 * clipped).toFixed(2)} %`],
    );
  lines.push(`block = quantizer.granularity.blocks(quantizer.quantize(W))[${place}]`, [
    'print(block.unique().numel(), "niveaux servent")',
    `${served} niveaux servent`,
  ]);
  return lines;
}

function build(root, model) {
  const choices = model.get("_choices");
  const analyses = analysed(model, ({ rows, columns }) => rows * columns, analyse);
  const keep = keeper(model);
  const allowed = (current, granularity) => (current.refused.includes(granularity) ? "row" : granularity);

  // Les réglages. Changer de matrice ou de partage change de blocs : on montre alors le plus étiré.
  const matrix = menu(
    "matrix",
    "Matrice W",
    choices.map(({ name }) => [name, name]),
    (name) => keep({ granularity: allowed(analyses.get(name), model.get("granularity")), block: 0, matrix: name }),
  );
  const sharing = menu("granularity", "Une échelle pour", GRANULARITIES, (granularity) =>
    keep({ granularity, block: 0 }),
  );
  const symmetry = menu("symmetric", "Grille", SYMMETRIES, (value) => keep({ symmetric: value === "true" }));
  const clip = menu("clipping", "Écrêtage", CLIPPINGS, (clipping) => keep({ clipping }));
  const bitsSlider = slider("n_bits", "Bits b", 2, (n_bits) => keep({ n_bits }));
  const blockSlider = slider("block", "Bloc", 10, (block) => keep({ block }));

  const shape = element("span", { class: "lrq-value", "data-readout": "shape" });
  const head = element(
    "div",
    { class: "lrq-head" },
    ...(choices.length > 1 ? matrix.node.childNodes : [element("strong", {}, choices[0].name)]),
    shape,
  );
  const prompt = element("p", { class: "lrq-prompt lrq-long" });
  const sentence = element("p", { class: "lrq-verdict lrq-long", "data-readout": "verdict" });
  const menus = element("div", { class: "lrq-settings" }, sharing.node, symmetry.node, clip.node);
  const sliders = element("div", { class: "lrq-settings" }, bitsSlider.node, blockSlider.node);

  // L'histogramme du bloc et sa grille.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const line = (kind) => element("path", { class: `lrq-curve ${kind}` });
  const hatch = unique("hachures");
  const zones = [element("rect"), element("rect")];
  for (const zone of zones) set(zone, { fill: `url(#${hatch})` });
  const bars = element("path", { class: "lrq-bars rank" });
  const lostBars = element("path", { class: "lrq-bars error" });
  const grids = {
    unused: element("path", { class: "lrq-level bits faded" }),
    used: element("path", { class: "lrq-level bits" }),
  };
  const histogramAxes = element("g", silent);
  const tags = { levels: text("bits"), lost: text("error"), outside: text("theory") };
  const histogram = element(
    "svg",
    { class: "lrq-plot lrq-histogram", height: HEIGHT, role: "img" },
    element(
      "defs",
      {},
      element(
        "pattern",
        { id: hatch, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        element("line", { class: "lrq-hatch", x1: 0, y1: 0, x2: 0, y2: 7 }),
      ),
    ),
    ...zones,
    histogramAxes,
    bars,
    lostBars,
    ...Object.values(grids),
    ...Object.values(tags),
  );

  // L'erreur, bit par bit.
  const curveAxes = element("g", silent);
  const lines = { theory: line("theory"), plain: line("error faded"), error: line("error") };
  const dots = element("g");
  const labels = { here: text("error"), theory: text("theory"), plain: text("error faded") };
  const handle = grip(
    "bits-point",
    "Nombre de bits, choisi sur le dessin",
    "error",
    { "aria-valuemin": 1, "aria-valuemax": 8 },
  );
  const plot = element(
    "svg",
    { class: "lrq-plot lrq-map", height: HEIGHT, role: "group" },
    curveAxes,
    lines.plain,
    lines.error,
    lines.theory,
    dots,
    handle,
    ...Object.values(labels),
  );

  const pair = element("div", { class: "lrq-pair" }, histogram, plot);
  const caption = element("p", { class: "lrq-note lrq-longer", "data-readout": "theory" });
  const code = codePanel();
  const note = model.get("_note");
  root.append(head, prompt, sentence, pair, sliders, menus, caption);
  if (note) root.append(element("p", { class: "lrq-note", "data-readout": "note" }, note));
  root.append(code.node);

  let across = null; // bits → abscisse, pour la largeur présente
  pickable(
    plot,
    handle,
    (x) => keep({ n_bits: clamp(Math.round(across.invert(x)), 1, 8) }),
    () => {
      const n_bits = model.get("n_bits");
      return () => keep({ n_bits });
    },
  );
  handle.addEventListener("keydown", (event) => {
    const bits = model.get("n_bits");
    const target = {
      ArrowLeft: bits - 1,
      ArrowDown: bits - 1,
      ArrowRight: bits + 1,
      ArrowUp: bits + 1,
      PageDown: bits - 2,
      PageUp: bits + 2,
      Home: 1,
      End: 8,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    keep({ n_bits: clamp(target, 1, 8) });
  });

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);
  const title = (attributes, word) => element("text", { class: "lrq-title", ...attributes }, word);

  /** Les poids du bloc, les niveaux de sa grille, et ce qu'elle écrête. Rend la description du dessin. */
  function drawHistogram(width, block, grid) {
    const [left, right] = [HISTOGRAM.left, width - HISTOGRAM.right];
    const [top, bottom] = [HISTOGRAM.top, HEIGHT - HISTOGRAM.bottom];
    set(histogram, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    const peak = block.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1; // un bloc nul a un axe
    const low = Math.min(-peak, grid.all[0].value);
    const high = Math.max(peak, grid.all.at(-1).value);
    const margin = 0.02 * (high - low);
    const x = linear([low - margin, high + margin], [left, right]);

    const slices = Math.round((right - left) / (block.length < 256 ? 8 : 5));
    const thickness = (right - left) / slices;
    const sort = (values) => {
      const counts = new Uint32Array(slices);
      for (const value of values) counts[clamp(Math.floor((x(value) - left) / thickness), 0, slices - 1)]++;
      return counts;
    };
    const lost = block.filter((value) => value < grid.ends[0] || value > grid.ends[1]);
    const counts = sort(block);
    const most = Math.max(2, ...counts);
    const y = logarithmic([0.5, most * 1.15], [bottom, top]); // à partir de ½ : un poids seul se voit
    const stack = (counts) =>
      Array.from(counts, (count, i) => {
        const start = (left + i * thickness + 0.5).toFixed(1);
        return count ? `M${start} ${bottom}V${y(count).toFixed(1)}h${(thickness - 1).toFixed(1)}V${bottom}z` : "";
      }).join("");
    set(bars, { d: stack(counts) });
    set(lostBars, { d: stack(sort(lost)) });
    const ends = grid.ends.map((end) => clamp(x(clamp(end, low - margin, high + margin)), left, right));
    set(zones[0], { x: left, y: top, width: ends[0] - left, height: bottom - top });
    set(zones[1], { x: ends[1], y: top, width: right - ends[1], height: bottom - top });
    const tall = Math.abs(x(grid.scale) - x(0)) >= 9; // serrés, les niveaux cacheraient les poids : des traits courts
    const draw = (wanted) =>
      grid.all
        .filter(({ used }) => used === wanted)
        .map(({ value }) => `M${x(value).toFixed(1)} ${tall ? top : bottom + 1}V${bottom + 9}`)
        .join("");
    set(grids.used, { d: draw(true) });
    set(grids.unused, { d: draw(false) });

    histogramAxes.replaceChildren(
      ...powers(1, most).flatMap((value) => [
        element("line", { class: "lrq-grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
        tick({ x: left - 6, y: y(value) + 4, "text-anchor": "end" }, fr(value)),
      ]),
      element("line", { class: "lrq-axis", x1: left, x2: right, y1: bottom, y2: bottom }),
      ...roomy(low, high, right - left).map(([value, word]) =>
        tick({ x: x(value), y: bottom + 24, "text-anchor": "middle" }, word),
      ),
      title({ x: 0, y: 14 }, "Poids par tranche (log)"),
      title({ x: right, y: HEIGHT - 6, "text-anchor": "end" }, "valeur du poids"),
    );
    const served = `${levelCount(grid.all.length)}, ${fr(grid.served)} ${grid.served > 1 ? "servent" : "sert"}`;
    const told = `${served}\u00a0; ${grid.binary ? "±Δ, Δ" : "pas Δ"}\u00a0= ${quantity(grid.scale, 2)}`;
    set(tags.levels, { x: 0, y: 34 }).textContent = 7 * told.length > width ? served : told;
    const clipped = lost.length ? plural(lost.length, "écrêté") : "";
    const below = lost.filter((value) => value < 0).length;
    const leftmost = lost.length ? 2 * below > lost.length : ends[0] - left > right - ends[1];
    const side = leftmost ? [left + 4, "start"] : [right - 4, "end"]; // du côté de ce qui se perd
    const room = Math.max(right - ends[1], ends[0] - left) > textWidth(OUTSIDE);
    for (const [tag, word] of [
      [tags.lost, clipped],
      [tags.outside, !clipped && room ? OUTSIDE : ""],
    ])
      set(tag, { x: side[0], y: top + 14, "text-anchor": side[1] }).textContent = word;
    return `${fr(block.length)}\u00a0poids, ${told}${clipped && `\u00a0; ${clipped}`}`;
  }

  /** L'erreur de 1 à 8 bits, la droite de la théorie et, en pâle, le réglage le plus simple. */
  function drawCurve(width, measures, plain, chosen) {
    const [left, right] = [CURVE.left, width - CURVE.right];
    const [top, bottom] = [CURVE.top, HEIGHT - CURVE.bottom];
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    const anchor = decibels(measures.at(-1).predicted);
    const finite = [...measures, ...(plain ?? [])].map(({ error }) => decibels(error)).filter(Number.isFinite);
    const highest = Math.max(50, 10 * Math.ceil(Math.max(...finite, 0) / 10));
    across = linear([1, 8], [left + 12, right - 12]);
    const y = linear([0, highest], [bottom, top]);
    const inside = (value) => y(clamp(value, 0, highest)); // une erreur nulle se pose en haut du cadre
    const path = (points) =>
      curve(
        points.map(({ bits }) => across(bits)),
        points.map(({ error }) => inside(decibels(error))),
      );
    curveAxes.replaceChildren(
      ...marks(0, highest, 6).flatMap(([value, word]) => [
        element("line", { class: "lrq-grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
        tick({ x: left - 6, y: y(value) + 4, "text-anchor": "end" }, word),
      ]),
      ...[0, 20, 40].map((value) => tick({ x: right + 5, y: y(value) + 4 }, `${fr(100 * 10 ** (-value / 20))}\u00a0%`)),
      ...BITS.map((bits) => tick({ x: across(bits), y: bottom + 24, "text-anchor": "middle" }, bits)),
      title({ x: 0, y: 14 }, "Signal sur bruit (dB)"),
      title({ x: width, y: 14, "text-anchor": "end" }, "erreur"),
      tick({ x: 0, y: 34 }, "plus haut, plus fidèle"),
      title({ x: right, y: HEIGHT - 6, "text-anchor": "end" }, "bits b"),
    );
    const theory = Number.isFinite(anchor)
      ? BITS.map((bits) => [bits, anchor - PER_BIT * (8 - bits)]).filter(([, value]) => value >= 0 && value <= highest)
      : [];
    if (theory.length && theory[0][0] > 1) theory.unshift([8 - anchor / PER_BIT, 0]); // jusqu'au bas du cadre
    set(lines.theory, {
      d: curve(
        theory.map(([bits]) => across(bits)),
        theory.map(([, value]) => y(value)),
      ),
    });
    set(lines.error, { d: path(measures) });
    set(lines.plain, { d: plain ? path(plain) : "" });
    dots.replaceChildren(
      ...measures.map(({ bits, error }) =>
        element("circle", {
          class: "lrq-dot error",
          r: 4,
          cx: across(bits).toFixed(1),
          cy: inside(decibels(error)).toFixed(1),
        }),
      ),
    );
    const here = { x: across(chosen.bits), y: inside(decibels(chosen.error)) };
    set(handle, { transform: `translate(${here.x.toFixed(1)} ${here.y.toFixed(1)})` });

    // Les étiquettes : chacune sa place, loin des courbes.
    const along = (points) =>
      points.slice(1).flatMap(([bx, by], i) => {
        const [ax, ay] = points[i];
        const steps = Math.ceil(Math.hypot(bx - ax, by - ay) / 4); // un point tous les quatre pixels
        return Array.from({ length: steps + 1 }, (_, k) => [
          ax + ((bx - ax) * k) / steps,
          ay + ((by - ay) * k) / steps,
        ]);
      });
    const places = (points) => points.map(({ bits, error }) => [across(bits), inside(decibels(error))]);
    const straight = theory.map(([bits, value]) => [across(bits), y(value)]);
    const around = {
      bounds: { left, right: right + 2, top: top - 8, bottom: bottom - 2 },
      points: [...along(places(measures)), ...along(straight), ...(plain ? along(places(plain)) : [])],
      taken: [{ left: here.x - 13, right: here.x + 13, top: here.y - 13, bottom: here.y + 13 }],
    };
    const beside = ([px, py], gap) => [
      [px - gap, py - 8, "end"],
      [px - 10, py - 18, "start"],
      [px + 10, py - 18, "end"],
      [px + gap, py + 20, "start"],
      [px, py - 18, "middle"],
      [px, py + 28, "middle"],
      [px + gap, py + 5, "start"],
      [px - gap, py + 5, "end"],
      [px + gap, py - 8, "start"],
      [px - gap, py + 20, "end"],
    ];
    const place = (label, word, where) => {
      const crowd = where.length ? settle([label], [word], where, around) : 1000;
      set(label, { visibility: crowd >= 1000 ? "hidden" : null });
      return crowd;
    };
    place(labels.here, inDecibels(chosen.error), beside([here.x, here.y], 15));
    // La courbe pâle n'a de nom que là où elle s'écarte de l'autre.
    const apart = (plain ?? [])
      .map((point, i) => [Math.abs(inside(decibels(point.error)) - inside(decibels(measures[i].error))), point])
      .filter(([gap]) => gap > 24)
      .sort(([one], [other]) => other - one);
    place(
      labels.plain,
      "sans réglage",
      places(apart.map(([, point]) => point)).flatMap((point) => [...beside(point, 8), ...beside(point, 20)]),
    );
    // La droite garde son nom auprès d'elle : jamais de l'autre côté de la courbe mesurée.
    const heightAt = (points, x) => {
      const i = clamp(
        points.findIndex(([px]) => px >= x),
        1,
        points.length - 1,
      );
      const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
      return ay + ((by - ay) * (x - ax)) / (bx - ax);
    };
    const measured = places(measures);
    const near = (word) =>
      along(straight)
        .flatMap(([px, py]) => [
          [px - 8, py - 7, "end"],
          [px + 8, py + 16, "start"],
        ])
        .filter(([px, py, anchor]) => {
          const middle = px + ((anchor === "end" ? -1 : 1) * textWidth(word)) / 2;
          const [line, curved] = [heightAt(straight, middle), heightAt(measured, middle)];
          return Math.abs(curved - line) < 8 || (curved - py) * (line - curved) < 0;
        });
    const others = around.taken;
    for (const word of ["6,02 dB par bit", "6,02 dB/bit"]) {
      around.taken = [...others]; // un premier essai manqué n'encombre pas le second
      if (place(labels.theory, word, near(word)) === 0) break;
    }
  }

  let spoken = null;
  return (width) => {
    const current = analyses.get(model.get("matrix"));
    const granularity = possible(model, "granularity", (value) => allowed(current, value));
    const count = current.counts[granularity];
    const block = possible(model, "block", (value) => (value <= count ? value : 0));
    const bits = possible(model, "n_bits", (value) => clamp(value, 1, 8));
    const [symmetric, clipping] = [model.get("symmetric"), model.get("clipping")];
    const stretched = current.stretched(granularity);
    const place = block > 0 ? block - 1 : stretched;
    const settings = { granularity, symmetric, clipping, place };
    const measures = current.measure(granularity, symmetric, clipping);
    const simplest = granularity === "tensor" && clipping === "min_max";
    const plain = simplest ? null : current.measure("tensor", symmetric, "min_max");
    const chosen = measures[bits - 1];
    const grid = levels(chosen, symmetric, place);

    const left = width >= SIDE_BY_SIDE ? Math.round(0.56 * width) : width;
    const described = drawHistogram(left, current.block(granularity, place), grid);
    drawCurve(width >= SIDE_BY_SIDE ? width - left - 20 : width, measures, plain, chosen);

    const parts = verdict(current, settings, chosen);
    sentence.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );
    const said = sentence.textContent;
    matrix.update(current.name);
    sharing.update(granularity, current.refused);
    symmetry.update(String(symmetric));
    clip.update(clipping);
    bitsSlider.update(bits, 1, 8, fr(bits));
    blockSlider.node.querySelector("input").disabled = count === 1;
    blockSlider.update(
      place + 1,
      1,
      count,
      granularity === "tensor"
        ? "tout le tenseur"
        : `${fr(place + 1)} sur ${fr(count)}${place === stretched ? ", le plus étiré" : ""}`,
    );
    shape.textContent = `${fr(current.rows)}\u00a0×\u00a0${fr(current.columns)}`;
    prompt.textContent = current.prompt;
    prompt.hidden = !current.prompt;
    const last = measures.at(-1);
    caption.textContent =
      (last.predicted > 0
        ? "Tirets\u00a0: un bit de plus, un pas Δ deux fois plus fin, 6,02\u00a0dB de gagnés. La droite part de ce que prédit, à 8\u00a0bits, un arrondi uniforme dans chaque pas (erreur carrée moyenne Δ²/12)\u00a0: " +
          `${inDecibels(last.predicted)}, pour ${inDecibels(last.error)} mesurés.`
        : "Tous ces poids sont nuls\u00a0: rien à quantifier.") +
      (plain ? " Courbe pâle, sans réglage\u00a0: une échelle pour tout le tenseur, aux extrêmes." : "") +
      (count > 1 ? " Le bloc le plus étiré est celui que son plus grand poids domine le plus." : "");
    set(histogram, { "aria-label": `Histogramme : ${described}.` });
    set(plot, { "aria-label": `Rapport signal à bruit de 1 à 8\u00a0bits. ${said}` });
    set(handle, { "aria-valuenow": bits, "aria-valuetext": `${plural(bits, "bit")} : ${inDecibels(chosen.error)}` });
    code.update(snippet(current, settings, chosen, grid.served));
    const announced = spoken === current.name ? said : `${current.name}, ${shape.textContent}. ${said}`;
    spoken = current.name;
    return announced;
  };
}

export default explorer({
  kind: "quantizer",
  label: "Quantification uniforme de poids réels",
  traits: ["matrix", "n_bits", "granularity", "symmetric", "clipping", "block"],
  build,
});
