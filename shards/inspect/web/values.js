/* Reads the stored values of a row from its embedded bytes, which shards/inspect/packing.py writes: exactly the
   float32 numbers that Python has.

   Dimensions: N positions, M kept tokens over all positions. */
"use strict";

page.values = (() => {
  const BIAS = 1 << 17;
  const LINEAR_FROM = 256;
  const MASK = (1 << 24) - 1;
  const KINDS = { u8: [1, Uint8Array], i8: [1, Int8Array], u24: [3, Uint32Array], f32: [4, null] };

  /* name -> typed array, from what `pack` wrote: a header in JSON, then the bytes of each array, plane by plane. */
  function unpack(buffer) {
    const bytes = new Uint8Array(buffer);
    const size = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
    const found = {};
    let at = 4 + size;
    for (const [name, kind, length] of header) {
      const [width, type] = KINDS[kind];
      found[name] = type === null ? floats(bytes, at, length) : joined(bytes, at, length, width, type);
      at += width * length;
    }
    return found;
  }

  function joined(bytes, at, length, width, Type) {
    const made = new Type(length);
    for (let plane = 0; plane < width; plane++) {
      for (let i = 0; i < length; i++) made[i] |= bytes[at + plane * length + i] << (8 * plane);
    }
    return made;
  }

  const floats = (bytes, at, length) => new Float32Array(joined(bytes, at, length, 4, Uint32Array).buffer);

  /* Log of the unit of a position's codes is that of 2^-20 or up to 2^3 times finer: `compact.units`. */
  function unit(l1_distance) {
    const ratio = l1_distance / 0.1;
    const finer = l1_distance <= 0 ? 3 : ratio >= 1 ? 0 : ratio >= 0.5 ? 1 : ratio >= 0.25 ? 2 : 3;
    return 2 ** (-20 - finer);
  }

  const unzigzag = (value) => (value & 1 ? -(value >>> 1) - 1 : value >>> 1);

  /* role -> codes (M,), from the differences that are stored: `compact.from_differences`. */
  function from_differences(stored) {
    const codes = { reference: stored.reference };
    codes.dpo = stored.dpo.map((value, i) => (unzigzag(value) + stored.reference[i]) & MASK);
    if (stored.reverse) {
      codes.reverse = stored.reverse.map(
        (value, i) => (unzigzag(value) + 2 * stored.reference[i] - codes.dpo[i]) & MASK,
      );
    }
    return codes;
  }

  /* Log-probs (M,) float32 of codes. ulps: how many float32 numbers Python's logarithm is away from this one's. */
  function from_codes(code_M, unit_M, ulps_M) {
    const made = new Float32Array(code_M.length);
    for (let i = 0; i < code_M.length; i++) {
      const above = code_M[i] - BIAS - LINEAR_FROM;
      const prob = Math.fround((Math.max(above, 0) + LINEAR_FROM) * unit_M[i]);
      made[i] = Math.fround(Math.log(prob)) + Math.min(above, 0) / 256;
    }
    const bits = new Int32Array(made.buffer);
    for (let i = 0; i < code_M.length; i++) bits[i] += ulps_M[i];
    return made.map((value, i) => (code_M[i] === 0 ? -Infinity : value));
  }

  function from_gaps(gap_M) {
    let id = 0;
    return gap_M.map((gap) => (id = (id + gap) & MASK));
  }

  function kept_logprobs(arrays, roles, starts) {
    if (arrays[`${roles[0]}_logprobs`]) return Object.fromEntries(roles.map((r) => [r, arrays[`${r}_logprobs`]]));
    const l1_distance = arrays[`l1_distance_${roles.includes("reverse") ? "reverse" : "reference"}`];
    const unit_M = new Float64Array(starts.at(-1));
    for (let n = 0; n < l1_distance.length; n++) unit_M.fill(unit(l1_distance[n]), starts[n], starts[n + 1]);
    const codes = from_differences(Object.fromEntries(roles.map((r) => [r, arrays[`${r}_codes`]])));
    return Object.fromEntries(roles.map((r) => [r, from_codes(codes[r], unit_M, arrays[`${r}_ulps`])]));
  }

  /* The scores of a row, as `Scores` in Python. starts (N + 1,): where the kept tokens of each position begin. */
  function scores_of(arrays, roles, pairs) {
    const support_count = arrays.support_count;
    const starts = new Uint32Array(support_count.length + 1);
    support_count.forEach((count, n) => (starts[n + 1] = starts[n] + count));
    const by_role = (suffix) => Object.fromEntries(roles.map((role) => [role, arrays[`${role}_${suffix}`]]));
    const negatives = ["reverse", "reference"].filter((role) => roles.includes(role));
    return {
      support_count,
      starts,
      support_ids: from_gaps(arrays.support_gaps),
      logprobs: kept_logprobs(arrays, roles, starts),
      next_logprob: by_role("next_logprob"),
      tail_logprob: by_role("tail_logprob"),
      l1_distance: Object.fromEntries(negatives.map((role) => [role, arrays[`l1_distance_${role}`]])),
      tail_logpartition: Object.fromEntries(
        pairs.map((pair) => [pair, arrays[`${pair.replace("/", "_")}_tail_logpartition`]]),
      ),
    };
  }

  return { unpack, scores_of };
})();
