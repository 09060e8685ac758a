/* The panel of one token: what every model would have said instead, and all that the cache knows about the position. */
"use strict";

page.panel = (() => {
  const { el, number, signed, percent } = page;
  const TOP = 5; // alternatives of each model
  const state = { by: "teacher" };

  /* The log-probs of each model at all kept tokens, and of the tail and the actual token at a position. */
  function columns(loaded, n) {
    const { scores } = loaded;
    const teacher = page.teacher.of(scores);
    const found = page.data.roles.map((role) => ({
      name: role,
      kept: scores.logprobs[role],
      own: scores.next_logprob[role][n],
      tail: scores.tail_logprob[role][n],
    }));
    found.sort((a, b) => "reference dpo reverse".indexOf(a.name) - "reference dpo reverse".indexOf(b.name));
    if (teacher)
      found.push({
        name: "teacher",
        kept: teacher.logprobs,
        own: teacher.next_logprob[n],
        tail: teacher.tail_logprob[n],
      });
    return found;
  }

  /* The kept tokens that are among the best of any model, in the order of one of them. */
  function best(models, start, end, by) {
    const all = Array.from({ length: end - start }, (_, i) => start + i);
    const wanted = new Set();
    for (const { kept } of models) {
      for (const i of all.toSorted((a, b) => kept[b] - kept[a]).slice(0, TOP)) wanted.add(i);
    }
    const { kept } = models.find(({ name }) => name === by) ?? models.at(-1);
    return [...wanted].sort((a, b) => kept[b] - kept[a]);
  }

  function cell(logprob) {
    const made = el("td", { class: "number share" }, percent(Math.exp(logprob)));
    made.style.setProperty("--share", (100 * Math.exp(logprob)).toFixed(1));
    return made;
  }

  const row_of = (name, cells, kind = "") => el("tr", { class: kind }, name, cells);

  /* The table of alternatives. Its last lines are the rest of the kept tokens, and the tail. */
  function alternatives(loaded, n, id, redraw) {
    const { scores } = loaded;
    const models = columns(loaded, n);
    const [start, end] = [scores.starts[n], scores.starts[n + 1]];
    const shown = best(models, start, end, state.by);
    const own = scores.support_ids.subarray(start, end).indexOf(id);
    if (own >= 0 && !shown.includes(start + own)) shown.push(start + own);
    const rows = shown.map((i) => {
      const here = i === start + own && own >= 0;
      const cells = models.map(({ kept }) => cell(kept[i]));
      return row_of(name_cell(scores.support_ids[i], here ? "here" : ""), cells, here ? "own" : "");
    });
    if (own < 0)
      rows.push(
        row_of(
          name_cell(id, "here, in the tail"),
          models.map((model) => cell(model.own)),
          "own",
        ),
      );
    const rest = end - start - shown.length;
    const left = ({ kept, tail }) => Math.log(Math.max(1 - Math.exp(tail) - sum_of(kept, shown), 0));
    if (rest > 0)
      rows.push(
        row_of(
          el("td", {}, `${counted(rest)} more kept tokens`),
          models.map((model) => cell(left(model))),
          "quiet",
        ),
      );
    const outside = page.data.vocabulary_size - (end - start);
    rows.push(
      row_of(
        el("td", {}, `tail: ${counted(outside)} tokens`),
        models.map((model) => cell(model.tail)),
        "quiet",
      ),
    );
    const heads = models.map(({ name }) => sorter(name, redraw));
    return el(
      "table",
      { class: "alternatives" },
      el("thead", {}, row_of(el("th", {}, "instead"), heads)),
      el("tbody", {}, rows),
    );
  }

  const sum_of = (kept, indices) => indices.reduce((sum, i) => sum + Math.exp(kept[i]), 0);
  const counted = (count) => count.toLocaleString("en");

  /* The head of a model's column, which sorts by it. */
  function sorter(name, redraw) {
    const choose = () => {
      state.by = name;
      redraw();
    };
    const button = el("button", { type: "button", title: `sort by ${name}`, on: { click: choose } }, name);
    return el("th", { class: "number", "aria-sort": name === state.by ? "descending" : "none" }, button);
  }

  function name_cell(id, note) {
    const text = el("bdi", { class: "token-text" }, page.text.visible(page.rows.text_of(id)));
    return el("td", { class: "name" }, text, note ? el("span", { class: "quiet" }, ` ← ${note}`) : null);
  }

  /* [name, value, what it is] of the position. */
  function facts(loaded, n) {
    const { scores } = loaded;
    const { spec } = page.teacher.state;
    const negative = page.teacher.rewarding();
    const teacher = page.teacher.of(scores);
    const contrast = scores.next_logprob.dpo[n] - scores.next_logprob[negative][n];
    return [
      [
        "reward",
        signed(page.teacher.reward(scores, n), 4),
        `${spec.beta} × (l_dpo − l_${negative} = ${signed(contrast, 4)})`,
      ],
      ["D_t", number(scores.l1_distance[negative][n], 4), `distance of dpo and ${negative}, 0 to 2`],
      ["w_t", teacher ? number(teacher.strength[n], 4) : "–", "strength: how far from the anchor"],
      ["λ_t", teacher ? number(teacher.weight[n], 4) : "–", "weight of the position in the loss"],
      ["kept", counted(scores.support_count[n]), `of ${counted(page.data.vocabulary_size)} tokens are stored`],
    ];
  }

  /* What of the numbers is exact. */
  function exactness(loaded, n) {
    const { scores } = loaded;
    const teacher = page.teacher.of(scores);
    if (teacher === null) return `No teacher: ${page.teacher.state.fault}.`;
    const stored = "Stored: the log-probs of kept tokens and of the token here, and every model's tail.";
    if (teacher.tail_logprob[n] === -Infinity) return `${stored} All tokens are kept: the teacher is exact.`;
    const bound = teacher.tail_bound[n];
    if (bound === 0) return `${stored} The strength is at a node: the teacher's tail is stored too.`;
    const mass = Math.exp(teacher.tail_logprob[n]);
    const off = Math.log1p(mass * Math.expm1(bound));
    const between = `The teacher's tail is interpolated between two nodes, within ${bound.toPrecision(2)} nat`;
    return `${stored} ${between}; so its log-probs are off by ${off.toPrecision(2)} nat at most.`;
  }

  /* The panel of a token. actions: {close, step, redraw}. */
  function build(loaded, index, actions) {
    const token = loaded.tokens[index];
    const { row } = loaded;
    const link = page.rows.anchor(row.id, index);
    const head = el(
      "div",
      { class: "panel-head" },
      el("bdi", { class: "token-text" }, page.text.visible(token.text)),
      el("span", { class: "quiet" }, `token ${index} of row ${row.id}, ${row.chosen ? "chosen" : "rejected"}`),
      el(
        "span",
        { class: "buttons no-print" },
        el("button", { type: "button", title: "previous token (←)", on: { click: () => actions.step(-1) } }, "←"),
        el("button", { type: "button", title: "next token (→)", on: { click: () => actions.step(1) } }, "→"),
        el(
          "button",
          { type: "button", title: link, on: { click: () => page.copy(location.href.split("#")[0] + link) } },
          "Copy link",
        ),
        el("button", { type: "button", title: "close (Escape)", on: { click: actions.close } }, "✕"),
      ),
    );
    if (token.n === null)
      return [head, el("p", { class: "quiet" }, "This token is not distilled: no values are stored.")];
    const list = facts(loaded, token.n).map(([name, value, what]) =>
      el(
        "div",
        { class: "fact", title: what },
        el("span", { class: "quiet" }, name),
        el("b", { class: "number", dataset: { fact: name } }, value),
        el("span", { class: "quiet what" }, what),
      ),
    );
    return [
      head,
      el("div", { class: "facts" }, list),
      el("div", { class: "scroll" }, alternatives(loaded, token.n, token.id, actions.redraw)),
      el("p", { class: "quiet exactness" }, exactness(loaded, token.n)),
    ];
  }

  return { build };
})();
