// Un autotest : cinq questions sur une section, des nombres neufs à chaque visite, une explication pour chaque faute.
//
// Une question est un objet. `draw(random)` tire ses données, ou rend null pour qu'on retire ; tout ce qui suit les reçoit.
// `ask` est l'énoncé ; `answer`, la bonne réponse, un nombre ; `faults`, des paires [ce que donne une faute classique, ce
// qu'elle est] ; `label` écrit une réponse ; `work`, le calcul complet. `entry`, s'il y en a un, demande un nombre au lieu
// d'un choix : son nom, et sa tolérance, absolue ou relative (nulle, à défaut). `apart` est l'écart relatif que gardent deux
// choix ; `named` dit que les réponses sont des places, A, B, C, qui restent dans l'ordre. Les textes sont du HTML, aux
// espaces ordinaires : `french` les rend insécables où il le faut.
import { element, explorer, fr, KEYS, set, unique } from "./figure.js";

const TRIES = 20_000;
const NO_NUMBER = "Écrivez un nombre ; la virgule et le point conviennent tous deux.";
const NO_CHOICE = "Choisissez d’abord une réponse.";
const UNKNOWN = "Cette valeur n’est pas non plus celle d’une faute habituelle : comparez pas à pas avec le calcul.";

/** Des nombres entre 0 et 1 : ceux du navigateur ou, d'une graine, toujours les mêmes (mulberry32). */
export function generator(seed) {
  if (seed === null) return Math.random;
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// --- Ce dont les questions se servent ----------------------------------------------------------------------------------

/** Un entier de `low` à `high`, compris. */
export const integer = (random, low, high) => low + Math.floor((high - low + 1) * random());

/** Un nombre à `digits` décimales, de `low` à `high` : celui que l'énoncé écrit. */
export const decimal = (random, low, high, digits = 1) =>
  integer(random, Math.round(low * 10 ** digits), Math.round(high * 10 ** digits)) / 10 ** digits;

/** Un élément d'une liste. */
export const pick = (random, list) => list[integer(random, 0, list.length - 1)];

/** Les côtés d'une matrice m × n qui n'est pas carrée. */
export function rectangle(random, sides = [128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536]) {
  const m = pick(random, sides);
  return {
    m,
    n: pick(
      random,
      sides.filter((side) => side !== m),
    ),
  };
}

export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const product = (values) => values.reduce((total, value) => total * value, 1);
export const largest = (values) => values.indexOf(Math.max(...values));

/** Un symbole et son indice. */
export const symbol = (letter, index = "") => `<var>${letter}</var>${index === "" ? "" : `<sub>${index}</sub>`}`;

/** « bit », accordé : le singulier va jusqu'à deux, exclu. */
export const inBits = (value, digits = 2) => `${fr(value, digits, 0)} bit${Math.abs(value) < 2 ? "" : "s"}`;

/** Une part, de 0 à 1, en pourcentage à une décimale. */
export const share = (value, digits = 1) => `${fr(100 * value, digits)} %`;

/** Des nombres ajoutés, multipliés ou énumérés : 3 + 4 + 5. */
export const joined = (values, sign, digits = 0) => values.map((value) => fr(value, digits)).join(sign);

/** Un petit tableau ; la première colonne nomme la ligne. */
export const table = (head, rows) =>
  `<table><thead><tr>${head.map((title) => `<th scope="col">${title}</th>`).join("")}</tr></thead><tbody>${rows
    .map(
      ([name, ...cells]) => `<tr><th scope="row">${name}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`,
    )
    .join("")}</tbody></table>`;

/** Une petite matrice, ligne par ligne. */
export const matrix = (rows) =>
  `<span class="lrq-matrix" style="--columns: ${rows[0].length}" role="img" aria-label="matrice de lignes ${rows
    .map((row) => joined(row, " et "))
    .join(", puis ")}">${rows
    .flat()
    .map((value) => `<span>${fr(value)}</span>`)
    .join("")}</span>`;

/** Un petit spectre : une barre par valeur singulière, et sa valeur au-dessus. */
export function bars(values) {
  const [step, tall] = [40, 96];
  const drawn = values.map((value, i) => {
    const height = (tall * value) / values[0];
    const x = i * step + step / 2;
    return (
      `<rect class="lrq-bars rank" x="${x - 11}" y="${20 + tall - height}" width="22" height="${height}"/>` +
      `<text class="lrq-label" text-anchor="middle" x="${x}" y="${14 + tall - height}">${fr(value)}</text>` +
      `<text class="lrq-tick" text-anchor="middle" x="${x}" y="${tall + 37}">σ<tspan dy="3" font-size="10">${i + 1}</tspan></text>`
    );
  });
  const name = `Spectre : ${values.map((value, i) => `sigma ${i + 1} vaut ${value}`).join(", ")}.`;
  return `<svg class="lrq-drawn" role="img" aria-label="${name}" width="${values.length * step}" height="${tall + 44}">${drawn.join("")}</svg>`;
}

// --- Poser une question ------------------------------------------------------------------------------------------------

/** Les espaces que le français veut insécables, dans un texte HTML. */
export function french(html) {
  return html
    .replace(/ (?=[:;?!%»])/g, "\u00a0")
    .replace(/« /g, "«\u00a0")
    .replace(/(\d) (?=(octets?|bits?|ko|Mo|dB|fois)\b)/g, "$1\u00a0");
}

/** Mélange une liste, sur place (Fisher et Yates). */
function shuffle(random, list) {
  for (let i = list.length - 1; i > 0; i--) {
    const j = integer(random, 0, i);
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

/** L'écart qu'une réponse écrite peut garder avec la bonne. */
const room = ({ relative = 0, absolute = 0 }, answer) => (relative ? relative * Math.abs(answer) : absolute);

/** Vrai si aucun choix ne peut être pris pour un autre : étiquettes toutes différentes, valeurs assez éloignées ; pour un
 *  nombre à écrire, nulle faute ne passe pour la bonne réponse, ni pour une autre faute. */
function clear(question, answer, values, labels) {
  const gap = (a, b) => Math.abs(a - b);
  const pairs = values.flatMap((a, i) => values.slice(i + 1).map((b) => [a, b]));
  const far = ([a, b]) =>
    question.entry
      ? gap(a, b) > 2.5 * room(question.entry, answer)
      : gap(a, b) > (question.apart ?? 0.02) * Math.max(Math.abs(a), Math.abs(b));
  return values.every(Number.isFinite) && new Set(labels).size === labels.length && pairs.every(far);
}

/** Un exemplaire d'une question, des données tirées jusqu'à ce que ses choix soient clairs. Rien n'y dit lequel des
 *  `choices` est le bon : seul `verdict`, à qui l'on en donne la valeur. */
export function pose(question, random) {
  for (let i = 0; i < TRIES; i++) {
    const data = question.draw(random);
    if (data === null) continue;
    const answer = question.answer(data);
    const faults = question.faults(data, answer);
    const values = [answer, ...faults.map(([value]) => value)];
    const labels = values.map((value) => french(question.label(value, data)));
    if (!clear(question, answer, values, labels)) continue;
    const places = [...values.keys()];
    if (question.named) places.sort((i, j) => values[i] - values[j]);
    else shuffle(random, places);
    const near = (value, other) => Math.abs(value - other) <= room(question.entry ?? {}, answer) + 1e-9;
    return {
      data,
      title: question.title,
      entry: question.entry,
      statement: french(question.ask(data)),
      choices: question.entry ? [] : places.map((place) => ({ value: values[place], label: labels[place] })),
      verdict: (value) => ({
        right: near(value, answer),
        why: french(faults.find(([fault]) => near(value, fault))?.[1] ?? UNKNOWN),
        expected: labels[0],
        work: french(question.work(data, answer)),
      }),
    };
  }
  throw new Error(`« ${question.title} » : aucun tirage ne convient`);
}

/** Le nombre qu'a écrit le lecteur, virgule ou point, espaces et « % » permis ; NaN si ce n'en est pas un. */
export function read(text) {
  const plain = text.replace(/[\s%]/g, "").replace(",", ".").replace("−", "-");
  return /^[-+]?(\d+\.?\d*|\.\d+)$/.test(plain) ? Number(plain) : NaN;
}

// --- La montrer --------------------------------------------------------------------------------------------------------

/** Un texte HTML, en éléments. */
function nodes(html) {
  const template = element("template");
  template.innerHTML = html;
  return template.content;
}

/** Ce que dit la tolérance d'une réponse à écrire. */
const tolerance = ({ relative, absolute }) =>
  relative ? `à ${share(relative, 0)} près` : absolute ? `à ${fr(absolute, 2)} près` : "un entier, exact";

/** Une question : son formulaire, et ce qu'elle répond. `change(score)` est appelée avec 1 (juste du premier coup), 0, ou
 *  null tant qu'on n'a pas répondu. */
function card(question, number, change) {
  const named = unique("question");
  const statement = element("div", { class: "lrq-statement", id: `${named}-statement`, tabindex: -1 });
  const legend = element("legend", {}, `${number}. ${question.title}`);
  const answers = element("div", { class: "lrq-choices" });
  const group = element("fieldset", { "aria-describedby": statement.id }, legend, statement, answers);
  const send = element("button", { type: "submit", "data-control": "answer", ...KEYS }, "Répondre");
  const again = element("button", { type: "button", "data-control": "again", hidden: "", ...KEYS }, "D’autres nombres");
  const verdict = element("div", { class: "lrq-judged", "aria-live": "polite", "data-readout": "verdict" });
  const work = element("div", { class: "lrq-work", "data-readout": "work" });
  const buttons = element("p", { class: "lrq-buttons" }, send, again);
  const form = element("form", { class: "lrq-question", novalidate: "" }, group, buttons, verdict, work);
  let posed;
  let answered;

  function renew(random) {
    posed = pose(question, random);
    answered = false;
    statement.replaceChildren(nodes(posed.statement));
    answers.replaceChildren(...(posed.entry ? [field(posed.entry)] : posed.choices.map(choice)));
    verdict.replaceChildren();
    work.replaceChildren();
    set(again, { hidden: "" });
    change(null);
  }

  function choice({ label }, place) {
    const input = element("input", { type: "radio", name: named, value: place, ...KEYS });
    return element("label", { class: "lrq-choice" }, input, element("span", {}, nodes(label)));
  }

  function field({ name, ...margin }) {
    const input = element("input", {
      type: "text",
      inputmode: "decimal",
      autocomplete: "off",
      "data-control": "number",
      ...KEYS,
    });
    const text = element("span", {}, nodes(french(`${name} (${tolerance(margin)}) :`)));
    return element("label", { class: "lrq-number" }, text, input);
  }

  /** La réponse donnée, ou NaN. */
  function given() {
    if (posed.entry) return read(answers.querySelector("input").value);
    return posed.choices[answers.querySelector("input:checked")?.value]?.value ?? NaN;
  }

  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.localName !== "input") return;
    event.preventDefault(); // JupyterLab prend l'envoi qu'un navigateur fait de lui-même
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = given();
    if (Number.isNaN(value)) {
      verdict.replaceChildren(element("p", {}, french(posed.entry ? NO_NUMBER : NO_CHOICE)));
      return;
    }
    const { right, why, expected, work: steps } = posed.verdict(value);
    const word = element("strong", { class: right ? "budget" : "error" }, right ? "Juste." : "Faux.");
    verdict.replaceChildren(element("p", {}, word, " ", nodes(right ? "" : why)));
    if (!right)
      verdict.append(element("p", {}, french("La bonne réponse : "), element("strong", {}, nodes(expected)), "."));
    work.replaceChildren(element("p", { class: "lrq-name" }, "Le calcul"), nodes(steps));
    set(again, { hidden: null });
    if (!answered) change(right ? 1 : 0);
    answered = true;
  });
  return { form, again, statement, renew };
}

function build(root, model, questions) {
  let seed;
  let random;
  const scores = questions.map(() => null);
  const score = element("p", { class: "lrq-note", "data-readout": "score" });
  const cards = questions.map((question, place) => card(question, place + 1, (value) => count(place, value)));

  function count(place, value) {
    scores[place] = value;
    const given = scores.filter((mark) => mark !== null);
    const right = sum(given);
    score.textContent = given.length
      ? french(`Juste du premier coup : ${right} sur ${given.length}. Rien n’est gardé ni envoyé.`)
      : "Rien de ce que vous répondez n’est gardé ni envoyé.";
  }

  for (const { form, again, statement, renew } of cards) {
    again.addEventListener("click", () => {
      renew(random);
      statement.focus(); // le bouton vient de disparaître : on reprend à l'énoncé, que lit alors un lecteur d'écran
    });
    root.append(form);
  }
  root.append(score);
  return () => {
    if (seed !== model.get("seed")) {
      seed = model.get("seed");
      random = generator(seed);
      for (const { renew } of cards) renew(random);
    }
    return "";
  };
}

export const selfTest = (section, questions) =>
  explorer({
    kind: "self-test",
    label: `Cinq questions sur la section ${section}`,
    traits: ["seed"],
    build: (root, model) => build(root, model, questions),
  });
