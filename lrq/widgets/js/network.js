// Un vrai réseau, comprimé par le lecteur : il classe les chiffres de test, et celui qu'on dessine.
import {
  bytes,
  clamp,
  codePanel,
  decode,
  element,
  explorer,
  fr,
  listSlider,
  menu,
  percent,
  possible,
  set,
  slider,
} from "./figure.js";
import {
  argmax,
  arrange,
  compressedBits,
  compressedLayer,
  confusionMatrix,
  ink,
  networkScores,
  secondFactor,
  unpackBits,
  worthTruncating,
} from "./numerics.js";

const BITS = [1, 2, 3, 4, 5, 6, 7, 8, 32];
const GRANULARITIES = [
  ["tensor", "chaque matrice", "lrq.PerTensor()"],
  ["row", "chaque ligne", "lrq.PerChannel(0)"],
];
const SIDE = 8; // d'une image
const PIXELS = SIDE * SIDE;
const PAD = 256; // points du dessin
const SHOWN = 12; // images d'une case de la matrice
const SLICE = 8; // millisecondes de calcul par image d'affichage : un curseur tiré suit le doigt

const plural = (count) => (count > 1 ? "s" : "");
const counted = (count, word) => `${fr(count)}\u00a0${word}${plural(count)}`;
const inBits = (bits) => (bits === 32 ? "32\u00a0bits" : counted(bits, "bit"));

/** Une table dont on parcourt les cases aux flèches : `build(row, column)` rend une case, `act(row, column)` répond au
 *  clic, `type(event, row, column)` aux autres touches. */
function cells(rows, columns, build, { move, act, type = () => {} }) {
  const all = Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => build(row, column)),
  );
  const focus = (row, column) => {
    for (const cell of all.flat()) cell.tabIndex = -1;
    all[row][column].tabIndex = 0;
  };
  all.forEach((line, row) =>
    line.forEach((cell, column) => {
      cell.addEventListener("click", () => {
        focus(row, column);
        act(row, column);
      });
      cell.addEventListener("keydown", (event) => {
        const [down, right] =
          { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
        if (down === undefined) return type(event, row, column);
        event.preventDefault();
        event.stopPropagation();
        const next = [clamp(row + down, 0, rows - 1), clamp(column + right, 0, columns - 1)];
        if (all[next[0]][next[1]].hidden) return;
        focus(...next);
        all[next[0]][next[1]].focus();
        move(...next);
      });
    }),
  );
  return { all, focus };
}

/** La couleur de l'encre, demandée une fois par thème : la demander oblige le navigateur à refaire tous les styles. */
let [inkTheme, inkColor] = [null, null];
function inkOf(canvas) {
  const theme = `${document.documentElement.dataset.theme} ${document.body.dataset.jpThemeLight}`;
  // hors de la page, dans JupyterLab au départ, un élément n'a pas encore de couleur
  if (theme !== inkTheme || !inkColor) [inkTheme, inkColor] = [theme, getComputedStyle(canvas).color];
  return inkColor;
}

/** Peint une image 8×8 : plus le compte est grand, plus l'encre est pleine. */
function paint(canvas, counts) {
  const brush = canvas.getContext("2d");
  const cell = canvas.width / SIDE;
  brush.clearRect(0, 0, canvas.width, canvas.height);
  brush.fillStyle = inkOf(canvas);
  counts.forEach((count, i) => {
    brush.globalAlpha = count / 16;
    brush.fillRect((i % SIDE) * cell, Math.floor(i / SIDE) * cell, cell, cell);
  });
  brush.globalAlpha = 1;
}

/** Le réseau et les images que Python a rangés dans l'état de la figure, et ce qu'un réglage en fait. */
export function unpack(get) {
  const layers = get("_layers");
  const sizes = ["columns", "most", null].map((side) => layers.map((layer) => layer.rows * (side ? layer[side] : 1)));
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const numbers = decode(get("_weights"), Float32Array, sum(sizes.flat()));
  let offset = 0;
  const [weights, firsts, biases] = sizes.map((some) => some.map((size) => numbers.subarray(offset, (offset += size))));
  const seconds = layers.map(({ rows, columns }, i) => secondFactor(firsts[i], weights[i], rows, columns));
  const labels = Array.from(get("_labels"), Number);
  const packed = decode(get("_images"), Uint8Array, Math.ceil((labels.length * PIXELS * 5) / 8));
  const images = unpackBits(packed, 5, labels.length * PIXELS);
  return {
    layers,
    labels,
    whole: 1 + Math.max(...layers.map(({ most }) => most)), // à ce rang, rien n'est tronqué
    imageOf: (i) => images.subarray(i * PIXELS, (i + 1) * PIXELS),
    /** Les noyaux du réseau comprimé, prêts pour networkScores. */
    compile: ({ rank, bits, granularity }) =>
      layers.map(({ rows, columns }, i) => {
        const byRow = granularity === "row";
        const [first, mixer] = compressedLayer(weights[i], firsts[i], seconds[i], rows, columns, rank, bits, byRow);
        const inputs = i ? layers[i - 1].rows : 1;
        const kernel = arrange(first, first.length / columns, inputs, columns / inputs);
        return mixer ? [kernel, arrange(mixer, rows, rank, 1)] : [kernel];
      }),
    /** Les bits de chaque couche, biais compris. */
    weigh: ({ rank, bits, granularity }) =>
      layers.map(({ rows, columns }) => compressedBits(rows, columns, rank, bits, granularity === "row") + 32 * rows),
    scoresOf: (kernels, counts) =>
      networkScores(
        Float64Array.from(counts, (count) => count / 16),
        kernels,
        biases,
      ),
  };
}

function build(root, model, redraw) {
  const { layers, labels, whole, imageOf, compile, weigh, scoresOf } = unpack((name) => model.get(name));
  const keyOf = ({ rank, bits, granularity }) => `${rank} ${bits} ${granularity}`;
  const total = (settings) => weigh(settings).reduce((sum, bits) => sum + bits, 0);
  const ORIGINAL = { rank: whole, bits: 32, granularity: "row" };
  const original = compile(ORIGINAL);
  const originalBits = total(ORIGINAL);

  // Les 450 images, par tranches : une lecture commencée s'achève, puis la suivante prend les réglages du moment.
  const known = new Map();
  let [current, job] = [null, null];
  const compiled = (settings) => {
    if (current?.key !== keyOf(settings)) current = { key: keyOf(settings), kernels: compile(settings) };
    return current.kernels;
  };
  const advance = () => {
    const start = performance.now();
    while (job.read.length < labels.length && performance.now() - start < SLICE)
      for (let i = 0; i < 3 && job.read.length < labels.length; i++)
        job.read.push(argmax(scoresOf(job.kernels, imageOf(job.read.length))));
    if (job.read.length < labels.length) return requestAnimationFrame(advance);
    const { settings, read } = job;
    known.set(keyOf(settings), {
      settings,
      read,
      right: read.filter((digit, i) => digit === labels[i]).length,
      confusion: confusionMatrix(labels, read),
      bits: total(settings),
    });
    job = null;
    redraw();
  };
  const request = (settings) => {
    if (known.has(keyOf(settings)) || job) return;
    job = { settings, kernels: compiled(settings), read: [] };
    requestAnimationFrame(advance);
  };

  const keep = (traits, save = true) => {
    for (const [trait, value] of Object.entries(traits)) model.set(trait, value);
    if (save) model.save_changes();
  };

  // --- Les réglages ---
  const prompt = element(
    "p",
    { class: "lrq-prompt" },
    "À essayer\u00a0: donnez un bit de plus, ou choisissez «\u00a0sans tronquer\u00a0». Lequel retrouve le plus d’images, et pour combien d’octets\u00a0? Puis dessinez un chiffre, et baissez le rang jusqu’à ce que le réseau s’y trompe.",
  );
  const sentence = element("p", { class: "lrq-verdict lrq-network", "data-readout": "verdict" });
  const gesture = element("p", { class: "lrq-gesture", "data-readout": "gesture" });
  const rankSlider = slider("rank", "Rang r", 10, (rank) => keep({ rank }));
  const bitsSlider = listSlider("n_bits", "Bits b", BITS, (n_bits) => keep({ n_bits }));
  const sharing = menu("granularity", "Une échelle pour", GRANULARITIES, (granularity) => keep({ granularity }));
  const presets = [
    ["sans tronquer", { rank: whole }],
    ["32\u00a0bits", { n_bits: 32 }],
    ["l’original", { rank: whole, n_bits: 32 }],
  ].map(([word, traits]) => {
    const button = element("button", { type: "button", "data-control": "preset" }, word);
    button.addEventListener("click", () => keep(traits));
    return [button, traits];
  });
  const buttons = element(
    "div",
    { class: "lrq-jumps", role: "group", "aria-label": "Réglages remarquables" },
    ...presets.map(([button]) => button),
  );
  let held = false; // un curseur que l'on tire : le geste ne finit qu'à la main levée
  root.addEventListener("pointerdown", (event) => (held = event.target.type === "range" && "début"));
  for (const end of ["pointerup", "pointercancel"]) root.addEventListener(end, () => (held = false));

  // --- Le chiffre du lecteur ---
  let [strokes, inked] = [null, null]; // les traits, et l'image qu'ils ont donnée
  const drawing = () => model.get("_drawing");
  const seenNow = () => (drawing().length ? drawing() : Array.from(imageOf(model.get("digit"))));
  const ownStrokes = () => (strokes && String(drawing()) === String(inked) ? strokes : null);
  const show = (digit) => {
    strokes = null;
    keep({ digit, _drawing: [] });
  };
  const redrawn = (counts, save) => {
    inked = Array.from(counts);
    keep({ _drawing: inked }, save);
  };
  const pad = element("canvas", {
    class: "lrq-pad",
    width: PAD,
    height: PAD,
    role: "img",
    "aria-label": "Zone de dessin, à la souris ou au doigt ; au clavier, la grille voisine",
  });
  const extend = (event) => {
    const { left, top, width, height } = pad.getBoundingClientRect();
    strokes.at(-1).push((PAD * (event.clientX - left)) / width, (PAD * (event.clientY - top)) / height);
    redrawn(ink(strokes), false);
  };
  pad.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return;
    strokes = [...(ownStrokes() ?? []), []];
    pad.setPointerCapture(event.pointerId);
    extend(event);
  });
  pad.addEventListener("pointermove", (event) => pad.hasPointerCapture(event.pointerId) && extend(event));
  pad.addEventListener("lostpointercapture", () => model.save_changes());

  const toggle = (row, column) => {
    const counts = seenNow();
    counts[SIDE * row + column] = counts[SIDE * row + column] > 8 ? 0 : 16;
    strokes = null;
    redrawn(counts, true);
  };
  const seen = cells(SIDE, SIDE, () => element("div", { role: "gridcell", tabindex: -1 }), {
    move: () => {},
    act: toggle,
    type(event, row, column) {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      toggle(row, column);
    },
  });
  seen.focus(0, 0);
  const seenGrid = element(
    "div",
    {
      class: "lrq-seen",
      role: "grid",
      "aria-label": "L’image que voit le réseau, 8 × 8 : les flèches, puis espace pour noircir ou effacer une case",
      "data-readout": "seen",
      "data-lm-suppress-shortcuts": "true",
    },
    ...seen.all.map((line) => element("div", { role: "row" }, ...line)),
  );
  const button = (control, word, act) => {
    const node = element("button", { type: "button", "data-control": control }, word);
    node.addEventListener("click", act);
    return node;
  };
  const clear = () => {
    strokes = [];
    redrawn(new Uint8Array(PIXELS), true);
  };
  const reading = element("p", { class: "lrq-reading", "data-readout": "reading" });
  const scoreRows = Array.from({ length: 10 }, (_, digit) => {
    const [bar, mark] = [element("div", { class: "lrq-bar" }), element("div", { class: "lrq-tick-original" })];
    const value = element("td");
    const node = element(
      "tr",
      {},
      element("th", { scope: "row" }, digit),
      element("td", {}, element("div", { class: "lrq-track-score", "aria-hidden": "true" }, bar, mark)),
      value,
    );
    return { node, bar, mark, value };
  });
  const scoreTable = element(
    "table",
    { class: "lrq-scores", "aria-label": "Les dix scores", "data-readout": "scores" },
    element("tbody", {}, ...scoreRows.map(({ node }) => node)),
  );
  const heading = (text) => element("p", { class: "lrq-heading" }, text);
  const digitPanel = element(
    "div",
    { class: "lrq-halves" },
    element(
      "div",
      {},
      heading("Votre chiffre\u00a0: dessinez ici"),
      element(
        "div",
        { class: "lrq-drawn" },
        pad,
        element(
          "div",
          {},
          seenGrid,
          element("p", { class: "lrq-caption" }, "ce que le réseau en voit, 8\u00a0×\u00a08"),
        ),
      ),
      element(
        "div",
        { class: "lrq-jumps" },
        button("clear", "Effacer", clear),
        button("next", "Un autre chiffre du test", () => show((model.get("digit") + 1) % labels.length)),
      ),
    ),
    element(
      "div",
      {},
      reading,
      scoreTable,
      element("p", { class: "lrq-caption" }, "Les dix scores\u00a0; en tirets, ceux de l’original."),
    ),
  );

  // --- La matrice de confusion et ses images ---
  let picked = null; // [vrai, lu], une fois choisi ; d'ici là, la confusion la plus fréquente
  const choose = (row, column) => {
    picked = [row, column];
    redraw();
  };
  const matrix = cells(10, 10, () => element("td", { role: "gridcell", tabindex: -1 }), { move: choose, act: choose });
  const digits = Array.from({ length: 10 }, (_, digit) => digit);
  const table = element(
    "table",
    {
      class: "lrq-confusion",
      role: "grid",
      "aria-label": "Matrice de confusion : une ligne par chiffre écrit, une colonne par chiffre lu",
      "data-control": "confusion",
      "data-readout": "confusion",
      "data-lm-suppress-shortcuts": "true",
    },
    element(
      "thead",
      {},
      element(
        "tr",
        { role: "row" },
        element("th", { role: "columnheader", "aria-label": "écrit, lu" }, "↓→"),
        ...digits.map((digit) => element("th", { role: "columnheader", scope: "col" }, digit)),
      ),
    ),
    element(
      "tbody",
      {},
      ...matrix.all.map((line, digit) =>
        element("tr", { role: "row" }, element("th", { role: "rowheader", scope: "row" }, digit), ...line),
      ),
    ),
  );
  const title = element("p", { class: "lrq-told", "data-readout": "cell" });
  let listed = [];
  const thumbs = cells(
    1,
    SHOWN,
    () => element("div", { role: "option", tabindex: -1, hidden: "" }, element("canvas", { width: 48, height: 48 })),
    {
      move: () => {},
      act: (_, place) => show(listed[place]),
      type(event, _, place) {
        if (event.key !== " " && event.key !== "Enter") return;
        event.preventDefault();
        show(listed[place]);
      },
    },
  );
  const strip = element(
    "div",
    { class: "lrq-strip", role: "listbox", "aria-label": "Images de cette case", "data-control": "strip" },
    ...thumbs.all[0],
  );
  const layerRows = layers.map(({ name, rows, columns }) => {
    const [kept, size] = [element("td"), element("td")];
    const shape = element("span", { class: "lrq-value" }, `${rows}\u00a0×\u00a0${columns}`);
    return { kept, size, node: element("tr", {}, element("th", { scope: "row" }, `${name} `, shape), kept, size) };
  });
  const layerTable = element(
    "table",
    { class: "lrq-kept", "data-readout": "layers" },
    element(
      "thead",
      {},
      element("tr", {}, ...["Couche", "Gardée", "Octets"].map((word) => element("th", { scope: "col" }, word))),
    ),
    element("tbody", {}, ...layerRows.map(({ node }) => node)),
  );
  const confusionPanel = element(
    "div",
    { class: "lrq-halves" },
    element("div", {}, heading("Écrits (lignes), lus (colonnes)"), table),
    element("div", {}, title, strip, layerTable),
  );
  const code = codePanel();
  root.append(
    prompt,
    sentence,
    gesture,
    element("div", { class: "lrq-settings" }, rankSlider.node, bitsSlider.node),
    element("div", { class: "lrq-settings" }, sharing.node, buttons),
    digitPanel,
    confusionPanel,
    code.node,
  );

  const write = (node, parts) =>
    node.replaceChildren(
      ...parts.map((part) => (Array.isArray(part) ? element("strong", { class: part[1] }, part[0]) : part)),
    );

  function showResult({ settings: { rank, bits }, right, bits: size }) {
    const state =
      rank === whole
        ? bits === 32
          ? "Tel quel"
          : `Sans tronquer, sur ${inBits(bits)}`
        : `Au rang\u00a0${rank}, ${bits === 32 ? "en" : "sur"} ${inBits(bits)}`;
    const times = `${fr(originalBits / size, size < originalBits / 1.05 ? 1 : 2)} fois moins que l’original`;
    write(sentence, [
      `${state}, ce réseau pèse `,
      [`${fr(size / 8)}\u00a0octets`, "bits"],
      ...(size < originalBits ? [", ", [times, "budget"]] : []),
      ". Il lit bien ",
      [`${fr(right)}\u00a0chiffres sur ${fr(labels.length)}`, "rank"],
      ", soit ",
      [percent(right / labels.length), "rank"],
      ".",
    ]);
  }

  function showGesture(now, before) {
    if (!before || before === now) {
      gesture.textContent = "Bougez un curseur\u00a0: ici s’écrira ce que votre geste a changé.";
      return;
    }
    const change = (one, other) => one.read.filter((digit, i) => digit === labels[i] && other.read[i] !== labels[i]);
    const [lost, found] = [change(before, now).length, change(now, before).length];
    const octets = (now.bits - before.bits) / 8;
    const weight =
      octets === 0 ? "même taille" : `${counted(Math.abs(octets), "octet")} de ${octets < 0 ? "moins" : "plus"}`;
    const parts = [
      ...(lost ? [[`${counted(lost, "image")} perdue${plural(lost)}`, "error"]] : []),
      ...(found ? [[`${counted(found, "image")} retrouvée${plural(found)}`, "rank"]] : []),
    ];
    const images = parts.length > 1 ? [parts[0], ", ", parts[1]] : parts;
    write(gesture, [
      "Votre dernier geste\u00a0: ",
      ...(images.length ? images : ["aucune image perdue ni retrouvée"]),
      `\u00a0; ${weight}.`,
    ]);
  }

  function showConfusion({ confusion, read }) {
    const worst = confusion.reduce(
      (best, count, i) => (i % 11 && (best < 0 || count > confusion[best]) ? i : best), // hors de la diagonale
      -1,
    );
    const [row, column] = picked ?? [Math.floor(worst / 10), worst % 10];
    if (!picked) matrix.focus(row, column);
    matrix.all.forEach((line, written) =>
      line.forEach((cell, lu) => {
        const count = confusion[10 * written + lu];
        cell.textContent = count || "·";
        cell.className = written === lu ? "rank" : "error";
        cell.style.setProperty(
          "--share",
          written === lu ? Math.min(1, count / 45) : Math.min(1, Math.sqrt(count / 20)),
        );
        const chosen = written === row && lu === column;
        set(cell, { "aria-selected": chosen, "aria-label": `${written} lu ${lu} : ${counted(count, "image")}` });
      }),
    );
    listed = read.flatMap((digit, i) => (labels[i] === row && digit === column ? [i] : []));
    const many = listed.length;
    const what = row === column ? `${row} bien lu` : `${row} lu`;
    const where = row === column ? "" : ` ${column}`;
    const some = many > SHOWN ? `, dont voici ${SHOWN}` : "";
    title.textContent = many
      ? `${many > 1 ? "Des" : "Un"} ${what}${plural(many)}${where}\u00a0: ${counted(many, "image")}${some}. Touchez-en une pour la faire relire.`
      : `Aucun ${what}${where}.`;
    listed.length = Math.min(listed.length, SHOWN);
    set(strip, { "aria-hidden": listed.length ? null : "true" }); // vide, sa place reste gardée
    thumbs.all[0].forEach((option, place) => {
      option.hidden = place >= listed.length;
      if (option.hidden) return;
      paint(option.firstChild, imageOf(listed[place]));
      const chosen = !drawing().length && model.get("digit") === listed[place];
      set(option, { "aria-selected": chosen, "aria-label": `image ${listed[place]}, un ${row} lu ${column}` });
    });
    if (!listed[thumbs.all[0].findIndex((option) => option.tabIndex === 0)]) thumbs.focus(0, 0);
  }

  function showDigit(kernels) {
    const counts = seenNow();
    const own = ownStrokes();
    const [scores, reference] = [scoresOf(kernels, counts), scoresOf(original, counts)];
    const [found, before] = [argmax(scores), argmax(reference)];
    const brush = pad.getContext("2d");
    if (own) {
      brush.clearRect(0, 0, PAD, PAD);
      Object.assign(brush, {
        strokeStyle: inkOf(pad),
        lineWidth: 20,
        lineCap: "round",
        lineJoin: "round",
      });
      for (const [x, y, ...rest] of own) {
        brush.beginPath();
        brush.moveTo(x, y);
        brush.lineTo(x, y);
        for (let i = 0; i < rest.length; i += 2) brush.lineTo(rest[i], rest[i + 1]);
        brush.stroke();
      }
    } else paint(pad, counts);
    seen.all.flat().forEach((cell, i) => {
      cell.style.setProperty("--share", counts[i] / 16);
      set(cell, {
        "aria-label": `ligne ${Math.floor(i / SIDE) + 1}, colonne ${(i % SIDE) + 1} : ${counts[i]} sur 16`,
      });
    });
    const all = [...scores, ...reference];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const place = (score) => (score - low) / (high - low || 1);
    scoreRows.forEach(({ node, bar, mark, value }, digit) => {
      bar.style.setProperty("--share", place(scores[digit]));
      mark.style.setProperty("--share", place(reference[digit]));
      value.textContent = fr(scores[digit], 1);
      node.classList.toggle("lrq-winner", digit === found);
    });
    const blank = counts.every((count) => count === 0);
    const agree = found === before ? "l’original aussi" : `l’original, un ${before}`;
    write(
      reading,
      blank
        ? ["Dessinez un chiffre\u00a0: le réseau le lira à chaque trait."]
        : [
            drawing().length
              ? "Ce dessin\u00a0: ce réseau y lit "
              : `Un ${labels[model.get("digit")]} du test\u00a0: ce réseau y lit `,
            [`un ${found}`, drawing().length || found === labels[model.get("digit")] ? "rank" : "error"],
            `, ${agree}.`,
          ],
    );
    return scores;
  }

  function snippet({ settings: { rank, bits, granularity }, right, bits: size }, scores) {
    const lines = [
      "import torch",
      "import lrq",
      "from lrq import models",
      "",
      'network = models.load_digits_network("cnn")',
    ];
    const rounded = bits < 32;
    if (rounded)
      lines.push(
        `grid = {"n_bits": ${bits}, "granularity": ${GRANULARITIES.find(([name]) => name === granularity)[2]}}`,
      );
    const quantize = (name) => `network.${name} = lrq.QuantizedConv2d.from_conv2d(network.${name}, **grid)`;
    layers.forEach(({ name, rows, columns }, i) => {
      const dense = i === layers.length - 1;
      if (!worthTruncating(rows, columns, rank)) {
        if (rounded)
          lines.push(
            dense ? `network.${name} = lrq.QuantizedLinear.from_linear(network.${name}, **grid)` : quantize(name),
          );
      } else if (dense) {
        const kind = rounded ? "QuantizedLowRankLayer" : "SVDCompressedLinear";
        lines.push(
          `network.${name} = lrq.${kind}.from_linear(network.${name}, rank=${rank}${rounded ? ", **grid" : ""})`,
        );
      } else {
        lines.push(`network.${name} = lrq.SVDConv2d.from_conv2d(network.${name}, rank=${rank})`);
        if (rounded) lines.push(quantize(`${name}.filters`), quantize(`${name}.mixer`));
      }
    });
    const row = (i) =>
      `        [${drawing()
        .slice(SIDE * i, SIDE * (i + 1))
        .join(", ")}],`;
    const drawn = [
      "image = torch.tensor(",
      "    [",
      ...Array.from({ length: SIDE }, (_, i) => row(i)),
      "    ]",
      ").view(1, 1, 8, 8) / 16",
    ];
    lines.push(
      "x, y = models.load_digits_data()[1]",
      ...(drawing().length ? drawn : [`image = x[[${model.get("digit")}]]`]),
      "with torch.no_grad():",
      "    right = int((network(x).argmax(-1) == y).sum())",
      "    scores = network(image)[0]",
      ['print(right, "/", len(y))', `${right} / ${labels.length}`],
      [`print(lrq.stored_bytes(network), "/ ${originalBits / 8} octets")`, `${size / 8} / ${originalBits / 8} octets`],
      ['print(int(scores.argmax()), f"{scores.max():.2f}")', `${argmax(scores)} ${Math.max(...scores).toFixed(2)}`],
    );
    return lines;
  }

  let [shown, before, last, told, announced] = [null, null, null, null, null];
  return () => {
    const rank = possible(model, "rank", (value) => clamp(value, 1, whole));
    const bits = model.get("n_bits");
    const granularity = model.get("granularity");
    const settings = { rank, bits, granularity };
    const key = keyOf(settings);
    if (last !== null && last !== key) {
      if (held !== "suite") before = shown;
      if (held) held = "suite";
    }
    last = key;
    request(settings);
    shown = known.get(key) ?? shown;

    rankSlider.update(rank, 1, whole, rank === whole ? "sans tronquer" : `${fr(rank)} sur ${fr(whole - 1)}`);
    bitsSlider.update(bits, bits === 32 ? "32, des réels" : fr(bits));
    sharing.update(granularity);
    sharing.node.querySelector("select").disabled = bits === 32;
    for (const [node, traits] of presets)
      set(node, { "aria-pressed": Object.entries(traits).every(([trait, value]) => model.get(trait) === value) });
    const parts = weigh(settings);
    layerRows.forEach(({ kept, size }, i) => {
      kept.textContent = worthTruncating(layers[i].rows, layers[i].columns, rank) ? `rang\u00a0${rank}` : "entière";
      size.textContent = fr(parts[i] / 8);
    });
    const scores = showDigit(compiled(settings));
    if (shown) {
      showResult(shown);
      showGesture(shown, before);
      showConfusion(shown);
      root.dataset.shown = keyOf(shown.settings);
      if (shown === known.get(key)) code.update(snippet(shown, scores));
    } else sentence.textContent = `Le réseau lit ses ${fr(labels.length)} chiffres…`;

    // On n'annonce que ce qui vient de changer : le verdict, ou ce que le réseau lit du dessin.
    const verdict = `${sentence.textContent} ${gesture.textContent}`;
    const read = reading.textContent;
    const spoken = verdict !== told ? verdict : read !== announced?.read ? read : announced?.spoken;
    told = verdict;
    announced = { read, spoken };
    return spoken ?? verdict;
  };
}

export default explorer({
  kind: "network",
  label: "Un réseau de chiffres à comprimer",
  traits: ["rank", "n_bits", "granularity", "digit", "_drawing"],
  build,
});
