// Les calculs des figures, sans rien dessiner. Chaque fonction a sa jumelle dans lrq, nommée au-dessus d'elle ; un vrai
// navigateur compare les deux sur des vecteurs témoins (lrq/widgets/certificate.py).

/** Énergies (σᵢ/σ₁)² abandonnées au rang r, pour r = 0 … p, sommées des petites aux grandes.
 *  `tail` compte celles que la figure ne transporte pas. */
function droppedEnergies(S, tail) {
  const energies = new Float64Array(S.length + 1);
  energies[S.length] = tail;
  for (let i = S.length - 1; i >= 0; i--) energies[i] = energies[i + 1] + (S[0] > 0 ? (S[i] / S[0]) ** 2 : 0);
  return energies;
}

/** lrq.cumulative_energy : part de l'énergie gardée, pour r = 1 … p. */
export function cumulativeEnergy(S, tail = 0) {
  const [total, ...dropped] = droppedEnergies(S, tail);
  return dropped.map((energy) => (total > 0 ? (total - energy) / total : 1));
}

/** lrq.truncation_errors : erreur relative ‖W − W_r‖/‖W‖ (Frobenius), pour r = 1 … p. */
export function truncationErrors(S, tail = 0) {
  const [total, ...dropped] = droppedEnergies(S, tail);
  return dropped.map((energy) => (total > 0 ? Math.sqrt(energy / total) : 0));
}

/** lrq.rank_for_energy : plus petit rang qui garde cette part de l'énergie ; p + 1 s'il n'est pas transporté. */
export function rankForEnergy(energy, threshold) {
  return energy.filter((kept) => kept < threshold).length + 1;
}

/** lrq.break_even_rank : deux facteurs ne pèsent moins que W que si r < mn/(m + n). */
export function breakEvenRank(m, n) {
  return (m * n) / (m + n);
}

/** lrq.marchenko_pastur_edge : la plus grande valeur singulière d'un grand bruit m×n de cette norme. */
export function marchenkoPasturEdge(m, n, norm) {
  return (norm / Math.sqrt(m * n)) * (Math.sqrt(m) + Math.sqrt(n));
}

/** Norme de Frobenius, lue sur le spectre. */
export function frobeniusNorm(S, tail = 0) {
  return S[0] * Math.sqrt(droppedEnergies(S, tail)[0]);
}

/** lrq.halko_bound : erreur moyenne, au plus, de la SVD aléatoire sans itération ; `optimum` est l'erreur ε(r), p ≥ 2. */
export function halkoBound(optimum, rank, oversample) {
  return Math.sqrt(2 + rank / (oversample - 1)) * optimum;
}

/** lrq.widgets.randomized.excess : part d'erreur en trop, par rapport à l'optimum. */
export function excess(error, optimum) {
  return optimum > 0 ? error / optimum - 1 : 0;
}

/** Bits de deux facteurs de rang r : r(m + n) nombres de 32 bits ou, à 8 bits et moins, des codes serrés par octets et
 *  une échelle float32 par facteur (nbytes de SVDCompressedLinear et de QuantizedLowRankLayer). */
export function factorBits(m, n, rank, bits = 32) {
  if (bits > 8) return rank * (m + n) * bits;
  return 8 * (Math.ceil((m * rank * bits) / 8) + Math.ceil((rank * n * bits) / 8)) + 2 * 32;
}

/** Arrondit au plus proche, les moitiés vers le pair : torch.round, que Math.round n'imite pas. */
export function roundHalfEven(x) {
  const floor = Math.floor(x);
  const up = x - floor > 0.5 || (x - floor === 0.5 && floor % 2 !== 0);
  return up ? floor + 1 : floor;
}

/** lrq.quantize_symmetric : codes et échelles de `rows` blocs égaux de x (1 : une échelle pour tout le tenseur).
 *  Les quotients passent par Math.fround, puisque PyTorch calcule en float32. */
export function quantizeSymmetric(x, bits, rows = 1) {
  const width = x.length / rows;
  const q = 2 ** (bits - 1) - 1;
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const start = row * width;
    let largest = 0;
    let sum = 0;
    for (let i = start; i < start + width; i++) {
      largest = Math.max(largest, Math.abs(x[i]));
      sum += Math.abs(x[i]);
    }
    scales[row] = bits === 1 ? sum / width : largest / q;
    const inverse = Math.fround(1 / (scales[row] >= 2 ** -126 ? scales[row] : 1));
    for (let i = start; i < start + width; i++) {
      const code = bits === 1 ? (x[i] < 0 ? -1 : 1) : roundHalfEven(Math.fround(x[i] * inverse));
      codes[i] = Math.min(Math.max(code, bits === 1 ? -1 : -q), Math.max(q, 1));
    }
  }
  return { codes, scales };
}

/** lrq.dequantize : code × échelle. */
export function dequantize(codes, scales) {
  const width = codes.length / scales.length;
  return Float32Array.from(codes, (code, i) => code * scales[Math.floor(i / width)]);
}

/** Uᵀ W, (p, n) : les coordonnées de W (m, n) dans ses vecteurs singuliers gauches U (m, p). */
export function project(U, W, m, n) {
  const p = U.length / m;
  const coordinates = new Float64Array(p * n);
  for (let i = 0; i < m; i++)
    for (let k = 0; k < p; k++) {
      const u = U[i * p + k];
      for (let j = 0; j < n; j++) coordinates[k * n + j] += u * W[i * n + j];
    }
  return coordinates;
}

/** La SVD tronquée W_r = U_r (U_rᵀ W), (m, n), de lrq.truncated_svd. Quatre composantes par passage, en float64 d'un
 *  bout à l'autre : deux fois plus vite qu'une à une en float32, et un curseur en dépend. */
export function reconstruct(U, coordinates, m, n, rank) {
  const p = U.length / m;
  const W = new Float32Array(m * n);
  const row = new Float64Array(n);
  const c = coordinates;
  for (let i = 0; i < m; i++) {
    row.fill(0);
    let k = 0;
    for (; k + 4 <= rank; k += 4) {
      const u = i * p + k;
      const [u0, u1, u2, u3] = [U[u], U[u + 1], U[u + 2], U[u + 3]];
      for (let j = 0, q = k * n; j < n; j++, q++)
        row[j] += u0 * c[q] + u1 * c[q + n] + u2 * c[q + 2 * n] + u3 * c[q + 3 * n];
    }
    for (; k < rank; k++) for (let j = 0; j < n; j++) row[j] += U[i * p + k] * c[k * n + j];
    W.set(row, i * n);
  }
  return W;
}

/** Plus grand écart relatif entre ce que JavaScript et PyTorch rendent : terme à terme, ou rapporté au plus grand terme
 *  (`whole`) quand des termes peuvent être presque nuls. Deux longueurs différentes sont un écart infini. */
export function relativeGap(found, expected, whole = false) {
  if (found.length !== expected.length) return Infinity;
  const largest = expected.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
  let gap = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(found[i] - expected[i]);
    if (Number.isNaN(difference)) return Infinity;
    if (difference > 0) gap = Math.max(gap, difference / (whole ? largest : Math.abs(expected[i])));
  }
  return gap;
}
