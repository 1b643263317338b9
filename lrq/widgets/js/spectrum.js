// Le spectre singulier d'une matrice, et ce qu'on garde en le coupant au rang r.
import {
  KEYS,
  clamp,
  codePanel,
  compare,
  curve,
  decode,
  element,
  fr,
  explorer,
  jumps,
  linear,
  logarithmic,
  percent,
  possibleRank,
  powers,
  quantity,
  rankSlider,
  set,
  settle,
  sizeBars,
  textWidth,
  ticks,
  unique,
} from "./figure.js";
import {
  breakEvenRank,
  cumulativeEnergy,
  factorBits,
  frobeniusNorm,
  marchenkoPasturEdge,
  rankForEnergy,
  truncationErrors,
} from "./numerics.js";

const MARGIN = { left: 46, right: 14 };
const UPPER = { top: 26, bottom: 6, height: 232 };
const LOWER = { top: 10, bottom: 40, height: 172 };

/** Tout ce qui ne dépend que de la matrice choisie. */
function analyse({ name, rows: m, columns: n, top, tail, prompt, code }, relative, relativeChance) {
  const S = Float64Array.from(relative, (value) => value * top); // transportées rapportées à σ₁ : float32 y suffit
  const chance = Float64Array.from(relativeChance, (value) => value * top);
  const energy = cumulativeEnergy(S, tail);
  const breakEven = breakEvenRank(m, n);
  const edge = marchenkoPasturEdge(m, n, frobeniusNorm(S, tail));
  const marks = [
    ["moitié de la taille", Math.floor(breakEven / 2)],
    ["90\u00a0% de l’énergie", rankForEnergy(energy, 0.9)],
    ["même taille", Math.floor(breakEven)],
    ["99\u00a0% de l’énergie", rankForEnergy(energy, 0.99)],
  ]
    .filter(([, rank]) => rank >= 1 && rank <= S.length)
    .sort(([, one], [, other]) => one - other);
  return { name, m, n, prompt, code, S, chance, energy, errors: truncationErrors(S, tail), breakEven, edge, marks };
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ m, n, energy, errors }, rank) {
  const size = factorBits(m, n, rank);
  const whole = 32 * m * n;
  return [
    `Au rang ${fr(rank)}, on garde `,
    [percent(energy[rank - 1]), "rank"],
    " de l’énergie, à ",
    [percent(errors[rank - 1]), "error"],
    " d’erreur, et les deux facteurs pèsent ",
    [compare(size, whole), size > whole ? "error" : "budget"],
    size > whole ? " W : c’est plus lourd." : " W.",
  ];
}

/** Le code qui retrouve ces nombres. */
function snippet({ m, n, code, energy, errors, marks }, rank) {
  const at = (word) => marks.find(([label]) => label.startsWith(word))?.[1];
  const lines = [
    "import lrq",
    code,
    "S = lrq.singular_values(W)",
    `rank = ${rank}`,
    ['print(f"{lrq.cumulative_energy(S)[rank - 1]:.3f}")', energy[rank - 1].toFixed(3)],
    ['print(f"{lrq.truncation_errors(S)[rank - 1]:.3f}")', errors[rank - 1].toFixed(3)],
  ];
  for (const [word, threshold] of [
    ["90", "0.90"],
    ["99", "0.99"],
  ])
    if (at(word)) lines.push([`print(lrq.rank_for_energy(S, ${threshold}))`, at(word)]);
  lines.push("m, n = W.shape", ['print(rank * (m + n), "/", m * n)', `${rank * (m + n)} / ${m * n}`]);
  return lines;
}

function build(root, model) {
  const choices = model.get("_choices");
  const total = choices.reduce((sum, { carried }) => sum + carried, 0);
  const values = decode(model.get("_values"), Float32Array, total);
  const noises = decode(model.get("_chance"), Float32Array, total);
  const analyses = new Map();
  let offset = 0;
  for (const choice of choices) {
    const end = offset + choice.carried;
    analyses.set(choice.name, analyse(choice, values.subarray(offset, end), noises.subarray(offset, end)));
    offset = end;
  }

  const keep = (rank) => {
    model.set("rank", rank);
    model.save_changes();
  };
  const choose = (name) => {
    model.set("rank", clamp(model.get("rank"), 1, analyses.get(name).S.length));
    model.set("matrix", name);
    model.save_changes();
  };

  // La matrice.
  const id = unique("matrice");
  const options = choices.map(({ name }) => element("option", { value: name }, name));
  const select = element("select", { id, "data-control": "matrix", ...KEYS }, ...options);
  select.addEventListener("change", () => choose(select.value));
  const shape = element("span", { class: "lrq-value", "data-readout": "shape" });
  const alone = [element("strong", {}, choices[0].name)]; // un menu d'une ligne ne commanderait rien
  const chosen = choices.length > 1 ? [element("label", { for: id }, "Matrice W"), select] : alone;
  const head = element("div", { class: "lrq-head" }, ...chosen, shape);
  const sentence = element("p", { class: "lrq-verdict", "data-readout": "verdict" });
  const prompt = element("p", { class: "lrq-prompt" });

  // Les deux dessins, sur le même axe des rangs.
  const hatch = unique("hachures");
  const keptClip = unique("garde");
  const line = (kind) => element("path", { class: `lrq-curve ${kind}` });
  const text = (kind, anchor = "start") =>
    element("text", { class: `lrq-label ${kind}`, "text-anchor": anchor, "aria-hidden": "true" });

  const silent = { "aria-hidden": "true" }; // graduations et étiquettes : le nom du dessin les résume
  const upper = {
    axes: element("g", silent),
    zone: element("rect"),
    edge: line("theory edge"),
    chance: line("theory"),
    lost: line("rank faded"),
    kept: line("rank"),
  };
  const clip = element("rect", { x: 0, y: 0, height: UPPER.height });
  const labels = {
    own: text("rank"),
    zone: text("theory"),
    zone2: text("theory"),
    chance: text("theory"),
    edge: text("theory", "end"),
  };
  const cut = element("line", { class: "lrq-cut" });
  const grip = element("circle", { class: "lrq-grip", r: 10 });
  const handle = element(
    "g",
    {
      class: "lrq-handle",
      role: "slider",
      tabindex: 0,
      "data-control": "cut",
      "aria-label": "Coupe du spectre au rang r",
      "aria-valuemin": 1,
      "aria-orientation": "horizontal",
      ...KEYS,
    },
    element("rect", { class: "lrq-reach", x: -22, y: 0, width: 44, height: UPPER.height }),
    cut,
    grip,
  );
  const spectrum = element(
    "svg",
    { class: "lrq-plot", height: UPPER.height, role: "group" },
    element(
      "defs",
      {},
      element(
        "pattern",
        { id: hatch, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        element("line", { class: "lrq-hatch", x1: 0, y1: 0, x2: 0, y2: 7 }),
      ),
      element("clipPath", { id: keptClip }, clip),
    ),
    upper.zone,
    upper.axes,
    upper.edge,
    upper.chance,
    upper.lost,
    upper.kept,
    handle,
    ...Object.values(labels),
  );

  const lower = {
    axes: element("g", silent),
    zone: element("rect"),
    energy: line("rank"),
    error: line("error"),
    cut: element("line", { class: "lrq-cut" }),
  };
  const dots = {
    energy: element("circle", { class: "lrq-dot rank", r: 5 }),
    error: element("circle", { class: "lrq-dot error", r: 5 }),
  };
  const tags = { energy: text("rank"), error: text("error") };
  const measures = element(
    "svg",
    { class: "lrq-plot", height: LOWER.height, role: "img" },
    lower.zone,
    lower.axes,
    lower.energy,
    lower.error,
    lower.cut,
    ...Object.values(dots),
    ...Object.values(tags),
  );

  for (const zone of [upper.zone, lower.zone]) zone.setAttribute("fill", `url(#${hatch})`);
  upper.kept.setAttribute("clip-path", `url(#${keptClip})`);

  const edgeNote = element("p", { class: "lrq-note", "data-readout": "edge" });
  const slider = rankSlider(keep);
  const buttons = jumps(keep);
  const sizes = sizeBars();
  const code = codePanel();
  const note = model.get("_note");
  root.append(head, prompt, sentence, spectrum, measures, slider.node, buttons.node, sizes.node, edgeNote);
  if (note) root.append(element("p", { class: "lrq-note", "data-readout": "note" }, note));
  root.append(code.node);

  // Tirer la coupe, sur l'un ou l'autre dessin.
  let scale = null; // rang → abscisse, pour la largeur présente
  let current = null;
  let landmarks = "";
  for (const plot of [spectrum, measures]) {
    const pick = (event) =>
      keep(clamp(Math.round(scale.invert(event.clientX - plot.getBoundingClientRect().left)), 1, current.S.length));
    let start = null; // un doigt ne règle le rang qu'une fois posé ou glissé de côté : vers le haut, il fait défiler
    plot.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      start = { x: event.clientX, rank: model.get("rank"), moved: event.pointerType !== "touch" };
      plot.setPointerCapture(event.pointerId);
      handle.focus({ preventScroll: true });
      if (start.moved) pick(event);
    });
    plot.addEventListener("pointermove", (event) => {
      if (!plot.hasPointerCapture(event.pointerId)) return;
      start.moved ||= Math.abs(event.clientX - start.x) > 6;
      if (start.moved) pick(event);
    });
    plot.addEventListener("pointerup", (event) => plot.hasPointerCapture(event.pointerId) && pick(event));
    plot.addEventListener("pointercancel", () => keep(start.rank));
    plot.addEventListener("mousedown", (event) => event.preventDefault()); // garde le focus sur la coupe
  }
  handle.addEventListener("keydown", (event) => {
    const rank = model.get("rank");
    const p = current.S.length;
    const target = {
      ArrowLeft: rank - 1,
      ArrowDown: rank - 1,
      ArrowRight: rank + 1,
      ArrowUp: rank + 1,
      PageDown: rank - 10,
      PageUp: rank + 10,
      Home: 1,
      End: p,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    keep(clamp(target, 1, p));
  });

  /** Ce qui dépend de la matrice et de la largeur, mais pas du rang. */
  function drawBackground(width) {
    const { S, chance, energy, errors, m, n, breakEven, edge } = current;
    const p = S.length;
    const right = width - MARGIN.right;
    scale = linear([0, p], [MARGIN.left, right]);
    const ranks = Array.from({ length: p }, (_, i) => scale(i + 1));
    const high = Math.max(S[0], chance[0], edge) || 1; // une matrice nulle a un axe quand même
    const low = Math.max(Math.min(S[p - 1], chance[p - 1]), high * 1e-4);
    const y = logarithmic([Math.min(low, high / 10), high], [UPPER.height - UPPER.bottom, UPPER.top]);
    const share = linear([0, 1], [LOWER.height - LOWER.bottom, LOWER.top]);
    for (const svg of [spectrum, measures]) set(svg, { width, viewBox: `0 0 ${width} ${svg.getAttribute("height")}` });

    const grid = (position, label) => [
      element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: position, y2: position }),
      element("text", { class: "lrq-tick", x: MARGIN.left - 6, y: position + 4, "text-anchor": "end" }, label),
    ];
    upper.axes.replaceChildren(
      ...powers(Math.min(low, high / 10), high).flatMap((value) => grid(y(value), quantity(value))),
      element(
        "text",
        { class: "lrq-title", x: 0, y: 14 },
        width < 340 ? "Valeurs singulières σᵢ (log)" : "Valeurs singulières σᵢ (échelle logarithmique)",
      ),
    );
    lower.axes.replaceChildren(
      ...[0, 0.5, 1].flatMap((value) => grid(share(value), `${100 * value}\u00a0%`)),
      ...ticks(p, width < 420 ? 5 : 8)
        .filter((rank) => rank > 0)
        .map((rank) =>
          element(
            "text",
            { class: "lrq-tick", x: scale(rank), y: LOWER.height - LOWER.bottom + 18, "text-anchor": "middle" },
            fr(rank),
          ),
        ),
      element("text", { class: "lrq-title", x: right, y: LOWER.height - 5, "text-anchor": "end" }, "rang r"),
    );

    const limit = scale(Math.min(breakEven, p));
    set(upper.zone, {
      x: limit,
      y: UPPER.top,
      width: Math.max(0, right - limit),
      height: UPPER.height - UPPER.top - UPPER.bottom,
    });
    set(lower.zone, {
      x: limit,
      y: LOWER.top,
      width: Math.max(0, right - limit),
      height: LOWER.height - LOWER.top - LOWER.bottom,
    });
    const visible = S.findIndex((value) => value < low); // au-dessous de l'axe, la courbe s'arrête
    const d = curve(visible < 0 ? ranks : ranks.slice(0, visible), Array.from(S, y));
    set(upper.kept, { d });
    set(upper.lost, { d });
    set(upper.chance, { d: curve(ranks, Array.from(chance, y)) });
    set(upper.edge, { d: curve([MARGIN.left, right], [y(edge), y(edge)]) });
    set(lower.energy, { d: curve(ranks, energy.map(share)) });
    set(lower.error, { d: curve(ranks, errors.map(share)) });

    // Les étiquettes : chacune sa place, loin des courbes.
    const floor = UPPER.height - UPPER.bottom;
    const points = [S, chance].flatMap((values) => ranks.map((x, i) => [x, y(values[i])]));
    for (let x = MARGIN.left; x < right; x += 8) points.push([x, y(edge)]);
    const around = {
      bounds: { left: MARGIN.left, right: right + 2, top: UPPER.top - 8, bottom: floor },
      points,
      taken: [],
    };
    const inside = right - limit > 128;
    const value = inside && right - limit < 185 ? "" : `\u00a0= ${fr(breakEven, Number.isInteger(breakEven) ? 0 : 1)}`;
    const beside = inside ? [limit + 6, "start"] : [limit - 6, "end"];
    const zonePlaces = [28, 60, 100, 140].map((up) => [beside[0], floor - up, beside[1]]);
    settle([labels.zone, labels.zone2], [`au-delà de r*${value}\u00a0:`, "plus lourd que W"], zonePlaces, around);
    settle(
      [labels.edge],
      ["bord du hasard"],
      [
        [right - 2, y(edge) - 6, "end"],
        [right - 2, y(edge) + 15, "end"],
      ],
      around,
    );
    const along = (values) =>
      [0.55, 0.65, 0.75, 0.45, 0.85, 0.35, 0.25].flatMap((part) => {
        const i = Math.floor(part * (p - 1));
        return [
          [ranks[i] + 4, y(values[i]) - 7, "start"],
          [ranks[i] - 4, y(values[i]) + 17, "end"],
          [ranks[i], y(values[i]) - 10, "middle"],
        ];
      });
    settle([labels.chance], [width < 420 ? "hasard" : "hasard de même norme"], along(chance), around);
    settle([labels.own], ["W"], along(S), around);

    const above = S.filter((value) => value > edge).length;
    const counted =
      above === 0
        ? "Aucune valeur singulière ne dépasse"
        : above === 1
          ? "Une seule valeur singulière dépasse"
          : `${fr(above)} valeurs singulières dépassent`;
    edgeNote.textContent = `${counted} le bord de Marchenko–Pastur (${quantity(edge, 2)}), où s’arrête à peu près le spectre d’un grand bruit de même norme. De fortes valeurs, en gonflant la norme, relèvent ce bord.`;
    const reached = current.marks.map(([label, rank]) => `${label} au rang ${fr(rank)}`).join(", ");
    set(spectrum, {
      "aria-label": `Spectre de ${current.name} : de ${quantity(S[0], 2)} à ${quantity(S[p - 1], 2)}. ${edgeNote.textContent}`,
    });
    landmarks = `Énergie gardée et erreur relative selon le rang : ${reached}.`;
    shape.textContent = `${fr(m)}\u00a0×\u00a0${fr(n)}`;
    prompt.textContent = current.prompt;
    prompt.hidden = !current.prompt;
    set(handle, { "aria-valuemax": p });
  }

  let drawn = "";
  let spoken = null;
  return (width) => {
    current = analyses.get(model.get("matrix"));
    const p = current.S.length;
    const rank = possibleRank(model, p);
    if (drawn !== (drawn = `${current.name} ${width}`)) drawBackground(width);
    select.value = current.name;
    const x = scale(rank);
    set(clip, { width: x });
    set(cut, { x1: 0, x2: 0, y1: UPPER.top, y2: UPPER.height - UPPER.bottom });
    set(grip, { cy: UPPER.top + (UPPER.height - UPPER.top - UPPER.bottom) / 2 });
    set(handle, { transform: `translate(${x} 0)`, "aria-valuenow": rank });
    set(lower.cut, { x1: x, x2: x, y1: LOWER.top, y2: LOWER.height - LOWER.bottom });

    const share = linear([0, 1], [LOWER.height - LOWER.bottom, LOWER.top]);
    const kept = current.energy[rank - 1];
    const error = current.errors[rank - 1];
    const side = (label) => {
      const flipped = x > width / 2 && x + 10 + textWidth(label) > width; // du côté qui a la place
      return { x: x + (flipped ? -10 : 10), "text-anchor": flipped ? "end" : "start" };
    };
    const tag = {
      energy: `${width < 340 ? "énergie" : "énergie gardée"} ${percent(kept)}`,
      error: `erreur ${percent(error)}`,
    };
    const apart = Math.abs(share(kept) - share(error)) < 34 ? 17 - Math.abs(share(kept) - share(error)) / 2 : 0;
    const sign = kept >= error ? 1 : -1;
    const place = (position, shift) => clamp(position + shift + 4, LOWER.top + 10, LOWER.height - LOWER.bottom - 4);
    set(dots.energy, { cx: x, cy: share(kept) });
    set(dots.error, { cx: x, cy: share(error) });
    set(tags.energy, { ...side(tag.energy), y: place(share(kept), kept > 0.9 ? 14 : -sign * apart) }).textContent =
      tag.energy;
    set(tags.error, { ...side(tag.error), y: place(share(error), error < 0.1 ? -12 : sign * apart) }).textContent =
      tag.error;

    const parts = verdict(current, rank);
    sentence.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );
    const said = sentence.textContent;
    set(handle, { "aria-valuetext": `rang ${rank}, ${percent(kept)} de l’énergie, ${percent(error)} d’erreur` });
    set(measures, { "aria-label": `${landmarks} ${said}` });

    slider.update(rank, p);
    buttons.update(current.marks, rank);
    const { m, n } = current;
    const factors = factorBits(m, n, rank);
    sizes.update(
      [
        ["W", m * n, 32 * m * n, "whole"],
        ["deux facteurs", rank * (m + n), factors, factors > 32 * m * n ? "over" : "under"],
      ],
      Math.max(32 * m * n, factorBits(m, n, p)),
    );
    code.update(snippet(current, rank));
    const announced = spoken === current.name ? said : `${current.name}, ${shape.textContent}. ${said}`;
    spoken = current.name;
    return announced;
  };
}

export default explorer({ kind: "spectrum", label: "Spectre singulier", traits: ["rank", "matrix"], build });
