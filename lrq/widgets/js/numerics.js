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
 *  `scales` échelles float32 : une par facteur ou, une par ligne, m + n (nbytes de SVDCompressedLinear,
 *  QuantizedLowRankLayer et QuantizedLowRankLinear). */
export function factorBits(m, n, rank, bits = 32, scales = 2) {
  if (bits > 8) return rank * (m + n) * bits;
  return 8 * (Math.ceil((m * rank * bits) / 8) + Math.ceil((rank * n * bits) / 8)) + scales * 32;
}

/** lrq.widgets.rank_bits.best_within : la place de la plus petite erreur parmi les tailles permises ; à égalité, la plus
 *  légère ; −1 s'il n'y en a pas. */
export function bestWithin(errors, sizes, limit) {
  let best = -1;
  for (let i = 0; i < errors.length; i++) {
    if (sizes[i] > limit) continue;
    if (best < 0 || errors[i] < errors[best] || (errors[i] === errors[best] && sizes[i] < sizes[best])) best = i;
  }
  return best;
}

/** lrq.errors.pareto_front : les places que nulle autre ne bat à la fois en erreur et en taille, de la plus
 *  légère à la plus lourde ; de deux couples égaux, le premier. */
export function paretoFront(errors, sizes) {
  const order = [...errors.keys()].sort((i, j) => sizes[i] - sizes[j] || errors[i] - errors[j]);
  const front = [];
  for (const i of order) if (!front.length || errors[i] < errors[front.at(-1)]) front.push(i);
  return front;
}

/** lrq.water_filling d'un spectre plat, la borne de Shannon : l'erreur relative d'un bruit blanc gaussien à R bits par
 *  coefficient. */
export function shannonError(bits) {
  return 2 ** -bits;
}

/** lrq.widgets.rate_distortion.wasted_bits : les bits de trop, par rapport à cette droite ; −∞ sans erreur. */
export function wastedBits(rate, error) {
  return rate + Math.log2(error);
}

/** lrq.water_filling : l'erreur relative, puis les bits de chaque direction, dans l'ordre du spectre S. */
export function waterFilling(S, bits) {
  const found = new Float64Array(S.length + 1);
  if (S[0] === 0) return found;
  const energies = Array.from(S, (value) => 2 * Math.log2(value / S[0])).filter((energy) => energy > -Infinity);
  let sum = 0;
  const levels = energies.map((energy, k) => {
    sum += energy;
    return (sum - 2 * bits * S.length) / (k + 1); // log₂ θ, si k + 1 directions se partagent tous les bits
  });
  const kept = Math.max(1, energies.filter((energy, k) => energy > levels[k]).length);
  const level = levels[kept - 1];
  let [left, whole] = [0, 0];
  energies.forEach((energy, k) => {
    if (k < kept) found[k + 1] = Math.max(0, (energy - level) / 2);
    left += 2 ** Math.min(energy, level);
    whole += 2 ** energy;
  });
  found[0] = Math.sqrt(left / whole);
  return found;
}

/** lrq.propagation_bound : la borne de l'erreur après chaque couche, b = gain · b + ce que la couche ajoute. */
export function propagationBound(gains, own) {
  let bound = 0;
  return own.map((added, i) => (bound = gains[i] * bound + added));
}

/** lrq.combined_error_analysis : ce que font ensemble des erreurs orthogonales ou indépendantes, la racine de la somme de
 *  leurs carrés. */
export function quadrature(errors) {
  return Math.sqrt(errors.reduce((sum, error) => sum + error ** 2, 0));
}

/** lrq.widgets.lora.training_bytes : octets des poids, de leurs gradients et des deux moments d'Adam, en float32 ; seuls
 *  les nombres entraînés ont les deux derniers. */
export function trainingBytes(frozen, trained) {
  return [4 * (frozen + trained), 4 * trained, 8 * trained];
}

/** LoRALayer.scale : l'échelle s d'un adaptateur. */
export function loraScale(alpha, rank, scaling) {
  return { alpha, "alpha/r": alpha / rank, "alpha/sqrt(r)": alpha / Math.sqrt(rank) }[scaling];
}

/** lrq.allocate_budget, son premier achat : la place de ce qui rapporte le plus par unité de coût. */
export function bestPurchase(gains, costs) {
  const slopes = Array.from(gains, (gain, i) => gain / costs[i]);
  return slopes.indexOf(Math.max(...slopes));
}

/** Rang de torch.kron de matrices dont on connaît les rangs. */
export function kroneckerRank(ranks) {
  return ranks.reduce((product, rank) => product * rank, 1);
}

/** Arrondit au plus proche, les moitiés vers le pair : torch.round, que Math.round n'imite pas. Au-delà de 1,5 · 2⁵², un
 *  float64 n'a plus que des entiers, et l'addition arrondit ; pour abs(x) < 2⁵¹. */
export function roundHalfEven(x) {
  return x + 6755399441055744 - 6755399441055744;
}

const LARGEST = 2 ** 128 - 2 ** 104; // le plus grand float32
const SHARES = 100; // les réductions qu'essaie clipping="mse"
const PERCENTILE = 99.9;

/** L'échelle, ou 1 si elle est nulle ou si petite que son inverse déborderait (lrq.quantizers.divisor). */
const divisor = (scale) => (scale >= 2 ** -126 ? scale : 1);

/** Les codes extrêmes : −2^(b−1) … 2^(b−1) − 1, sans le premier si la grille est symétrique. */
export function extremes(bits, symmetric) {
  const half = 2 ** (bits - 1);
  return [symmetric ? 1 - half : -half, half - 1];
}

/** La grille, échelle et point zéro, qui va de `low` à `high` (UniformQuantizer._grid). Chaque opération est arrondie en
 *  float32, dans l'ordre de PyTorch : un code dépend du dernier bit de l'échelle. */
function grid(low, high, bits, symmetric) {
  const [first, last] = extremes(bits, symmetric);
  const steps = last - first;
  const scale = Math.fround(Math.fround(high / steps) - Math.fround(low / steps));
  const origin = symmetric ? 0 : roundHalfEven(Math.fround(first - Math.fround(low / divisor(scale))));
  const zero = Math.min(Math.max(origin, first), last);
  return [Math.min(scale, Math.fround(LARGEST / Math.max(last - zero, zero - first))), zero];
}

/** Quantile de valeurs triées, par interpolation linéaire (lrq.quantizers.quantile) ; la dernière multiplication et son
 *  addition ne s'arrondissent qu'une fois, comme dans torch.lerp. */
function quantile(ordered, share) {
  const position = share * (ordered.length - 1);
  const below = Math.floor(position);
  const [start, end] = [ordered[below] / 2, ordered[Math.min(below + 1, ordered.length - 1)] / 2];
  const weight = Math.fround(position - below);
  const gap = Math.fround(end - start);
  return 2 * Math.fround(weight < 0.5 ? start + weight * gap : end + (weight - 1) * gap);
}

/** Ce que la grille d'un bloc doit couvrir, zéro compris (UniformQuantizer._bounds). */
function gridBounds(block, symmetric, clipping) {
  const values = symmetric ? block.map(Math.abs) : block;
  let [low, high] = [0, 0];
  if (clipping === "percentile") {
    const ordered = Float32Array.from(values).sort();
    const tail = (100 - PERCENTILE) / 100;
    low = Math.min(quantile(ordered, symmetric ? 0 : tail / 2), 0);
    high = Math.max(quantile(ordered, 1 - (symmetric ? tail : tail / 2)), 0);
  } else
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  return [symmetric ? -high : low, high];
}

/** L'échelle et le point zéro d'un bloc (UniformQuantizer._fit). « Au moindre carré », les cent réductions s'essaient de
 *  la plus large à la plus étroite, et l'on quitte une grille dès qu'elle a perdu. */
function fit(block, bits, symmetric, clipping) {
  const [low, high] = gridBounds(block, symmetric, clipping);
  let best = grid(low, high, bits, symmetric);
  if (clipping !== "mse") return best;
  const [first, last] = extremes(bits, symmetric);
  const start = Math.fround(0.01);
  const step = Math.fround(Math.fround(1 - start) / (SHARES - 1));
  let least = Infinity;
  for (let i = SHARES - 1; i >= 0; i--) {
    const share = Math.fround(i < SHARES / 2 ? start + step * i : 1 - step * (SHARES - 1 - i)); // torch.linspace
    const [scale, zero] = grid(Math.fround(low * share), Math.fround(high * share), bits, symmetric);
    const inverse = Math.fround(1 / divisor(scale));
    const [bottom, top] = [first - zero, last - zero];
    let error = 0;
    for (let j = 0; j < block.length && error < least; j++) {
      const value = block[j];
      const code = roundHalfEven(Math.min(Math.max(Math.fround(value * inverse), bottom), top));
      error += Math.fround(Math.fround(code * scale) - value) ** 2;
    }
    if (error < least) [least, best] = [error, [scale, zero]];
  }
  return best;
}

/** lrq.UniformQuantizer, signé : codes, échelles et points zéro de `rows` blocs égaux et contigus de x, en float32 (1 :
 *  une échelle pour tout le tenseur ; m : une par ligne ; mn / 32 : une par groupe de 32). À 1 bit symétrique, ±Δ, où Δ
 *  est la moyenne des valeurs absolues. */
export function quantizeUniform(x, bits, rows = 1, symmetric = true, clipping = "min_max") {
  const width = x.length / rows;
  const binary = symmetric && bits === 1;
  const [first, last] = extremes(bits, symmetric);
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(rows);
  const zeros = new Int8Array(rows);
  for (let row = 0; row < rows; row++) {
    const block = x.subarray(row * width, (row + 1) * width);
    if (binary) {
      const sum = block.reduce((total, value) => total + Math.abs(value), 0);
      scales[row] = sum / width;
    } else [scales[row], zeros[row]] = fit(block, bits, symmetric, clipping);
    const inverse = Math.fround(1 / divisor(scales[row]));
    const [bottom, top] = [first - zeros[row], last - zeros[row]];
    for (let j = 0; j < width; j++) {
      const code = roundHalfEven(Math.min(Math.max(Math.fround(block[j] * inverse), bottom), top)) + zeros[row];
      codes[row * width + j] = binary ? (block[j] < 0 ? -1 : 1) : code;
    }
  }
  return { codes, scales, zeros };
}

/** lrq.quantize_symmetric : codes et échelles de `rows` blocs égaux de x (1 : une échelle pour tout le tenseur). */
export function quantizeSymmetric(x, bits, rows = 1) {
  const { codes, scales } = quantizeUniform(x, bits, rows);
  return { codes, scales };
}

/** lrq.dequantize, UniformQuantizer.dequantize : (code − point zéro) × échelle. */
export function dequantize(codes, scales, zeros = null) {
  const width = codes.length / scales.length;
  const values = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) {
    const row = Math.floor(i / width);
    values[i] = (codes[i] - (zeros ? zeros[row] : 0)) * scales[row];
  }
  return values;
}

/** UniformQuantizer.quantization_error : erreur relative ‖x − x̂‖/‖x‖ (Frobenius). */
export function relativeError(x, approximation) {
  let [lost, whole] = [0, 0];
  for (let i = 0; i < x.length; i++) {
    lost += (x[i] - approximation[i]) ** 2;
    whole += x[i] ** 2;
  }
  return lost > 0 ? Math.sqrt(lost / whole) : 0;
}

/** QuantizerExplorer.predicted_error : l'erreur relative d'un arrondi uniforme dans chaque pas, de carré moyen Δ²/12. */
export function uniformNoise(x, scales) {
  const noise = scales.reduce((sum, scale) => sum + scale ** 2, 0) / (12 * scales.length);
  const power = x.reduce((sum, value) => sum + value ** 2, 0) / x.length;
  return power > 0 ? Math.sqrt(noise / power) : 0;
}

/** QuantizerExplorer.clipped : part des nombres que la grille écrête, à plus d'un demi-pas de son dernier niveau. */
export function clippedShare(x, bits, symmetric, scales, zeros) {
  const [first, last] = extremes(bits, symmetric);
  if (first === last) return 0; // ±Δ : chaque nombre va au plus proche des deux
  const width = x.length / scales.length;
  let clipped = 0;
  for (let i = 0; i < x.length; i++) {
    const row = Math.floor(i / width);
    const step = Math.fround(x[i] * Math.fround(1 / divisor(scales[row])));
    if (step < first - zeros[row] - 0.5 || step > last - zeros[row] + 0.5) clipped++;
  }
  return clipped / x.length;
}

/** QuantizedTensor.nbytes, en bits : des codes serrés par octets, une échelle float32 par bloc et, si la grille est
 *  asymétrique, un point zéro d'un octet. */
export function storedBits(count, bits, rows, symmetric) {
  return 8 * Math.ceil((count * bits) / 8) + rows * (symmetric ? 32 : 40);
}

/** lrq.tensor_train.clamped_ranks : le rang de chaque lien d'un train, ramené à ce que permettent les dimensions. */
export function bondRanks(inputs, outputs, rank) {
  const sizes = Array.from(inputs, (n, k) => n * outputs[k]);
  const product = (part) => part.reduce((total, size) => total * size, 1);
  return sizes.slice(1).map((_, k) => Math.min(rank, product(sizes.slice(0, k + 1)), product(sizes.slice(k + 1))));
}

/** Bits de chaque cœur d'un train (nbytes de TTLinear et de QuantizedTTLinear) : des nombres de 32 bits ou, à 8 bits et
 *  moins, des codes serrés par octets et une échelle float32. */
export function trainBits(inputs, outputs, rank, bits) {
  const bonds = [1, ...bondRanks(inputs, outputs, rank), 1];
  return Array.from(inputs, (n, k) => {
    const count = bonds[k] * n * outputs[k] * bonds[k + 1];
    return bits > 8 ? count * bits : storedBits(count, bits, 1, true);
  });
}

/** lrq.widgets.tensor_train.rank_within : le plus grand rang dont les deux facteurs tiennent dans `limit` bits, ou 0. */
export function rankWithin(m, n, bits, limit) {
  let rank = Math.min(m, n);
  while (rank > 0 && factorBits(m, n, rank, bits) > limit) rank--;
  return rank;
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

// --- Le réseau des chiffres -------------------------------------------------------------------------------------------
// Une image y est rangée (ligne, colonne, canal), et un noyau (position, entrée, sortie) : la boucle la plus courte suit
// alors deux suites de nombres voisins.

/** lrq.unpack_bits, sans signe : `count` entiers de `bits` bits, serrés par octets. */
export function unpackBits(packed, bits, count) {
  return Uint8Array.from({ length: count }, (_, i) => {
    const start = i * bits;
    const pair = packed[start >> 3] | ((packed[(start >> 3) + 1] ?? 0) << 8);
    return (pair >> (start & 7)) & (2 ** bits - 1);
  });
}

/** Le second facteur B (p, n) de W ≈ A B, le premier connu, A (m, p), aux colonnes orthogonales : bₖ = Wᵀaₖ/‖aₖ‖²
 *  (lrq.svd.balanced_factors). */
export function secondFactor(A, W, m, n) {
  const p = A.length / m;
  const squares = new Float64Array(p);
  for (let i = 0; i < A.length; i++) squares[i % p] += A[i] ** 2;
  return Float32Array.from(project(A, W, m, n), (value, i) => value / squares[Math.floor(i / n)]);
}

/** Une couche (m, n) vaut-elle d'être tronquée au rang r ? (lrq.widgets.network.truncated) */
export function worthTruncating(m, n, rank) {
  return rank < breakEvenRank(m, n);
}

/** Ce qu'applique une couche comprimée, W (m, n) ≈ A (m, p) B (p, n) : ses r filtres (r, n) puis ce qui les recombine
 *  (m, r) ; W seule, là où deux facteurs pèseraient plus. Réels à 32 bits ; sinon arrondis à la grille, une échelle pour
 *  chaque matrice ou, `byRow`, pour chacune de ses lignes (lrq.widgets.network.compress). */
export function compressedLayer(W, A, B, m, n, rank, bits, byRow) {
  const p = A.length / m;
  const parts = worthTruncating(m, n, rank)
    ? [
        [B.slice(0, rank * n), rank],
        [A.filter((_, i) => i % p < rank), m],
      ]
    : [[W, m]];
  return parts.map(([part, rows]) => {
    if (bits > 8) return part;
    const { codes, scales } = quantizeUniform(Float32Array.from(part), bits, byRow ? rows : 1);
    return dequantize(codes, scales);
  });
}

/** Bits qu'occupe cette couche, échelles comprises, biais non compris (lrq.stored_bytes). */
export function compressedBits(m, n, rank, bits, byRow) {
  if (worthTruncating(m, n, rank)) return factorBits(m, n, rank, bits, byRow ? m + rank : 2);
  return bits > 8 ? 32 * m * n : storedBits(m * n, bits, byRow ? m : 1, true);
}

/** Des poids (sortie, entrée, position) rangés (position, entrée, sortie) : torch.Tensor.permute(2, 1, 0). */
export function arrange(weights, outputs, inputs, positions) {
  const kernel = new Float64Array(weights.length);
  let place = 0;
  for (let position = 0; position < positions; position++)
    for (let input = 0; input < inputs; input++)
      for (let output = 0; output < outputs; output++)
        kernel[place++] = weights[(output * inputs + input) * positions + position];
  return kernel;
}

/** torch.nn.functional.conv2d, de pas 1, bordée de zéros pour garder sa taille (padding = k // 2). En chaque point, on
 *  retient les entrées non nulles (après un ReLU, une sur deux), puis on les ajoute quatre par quatre. */
export function convolve(x, size, kernel, inputs, outputs, bias = null) {
  const k = Math.sqrt(kernel.length / (inputs * outputs));
  const margin = (k - 1) / 2;
  const y = new Float64Array(size * size * outputs);
  const values = new Float64Array(k * k * inputs + 3);
  const starts = new Int32Array(values.length);
  for (let row = 0; row < size; row++)
    for (let column = 0; column < size; column++) {
      let count = 0;
      for (let i = Math.max(0, margin - row); i < Math.min(k, size + margin - row); i++)
        for (let j = Math.max(0, margin - column); j < Math.min(k, size + margin - column); j++) {
          const from = ((row + i - margin) * size + column + j - margin) * inputs;
          for (let input = 0; input < inputs; input++) {
            if (x[from + input] === 0) continue;
            values[count] = x[from + input];
            starts[count++] = ((i * k + j) * inputs + input) * outputs;
          }
        }
      values.fill(0, count, count + 3);
      const to = (row * size + column) * outputs;
      if (bias) y.set(bias, to);
      for (let part = 0; part < count; part += 4) {
        const [v0, v1, v2, v3] = [values[part], values[part + 1], values[part + 2], values[part + 3]];
        let [s0, s1, s2, s3] = [starts[part], starts[part + 1], starts[part + 2], starts[part + 3]];
        for (let output = to; output < to + outputs; output++)
          y[output] += v0 * kernel[s0++] + v1 * kernel[s1++] + v2 * kernel[s2++] + v3 * kernel[s3++];
      }
    }
  return y;
}

/** max_pool2d(relu(x), 2) de torch.nn.functional : le plus grand de chaque carré de quatre, ou zéro. */
export function reluPool(x, size, channels) {
  const half = size / 2;
  const y = new Float64Array(half * half * channels);
  for (let row = 0; row < half; row++)
    for (let column = 0; column < half; column++)
      for (let channel = 0; channel < channels; channel++) {
        const a = (2 * row * size + 2 * column) * channels + channel;
        const b = a + size * channels;
        const largest = Math.max(0, x[a], x[a + channels], x[b], x[b + channels]);
        y[(row * half + column) * channels + channel] = largest;
      }
  return y;
}

/** Les scores d'une image carrée (lrq.models.DigitsCNN) : des convolutions 3×3 suivies d'un ReLU et d'un maximum, puis
 *  une couche dense, qui est une convolution 1×1 sur une image d'un seul point. `layers` : d'une couche, son noyau ou
 *  ses deux noyaux ; `biases` : le biais de chacune. */
export function networkScores(image, layers, biases) {
  let [x, size, inputs] = [image, Math.sqrt(image.length), 1];
  layers.forEach((kernels, i) => {
    const dense = i === layers.length - 1;
    if (dense) [size, inputs] = [1, x.length];
    kernels.forEach((kernel, j) => {
      const last = j === kernels.length - 1;
      const outputs = last ? biases[i].length : kernel.length / (inputs * (dense ? 1 : 9));
      x = convolve(x, size, kernel, inputs, outputs, last ? biases[i] : null);
      inputs = outputs;
    });
    if (dense) return;
    x = reluPool(x, size, inputs);
    size /= 2;
  });
  return x;
}

/** torch.argmax : la place du plus grand nombre ; à égalité, la première. */
export function argmax(values) {
  return values.indexOf(Math.max(...values));
}

/** Combien d'images de chaque chiffre (ligne) ont été lues comme chaque chiffre (colonne), à plat
 *  (NetworkExplorer.confusion). */
export function confusionMatrix(labels, predictions) {
  const counts = new Uint16Array(100);
  labels.forEach((label, i) => counts[10 * label + predictions[i]]++);
  return counts;
}

const [FINE, PEN, BODY] = [32, 5.5, 24];

/** Des traits, chacun une suite de x, y, tels que les voit le réseau (lrq.widgets.network.ink) : 8×8 comptes, de 0 à 16.
 *  Agrandis jusqu'en haut et en bas de 32×32 points, resserrés au-delà de 24 de large, tracés d'une plume ronde, puis
 *  comptés par carrés de 4×4. */
export function ink(strokes) {
  const [xs, ys] = [0, 1].map((side) =>
    strokes.flatMap((stroke) => Array.from(stroke).filter((_, i) => i % 2 === side)),
  );
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const [width, height] = [right - left, bottom - top];
  const tall = (FINE - PEN) / Math.max(height, width / 2, 1e-9);
  const wide = Math.min((BODY - PEN) / Math.max(width, 1e-9), tall);
  const across = (x) => FINE / 2 + (x - (left + right) / 2) * wide;
  const down = (y) => FINE / 2 + (y - (top + bottom) / 2) * tall;
  const counts = new Uint8Array(64);
  const inked = new Uint8Array(FINE * FINE);
  for (const stroke of strokes)
    for (let i = 0; i < stroke.length; i += 2) {
      const [x, y] = [across(stroke[i]), down(stroke[i + 1])];
      const [dx, dy] = i + 2 < stroke.length ? [across(stroke[i + 2]) - x, down(stroke[i + 3]) - y] : [0, 0];
      const length = dx * dx + dy * dy;
      for (let place = 0; place < FINE * FINE; place++) {
        const [px, py] = [(place % FINE) + 0.5 - x, Math.floor(place / FINE) + 0.5 - y];
        const along = length > 0 ? Math.min(Math.max((px * dx + py * dy) / length, 0), 1) : 0;
        if (inked[place] || (px - along * dx) ** 2 + (py - along * dy) ** 2 > (PEN / 2) ** 2) continue;
        inked[place] = 1;
        counts[8 * Math.floor(place / (4 * FINE)) + Math.floor((place % FINE) / 4)]++;
      }
    }
  return counts;
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
