// La propagation d'une erreur : après chaque couche d'un réseau tronqué, l'erreur mesurée et sa borne.
import {
  closest,
  codePanel,
  curve,
  decode,
  element,
  explorer,
  fr,
  keeper,
  listSlider,
  logarithmic,
  possible,
  powers,
  quantity,
  set,
  settle,
} from "./figure.js";
import { propagationBound } from "./numerics.js";

const HEIGHT = 356;
const MARGIN = { left: 58, right: 8, top: 42, bottom: 46 };
const [FLOOR, CEILING] = [5e-3, 30]; // l'échelle des erreurs : de 0,6 % à 2 147 % aux rangs mesurés
const GAP = 24; // de la dernière graduation à l'erreur nulle, que l'échelle logarithmique n'atteint pas
const TRAITS = ["rank1", "rank2", "rank3"];
const ORDINALS = ["première", "deuxième", "troisième"];

/** Une erreur, à trois chiffres environ. */
const inPercent = (share) => `${fr(100 * share, share === 0 || share >= 1 ? 0 : share < 0.1 ? 2 : 1)}\u00a0%`;
const inCode = (shares, digits) => shares.map((share) => `${(100 * share).toFixed(digits)} %`).join(", ");
const shape = ({ shape: [m, n] }) => `, ${m}\u00a0×\u00a0${n}`;
const accuracy = (correct, images) => `${fr((100 * correct) / images, 1)}\u00a0%`;

/** Ce que les mesures disent de trois rangs. */
function analyse(layers, values) {
  const sizes = layers.map(({ ranks }) => ranks.length);
  const [a, b, c] = sizes;
  const starts = [0, a, a + a * b, a + a * b + a * b * c]; // des erreurs de chaque couche, puis des succès
  const last = sizes.map((size) => size - 1);
  const after = (layer, places) => {
    const flat = places.slice(0, layer + 1).reduce((found, place, i) => found * sizes[i] + place, 0);
    return values[starts[layer] + flat];
  };
  const correct = (places) => values[starts[3] + (places[0] * b + places[1]) * c + places[2]];
  return (ranks) => {
    const places = layers.map((layer, i) => layer.ranks.indexOf(ranks[i]));
    const own = layers.map(({ dropped, input }, i) => dropped[places[i]] * input);
    const gains = layers.map(({ gain }) => gain);
    const bounds = propagationBound(gains, own).map((bound, i) => bound / layers[i].output);
    const errors = layers.map((_, i) => after(i, places));
    const only = (i) => last.map((whole, j) => (i === j ? places[i] : whole));
    const alone = layers.map((_, i) => after(2, only(i)));
    return {
      ranks,
      errors,
      bounds,
      alone,
      cut: places.map((place, i) => place < last[i]),
      quadrature: Math.hypot(...alone),
      times: errors[2] > 0 ? bounds[2] / errors[2] : 1,
      correct: correct(places),
      whole: correct(last),
    };
  };
}

/** La phrase du verdict, en morceaux : texte simple, ou [texte, notion]. */
function verdict({ errors, bounds, cut, quadrature, times: ratio, correct, whole }, images) {
  const reached = [accuracy(correct, images), "rank"];
  if (!cut.includes(true)) {
    const head = "Rien n’est tronqué\u00a0: aucune erreur, et la borne le sait. Chiffres reconnus\u00a0: ";
    return [head, reached, "."];
  }
  return [
    "En sortie, ",
    [inPercent(errors[2]), "error"],
    " d’erreur. La borne monte à ",
    [inPercent(bounds[2]), "theory"],
    `, ${fr(ratio, 1)}\u00a0fois trop haut`,
    ...(cut.filter(Boolean).length > 1 ? ["\u00a0; la quadrature estime ", [inPercent(quadrature), "theory"]] : []),
    ". Chiffres reconnus\u00a0: ",
    reached,
    correct === whole ? ", comme avant." : `, au lieu de ${accuracy(whole, images)}.`,
  ];
}

/** Le code qui retrouve ces nombres. */
function snippet(layers, { ranks, errors, bounds, cut, quadrature, correct }, images) {
  const kept = layers.map(({ name }, i) => `${name}=${ranks[i]}`).filter((_, i) => cut[i]);
  return [
    "import math",
    "",
    "import lrq",
    "from lrq import models",
    "",
    'network = models.load_digits_network("mlp").requires_grad_(False)',
    "_, (x, y) = models.load_digits_data()",
    "",
    "",
    "def truncated(**ranks):",
    '    """Le réseau, ces couches-là remplacées par leur SVD tronquée."""',
    "    convert = {",
    "        name: lambda layer, rank=rank: lrq.FactorizedLinear.from_linear(layer, rank)",
    "        for name, rank in ranks.items()",
    "    }",
    "    return lrq.replace_linears(network, convert)",
    "",
    "",
    "def errors(**ranks):",
    '    """L’erreur relative après chaque couche."""',
    '    found = lrq.analyze_cumulative_error(network, truncated(**ranks), x)["layer_errors"]',
    "    return list(found.values())",
    "",
    "",
    `ranks = dict(${kept.join(", ")})`,
    ['print(", ".join(f"{100 * error:.2f} %" for error in errors(**ranks)))', inCode(errors, 2)],
    ['print(f"{100 * models.accuracy(truncated(**ranks), x, y):.1f} %")', inCode([correct / images], 1)],
    "",
    "# la borne, sur les activations du réseau d’origine",
    "h, gains, own, sizes = x.flatten(1), [], [], []",
    "for name, layer in network.named_children():",
    "    S = lrq.singular_values(layer.weight)",
    "    gains.append(float(S[0]))",
    "    own.append(float(S[ranks[name]] * h.norm()) if name in ranks else 0.0)",
    "    z = layer(h)",
    "    sizes.append(float(z.norm()))",
    "    h = z.relu()",
    "bounds = lrq.propagation_bound(gains, own)",
    ['print(", ".join(f"{100 * bound / size:.1f} %" for bound, size in zip(bounds, sizes)))', inCode(bounds, 1)],
    "",
    "# la quadrature : chaque couche tronquée seule",
    "alone = [errors(**{name: rank})[-1] for name, rank in ranks.items()]",
    ['print(f"{100 * math.hypot(*alone):.2f} %")', inCode([quadrature], 2)],
  ];
}

function build(root, model) {
  const layers = model.get("_layers");
  const images = model.get("_images");
  const [a, b, c] = layers.map(({ ranks }) => ranks.length);
  const measured = analyse(layers, decode(model.get("_values"), Float32Array, a + a * b + 2 * a * b * c));
  const whole = layers.map(({ ranks }) => ranks.at(-1));
  const keep = keeper(model);
  const said = (rank, i) => (rank === whole[i] ? "entière" : `rang\u00a0${fr(rank)}`);

  const prompt = element("p", { class: "lrq-prompt" }, model.get("_prompt"));
  const sentence = element("p", { class: "lrq-verdict lrq-chained", "data-readout": "verdict" });

  // Le dessin.
  const silent = { "aria-hidden": "true" };
  const text = (kind) => element("text", { class: `lrq-label ${kind}`, ...silent });
  const background = element("g", silent);
  const gap = element("path", { class: "lrq-curve lrq-thin", ...silent });
  const lines = {
    bounds: element("path", { class: "lrq-curve theory", ...silent }),
    errors: element("path", { class: "lrq-curve error", ...silent }),
  };
  const dots = {
    bounds: layers.map(() => element("circle", { class: "lrq-ring lrq-thin theory", r: 5, ...silent })),
    errors: layers.map(() => element("circle", { class: "lrq-dot error", r: 6, ...silent })),
  };
  const ring = element("circle", { class: "lrq-ring lrq-thin lrq-dashed theory", r: 10, ...silent });
  const labels = {
    errors: layers.map(() => [text("error"), text("error")]),
    bounds: layers.map(() => [text("theory"), text("theory")]),
    gap: text(""),
    ring: [text("theory"), text("theory")],
  };
  const plot = element(
    "svg",
    { class: "lrq-plot lrq-histogram", height: HEIGHT, role: "img" },
    background,
    gap,
    ...Object.values(lines),
    ...dots.bounds,
    ring,
    ...dots.errors,
    ...Object.values(labels).flat(2),
  );

  const sliders = layers.map(({ ranks }, i) =>
    listSlider(TRAITS[i], `Couche\u00a0${i + 1}`, ranks, (rank) => keep({ [TRAITS[i]]: rank })),
  );

  // Les états remarquables.
  const presets = [
    ["les deux premières", [16, 16, whole[2]]],
    ["première seule", [16, whole[1], whole[2]]],
    ["deuxième seule", [whole[0], 16, whole[2]]],
    ["dernière seule", [whole[0], whole[1], 8]],
  ].map(([name, ranks]) => {
    const rank = Math.min(...ranks.filter((value, i) => value < whole[i]));
    const word = element("span", { class: "lrq-value" }, `rang\u00a0${rank}`);
    const button = element("button", { type: "button", "data-control": "preset" }, `${name} `, word);
    button.addEventListener("click", () => keep(Object.fromEntries(TRAITS.map((trait, i) => [trait, ranks[i]]))));
    return { ranks, button };
  });
  const chips = element(
    "div",
    { class: "lrq-jumps", role: "group", "aria-label": "Couches à tronquer" },
    ...presets.map(({ button }) => button),
  );

  const told = element("p", { class: "lrq-note lrq-chained", "data-readout": "alone" });
  const note = element(
    "p",
    { class: "lrq-note" },
    `Erreur et borne sont relatives à la sortie de la couche, sur ${fr(images)}\u00a0images. ` +
      "La borne suppose le pire à chaque couche\u00a0: l’erreur reçue, multipliée par ‖Ŵ‖₂\u00a0=\u00a0σ₁ " +
      `(ici ${layers.map(({ gain }) => fr(gain, 2)).join("\u00a0; ")}), ` +
      "et ‖E‖₂\u00a0‖h‖\u00a0=\u00a0σᵣ₊₁\u00a0‖h‖ en plus. " +
      "Au-delà de 100\u00a0%, elle ne promet rien\u00a0: une sortie nulle ferait aussi bien.",
  );
  const code = codePanel();
  root.append(
    prompt,
    sentence,
    plot,
    element("div", { class: "lrq-settings" }, ...sliders.map(({ node }) => node)),
    chips,
    told,
    note,
    code.node,
  );

  const tick = (attributes, word) => element("text", { class: "lrq-tick", ...attributes }, word);

  function drawPlot(width, { ranks, errors, bounds, cut, quadrature, times: ratio }) {
    const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
    const inset = (right - MARGIN.left) * 0.17;
    const xs = [0, 0.5, 1].map((part) => MARGIN.left + inset + part * (right - MARGIN.left - 2 * inset));
    const log = logarithmic([FLOOR, CEILING], [bottom - GAP, MARGIN.top]);
    const y = (share) => (share === 0 ? bottom : log(share));
    set(plot, { width, viewBox: `0 0 ${width} ${HEIGHT}` });
    background.replaceChildren(
      ...powers(FLOOR, CEILING).flatMap((value) => [
        element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
        tick({ x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, `${quantity(100 * value)}\u00a0%`),
      ]),
      element("line", { class: "lrq-grid", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
      tick({ x: MARGIN.left - 6, y: bottom + 4, "text-anchor": "end" }, "0\u00a0%"),
      ...xs.flatMap((x, i) => [
        tick(
          { x, y: bottom + 24, "text-anchor": "middle" },
          `couche\u00a0${i + 1}${width < 560 ? "" : shape(layers[i])}`,
        ),
        element(
          "text",
          { class: cut[i] ? "lrq-label rank" : "lrq-tick", x, y: bottom + 41, "text-anchor": "middle" },
          said(ranks[i], i),
        ),
      ]),
      element(
        "text",
        { class: "lrq-title", x: 0, y: 14 },
        width < 420 ? "Erreur relative (log)" : "Erreur relative après chaque couche (échelle logarithmique)",
      ),
    );

    const places = { errors: errors.map(y), bounds: bounds.map(y) };
    for (const [name, ys] of Object.entries(places)) {
      set(lines[name], { d: curve(xs, ys) });
      dots[name].forEach((dot, i) => set(dot, { cx: xs[i].toFixed(1), cy: ys[i].toFixed(1) }));
    }
    const estimated = cut.filter(Boolean).length > 1;
    const level = y(quadrature);
    set(ring, { cx: xs[2].toFixed(1), cy: level.toFixed(1), visibility: estimated ? null : "hidden" });
    const [low, high] = [places.errors[2] - 11, places.bounds[2] + 6];
    const apart = low - high > 8;
    set(gap, { d: apart ? `M${xs[2].toFixed(1)} ${low.toFixed(1)}V${high.toFixed(1)}` : null });

    // Les étiquettes : chacune sa place, loin des courbes.
    const along = (ys) =>
      xs.slice(1).flatMap((x, i) =>
        Array.from({ length: 25 }, (_, k) => [xs[i] + ((x - xs[i]) * k) / 24, ys[i] + ((ys[i + 1] - ys[i]) * k) / 24]),
      );
    const column = Array.from({ length: apart ? 20 : 0 }, (_, k) => [xs[2], high + ((low - high) * k) / 19]);
    const box = (x, y, reach) => ({ left: x - reach, right: x + reach, top: y - reach, bottom: y + reach });
    const around = {
      bounds: { left: MARGIN.left + 2, right, top: 18, bottom: bottom + 8 },
      points: [...along(places.errors), ...along(places.bounds), ...column],
      taken: [
        ...xs.flatMap((x, i) => [box(x, places.errors[i], 6), box(x, places.bounds[i], 5)]),
        ...(estimated ? [box(xs[2], level, 9)] : []),
      ],
    };
    /** Autour d'un point, du plus proche au plus loin ; `rows` : combien de lignes a le mot. */
    const beside = (x, height, rows, furthest) =>
      [0, 10, 22].slice(0, furthest).flatMap((far) => {
        const up = -14 - far - 16 * (rows - 1);
        const middle = 5 - 8 * (rows - 1);
        return [
          [x, height + up, "middle"],
          [x, height + 24 + far, "middle"],
          [x + 14 + far, height + middle, "start"],
          [x - 14 - far, height + middle, "end"],
          [x + 11, height + up, "start"],
          [x - 11, height + up, "end"],
          [x + 11, height + 24 + far, "start"],
          [x - 11, height + 24 + far, "end"],
        ];
      });
    /** Le mot et le nombre, sur une ligne s'il y a la place, sur deux à l'étroit ; rien plutôt qu'un fouillis. */
    const place = (pair, word, value, x, height, tolerance, furthest = 3) => {
      const forms = word ? [[`${word} ${value}`], [word, value], [value]] : [[value]];
      const others = around.taken;
      let crowd = Infinity;
      let shown = 0;
      for (const form of forms) {
        around.taken = [...others];
        crowd = settle(pair.slice(0, form.length), form, beside(x, height, form.length, furthest), around);
        shown = form.length;
        if (crowd <= 0) break;
      }
      if (crowd > tolerance) {
        around.taken = others;
        shown = 0;
      }
      pair.forEach((line, k) => set(line, { visibility: k < shown ? null : "hidden" }));
    };
    for (const i of [2, 0, 1]) {
      place(labels.errors[i], i === 2 ? "mesurée" : "", inPercent(errors[i]), xs[i], places.errors[i], 999);
      const word = i === 2 ? "borne" : "";
      if (bounds[i] > 0) place(labels.bounds[i], word, inPercent(bounds[i]), xs[i], places.bounds[i], 999);
      else for (const line of labels.bounds[i]) set(line, { visibility: "hidden" });
    }
    if (estimated) place(labels.ring, "quadrature", inPercent(quadrature), xs[2], level, 0, 1);
    else for (const line of labels.ring) set(line, { visibility: "hidden" });
    const middle = (low + high) / 2 + 5;
    const crowd = apart
      ? settle(
          [labels.gap],
          [`×\u00a0${fr(ratio, 1)}`],
          [0, -16, 16, -32, 32].flatMap((dy) => [
            [xs[2] + 8, middle + dy, "start"],
            [xs[2] - 8, middle + dy, "end"],
          ]),
          around,
        )
      : Infinity;
    set(labels.gap, { visibility: crowd > 0 ? "hidden" : null });
  }

  return (width) => {
    const ranks = layers.map((layer, i) => possible(model, TRAITS[i], (value) => closest(layer.ranks, value)));
    const state = measured(ranks);
    drawPlot(width, state);
    sentence.replaceChildren(
      ...verdict(state, images).map((part) =>
        Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part,
      ),
    );
    sliders.forEach((slider, i) => slider.update(ranks[i], said(ranks[i], i)));
    for (const { ranks: target, button } of presets)
      set(button, { "aria-pressed": target.every((rank, i) => rank === ranks[i]) });
    const costs = state.alone.map((error, i) => [ORDINALS[i], error]).filter((_, i) => state.cut[i]);
    told.textContent = costs.length
      ? `Seule tronquée, ${costs
          .map(([name, error], i) => `la ${name}${i ? "," : " donne"} ${inPercent(error)}${i ? "" : " en sortie"}`)
          .join("\u00a0; ")}.`
      : "Aucune couche n’est tronquée.";
    code.update(snippet(layers, state, images));
    const heard = sentence.textContent;
    const after = ranks.map((rank, i) => `couche\u00a0${i + 1}, ${said(rank, i)}`);
    const numbers = state.errors.map((error, i) => `${inPercent(error)}, borne ${inPercent(state.bounds[i])}`);
    const shown = after.map((layer, i) => `${layer}\u00a0: ${numbers[i]}`).join("\u00a0; ");
    set(plot, { "aria-label": `Erreur relative après chaque couche. ${shown}.` });
    return `${after.join("\u00a0; ")}. ${heard}`;
  };
}

export default explorer({
  kind: "propagation",
  label: "Propagation de l’erreur : mesure et borne",
  traits: TRAITS,
  build,
});
