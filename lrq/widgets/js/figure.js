// Ce que partagent les figures : nombres à la française, échelles, axes, contrôles. Aucune ne nomme une autre figure.

const SVG = "http://www.w3.org/2000/svg";

/** Un élément HTML ou SVG, ses attributs et ses enfants. */
export function element(name, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|poly(line|gon)|circle|ellipse|rect|text|tspan|pattern|defs|clipPath)$/.test(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  set(node, attributes);
  node.append(...children);
  return node;
}

/** Pose des attributs ; null les ôte. */
export function set(node, attributes) {
  for (const [key, value] of Object.entries(attributes))
    if (value === null || value === undefined) node.removeAttribute(key);
    else node.setAttribute(key, value);
  return node;
}

/** Un nombre à la française, à `digits` décimales, ou au plus si `least` en demande moins : 10 616 832 ; 0,954 ; −3. */
export function fr(value, digits = 0, least = digits) {
  const key = `${digits} ${least}`;
  if (!formats.has(key))
    formats.set(key, new Intl.NumberFormat("fr-FR", { minimumFractionDigits: least, maximumFractionDigits: digits }));
  return formats.get(key).format(value).replace("-", "−");
}

const formats = new Map(); // en créer un coûte cent fois plus que s'en servir

/** Un pourcentage ; ce qui n'est ni nul ni entier ne s'arrondit jamais à 0 ou à 100, et près d'un seuil (10, 90 ou
 *  99 %), une décimale de plus dit de quel côté l'on est. */
export function percent(share) {
  const digits = [0.1, 0.9, 0.99].some((threshold) => Math.abs(share - threshold) < 1e-3) ? 2 : 1;
  const smallest = 10 ** -digits;
  if (share > 0 && 100 * share < smallest / 2) return `moins de ${fr(smallest, digits)}\u00a0%`;
  if (share < 1 && 100 * share > 100 - smallest / 2) return `plus de ${fr(100 - smallest, digits)}\u00a0%`;
  return `${fr(100 * share, digits)}\u00a0%`;
}

/** Un nombre minuscule, en puissance de dix : 1,2 × 10⁻⁷. */
export function scientific(value) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return "infini";
  const [digits, power] = value.toExponential(1).split("e");
  const exponent = Array.from(power.replace("+", ""), (char) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(char)]).join("");
  return `${digits.replace(".", ",")}\u00a0×\u00a010${exponent}`;
}

/** Une grandeur quelconque : `digits` chiffres significatifs, et une puissance de dix au-delà du lisible. */
export function quantity(value, digits = 1) {
  if (value === 0) return "0";
  const power = Math.floor(Math.log10(value) + 1e-9);
  return power < -4 || power > 5 ? scientific(value) : fr(value, Math.max(0, digits - 1 - power));
}

/** Des bits, en octets lisibles (1 ko = 1 000 octets). */
export function bytes(bits) {
  const octets = bits / 8;
  if (octets < 1e3) return `${fr(octets)}\u00a0octets`;
  if (octets < 1e7) return `${fr(octets / 1e3, 1)}\u00a0ko`;
  return `${fr(octets / 1e6, 1)}\u00a0Mo`;
}

/** Combien `size` pèse de fois `whole`, dit en français : plus léger, aussi lourd ou plus lourd. */
export function compare(size, whole) {
  const ratio = size / whole;
  if (size === whole) return "autant que";
  if (ratio < 1)
    return ratio > 0.99 ? "un peu moins que" : `${fr(1 / ratio, 1 / ratio < 10 ? 2 : 0, 0)} fois moins que`;
  return ratio < 1.01 ? "un peu plus que" : `${fr(ratio, 2, 0)} fois`;
}

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Les octets d'un trait binaire, en `length` nombres du type voulu. On copie : un DataView peut commencer n'importe où. */
export function decode(view, Type, length) {
  const numbers = new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  if (numbers.length !== length) throw new Error(`${numbers.length} nombres reçus, ${length} attendus`);
  return numbers;
}

/** Ce que `analyse(choix, nombres)` tire de chaque matrice de la figure, par nom ; `count(choix)` dit combien de nombres
 *  de `_values` sont les siens. */
export function analysed(model, count, analyse) {
  const choices = model.get("_choices");
  const ends = [];
  for (const choice of choices) ends.push((ends.at(-1) ?? 0) + count(choice));
  const values = decode(model.get("_values"), Float32Array, ends.at(-1));
  return new Map(choices.map((choice, i) => [choice.name, analyse(choice, values.subarray(ends[i - 1] ?? 0, ends[i]))]));
}

// --- Échelles et axes --------------------------------------------------------------------------------------------------

export function linear([a, b], [from, to]) {
  const scale = (x) => from + ((x - a) / (b - a)) * (to - from);
  scale.invert = (y) => a + ((y - from) / (to - from)) * (b - a);
  return scale;
}

export function logarithmic([a, b], range) {
  const scale = linear([Math.log10(a), Math.log10(b)], range);
  return (x) => scale(Math.log10(clamp(x, a, b)));
}

/** Au plus `count` graduations rondes de 0 à `max`. */
export function ticks(max, count) {
  const power = 10 ** Math.floor(Math.log10(max / count));
  const step = Math.max(
    1,
    [1, 2, 5, 10].map((x) => x * power).find((x) => max / x <= count),
  );
  return Array.from({ length: Math.floor(max / step) + 1 }, (_, i) => i * step);
}

/** Les graduations d'un axe logarithmique : les puissances de dix ou, s'il y en a moins de `least`, 1, 2, 5, 10, 20… */
export function powers(low, high, least = 2) {
  const inside = (steps) => {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); 10 ** e <= high; e++) found.push(...steps.map((step) => step * 10 ** e));
    return found.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
  };
  const tens = inside([1]);
  return tens.length >= least ? tens : inside([1, 2, 5]);
}

/** Largeur, en pixels et par excès, d'un texte en gras d'une figure. */
export const textWidth = (text) => 8.2 * text.length;

/** Pose une étiquette à la première place du cadre où elle ne touche ni une courbe ni une autre étiquette ; à défaut, à
 *  la moins mauvaise. `places` : des [x, y, ancre] ; `points` : des [x, y] à éviter ; `taken` : les boîtes déjà posées.
 *  Rend ce qu'elle touche : le nombre de points, plus 1000 par étiquette ou si elle sort du cadre. */
export function settle(lines, text, places, { bounds, points, taken }) {
  const width = Math.max(...text.map(textWidth));
  const boxes = places.map(([x, y, anchor]) => {
    const left = { start: x, middle: x - width / 2, end: x - width }[anchor];
    return { x, y, anchor, left, right: left + width, top: y - 12, bottom: y + 16 * (text.length - 1) + 4 };
  });
  const leaves = (box) =>
    box.left < bounds.left || box.right > bounds.right || box.top < bounds.top || box.bottom > bounds.bottom;
  const touches = (box) =>
    (leaves(box) ? 1000 : 0) +
    points.filter(([x, y]) => x > box.left && x < box.right && y > box.top && y < box.bottom).length +
    1000 *
      taken.filter((b) => b.left < box.right && b.right > box.left && b.top < box.bottom && b.bottom > box.top).length;
  const best = boxes.reduce((found, box) => (touches(box) < touches(found) ? box : found));
  const crowd = touches(best);
  taken.push(best);
  lines.forEach((line, i) => {
    set(line, { x: best.x, y: best.y + 16 * i, "text-anchor": best.anchor }).textContent = text[i];
  });
  return crowd;
}

/** Une courbe, point par point. */
export function curve(xs, ys) {
  let d = "";
  for (let i = 0; i < xs.length; i++) d += `${i ? "L" : "M"}${xs[i].toFixed(1)} ${ys[i].toFixed(1)}`;
  return d;
}

// --- Contrôles ---------------------------------------------------------------------------------------------------------

/** Un identifiant neuf. Tiré au hasard : chaque figure a sa copie de ce module, et un compteur n'y serait pas commun. */
export const unique = (word) => `lrq-${word}-${Math.random().toString(36).slice(2)}`;

// Sans quoi JupyterLab prend les flèches pour lui.
export const KEYS = { "data-lm-suppress-shortcuts": "true" };

/** Un trait du modèle, ramené par `nearest` à une valeur possible et récrit : une figure liée à une autre par jslink
 *  peut recevoir davantage. */
export function possible(model, trait, nearest) {
  const value = nearest(model.get(trait));
  if (value !== model.get(trait)) {
    model.set(trait, value);
    model.save_changes();
  }
  return value;
}

/** Une fonction qui écrit des traits dans le modèle, tous à la fois. */
export const keeper = (model) => (traits) => {
  for (const [trait, value] of Object.entries(traits)) model.set(trait, value);
  model.save_changes();
};

/** De plusieurs valeurs, la plus proche. */
export const closest = (values, wanted) =>
  values.reduce((found, value) => (Math.abs(value - wanted) < Math.abs(found - wanted) ? value : found));

/** Le rang du modèle, ramené à 1 … p. */
export const possibleRank = (model, p) => possible(model, "rank", (rank) => clamp(rank, 1, p));

/** Un curseur d'entiers : une étiquette, une valeur, un `<input type="range">` ; Page haut et Page bas vont de `page` en
 *  `page`. */
export function slider(control, label, page, onInput) {
  const id = unique(control);
  const value = element("span", { class: "lrq-value" }); // pas un <output>, qui se lirait à chaque pas
  const input = element("input", { type: "range", id, step: 1, "data-control": control, ...KEYS });
  input.addEventListener("input", () => onInput(Number(input.value)));
  let before = null; // un pouce qui fait défiler la page ne règle rien : le navigateur annule son geste
  input.addEventListener("pointerdown", () => (before = Number(input.value)));
  input.addEventListener("pointercancel", () => onInput(before));
  input.addEventListener("keydown", (event) => {
    const step = { PageUp: page, PageDown: -page }[event.key];
    if (!step) return;
    event.preventDefault();
    onInput(clamp(Number(input.value) + step, Number(input.min), Number(input.max)));
  });
  const node = element("div", { class: "lrq-slider" }, element("label", { for: id }, label), value, input);
  return {
    node,
    update(position, min, max, text) {
      set(input, { min, max });
      input.value = position;
      input.style.setProperty("--filled", `${max > min ? (100 * (position - min)) / (max - min) : 100}%`);
      value.textContent = text;
      set(input, { "aria-valuetext": text });
    },
  };
}

/** Le curseur du rang, de 1 à `max`. */
export function rankSlider(onInput) {
  const { node, update } = slider("rank", "Rang r", 10, onInput);
  return { node, update: (rank, max) => update(rank, 1, max, `${fr(rank)} sur ${fr(max)}`) };
}

/** Un curseur qui va d'une valeur de la liste `values` à la suivante. */
export function listSlider(control, label, values, onInput) {
  const { node, update } = slider(control, label, 2, (place) => onInput(values[place]));
  return { node, update: (value, text) => update(values.indexOf(value), 0, values.length - 1, text) };
}

/** Un menu sous son étiquette ; `options` : des paires [valeur, mot]. */
export function menu(control, label, options, onChoose) {
  const id = unique(control);
  const choices = options.map(([value, word]) => element("option", { value }, word));
  const select = element("select", { id, "data-control": control, ...KEYS }, ...choices);
  select.addEventListener("change", () => onChoose(select.value));
  return {
    node: element("div", { class: "lrq-menu" }, element("label", { for: id }, label), select),
    /** `refused` : les valeurs que l'état présent ne permet pas. */
    update(value, refused = []) {
      for (const option of choices) option.disabled = refused.includes(option.value);
      select.value = value;
    },
  };
}

/** Une poignée à poser sur un dessin, de la couleur `kind` ; `range` : ses bornes, en attributs ARIA. */
export function grip(control, label, kind, range) {
  return element(
    "g",
    { class: "lrq-handle", role: "slider", tabindex: 0, "data-control": control, "aria-label": label, ...range, ...KEYS },
    element("circle", { class: "lrq-reach", r: 22 }),
    element("circle", { class: "lrq-grip", r: 10 }),
    element("circle", { class: `lrq-dot ${kind}`, r: 5 }),
  );
}

/** Choisit à la main sur un dessin : `pick(x, y)` à chaque position, en pixels du dessin ; `remember()`, au début du
 *  geste, rend de quoi tout remettre si le navigateur le reprend. Un doigt ne choisit qu'une fois posé ou glissé de côté :
 *  vers le haut, il fait défiler. */
export function pickable(plot, handle, pick, remember) {
  let start = null;
  const choose = (event) => {
    const { left, top } = plot.getBoundingClientRect();
    pick(event.clientX - left, event.clientY - top);
  };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = { x: event.clientX, moved: event.pointerType !== "touch", undo: remember() };
    plot.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    if (start.moved) choose(event);
  });
  plot.addEventListener("pointermove", (event) => {
    if (!plot.hasPointerCapture(event.pointerId)) return;
    start.moved ||= Math.abs(event.clientX - start.x) > 6;
    if (start.moved) choose(event);
  });
  plot.addEventListener("pointerup", (event) => plot.hasPointerCapture(event.pointerId) && choose(event));
  plot.addEventListener("pointercancel", () => start?.undo());
  plot.addEventListener("mousedown", (event) => event.preventDefault()); // garde le focus sur la poignée
}

/** Les boutons qui mènent à un rang remarquable. */
export function jumps(onJump) {
  const node = element("div", { class: "lrq-jumps", role: "group", "aria-label": "Rangs remarquables" });
  let shown = "";
  return {
    node,
    /** `all` : des paires [mot, rang] ; de deux mots pour un même rang, le dernier reste. */
    update(all, rank) {
      const marks = Array.from(new Map(all.map((mark) => [mark[1], mark])).values());
      if (shown !== (shown = JSON.stringify(marks)))
        node.replaceChildren(
          ...marks.map(([label, target]) => {
            const text = [`${label} `, element("span", { class: "lrq-value" }, `r\u00a0=\u00a0${fr(target)}`)];
            const button = element("button", { type: "button", "data-control": "jump", "data-rank": target }, ...text);
            button.addEventListener("click", () => onJump(target));
            return button;
          }),
        );
      for (const button of node.children) set(button, { "aria-pressed": Number(button.dataset.rank) === rank });
    },
  };
}

/** « Voir le code » : ce qui refait, avec lrq, l'état présent de la figure. */
export function codePanel() {
  const code = element("code", { class: "language-python" });
  const copy = element("button", { type: "button", "data-control": "copy" }, "Copier");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copié";
    } catch {
      getSelection().selectAllChildren(code); // sans presse-papiers, il reste la sélection
      copy.textContent = "Sélectionné : Ctrl + C";
    }
    copy.closest(".lrq-explorer").querySelector(".lrq-spoken").textContent = copy.textContent;
  });
  const summary = element("summary", {}, "Voir le code");
  const node = element("details", { class: "lrq-code", "data-control": "code" }, summary, copy, element("pre", {}, code));
  return {
    node,
    /** `lines` : des lignes de code ; une paire [instruction, sortie] écrit la sortie attendue à côté. */
    update(lines) {
      const next = document.createDocumentFragment();
      for (const line of lines) {
        const [text, output] = [line].flat();
        next.append(text, ...(output ? ["  ", element("span", {}, `# → ${output}`)] : []), "\n");
      }
      if (next.textContent === code.textContent) return;
      code.replaceChildren(next);
      copy.textContent = "Copier";
    },
  };
}

/** Deux barres : W, et ce qui la remplace, à la même échelle. */
export function sizeBars() {
  const node = element("div", { class: "lrq-sizes", "data-readout": "sizes" });
  return {
    node,
    /** `rows` : [nom, nombres, bits, classe] ; `whole` : la plus grande taille possible, qui donne l'échelle. */
    update(rows, whole) {
      node.replaceChildren(
        ...rows.map(([name, numbers, bits, kind]) =>
          element(
            "div",
            { class: `lrq-size ${kind}` },
            element("span", { class: "lrq-name" }, name),
            element("span", { class: "lrq-bar", style: `--share: ${bits / whole}` }),
            element("span", { class: "lrq-value" }, `${fr(numbers)} nombres, ${bytes(bits)} en float32`),
          ),
        ),
      );
    },
  };
}

/** Appelle `callback` quand change le thème : celui du livre, celui de JupyterLab ou celui du système. */
export function onTheme(callback, signal) {
  const observer = new MutationObserver(callback);
  observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", callback, { signal });
  signal.addEventListener("abort", () => observer.disconnect());
}

/** Une figure, telle qu'anywidget la veut : `build(root, model, redraw)` crée ses éléments et rend `draw(width)`, qui
 *  dessine l'état présent du modèle ; `draw` est rappelé à chaque changement d'un trait de `traits`, de la largeur ou du
 *  thème, et par `redraw()`, quand un calcul s'achève. */
export const explorer = (options) => ({ render: ({ model, el }) => frame(el, model, options) });

/** Le cadre d'une figure : la racine, un dessin par image au plus, la phrase lue à voix haute, et le ménage. Rend la
 *  fonction qui démonte la figure. */
function frame(el, model, { kind, label, traits, build }) {
  const root = element("section", { class: "lrq-explorer", "data-explorer": kind, "aria-label": label });
  const spoken = element("p", { class: "lrq-spoken", "aria-live": "polite" });
  const stop = new AbortController();
  const draw = build(root, model, () => schedule());
  root.append(spoken);
  el.append(root);

  let pending = 0;
  let timer = 0;
  let sentence = null;
  const say = () => (spoken.textContent = sentence);
  const redraw = () => {
    pending = 0;
    const width = root.clientWidth;
    if (!width) return; // caché : ResizeObserver rappellera
    const said = draw(width);
    if (said !== sentence) {
      clearTimeout(timer);
      if (sentence !== null) timer = setTimeout(say, 600); // une fois la main posée, non à chaque pas
      sentence = said;
    }
    if (model.get("rank") !== undefined) root.dataset.rank = model.get("rank");
    root.dataset.ready = "";
  };
  const schedule = () => (pending ||= requestAnimationFrame(redraw));
  for (const trait of traits) model.on(`change:${trait}`, schedule);
  const observer = new ResizeObserver(schedule);
  observer.observe(root);
  onTheme(schedule, stop.signal);
  redraw();

  return () => {
    for (const trait of traits) model.off(`change:${trait}`, schedule);
    observer.disconnect();
    stop.abort();
    cancelAnimationFrame(pending);
    clearTimeout(timer);
    root.remove();
  };
}
