// La SVD aléatoire, réglage par réglage : le temps, l'erreur en trop, et ce qui les borne.
import {
  KEYS,
  clamp,
  closest,
  codePanel,
  curve,
  decode,
  element,
  explorer,
  fr,
  grip,
  keeper,
  listSlider,
  logarithmic,
  pickable,
  possible,
  powers,
  quantity,
  set,
  settle,
  unique,
} from "./figure.js";
import { excess, halkoBound } from "./numerics.js";

const MARGIN = { left: 62, right: 14, top: 28, bottom: 44 };
const HEIGHT = 330;
const FLOOR = 1e-5; // 0,001 % : ce qu'un float32 garantit d'une machine à l'autre
const CEILING = 12; // la borne de Halko, au pire des réglages : 1 040 %
const GAP = 22; // de la dernière graduation à l'optimum, que l'échelle logarithmique n'atteint pas

const NARROW = 12; // la bibliothèque de calcul change de méthode selon la largeur : un fait de la machine des mesures

const times = (count, word) => `${fr(count)}\u00a0${word}${count > 1 ? "s" : ""}`;
const milliseconds = (value) =>
  value < 1000 ? `${quantity(value, value < 10 ? 2 : 3)}\u00a0ms` : `${fr(value / 1000, 2)}\u00a0s`;

/** La part d'erreur en trop ; au-dessous du plancher, rien n'est sûr. */
const surplus = (share, digits = 2) =>
  share < FLOOR ? `moins de ${fr(100 * FLOOR, 3)}\u00a0%` : `${quantity(100 * share, digits)}\u00a0%`;

/** Combien de fois plus vite, ou plus lentement : [texte, notion]. */
function speed(full, time) {
  const [ratio, word, kind] =
    time <= full ? [full / time, "plus rapide", "budget"] : [time / full, "plus lent", "error"];
  return ratio < 1.05 ? ["à peu près aussi long", "budget"] : [`${fr(ratio, ratio < 10 ? 1 : 0)} fois ${word}`, kind];
}

/** Les mesures d'une matrice : un objet par réglage, dans l'ordre de la table. */
function analyse(choice, { rank: ranks, oversample, n_iter }, values) {
  const points = [];
  for (const [place, rank] of ranks.entries())
    for (const p of oversample)
      for (const q of n_iter) {
        const [error, low, high, time] = values.subarray(4 * points.length, 4 * points.length + 4);
        const optimum = choice.optimum[place];
        const bound = q === 0 && p >= 2 ? halkoBound(optimum, rank, p) : null;
        const [over, least, most] = [error, low, high].map((value) => excess(value, optimum));
        points.push({ rank, p, q, error, time, optimum, bound, over, least, most });
      }
  const durations = [...points.map(({ time }) => time), choice.full];
  return { ...choice, points, fastest: Math.min(...durations), slowest: Math.max(...durations) };
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ full }, { rank, p, q, error, optimum, over, time }) {
  const [pace, kind] = speed(full, time);
  return [
    `Rang ${fr(rank)}, p\u00a0=\u00a0${p}, q\u00a0=\u00a0${q}\u00a0: `,
    [`${fr(100 * error, 2)}\u00a0%`, "error"],
    " d’erreur, ",
    [over < FLOOR ? `à ${surplus(over)}` : surplus(over), "error"],
    over < FLOOR ? " de l’optimum, " : " de plus que l’optimum, ",
    [`${fr(100 * optimum, 2)}\u00a0%`, "theory"],
    `. En ${2 * q + 2} lectures de W\u00a0: `,
    [pace, kind],
    " que la SVD complète.",
  ];
}

/** Le code qui retrouve ces nombres. */
function snippet({ code }, { rank, p, q, error, optimum, bound, over }) {
  const lines = [
    "import lrq",
    code,
    `svd = lrq.approximate_svd_large(W, ${rank}, oversample=${p}, n_iter=${q}, seed=0)`,
    ['print(f"{svd.error:.3f}")', error.toFixed(3)],
    "S = lrq.singular_values(W)",
    `best = lrq.truncation_errors(S)[${rank} - 1]`,
    ['print(f"{best:.3f}")', optimum.toFixed(3)],
    ['print(f"{100 * abs(svd.error / best - 1):.2f} %")', `${(100 * Math.abs(over)).toFixed(2)} %`],
  ];
  if (bound !== null) lines.push([`print(f"{lrq.halko_bound(S, ${rank}, ${p}):.3f}")`, bound.toFixed(3)]);
  return lines;
}

function build(root, model) {
  const choices = model.get("_choices");
  const settings = model.get("_settings");
  const each = settings.rank.length * settings.oversample.length * settings.n_iter.length;
  const values = decode(model.get("_values"), Float32Array, 4 * each * choices.length);
  const analyses = new Map(
    choices.map((choice, i) => [
      choice.name,
      analyse(choice, settings, values.subarray(4 * each * i, 4 * each * (i + 1))),
    ]),
  );
  const keep = keeper(model);

  // La matrice.
  const id = unique("matrice");
  const options = choices.map(({ name }) => element("option", { value: name }, name));
  const select = element("select", { id, "data-control": "matrix", ...KEYS }, ...options);
  select.addEventListener("change", () => keep({ matrix: select.value }));
  const shape = element("span", { class: "lrq-value", "data-readout": "shape" });
  const head = element("div", { class: "lrq-head" }, element("label", { for: id }, "Matrice W"), select, shape);
  const prompt = element("p", { class: "lrq-prompt" });
  const sentence = element("p", { class: "lrq-verdict lrq-long", "data-readout": "verdict" });

  // Le dessin.
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, "aria-hidden": "true" });
  const line = (kind) => element("path", { class: `lrq-curve ${kind}` });
  const background = element("g", { "aria-hidden": "true" });
  const limits = { full: line("theory"), halko: line("theory"), optimum: line("theory") };
  const paths = settings.n_iter.map(() => line("error"));
  const dots = element("g");
  const spread = line("error");
  const labels = {
    full: [text("theory"), text("theory")],
    optimum: [text("theory")],
    halko: [text("theory")],
    here: [text("error")],
    lines: settings.n_iter.map(() => text("error")),
    start: text("error"),
  };
  const handle = grip(
    "point",
    "Réglage choisi sur le dessin (à gauche et à droite, le suréchantillonnage ; vers le bas, une itération de plus)",
    "error",
    { "aria-valuemin": 1, "aria-valuemax": settings.oversample.length * settings.n_iter.length },
  );
  const plot = element(
    "svg",
    { class: "lrq-plot lrq-map", height: HEIGHT, role: "group" },
    background,
    ...Object.values(limits),
    ...paths,
    dots,
    spread,
    handle,
    ...Object.values(labels).flat(),
  );

  const sliders = {
    rank: listSlider("listed-rank", "Rang r", settings.rank, (rank) => keep({ rank })),
    oversample: listSlider("oversample", "Suréchantillonnage p", settings.oversample, (oversample) =>
      keep({ oversample }),
    ),
    n_iter: listSlider("n_iter", "Itérations q", settings.n_iter, (n_iter) => keep({ n_iter })),
  };
  const note = element("p", { class: "lrq-note lrq-long", "data-readout": "spread" });
  const code = codePanel();
  const panel = element("div", { class: "lrq-settings" }, ...Object.values(sliders).map(({ node }) => node));
  root.append(head, prompt, sentence, plot, panel, note, code.node);

  let shown = []; // les points du dessin présent, avec leur place
  pickable(
    plot,
    handle,
    (x, y) => {
      const far = (point) => Math.hypot(point.x - x, point.y - y);
      const { p, q } = shown.reduce((found, point) => (far(point) < far(found) ? point : found));
      keep({ oversample: p, n_iter: q });
    },
    () => {
      const before = { oversample: model.get("oversample"), n_iter: model.get("n_iter") };
      return () => keep(before);
    },
  );
  handle.addEventListener("keydown", (event) => {
    const [first, last] = [settings.oversample, settings.n_iter].map((all) => [all[0], all.at(-1)]);
    const step = (trait, by) => {
      const all = settings[trait];
      return { [trait]: all[clamp(all.indexOf(model.get(trait)) + by, 0, all.length - 1)] };
    };
    const target = {
      ArrowLeft: () => step("oversample", -1),
      ArrowRight: () => step("oversample", 1),
      ArrowUp: () => step("n_iter", -1),
      ArrowDown: () => step("n_iter", 1),
      Home: () => ({ oversample: first[0], n_iter: last[0] }),
      End: () => ({ oversample: first[1], n_iter: last[1] }),
    }[event.key];
    if (!target) return;
    event.preventDefault();
    event.stopPropagation();
    keep(target());
  });

  /** Axes, courbes, points et étiquettes. */
  function drawPlot(width, current, chosen) {
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const lowest = bottom - GAP;
    const x = logarithmic([current.fastest * 0.88, current.slowest * 1.12], [MARGIN.left, right]);
    const log = logarithmic([FLOOR, CEILING], [lowest, MARGIN.top]);
    const y = (share) => (share < FLOOR ? lowest + GAP / 2 : log(share)); // entre 0,001 % et 0, sans dire où
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    const tick = (attributes, label) => element("text", { class: "lrq-tick", ...attributes }, label);
    background.replaceChildren(
      ...powers(FLOOR, CEILING).flatMap((value) => [
        element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: log(value), y2: log(value) }),
        tick({ x: MARGIN.left - 6, y: log(value) + 4, "text-anchor": "end" }, `${quantity(100 * value)}\u00a0%`),
      ]),
      tick({ x: MARGIN.left - 6, y: bottom + 4, "text-anchor": "end" }, "0\u00a0%"),
      ...powers(current.fastest * 0.88, current.slowest * 1.12, 4).map((value) =>
        tick({ x: x(value), y: bottom + 19, "text-anchor": "middle" }, quantity(value)),
      ),
      element(
        "text",
        { class: "lrq-title", x: 0, y: 14 },
        width < 420 ? "Excès sur l’optimum (log)" : "Excès d’erreur sur l’optimum (échelle logarithmique)",
      ),
      element("text", { class: "lrq-title", x: right, y: HEIGHT - 6, "text-anchor": "end" }, "temps, en ms (log)"),
    );

    shown = current.points
      .filter(({ rank }) => rank === chosen.rank)
      .map((point) => ({ ...point, x: x(point.time), y: y(point.over) }));
    const rows = settings.n_iter.map((q) => shown.filter((point) => point.q === q));
    const bounded = rows[0].filter(({ bound }) => bound !== null);
    const halko = bounded.map((point) => y(excess(point.bound, point.optimum)));
    const [fullX, here] = [x(current.full), shown.find(({ p, q }) => p === chosen.p && q === chosen.q)];
    const path = (points) =>
      curve(
        points.map((point) => point.x),
        points.map((point) => point.y),
      );
    rows.forEach((row, i) =>
      set(paths[i], { d: path(row), class: `lrq-curve error${row[0].q === chosen.q ? "" : " faded"}` }),
    );
    dots.replaceChildren(
      ...shown.map((point) =>
        element("circle", {
          class: `lrq-dot error${point.q === chosen.q ? "" : " faded"}`,
          r: point.q === chosen.q ? 5 : 4,
          cx: point.x.toFixed(1),
          cy: point.y.toFixed(1),
        }),
      ),
    );
    set(limits.full, { d: curve([fullX, fullX], [MARGIN.top, bottom]) });
    set(limits.optimum, { d: curve([MARGIN.left, right], [bottom, bottom]) });
    set(limits.halko, {
      d: curve(
        bounded.map((point) => point.x),
        halko,
      ),
    });
    const [least, most] = [y(chosen.least), y(chosen.most)].map((end) => end.toFixed(1));
    set(spread, { d: `M${here.x - 6} ${least}h12m-6 0V${most}m-6 0h12` });
    set(handle, { transform: `translate(${here.x.toFixed(1)} ${here.y.toFixed(1)})` });

    // Les étiquettes : chacune sa place, loin des courbes.
    const along = (points, steps = 8) =>
      points.slice(1).flatMap(([bx, by], i) => {
        const [ax, ay] = points[i];
        return Array.from({ length: steps + 1 }, (_, k) => [
          ax + ((bx - ax) * k) / steps,
          ay + ((by - ay) * k) / steps,
        ]);
      });
    const around = {
      bounds: { left: MARGIN.left, right: right + 2, top: MARGIN.top - 10, bottom: bottom - 1 },
      points: [
        ...rows.flatMap((row) => along(row.map((point) => [point.x, point.y]))),
        ...along(bounded.map((point, i) => [point.x, halko[i]])),
        ...along(
          [
            [fullX, MARGIN.top],
            [fullX, bottom],
          ],
          40,
        ),
      ],
      taken: [{ left: here.x - 13, right: here.x + 13, top: here.y - 13, bottom: here.y + 13 }],
    };
    const beside = (place, gap = 15) => [
      [place.x + gap, place.y + 5, "start"],
      [place.x + gap, place.y - 10, "start"],
      [place.x + gap, place.y + 20, "start"],
      [place.x - gap, place.y + 20, "end"],
      [place.x - gap, place.y + 5, "end"],
      [place.x - gap, place.y - 10, "end"],
      [place.x, place.y - 18, "middle"],
      [place.x, place.y + 28, "middle"],
    ];
    const place = (lines, text, places) => {
      const crowd = settle(lines, text, places, around);
      // Sans place, rien plutôt qu’un fouillis.
      for (const line of lines) set(line, { visibility: crowd >= 1000 ? "hidden" : null });
    };
    settle(labels.here, [`+\u00a0${surplus(chosen.over)}`], beside(here), around);
    const heights = Array.from({ length: 12 }, (_, i) => MARGIN.top + 12 + i * 20);
    place(
      labels.full,
      ["SVD complète", milliseconds(current.full)],
      heights.flatMap((height) => [
        [fullX + 7, height, "start"],
        [fullX - 7, height, "end"],
      ]),
    );
    place(
      labels.halko,
      [width < 420 ? "borne de Halko" : "borne de Halko, q\u00a0=\u00a00"],
      bounded.flatMap((point, i) => [
        [point.x + 10, halko[i] - 4, "start"],
        [point.x + 8, halko[i] + 5, "start"],
        [point.x, halko[i] - 9, "middle"],
        [point.x - 6, halko[i] + 18, "end"],
      ]),
    );
    place(
      labels.optimum,
      [width < 420 ? "optimum" : "optimum (Eckart–Young)"],
      [0, 0.25, 0.5, 0.75, 1].map((part) => [
        MARGIN.left + 4 + part * (right - MARGIN.left - 8),
        bottom - 6,
        part < 0.3 ? "start" : part > 0.7 ? "end" : "middle",
      ]),
    );
    const order = [...rows.keys()].sort((i, j) => (rows[j][0].q === chosen.q) - (rows[i][0].q === chosen.q));
    for (const i of order) {
      const row = rows[i];
      const last = row.at(-1);
      const own = row[0].q === chosen.q;
      const end = own && width >= 420 ? `, p\u00a0=\u00a0${last.p}` : ""; // à l'étroit, les curseurs le disent
      const under = [
        [last.x, last.y + 22, "end"],
        [last.x, last.y + 36, "end"],
        [last.x, last.y - 14, "end"],
      ];
      const places = [...beside(last, own ? 15 : 8), ...under, ...(end ? [] : beside(row[0], 8))];
      const crowd = settle([labels.lines[i]], [`q\u00a0=\u00a0${row[0].q}${end}`], places, around);
      const hidden = crowd >= 1000; // sans place, on la devine : les courbes sont dans l'ordre
      set(labels.lines[i], { class: `lrq-label error${own ? "" : " faded"}`, visibility: hidden ? "hidden" : null });
    }
    const [start] = rows.find(([{ q }]) => q === chosen.q);
    const crowd = settle([labels.start], [`p\u00a0=\u00a0${start.p}`], beside(start, 8).reverse(), around);
    set(labels.start, { visibility: width < 420 || start === here || crowd ? "hidden" : null });
  }

  let spoken = null;
  return (width) => {
    const current = analyses.get(model.get("matrix"));
    const [rank, p, q] = ["rank", "oversample", "n_iter"].map((trait) =>
      possible(model, trait, (value) => closest(settings[trait], value)),
    );
    const chosen = current.points.find((point) => point.rank === rank && point.p === p && point.q === q);
    select.value = current.name;
    shape.textContent = `${fr(current.rows)}\u00a0×\u00a0${fr(current.columns)}`;
    prompt.textContent = current.prompt;
    drawPlot(width, current, chosen);

    const parts = verdict(current, chosen);
    sentence.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );
    const said = sentence.textContent;
    set(plot, {
      "aria-label": `Temps et excès d’erreur de ${shown.length}\u00a0réglages, au rang ${fr(rank)}. ${said}`,
    });
    set(handle, {
      "aria-valuenow": 1 + shown.findIndex((point) => point.p === p && point.q === q),
      "aria-valuetext": `p = ${p}, q = ${q} : excès de ${surplus(chosen.over)}, en ${milliseconds(chosen.time)}`,
    });
    sliders.rank.update(rank, fr(rank));
    sliders.oversample.update(p, fr(p));
    sliders.n_iter.update(q, fr(q));
    const halko =
      chosen.bound === null
        ? "La borne de Halko ne vaut que sans itération, avec deux colonnes en plus au moins."
        : `La borne de Halko promet, en moyenne, un excès de ${surplus(excess(chosen.bound, chosen.optimum), 3)} au plus.`;
    const narrow =
      rank + p < NARROW ? ` À moins de ${NARROW}\u00a0colonnes en tout, les produits y étaient plus lents.` : "";
    note.textContent =
      `Sur ${times(settings.seed.length, "tirage")}, l’excès va de ${surplus(chosen.least, 3)} à ${surplus(chosen.most, 3)}. ${halko} ` +
      `Temps mesuré\u00a0: ${milliseconds(chosen.time)}, à un seul fil, mesure de l’erreur comprise.${narrow}`;
    code.update(snippet(current, chosen));
    const announced = spoken === current.name ? said : `${current.name}, ${shape.textContent}. ${said}`;
    spoken = current.name;
    return announced;
  };
}

export default explorer({
  kind: "randomized",
  label: "SVD aléatoire : erreur et temps",
  traits: ["matrix", "rank", "oversample", "n_iter"],
  build,
});
