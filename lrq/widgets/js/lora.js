// LoRA : ce qu'apprend chaque rang, époque après époque, et la mémoire que demande l'entraînement.
import {
  bytes,
  closest,
  codePanel,
  curve,
  decode,
  element,
  explorer,
  fr,
  keeper,
  linear,
  listSlider,
  logarithmic,
  menu,
  possible,
  set,
  settle,
} from "./figure.js";
import { loraScale, trainingBytes } from "./numerics.js";

const HEIGHT = 330;
const MARGIN = { left: 46, right: 62, top: 30, bottom: 44 };
const MISSED = [1, 0.01]; // l'échelle du dessin : de tout manqué à 1 % de manqués
const LEVELS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99];
// Deux décimales se retrouvent d'une machine à l'autre tant que le pas, et le pas fois l'échelle, sont petits ; au-delà,
// la moyenne reste voisine ; quand les graines se contredisent, plus rien.
const CALM = { lr: 0.003, scaled: 0.03 };
const TORN = 0.1;

const PARTS = ["poids", "gradients", "moments d’Adam"];
const BARS = { height: 22, gap: 14, top: 24, label: 112 };

const sum = (values) => values.reduce((total, value) => total + value, 0);
const octets = (count) => bytes(8 * count);
const rate = (lr) => fr(lr, 3, 0);
const reached = (share) => `${fr(100 * share, 1)}\u00a0%`;

/** Les mesures d'un réglage : une courbe par graine, en parts d'images. */
function read(values, place, { seeds, epochs, images }) {
  const steps = epochs + 1;
  const runs = Array.from({ length: seeds }, (_, seed) =>
    Array.from(values.subarray((place * seeds + seed) * steps, (place * seeds + seed + 1) * steps), (n) => n / images),
  );
  const mean = runs[0].map((_, epoch) => sum(runs.map((run) => run[epoch])) / seeds);
  const last = runs.map((run) => run.at(-1));
  return { mean, last, least: Math.min(...last), most: Math.max(...last) };
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ rank, now, full, share, network }) {
  const gap = 100 * (now.mean.at(-1) - full.mean.at(-1));
  const close = Math.abs(gap) < 0.05;
  return [
    `Au rang ${fr(rank)}, `,
    [reached(now.mean.at(-1)), "rank"],
    " des chiffres tournés reconnus\u00a0: ",
    close ? "autant qu’en ajustant tout" : `${fr(Math.abs(gap), 1)}\u00a0points de ${gap < 0 ? "moins" : "plus"} qu’en ajustant tout`,
    ` (${reached(full.mean.at(-1))}). ${network}\u00a0: `,
    [`${fr(100 * share, share < 0.01 ? 2 : 1)}\u00a0%`, "budget"],
    " des paramètres à entraîner.",
  ];
}

/** Le code qui retrouve ces nombres. */
function snippet({ rank, scaling, lr, now, total, trained, code }, { alpha, epochs, seeds }) {
  const [prepare, name, targets] = code;
  const [mean, apart] = [now.mean.at(-1), now.most - now.least];
  const average = `sum(found) / ${seeds}`;
  let result = [[`print(f"{${average}:.2f}")`, mean.toFixed(2)]];
  if (apart > TORN)
    result = ["# d’une graine à l’autre, rien de commun", ["print(max(found) - min(found) > 0.02)", "True"]];
  else if (lr > CALM.lr || lr * loraScale(alpha, rank, scaling) > CALM.scaled) {
    const [low, high] = [mean - 0.05, Math.min(mean + 0.05, 1)].map((bound) => bound.toFixed(2));
    result = ["# d’une machine à l’autre, elle change un peu", [`print(${low} < ${average} < ${high})`, "True"]];
  }
  return [
    "import torch",
    "",
    "import lrq",
    "from lrq import models",
    "",
    'base = models.load_digits_network("mlp")',
    "(x_train, y_train), (x, y) = models.load_digits_data()",
    "x_train, x = (torch.rot90(images, 1, (-2, -1)) for images in (x_train, x))",
    "found = []",
    `for seed in range(${seeds}):`,
    "    torch.manual_seed(seed)",
    `    lora = lrq.convert_model_to_lora(base, rank=${rank}, alpha=${alpha}, scaling="${scaling}")`,
    `    models.fit(lora, x_train, y_train, epochs=${epochs}, lr=${lr}, seed=seed)`,
    "    found.append(models.accuracy(lora, x, y))",
    ...result,
    "",
    "# la mémoire, en octets : poids, gradients, moments d’Adam ; puis celle d’un ajustement complet",
    ...prepare,
    `lora = lrq.convert_model_to_lora(${name}, ${targets}rank=${rank})`,
    `total = sum(p.numel() for p in ${name}.parameters())`,
    "trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)",
    ["print(trained, total)", `${trained} ${total}`],
    ["print(4 * (total + trained), 4 * trained, 8 * trained)", trainingBytes(total, trained).join(" ")],
    ["print(4 * total, 4 * total, 8 * total)", trainingBytes(0, total).join(" ")],
  ];
}

function build(root, model) {
  const settings = model.get("_settings");
  const networks = model.get("_networks");
  const { rank: ranks, lr: rates, scalings, epochs, seeds, full: fullRate } = settings;
  const names = scalings.map(([name]) => name);
  const count = scalings.length * rates.length * ranks.length;
  const values = decode(model.get("_values"), Uint16Array, (count + 1) * seeds * (epochs + 1));
  const measured = Array.from({ length: count + 1 }, (_, place) => read(values, place, settings));
  const at = (scaling, lr, rank) =>
    measured[(names.indexOf(scaling) * rates.length + rates.indexOf(lr)) * ranks.length + ranks.indexOf(rank)];
  const full = measured[count];
  const keep = keeper(model);

  // Les réglages.
  const slider = listSlider("listed-rank", "Rang r", ranks, (rank) => keep({ rank }));
  const menus = {
    scaling: menu("scaling", `Échelle s, pour α\u00a0=\u00a0${settings.alpha}`, scalings, (scaling) => keep({ scaling })),
    lr: menu(
      "lr",
      "Pas d’Adam",
      rates.map((value) => [String(value), rate(value)]),
      (value) => keep({ lr: Number(value) }),
    ),
    network: menu(
      "network",
      "Réseau pesé",
      networks.map(({ name }) => [name, name]),
      (network) => keep({ network }),
    ),
  };
  const prompt = element("p", { class: "lrq-prompt lrq-roomy" }, model.get("_prompt"));
  const sentence = element("p", { class: "lrq-verdict lrq-chained", "data-readout": "verdict" });

  // Les états remarquables.
  const presets = rates
    .filter((_, i) => i === 0 || i === rates.length - 1)
    .flatMap((lr) => ["alpha/r", "alpha"].map((scaling) => ({ rank: 16, scaling, lr })))
    .map((target) => {
      const name = `${target.scaling === "alpha" ? "α" : "α/r"}, rang\u00a0${target.rank} `;
      const word = element("span", { class: "lrq-value" }, `pas\u00a0${rate(target.lr)}`);
      const button = element("button", { type: "button", "data-control": "preset" }, name, word);
      button.addEventListener("click", () => keep(target));
      return { target, button };
    });
  const chips = element(
    "div",
    { class: "lrq-jumps", role: "group", "aria-label": "À essayer" },
    ...presets.map(({ button }) => button),
  );

  // Le dessin des courbes.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const background = element("g", silent);
  const paths = ranks.map(() => element("path", { class: "lrq-curve rank faded lrq-thin", ...silent }));
  const chosen = element("path", { class: "lrq-curve rank", ...silent });
  const whole = element("path", { class: "lrq-curve", ...silent });
  const spread = element("path", { class: "lrq-curve rank faded", ...silent });
  const dot = element("circle", { class: "lrq-dot rank", r: 5, ...silent });
  const labels = { ranks: ranks.map(() => text("rank")), full: text("") };
  const plot = element(
    "svg",
    { class: "lrq-plot lrq-histogram", height: HEIGHT, role: "img" },
    background,
    ...paths,
    whole,
    spread,
    chosen,
    dot,
    ...labels.ranks,
    labels.full,
  );
  const told = element("p", { class: "lrq-note lrq-chained", "data-readout": "spread" });

  // La mémoire.
  const bars = element("svg", { class: "lrq-plot lrq-histogram", role: "img", "data-readout": "memory" });
  const note = element(
    "p",
    { class: "lrq-note" },
    "Octets en float32, activations non comptées\u00a0: 4 par paramètre, gelé ou non\u00a0; pour chacun de ceux que l’on " +
      "entraîne, 4 de gradient et 8 de moments.",
  );
  const code = codePanel();
  root.append(
    prompt,
    sentence,
    element("div", { class: "lrq-settings" }, menus.scaling.node, menus.lr.node, slider.node),
    plot,
    told,
    chips,
    element("div", { class: "lrq-settings" }, menus.network.node),
    bars,
    note,
    code.node,
  );

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);

  function drawCurves(width, { rank, scaling, lr, now }) {
    const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
    const x = linear([0, epochs], [MARGIN.left, right]);
    const log = logarithmic([MISSED[1], MISSED[0]], [MARGIN.top, bottom]);
    const y = (share) => log(1 - share);
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    background.replaceChildren(
      ...LEVELS.flatMap((level) => [
        element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: y(level), y2: y(level) }),
        tick({ x: MARGIN.left - 6, y: y(level) + 4, "text-anchor": "end" }, `${fr(100 * level)}\u00a0%`),
      ]),
      ...[0, 5, 10, 15, 20].map((epoch) =>
        tick({ x: x(epoch), y: bottom + 19, "text-anchor": "middle" }, fr(epoch)),
      ),
      element(
        "text",
        { class: "lrq-title", x: 0, y: 14 },
        width < 420 ? "Chiffres tournés reconnus" : "Chiffres tournés reconnus (échelle logarithmique des manqués)",
      ),
      element("text", { class: "lrq-title", x: right, y: HEIGHT - 6, "text-anchor": "end" }, "époques"),
    );
    const xs = full.mean.map((_, epoch) => x(epoch));
    const curves = ranks.map((each) => at(scaling, lr, each).mean.map(y));
    curves.forEach((ys, i) => set(paths[i], { d: ranks[i] === rank ? null : curve(xs, ys) }));
    set(chosen, { d: curve(xs, curves[ranks.indexOf(rank)]) });
    const reference = full.mean.map(y);
    set(whole, { d: curve(xs, reference) });
    const [low, high] = [y(now.least), y(now.most)].map((end) => end.toFixed(1));
    set(spread, { d: `M${right - 5} ${low}h10m-5 0V${high}m-5 0h10` });
    set(dot, { cx: right, cy: y(now.mean.at(-1)).toFixed(1) });

    // À droite, le rang de chaque courbe : le choisi d'abord, les autres s'il reste de la place.
    const around = {
      bounds: { left: MARGIN.left, right: width, top: 0, bottom: HEIGHT },
      points: [],
      taken: [],
    };
    const order = [...ranks.keys()].sort((i, j) => (ranks[j] === rank) - (ranks[i] === rank) || j - i);
    for (const i of order) {
      const own = ranks[i] === rank;
      const height = curves[i].at(-1) + 4;
      const word = own ? `r\u00a0=\u00a0${ranks[i]}` : String(ranks[i]);
      const crowd = settle([labels.ranks[i]], [word], [[right + 11, height, "start"]], around);
      const hidden = crowd >= 1000;
      if (hidden) around.taken.pop();
      set(labels.ranks[i], {
        class: `lrq-label rank${own ? "" : " lrq-light"}`,
        visibility: hidden ? "hidden" : null,
      });
    }
    // « tout ajuster », le long de sa courbe, loin des autres.
    const along = (ys) => xs.flatMap((left, i) => (i ? [[left, ys[i]], [(left + xs[i - 1]) / 2, (ys[i] + ys[i - 1]) / 2]] : []));
    around.points = [...curves, reference].flatMap(along);
    around.bounds.right = right;
    const places = [4, 6, 8, 10, 12, 14].flatMap((epoch) => [
      [x(epoch), reference[epoch] - 9, "end"],
      [x(epoch), reference[epoch] - 9, "middle"],
      [x(epoch), reference[epoch] + 20, "start"],
    ]);
    settle([labels.full], ["tout ajuster"], places, around);
  }

  /** Deux barres à la même échelle, chacune en trois parts. */
  function drawMemory(width, { lora, whole: all }) {
    const narrow = width < 420;
    const left = narrow ? 0 : BARS.label;
    const step = BARS.height + (narrow ? 30 : BARS.gap);
    const top = BARS.top + (narrow ? 18 : 0);
    const height = top + step + BARS.height + 4;
    const room = width - left - (narrow ? 0 : 84);
    const scale = linear([0, Math.max(sum(all), sum(lora))], [0, room]);
    const opacities = [0.9, 0.6, 0.35];
    const rows = [
      ["tout ajuster", all],
      ["LoRA", lora],
    ];
    set(bars, { width, height, viewBox: `0 0 ${width} ${height}` });
    let from = left;
    const heads = all.map((part, i) => {
      const x = from;
      from += scale(part);
      return tick({ x, y: 13 }, PARTS[i]);
    });
    bars.replaceChildren(
      ...heads,
      ...rows.flatMap(([name, parts], row) => {
        const y = top + row * step;
        let start = left;
        const boxes = parts.map((part, i) => {
          const x = start;
          start += scale(part);
          return element("rect", {
            class: "lrq-bars budget",
            x: x.toFixed(1),
            y,
            width: Math.max(0.5, scale(part) - 1.5).toFixed(1),
            height: BARS.height,
            "fill-opacity": opacities[i],
          });
        });
        const ratio = sum(all) / sum(parts);
        const total = `${octets(sum(parts))}${row ? ` (÷\u00a0${fr(ratio, 1)})` : ""}`;
        return [
          ...boxes,
          ...(narrow
            ? [tick({ x: 0, y: y - 5 }, name), value(width, y - 5, total, "end")]
            : [tick({ x: left - 10, y: y + 16, "text-anchor": "end" }, name), value(start + 8, y + 16, total, "start")]),
        ];
      }),
    );
  }
  const value = (x, y, word, anchor) =>
    element("text", { class: "lrq-label budget", x, y, "text-anchor": anchor }, word);

  return (width) => {
    const rank = possible(model, "rank", (wanted) => closest(ranks, wanted));
    const lr = possible(model, "lr", (wanted) => closest(rates, wanted));
    const [scaling, name] = ["scaling", "network"].map((trait) => model.get(trait));
    const network = networks.find((each) => each.name === name);
    const now = at(scaling, lr, rank);
    const trained = network.trained[ranks.indexOf(rank)];
    const state = {
      rank,
      scaling,
      lr,
      now,
      full,
      trained,
      total: network.total,
      share: trained / network.total,
      network: name,
      code: network.code,
      lora: trainingBytes(network.total, trained),
      whole: trainingBytes(0, network.total),
    };
    drawCurves(width, state);
    drawMemory(width, state);
    sentence.replaceChildren(
      ...verdict(state).map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );
    slider.update(rank, fr(rank));
    menus.scaling.update(scaling);
    menus.lr.update(String(lr));
    menus.network.update(name);
    for (const { target, button } of presets)
      set(button, { "aria-pressed": target.rank === rank && target.scaling === scaling && target.lr === lr });
    const [first, all] = [now.mean[1], full.mean[1]].map(reached);
    told.textContent =
      `Moyennes de ${fr(seeds)}\u00a0graines, de ${reached(now.least)} à ${reached(now.most)} à la fin. ` +
      `Après une seule époque\u00a0: ${first}, et ${all} en ajustant tout, au pas ${rate(fullRate)}.`;
    const parts = (of) => of.map((part, i) => `${PARTS[i]} ${octets(part)}`).join(", ");
    const [less, more] = [sum(state.lora), sum(state.whole)].map(octets);
    set(bars, {
      "aria-label": `Mémoire de ${name}\u00a0: ${less} avec LoRA (${parts(state.lora)})\u00a0; ${more} en ajustant tout (${parts(state.whole)}).`,
    });
    code.update(snippet(state, settings));
    const said = sentence.textContent;
    const scale = scalings[names.indexOf(scaling)][1];
    set(plot, { "aria-label": `Chiffres reconnus, époque après époque, échelle ${scale}, pas ${rate(lr)}. ${said}` });
    return `Échelle ${scale}, pas ${rate(lr)}. ${said} Mémoire\u00a0: ${less}, au lieu de ${more}.`;
  };
}

export default explorer({
  kind: "lora",
  label: "LoRA : rang, échelle et mémoire",
  traits: ["rank", "scaling", "lr", "network"],
  build,
});
