// Le train de tenseurs : une chaîne de cœurs, dessinée et pesée, et ce qu'elle perd à côté de la SVD.
import {
  analysed,
  bytes,
  clamp,
  closest,
  codePanel,
  compare,
  curve,
  element,
  explorer,
  fr,
  grip,
  keeper,
  linear,
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
import { bondRanks, factorBits, rankWithin, storedBits, trainBits } from "./numerics.js";

const FLOAT = 32; // bits d'un nombre qu'on ne quantifie pas
const BITS = [2, 3, 4, 5, 6, 7, 8, FLOAT];
const HEIGHT = 300;
const MARGIN = { left: 46, right: 10, top: 28, bottom: 44 };
const TIE = 0.01; // un point d'erreur

const SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉";
const sum = (values) => values.reduce((total, value) => total + value, 0);
const product = (values) => values.reduce((total, value) => total * value, 1);
/** Une erreur, à trois chiffres environ ; `less` dit « moins de ». */
function inPercent(share, less = "moins de") {
  if (share === 0) return "0\u00a0%";
  return share < 5e-5 ? `${less}\u00a00,01\u00a0%` : `${fr(100 * share, share < 0.01 ? 2 : 1)}\u00a0%`;
}
const shortly = (share) => inPercent(share, "<");
const onBits = (bits) => (bits === FLOAT ? "en float32" : `sur ${bits}\u00a0bits`);
const shapeWord = (shape) => shape.map((size) => fr(size)).join("×");
const roundSize = (size) =>
  size < 1e3 ? `${fr(size)}\u00a0o` : size < 1e6 ? `${fr(size / 1e3)}\u00a0ko` : `${fr(size / 1e6)}\u00a0Mo`;

/** Des octets, au plus court. */
const roundShort = (size) =>
  size < 1e3 ? `${fr(size)}\u00a0o` : size < 1e6 ? `${fr(size / 1e3, size < 1e5 ? 1 : 0)}\u00a0ko` : `${fr(size / 1e6, 2)}\u00a0Mo`;

/** Les mesures d'une matrice : par découpage et par rang, puis la SVD et W seule ; les tailles, en bits. */
function analyse(choice, values) {
  const { rows: m, columns: n, svdRanks } = choice;
  let place = 0;
  const row = () => {
    const found = {};
    for (const bits of BITS) found[bits] = values[place++];
    return found;
  };
  const trains = new Map(
    choice.trains.map(({ inputs, outputs, ranks }) => {
      const points = ranks.map((rank) => {
        const bonds = [1, ...bondRanks(inputs, outputs, rank), 1];
        const shapes = inputs.map((size, k) => [bonds[k], size, outputs[k], bonds[k + 1]]);
        const sizes = Object.fromEntries(BITS.map((bits) => [bits, sum(trainBits(inputs, outputs, rank, bits))]));
        return { rank, shapes, sizes, errors: row() };
      });
      return [inputs.length, { inputs, outputs, ranks, points, highest: bondRanks(inputs, outputs, m * n) }];
    }),
  );
  const svd = svdRanks.map((rank) => ({
    rank,
    sizes: Object.fromEntries(BITS.map((bits) => [bits, factorBits(m, n, rank, bits)])),
    errors: row(),
  }));
  const alone = BITS.map((bits) =>
    bits === FLOAT ? { size: 32 * m * n, error: 0 } : { size: storedBits(m * n, bits, m, true), error: values[place++] },
  );
  const sizes = [...trains.values()].flatMap(({ points }) => points.flatMap((point) => Object.values(point.sizes)));
  return { ...choice, trains, svd, alone, least: Math.min(...sizes) / 8, most: Math.max(...sizes, 32 * m * n) / 8 };
}

const count = ({ trains, svdRanks }) =>
  BITS.length * (sum(trains.map(({ ranks }) => ranks.length)) + svdRanks.length) + BITS.length - 1;

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ rows: m, columns: n }, { rank, bits, cores, size, error, svd, first, alone }) {
  const points = (gap) => `${fr(100 * Math.abs(gap), 1)}\u00a0points`;
  const parts = [
    `${cores} cœurs, `,
    [`rang\u00a0${fr(rank)}`, "rank"],
    ", ",
    [onBits(bits), "bits"],
    "\u00a0: ",
    [bytes(size), "budget"],
    `, ${compare(size, 32 * m * n)} W, et `,
    [inPercent(error), "error"],
    " d’erreur. ",
  ];
  if (!svd)
    return [
      ...parts,
      "Aucune SVD ne tient dans si peu\u00a0: au rang\u00a01, elle pèse ",
      [bytes(first.sizes[bits]), "budget"],
      " et laisse ",
      [inPercent(first.errors[bits]), "error"],
      ".",
    ];
  const other = svd.errors[bits];
  const gap = other - error;
  parts.push(
    "Dans autant d’octets, la SVD de ",
    [`rang\u00a0${fr(svd.rank)}`, "rank"],
    gap < -TIE ? " n’en laisse que " : " en laisse ",
    [inPercent(other), "error"],
    Math.abs(gap) <= TIE ? "\u00a0: à peu près autant." : `\u00a0: ${gap < 0 ? "elle" : "le train"} gagne, de ${points(gap)}.`,
  );
  if (bits !== FLOAT && alone.size <= size)
    parts.push(
      ` W quantifiée seule, plus légère, ${alone.error < error ? "n’en laisse que" : "en laisse"} `,
      [inPercent(alone.error), "error"],
      ".",
    );
  return parts;
}

/** Le code qui retrouve ces nombres. */
function snippet({ code }, { rank, bits, shapes, size, error, inputs, outputs, svd, first }) {
  // D'une machine à l'autre, quelques codes changent : on n'imprime que ce qui se retrouve.
  const says = (name, lost, weight) => {
    const digits = bits === FLOAT || lost < 0.1 ? 1 : 0;
    return [
      `print(f"{100 * ${name}.reconstruction_error(W):.${digits}f} %,", ${name}.nbytes(), "octets")`,
      `${(100 * lost).toFixed(digits)} %, ${weight / 8} octets`,
    ];
  };
  const [ins, outs] = [inputs, outputs].map((dims) => `[${dims.join(", ")}]`);
  const other = svd ?? first;
  const train =
    bits === FLOAT
      ? `lrq.TTLinear.from_linear(linear, ${ins}, ${outs}, rank=${rank})`
      : `lrq.QuantizedTTLinear.from_linear(linear, ${ins}, ${outs}, rank=${rank}, n_bits=${bits})`;
  const pair =
    bits === FLOAT
      ? `lrq.CompactSVDLinear.from_linear(linear, ${other.rank})`
      : `lrq.QuantizedLowRankLinear.from_linear(linear, ${other.rank}, ${bits}, rotate=True)`;
  return [
    ...(code.includes("import torch\n") ? [] : ["import torch"]),
    "import lrq",
    code,
    "m, n = W.shape",
    "linear = torch.nn.Linear(n, m, bias=False)",
    "linear.weight.data = W",
    "",
    `train = ${train}`,
    ["print(train.ranks, train.count_parameters())", `[${shapes.slice(1).map(([r]) => r).join(", ")}] ${sum(shapes.map(product))}`],
    says("train", error, size),
    "",
    svd ? "# la SVD, dans autant d’octets" : "# la plus légère des SVD pèse davantage",
    `svd = ${pair}`,
    says("svd", other.errors[bits], other.sizes[bits]),
  ];
}

function build(root, model) {
  const choices = model.get("_choices");
  const analyses = analysed(model, count, analyse);
  const keep = keeper(model);
  const current = () => analyses.get(model.get("matrix"));
  const ladder = () => current().trains.get(model.get("n_cores")).ranks;
  /** Change de matrice ou de découpage, au rang le plus proche. */
  const move = (matrix, n_cores) => {
    const rank = closest(analyses.get(matrix).trains.get(n_cores).ranks, model.get("rank"));
    keep({ matrix, n_cores, rank });
  };

  // Les réglages.
  const names = choices.map(({ name }) => [name, name]);
  const matrix = menu("matrix", "Matrice W", names, (name) => move(name, model.get("n_cores")));
  const numbers = [...analyses.values()][0].trains.keys();
  const cores = menu(
    "n_cores",
    "Découpage de W, lignes\u00a0×\u00a0colonnes",
    Array.from(numbers, (n_cores) => [String(n_cores), ""]),
    (n_cores) => move(model.get("matrix"), Number(n_cores)),
  );
  const options = [...cores.node.querySelectorAll("option")];
  const rankSlider = slider("listed-rank", "Rang r", 2, (place) => keep({ rank: ladder()[place] }));
  const bitsSlider = listSlider("n_bits", "Bits", BITS, (n_bits) => keep({ n_bits }));
  bitsSlider.node.classList.add("of-bits");
  const prompt = element("p", { class: "lrq-prompt lrq-long lrq-roomy" });
  const sentence = element("p", { class: "lrq-verdict lrq-train", "data-readout": "verdict" });
  const chain = element("svg", { class: "lrq-plot lrq-histogram lrq-chain", role: "img", "data-readout": "chain" });

  // Le dessin de l'erreur.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const line = (kind) => element("path", { class: `lrq-curve ${kind}`, ...silent });
  const background = element("g", silent);
  const paths = { dense: line("theory"), same: line("theory"), svd: line(""), train: line("rank") };
  const others = options.map(() => line("rank faded lrq-thin"));
  const dots = element("g", silent);
  const labels = { here: text("rank"), svd: text(""), alone: text("budget"), dense: text("theory") };
  const named = options.map(() => text("rank lrq-light"));
  const handle = grip("train-point", "Rang choisi sur le dessin", "rank", { "aria-valuemin": 1 });
  const plot = element(
    "svg",
    { class: "lrq-plot", height: HEIGHT, role: "group" },
    background,
    paths.dense,
    ...others,
    paths.svd,
    paths.train,
    paths.same,
    dots,
    handle,
    ...named,
    ...Object.values(labels),
  );
  const table = element("tbody");
  const heads = ["Façon", "Nombres", "Octets", "Erreur"];
  const sizes = element(
    "table",
    { class: "lrq-weighed", "data-readout": "table" },
    element("thead", {}, element("tr", {}, ...heads.map((word) => element("th", { scope: "col" }, word)))),
    table,
  );
  const note = element(
    "p",
    { class: "lrq-note" },
    "Aire d’une boîte\u00a0: ses nombres, à l’échelle de W\u00a0; partie pleine\u00a0: ses octets. Un lien en tirets est au rang " +
      "le plus haut que permettent les dimensions. Cœurs équilibrés et tournés, facteurs de la SVD tournés, une échelle " +
      "par cœur ou par facteur\u00a0; W seule, une par ligne.",
  );
  const code = codePanel();
  root.append(
    element("div", { class: "lrq-settings" }, matrix.node, cores.node),
    prompt,
    sentence,
    chain,
    element("div", { class: "lrq-settings" }, rankSlider.node, bitsSlider.node),
    plot,
    sizes,
    note,
    code.node,
  );

  let shown = []; // les points du train sur le dessin présent, avec leur place
  pickable(
    plot,
    handle,
    (x) => keep({ rank: shown.reduce((found, point) => (Math.abs(point.x - x) < Math.abs(found.x - x) ? point : found)).rank }),
    () => {
      const rank = model.get("rank");
      return () => keep({ rank });
    },
  );
  handle.addEventListener("keydown", (event) => {
    const ranks = ladder();
    const place = ranks.indexOf(model.get("rank"));
    const target = {
      ArrowLeft: place - 1,
      ArrowDown: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place + 1,
      PageDown: place - 2,
      PageUp: place + 2,
      Home: 0,
      End: ranks.length - 1,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    keep({ rank: ranks[clamp(target, 0, ranks.length - 1)] });
  });

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);
  const title = (attributes, word) => element("text", { class: "lrq-title", ...attributes }, word);

  /** W, puis la chaîne : une boîte par cœur, deux pattes, et des liens entre elles. */
  function drawChain(width, { rows: m, columns: n }, { shapes, bits, coreBits, highest }) {
    const narrow = width < 480;
    const weigh = narrow ? roundShort : (octets) => bytes(8 * octets);
    const side = narrow ? 46 : 96;
    const middle = 38 + side / 2;
    const [top, bottom] = [middle - side / 2 - 12, middle + side / 2 + 12];
    const dense = Math.max(side / 2, 36); // le milieu de W
    const start = dense + side / 2 + (narrow ? 22 : 44);
    const step = (width - start) / shapes.length;
    const height = bottom + (narrow ? 68 : 52);
    set(chain, { width, height, viewBox: `0 0 ${width} ${height}` });
    const box = (x, numbers, weight, kind) => {
      const size = Math.max(3, side * Math.sqrt(numbers / (m * n)));
      const full = (size * weight) / (32 * numbers);
      const left = x - size / 2;
      return {
        size,
        nodes: [
          element("rect", {
            class: "lrq-ink",
            x: left.toFixed(1),
            y: (middle + size / 2 - full).toFixed(1),
            width: size.toFixed(1),
            height: full.toFixed(1),
          }),
          element("rect", {
            class: `lrq-box ${kind}`,
            x: left.toFixed(1),
            y: (middle - size / 2).toFixed(1),
            width: size.toFixed(1),
            height: size.toFixed(1),
          }),
        ],
      };
    };
    const leg = (x, size, kind, word) => {
      const up = kind === "in";
      const end = up ? top : bottom;
      return [
        element("line", { class: "lrq-leg", x1: x, x2: x, y1: up ? middle - size / 2 : middle + size / 2, y2: end }),
        element("text", { class: "lrq-label lrq-light", x, y: up ? top - 6 : bottom + 15, "text-anchor": "middle" }, word),
      ];
    };
    const whole = box(dense, m * n, 32 * m * n, "");
    const under = (x, y, kind, word) => element("text", { class: kind, x, y, "text-anchor": "middle" }, word);
    const nodes = [
      ...leg(dense, whole.size, "in", `in\u00a0=\u00a0${fr(n)}`),
      ...leg(dense, whole.size, "out", `out\u00a0=\u00a0${fr(m)}`),
      ...whole.nodes,
      under(dense, middle + 5, "lrq-label", "W"),
      tick({ x: dense + side / 2 + (narrow ? 11 : 24), y: middle + 5, "text-anchor": "middle" }, "≈"),
    ];
    const drawn = shapes.map((shape, k) => {
      const x = start + step * (k + 0.5);
      return { x, shape, ...box(x, product(shape), coreBits[k], "rank") };
    });
    const links = drawn.slice(1).map((core, k) => {
      const [before, rank] = [drawn[k], core.shape[0]];
      const [from, to] = [before.x + before.size / 2, core.x - core.size / 2];
      const thickness = 1.5 + 1.1 * Math.log2(rank);
      const full = rank === highest[k];
      const center = (from + to) / 2;
      const room = to - from;
      const named = `r${SUBSCRIPTS[k + 1]}\u00a0=\u00a0${fr(rank)}`;
      const word = room > 66 ? named : fr(rank);
      // à l'étroit, le rang passe au-dessus des boîtes
      const above = room > textWidth(fr(rank)) + 2 ? thickness / 2 : Math.max(before.size, core.size) / 2;
      return {
        line: element("line", {
          class: `lrq-link ${full ? "theory" : "rank"}`,
          x1: from.toFixed(1),
          x2: to.toFixed(1),
          y1: middle,
          y2: middle,
          "stroke-width": thickness.toFixed(1),
          "stroke-dasharray": full ? "4 2.5" : null,
        }),
        words: [
          under(center, middle - above - 5, `lrq-label ${full ? "theory" : "rank"}`, word),
          ...(full && room > 30 ? [under(center, middle + thickness / 2 + 14, "lrq-label lrq-light theory", "max")] : []),
        ],
      };
    });
    const legs = drawn.flatMap(({ x, shape: [, i, o], size }, k) => [
      ...(i > 1 ? leg(x, size, "in", `in${SUBSCRIPTS[k + 1]}\u00a0=\u00a0${fr(i)}`) : []),
      ...(o > 1 ? leg(x, size, "out", `out${SUBSCRIPTS[k + 1]}\u00a0=\u00a0${fr(o)}`) : []),
    ]);
    const told = drawn.flatMap(({ x, shape }, k) => {
      const y = bottom + 31 + (narrow && k % 2 ? 16 : 0);
      const weight = coreBits[k] / 8;
      return [
        tick({ x: Math.min(x, width - textWidth(shapeWord(shape)) / 2), y, "text-anchor": "middle" }, shapeWord(shape)),
        under(x, bottom + (narrow ? 63 : 47), "lrq-label budget", weigh(weight)),
      ];
    });
    chain.replaceChildren(
      ...nodes,
      ...legs,
      ...links.map((link) => link.line),
      ...drawn.flatMap((core) => core.nodes),
      ...links.flatMap((link) => link.words),
      ...told,
      tick({ x: dense, y: bottom + (narrow ? 63 : 47), "text-anchor": "middle" }, weigh(4 * m * n)),
    );
    const spoken = shapes.map((shape, k) => `(${shape.join(", ")}), ${bytes(coreBits[k])}`);
    set(chain, { "aria-label": `W et sa chaîne de ${shapes.length}\u00a0cœurs, de formes (r, in, out, r)\u00a0: ${spoken.join("\u00a0; ")}.` });
  }
  /** L'erreur selon les octets : le train, les autres découpages, la SVD, W seule. */
  function drawPlot(width, matrix, state) {
    const { bits, svd, alone } = state;
    const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom];
    const x = logarithmic([matrix.least * 0.8, matrix.most * 1.25], [left, right]);
    const all = [...matrix.trains.values()].flatMap(({ points }) => points.map(({ errors }) => errors[bits]));
    const worst = Math.max(...all, ...matrix.svd.map(({ errors }) => errors[bits]));
    const highest = worst > 1.03 ? Math.max(1.25, worst) : 1;
    const y = linear([0, highest], [bottom, top]);
    const at = ({ sizes, errors, rank }) => ({ rank, x: x(sizes[bits] / 8), y: y(errors[bits]) });
    const path = (points) =>
      curve(
        points.map((point) => point.x),
        points.map((point) => point.y),
      );
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    background.replaceChildren(
      ...[0, 0.25, 0.5, 0.75, 1, 1.25]
        .filter((share) => share <= highest)
        .flatMap((share) => [
          element("line", { class: "lrq-grid", x1: left, x2: right, y1: y(share), y2: y(share) }),
          tick({ x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${fr(100 * share)}\u00a0%`),
        ]),
      ...powers(matrix.least * 0.8, matrix.most * 1.25).map((size) =>
        tick({ x: x(size), y: bottom + 19, "text-anchor": "middle" }, roundSize(size)),
      ),
      title({ x: 0, y: 14 }, "Erreur relative"),
      title({ x: right, y: HEIGHT - 6, "text-anchor": "end" }, "octets (échelle logarithmique)"),
    );

    shown = state.train.points.map(at);
    const here = at(state.point);
    const low = matrix.svd.map(at);
    const other = svd && at(svd);
    const whole = x(matrix.rows * matrix.columns * 4);
    const single = { x: x(alone.size / 8), y: y(alone.error) };
    const rest = options.map(({ value }) => {
      const train = matrix.trains.get(Number(value));
      return train === state.train ? [] : train.points.map(at);
    });
    set(paths.train, { d: path(shown) });
    set(paths.svd, { d: path(low) });
    rest.forEach((points, i) => set(others[i], { d: points.length ? path(points) : null }));
    set(paths.dense, { d: curve([whole, whole], [top, bottom]) });
    set(paths.same, { d: other ? curve([here.x, here.x], [here.y, other.y]) : null });
    dots.replaceChildren(
      ...shown.map((point) => element("circle", { class: "lrq-dot rank", r: 3.5, cx: point.x.toFixed(1), cy: point.y.toFixed(1) })),
      ...(other ? [element("circle", { class: "lrq-dot", r: 5.5, cx: other.x.toFixed(1), cy: other.y.toFixed(1) })] : []),
      ...(bits === FLOAT ? [] : [element("rect", { class: "lrq-mark budget", x: single.x - 5, y: single.y - 5, width: 10, height: 10 })]),
    );
    set(handle, { transform: `translate(${here.x.toFixed(1)} ${here.y.toFixed(1)})` });

    const along = (points) =>
      points.slice(1).flatMap((b, i) => {
        const a = points[i];
        return [0, 0.25, 0.5, 0.75].map((part) => [a.x + (b.x - a.x) * part, a.y + (b.y - a.y) * part]);
      });
    const square = (point, r) => ({ left: point.x - r, right: point.x + r, top: point.y - r, bottom: point.y + r });
    const around = {
      bounds: { left: left + 2, right: right + 2, top: top - 10, bottom: bottom - 2 },
      points: [...along(shown), ...along(low), ...rest.flatMap(along), ...Array.from({ length: 30 }, (_, i) => [whole, top + ((bottom - top) * i) / 30])],
      taken: [square(here, 12), ...(other ? [square(other, 7)] : []), ...(bits === FLOAT ? [] : [square(single, 7)])],
    };
    const beside = (point, gap) => [
      [point.x + gap, point.y + 5, "start"],
      [point.x - gap, point.y + 5, "end"],
      [point.x + gap, point.y - 12, "start"],
      [point.x - gap, point.y - 12, "end"],
      [point.x + gap, point.y + 24, "start"],
      [point.x - gap, point.y + 24, "end"],
      [point.x, point.y - gap - 4, "middle"],
      [point.x, point.y + gap + 14, "middle"],
      [point.x + gap, point.y + 42, "start"],
      [point.x - gap, point.y + 42, "end"],
      [point.x + gap, point.y - 32, "start"],
      [point.x - gap, point.y - 32, "end"],
      [point.x - gap, point.y + 62, "end"],
      [point.x + gap, point.y + 62, "start"],
    ];
    /** Pose le premier de ces mots qui trouve une place libre, ou le dernier s'il ne couvre aucune étiquette. */
    const place = (label, words, places) => {
      let crowd = 1000;
      const before = around.taken;
      for (const word of places.length ? words : []) {
        around.taken = [...before];
        crowd = settle([label], [word], places, around);
        if (crowd === 0) break;
      }
      if (crowd >= 1000) around.taken = before;
      set(label, { visibility: crowd >= 1000 ? "hidden" : null });
    };
    place(labels.here, [`train\u00a0: ${shortly(state.error)}`, shortly(state.error)], beside(here, 15));
    place(
      labels.svd,
      other ? [`SVD\u00a0: ${shortly(svd.errors[bits])}`, "la SVD"] : ["la SVD"],
      other ? beside(other, 11) : low.flatMap((point) => beside(point, 8)),
    );
    const seul = onBits(bits);
    place(labels.alone, [`W ${seul}\u00a0: ${shortly(alone.error)}`, `W ${seul}`], bits === FLOAT ? [] : beside(single, 11));
    place(
      labels.dense,
      ["W en float32"],
      [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.97].flatMap((part) => [
        [whole - 6, top + (bottom - top) * part, "end"],
        [whole + 6, top + (bottom - top) * part, "start"],
      ]),
    );
    rest.forEach((points, i) => place(named[i], [`${options[i].value} cœurs`], points.flatMap((point) => beside(point, 6))));
  }

  const write = (node, parts) =>
    node.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );

  let spoken = null;
  return (width) => {
    const matrixShown = current();
    const { rows: m, columns: n, trains } = matrixShown;
    const n_cores = possible(model, "n_cores", (wanted) => closest([...trains.keys()], wanted));
    const train = trains.get(n_cores);
    const rank = possible(model, "rank", (wanted) => closest(train.ranks, wanted));
    const bits = possible(model, "n_bits", (wanted) => closest(BITS, wanted));
    const point = train.points.find((each) => each.rank === rank);
    const size = point.sizes[bits];
    const within = rankWithin(m, n, bits, size);
    const state = {
      ...train,
      train,
      point,
      rank,
      bits,
      size,
      cores: n_cores,
      shapes: point.shapes,
      coreBits: trainBits(train.inputs, train.outputs, rank, bits),
      error: point.errors[bits],
      svd: matrixShown.svd.find((each) => each.rank === within) ?? null,
      first: matrixShown.svd[0],
      alone: matrixShown.alone[BITS.indexOf(bits)],
    };
    matrix.update(matrixShown.name);
    for (const option of options) {
      const { inputs, outputs } = trains.get(Number(option.value));
      option.textContent = `${option.value} cœurs\u00a0: ${outputs.join("·")}\u00a0×\u00a0${inputs.join("·")}`;
    }
    cores.update(String(n_cores));
    rankSlider.update(train.ranks.indexOf(rank), 0, train.ranks.length - 1, fr(rank));
    bitsSlider.update(bits, bits === FLOAT ? "32 (flottants)" : fr(bits));
    prompt.textContent = matrixShown.prompt;
    write(sentence, verdict(matrixShown, state));
    drawChain(width, matrixShown, state);
    drawPlot(width, matrixShown, state);

    const { svd, first, alone } = state;
    const other = svd ?? first;
    const weigh = width < 480 ? roundShort : (octets) => bytes(8 * octets);
    const row = (name, numbers, weight, error, kind) =>
      element(
        "tr",
        { class: kind },
        element("th", { scope: "row" }, name),
        ...[fr(numbers), weigh(weight / 8), shortly(error)].map((word) => element("td", {}, word)),
      );
    const gap = svd ? other.errors[bits] - state.error : 1;
    table.replaceChildren(
      row(`Train, rang\u00a0${fr(rank)}`, sum(state.shapes.map(product)), size, state.error, gap > TIE ? "lrq-winner" : null),
      row(
        `SVD, rang\u00a0${fr(other.rank)}`,
        other.rank * (m + n),
        other.sizes[bits],
        other.errors[bits],
        gap < -TIE ? "lrq-winner" : null,
      ),
      row(`W ${onBits(bits)}`, m * n, alone.size, alone.error, null),
    );
    const said = sentence.textContent;
    set(plot, { "aria-label": `Erreur selon les octets, ${n_cores}\u00a0cœurs. ${said}` });
    set(handle, {
      "aria-valuenow": 1 + train.ranks.indexOf(rank),
      "aria-valuemax": train.ranks.length,
      "aria-valuetext": `rang ${rank} : ${bytes(size)}, ${inPercent(state.error)} d’erreur`,
    });
    code.update(snippet(matrixShown, state));
    const announced = spoken === matrixShown.name ? said : `${matrixShown.name}, ${fr(m)}\u00a0×\u00a0${fr(n)}. ${said}`;
    spoken = matrixShown.name;
    return announced;
  };
}

export default explorer({
  kind: "tensor-train",
  label: "Train de tenseurs : chaîne de cœurs et erreur à octets égaux",
  traits: ["matrix", "n_cores", "rank", "n_bits"],
  build,
});
