// Une image reconstruite au rang r, à côté de ce qu'elle perd.
import {
  codePanel,
  compare,
  decode,
  element,
  fr,
  explorer,
  jumps,
  percent,
  possibleRank,
  rankSlider,
  set,
  sizeBars,
} from "./figure.js";
import { breakEvenRank, factorBits, project, reconstruct, truncationErrors } from "./numerics.js";

const SATURATION = 0.5; // un écart de la moitié de la valeur efficace de W, ou plus, se peint plein

function build(root, model) {
  const m = model.get("_rows");
  const n = model.get("_columns");
  const [low, high] = model.get("_range");
  const W = Float32Array.from(
    decode(model.get("_pixels"), Uint8Array, m * n),
    (level) => low + ((high - low) * level) / 255,
  );
  const p = Math.min(m, n);
  const U = Float64Array.from(decode(model.get("_vectors"), Int16Array, m * p), (code) => code / 32767);
  const S = decode(model.get("_values"), Float32Array, p);
  const coordinates = project(U, W, m, n);
  const errors = truncationErrors(S);
  const breakEven = breakEvenRank(m, n);
  const marks = [
    ["10 fois plus léger", Math.floor(breakEven / 10)],
    ["10\u00a0% d’erreur", errors.filter((error) => error > 0.1).length + 1],
    ["moitié de la taille", Math.floor(breakEven / 2)],
    ["même taille", Math.floor(breakEven)],
    ["l’original", p],
  ]
    .filter(([, rank]) => rank >= 1 && rank <= p)
    .sort(([, one], [, other]) => one - other);
  const full = SATURATION * Math.sqrt(W.reduce((sum, x) => sum + x * x, 0) / (m * n)) || 1;

  const keep = (rank) => {
    model.set("rank", rank);
    model.save_changes();
  };
  const name = model.get("_name");
  const picture = () => {
    const canvas = element("canvas", { width: n, height: m, role: "img" });
    const caption = element("p", { class: "lrq-caption" });
    return { canvas, caption, node: element("div", { class: "lrq-picture" }, canvas, caption) };
  };
  const image = picture();
  const loss = picture();
  loss.canvas.classList.add("error");
  const sentence = element("p", { class: "lrq-verdict", "data-readout": "verdict" });
  const pictures = element("div", { class: "lrq-pictures" }, image.node, loss.node);
  const slider = rankSlider(keep);
  const buttons = jumps(keep);
  const sizes = sizeBars();
  const code = codePanel();
  const note = model.get("_note");
  root.append(sentence, pictures, slider.node, buttons.node, sizes.node);
  if (note) root.append(element("p", { class: "lrq-note", "data-readout": "note" }, note));
  root.append(code.node);

  const pixels = new ImageData(n, m);
  const faults = new ImageData(n, m);
  function paint(rank) {
    const approximation = reconstruct(U, coordinates, m, n, rank);
    const brush = loss.canvas.getContext("2d");
    brush.fillStyle = getComputedStyle(loss.canvas).color; // le canvas la rend en #rrggbb
    const probe = brush.fillStyle;
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(probe.slice(i, i + 2), 16));
    const span = high - low || 1;
    for (let i = 0; i < m * n; i++) {
      const level = (255 * (approximation[i] - low)) / span;
      pixels.data[4 * i] = pixels.data[4 * i + 1] = pixels.data[4 * i + 2] = level; // bornés à 0 … 255 par le tableau
      pixels.data[4 * i + 3] = 255;
      faults.data[4 * i] = red;
      faults.data[4 * i + 1] = green;
      faults.data[4 * i + 2] = blue;
      faults.data[4 * i + 3] = (255 * Math.abs(approximation[i] - W[i])) / full;
    }
    image.canvas.getContext("2d").putImageData(pixels, 0, 0);
    brush.putImageData(faults, 0, 0);
  }

  return () => {
    const rank = possibleRank(model, p);
    paint(rank);
    const error = percent(errors[rank - 1]);
    const size = factorBits(m, n, rank);
    const whole = 32 * m * n;
    sentence.replaceChildren(
      `Au rang ${fr(rank)}, deux facteurs pèsent `,
      element("strong", { class: size > whole ? "error" : "budget" }, compare(size, whole)),
      " l’original, à ",
      element("strong", { class: "error" }, error),
      " d’erreur.",
    );
    image.caption.textContent = `${name}, rang ${fr(rank)}`;
    loss.caption.textContent = "ce qui manque : plus la couleur est vive, plus l’écart est grand";
    set(image.canvas, { "aria-label": `${name}, reconstruction au rang ${rank}, à ${error} d’erreur` });
    set(loss.canvas, {
      "aria-label": `Écart, point par point, entre l’image et sa reconstruction au rang ${rank} : ${error} en tout`,
    });
    slider.update(rank, p);
    buttons.update(marks, rank);
    sizes.update(
      [
        ["original", m * n, whole, "whole"],
        ["deux facteurs", rank * (m + n), size, size > whole ? "over" : "under"],
      ],
      Math.max(whole, factorBits(m, n, p)),
    );
    code.update([
      "import lrq",
      model.get("_code"),
      `rank = ${rank}`,
      "U, S, Vh = lrq.truncated_svd(W, rank)  # l’image de gauche : U * S @ Vh",
      "errors = lrq.truncation_errors(lrq.singular_values(W))",
      ['print(f"{errors[rank - 1]:.3f}")', errors[rank - 1].toFixed(3)],
      "m, n = W.shape",
      ['print(rank * (m + n), "/", m * n)', `${rank * (m + n)} / ${m * n}`],
    ]);
    return sentence.textContent;
  };
}

export default explorer({ kind: "photo", label: "Image reconstruite au rang r", traits: ["rank"], build });
