/* The teacher in view: its spec, what is wrong with it, and its composition for a row. */
"use strict";

page.teacher = (() => {
  const { data } = page;
  const composed = new WeakMap(); // scores -> { version, teacher }
  const state = { spec: { ...data.teacher }, fault: null, version: 0 };

  const pair = (spec = state.spec) => `${spec.anchor}/${spec.negative}`;

  function check(spec) {
    if (!data.roles.includes(spec.negative)) return `the cache was built without the model ${spec.negative}`;
    if (!data.pairs.includes(pair(spec)))
      return `the cache has no tails for ${pair(spec)}; it has ${data.pairs.join(", ")}`;
    return page.compose.lacks(data.nodes, spec);
  }

  /* Change some fields of the spec. */
  function set(changes) {
    state.spec = { ...state.spec, ...changes };
    state.fault = check(state.spec);
    state.version += 1;
    page.tell("teacher");
  }

  /* The preset that the spec has all fields of, but for numbers; null for none. */
  function preset() {
    const named = Object.entries(data.presets).find(([, other]) =>
      ["anchor", "negative", "strength"].every((name) => other[name] === state.spec[name]),
    );
    return named ? named[0] : null;
  }

  /* The composed teacher of a row's scores; null if there is none. */
  function of(scores) {
    if (state.fault !== null) return null;
    const known = composed.get(scores);
    if (known && known.version === state.version) return known.teacher;
    const teacher = page.compose.compose(scores, state.spec, data.nodes);
    composed.set(scores, { version: state.version, teacher });
    return teacher;
  }

  /* beta * (l_dpo - l_negative) of the actual token at a position. */
  function reward(scores, n) {
    const { beta, negative } = state.spec;
    return beta * (scores.next_logprob.dpo[n] - scores.next_logprob[rewarding(negative)][n]);
  }

  /* The negative of rewards: the reference where the cache has no other. */
  const rewarding = (negative = state.spec.negative) => (data.roles.includes(negative) ? negative : "reference");

  /* The summed reward of a row of `page.rows`. */
  const total = (row) => state.spec.beta * row.sums[rewarding()];

  /* w_t in words. */
  function strength_text() {
    const { spec } = state;
    const cap = spec.max_weight === null ? "" : `, λ_t no more than ${spec.max_weight}`;
    if (spec.strength === "adaptive")
      return `w_t = ${spec.gain} D_t + ${spec.min_strength}, λ_t = ${spec.beta} / w_t${cap}`;
    if (spec.strength === "constant") {
      return `w = beta / kl_coef = ${page.number(spec.beta / spec.kl_coef, 3)}, λ = ${page.number(spec.kl_coef, 4)}${cap}`;
    }
    const line = `${spec.learned_offset ?? "?"} + ${spec.learned_slope ?? "?"} D_t`;
    return `w_t = ${spec.min_strength} + softplus(${line}), up to the last node, λ_t = ${spec.beta} / w_t${cap}`;
  }

  const text = () => `${state.spec.anchor} + w_t (dpo − ${state.spec.negative}), ${strength_text()}`;

  state.fault = check(state.spec);
  return { state, set, preset, of, reward, rewarding, total, text };
})();
