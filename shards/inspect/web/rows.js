/* The rows of the page: what lists and filters need of all of them, and the values of one at a time.

   page.rows.all      [{id, name, pair, chosen, positions, tokens, prompt_tokens, prompt, text, sums, logprob,
                      largest_distance}], in the order of the cache; page.teacher.total(row) is the reward of one
   page.rows.show     (ids): which rows the list has, in which order; tells "list"
   page.rows.open     (id, token): shows a row and its partner, and the panel of a token; tells "open" and "select" */
"use strict";

page.rows = (() => {
  const all = page.data.rows;
  const by_id = new Map(all.map((row) => [row.id, row]));
  const special = new Set(page.data.special);
  const loaded = new Map(); // id -> promise; the last few rows
  const KEEP = 8;
  const state = { shown: all.map((row) => row.id), id: null, token: null };
  let texts = null;

  /* The text of any token that a row has or keeps. */
  const text_of = (id) => texts[id] ?? `<${id}>`;

  /* The rows of a row's pair that the page has, the chosen one first. */
  function partners(id) {
    const { pair } = by_id.get(id);
    return all.filter((row) => row.pair === pair).sort((a, b) => b.chosen - a.chosen || a.id - b.id);
  }

  /* A row with its values: {row, scores, tokens: [{id, text, special, n}]}; n: the position, null without one. */
  async function load(id) {
    const known = loaded.get(id);
    loaded.delete(id);
    loaded.set(id, known ?? decode(by_id.get(id)));
    if (loaded.size > KEEP) loaded.delete(loaded.keys().next().value);
    return loaded.get(id);
  }

  async function decode(row) {
    texts ??= JSON.parse(new TextDecoder().decode(await page.blob("tokens")));
    const arrays = page.values.unpack(await page.blob(`row-${row.id}`));
    const whole = row.prompt + row.text;
    let [at, n] = [0, 0];
    const tokens = Array.from(arrays.input_ids, (token_id, i) => {
      const text = whole.slice(at, (at += arrays.text_units[i]));
      return { id: token_id, text, special: special.has(token_id), n: arrays.loss_mask[i] ? n++ : null };
    });
    return { row, tokens, scores: page.values.scores_of(arrays, page.data.roles, page.data.pairs) };
  }

  function show(ids) {
    state.shown = ids;
    page.tell("list");
  }

  function open(id, token = null) {
    if (!by_id.has(id)) return;
    const moved = state.id !== id;
    state.id = id;
    state.token = token !== null && token < by_id.get(id).tokens ? token : null;
    if (moved) page.tell("open", id);
    page.tell("select", { id, token: state.token });
    if (location.protocol !== "about:") history.replaceState(null, "", anchor(id, state.token));
  }

  const anchor = (id, token) => (token === null ? `#row-${id}` : `#row-${id}-token-${token}`);

  /* Opens what the address names: #row-17 or #row-17-token-40. Returns whether it names a row of the page. */
  function follow() {
    const found = /^#row-(\d+)(?:-token-(\d+))?$/.exec(location.hash);
    if (!found || !by_id.has(Number(found[1]))) return false;
    open(Number(found[1]), found[2] === undefined ? null : Number(found[2]));
    return true;
  }

  return { all, by_id, state, text_of, partners, load, show, open, anchor, follow };
})();
