/* Composes a teacher from the stored values of a row, as shards/teacher/compose.py, spec.py and shards/format/nodes.py
   do, under the same names. All numbers are doubles.

   Dimensions: N positions, M kept tokens over all positions, J strength nodes. */
"use strict";

page.compose = (() => {
  const MIN_STRENGTH = 1e-3;
  const LARGEST_DISTANCE = 2;

  const adaptive_strength = (l1_distance, gain, min_strength = MIN_STRENGTH) => gain * l1_distance + min_strength;

  /* log(exp(a) + exp(b)). */
  function logaddexp(a, b) {
    const high = Math.max(a, b);
    return high === -Infinity ? high : high + Math.log1p(Math.exp(Math.min(a, b) - high));
  }

  /* The strength nodes of a position with D_t, (J,). */
  const nodes_at = (nodes, l1_distance) =>
    nodes.gains.map((gain, j) => (j === 0 ? 0 : Math.max(adaptive_strength(l1_distance, gain), nodes.strengths[j])));

  /* The largest s, to four decimals, such that gain * D_t + s never exceeds the last node. */
  function highest_start(nodes, gain) {
    const steepest = nodes.gains.at(-1);
    const highest = nodes.strengths.at(-1);
    const found = highest - gain * Math.min((highest - MIN_STRENGTH) / steepest, LARGEST_DISTANCE);
    return Math.max(MIN_STRENGTH, Math.floor(found * 1e4) / 1e4);
  }

  /* Lagrange's polynomial through the four nodes around the interval (through all if there are only three). */
  function cubic(nodes_J, values_J, strength, left) {
    const width = Math.min(4, nodes_J.length);
    const first = Math.min(Math.max(left - 1, 0), nodes_J.length - width);
    let total = 0;
    for (let i = first; i < first + width; i++) {
      let basis = values_J[i];
      for (let j = first; j < first + width; j++) {
        if (j !== i) basis = (basis * (strength - nodes_J[j])) / (nodes_J[i] - nodes_J[j]);
      }
      total += basis;
    }
    return total;
  }

  /* A convex function known at nodes, at a strength between them: [estimate, lower bound, upper bound]. */
  function interpolate(nodes_J, values_J, strength) {
    if (values_J.includes(-Infinity)) return [-Infinity, -Infinity, -Infinity];
    const last = nodes_J.length - 2;
    const left = Math.min(Math.max(nodes_J.filter((node) => node <= strength).length - 1, 0), last);
    if (strength === nodes_J[left]) return Array(3).fill(values_J[left]);
    if (strength === nodes_J[left + 1]) return Array(3).fill(values_J[left + 1]);
    const slope = (j) => (values_J[j + 1] - values_J[j]) / (nodes_J[j + 1] - nodes_J[j]);
    const upper = values_J[left] + slope(left) * (strength - nodes_J[left]);
    const before = left > 0 ? values_J[left] + slope(left - 1) * (strength - nodes_J[left]) : -Infinity;
    const after = left < last ? values_J[left + 1] + slope(left + 1) * (strength - nodes_J[left + 1]) : -Infinity;
    const lower = Math.min(Math.max(before, after), upper);
    return [Math.min(Math.max(cubic(nodes_J, values_J, strength, left), lower), upper), lower, upper];
  }

  /* w_t of the spec at a position. highest: its last node, at which a learned strength ends. */
  function strength(spec, l1_distance, highest) {
    if (spec.strength === "adaptive") return adaptive_strength(l1_distance, spec.gain, spec.min_strength);
    if (spec.strength === "constant") return spec.beta / spec.kl_coef;
    const softplus = logaddexp(0, spec.learned_offset + spec.learned_slope * l1_distance);
    return Math.min(spec.min_strength + softplus, highest);
  }

  /* lambda_t of the loss. */
  function token_weight(spec, w) {
    const weight = spec.strength === "constant" ? spec.kl_coef : spec.beta / w;
    return spec.max_weight === null ? weight : Math.min(weight, spec.max_weight);
  }

  /* What the nodes lack for a spec, in words; null if it can be composed. The pair is stored, as the caller knows. */
  function lacks(nodes, spec) {
    const learned = [spec.learned_offset, spec.learned_slope];
    const numbers = [spec.beta, spec.gain, spec.kl_coef, spec.min_strength];
    if (!numbers.every((value) => Number.isFinite(value) && value >= 0) || !spec.beta || !spec.kl_coef) {
      return "expected finite numbers above 0";
    }
    if (spec.strength === "learned" && !learned.every(Number.isFinite)) return "expected the two numbers of the fit";
    const adaptive = spec.strength === "adaptive";
    if (adaptive && spec.gain > nodes.gains.at(-1)) {
      return `expected a gain of ${nodes.gains.at(-1)} or less, the last node, got ${spec.gain}`;
    }
    if (spec.strength === "constant" && spec.beta / spec.kl_coef > nodes.strengths.at(-1)) {
      const got = page.number(spec.beta / spec.kl_coef);
      return `expected beta / kl_coef of ${nodes.strengths.at(-1)} or less, the last node, got ${got}`;
    }
    const start = highest_start(nodes, adaptive ? spec.gain : 0);
    if (spec.strength === "constant" || spec.min_strength <= start) return null;
    return `expected a min_strength of ${start} or less, got ${spec.min_strength}`;
  }

  /* The largest log-prob of a position's kept tokens is subtracted first; see `compose` in Python. */
  function position(scores, spec, nodes, n, teacher) {
    const { anchor, negative } = spec;
    const pair = `${anchor}/${negative}`;
    const [start, end] = [scores.starts[n], scores.starts[n + 1]];
    const nodes_J = nodes_at(nodes, scores.l1_distance[negative][n]);
    const inner = nodes_J.length - 1;
    const stored = scores.tail_logpartition[pair].subarray(n * inner, (n + 1) * inner);
    const values_J = [scores.tail_logprob[anchor][n], ...stored];
    const w = strength(spec, scores.l1_distance[negative][n], nodes_J.at(-1));
    const [tail, lower, upper] = interpolate(nodes_J, values_J, w);
    const logit = (logprobs, i) => w * (logprobs.dpo[i] - logprobs[negative][i]) + logprobs[anchor][i];
    let peak = -Infinity;
    for (let i = start; i < end; i++) {
      teacher.logprobs[i] = logit(scores.logprobs, i);
      peak = Math.max(peak, teacher.logprobs[i]);
    }
    let kept_mass = 0;
    for (let i = start; i < end; i++) kept_mass += Math.exp(teacher.logprobs[i] - peak);
    const log_partition = logaddexp(Math.log(kept_mass), tail - peak);
    for (let i = start; i < end; i++) teacher.logprobs[i] -= peak + log_partition;
    teacher.strength[n] = w;
    teacher.weight[n] = token_weight(spec, w);
    teacher.tail_logprob[n] = tail - peak - log_partition;
    teacher.next_logprob[n] = logit(scores.next_logprob, n) - peak - log_partition;
    teacher.tail_bound[n] = tail === -Infinity ? 0 : upper - lower;
  }

  /* The teacher of `spec` at all positions of a row. */
  function compose(scores, spec, nodes) {
    const [positions, entries] = [scores.support_count.length, scores.support_ids.length];
    const teacher = { logprobs: new Float64Array(entries) };
    for (const name of ["tail_logprob", "strength", "weight", "next_logprob", "tail_bound"]) {
      teacher[name] = new Float64Array(positions);
    }
    for (let n = 0; n < positions; n++) position(scores, spec, nodes, n, teacher);
    return teacher;
  }

  return { compose, interpolate, lacks, nodes_at, strength, token_weight };
})();
