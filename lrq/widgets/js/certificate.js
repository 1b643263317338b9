// Le navigateur du lecteur refait les calculs que PyTorch a faits à la construction de la page, et montre l'écart.
import { element, fr, explorer, scientific } from "./figure.js";
import * as numerics from "./numerics.js";

const LIMIT = 1e-5;

/** Une liste de nombres devient un tableau typé, une liste de listes garde sa forme. */
const typed = (value) =>
  !Array.isArray(value) ? value : Array.isArray(value[0]) ? value.map(typed) : Float64Array.from(value);

/** Rejoue un vecteur témoin ; rend ce que trouve JavaScript, à plat. */
function replay({ function: name, arguments: values }) {
  const found = numerics[name](...values.map(typed));
  if (typeof found !== "object") return [Number(found)];
  if (ArrayBuffer.isView(found[0])) return found.flatMap((part) => Array.from(part));
  return found.codes ? [...found.codes, ...found.scales, ...(found.zeros ?? [])] : Array.from(found);
}

export function certify(cases) {
  const rows = new Map();
  for (const golden of cases) {
    const gap = numerics.relativeGap(replay(golden), golden.expected, golden.whole);
    const row = rows.get(golden.twin) ?? { numbers: 0, gap: 0 };
    rows.set(golden.twin, { numbers: row.numbers + golden.expected.length, gap: Math.max(row.gap, gap) });
  }
  return rows;
}

function build(root, model) {
  const rows = certify(model.get("_cases"));
  const gap = Math.max(...Array.from(rows.values(), (row) => row.gap));
  root.dataset.gap = gap;
  const head = ["Calcul", "Nombres", "Écart relatif"].map((title) => element("th", { scope: "col" }, title));
  const lines = Array.from(rows, ([name, row]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, ...name.split(/(?<=[_.])/).flatMap((part) => [part, element("wbr")])),
      element("td", {}, fr(row.numbers)),
      element("td", {}, scientific(row.gap)),
    ),
  );
  root.append(
    element(
      "p",
      { class: "lrq-verdict", "data-readout": "verdict" },
      "Votre navigateur et PyTorch s’écartent au plus de ",
      element("strong", { class: gap <= LIMIT ? "budget" : "error" }, scientific(gap)),
      `, en valeur relative : ${gap <= LIMIT ? "moins" : "plus"} que la limite de ${scientific(LIMIT)} que le livre s’impose.`,
    ),
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines)),
  );
  return () => null;
}

export default explorer({ kind: "certificate", label: "Écart entre JavaScript et PyTorch", traits: ["_cases"], build });
